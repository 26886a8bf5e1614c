//! The tables hold together: names are unique, defaults are in the form they are printed in, and what one
//! option says about another is true.

use std::collections::BTreeSet;

use super::definition::{Kind, Shown, Status};
use super::layers::id;
use super::{Config, all};

#[test]
fn every_name_and_key_is_there_once() {
    let (mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for definition in all() {
        assert!(!id(definition).is_empty());
        assert!(ids.insert(id(definition)), "{}", definition.label());
        assert!(definition.toml.is_empty() || keys.insert(definition.toml), "{}", definition.toml);
        let plain = definition.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        assert!(plain, "{}", definition.name);
    }
}

#[test]
fn the_default_in_the_table_is_the_default_of_the_field_in_the_form_it_is_printed() {
    let config = Config::default();
    for definition in all() {
        let Some(access) = definition.access else { continue };
        let text = match (access.get)(&config, definition.unit) {
            Shown::One(text) => text,
            Shown::Many(entries) => entries.join(","),
            Shown::Hidden | Shown::Redacted(_) => panic!("{} has a key as its default", definition.label()),
        };
        assert_eq!(text, definition.default, "{}", definition.label());
    }
}

#[test]
fn every_working_option_is_explained_in_sentences() {
    for definition in all().filter(|definition| definition.works()) {
        let help = definition.help.join("");
        assert!(help.trim_end().ends_with(['.', ')']), "{}: {help}", definition.label());
        assert!(!definition.group.is_empty());
    }
}

#[test]
fn what_one_option_says_about_another_is_true() {
    let named = |name: &str| all().find(|definition| definition.name == name);
    for definition in all() {
        if let Status::Renamed { to } = definition.status {
            assert!(named(to).is_some(), "{} points to {to}", definition.label());
        }
        for (option, value) in definition.implies {
            let target = named(option).and_then(|target| target.access.map(|access| (target, access)));
            let (target, access) = target.expect("an implied option has a field");
            let mut config = Config::default();
            let set = (access.set)(&mut config, &super::setting::Input::One((*value).to_owned()), target.unit);
            assert_eq!(set, Ok(()), "{} implies {option}={value}", definition.label());
        }
        let works = definition.access.is_some();
        assert_eq!(works, definition.works(), "{}", definition.label());
        assert!(definition.kind != Kind::Secret || definition.default.is_empty(), "{}", definition.label());
    }
}
