//! What one option is: its names in every place it can be written, its default, its unit, its help, and
//! which field of [`Config`] it fills.
//!
//! The tables in `options/` are made of these. An option is written down once, by the [`options!`] macro: the
//! doc comment of the field is the help text, the default in the table is the field's default. `--help`, the
//! sample file and the parser all read the table.

use super::Config;
use super::setting::Input;

/// What a number means when it is written without a suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A plain number or no number at all.
    None,
    /// A duration in seconds.
    Seconds,
    /// A duration in milliseconds.
    Milliseconds,
    /// A size in bytes.
    Bytes,
    /// So many per second.
    PerSecond,
}

impl Unit {
    /// The word in the help and the sample file; empty for plain numbers.
    pub fn word(self) -> &'static str {
        match self {
            Unit::None => "",
            Unit::Seconds => "seconds",
            Unit::Milliseconds => "milliseconds",
            Unit::Bytes => "bytes",
            Unit::PerSecond => "per second",
        }
    }
}

/// The shape of a value, as far as parsing a command line and printing TOML need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; a flag needs no value.
    Bool,
    /// A bare number in TOML.
    Number,
    /// Quoted text in TOML.
    Text,
    /// Text that is never printed.
    Secret,
    /// An array in TOML, a comma list elsewhere.
    List,
}

/// How far this release goes with an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Available,
    /// It works under another name; say that.
    Renamed {
        /// The option that takes the value now. If both are given, the new name wins.
        to: &'static str,
    },
    /// It still works, and there is a better way to say it.
    Discouraged {
        /// What to write instead.
        instead: &'static str,
    },
    /// Known, and refused when it is set to anything but its default or "off".
    NotThereYet {
        /// What to do instead.
        instead: &'static str,
    },
    /// Known, belongs to something that is not there yet, and switches nothing on by itself: accepted with a warning.
    Dormant {
        /// What is not there, and what to do instead.
        instead: &'static str,
    },
    /// Known, and without meaning in this server: accepted with a warning.
    Ignored {
        /// Why it means nothing here.
        because: &'static str,
    },
}

/// How a definition reaches its field.
#[derive(Clone, Copy)]
pub(super) struct Access {
    /// Parses a value and puts it into the field; says what is wrong otherwise.
    pub set: fn(&mut Config, &Input, Unit) -> Result<(), String>,
    /// The field's value as text that `set` would accept.
    pub get: fn(&Config, Unit) -> Shown,
    /// The same with everything that is secret.
    pub carry: fn(&Config, Unit) -> Input,
    /// Whether two configurations have the same value, which `get` does not tell of secrets.
    pub same: fn(&Config, &Config) -> bool,
    /// Takes the value of the first over into the second.
    pub copy: fn(&Config, &mut Config),
}

/// A value on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// One value.
    One(String),
    /// A list.
    Many(Vec<String>),
    /// One value without the passwords that are in it.
    Redacted(String),
    /// A secret that has a value, which is not shown.
    Hidden,
}

/// One option.
#[derive(Clone, Copy)]
pub struct Definition {
    /// Flag name with dashes and without the leading ones. Empty: it can only be set in a file.
    pub name: &'static str,
    /// Key in the file, as a dotted path. Empty: it cannot be set in a file.
    pub toml: &'static str,
    /// The default, as a person would write it.
    pub default: &'static str,
    /// Lines of help; the first paragraph is the short help.
    pub help: &'static [&'static str],
    /// Heading in the help.
    pub group: &'static str,
    /// What a bare number means.
    pub unit: Unit,
    /// Environment names beside `CABLEWAY_NAME` and `ANYCABLE_NAME`, weaker than both.
    pub envs: &'static [&'static str],
    /// Left out of the short help.
    pub hidden: bool,
    /// Shape of the value.
    pub kind: Kind,
    /// How far this release goes with it.
    pub status: Status,
    /// Whether a running server takes a new value over when it reads its configuration again.
    pub live: bool,
    /// When this one is true: options that are set by it, with their values.
    pub implies: &'static [(&'static str, &'static str)],
    /// Not there yet, and refused only beside this other option: alone it is off by AnyCable's own rule.
    pub needs: Option<&'static str>,
    /// The field behind it, if there is one.
    pub(super) access: Option<Access>,
}

impl Definition {
    /// An option with a field.
    pub(super) const fn of(
        name: &'static str,
        toml: &'static str,
        default: &'static str,
        kind: Kind,
        access: Access,
    ) -> Self {
        let mut option = Definition::without_field(name, toml, default, kind, Status::Available);
        option.hidden = false;
        option.access = Some(access);
        option
    }

