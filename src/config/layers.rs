//! Puts the layers on top of each other: defaults, file, environment, flags; and remembers for each value
//! where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::definition::{Definition, Kind, Status, Unit};
use super::error::{Problem, nearest};
use super::options::{self, Config};
use super::setting::{Input, Setting};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The configuration file.
    File(Arc<str>),
    /// A variable of the environment.
    Env(String),
    /// The command line, as written there.
    Flag(String),
    /// Another option implies it.
    Implied(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {path}"),
            Origin::Env(name) => write!(f, "env {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Implied(option) => write!(f, "--{option}"),
        }
    }
}

/// One option and the value that a layer sets it to.
#[derive(Clone)]
struct Assignment {
    definition: &'static Definition,
    input: Input,
    origin: Origin,
}

/// What the layers set, by option; stronger layers are put in later and replace weaker ones.
#[derive(Default)]
pub(super) struct Layers {
    assignments: BTreeMap<&'static str, Assignment>,
    pub warnings: Vec<String>,
}

/// What came out.
pub(super) struct Effective {
    pub config: Config,
    /// By the option's id. Absent: [`Origin::Default`].
    pub origins: BTreeMap<&'static str, Origin>,
}

/// Names an option among all: the flag, or the key if there is no flag.
pub(super) fn id(definition: &Definition) -> &'static str {
    if definition.name.is_empty() { definition.toml } else { definition.name }
}

impl Layers {
    pub(super) fn put(&mut self, definition: &'static Definition, input: Input, origin: Origin) {
        self.assignments.insert(id(definition), Assignment { definition, input, origin });
    }

    /// Takes what the environment has. An empty variable counts as unset (in AnyCable it empties a text, so
    /// that `ANYCABLE_HOST=` listens on every interface).
    pub(super) fn put_env(&mut self, env: &BTreeMap<String, String>) {
        for definition in options::all() {
            let names = definition.env_names();
            for (i, name) in names.into_iter().enumerate() {
                let Some(value) = env.get(&name).filter(|value| !value.trim().is_empty()) else {
                    continue;
                };
                if definition.kind == Kind::Number && (value.starts_with("tcp://") || value.starts_with("udp://")) {
                    self.warnings.push(format!(
                        "{name}={value} comes from a Kubernetes service of that name and is ignored; set \
                         enableServiceLinks: false in the pod"
                    ));
                    continue;
                }
                // A name without our prefix may be meant for somebody else, such as REDIS_URL for the app.
                if i >= 2 && matches!(definition.status, Status::NotThereYet { .. }) {
                    self.warnings.push(format!("{name} is not used: {} is not there yet", definition.label()));
                    continue;
                }
                self.put(definition, Input::One(value.clone()), Origin::Env(name));
                break;
            }
        }
        self.warn_of_unknown(env);
    }

