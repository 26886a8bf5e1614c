//! What `deploy/anycable.md` says of AnyCable's options is what the server does with them. `CABLEWAY_BLESS=1 cargo test --test
//! deploy_anycable` writes its table again.

use std::collections::BTreeSet;
use std::path::Path;

use cableway::config::{self, Definition, Status};

const BEGIN: &str = "<!-- options -->\n";
const END: &str = "<!-- /options -->\n";

/// Flag and default of each option of AnyCable.
fn anycable() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = include_str!("fixtures/anycable-options.tsv").lines();
    lines.filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
        let columns: Vec<&str> = line.split('\t').collect();
        (columns[0], if columns[2] == "-" { "" } else { columns[2] })
    })
}

fn definition(flag: &str) -> &'static Definition {
    let name = flag.replace('_', "-");
    config::all().find(|definition| definition.name == name).unwrap_or_else(|| panic!("{flag} is unknown here"))
}

/// What becomes of an option, in two cells.
fn cells(definition: &Definition, default: &str) -> (&'static str, String) {
    let there = if default.is_empty() { String::new() } else { format!("default {default}") };
    match definition.status {
        // The same value is written in more than one way, `300s` and `300`: the defaults that differ in meaning are the two
        // that tests/config_anycable.rs names.
        Status::Available
            if ["broadcast_adapter", "metrics_http"]
                .map(|flag| flag.replace('_', "-"))
                .contains(&definition.name.to_owned()) =>
        {
            (
                "same",
                format!("default {}, there {}", definition.default, if default.is_empty() { "off" } else { default }),
            )
        }
        Status::Available => ("same", there),
        Status::Discouraged { instead } => ("same", format!("better: {instead}")),
        Status::Renamed { to } => ("renamed", format!("`--{to}`")),
        Status::NotThereYet { instead } => ("absent, refused", instead.to_owned()),
        Status::Dormant { instead } => ("absent", instead.to_owned()),
        Status::Ignored { because } => ("ignored", because.to_owned()),
    }
}

/// The options of AnyCable Pro are known here by what is said of them.
fn is_of_pro(definition: &Definition) -> bool {
    matches!(definition.status, Status::NotThereYet { instead } | Status::Dormant { instead } if instead.contains("AnyCable Pro"))
}

fn table() -> String {
    let known: BTreeSet<String> = anycable().map(|(flag, _)| flag.replace('_', "-")).collect();
    let pro = config::all().filter(|definition| is_of_pro(definition) && !known.contains(definition.name));
    let pro = pro.map(|definition| (definition.name.replace('-', "_"), definition, definition.default));
    let all = anycable().map(|(flag, default)| (flag.to_owned(), definition(flag), default)).chain(pro);
    let mut text = "| flag | here | |\n| --- | --- | --- |\n".to_owned();
    for (flag, definition, default) in all {
        let (what, note) = cells(definition, default);
        text.push_str(&format!("| `{flag}` | {what} | {note} |\n"));
    }
    text
}

#[test]
fn the_guide_says_of_each_option_of_anycable_what_becomes_of_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/anycable.md");
    let guide = std::fs::read_to_string(&path).expect("deploy/anycable.md");
    let (before, rest) = guide.split_once(BEGIN).expect("where the table begins");
    let (kept, after) = rest.split_once(END).expect("where it ends");
    let table = table();
    if std::env::var_os("CABLEWAY_BLESS").is_some() {
        return std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).expect("written");
    }
    assert!(kept == table, "the table is out of step: CABLEWAY_BLESS=1 cargo test --test deploy_anycable");
}