    /// A known option without a field.
    pub(super) const fn without_field(
        name: &'static str,
        toml: &'static str,
        default: &'static str,
        kind: Kind,
        status: Status,
    ) -> Self {
        Definition {
            name,
            toml,
            default,
            help: &[],
            group: "",
            unit: Unit::None,
            envs: &[],
            hidden: true,
            kind,
            status,
            live: false,
            implies: &[],
            needs: None,
            access: None,
        }
    }

    pub(super) const fn help(mut self, lines: &'static [&'static str]) -> Self {
        self.help = lines;
        self
    }

    pub(super) const fn group(mut self, group: &'static str) -> Self {
        self.group = group;
        self
    }

    pub(super) const fn unit(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    pub(super) const fn env(mut self, names: &'static [&'static str]) -> Self {
        self.envs = names;
        self
    }

    pub(super) const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    pub(super) const fn live(mut self) -> Self {
        self.live = true;
        self
    }

    pub(super) const fn implies(mut self, options: &'static [(&'static str, &'static str)]) -> Self {
        self.implies = options;
        self
    }

    pub(super) const fn needs(mut self, option: &'static str) -> Self {
        self.needs = Some(option);
        self
    }

    pub(super) const fn discouraged(mut self, instead: &'static str) -> Self {
        self.status = Status::Discouraged { instead };
        self.hidden = true;
        self
    }

    /// Names in the environment, strongest first.
    pub fn env_names(&self) -> Vec<String> {
        if self.name.is_empty() {
            return Vec::new();
        }
        let upper = self.name.to_uppercase().replace('-', "_");
        let mut names = vec![format!("CABLEWAY_{upper}"), format!("ANYCABLE_{upper}")];
        names.extend(self.envs.iter().map(|name| (*name).to_owned()));
        names
    }

    /// The name to use in a message: the flag, or the key of an option that only a file can hold.
    pub fn label(&self) -> String {
        if self.name.is_empty() { self.toml.to_owned() } else { format!("--{}", self.name) }
    }

    /// Whether a warning or refusal is due when it is set at all.
    pub fn works(&self) -> bool {
        matches!(self.status, Status::Available | Status::Discouraged { .. })
    }
}

/// The default of an option that is a number, a size or a count, for relations between limits that are checked at
/// compile time.
///
/// # Panics
/// There is no such option, or its default is no number. In a constant that is an error of the compiler.
pub const fn default_number(table: &[Definition], name: &str) -> u64 {
    let mut at = 0;
    while at < table.len() {
        if same_text(table[at].name, name) {
            return plain_number(table[at].default);
        }
        at += 1;
    }
    panic!("no option of this name")
}

const fn same_text(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

const fn plain_number(text: &str) -> u64 {
    let text = text.as_bytes();
    let (mut number, mut at) = (0, 0);
    while at < text.len() && text[at].is_ascii_digit() {
        number = number * 10 + (text[at] - b'0') as u64;
        at += 1;
    }
    assert!(at > 0, "the default is no number");
    match text.split_at(at).1 {
        b"" => number,
        b"KiB" => number << 10,
        b"MiB" => number << 20,
        _ => panic!("the default has a unit that is not known here"),
    }
}

/// Declares a group of options and the struct that holds their values.
///
/// Per option: doc comment (help and field doc), `field: Type = "default", "flag-name", "toml.key"`, then
/// optional modifiers of [`Definition`] in brackets.
macro_rules! options {
    (
        $(#[doc = $struct_doc:literal])+
        $group:ident in $place:ident, $heading:literal;
        $(
            $(#[doc = $doc:literal])+
            $field:ident: $type:ty = $default:literal, $name:literal, $toml:literal $([$($modifier:tt)+])?;
        )+
    ) => {
        $(#[doc = $struct_doc])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $group {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl $group {
            /// The options of this group.
            pub const DEFINITIONS: &'static [$crate::config::definition::Definition] = &[$(
                $crate::config::definition::Definition::of(
                    $name,
                    $toml,
                    $default,
                    <$type as $crate::config::setting::Setting>::KIND,
                    $crate::config::definition::Access {
                        set: |config, input, unit| {
                            config.$place.$field = $crate::config::setting::Setting::parse(input, unit)?;
                            Ok(())
                        },
                        get: |config, unit| $crate::config::setting::Setting::show(&config.$place.$field, unit),
                        carry: |config, unit| $crate::config::setting::Setting::carry(&config.$place.$field, unit),
                        same: |one, other| one.$place.$field == other.$place.$field,
                        copy: |from, to| to.$place.$field.clone_from(&from.$place.$field),
                    },
                )
                .group($heading)
                .help(&[$($doc),+])
                $($($modifier)+)?,
            )+];
        }

        impl Default for $group {
            /// The defaults of the table.
            fn default() -> Self {
                let mut definitions = Self::DEFINITIONS.iter();
                $group {
                    $($field: $crate::config::setting::default_of(definitions.next()),)+
                }
            }
        }
    };
}

pub(super) use options;
