//! Keeps the floors: a module uses only floors below its own, and siblings do not know each other.

#[path = "floors/paths.rs"]
mod paths;

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by floor, bottom first. `ARCHITECTURE.md` says what each is for.
const FLOORS: &[&[&str]] = &[
    &["model"],
    &["proto", "os", "config", "telemetry", "link"],
    &["session", "hub", "history", "presence", "identity", "doctor"],
    &["shard", "backend", "broadcast", "broker", "cluster"],
    &["http"],
    &["node", "demo", "cli"],
];

/// Top floor: assembly. Its modules may use each other.
const ASSEMBLY: usize = 5;

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The module that a file below `src` holds.
fn module_path(file: &Path) -> Vec<&str> {
    let words = file.iter().map(|word| word.to_str().unwrap().trim_end_matches(".rs"));
    words.filter(|word| *word != "mod").collect()
}

#[test]
fn modules_use_only_floors_below_their_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "the sources are where this test looks for them");
    let mut offenders = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap();
        let module = module_path(path);
        if ["lib", "main"].contains(&module[0]) {
            continue;
        }
        let own = floor(module[0]).unwrap_or_else(|| panic!("{module:?} stands on no floor: name one here"));
        for used in paths::used(&fs::read_to_string(&file).unwrap(), &module) {
            let below = floor(&used).is_none_or(|floor| floor < own || used == module[0] || own == ASSEMBLY);
            if !below || used == paths::EVERYTHING {
                offenders.push(format!("{} (floor {own}) uses {used}", path.display()));
            }
        }
    }
    assert!(offenders.is_empty(), "{}", offenders.join("\n"));
}

#[test]
fn quick_hashes_are_used_for_keys_of_our_own_only() {
    // Slots are numbered by us. What peers name goes through `model::NameHasher`, or the standard library's own.
    const OWN_KEYS: &[&str] =
        &["hub/members.rs", "shard.rs", "shard/ahead.rs", "backend/dispatch.rs", "backend/waiting.rs"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let quick = |text: &str| {
        ["rustc_hash", "foldhash", "fxhash", "ahash"].iter().any(|name| text.contains(&format!("{name}::")))
    };
    let users = files.iter().filter(|file| quick(&fs::read_to_string(file).unwrap()));
    let mut users: Vec<_> = users.map(|file| file.strip_prefix(&root).unwrap().to_str().unwrap()).collect();
    users.sort_unstable_by_key(|user| OWN_KEYS.iter().position(|known| known == user));
    assert_eq!(users, OWN_KEYS, "look at what the keys are");
}

#[test]
fn decisions_and_languages_have_no_clock_no_task_and_no_log() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let forbidden = ["tokio::", "tracing::", "Instant::now", "SystemTime", "std::net::Tcp", "std::fs", "async fn"];
    let mut offenders = Vec::new();
    for module in ["model", "proto", "session", "hub", "history", "presence", "identity", "doctor"] {
        let mut files = vec![root.join(module).with_extension("rs")];
        if root.join(module).is_dir() {
            sources(&root.join(module), &mut files);
        }
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
                offenders.extend(
                    forbidden
                        .iter()
                        .filter(|word| line.contains(**word))
                        .map(|word| format!("{}:{}: {word}", file.display(), n + 1)),
                );
            }
        }
    }
    assert!(offenders.is_empty(), "{}", offenders.join("\n"));
}