    /// Unknown variables with our prefix are reported, not refused: the Ruby side of AnyCable has variables of
    /// its own with this prefix.
    fn warn_of_unknown(&mut self, env: &BTreeMap<String, String>) {
        let known: Vec<String> = options::all().flat_map(Definition::env_names).collect();
        for name in env.keys() {
            let Some(rest) = name.strip_prefix("CABLEWAY_").or_else(|| name.strip_prefix("ANYCABLE_")) else {
                continue;
            };
            // Kubernetes: NAME_SERVICE_HOST, NAME_SERVICE_PORT…, NAME_PORT_8080_TCP….
            let kubernetes = rest.starts_with("SERVICE_HOST")
                || rest.starts_with("SERVICE_PORT")
                || rest.strip_prefix("PORT_").is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()));
            if kubernetes || name == super::CONFIG_VARIABLE || known.contains(name) {
                continue;
            }
            let hint = nearest(name, known.iter().cloned()).map(|known| format!("; did you mean {known}?"));
            self.warnings
                .push(format!("{name} is no variable of this server and is not used{}", hint.unwrap_or_default()));
        }
    }

    /// Fills the configuration, or says all that is wrong.
    pub(super) fn apply(&mut self) -> Result<Effective, Vec<Problem>> {
        self.follow_old_names();
        let mut effective = Effective { config: Config::default(), origins: BTreeMap::new() };
        let mut problems = Vec::new();
        for definition in options::all() {
            let Some(assignment) = self.assignments.get(id(definition)) else { continue };
            match definition.status {
                Status::Renamed { .. } => {}
                Status::Ignored { because } => {
                    self.warnings.push(format!("{} ({}) is ignored: {because}", definition.label(), assignment.origin));
                }
                Status::NotThereYet { instead } => {
                    if !is_off(definition, &assignment.input) {
                        problems.push(Problem::NotThereYet {
                            option: definition.label(),
                            origin: assignment.origin.to_string(),
                            instead: instead.to_owned(),
                        });
                    }
                }
                Status::Available | Status::Discouraged { .. } => {
                    if let Status::Discouraged { instead } = definition.status {
                        let label = definition.label();
                        self.warnings.push(format!("{label} ({}) is deprecated: {instead}", assignment.origin));
                    }
                    let Some(access) = definition.access else { continue };
                    match (access.set)(&mut effective.config, &assignment.input, definition.unit) {
                        Ok(()) => {
                            effective.origins.insert(id(definition), assignment.origin.clone());
                        }
                        Err(why) => problems.push(bad_value(assignment, why)),
                    }
                }
            }
        }
        if problems.is_empty() {
            follow_implications(&mut effective);
            Ok(effective)
        } else {
            Err(problems)
        }
    }

    /// Moves values of old names to the new ones, where the new ones have none.
    fn follow_old_names(&mut self) {
        for old in options::all() {
            let Status::Renamed { to } = old.status else { continue };
            let Some(assignment) = self.assignments.get(id(old)).cloned() else { continue };
            self.warnings.push(format!(
                "{} ({}) is deprecated: it is called --{to} now",
                old.label(),
                assignment.origin
            ));
            let empty = assignment.input == Input::One(String::new());
            if empty {
                continue;
            }
            if !self.assignments.contains_key(to) {
                self.put(definition_of(to), assignment.input, assignment.origin);
            }
            for (option, value) in old.implies {
                self.put(definition_of(option), Input::One((*value).to_owned()), Origin::Implied(old.name));
            }
        }
    }
}

fn definition_of(name: &str) -> &'static Definition {
    options::all().find(|definition| definition.name == name).expect("a test follows every name in the tables")
}

/// Options that are true set others, whatever those say themselves.
fn follow_implications(effective: &mut Effective) {
    for definition in options::all() {
        let Some(access) = definition.access else { continue };
        let on = (access.get)(&effective.config, definition.unit) == true.show(Unit::None);
        if !on || definition.implies.is_empty() {
            continue;
        }
        for (option, value) in definition.implies {
            let target = definition_of(option);
            let access = target.access.expect("a test follows every implication");
            let set = (access.set)(&mut effective.config, &Input::One((*value).to_owned()), target.unit);
            set.expect("a test follows every implication");
            effective.origins.insert(id(target), Origin::Implied(definition.name));
        }
    }
}

fn bad_value(assignment: &Assignment, why: String) -> Problem {
    let value = match &assignment.input {
        _ if assignment.definition.kind == Kind::Secret => "what it is".to_owned(),
        Input::One(text) => format!("'{text}'"),
        Input::Many(entries) => format!("[{}]", entries.join(", ")),
    };
    Problem::BadValue { option: assignment.definition.label(), origin: assignment.origin.to_string(), value, why }
}

/// Whether an option that is not there yet was set to its default, or to a word for "off".
fn is_off(definition: &Definition, input: &Input) -> bool {
    let text = match input {
        Input::One(text) => text.trim().to_owned(),
        Input::Many(entries) => entries.join(","),
    };
    if matches!(text.as_str(), "" | "none" | "false" | "0") || text == definition.default {
        return true;
    }
    let (given, default) = (Input::One(text), Input::One(definition.default.to_owned()));
    match (definition.kind, definition.unit) {
        (Kind::Bool, unit) => same::<bool>(&given, &default, unit),
        (Kind::Number, unit @ (Unit::Seconds | Unit::Milliseconds)) => {
            same::<std::time::Duration>(&given, &default, unit)
        }
        (Kind::Number, unit) => same::<usize>(&given, &default, unit),
        _ => false,
    }
}

fn same<T: Setting + PartialEq + Default>(given: &Input, default: &Input, unit: Unit) -> bool {
    match (T::parse(given, unit), T::parse(default, unit)) {
        (Ok(given), Ok(default)) => given == default || given == T::default(),
        _ => false,
    }
}
