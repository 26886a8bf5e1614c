//! The table in words: `--help`, the sample file, and the effective configuration.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::commands::{SERVER_FLAGS, SUBCOMMANDS};
use super::definition::{Definition, Kind, Shown, Status, Unit};
use super::layers::{Effective, Origin, id};
use super::options;

/// Width of the help and of comments in the sample file.
const COLUMNS: usize = 100;

/// Paragraphs on how options are set and values written.
pub(super) const LAYERS_AND_UNITS: [&str; 2] = [
    "An option can be set by a flag, by the environment, or in a file, in this order of strength. Names take dashes and \
     underscores alike. The variable of --max-conn is CABLEWAY_MAX_CONN; ANYCABLE_MAX_CONN is accepted too and weaker; an \
     empty variable counts as unset.",
    "Durations are numbers in the unit given, or have a suffix: 500ms, 5s, 6m, 1h. Sizes are bytes, or have a suffix: \
     64KiB, 1MiB. Lists are separated by commas. Options marked live are taken over by a running server when it reads its \
     configuration again, on SIGHUP; all others need a restart.",
];

/// The text of `--help`; with `all`, also hidden options and what is known but not there.
pub fn help(all: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!("cableway {version}: holds WebSocket connections for ordinary app servers\n\nUsage:\n");
    let usage = SUBCOMMANDS.iter().flat_map(|command| command.usage).chain(&[("--version", "print the version")]);
    for (words, about) in usage {
        let _ = writeln!(text, "  cableway {words:<24} {about}");
    }
    text.push('\n');
    for paragraph in LAYERS_AND_UNITS {
        wrap(&mut text, "", paragraph);
        text.push('\n');
    }
    text.push_str("Configuration file\n");
    for flag in SERVER_FLAGS {
        let _ = writeln!(text, "{}", format!("  {} {}", flag.name, flag.value).trim_end());
        wrap(&mut text, "      ", flag.about);
    }
    wrap(
        &mut text,
        "  ",
        &format!("Without --config the first of these is read: {}.", super::file::SEARCHED.join(", ")),
    );
    let mut group = "";
    for definition in options::all().filter(|definition| definition.works() && (all || !definition.hidden)) {
        if definition.group != group {
            group = definition.group;
            let _ = write!(text, "\n{group}\n");
        }
        option_help(&mut text, definition, all);
    }
    if all {
        known_but_absent(&mut text);
    } else {
        text.push_str("\nMore: cableway help --all\n");
    }
    text
}

fn option_help(text: &mut String, definition: &Definition, all: bool) {
    let _ = write!(text, "{}", format!("  --{} {}", definition.name, value_word(definition)).trim_end());
    let facts = facts(definition);
    if !facts.is_empty() {
        let _ = write!(text, "   [{}]", facts.join("; "));
    }
    text.push('\n');
    for (i, paragraph) in paragraphs(definition).iter().enumerate() {
        if i == 0 || all {
            wrap(text, "      ", paragraph);
        }
    }
}

/// What follows a flag; empty for one that says yes or no.
pub(super) fn value_word(definition: &Definition) -> &'static str {
    match (definition.kind, definition.unit) {
        (Kind::Bool, _) => "",
        (Kind::List, _) => "LIST",
        (Kind::Number, Unit::Seconds | Unit::Milliseconds) => "DURATION",
        (Kind::Number, Unit::Bytes) => "SIZE",
        (Kind::Number, _) => "NUMBER",
        (Kind::Text | Kind::Secret, _) => "TEXT",
    }
}

/// Default, unit and the like, each in a few words.
pub(super) fn facts(definition: &Definition) -> Vec<String> {
    let mut facts = Vec::new();
    if definition.kind != Kind::Bool || definition.default == "true" {
        facts.push(default_words(definition));
    }
    if !definition.unit.word().is_empty() {
        facts.push(format!("in {}", definition.unit.word()).replace("in per", "per"));
    }
    facts.extend(definition.envs.iter().map(|name| format!("also env {name}")));
    if definition.live {
        facts.push("live".to_owned());
    }
    if let Status::Discouraged { instead } = definition.status {
        facts.push(format!("deprecated: {instead}"));
    }
    facts
}

