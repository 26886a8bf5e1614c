//! An AnyCable deployment changes the binary and keeps its options: every option of AnyCable is known here,
//! under the same names, with the same default unless we say so.

use std::collections::BTreeMap;

use cableway::config::{self, Command, Config, ConfigError, Problem};

struct Known {
    flag: &'static str,
    key: Option<&'static str>,
    default: &'static str,
}

/// The list in `fixtures/`.
fn anycable() -> Vec<Known> {
    let text = include_str!("fixtures/anycable-options.tsv");
    let some = |column: &'static str| Some(column).filter(|column| *column != "-");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            Known { flag: columns[0], key: some(columns[1]), default: some(columns[2]).unwrap_or_default() }
        })
        .collect()
}

/// The two defaults that differ, with the reason in their help.
const DIFFERENT: [&str; 2] = ["broadcast_adapter", "metrics_http"];

fn serve(args: &[String], env: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    match config::parse_with(args, env, &no_file)?.command {
        Command::Serve(config) => Ok(*config),
        other => panic!("{args:?} gave {other:?}"),
    }
}

#[test]
fn all_137_options_are_known_by_flag_and_have_the_same_default() {
    let known = anycable();
    assert_eq!(known.len(), 137);
    for Known { flag, default, .. } in known.iter().filter(|known| !DIFFERENT.contains(&known.flag)) {
        for name in [format!("--{flag}"), format!("-{flag}"), format!("--{}", flag.replace('_', "-"))] {
            let config = serve(&[format!("{name}={default}")], &BTreeMap::new());
            assert_eq!(config, Ok(Config::default()), "{name}={default}");
        }
    }
}

#[test]
fn all_137_options_are_known_in_the_environment() {
    for Known { flag, default, .. } in anycable().iter().filter(|known| !DIFFERENT.contains(&known.flag)) {
        let upper = flag.to_uppercase().replace('-', "_");
        for prefix in ["ANYCABLE", "CABLEWAY"] {
            let env = BTreeMap::from([(format!("{prefix}_{upper}"), (*default).to_owned())]);
            assert_eq!(serve(&[], &env), Ok(Config::default()), "{prefix}_{upper}={default}");
        }
    }
}

#[test]
fn a_file_with_every_key_of_anycable_at_its_default_is_accepted() {
    for extension in ["toml", "yaml"] {
        let mut text = String::new();
        for Known { flag, key, default } in &anycable() {
            let Some(key) = key.filter(|_| !DIFFERENT.contains(flag)) else { continue };
            match extension {
                "toml" => text.push_str(&format!("{key} = \"{default}\"\n")),
                // One file per key would be needed for nested maps; a flow map says the same in one line.
                _ => {
                    let (open, close) = (key.replace('.', ": {"), "}".repeat(key.matches('.').count()));
                    let read = |_: &std::path::Path| Ok(format!("{open}: \"{default}\"{close}\n"));
                    let invocation = config::parse_with(["--config", "x.yaml"], &BTreeMap::new(), &read);
                    let command = invocation.map(|invocation| invocation.command);
                    assert_eq!(command, Ok(Command::Serve(Box::default())), "{key}");
                }
            }
        }
        if extension == "toml" {
            let read = |_: &std::path::Path| Ok(text.clone());
            let invocation = config::parse_with(["--config", "x.toml"], &BTreeMap::new(), &read);
            assert_eq!(invocation.map(|invocation| invocation.command), Ok(Command::Serve(Box::default())));
        }
    }
}

#[test]
fn the_two_defaults_that_differ_say_so_in_their_help() {
    for flag in DIFFERENT {
        let name = flag.replace('_', "-");
        let definition = config::all().find(|definition| definition.name == name).expect("known");
        assert!(definition.help.concat().contains("AnyCable's"), "{flag}");
    }
}

#[test]
fn what_is_not_there_yet_is_refused_by_name_with_what_to_do() {
    let on = [
        ("--sse", "sse"),
        ("--ds", "ds"),
        ("--embed_nats", "embed-nats"),
        ("--broker=memory", "broker"),
        ("--pubsub=redis", "pubsub"),
        ("--history_limit=5", "history-limit"),
        ("--history_ttl=301", "history-ttl"),
        ("--redis_url=redis://other", "redis-url"),
        ("--nats_servers=nats://other", "nats-servers"),
        ("--ssl_cert=/a.pem", "ssl-cert"),
        ("--statsd_host=a:1", "statsd-host"),
        ("--presets=fly", "presets"),
        ("--metrics_log", "metrics-log"),
        ("--pusher_app_id=1", "pusher-app-id"),
        ("--enable_ws_compression", "enable-ws-compression"),
        ("--poll", "poll"),
    ];
    for (argument, name) in on {
        let error = serve(&[argument.to_owned()], &BTreeMap::new()).expect_err(argument);
        let [Problem::NotThereYet { option, instead, .. }] = &error.problems[..] else { panic!("{error}") };
        assert_eq!(option, &format!("--{name}"));
        assert!(instead.len() > 10, "{argument}: {instead}");
    }
}

#[test]
fn what_is_not_there_yet_may_be_switched_off_or_left_at_its_default_in_any_spelling() {
    for argument in [
        "--sse=false",
        "--sse=0",
        "--broker=none",
        "--broker=",
        "--pubsub=none",
        "--presets=none",
        "--history_ttl=5m",
        "--history_limit=0",
        "--streams_presence=false",
        "--streams_presence=t",
    ] {
        assert_eq!(serve(&[argument.to_owned()], &BTreeMap::new()), Ok(Config::default()), "{argument}");
    }
}

#[test]
fn redis_broadcasts_are_refused_by_name_also_beside_http() {
    for adapters in ["http,redis", "redisx", "nats,http"] {
        let error = serve(&[format!("--broadcast_adapter={adapters}")], &BTreeMap::new()).expect_err(adapters);
        let name = adapters.split(',').find(|name| *name != "http").expect("one");
        assert!(error.to_string().contains(&format!("--broadcast-adapter {name} is known but not there yet")));
    }
    let error = serve(&["--broadcast_adapter=htpp".to_owned()], &BTreeMap::new()).expect_err("unknown");
    assert!(error.to_string().contains("'htpp' is unknown"), "{error}");
}
