//! An AnyCable deployment changes the binary and keeps its options: every option of AnyCable is known here,
//! under the same names, with the same default unless we say so.

use std::collections::BTreeMap;

use cableway::config::{self, BroadcastAdapter, BrokerKind, Command, Config, ConfigError, Problem, PubSub};

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

/// What the default means when it is given: an address of Redis, also the default one, says that there is a Redis.
fn given(flag: &str) -> Config {
    let mut config = Config::default();
    if flag == "redis_url" {
        config.broadcast.adapters = vec![BroadcastAdapter::Http, BroadcastAdapter::Redis];
    }
    config
}

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
            assert_eq!(config, Ok(given(flag)), "{name}={default}");
        }
    }
}

#[test]
fn all_137_options_are_known_in_the_environment() {
    for Known { flag, default, .. } in anycable().iter().filter(|known| !DIFFERENT.contains(&known.flag)) {
        let upper = flag.to_uppercase().replace('-', "_");
        for prefix in ["ANYCABLE", "CABLEWAY"] {
            let env = BTreeMap::from([(format!("{prefix}_{upper}"), (*default).to_owned())]);
            assert_eq!(serve(&[], &env), Ok(given(flag)), "{prefix}_{upper}={default}");
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
                    assert_eq!(command, Ok(Command::Serve(Box::new(given(flag)))), "{key}");
                }
            }
        }
        if extension == "toml" {
            let read = |_: &std::path::Path| Ok(text.clone());
            let invocation = config::parse_with(["--config", "x.toml"], &BTreeMap::new(), &read);
            let expected = Command::Serve(Box::new(given("redis_url")));
            assert_eq!(invocation.map(|invocation| invocation.command), Ok(expected));
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
    let file = "[pusher]\nsecret = \"none\"\n[embedded_nats]\nname = \"a\"\nroutes = [\"nats://b\"]\n[embedded_nats.new]\nkey = 1\n";
    let warnings = read(&[], &[], Some(file)).expect("good").warnings;
    assert_eq!(warnings.iter().filter(|warning| warning.contains("nats-server beside it")).count(), 2, "{warnings:#?}");
}

#[test]
fn all_that_is_not_there_yet_is_named_at_once() {
    let file = "[ds]\nenabled = true\n";
    let args = ["--sse", "--statsd-host=a:1", "--xyzzy=1", "--plugh", "2"];
    let error = read(&args[..2], &[("ANYCABLE_EMBED_NATS", "1")], Some(file)).expect_err("bad").to_string();
    for name in ["--sse", "--statsd-host", "--embed-nats", "--ds"] {
        assert!(error.contains(name), "{name}: {error}");
    }
    assert_eq!(error.lines().count(), 4, "{error}");
    let error = read(&args, &[], Some("prot = 1\n")).expect_err("bad").to_string();
    for name in ["--sse", "--statsd-host", "--xyzzy", "--plugh", "prot"] {
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
    let error = read(&["--broker=disk"], &[], None).expect_err("unknown").to_string();
    assert!(error.contains("'memory' 'redis' 'nats'"), "{error}");
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
        matches!(&warnings[..], [only] if only.contains("preset fly") && only.contains("nats-server")),
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
}

#[test]
fn what_is_not_there_yet_may_be_switched_off_or_left_at_its_default_in_any_spelling() {
    for argument in ["--sse=false", "--sse=0", "--embed-nats=0"] {
        assert_eq!(serve(&[argument.to_owned()], &BTreeMap::new()), Ok(Config::default()), "{argument}");
    }
}

fn words(adapters: &[BroadcastAdapter]) -> Vec<&'static str> {
    adapters.iter().map(|adapter| adapter.word()).collect()
}