fn default_words(definition: &Definition) -> String {
    if definition.default.is_empty() { "no default".to_owned() } else { format!("default {}", definition.default) }
}

fn known_but_absent(text: &mut String) {
    text.push_str("\nOld names\n");
    for definition in options::all() {
        if let Status::Renamed { to } = definition.status {
            let _ = writeln!(text, "  --{}: now --{to}", definition.name);
        }
    }
    text.push_str("\nAccepted and ignored\n");
    for definition in options::all() {
        if let Status::Ignored { because } = definition.status {
            wrap(text, "  ", &format!("{}: {because}", definition.label()));
        }
    }
    text.push_str("\nKnown from AnyCable and not there yet (what would switch it on is refused)\n");
    for (instead, names) in absent_by_reason() {
        wrap(text, "  ", &format!("{}: {instead}", names.join(", ")));
    }
}

/// What is not there yet, by what to do instead.
fn absent_by_reason() -> BTreeMap<&'static str, Vec<String>> {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for definition in options::all() {
        if let Status::NotThereYet { instead } | Status::Dormant { instead } = definition.status {
            reasons.entry(instead).or_default().push(definition.label());
        }
    }
    reasons
}

/// The help as paragraphs, each on one line.
pub(super) fn paragraphs(definition: &Definition) -> Vec<String> {
    let lines: Vec<&str> = definition.help.iter().map(|line| line.trim()).collect();
    lines.split(|line| line.is_empty()).map(|paragraph| paragraph.join(" ")).collect()
}

