//! How a value is written: parsing one option's text into the type of its field, and printing it back.
//!
//! Rules, the same for flags, environment and files: a duration or size is a bare number in the option's
//! unit or a number with a suffix; a boolean is `true/false/1/0/t/f`; a list is separated by commas and
//! trimmed (AnyCable does not trim, so `a, b` means something else there); what does not fit is an error,
//! never a guess.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::definition::{Definition, Kind, Shown, Unit};
use crate::model::{DisconnectMode, PingPrecision, ServerUrl, UrlForm};

/// A value on its way in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Input {
    /// Text, or a number or boolean of a file in its text form.
    One(String),
    /// An array of a file.
    Many(Vec<String>),
}

/// A type that an option can have.
pub(super) trait Setting: Sized {
    /// The shape of its values.
    const KIND: Kind;

    /// Reads a value. The error completes the sentence "… is not right: ".
    fn parse(input: &Input, unit: Unit) -> Result<Self, String>;

    /// Writes it in a form that [`Setting::parse`] reads back.
    fn show(&self, unit: Unit) -> Shown;

    /// The same with everything that is secret, for a process of this server.
    fn carry(&self, unit: Unit) -> Input {
        match self.show(unit) {
            Shown::Many(values) => Input::Many(values),
            Shown::One(value) | Shown::Redacted(value) => Input::One(value),
            Shown::Hidden => Input::One(String::new()),
        }
    }
}

/// The default of a definition in a table. A test parses every one, so a wrong one does not get far.
pub(super) fn default_of<T: Setting>(definition: Option<&Definition>) -> T {
    let definition = definition.expect("the macro makes one definition per field");
    match T::parse(&Input::One(definition.default.to_owned()), definition.unit) {
        Ok(value) => value,
        Err(why) => panic!("default of {}: {why}", definition.label()),
    }
}

fn one(input: &Input) -> Result<&str, String> {
    match input {
        Input::One(text) => Ok(text.trim()),
        Input::Many(_) => Err("it takes one value, not a list".to_owned()),
    }
}

/// Env files of containers keep quotes that a shell would take away. None of our texts has any at its ends.
fn unquoted(text: &str) -> Result<&str, String> {
    const QUOTES: [char; 2] = ['"', '\''];
    if text.starts_with(QUOTES) || text.ends_with(QUOTES) {
        return Err(format!("write it without quotes: {}", text.trim_matches(QUOTES)));
    }
    Ok(text)
}

impl Setting for bool {
    const KIND: Kind = Kind::Bool;

    fn parse(input: &Input, _: Unit) -> Result<Self, String> {
        match one(input)?.to_ascii_lowercase().as_str() {
            "true" | "1" | "t" => Ok(true),
            "false" | "0" | "f" => Ok(false),
            _ => Err("write true or false".to_owned()),
        }
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::One(self.to_string())
    }
}

impl Setting for String {
    const KIND: Kind = Kind::Text;

    fn parse(input: &Input, _: Unit) -> Result<Self, String> {
        unquoted(one(input)?).map(str::to_owned)
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::One(self.clone())
    }
}

impl Setting for Vec<String> {
    const KIND: Kind = Kind::List;

    /// Entries without text (a trailing comma) are dropped: in AnyCable an empty origin makes every origin
    /// check fail.
    fn parse(input: &Input, _: Unit) -> Result<Self, String> {
        let entries: Vec<&str> = match input {
            Input::One(text) => text.split(',').collect(),
            Input::Many(entries) => entries.iter().map(String::as_str).collect(),
        };
        let entries = entries.into_iter().map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(|entry| unquoted(entry).map(str::to_owned)).collect()
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::Many(self.clone())
    }
}

fn split_number(text: &str) -> Result<(u64, &str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return Err("it must be a whole number, zero or more".to_owned());
    }
    let number = number.parse().map_err(|_| "the number is too large".to_owned())?;
    Ok((number, suffix.trim()))
}

