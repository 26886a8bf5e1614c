//! The log: its form, its level, and the name of this node in every line.

use std::io::{self, Write};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

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

/// Starts the log on one of the standard streams. A server's is standard output, as operators of AnyCable expect.
pub(super) fn start<S>(format: LogFormat, level: LevelFilter, node_id: &str, stream: fn() -> S)
where
    S: Write + io::IsTerminal + 'static,
{
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(level == LevelFilter::DEBUG)
        .with_ansi(stream().is_terminal())
        .with_writer(NamedStream { stream, line_end: line_end(format, node_id) });
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// What every line ends with, and what of it was there before.
#[derive(Clone)]
struct LineEnd {
    before: &'static [u8],
    with_name: Vec<u8>,
}

/// `nodeid` as the last attribute of a line (`contracts/ops.md` section 1).
fn line_end(format: LogFormat, node_id: &str) -> LineEnd {
    match format {
        LogFormat::Text => LineEnd { before: b"\n", with_name: format!(" nodeid={node_id}\n").into_bytes() },
        LogFormat::Json => {
            let quoted = serde_json::Value::from(node_id);
            LineEnd { before: b"}\n", with_name: format!(",\"nodeid\":{quoted}}}\n").into_bytes() }
        }
    }
}

/// Adds the node's name to what is written. The subscriber writes a line at a time, which is cheaper to complete here than
/// a span to enter on every thread and task.
struct NamedStream<S> {
    stream: fn() -> S,
    line_end: LineEnd,
}

impl<'a, S: Write + 'a> MakeWriter<'a> for NamedStream<S> {
    type Writer = NamedWriter<'a, S>;

    fn make_writer(&'a self) -> NamedWriter<'a, S> {
        NamedWriter { stream: (self.stream)(), line_end: &self.line_end }
    }
}

struct NamedWriter<'a, S> {
    stream: S,
    line_end: &'a LineEnd,
}

impl<S: Write> Write for NamedWriter<'_, S> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    /// One write for the whole line, so that lines of several threads do not mix.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        match line.strip_suffix(self.line_end.before) {
            Some(line) => self.stream.write_all(&[line, &self.line_end.with_name].concat()),
            None => self.stream.write_all(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: LogFormat, node_id: &str, line: &str) -> String {
        let line_end = line_end(format, node_id);
        let mut writer = NamedWriter { stream: Vec::new(), line_end: &line_end };
        writer.write_all(line.as_bytes()).unwrap();
        String::from_utf8(writer.stream).unwrap()
    }

    #[test]
    fn every_line_ends_with_the_name_of_the_node() {
        assert_eq!(written(LogFormat::Text, "a1", "INFO up n=1\n"), "INFO up n=1 nodeid=a1\n");
        let line = written(LogFormat::Json, "a\"1", "{\"level\":\"INFO\",\"message\":\"up\"}\n");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((read["message"].as_str(), read["nodeid"].as_str()), (Some("up"), Some("a\"1")));
    }

    #[test]
    fn a_name_made_here_has_six_characters_of_the_alphabet() {
        let name = random_node_id();
        assert_eq!(name.len(), 6);
        assert!(name.bytes().all(|byte| ALPHABET.contains(&byte)), "{name}");
        assert_ne!(name, random_node_id(), "one of 64^6");
    }
}
