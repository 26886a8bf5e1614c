//! The configuration file: which one, and its keys as dotted paths. Reading it is all the I/O there is.

use std::io;
use std::path::{Path, PathBuf};

use config::{FileFormat, Format, Value, ValueKind};

use super::error::{Problem, nearest};
use super::options;
use super::setting::Input;
use super::{Definition, Status};

/// Where a file is looked for when none is named: the first that is there is used.
pub const SEARCHED: [&str; 4] =
    ["./cableway.toml", "./anycable.toml", "/etc/cableway/cableway.toml", "/etc/anycable/anycable.toml"];

/// Keys that people write because AnyCable prints them or because the flag is spelled so.
const RENAMED_KEYS: [(&str, &str); 2] =
    [("metrics.http", "metrics.http_path"), ("app.enable_native_pings", "app.enable_native_ping")];

/// A file's text and where it was.
pub(super) struct Found {
    pub path: PathBuf,
    pub text: String,
}

/// Finds the file: the named one, which then must be there, or the first of [`SEARCHED`].
pub(super) fn find(named: Option<&Path>, read: &dyn Fn(&Path) -> io::Result<String>) -> Result<Option<Found>, Problem> {
    let unreadable = |path: &Path, error: io::Error| Problem::Unreadable {
        file: path.display().to_string(),
        why: error.to_string(),
    };
    if let Some(path) = named {
        let text = read(path).map_err(|error| unreadable(path, error))?;
        return Ok(Some(Found { path: path.to_owned(), text }));
    }
    for path in SEARCHED.map(Path::new) {
        match read(path) {
            Ok(text) => return Ok(Some(Found { path: path.to_owned(), text })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(unreadable(path, error)),
        }
    }
    Ok(None)
}

/// What a file says.
#[derive(Default)]
pub(super) struct Contents {
    /// The options, sorted by key so that messages come in the same order every time.
    pub given: Vec<(&'static Definition, Input)>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
}

/// Reads a file's text.
pub(super) fn read(found: &Found) -> Contents {
    let file = found.path.display().to_string();
    let extension = found.path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let (format, language) = match extension.to_ascii_lowercase().as_str() {
        "yaml" | "yml" => (FileFormat::Yaml, "YAML"),
        _ => (FileFormat::Toml, "TOML"),
    };
    let mut contents = Contents::default();
    let table = match format.parse(None, &found.text) {
        Ok(table) => table,
        Err(error) => {
            // The parser quotes the line, which may hold a secret: keep where and what, drop the quote.
            let text = error.to_string();
            let kept: Vec<&str> = text.lines().filter(|line| !line.contains('|')).map(str::trim).collect();
            let why = kept.join(" ").trim().to_owned();
            contents.problems.push(Problem::Unparsable { file, language, why });
            return contents;
        }
    };
    let mut keys = Vec::new();
    flatten("", table.into_iter(), &mut keys);
    keys.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (key, value) in keys {
        match option(&file, &key) {
            Err(problem) => contents.problems.push(problem),
            Ok(Meant::Section) => {}
            Ok(Meant::Absent { instead }) => {
                contents.warnings.push(format!("not used: {key} (file {file}): {instead}"));
            }
            Ok(Meant::Option(definition)) => match input(value) {
                Ok(Some(input)) => contents.given.push((definition, input)),
                Ok(None) => {}
                Err(why) => contents.problems.push(Problem::BadValue {
                    option: key,
                    origin: file.clone(),
                    value: "what it is".to_owned(),
                    why: why.to_owned(),
                }),
            },
        }
    }
    contents
}

fn flatten(prefix: &str, table: impl Iterator<Item = (String, Value)>, keys: &mut Vec<(String, ValueKind)>) {
    for (key, value) in table {
        let key = format!("{prefix}{}", key.replace('-', "_"));
        match value.kind {
            // The one option that is a table itself: AnyCable prints `[metrics.tags]`.
            ValueKind::Table(table) if key != "metrics.tags" => flatten(&format!("{key}."), table.into_iter(), keys),
            kind => keys.push((key, kind)),
        }
    }
}

/// What a key stands for.
enum Meant {
    Option(&'static Definition),
    /// The name of a section that YAML left empty.
    Section,
    /// Something in a section of which nothing is there yet.
    Absent {
        instead: &'static str,
    },
}

fn option(file: &str, key: &str) -> Result<Meant, Problem> {
    let known = || options::all().filter(|definition| !definition.toml.is_empty());
    if let Some(definition) = known().find(|definition| definition.toml == key) {
        return Ok(Meant::Option(definition));
    }
    if below(key).next().is_some() {
        return Ok(Meant::Section);
    }
    let file = file.to_owned();
    if let Some((_, now)) = RENAMED_KEYS.iter().find(|(old, _)| *old == key) {
        return Err(Problem::RenamedKey { file, key: key.to_owned(), now });
    }
    // A key we do not know in a section of which nothing is there yet is not a spelling mistake.
    let section = key.split('.').next().unwrap_or_default();
    let absent: Option<Vec<&str>> = below(section)
        .map(|definition| match definition.status {
            Status::NotThereYet { instead } | Status::Dormant { instead } => Some(instead),
            _ => None,
        })
        .collect();
    if let Some([instead, ..]) = absent.as_deref() {
        return Ok(Meant::Absent { instead });
    }
    // Somebody may have written the flag's name.
    let flag = known().find(|definition| definition.name.replace('-', "_") == key.rsplit('.').next().unwrap_or(key));
    let nearest = match flag {
        Some(definition) => Some(definition.toml.to_owned()),
        None => nearest(key, known().map(|definition| definition.toml.to_owned())),
    };
    Err(Problem::UnknownKey { file, key: key.to_owned(), nearest })
}

/// The options whose keys are in a section.
fn below(section: &str) -> impl Iterator<Item = &'static Definition> {
    options::all()
        .filter(move |definition| definition.toml.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')))
}

/// A value as the text a flag would have; `None` for a key without a value (YAML's null).
fn input(value: ValueKind) -> Result<Option<Input>, &'static str> {
    fn plain(value: ValueKind) -> Result<String, &'static str> {
        Ok(match value {
            ValueKind::Boolean(value) => value.to_string(),
            ValueKind::I64(value) => value.to_string(),
            ValueKind::I128(value) => value.to_string(),
            ValueKind::U64(value) => value.to_string(),
            ValueKind::U128(value) => value.to_string(),
            ValueKind::Float(value) => value.to_string(),
            ValueKind::String(value) => value,
            ValueKind::Nil | ValueKind::Table(_) | ValueKind::Array(_) => return Err("it takes plain values"),
        })
    }
    Ok(Some(match value {
        ValueKind::Nil => return Ok(None),
        ValueKind::Array(entries) => {
            Input::Many(entries.into_iter().map(|entry| plain(entry.kind)).collect::<Result<_, _>>()?)
        }
        ValueKind::Table(entries) => {
            let mut tags = Vec::new();
            for (name, value) in entries {
                tags.push(format!("{name}:{}", plain(value.kind)?));
            }
            tags.sort();
            Input::Many(tags)
        }
        value => Input::One(plain(value)?),
    }))
}