/// Sizes: `1024`, `64KiB`, `1MiB`, `1GiB`; one letter and `KB` mean the same powers of 1024.
fn parse_number(text: &str, unit: Unit) -> Result<u64, String> {
    let (number, suffix) = split_number(text)?;
    let factor: u64 = match (suffix.to_ascii_lowercase().as_str(), unit) {
        ("", _) => 1,
        ("b", Unit::Bytes) => 1,
        ("k" | "kb" | "kib", Unit::Bytes) => 1 << 10,
        ("m" | "mb" | "mib", Unit::Bytes) => 1 << 20,
        ("g" | "gb" | "gib", Unit::Bytes) => 1 << 30,
        (_, Unit::Bytes) => return Err("write bytes, or a number with KiB, MiB or GiB".to_owned()),
        _ => return Err("it must be a whole number, zero or more".to_owned()),
    };
    number.checked_mul(factor).ok_or_else(|| "the number is too large".to_owned())
}

fn show_number(number: u64, unit: Unit) -> Shown {
    let text = match number {
        n if unit != Unit::Bytes || n == 0 => n.to_string(),
        n if n % (1 << 20) == 0 => format!("{}MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{}KiB", n >> 10),
        n => n.to_string(),
    };
    Shown::One(text)
}

macro_rules! numbers {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            const KIND: Kind = Kind::Number;

            fn parse(input: &Input, unit: Unit) -> Result<Self, String> {
                let number = parse_number(one(input)?, unit)?;
                <$type>::try_from(number).map_err(|_| format!("it must be at most {}", <$type>::MAX))
            }

            fn show(&self, unit: Unit) -> Shown {
                show_number(*self as u64, unit)
            }
        }
    )+};
}

numbers!(u16, u32, usize);

/// The longest duration accepted: a year. It keeps sums of deadlines far from overflow.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

impl Setting for Duration {
    const KIND: Kind = Kind::Number;

    fn parse(input: &Input, unit: Unit) -> Result<Self, String> {
        let (number, suffix) = split_number(one(input)?).map_err(|_| DURATION_HINT.to_owned())?;
        let millis = match (suffix, unit) {
            ("ms", _) | ("", Unit::Milliseconds) => Some(number),
            ("s", _) | ("", _) => number.checked_mul(1000),
            ("m", _) => number.checked_mul(60_000),
            ("h", _) => number.checked_mul(3_600_000),
            _ => return Err(DURATION_HINT.to_owned()),
        };
        let duration = millis.map(Duration::from_millis).filter(|duration| *duration <= DURATION_MAX);
        duration.ok_or_else(|| "it must be at most a year".to_owned())
    }

    fn show(&self, _: Unit) -> Shown {
        let millis = self.as_millis();
        Shown::One(if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") })
    }
}

const DURATION_HINT: &str = "write a whole number, or one with ms, s, m or h, such as 500ms or 5s";

/// A path that can be switched off.
impl Setting for Option<String> {
    const KIND: Kind = Kind::Text;

    fn parse(input: &Input, _: Unit) -> Result<Self, String> {
        Ok(match one(input)? {
            "" | "none" => None,
            text => Some(unquoted(text)?.to_owned()),
        })
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::One(self.clone().unwrap_or_else(|| "none".to_owned()))
    }
}

/// A port that nobody needs to listen on: `none` is no port.
impl Setting for Option<u16> {
    const KIND: Kind = Kind::Text;

    fn parse(input: &Input, unit: Unit) -> Result<Self, String> {
        Ok(match one(input)? {
            "" | "none" => None,
            _ => Some(u16::parse(input, unit)?),
        })
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::One(self.map_or_else(|| "none".to_owned(), |port| port.to_string()))
    }
}

/// How many processes serve as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    /// As many as the clients need.
    Auto,
    /// So many.
    Count(u16),
}

impl Processes {
    /// More are hardly ever meant. Each is a copy of the program, with threads of its own.
    pub const MAX: u16 = 256;
}

impl Setting for Processes {
    const KIND: Kind = Kind::Text;

    fn parse(input: &Input, unit: Unit) -> Result<Self, String> {
        if one(input)? == "auto" {
            return Ok(Processes::Auto);
        }
        match u16::parse(input, unit) {
            Ok(count @ 1..=Processes::MAX) => Ok(Processes::Count(count)),
            _ => Err(format!("write a number from 1 to {}, or auto", Processes::MAX)),
        }
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::One(match self {
            Processes::Auto => "auto".to_owned(),
            Processes::Count(count) => count.to_string(),
        })
    }
}

/// A secret as it was configured; what it finally means is worked out by [`super::Secrets`].
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Secret {
    /// Nothing was said: fall back.
    #[default]
    Unset,
    /// `none`: what it protects or enables is off, without falling back.
    Off,
    /// A key.
    Key(String),
}

