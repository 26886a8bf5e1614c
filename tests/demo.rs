//! `cableway demo` as a person starts it, from outside. What its page does is tested in `clients/demo.test.mjs`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// The demo on a free port; it ends with this value.
struct Demo(Child);

impl Demo {
    fn start(options: &[&str]) -> Demo {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cableway"));
        command.args(["demo", "--port", "0"]).args(options);
        Demo(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// What it says on standard error until it says that it runs.
    fn told(&mut self) -> Vec<String> {
        let lines = BufReader::new(self.0.stderr.take().unwrap()).lines().map(Result::unwrap);
        lines.take_while(|line| !line.contains("demo is running")).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn standard_error_names_the_open_file_limit_once_whatever_the_log_shows() {
    for options in [&[][..], &["--log-level", "error"], &["--log-level", "debug"]] {
        let mut demo = Demo::start(options);
        let pid = demo.0.id();
        let told = demo.told();
        let first = format!("Starting Cableway {} (pid: {pid}, open file limit: ", env!("CARGO_PKG_VERSION"));
        assert_eq!(told.iter().filter(|line| line.contains(&first)).count(), 1, "{options:?}: {told:#?}");
    }
}