#[test]
fn broadcasts_over_redis_are_on_where_there_is_a_redis_or_they_are_named() {
    for (env, args, expected) in [
        (&[][..], &[][..], &["http"][..]),
        (&[("REDIS_URL", "redis://a")], &[], &["http", "redis"]),
        (&[("ANYCABLE_REDIS_URL", "redis://localhost:6379")], &[], &["http", "redis"]),
        (&[], &["--redis-url=redis://mymaster", "--redis-sentinels=a:26379"], &["http", "redis"]),
        (&[("REDIS_URL", "redis://a")], &["--broadcast_adapter=http"], &["http"]),
        (&[("ANYCABLE_BROADCAST_ADAPTER", "redisx, nats,redisx")], &[], &["redisx", "nats"]),
    ] {
        let (config, warnings) = config_in(env, args);
        assert_eq!((words(&config.broadcast.adapters).as_slice(), warnings), (expected, vec![]), "{env:?} {args:?}");
    }
    let error = serve(&["--broadcast_adapter=http,htpp".to_owned()], &BTreeMap::new()).expect_err("unknown");
    assert!(error.to_string().contains("'htpp': it can be 'http' 'redis' 'redisx' 'nats'"), "{error}");
}

/// `contracts/pubsub-cluster.md` section 2.
#[test]
fn pubsub_is_chosen_as_anycable_does_unless_it_is_said() {
    for (args, expected) in [
        (&[][..], PubSub::None),
        (&["--redis_url=redis://localhost:6379"], PubSub::None),
        (&["--redis_url=redis://other"], PubSub::Redis),
        (&["--redis_url=rediss://localhost:6379"], PubSub::Redis),
        (&["--redis_url=redis://master", "--redis_sentinels=a,b"], PubSub::Redis),
        (&["--broadcast_adapter=redisx"], PubSub::Redis),
        (&["--broadcast_adapter=redis"], PubSub::None),
        (&["--broadcast_adapter=nats"], PubSub::None),
        (&["--broker=redis"], PubSub::Redis),
        (&["--broker=nats", "--redis_url=redis://other"], PubSub::Nats),
        (&["--nats_servers=nats://other"], PubSub::None),
        (&["--redis_url=redis://other", "--pubsub=none"], PubSub::None),
        (&["--redis_url=redis://other", "--pubsub=nats"], PubSub::Nats),
        (&["--redis_url=redis://other", "--pubsub="], PubSub::Redis),
    ] {
        assert_eq!(config_in(&[], args).0.pubsub(), expected, "{args:?}");
    }
}

#[test]
fn a_broker_in_memory_beside_pubsub_is_one_for_all_nodes() {
    for (args, expected) in [
        (["--broker=memory", "--pubsub=redis"], BrokerKind::Redis),
        (["--broker=memory", "--redis-url=redis://a"], BrokerKind::Redis),
        (["--broker=memory", "--pubsub=nats"], BrokerKind::Nats),
    ] {
        let (config, warnings) = config_in(&[], &args);
        assert_eq!(config.broker.kind, expected);
        assert!(matches!(&warnings[..], [only] if only.contains("carried out as")), "{warnings:?}");
    }
    let (config, warnings) = config_in(&[], &["--broker=memory", "--redis-url=redis://a", "--pubsub=none"]);
    assert_eq!((config.broker.kind, warnings), (BrokerKind::Memory, vec![]));
    let (_, warnings) = config_in(&[], &["--broker=redis", "--pubsub=none"]);
    assert!(matches!(&warnings[..], [only] if only.contains("only when they come back")), "{warnings:?}");
    let (_, warnings) = config_in(&[], &["--broker=redis", "--broadcast-adapter=redis"]);
    assert!(matches!(&warnings[..], [only] if only.contains("no history is kept")), "{warnings:?}");
}