impl Secret {
    /// This one unless it is unset, else `other`.
    pub fn or(&self, other: &Secret) -> Secret {
        if *self == Secret::Unset { other.clone() } else { self.clone() }
    }

    /// The key itself.
    pub fn key(&self) -> Option<&str> {
        match self {
            Secret::Key(key) => Some(key),
            _ => None,
        }
    }
}

impl fmt::Debug for Secret {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Unset => "unset",
            Secret::Off => "none",
            Secret::Key(_) => "set",
        })
    }
}

impl Setting for Secret {
    const KIND: Kind = Kind::Secret;

    fn parse(input: &Input, _: Unit) -> Result<Self, String> {
        Ok(match one(input)? {
            "" => Secret::Unset,
            "none" => Secret::Off,
            key => Secret::Key(key.to_owned()),
        })
    }

    fn show(&self, _: Unit) -> Shown {
        match self {
            Secret::Unset => Shown::One(String::new()),
            Secret::Off => Shown::One("none".to_owned()),
            Secret::Key(_) => Shown::Hidden,
        }
    }

    fn carry(&self, _: Unit) -> Input {
        Input::One(match self {
            Secret::Unset => String::new(),
            Secret::Off => "none".to_owned(),
            Secret::Key(key) => key.clone(),
        })
    }
}

/// Labels for every metric, in the order given.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tags(pub Vec<(String, String)>);

impl Setting for Tags {
    const KIND: Kind = Kind::List;

    fn parse(input: &Input, unit: Unit) -> Result<Self, String> {
        let mut tags: Vec<(String, String)> = Vec::new();
        for entry in Vec::<String>::parse(input, unit)? {
            let Some((name, value)) = entry.split_once(':') else {
                return Err(format!("'{entry}' has no colon; write name:value,name2:value2"));
            };
            let (name, value) = (name.trim(), value.trim());
            // https://prometheus.io/docs/concepts/data_model/: label names.
            let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !begins || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(format!("'{name}' is no label name; it needs letters, digits and _ and no digit first"));
            }
            if tags.iter().any(|(known, _)| known == name) {
                return Err(format!("'{name}' is there twice"));
            }
            tags.push((name.to_owned(), value.to_owned()));
        }
        Ok(Tags(tags))
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::Many(self.0.iter().map(|(name, value)| format!("{name}:{value}")).collect())
    }
}

/// A type whose values are written as words.
pub(super) trait Words: Copy + Default + 'static {
    /// Every value, in the order of the help.
    const ALL: &'static [Self];

    /// The word in the configuration.
    fn word(self) -> &'static str;
}

impl<T: Words> Setting for T {
    const KIND: Kind = Kind::Text;

    /// No text means the default.
    fn parse(input: &Input, _: Unit) -> Result<Self, String> {
        let text = one(input)?;
        if text.is_empty() {
            return Ok(T::default());
        }
        T::ALL.iter().copied().find(|value| value.word() == text).ok_or_else(|| {
            let words: Vec<String> = T::ALL.iter().map(|value| format!("'{}'", value.word())).collect();
            format!("it can be {}", words.join(" "))
        })
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::One(self.word().to_owned())
    }
}

impl Words for DisconnectMode {
    const ALL: &'static [Self] = &[DisconnectMode::Auto, DisconnectMode::Always, DisconnectMode::Never];

    fn word(self) -> &'static str {
        match self {
            DisconnectMode::Auto => "auto",
            DisconnectMode::Always => "always",
            DisconnectMode::Never => "never",
        }
    }
}

impl Words for PingPrecision {
    const ALL: &'static [Self] = &PingPrecision::ALL;

    fn word(self) -> &'static str {
        self.as_str()
    }
}

