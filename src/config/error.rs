//! What can be wrong with a configuration, in sentences that say what to do.

use std::fmt;

/// Everything that is wrong with a configuration. Shown with one problem a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// The exit code of a process that cannot use its configuration, as AnyCable's.
    pub const EXIT_CODE: u8 = 1;
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        ConfigError { problems: vec![problem] }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A flag that nobody knows.
    #[error("unknown option {flag}{}", hint(.nearest))]
    UnknownFlag {
        /// As written.
        flag: String,
        /// The nearest known one.
        nearest: Option<String>,
    },
    /// A word that is no option's value.
    #[error("'{word}' is not understood here{}", hint(.nearest))]
    StrayWord {
        /// As written.
        word: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// The command line ends, or another flag begins, where a value should be.
    #[error("{flag} needs a value; write {flag}=VALUE")]
    MissingValue {
        /// As written.
        flag: String,
    },
    /// A flag that takes no value got one.
    #[error("{flag} takes no value")]
    ExtraValue {
        /// As written.
        flag: String,
    },
    /// An argument that is not UTF-8.
    #[error("an argument is not UTF-8: {0}")]
    NotUtf8(String),
    /// A key of the file that nobody knows.
    #[error("{file}: unknown key {key}{}", hint(.nearest))]
    UnknownKey {
        /// The file.
        file: String,
        /// Dotted path.
        key: String,
        /// The nearest known one.
        nearest: Option<String>,
    },
    /// A key of the file that has another name.
    #[error("{file}: {key} is called {now}; rename it")]
    RenamedKey {
        /// The file.
        file: String,
        /// Dotted path.
        key: String,
        /// Its name now.
        now: &'static str,
    },
    /// A value that does not fit its option.
    #[error("{option} (from {origin}) cannot be {value}: {why}")]
    BadValue {
        /// The option.
        option: String,
        /// Where the value came from.
        origin: String,
        /// The value in quotes, or words in its place if it is a secret.
        value: String,
        /// What would fit.
        why: String,
    },
    /// An option that this release does not have.
    #[error("{option} (from {origin}) is known and not in this release: {instead}")]
    NotThereYet {
        /// The option, with its value if that is what is not there.
        option: String,
        /// Where it came from.
        origin: String,
        /// What to do.
        instead: String,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration file {file}: {why}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        why: String,
    },
    /// The file is not TOML or YAML.
    #[error("{file} is not valid {language}: {why}")]
    Unparsable {
        /// The file.
        file: String,
        /// What it should be.
        language: &'static str,
        /// Where and what.
        why: String,
    },
    /// Values that cannot be, or cannot be together.
    #[error("{0}")]
    Combination(String),
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// The candidate that `word` was probably meant to be: at most a third of its letters differ.
pub(super) fn nearest(word: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let plain = |name: &str| name.trim_start_matches('-').to_ascii_lowercase().replace('_', "-");
    let word = plain(word);
    let limit = (word.len() / 3).max(1);
    candidates
        .map(|name| (strsim::damerau_levenshtein(&word, &plain(&name)), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