/// `contracts/pubsub-cluster.md` section 7.
#[test]
fn presets_set_a_cluster_up_where_there_is_something_to_meet_at() {
    let chosen = |env: &[(&str, &str)], args: &[&str]| {
        let (config, warnings) = config_in(env, args);
        (config.broker.kind.word(), words(&config.broadcast.adapters).join(","), config.pubsub().word(), warnings)
    };
    let silent = Vec::<String>::new();
    let http = || "http".to_owned();
    assert_eq!(chosen(&[], &["--presets=broker"]), ("memory", http(), "none", silent.clone()));
    let redis = chosen(&[("REDIS_URL", "redis://a")], &["--presets=broker"]);
    assert_eq!(redis, ("redis", "http,redisx,redis".into(), "redis", silent.clone()));
    let nats = chosen(&[], &["--presets=broker", "--nats_servers=nats://a"]);
    assert_eq!(nats, ("nats", "http,nats".into(), "nats", silent.clone()));
    let own = chosen(&[("REDIS_URL", "redis://a")], &["--presets=broker", "--broker=none", "--broadcast_adapter=http"]);
    assert_eq!(own, ("none", http(), "redis", silent.clone()));

    const FLY: [(&str, &str); 3] = [("FLY_APP_NAME", "ws"), ("FLY_ALLOC_ID", "1"), ("FLY_REGION", "ams")];
    let secret = "--secret=s";
    assert_eq!(
        chosen(&FLY, &[secret, "--nats_servers=nats://a"]),
        ("none", "http,nats".into(), "nats", silent.clone())
    );
    assert_eq!(chosen(&FLY, &[secret, "--redis_url=redis://a"]), ("none", "http,redis".into(), "redis", silent));
}

#[test]
fn what_cannot_be_together_in_a_cluster_is_refused_with_what_to_do() {
    for (args, word) in [
        (&["--redis_url=http://a"][..], "rediss://"),
        (&["--redis_url=redis://a/x"], "number of a database"),
        (&["--redis_url=redis://a,redis://b", "--redis_sentinels=c"], "no sentinels"),
        (&["--redis_url=redis://a/1,redis://b/1"], "only database 0"),
        (&["--redis_url=redis://a,rediss://b"], "all as rediss://"),
        (&["--redis_sentinels=c:26379"], "master set"),
        (&["--redis_url=redis://m", "--redis_sentinels=c:x"], "1 to 65535"),
        (&["--redis_tls_client_cert_path=/a"], "belong together"),
        (&["--redis_url=rediss://a", "--redis_tls_ca_cert_path=/no/such"], "cannot read /no/such"),
        (&["--pubsub=nats", "--nats_tls_ca_cert_path=/no/such"], "cannot read /no/such"),
        (&["--nats_servers=redis://a"], "tls://"),
        (&["--nats_channel=a b"], "without blanks"),
        (&["--nats_channel=__anycable_internal__", "--pubsub=nats", "--broadcast_adapter=nats"], "are the same"),
        (&["--broker=redis", "--pubsub=nats"], "goes with"),
        (&["--broker-prefix={a}"], "letters, digits"),
        (&["--pubsub-prefix=a*"], "letters, digits"),
        (&["--pubsub=kafka"], "'redis' 'nats'"),
        (&["--embed_nats"], "run nats-server beside it"),
    ] {
        let error = read(args, &[], None).expect_err(&format!("{args:?}")).to_string();
        assert!(error.contains(word), "{args:?}: {error}");
    }
}

#[test]
fn passwords_of_redis_and_nats_are_shown_nowhere() {
    let urls = "redis://:wordx@a:1,redis://me:wordx@b:2";
    let text = |args: &[&str]| match read(args, &[], None).expect("good").command {
        Command::PrintConfig(text) => text,
        other => panic!("{other:?}"),
    };
    let shown = text(&["config", "--redis-url", urls, "--nats-servers=nats://wordx@c"]);
    assert!(!shown.contains("wordx"), "{shown}");
    assert!(
        shown.contains("# url = \"redis://***@a:1,redis://***@b:2\"") && shown.contains("nats://***@c:4222"),
        "{shown}"
    );
    assert!(!format!("{:?}", config_in(&[], &["--redis-url", urls]).0).contains("wordx"));
    for bad in ["http://:wordx@a", "redis://:wordx@a:b", "redis://:wo/rdx:wordx@a:b", "\"redis://:wordx@a\""] {
        let error = read(&["--redis-url", bad], &[], None).expect_err(bad).to_string();
        assert!(!error.contains("wordx"), "{error}");
    }
}

#[test]
fn pubsub_does_not_share_a_channel_with_broadcasts() {
    let args = ["--redis_url=redis://a", "--redis-pubsub-channel=__anycable__"];
    let (config, warnings) = config_in(&[], &args);
    assert_eq!(config.cluster.redis_channel, "__anycable__-int");
    assert!(matches!(&warnings[..], [only] if only.contains("__anycable__-int")), "{warnings:?}");
}
