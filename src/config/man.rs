//! The man page, made from the tables: man(7) macros, which every `man` understands.

use std::fmt::Write;

use super::commands::{SERVER_FLAGS, SUBCOMMANDS};
use super::definition::Definition;
use super::file::SEARCHED;
use super::options;
use super::text::{LAYERS_AND_UNITS, facts, paragraphs, value_word};

/// When the words around the tables were changed last; a page is to have a date, and the same one in every build.
const DATE: &str = "2026-11-29";

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT",
        "Send all clients away within --shutdown-timeout, tell the app, and end. A second one ends at once.",
    ),
    (
        "SIGHUP",
        "Read the configuration again and take over what can be changed while running, which is marked \"live\" above. The \
         log says what changed and what needs a restart. A configuration with a mistake changes nothing. Nobody is closed.",
    ),
    (
        "SIGUSR2",
        "The same as cableway upgrade: start the program anew, hand all connections over to it, and end. The log says what \
         became of it. If it fails, this process goes on as if nothing had been.",
    ),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("CABLEWAY_*, ANYCABLE_*", "Options, as described above."),
    ("CABLEWAY_CONFIG", "The configuration file, unless --config names one."),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID",
        "Where a supervisor such as systemd(1) is told that clients are served, and that all threads turn; see sd_notify(3).",
    ),
    ("RUNTIME_DIRECTORY, XDG_RUNTIME_DIR", "Where the control socket is, see --control-socket."),
    (
        "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
        "Listening sockets that a supervisor has opened; they take the place of --host and --port. See sd_listen_fds(3).",
    ),
];

const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "It did what it was asked, or was ended by a signal after its clients were sent away."),
    (
        "1",
        "A wrong option, a port that is taken, a server that is not well (healthcheck), or one that goes on as it was (upgrade).",
    ),
    ("64", "A wrong word or flag of a command that does not run the server."),
];

/// The text of the page `cableway(1)`.
pub fn man() -> String {
    let mut page = Page(String::new());
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(page.0, ".TH CABLEWAY 1 {DATE} \"cableway {version}\" \"User Commands\"");
    page.section("NAME");
    page.0.push_str("cableway \\- WebSocket connection server for ordinary app servers\n");
    page.section("SYNOPSIS");
    for (words, _) in SUBCOMMANDS.iter().flat_map(|command| command.usage) {
        let _ = writeln!(page.0, ".B cableway\n{}\n.br", escaped(words));
    }
    page.0.push_str(".B cableway\n\\-\\-version\n");
    page.section("DESCRIPTION");
    page.paragraph(
        "Cableway holds WebSockets of Action Cable clients and calls an app server, over AnyCable's gRPC or HTTP contract, \
         when one of them connects, sends a command, or leaves.",
    );
    LAYERS_AND_UNITS.iter().for_each(|paragraph| page.paragraph(paragraph));
    page.section("COMMANDS");
    for command in SUBCOMMANDS {
        for (words, about) in command.usage {
            page.item(words, "", about);
        }
        for flag in command.flags {
            page.item(&format!("{} {}", command.name, flag.name), flag.value, flag.about);
        }
    }
    page.section("OPTIONS");
    SERVER_FLAGS.iter().for_each(|flag| page.item(flag.name, flag.value, flag.about));
    let mut group = "";
    for definition in options::all().filter(|definition| definition.works() && !definition.name.is_empty()) {
        if definition.group != group {
            group = definition.group;
            let _ = writeln!(page.0, ".SS \"{}\"", escaped(group));
        }
        page.option(definition);
    }
    page.items("ENVIRONMENT", ENVIRONMENT);
    page.section("FILES");
    page.paragraph("The first of these that is there is read, unless --config names another:");
    SEARCHED.iter().for_each(|file| page.item(file, "", "TOML."));
    page.items("SIGNALS", SIGNALS);
    page.items("EXIT STATUS", EXIT_STATUS);
    page.section("SEE ALSO");
    page.0.push_str(".BR systemd.service (5),\n.BR systemd.socket (5),\n.BR sysctl.d (5)\n");
    page.0
}

struct Page(String);

impl Page {
    fn section(&mut self, heading: &str) {
        let _ = writeln!(self.0, ".SH \"{heading}\"");
    }

    fn paragraph(&mut self, text: &str) {
        // A heading begins one by itself.
        if !self.0.lines().next_back().is_some_and(|line| line.starts_with(".SH")) {
            self.0.push_str(".PP\n");
        }
        let _ = writeln!(self.0, "{}", escaped(text));
    }

    /// What is written, what follows it, and what it does.
    fn item(&mut self, written: &str, value: &str, about: &str) {
        let _ = write!(self.0, ".TP\n\\fB{}\\fR", escaped(written));
        if !value.is_empty() {
            let _ = write!(self.0, " \\fI{}\\fR", escaped(value));
        }
        let _ = writeln!(self.0, "\n{}", escaped(about));
    }

    fn items(&mut self, heading: &str, items: &[(&str, &str)]) {
        self.section(heading);
        items.iter().for_each(|(written, about)| self.item(written, "", about));
    }

    fn option(&mut self, definition: &Definition) {
        let paragraphs = paragraphs(definition);
        let mut paragraphs = paragraphs.iter();
        let first = paragraphs.next().map_or("", String::as_str);
        self.item(&format!("--{}", definition.name), value_word(definition), first);
        let facts = facts(definition);
        if !facts.is_empty() {
            let _ = writeln!(self.0, "[{}]", escaped(&facts.join("; ")));
        }
        for paragraph in paragraphs {
            let _ = writeln!(self.0, ".IP\n{}", escaped(paragraph));
        }
    }
}

/// Text as troff takes it: a hyphen that is typed stays one, and no line is taken for a request.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    if text.starts_with(['.', '\'']) {
        out.push_str("\\&");
    }
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '"' => out.push_str("\\(dq"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_is_taken_for_a_request_of_troff() {
        assert_eq!(escaped(".SH \\fB --a'b"), "\\&.SH \\efB \\-\\-a\\(aqb");
        let known = [".TH", ".SH", ".SS", ".PP", ".TP", ".IP", ".B", ".BR", ".br"];
        for line in man().lines().filter(|line| line.starts_with(['.', '\''])) {
            assert!(known.contains(&line.split(' ').next().unwrap()), "{line}");
        }
    }

    #[test]
    fn every_option_and_command_is_on_the_page() {
        let page = man();
        for definition in options::all().filter(|definition| definition.works() && !definition.name.is_empty()) {
            assert!(page.contains(&escaped(&format!("--{}", definition.name))), "{}", definition.name);
        }
        assert!(SUBCOMMANDS.iter().all(|command| page.contains(&escaped(command.usage[0].0))));
    }
}
