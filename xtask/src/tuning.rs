//! Checks of the files in `deploy/` that no compiler reads: the kernel settings and the systemd unit.

use std::path::{Path, PathBuf};

/// What is wrong with a file of kernel settings: each line must be a setting, set once, with a comment above it that
/// says why, or a comment. `known` says whether this kernel has a setting.
pub fn sysctl_faults(text: &str, known: impl Fn(&str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = Vec::new();
    let mut explained = false;
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if line.is_empty() {
            explained = false;
        } else if line.starts_with(['#', ';']) {
            explained = true;
        } else if let Some((name, value)) = line.split_once('=') {
            let (name, value) = (name.trim().trim_start_matches('-'), value.trim());
            if name.is_empty() || value.is_empty() || name.contains(char::is_whitespace) {
                faults.push(format!("line {number}: not `name = value`"));
            } else if !known(name) {
                faults.push(format!("line {number}: the kernel has no {name}"));
            }
            if seen.contains(&name) {
                faults.push(format!("line {number}: {name} is set twice"));
            }
            if !explained {
                faults.push(format!("line {number}: {name} has no reason above it"));
            }
            seen.push(name);
        } else {
            faults.push(format!("line {number}: neither a comment nor a setting"));
        }
    }
    if seen.is_empty() {
        faults.push("nothing is set".to_owned());
    }
    faults
}

/// Whether the kernel has a setting: it shows it here, or keeps it out of containers' sight.
pub fn kernel_knows(name: &str) -> bool {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    path.exists() || hidden_in_containers(name)
}

/// Settings that exist once per machine (net/core/sysctl_net_core.c, net/ipv4/sysctl_net_ipv4.c register them for the
/// first network namespace only), and those of modules that are loaded on first use.
fn hidden_in_containers(name: &str) -> bool {
    name.starts_with("net.core.")
        || name.starts_with("net.netfilter.")
        || name.starts_with("net.ipv4.tcp_mem")
        || name == "net.ipv4.tcp_max_orphans"
}

/// A copy of a unit whose program is `program`: systemd-analyze looks for the file it would start, and nothing is installed
/// on a machine that runs tests.
pub fn unit_with_program(unit: &str, program: &Path) -> String {
    unit.lines()
        .map(|line| match line.split_once('=') {
            Some((key, command)) if key.starts_with("Exec") => {
                let prefix_end = command.find('/').unwrap_or(0);
                let (prefix, command) = command.split_at(prefix_end);
                match command.split_once(' ') {
                    Some((path, args)) if path.ends_with("/cableway") => {
                        format!("{key}={prefix}{} {args}\n", program.display())
                    }
                    None if command.ends_with("/cableway") => format!("{key}={prefix}{}\n", program.display()),
                    _ => format!("{line}\n"),
                }
            }
            _ => format!("{line}\n"),
        })
        .collect()
}

/// The files of a folder with this ending, in order.
pub fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_needs_a_reason_and_a_name_that_the_kernel_has() {
        let known = |name: &str| name != "net.ipv4.nonsense";
        let text = "# why\nnet.core.somaxconn = 4096\n\nfs.nr_open = 1\n# why\nnet.ipv4.nonsense = 1\nwords\n# again\nfs.nr_open=2\n";
        assert_eq!(
            sysctl_faults(text, known),
            [
                "line 4: fs.nr_open has no reason above it",
                "line 6: the kernel has no net.ipv4.nonsense",
                "line 7: neither a comment nor a setting",
                "line 9: fs.nr_open is set twice",
            ]
        );
        assert_eq!(sysctl_faults("# why\nfs.nr_open = 20000000\n", known), [""; 0]);
    }

    #[test]
    fn a_file_that_sets_nothing_is_a_fault() {
        assert_eq!(sysctl_faults("# only words\n", |_| true), ["nothing is set"]);
    }

    #[test]
    fn only_the_program_of_a_unit_is_replaced() {
        let unit = "[Service]\nExecStart=/usr/local/bin/cableway serve --port 80\nExecStartPre=-/usr/bin/cableway\nExecReload=/bin/kill x\nUser=a\n";
        assert_eq!(
            unit_with_program(unit, Path::new("/t/cableway")),
            "[Service]\nExecStart=/t/cableway serve --port 80\nExecStartPre=-/t/cableway\nExecReload=/bin/kill x\nUser=a\n"
        );
    }
}