/// Writes a paragraph, broken between words, every line after `indent`.
fn wrap(text: &mut String, indent: &str, paragraph: &str) {
    let mut column = 0;
    for word in paragraph.split_whitespace() {
        let width = word.chars().count();
        if column == 0 || column + 1 + width > COLUMNS {
            if column > 0 {
                text.push('\n');
            }
            text.push_str(indent);
            column = indent.chars().count();
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

/// A configuration file with every option, commented out, at its default.
pub fn sample() -> String {
    let mut text = String::new();
    for paragraph in [
        "# Every option of Cableway with its default. Made by `cableway config --sample`; a test keeps it in step.",
        "#",
        "# Flags and the environment are stronger than this file. Durations are numbers in the unit given, or text \
         with a suffix (\"500ms\", \"5s\", \"6m\", \"1h\"); sizes are bytes, or text with a suffix (\"64KiB\", \
         \"1MiB\"). An unknown key is refused.",
    ] {
        comment(&mut text, paragraph.trim_start_matches("# "));
    }
    for (section, definitions) in sections() {
        if !section.is_empty() {
            let _ = writeln!(text, "\n[{section}]");
        }
        for definition in definitions {
            text.push('\n');
            for paragraph in paragraphs(definition) {
                comment(&mut text, &paragraph);
            }
            let mut facts = format!("Default: {}", default_text(definition));
            if !matches!(definition.unit, Unit::None | Unit::PerSecond) {
                let _ = write!(facts, "; a bare number is in {}", definition.unit.word());
            }
            let _ = write!(facts, ". Flag: --{}. Env: {}.", definition.name, definition.env_names().join(", "));
            if definition.live {
                facts.push_str(" Live: a running server takes it over on SIGHUP.");
            }
            comment(&mut text, &facts);
            let value = toml_value(&shown_default(definition), definition);
            let _ = writeln!(text, "#{} = {value}", leaf(definition));
        }
    }
    text.push('\n');
    comment(&mut text, "Known from AnyCable and not there yet; what would switch it on is refused:");
    for (instead, names) in absent_by_reason() {
        comment(&mut text, &format!("{}: {instead}", names.join(", ")));
    }
    text
}

fn comment(text: &mut String, paragraph: &str) {
    if paragraph == "#" {
        text.push_str("#\n");
    } else {
        wrap(text, "# ", paragraph);
    }
}

fn default_text(definition: &Definition) -> &'static str {
    match definition.default {
        "" if definition.kind == Kind::Secret => "unset",
        "" => "empty",
        default => default,
    }
}

/// The default in the form that the type prints; options without a field keep their text.
fn shown_default(definition: &Definition) -> Shown {
    let config = options::Config::default();
    match definition.access {
        Some(access) => (access.get)(&config, definition.unit),
        None => Shown::One(definition.default.to_owned()),
    }
}

/// Options that work and have a key, by section: those without a section first, then as in the help.
fn sections() -> Vec<(&'static str, Vec<&'static Definition>)> {
    let mut sections: Vec<(&str, Vec<&Definition>)> = vec![("", Vec::new())];
    for definition in options::all().filter(|definition| definition.works() && !definition.toml.is_empty()) {
        let section = definition.toml.rsplit_once('.').map_or("", |(section, _)| section);
        match sections.iter_mut().find(|(known, _)| *known == section) {
            Some((_, definitions)) => definitions.push(definition),
            None => sections.push((section, vec![definition])),
        }
    }
    sections
}

fn leaf(definition: &Definition) -> &'static str {
    definition.toml.rsplit('.').next().unwrap_or(definition.toml)
}

fn toml_value(shown: &Shown, definition: &Definition) -> String {
    match shown {
        Shown::One(text) if definition.kind == Kind::Bool => text.clone(),
        Shown::One(text) if definition.kind == Kind::Number && text.bytes().all(|b| b.is_ascii_digit()) => text.clone(),
        Shown::One(text) => quoted(text),
        Shown::Many(entries) => {
            format!("[{}]", entries.iter().map(|entry| quoted(entry)).collect::<Vec<_>>().join(", "))
        }
        Shown::Redacted(_) | Shown::Hidden => String::new(),
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The configuration in force, as a file that means the same when it is read back; keys are left out of it,
/// so that it can be shown to others.
pub(super) fn effective(effective: &Effective) -> String {
    let mut text = format!("# Configuration in force, cableway {}.\n", env!("CARGO_PKG_VERSION"));
    for (section, definitions) in sections() {
        let _ = if section.is_empty() { writeln!(text) } else { writeln!(text, "\n[{section}]") };
        for definition in definitions {
            let origin = effective.origins.get(id(definition)).unwrap_or(&Origin::Default);
            let is_default = *origin == Origin::Default;
            if matches!(definition.status, Status::Discouraged { .. }) && is_default {
                continue;
            }
            let Some(access) = definition.access else { continue };
            let shown = (access.get)(&effective.config, definition.unit);
            let line = match &shown {
                Shown::Hidden => format!("# {} is set", leaf(definition)),
                Shown::One(text) if text.is_empty() && definition.kind == Kind::Secret => {
                    format!("# {} is unset", leaf(definition))
                }
                Shown::Redacted(text) => format!("# {} = {}", leaf(definition), quoted(text)),
                shown => {
                    let safe = without_password(shown);
                    // What is not the whole value must not be taken for it when the text is used as a file.
                    let mark = if safe == *shown { "" } else { "# " };
                    format!("{mark}{} = {}", leaf(definition), toml_value(&safe, definition))
                }
            };
            let _ = writeln!(text, "{line:<48} # {origin}");
        }
    }
    text
}

/// A URL can hold a password (`http://user:password@host`); what is printed does not.
fn without_password(shown: &Shown) -> Shown {
    let Shown::One(text) = shown else { return shown.clone() };
    let Some((scheme, rest)) = text.split_once("://") else { return shown.clone() };
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((user, _)) => Shown::One(format!("{scheme}://***{}", &rest[user.len()..])),
        None => shown.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_between_words_and_keep_their_indent() {
        let mut text = String::new();
        wrap(&mut text, "  ", &"word ".repeat(60));
        assert!(text.lines().count() > 1);
        assert!(text.lines().all(|line| line.starts_with("  word") && line.len() <= COLUMNS && !line.ends_with(' ')));
    }

    #[test]
    fn quoted_text_cannot_end_its_quotes() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\u000ad""#);
    }

    #[test]
    fn passwords_in_urls_are_not_printed() {
        let shown = Shown::One("http://me:pass@app.test/_anycable".to_owned());
        assert_eq!(without_password(&shown), Shown::One("http://***@app.test/_anycable".to_owned()));
        let plain = Shown::One("http://app.test/a@b".to_owned());
        assert_eq!(without_password(&plain), plain);
    }
}
