//! The log: its form, its level, and the name of this node in every line.

mod limit;
mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;
use std::{panic, thread};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use limit::{Limit, Limited};
use queue::Queue;

use crate::config::{LogFormat, LogLevel};

/// Characters of a name that is made here, as AnyCable's.
const NODE_ID_CHARS: usize = 6;

/// What a name made here consists of: 64 characters.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";

/// A name for a node that was given none.
pub(super) fn random_node_id() -> String {
    (0..NODE_ID_CHARS).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

pub(super) fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}

/// Who writes the lines of a log.
pub(super) struct Name {
    /// The node.
    pub node_id: String,
    /// The process, if the node has several.
    pub process: Option<u16>,
}

/// Where a log goes.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn is_terminal(self) -> bool {
        match self {
            Stream::Stdout => io::stdout().is_terminal(),
            Stream::Stderr => io::stderr().is_terminal(),
        }
    }
}

/// Past the standard library, whose streams have locks and buffers that others may wait for.
impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(match self {
            Stream::Stdout => rustix::io::write(io::stdout(), bytes),
            Stream::Stderr => rustix::io::write(io::stderr(), bytes),
        }?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long the end of the program waits for the last lines. Nobody may be reading them.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(1);

/// The log of this process. Dropping it waits until the last line is written, for a second at most.
pub(super) struct Log {
    queue: Queue,
    limit: Arc<Limit>,
    level: reload::Handle<LevelFilter, Registry>,
}

impl Log {
    /// Starts the log on one of the standard streams. A server's is standard output, as operators of AnyCable expect.
    pub fn start(format: LogFormat, level: LevelFilter, name: &Name, stream: Stream) -> io::Result<Log> {
        let limit = Arc::new(Limit::new());
        let reports = Arc::clone(&limit);
        let queue = Queue::start(stream, move || reports.report())?;
        let (level_layer, handle) = reload::Layer::new(level);
        let lines = fmt::layer()
            .with_target(level == LevelFilter::DEBUG)
            .with_ansi(stream.is_terminal())
            // It would tell standard error what went wrong with a line, and wait there.
            .log_internal_errors(false)
            .with_writer(NamedStream { queue: queue.clone(), line_end: line_end(format, name) });
        // The level at the bottom, or the layers above would have every line made to throw it away.
        let log = tracing_subscriber::registry().with(level_layer);
        match format {
            LogFormat::Text => log.with(lines).with(Limited(Arc::clone(&limit))).init(),
            LogFormat::Json => log.with(lines.json().flatten_event(true)).with(Limited(Arc::clone(&limit))).init(),
        }
        log_panics(queue.clone());
        Ok(Log { queue, limit, level: handle })
    }

    /// From now on lines of this level and above are logged.
    pub fn set_level(&self, level: LevelFilter) {
        // It fails when the log is gone, which has no level.
        let _ = self.level.reload(level);
    }

    /// Waits until the last line is written, for a second at most.
    pub fn flush(&self) {
        self.queue.flush(FLUSH_TIME_MAX);
    }

    /// The boot is over: from now on no place in the program fills the log.
    pub fn limit(&self) {
        self.limit.begin(&self.queue);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Panics go to the log like everything else. Standard error may be what nobody reads, and the process must end all the
/// same.
fn log_panics(queue: Queue) {
    panic::set_hook(Box::new(move |panic| {
        let backtrace = Backtrace::capture();
        let thread = thread::current();
        match backtrace.status() {
            BacktraceStatus::Captured => tracing::error!(thread = thread.name(), %backtrace, "{panic}"),
            _ => tracing::error!(thread = thread.name(), "{panic}"),
        }
        queue.flush(FLUSH_TIME_MAX);
    }));
}

/// What every line ends with, and what of it was there before.
#[derive(Clone)]
struct LineEnd {
    before: &'static [u8],
    with_name: Vec<u8>,
}

/// `nodeid` as the last attribute of a line (`contracts/ops.md` section 1), behind `process` where there are several.
fn line_end(format: LogFormat, Name { node_id, process }: &Name) -> LineEnd {
    match format {
        LogFormat::Text => {
            let process = process.map(|process| format!(" process={process}")).unwrap_or_default();
            LineEnd { before: b"\n", with_name: format!("{process} nodeid={node_id}\n").into_bytes() }
        }
        LogFormat::Json => {
            let process = process.map(|process| format!(",\"process\":{process}")).unwrap_or_default();
            let quoted = serde_json::Value::from(node_id.as_str());
            LineEnd { before: b"}\n", with_name: format!("{process},\"nodeid\":{quoted}}}\n").into_bytes() }
        }
    }
}

/// Adds the node's name to what is written. The subscriber writes a line at a time, which is cheaper to complete here than
/// a span to enter on every thread and task.
struct NamedStream {
    queue: Queue,
    line_end: LineEnd,
}

impl<'a> MakeWriter<'a> for NamedStream {
    type Writer = &'a NamedStream;

    fn make_writer(&'a self) -> &'a NamedStream {
        self
    }
}

impl Write for &NamedStream {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let LineEnd { before, with_name } = &self.line_end;
        match line.strip_suffix(*before) {
            Some(line) => self.queue.put(&[line, with_name]),
            None => self.queue.put(&[line]),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: LogFormat, node_id: &str, process: Option<u16>, line: &str) -> String {
        let name = Name { node_id: node_id.to_owned(), process };
        let written = Written::default();
        let queue = Queue::start(written.clone(), || ()).unwrap();
        let named = NamedStream { queue: queue.clone(), line_end: line_end(format, &name) };
        named.make_writer().write_all(line.as_bytes()).unwrap();
        queue.flush(Duration::MAX);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn every_line_ends_with_the_name_of_the_node() {
        assert_eq!(written(LogFormat::Text, "a1", None, "INFO up n=1\n"), "INFO up n=1 nodeid=a1\n");
        assert_eq!(written(LogFormat::Text, "a1", Some(2), "INFO up n=1\n"), "INFO up n=1 process=2 nodeid=a1\n");
        let line = written(LogFormat::Json, "a\"1", Some(0), "{\"level\":\"INFO\",\"message\":\"up\"}\n");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((read["message"].as_str(), read["nodeid"].as_str()), (Some("up"), Some("a\"1")));
        assert_eq!(read["process"], 0);
    }

    /// What the next test runs in a process of its own, for a log belongs to the process.
    #[test]
    #[ignore = "panics"]
    fn panics_with_a_log() {
        let log = Log::start(
            LogFormat::Json,
            LevelFilter::INFO,
            &Name { node_id: "a1".into(), process: None },
            Stream::Stderr,
        )
        .unwrap();
        // What is not logged is not even made.
        assert_eq!(LevelFilter::current(), LevelFilter::INFO);
        log.set_level(LevelFilter::WARN);
        tracing::info!("not logged");
        log.set_level(LevelFilter::DEBUG);
        assert_eq!(LevelFilter::current(), LevelFilter::DEBUG);
        log.set_level(LevelFilter::INFO);
        tracing::info!("before");
        let _ = thread::Builder::new().name("worker".into()).spawn(|| panic!("out of order")).unwrap().join();
        drop(log);
    }

    #[test]
    fn a_panic_is_a_line_of_the_log_behind_those_before_it() {
        let name = "cli::log::tests::panics_with_a_log";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<serde_json::Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert_eq!((lines[0]["message"].as_str(), lines[1]["level"].as_str()), (Some("before"), Some("ERROR")));
        assert_eq!((lines[1]["thread"].as_str(), lines[1]["nodeid"].as_str()), (Some("worker"), Some("a1")));
        assert!(lines[1]["message"].as_str().is_some_and(|text| text.contains("out of order")), "{log}");
    }

    #[test]
    fn a_name_made_here_has_six_characters_of_the_alphabet() {
        let name = random_node_id();
        assert_eq!(name.len(), 6);
        assert!(name.bytes().all(|byte| ALPHABET.contains(&byte)), "{name}");
        assert_ne!(name, random_node_id(), "one of 64^6");
    }
}
