//! `cargo xtask functions`: the longest functions, which are the first to look at when code has become hard to read.
//!
//! Reads text and no syntax tree: in code that rustfmt has written, a function ends at the brace with the indentation of
//! its `fn` line. Tests are left out: files below `tests/` and `benches/`, modules called `tests` and functions with
//! `#[test]` or `#[cfg(test)]` above them.

use crate::Places;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const SHOWN: usize = 20;

/// Where Rust code lies that is neither ours nor written by a person.
const FOLDERS_LEFT_OUT: [&str; 6] = ["target", "node_modules", "tests", "benches", "versus", ".git"];

#[derive(Debug, PartialEq, Eq)]
struct Function {
    lines: usize,
    name: String,
    /// Of its `fn` line, from 1.
    line: usize,
}

pub fn run(places: &Places, args: &[String]) -> ExitCode {
    let shown = match args {
        [] => Some(SHOWN),
        [number] => number.parse().ok(),
        _ => None,
    };
    let Some(shown) = shown else {
        eprintln!("cargo xtask functions [N]");
        return ExitCode::from(64); // EX_USAGE
    };
    let mut files = Vec::new();
    rust_files(&places.root, &mut files);
    let mut found: Vec<(Function, PathBuf)> = Vec::new();
    for file in files {
        match std::fs::read_to_string(&file) {
            Ok(text) => found.extend(functions(&text).into_iter().map(|function| (function, file.clone()))),
            Err(error) => {
                eprintln!("{}: {error}", file.display());
                return ExitCode::FAILURE;
            }
        }
    }
    found.sort_by(|(one, at), (other, other_at)| {
        other.lines.cmp(&one.lines).then_with(|| (at, one.line).cmp(&(other_at, other.line)))
    });
    for (Function { lines, name, line }, file) in found.iter().take(shown) {
        let file = file.strip_prefix(&places.root).unwrap_or(file);
        println!("{lines:>4} lines  {name:<32} {}:{line}", file.display());
    }
    ExitCode::SUCCESS
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if !FOLDERS_LEFT_OUT.contains(&name) {
                rust_files(&path, found);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// The functions of a file that have a body of more than a line, tests left out.
fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let code = lines[at].trim_start();
        let indentation = &lines[at][..lines[at].len() - code.len()];
        let end = || block_end(&lines[at..], indentation).map(|length| at + length);
        if test_begins(code) {
            at = end().unwrap_or(at) + 1;
            continue;
        }
        if let (Some(name), Some(end)) = (function_name(code), end()) {
            found.push(Function { lines: end - at + 1, name: name.to_owned(), line: at + 1 });
        }
        at += 1;
    }
    found
}

/// Whether a test, or a module of tests, begins on this line or right below it.
fn test_begins(code: &str) -> bool {
    let attribute = code.strip_prefix("#[").is_some_and(|rest| {
        rest.starts_with("test]") || rest.starts_with("tokio::test") || rest.starts_with("cfg(test)")
    });
    attribute || code.starts_with("mod tests {")
}

/// How many lines below the first one the block ends: at the closing brace with the indentation of its first line. None
/// for what ends without a block, such as the declaration of a method.
fn block_end(lines: &[&str], indentation: &str) -> Option<usize> {
    for (below, line) in lines.iter().enumerate() {
        let Some(code) = line.strip_prefix(indentation) else { continue };
        if code.starts_with(char::is_whitespace) {
            continue;
        }
        if code.starts_with('}') {
            return Some(below);
        }
        let ends_here = code.ends_with(';') || (code.ends_with('}') && code.contains('{'));
        if ends_here && !code.starts_with("#[") {
            return None;
        }
    }
    None
}

/// The name behind `fn`, if this line begins a function: only words such as `pub(crate)` and `async` may stand before it.
fn function_name(code: &str) -> Option<&str> {
    let mut rest = code;
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
            return Some(&name[..end]).filter(|name| !name.is_empty());
        }
        let (word, behind) = rest.split_once(' ')?;
        let visible = word == "pub" || word.starts_with("pub(") || word == "in" || word.ends_with(')');
        if !visible && !matches!(word, "async" | "const" | "unsafe" | "extern" | "\"C\"") {
            return None;
        }
        rest = behind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_counted_from_their_first_line_to_their_brace() {
        let text = "\
impl A {
    pub(in crate::x) async fn one(
        &self,
    ) -> u8
    where
        A: B,
    {
        if true {
            f();
        }
    }

    fn short(&self) -> u8 { 1 }
}

trait T {
    fn declared(&self);
    fn given(&self) {
        const fn inner() {
            // fn comment() {
        }
    }
}

macro_rules! m {
    () => {
        fn $name() {
        }
    };
}
";
        let found = functions(text);
        let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.lines, f.line)).collect();
        assert_eq!(found, [("one", 10, 2), ("given", 5, 18), ("inner", 3, 19)]);
    }

    #[test]
    fn tests_are_left_out() {
        let text = "#[cfg(test)]\nmod tests {\n    fn helper() {\n    }\n}\n\n#[test]\nfn a() {\n}\n\n#[cfg(test)]\nmod x;\nfn b() {\n}\n";
        assert_eq!(functions(text), [Function { lines: 2, name: "b".to_owned(), line: 13 }]);
    }
}