/// Declares an enum whose variants are the words of an option.
macro_rules! words {
    (
        $(#[doc = $enum_doc:literal])+
        $name:ident, default $default:ident;
        $($(#[doc = $doc:literal])+ $variant:ident = $word:literal;)+
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $name {
            /// The word in the configuration.
            pub fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                $name::$default
            }
        }

        impl Words for $name {
            const ALL: &'static [Self] = &[$($name::$variant,)+];

            fn word(self) -> &'static str {
                $name::word(self)
            }
        }
    };
}

words! {
    /// How calls to the app travel.
    RpcImplementation, default Auto;
    /// By the form of `rpc-host`: a URL with `http` or `https` means HTTP, anything else gRPC.
    Auto = "auto";
    /// gRPC.
    Grpc = "grpc";
    /// JSON over HTTP.
    Http = "http";
    /// The app is never called.
    None = "none";
}

words! {
    /// The least important lines that are logged.
    LogLevel, default Info;
    /// Everything.
    Debug = "debug";
    /// What an operator wants to see in normal times.
    Info = "info";
    /// What may need somebody's attention.
    Warn = "warn";
    /// What went wrong.
    Error = "error";
}

words! {
    /// The form of a log line.
    LogFormat, default Text;
    /// For people.
    Text = "text";
    /// One JSON object per line.
    Json = "json";
}

words! {
    /// What keeps history, sessions and presence.
    BrokerKind, default None;
    /// Nothing does.
    None = "none";
    /// This process, in its memory.
    Memory = "memory";
    /// Redis, for all nodes.
    Redis = "redis";
    /// NATS with JetStream, for all nodes.
    Nats = "nats";
}

words! {
    /// What carries publications from node to node.
    PubSub, default Auto;
    /// What the rest of the configuration suggests; [`super::Config::pubsub`] knows.
    Auto = "auto";
    /// Nothing: a node alone.
    None = "none";
    /// Redis.
    Redis = "redis";
    /// NATS.
    Nats = "nats";
}

words! {
    /// A way for broadcasts to arrive.
    BroadcastAdapter, default Http;
    /// Requests over HTTP.
    Http = "http";
    /// Pub/sub of Redis, heard by every node.
    Redis = "redis";
    /// A stream of Redis, each entry read by one node.
    RedisX = "redisx";
    /// NATS, heard by every node.
    Nats = "nats";
}

/// A list of words; one that is there twice counts once.
impl<T: Words + PartialEq> Setting for Vec<T> {
    const KIND: Kind = Kind::List;

    fn parse(input: &Input, unit: Unit) -> Result<Self, String> {
        let mut values: Vec<T> = Vec::new();
        for word in Vec::<String>::parse(input, unit)? {
            let value = T::parse(&Input::One(word.clone()), unit).map_err(|why| format!("of '{word}': {why}"))?;
            if !values.contains(&value) {
                values.push(value);
            }
        }
        Ok(values)
    }

    fn show(&self, _: Unit) -> Shown {
        Shown::Many(self.iter().map(|value| value.word().to_owned()).collect())
    }
}

/// Declares a list of servers of one kind: URLs separated by commas. No text means none, which is the default where the
/// default is none.
macro_rules! servers {
    ($($(#[doc = $doc:literal])+ $name:ident = $form:expr;)+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq, Default)]
        pub struct $name(pub Vec<ServerUrl>);

        impl $name {
            /// All of them, with their passwords.
            fn exposed(&self) -> String {
                let urls: Vec<&str> = self.0.iter().map(ServerUrl::expose).collect();
                urls.join(",")
            }
        }

        impl Setting for $name {
            const KIND: Kind = Kind::Text;

            fn parse(input: &Input, _: Unit) -> Result<Self, String> {
                let entries: Vec<&str> = match input {
                    Input::One(text) => text.split(',').collect(),
                    Input::Many(entries) => entries.iter().map(String::as_str).collect(),
                };
                let entries = entries.into_iter().map(str::trim).filter(|entry| !entry.is_empty());
                entries.map(|url| ServerUrl::parse(url, $form)).collect::<Result<_, _>>().map($name)
            }

            fn show(&self, _: Unit) -> Shown {
                if self.0.iter().any(ServerUrl::has_login) {
                    let urls: Vec<String> = self.0.iter().map(ServerUrl::to_string).collect();
                    return Shown::Redacted(urls.join(","));
                }
                Shown::One(self.exposed())
            }

            fn carry(&self, _: Unit) -> Input {
                Input::One(self.exposed())
            }
        }
    )+};
}

servers! {
    /// A Redis, or several nodes of a Redis Cluster.
    RedisServers = UrlForm::REDIS;
    /// Redis Sentinels.
    SentinelServers = UrlForm::SENTINEL;
    /// Servers of NATS.
    NatsServers = UrlForm::NATS;
}

words! {
    /// How soon dead peers are looked for.
    Reaping, default Default;
    /// Later, for clients on bad networks.
    Relaxed = "relaxed";
    /// As each option says by itself.
    Default = "default";
    /// Soon, for more packets.
    Aggressive = "aggressive";
}
