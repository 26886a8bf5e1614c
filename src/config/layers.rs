//! Puts the layers on top of each other: defaults, file, environment, flags; and remembers for each value
//! where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::definition::{Definition, Kind, Status, Unit};
use super::error::{Problem, nearest};
use super::options::{self, Config};
use super::setting::{Input, Setting};

/// Variables by which processes of this server find each other; they are nobody's options.
const BETWEEN_PROCESSES: [&str; 1] = ["CABLEWAY_HAND_OVER_FD"];

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
    /// A preset.
    Preset(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {path}"),
            Origin::Env(name) => write!(f, "env {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Implied(option) => write!(f, "--{option}"),
            Origin::Preset(name) => write!(f, "preset {name}"),
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
    /// What is worth a line for somebody who looks closely.
    pub notes: Vec<String>,
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

/// What the gems `anycable` and `anycable-rails`, AnyCable's other app-side libraries and their command lines read, after
/// `ANYCABLE_`, and is no option of the server.
const APP_SIDE: [&str; 34] = [
    "ACCESS_LOGS_DISABLED",
    "BATCH_BROADCASTS",
    "BROADCAST_URL",
    "DISABLE_RPC_POOL_SIZE_WARNING",
    "EMBEDDED",
    "FLY_RPC_APP_NAME",
    "HTTP_BROADCAST_URL",
    "HTTP_HEALTH_PATH",
    "HTTP_HEALTH_PORT",
    "HTTP_RPC",
    "HTTP_RPC_MOUNT_PATH",
    "JWT_ID_TTL",
    "JWT_TTL",
    "LOG_FILE",
    "LOG_GRPC",
    "PERSISTENT_SESSION_ENABLED",
    "RPC_LOG_GRPC",
    "RPC_MAX_CONNECTION_AGE",
    "RPC_MAX_WAITING_REQUESTS",
    "RPC_POLL_PERIOD",
    "RPC_POOL_KEEP_ALIVE",
    "RPC_POOL_SIZE",
    "RPC_PORT",
    "RPC_SERVER_ARGS",
    "RPC_TLS_CERT",
    "RPC_TLS_KEY",
    "SERVER_COMMAND",
    "SID_HEADER_KEY",
    "SOCKET_ID_HEADER",
    "STREAMER_SECRET",
    "URL",
    "VERSION_CHECK_ENABLED",
    "WEBSOCKET_URL",
    "WS_URL",
];

impl Layers {
    pub(super) fn put(&mut self, definition: &'static Definition, input: Input, origin: Origin) {
        self.assignments.insert(id(definition), Assignment { definition, input, origin });
    }

    /// What an option is set to, if it is.
    pub(super) fn given(&self, option: &str) -> Option<&Input> {
        self.assignments.get(option).map(|assignment| &assignment.input)
    }

    /// Sets an option that nobody has set.
    pub(super) fn put_weakly(&mut self, option: &str, value: String, origin: Origin) {
        if !self.assignments.contains_key(option) {
            self.put(definition_of(option), Input::One(value), origin);
        }
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
                if i >= 2
                    && let Status::NotThereYet { instead } | Status::Dormant { instead } = definition.status
                {
                    self.warnings.push(format!("{name} is not used: {instead}"));
                    continue;
                }
                self.put(definition, Input::One(value.clone()), Origin::Env(name));
                break;
            }
        }
        self.warn_of_unknown(env);
    }

    /// Unknown variables with our prefix are reported, not refused. Those of the app's side of AnyCable have the same
    /// prefix and are passed over.
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
            if kubernetes
                || name == super::CONFIG_VARIABLE
                || BETWEEN_PROCESSES.contains(&name.as_str())
                || known.contains(name)
            {
                continue;
            }
            if APP_SIDE.contains(&rest) {
                self.notes.push(format!("{name} is for the app's side of AnyCable and is not used here"));
                continue;
            }
            let hint = nearest(name, known.iter().cloned()).map(|known| format!("; did you mean {known}?"));
            self.warnings
                .push(format!("{name} is no variable of this server and is not used{}", hint.unwrap_or_default()));
        }
    }

    /// Fills the configuration, and says all that is wrong: what is wrong is left at its default.
    pub(super) fn apply(&mut self) -> (Effective, Vec<Problem>) {
        self.follow_old_names();
        let mut effective = Effective { config: Config::default(), origins: BTreeMap::new() };
        let mut problems = Vec::new();
        // By what is not there, so that ten options of it are one warning.
        let mut dormant: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for definition in options::all() {
            let Some(assignment) = self.assignments.get(id(definition)) else { continue };
            let named = || format!("{} ({})", definition.label(), assignment.origin);
            match definition.status {
                Status::Renamed { .. } => {}
                Status::Ignored { because } => self.warnings.push(format!("{} is ignored: {because}", named())),
                Status::NotThereYet { .. } | Status::Dormant { .. } if is_off(definition, &assignment.input) => {}
                Status::NotThereYet { instead } if definition.needs.is_none_or(|other| self.is_on(other)) => {
                    problems.push(Problem::NotThereYet {
                        option: definition.label(),
                        origin: assignment.origin.to_string(),
                        instead: instead.to_owned(),
                    });
                }
                Status::NotThereYet { instead } | Status::Dormant { instead } => {
                    dormant.entry(instead).or_default().push(named());
                }
                Status::Available | Status::Discouraged { .. } => {
                    if let Status::Discouraged { instead } = definition.status {
                        self.warnings.push(format!("{} is deprecated: {instead}", named()));
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
        let unused = dormant.iter().map(|(instead, named)| format!("not used: {}: {instead}", named.join(", ")));
        self.warnings.extend(unused);
        follow_implications(&mut effective);
        (effective, problems)
    }

    /// Whether an option is set to something that is not "off".
    fn is_on(&self, option: &str) -> bool {
        self.assignments.get(option).is_some_and(|assignment| !is_off(assignment.definition, &assignment.input))
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
        Input::One(text) => format!("'{}'", without_login(text)),
        Input::Many(entries) => {
            let entries: Vec<String> = entries.iter().map(|entry| without_login(entry)).collect();
            format!("[{}]", entries.join(", "))
        }
    };
    Problem::BadValue { option: assignment.definition.label(), origin: assignment.origin.to_string(), value, why }
}

/// What is in front of an `@` may be a password of a URL, also where the text is no URL because something in it is wrong.
fn without_login(text: &str) -> String {
    text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, rest)| format!("…@{rest}"))
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
