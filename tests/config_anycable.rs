//! An AnyCable deployment changes the binary and keeps its options: every option of AnyCable is known here,
//! under the same names, with the same default unless we say so.

use std::collections::BTreeMap;

use cableway::config::{self, BrokerKind, Command, Config, ConfigError, Problem};

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
        ("--pubsub=redis", "pubsub"),
        ("--statsd_host=a:1", "statsd-host"),
        ("--metrics_log", "metrics-log"),
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

fn read(args: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Result<config::Invocation, ConfigError> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let file = file.map(str::to_owned);
    config::parse_with(args, &env, &move |path: &std::path::Path| match &file {
        Some(text) if path == std::path::Path::new("./anycable.toml") => Ok(text.clone()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    })
}

#[test]
fn what_only_tunes_something_that_is_not_there_yet_does_not_stop_the_start() {
    for argument in [
        "--redis_url=redis://other",
        "--nats_servers=nats://other",
        "--enats_addr=a:1",
        "--sse_path=/sse",
        "--metrics_log_filter=a",
        "--statsd_prefix=p.",
        "--poll_interval=1",
        "--pusher_secret=s",
        "--pusher_app_id=1",
        "--pusher_app_key=1",
        "--ssl_cert=/a.pem",
        "--ssl_key=/a.pem",
    ] {
        let invocation = read(&[argument], &[], None).expect(argument);
        assert_eq!(invocation.command, Command::Serve(Box::default()), "{argument}");
        let [warning] = &invocation.warnings[..] else { panic!("{argument}: {:?}", invocation.warnings) };
        let name = argument.split('=').next().expect("one").replace('_', "-");
        assert!(warning.starts_with(&format!("not used: {name} (flag")) && warning.len() > 40, "{warning}");
    }
    for both in [["--pusher_app_id=1", "--pusher_app_key=1"], ["--ssl_cert=/a.pem", "--ssl_key=/a.pem"]] {
        assert!(read(&both, &[], None).is_err(), "{both:?} would switch it on");
    }
    let file = "[pusher]\nsecret = \"none\"\n[redis]\nurl = \"redis://a\"\ntls_verify = true\n[redis.new]\nkey = 1\n";
    let warnings = read(&[], &[], Some(file)).expect("good").warnings;
    assert_eq!(warnings.iter().filter(|warning| warning.contains("Redis")).count(), 2, "{warnings:#?}");
}

#[test]
fn all_that_is_not_there_yet_is_named_at_once() {
    let file = "broadcast_adapters = [\"http\", \"redisx\"]\n";
    let args = ["--sse", "--pubsub=redis", "--xyzzy=1", "--plugh", "2"];
    let error = read(&args[..2], &[("ANYCABLE_EMBED_NATS", "1")], Some(file)).expect_err("bad").to_string();
    for name in ["--sse", "--pubsub", "--embed-nats", "--broadcast-adapter redisx"] {
        assert!(error.contains(name), "{name}: {error}");
    }
    assert_eq!(error.lines().count(), 4, "{error}");
    let error = read(&args, &[], Some("prot = 1\n")).expect_err("bad").to_string();
    for name in ["--sse", "--pubsub", "--xyzzy", "--plugh", "prot"] {
        assert!(error.contains(name), "{name}: {error}");
    }
    assert_eq!(error.lines().count(), 5, "{error}");
}

#[test]
fn what_a_rails_app_is_set_up_with_starts_with_a_broker_and_without_a_warning() {
    let file = "secret = \"anycable-local-secret\"\npresets = [\"broker\"]\nbroadcast_adapters = [\"http\"]\n\
                [logging]\ndebug = true\n[rpc]\nhost = \"http://localhost:3000/_anycable\"\n\
                [streams]\nwhisper = true\nturbo = true\n";
    let invocation = read(&[], &[], Some(file)).expect("good");
    assert_eq!(invocation.warnings, [""; 0]);
    let Command::Serve(config) = invocation.command else { panic!() };
    assert_eq!(config.broker.kind, BrokerKind::Memory);
    let off = read(&["--broker=none"], &[], Some(file)).expect("good").command;
    assert!(matches!(off, Command::Serve(config) if config.broker.kind == BrokerKind::None));
}

#[test]
fn the_broker_is_set_up_as_anycables() {
    let (config, warnings) = config_in(
        &[("ANYCABLE_BROKER", "memory"), ("ANYCABLE_HISTORY_LIMIT", "7")],
        &["--history_ttl=60", "--sessions_ttl=0", "--presence_ttl=20", "--streams_presence=false"],
    );
    assert_eq!(warnings, [""; 0]);
    let broker = &config.broker;
    assert_eq!((broker.kind, broker.history_limit), (BrokerKind::Memory, 7));
    let seconds = [broker.history_ttl, broker.sessions_ttl, broker.presence_ttl].map(|ttl| ttl.as_secs());
    assert_eq!((seconds, config.streams.presence), ([60, 0, 20], false));
    for kind in ["redis", "nats", "disk"] {
        let error = read(&["--broker", kind], &[], None).expect_err("not there").to_string();
        assert!(error.contains("memory"), "{error}");
    }
}

fn config_in(env: &[(&str, &str)], args: &[&str]) -> (Config, Vec<String>) {
    let invocation = read(args, env, None).expect("good");
    let Command::Serve(config) = invocation.command else { panic!() };
    (*config, invocation.warnings)
}

#[test]
fn the_machine_of_a_platform_is_known_by_its_environment() {
    const HEROKU: [(&str, &str); 3] = [("HEROKU_APP_ID", "a"), ("HEROKU_DYNO_ID", "b"), ("PORT", "12345")];
    let (config, warnings) = config_in(&HEROKU, &["--secret=s"]);
    assert_eq!((config.server.host.as_str(), config.server.port), ("0.0.0.0", 12345));
    assert_eq!((config.broadcast_on(), warnings), (config::ListenOn::Main, vec![]));
    // Without a key, nobody can publish from outside.
    assert_eq!(config_in(&HEROKU, &[]).0.broadcast_on(), config::ListenOn::Own { host: "0.0.0.0".into(), port: 8090 });
    assert_eq!(config_in(&HEROKU, &["--host=1.2.3.4"]).0.server.host, "1.2.3.4", "others are stronger");
    assert_eq!(config_in(&HEROKU, &["--presets=none"]).0.server.host, "localhost");
    assert_eq!(config_in(&HEROKU[..1], &[]).0.server.host, "localhost");

    let fly =
        [("FLY_APP_NAME", "ws"), ("FLY_ALLOC_ID", "1"), ("FLY_REGION", "ams"), ("ANYCABLE_FLY_RPC_APP_NAME", "web")];
    let (config, warnings) = config_in(&fly, &["--secret=s"]);
    assert_eq!(config.server.host, "0.0.0.0");
    assert_eq!(config.rpc.host, "dns:///ams.web.internal:50051");
    assert!(
        matches!(&warnings[..], [only] if only.contains("preset fly") && only.contains("one machine")),
        "{warnings:?}"
    );
    let (_, warnings) = config_in(&[], &["--presets=nomad"]);
    assert!(warnings[0].contains("unknown preset 'nomad'"), "{warnings:?}");
}

#[test]
fn what_belongs_to_the_app_is_passed_over_without_a_hint() {
    let names = ["HTTP_RPC", "EMBEDDED", "RPC_POOL_SIZE", "HTTP_BROADCAST_URL", "HTTP_RPC_MOUNT_PATH"];
    let names = names.map(|name| format!("ANYCABLE_{name}"));
    let env: Vec<_> = names.iter().map(|name| (name.as_str(), "x")).collect();
    let invocation = read(&[], &env, None).expect("good");
    assert_eq!(invocation.warnings, Vec::<String>::new());
    assert_eq!(invocation.notes.len(), names.len());
    assert!(invocation.notes.iter().all(|note| note.contains("app's side") && !note.contains("did you mean")));
}

#[test]
fn an_app_that_is_set_to_redis_while_the_server_is_not_is_noticed() {
    let env = [("ANYCABLE_BROADCAST_ADAPTER", "redis")];
    let (_, warnings) = config_in(&env, &["--broadcast-adapter=http"]);
    assert!(matches!(&warnings[..], [only] if only.contains("is not heard")), "{warnings:?}");
    assert_eq!(config_in(&[("ANYCABLE_BROADCAST_ADAPTER", "http")], &[]).1, Vec::<String>::new());
    let (_, warnings) = config_in(&[("REDIS_URL", "redis://a")], &[]);
    assert!(warnings[0].contains("what an app publishes there does not arrive"), "{warnings:?}");
}

#[test]
fn what_is_not_there_yet_may_be_switched_off_or_left_at_its_default_in_any_spelling() {
    for argument in ["--sse=false", "--sse=0", "--pubsub=none"] {
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
