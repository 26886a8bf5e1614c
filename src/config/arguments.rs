//! The command line, as words: which command, which flags with which values. Nothing is interpreted here
//! beyond what is needed to tell a flag from a value.
//!
//! `-flag` and `--flag` are the same, so are dashes and underscores in names, and `--flag value` and
//! `--flag=value`. A flag that says yes or no needs no value and takes one only after `=`. When a flag comes
//! twice, the last one counts.

use std::ffi::OsString;
use std::iter::Peekable;
use std::path::PathBuf;

use super::commands::SUBCOMMANDS;
use super::definition::{Definition, Kind};
use super::error::{Problem, nearest};
use super::options;

/// What the user wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Serve,
    Demo,
    Config,
    Help,
    Version,
}

/// A command line, taken apart.
pub(super) struct Arguments {
    pub verb: Verb,
    /// Options in the order given: definition, flag as written, value.
    pub flags: Vec<(&'static Definition, String, String)>,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--ignore-config-path`.
    pub ignore_config: bool,
    /// `help --all`.
    pub all: bool,
    /// `config --sample`.
    pub sample: bool,
    /// What is wrong with the rest of the line.
    pub problems: Vec<Problem>,
}

const VERBS: [(&str, Verb); 4] =
    [("serve", Verb::Serve), ("demo", Verb::Demo), ("config", Verb::Config), ("help", Verb::Help)];

/// Flags that are not options of the configuration.
const SWITCHES: [&str; 9] =
    ["config", "config-path", "ignore-config-path", "print-config", "help", "version", "all", "sample", "h"];

pub(super) fn read<I>(args: I) -> Result<Arguments, Problem>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut words = utf8(args)?.into_iter().peekable();
    let verb = read_verb(&mut words)?;
    let mut found = Arguments {
        verb: verb.unwrap_or(Verb::Serve),
        flags: Vec::new(),
        config: None,
        ignore_config: false,
        all: false,
        sample: false,
        problems: Vec::new(),
    };
    let mut may_be_verb = verb.is_none();
    while let Some(word) = words.next() {
        let Some((name, value)) = split(&word) else {
            // The command may stand behind options.
            match VERBS.iter().find(|(name, _)| *name == word && may_be_verb) {
                Some((_, Verb::Help)) => return Ok(Arguments { verb: Verb::Help, ..found }),
                Some((_, verb)) => {
                    found.verb = *verb;
                    may_be_verb = false;
                }
                None => {
                    let problem = stray(word, &found);
                    found.problems.push(problem);
                }
            }
            continue;
        };
        // What a user asks for first is given, even if the rest of the line is wrong.
        match name.as_str() {
            "help" | "h" => {
                let all = found.all || words.any(|word| word.trim_start_matches('-') == "all");
                return Ok(Arguments { verb: Verb::Help, all, ..found });
            }
            "version" | "v" => return Ok(Arguments { verb: Verb::Version, ..found }),
            "all" if found.verb == Verb::Help => found.all = true,
            "sample" if found.verb == Verb::Config => found.sample = true,
            "print-config" => found.verb = Verb::Config,
            "ignore-config-path" => found.ignore_config = true,
            "config" | "config-path" => {
                match read_config_path(word, value, &mut words) {
                    Ok(path) => found.config = Some(path),
                    Err(problem) => found.problems.push(problem),
                }
                continue;
            }
            _ => {
                match read_option(word, &name, value, &mut words) {
                    Ok(option) => found.flags.push(option),
                    Err(problem) => found.problems.push(problem),
                }
                continue;
            }
        }
        if value.is_some() {
            found.problems.push(Problem::ExtraValue { flag: format!("--{name}") });
        }
    }
    Ok(found)
}

/// The words that are left.
type Words = Peekable<std::vec::IntoIter<String>>;

fn utf8<I>(args: I) -> Result<Vec<String>, Problem>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let texts = args.into_iter().map(|arg| arg.into().into_string());
    texts.map(|text| text.map_err(|raw| Problem::NotUtf8(raw.to_string_lossy().into_owned()))).collect()
}

/// The command, if the first word is one.
fn read_verb(words: &mut Words) -> Result<Option<Verb>, Problem> {
    let Some(first) = words.next_if(|word| !word.starts_with('-')) else { return Ok(None) };
    let known = VERBS.iter().find(|(name, _)| *name == first);
    known
        .map(|(_, verb)| Some(*verb))
        .ok_or_else(|| Problem::StrayWord { nearest: nearest(&first, commands()), word: first })
}

/// What somebody may have meant: those that are carried out elsewhere, too.
fn commands() -> impl Iterator<Item = String> {
    SUBCOMMANDS.iter().map(|command| command.name.to_owned())
}

fn read_config_path(flag: String, value: Option<String>, words: &mut Words) -> Result<PathBuf, Problem> {
    let path = value.or_else(|| words.next_if(|word| !is_known_flag(word)));
    path.filter(|path| !path.is_empty()).map(PathBuf::from).ok_or(Problem::MissingValue { flag })
}

/// An option of the configuration: its definition, the flag as written, its value.
fn read_option(
    word: String,
    name: &str,
    value: Option<String>,
    words: &mut Words,
) -> Result<(&'static Definition, String, String), Problem> {
    let Some(definition) = options::all().find(|definition| !name.is_empty() && definition.name == name) else {
        if value.is_none() {
            // Its value, if that is what follows, is no word of its own.
            words.next_if(|word| !word.starts_with('-') && !VERBS.iter().any(|(name, _)| name == word));
        }
        return Err(unknown(word));
    };
    let flag = word.split('=').next().unwrap_or_default().to_owned();
    let value = match value {
        Some(value) => value,
        None if definition.kind == Kind::Bool => "true".to_owned(),
        None => {
            words.next_if(|word| !is_known_flag(word)).ok_or_else(|| Problem::MissingValue { flag: flag.clone() })?
        }
    };
    Ok((definition, flag, value))
}

/// Name with dashes, and what follows `=`. `None` for a word that is no flag.
fn split(word: &str) -> Option<(String, Option<String>)> {
    let body = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (body, None),
    };
    Some((name.replace('_', "-"), value))
}

/// Whether a word in a value's place is a flag whose value was forgotten before it.
fn is_known_flag(word: &str) -> bool {
    split(word).is_some_and(|(name, _)| {
        !name.is_empty()
            && (SWITCHES.contains(&name.as_str()) || options::all().any(|definition| definition.name == name))
    })
}

fn stray(word: String, found: &Arguments) -> Problem {
    let after_yes_or_no = found.flags.last().filter(|(definition, _, value)| {
        definition.kind == Kind::Bool && value == "true" && ["true", "false", "0", "1"].contains(&word.as_str())
    });
    let nearest = match after_yes_or_no {
        Some((_, flag, _)) => Some(format!("{flag}={word}")),
        None => nearest(&word, commands()).filter(|name| *name != word),
    };
    Problem::StrayWord { word, nearest }
}

fn unknown(word: String) -> Problem {
    let flag = word.split('=').next().unwrap_or_default().to_owned();
    let names = options::all().map(|definition| definition.name).filter(|name| !name.is_empty());
    let names = names.chain(SWITCHES).map(|name| format!("--{name}"));
    Problem::UnknownFlag { nearest: nearest(&flag, names), flag }
}
