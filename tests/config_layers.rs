//! Flags, environment, files: who wins, what is refused, and what the user is told.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use cableway::config::{self, Command, Config, ConfigError, Invocation, LogLevel, RpcImplementation, Secret};
use cableway::model::DisconnectMode;

/// Reads a command line in an environment, beside one file that is `./cableway.toml` unless `--config` names another.
fn read(args: &str, env: &[(&str, &str)], file: Option<(&str, &str)>) -> Result<Invocation, ConfigError> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let file = file.map(|(path, text)| (path.to_owned(), text.to_owned()));
    config::parse_with(args.split_whitespace(), &env, &move |path: &Path| match &file {
        Some((name, text)) if path == Path::new(name) => Ok(text.clone()),
        _ => Err(io::ErrorKind::NotFound.into()),
    })
}

#[track_caller]
fn serve(args: &str, env: &[(&str, &str)], file: Option<&str>) -> Config {
    let file = file.map(|text| ("./cableway.toml", text));
    match read(args, env, file).expect("a good configuration").command {
        Command::Serve(config) => *config,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refusal(args: &str, env: &[(&str, &str)], file: Option<&str>) -> String {
    let file = file.map(|text| ("./cableway.toml", text));
    read(args, env, file).expect_err("a bad configuration").to_string()
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let file = Some("[server]\nport = 1\n");
    let env = [("CABLEWAY_PORT", "2")];
    assert_eq!(serve("", &[], None).server.port, 8080);
    assert_eq!(serve("", &[], file).server.port, 1);
    assert_eq!(serve("", &env, file).server.port, 2);
    assert_eq!(serve("--port 3", &env, file).server.port, 3);
}

#[test]
fn our_variable_beats_anycables_beats_the_common_one() {
    let all = [("CABLEWAY_PORT", "1"), ("ANYCABLE_PORT", "2"), ("PORT", "3")];
    assert_eq!(serve("", &all, None).server.port, 1);
    assert_eq!(serve("", &all[1..], None).server.port, 2);
    assert_eq!(serve("", &all[2..], None).server.port, 3);
    assert_eq!(serve("", &[("NUM_ACCEPTORS", "4")], None).server.acceptors, 4);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let config = serve("", &[("CABLEWAY_HOST", ""), ("ANYCABLE_HEADERS", " "), ("CABLEWAY_PORT", "")], None);
    assert_eq!(config, Config::default());
    assert_eq!(serve("", &[("CABLEWAY_PORT", ""), ("PORT", "5")], None).server.port, 5);
}

#[test]
fn a_flag_can_be_written_with_one_or_two_dashes_underscores_or_dashes_space_or_equals() {
    for args in ["-max-conn 7", "--max-conn 7", "--max_conn=7", "-max_conn=7", "serve --max-conn=7"] {
        assert_eq!(serve(args, &[], None).server.max_conn, 7, "{args}");
    }
    assert!(serve("--noauth", &[], None).app.noauth);
    assert!(serve("--noauth=1 --port 1", &[], None).app.noauth);
    assert!(!serve("--noauth --noauth=false", &[], None).app.noauth, "the last one counts");
}

#[test]
fn durations_take_a_bare_number_in_the_options_unit_or_a_suffix() {
    let config =
        serve("--shutdown-timeout 7 --rpc-request-timeout 7 --ping-interval 500ms --tcp-keepalive-time 6m", &[], None);
    assert_eq!(config.app.shutdown_timeout, Duration::from_secs(7));
    assert_eq!(config.rpc.request_timeout, Duration::from_millis(7));
    assert_eq!(config.ws.ping_interval, Duration::from_millis(500));
    assert_eq!(config.tcp.keepalive_time, Duration::from_secs(360));
    let hour = serve("", &[], Some("[app]\nshutdown_timeout = \"1h\"\nshutdown_delay = 3\n")).app;
    assert_eq!((hour.shutdown_timeout, hour.shutdown_delay), (Duration::from_secs(3600), Duration::from_secs(3)));
    for bad in ["5x", "-1", "1.5s", "s", "", "99999999999999999999", "9999999h", "1d"] {
        assert!(refusal(&format!("--ping-interval={bad}"), &[], None).contains("--ping-interval"), "{bad}");
    }
}

#[test]
fn sizes_take_bytes_or_a_suffix() {
    for (text, bytes) in
        [("65536", 65536), ("64KiB", 65536), ("64k", 65536), ("2MiB", 2 << 20), ("1gb", 1 << 30), ("0", 0)]
    {
        assert_eq!(serve(&format!("--max-message-size={text}"), &[], None).ws.max_message_size, bytes, "{text}");
    }
    for bad in ["1.5MiB", "64KB!", "-1", "99999999999GiB"] {
        assert!(refusal(&format!("--max-message-size={bad}"), &[], None).contains("--max-message-size"), "{bad}");
    }
}

#[test]
fn booleans_are_strict_and_lists_are_trimmed() {
    for (text, value) in [("true", true), ("T", true), ("1", true), ("FALSE", false), ("f", false), ("0", false)] {
        assert_eq!(serve("", &[("ANYCABLE_NOAUTH", text)], None).app.noauth, value, "{text}");
    }
    let message = refusal("", &[("ANYCABLE_NOAUTH", "yes")], None);
    assert_eq!(message, "--noauth (from env ANYCABLE_NOAUTH) cannot be 'yes': write true or false");
    let config = serve("", &[("ANYCABLE_PATH", "/cable, /other ,"), ("CABLEWAY_METRICS_TAGS", "a:1, b:x:y")], None);
    assert_eq!(config.ws.paths, ["/cable", "/other"]);
    assert_eq!(config.metrics.tags.0, [("a".into(), "1".into()), ("b".into(), "x:y".into())]);
}

#[test]
fn a_file_is_toml_or_yaml_by_its_name_and_says_the_same() {
    let toml = "secret = \"s\"\n[ws]\npaths = [\"/a\", \"/b\"]\n[metrics.tags]\nenv = \"prod\"\n[app]\nenable-native-ping = true\n";
    let yaml =
        "secret: s\nws:\n  paths: [/a, /b]\nmetrics:\n  tags:\n    env: prod\napp:\n  enable_native_ping: true\nrpc:\n";
    let one = read("--config a.toml", &[], Some(("a.toml", toml))).expect("good");
    let other = read("--config-path a.yml", &[], Some(("a.yml", yaml))).expect("good");
    assert_eq!(one.command, other.command);
    let Command::Serve(config) = one.command else { panic!() };
    assert_eq!(config.app.secret, Secret::Key("s".to_owned()));
    assert_eq!(config.ws.paths, ["/a", "/b"]);
    assert_eq!(config.metrics.tags.0, [("env".into(), "prod".into())]);
    assert!(config.ws.native_pings);
}

#[test]
fn lists_in_a_file_beat_the_defaults_of_their_flags() {
    let file = Some("[rpc]\nproxy_headers = [\"X-Request-Id\", \"Cookie\"]\nproxy_cookies = \"a, b\"\n");
    let config = serve("", &[], file);
    assert_eq!(config.rpc.headers, ["x-request-id", "cookie"]);
    assert_eq!(config.rpc.cookies, ["a", "b"]);
    assert_eq!(serve("--headers none", &[], file).rpc.headers, Vec::<String>::new());
    assert_eq!(serve("--headers=", &[], file).rpc.headers, Vec::<String>::new());
}

#[test]
fn the_first_file_found_is_read_and_a_named_one_must_be_there() {
    for path in config::SEARCHED {
        let found = read("", &[], Some((path, "[server]\nport = 7\n"))).expect("good");
        assert_eq!(found.file.as_deref(), Some(Path::new(path)));
    }
    assert_eq!(read("", &[], None).expect("good").file, None);
    let named = read("", &[(config::CONFIG_VARIABLE, "/else.toml")], Some(("/else.toml", "")));
    assert_eq!(named.expect("good").file.as_deref(), Some(Path::new("/else.toml")));
    let skipped = read("--ignore-config-path", &[], Some(("./cableway.toml", "nonsense")));
    assert_eq!(skipped.expect("good").file, None);
    assert!(
        refusal("--config /missing.toml", &[], None).starts_with("cannot read the configuration file /missing.toml")
    );
}

#[test]
fn a_file_that_is_there_but_cannot_be_read_is_an_error_even_if_nobody_named_it() {
    let denied = |_: &Path| Err(io::ErrorKind::PermissionDenied.into());
    let error = config::parse_with([""; 0], &BTreeMap::new(), &denied).expect_err("unreadable");
    assert!(error.to_string().contains("./cableway.toml"), "{error}");
}

#[test]
fn real_files_are_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("my.toml");
    std::fs::write(&path, "[server]\nport = 4321\n").expect("written");
    let invocation = config::parse([format!("--config={}", path.display())], &BTreeMap::new()).expect("good");
    let Command::Serve(config) = invocation.command else { panic!() };
    assert_eq!(config.server.port, 4321);
}

#[test]
fn a_broken_file_names_the_place_and_does_not_quote_the_line() {
    let message = refusal("", &[], Some("[server]\nport = 1\nsecret = \"hunter2\n"));
    assert!(message.contains("./cableway.toml is not valid TOML") && message.contains("line 3"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
    let yaml = read("--config a.yaml", &[], Some(("a.yaml", "a: [1\nb: {"))).expect_err("bad").to_string();
    assert!(yaml.contains("a.yaml is not valid YAML"), "{yaml}");
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    assert_eq!(refusal("--prot 1", &[], None), "unknown option --prot; did you mean --port?");
    assert_eq!(
        refusal("--allowed_orgins=a", &[], None),
        "unknown option --allowed_orgins; did you mean --allowed-origins?"
    );
    assert_eq!(refusal("--xyzzy", &[], None), "unknown option --xyzzy");
    assert_eq!(
        refusal("", &[], Some("[server]\nprot = 1\n")),
        "./cableway.toml: unknown key server.prot; did you mean server.port?"
    );
    assert_eq!(
        refusal("", &[], Some("rpc_host = \"a\"\n")),
        "./cableway.toml: unknown key rpc_host; did you mean rpc.host?"
    );
    assert_eq!(
        refusal("", &[], Some("[metrics]\nhttp = \"/m\"\n")),
        "./cableway.toml: metrics.http is called metrics.http_path; rename it"
    );
    let nested = Some(("./cableway.toml", "[embedded_nats.new]\nurl = \"redis://a\"\n"));
    let warnings = read("", &[], nested).expect("it switches nothing on").warnings.concat();
    assert!(warnings.contains("embedded_nats.new.url") && warnings.contains("nats-server"), "{warnings}");
}

#[test]
fn all_problems_of_a_file_are_named_at_once() {
    let message = refusal("", &[], Some("[server]\nprot = 1\n[app]\npublc = true\n"));
    assert_eq!(message.lines().count(), 2, "{message}");
}

#[test]
fn a_stray_word_is_refused() {
    assert_eq!(refusal("xyzzy", &[], None), "'xyzzy' is not understood here");
    assert_eq!(refusal("deom", &[], None), "'deom' is not understood here; did you mean demo?");
    assert_eq!(refusal("--port 1 more", &[], None), "'more' is not understood here");
    assert_eq!(refusal("--noauth true", &[], None), "'true' is not understood here; did you mean --noauth=true?");
    assert!(refusal("serve demo", &[], None).contains("'demo' is not understood here"));
}

#[test]
fn a_missing_value_is_not_taken_from_the_next_flag() {
    assert_eq!(refusal("--secret --port 80", &[], None), "--secret needs a value; write --secret=VALUE");
    assert_eq!(refusal("--port", &[], None), "--port needs a value; write --port=VALUE");
    assert_eq!(refusal("--config", &[], None), "--config needs a value; write --config=VALUE");
    assert_eq!(serve("--secret -abc-", &[], None).app.secret, Secret::Key("-abc-".to_owned()));
}

#[test]
fn unknown_variables_with_our_prefix_are_reported_and_those_of_kubernetes_understood() {
    let env = [
        ("CABLEWAY_PROT", "1"),
        ("CABLEWAY_PORT", "tcp://10.0.0.1:8080"),
        ("CABLEWAY_SERVICE_HOST", "10.0.0.1"),
        ("CABLEWAY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("ANYCABLE_DISABLE_TELEMETRY", "true"),
    ];
    let warnings = read("", &env, None).expect("good").warnings;
    let about = |word: &str| warnings.iter().filter(|warning| warning.contains(word)).count();
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
    assert_eq!(about("CABLEWAY_PROT is no variable of this server and is not used; did you mean CABLEWAY_PORT?"), 1);
    assert_eq!(about("enableServiceLinks"), 1);
    assert_eq!(about("sends no usage data"), 1);
}

#[test]
fn old_names_work_with_a_warning_and_the_new_name_wins() {
    let invocation = read(
        "--jwt_id_key old --jwt_id_enforce --turbo_rails_key t --cable_ready_key c --http_broadcast_secret b",
        &[],
        None,
    );
    let invocation = invocation.expect("good");
    let Command::Serve(config) = invocation.command else { panic!() };
    let key = |text: &str| Secret::Key(text.to_owned());
    assert_eq!((config.jwt.secret, config.jwt.enforce), (key("old"), true));
    assert_eq!((config.streams.turbo_secret, config.streams.turbo), (key("t"), true));
    assert_eq!((config.streams.cable_ready_secret, config.streams.cable_ready), (key("c"), true));
    assert_eq!(config.broadcast.key, key("b"));
    assert_eq!(invocation.warnings.len(), 5, "{:#?}", invocation.warnings);
    assert!(
        invocation.warnings.iter().any(|warning| warning.contains("--jwt-id-key") && warning.contains("--jwt-secret"))
    );
    let both = serve("--http_broadcast_secret old", &[("CABLEWAY_BROADCAST_KEY", "new")], None);
    assert_eq!(both.broadcast.key, key("new"));
}

#[test]
fn short_words_set_what_they_stand_for() {
    let public = serve("--public", &[], None);
    assert!(public.app.noauth && public.streams.public);
    assert_eq!(serve("--norpc --noauth", &[], None).rpc.implementation, RpcImplementation::None);
    assert_eq!(serve("--debug", &[("CABLEWAY_LOG_LEVEL", "warn")], None).log.level, LogLevel::Debug);
    assert_eq!(serve("--disable_disconnect", &[], None).disconnect.mode, DisconnectMode::Never);
    assert_eq!(serve("--disable_disconnect=false", &[], None).disconnect.mode, DisconnectMode::Auto);
}

#[test]
fn no_rpc_concurrency_means_the_default_and_says_so() {
    let invocation = read("--rpc_concurrency 0", &[], None).expect("good");
    let Command::Serve(config) = invocation.command else { panic!() };
    assert_eq!(config.rpc.concurrency, 28);
    assert_eq!(invocation.warnings, ["--rpc-concurrency 0 means the default, 28"]);
}

#[test]
fn what_cannot_work_together_is_refused_with_what_to_do() {
    for (args, words) in [
        ("--enforce-jwt", "--jwt-secret or --secret"),
        ("--enforce-jwt --secret none", "--jwt-secret or --secret"),
        ("--shutdown-delay 30", "shorter than --shutdown-timeout"),
        ("--pong-timeout 6 --ping-interval 0", "set --ping-interval"),
        ("--tcp-keepalive-time 500ms", "whole seconds"),
        ("--tcp-keepalive-interval 0", "--tcp-keepalive-time 0 turns it off"),
        ("--tcp-keepalive-probes 128", "from 1 to 127"),
        ("--tcp-user-timeout 700h", "24 days"),
        ("--backlog 0", "--backlog"),
        ("--acceptors 5000", "one per core is enough"),
        ("--rpc-impl http", "http:// or https:// URL"),
        ("--rpc-impl grpc --rpc-host http://a", "host:port"),
        ("--rpc-host=", "--norpc"),
        ("--disconnect-rate 0", "--disconnect-mode never"),
        ("--host=", "0.0.0.0"),
        ("--allowed-origins https://a.test/x", "write a.test"),
        ("--allowed-origins=a.test,b*.test", "*.app.example"),
        ("--allowed-origins=a.test:https", "app.example:8443"),
        ("--host http://0.0.0.0", "write --host 0.0.0.0"),
        ("--host 0.0.0.0:8080", "write --host 0.0.0.0 --port 8080"),
        ("--host=\"0.0.0.0\"", "without quotes: 0.0.0.0"),
        ("--proxy-cookies=a;b", "names of cookies"),
        ("--max-head-size=1KiB", "between 8KiB and 1MiB"),
        ("--health-path health", "does not start with `/`"),
        ("--path=/cable,/health", "--path and --health-path are both '/health'"),
        ("--metrics-http /health", "--health-path and --metrics-http"),
        ("--secret s --http-broadcast-path /cable", "--path and --http-broadcast-path"),
        ("--path=/a*b", "not its last character"),
        ("--echo-path /{a}", "plain path"),
        ("--path=", "at least one path"),
        ("--metrics-prefix 1a", "no digit first"),
        ("--metrics-tags abc", "has no colon"),
        ("--ping-timestamp-precision us", "'s' 'ms' 'ns'"),
        ("--disconnect-mode sometimes", "'auto' 'always' 'never'"),
        ("--log-level trace", "'debug' 'info' 'warn' 'error'"),
        ("--log-format xml", "'text' 'json'"),
        ("--port 65536", "at most 65535"),
        ("--jwt-param a:b", "letters, digits"),
    ] {
        let message = refusal(args, &[], None);
        assert!(message.contains(words), "{args}: {message}");
    }
}

#[test]
fn quotes_and_blanks_that_a_container_kept_are_refused_with_what_to_write_instead() {
    for (name, value, words) in [
        ("CABLEWAY_ALLOWED_ORIGINS", "\"app.example\"", "without quotes: app.example"),
        ("CABLEWAY_ALLOWED_ORIGINS", "'app.example,b.example'", "without quotes: app.example"),
        ("CABLEWAY_ALLOWED_ORIGINS", "app.example b.example", "write app.example,b.example"),
        ("ANYCABLE_RPC_HOST", "\"app:50051\"", "without quotes: app:50051"),
        ("ANYCABLE_PATH", "'/cable'", "without quotes: /cable"),
        ("ANYCABLE_METRICS_HTTP", "\"/metrics\"", "without quotes: /metrics"),
        ("ANYCABLE_HEADERS", "cookie origin", "separated by commas"),
        ("ANYCABLE_HOST", "a b", "without blanks"),
        ("ANYCABLE_RPC_HOST", "a b", "without blanks"),
        ("ANYCABLE_PORT", "\"8080\"", "whole number"),
    ] {
        let message = refusal("", &[(name, value)], None);
        assert!(message.contains(words), "{name}={value}: {message}");
    }
    let warnings = read("", &[("CABLEWAY_SECRET", "\"s\"")], None).expect("it can be meant").warnings;
    assert!(matches!(&warnings[..], [only] if only.contains("--secret begins and ends with quotes")), "{warnings:?}");
    for origins in ["app.example", "*", "*.app.example", "app.example:8443", "[::1]:3000", "127.0.0.1", "*example.io"] {
        serve("", &[("CABLEWAY_ALLOWED_ORIGINS", origins)], None);
    }
}

#[test]
fn the_command_may_stand_behind_options() {
    let file = Some(("f.toml", "[server]\nport = 7\n"));
    for args in ["--config f.toml config", "config --config f.toml", "--config=f.toml config --port 7"] {
        let command = read(args, &[], file).expect(args).command;
        assert!(matches!(&command, Command::PrintConfig(text) if text.contains("port = 7")), "{args}: {command:?}");
    }
    assert!(matches!(read("--port 1 demo", &[], None).expect("good").command, Command::Demo(_)));
    assert!(matches!(read("--port 1 help", &[], None).expect("good").command, Command::Help(_)));
}

#[test]
fn services_on_different_ports_may_share_a_path() {
    serve("--metrics-http /health --metrics-port 9100", &[], None);
    serve("--http-broadcast-path /cable", &[], None);
    serve("--path=/cable,/{tenant}/cable,/x/*,/y*", &[], None);
}

#[test]
fn keepalive_that_is_off_needs_no_interval() {
    let tcp = serve("--tcp-keepalive-time 0 --tcp-keepalive-interval 0 --tcp-keepalive-probes 0", &[], None).tcp;
    assert!(tcp.keepalive_time.is_zero());
}

#[test]
fn a_server_that_lets_nobody_in_or_everybody_broadcast_says_so() {
    let warnings = |args: &str| read(args, &[], None).expect("good").warnings.join("\n");
    assert!(warnings("--norpc").contains("nobody will be able to connect"));
    assert_eq!(warnings("--norpc --noauth"), "");
    assert_eq!(warnings("--norpc --secret s"), "");
    assert!(warnings("--turbo-streams").contains("--turbo-streams-secret or --secret"));
    assert!(warnings("--host 0.0.0.0").contains("can broadcast"));
    assert!(warnings("--host 0.0.0.0 --api-port 9000").contains("port 9000 can publish over the API"));
    assert_eq!(warnings("--host 0.0.0.0 --secret s"), "");
    assert_eq!(warnings("--host 127.0.0.1"), "");
}

#[test]
fn reaping_sets_what_concerns_it_and_nobody_has_set() {
    let seconds = |config: &Config| {
        let times = [config.tcp.keepalive_time, config.tcp.user_timeout, config.ws.pong_timeout];
        times.map(|time| time.as_secs())
    };
    let default = Config::default();
    assert_eq!(serve("--reaping default", &[], None), default);
    let aggressive = serve("", &[("CABLEWAY_REAPING", "aggressive")], None);
    assert_eq!((seconds(&aggressive), aggressive.ws.native_pings), ([30, 5, 5], true));
    let relaxed = serve("", &[], Some("reaping = \"relaxed\"\n"));
    assert_eq!((seconds(&relaxed), relaxed.ws.native_pings), ([600, 120, 0], false));
    assert_eq!(relaxed.ws.ping_interval, default.ws.ping_interval, "clients of Rails give up after six seconds");

    // Whoever says something himself has his will, wherever he says it.
    let file = Some("[tcp]\nkeepalive_time = 77\n");
    let mixed = serve("--reaping aggressive --pong-timeout 0", &[("ANYCABLE_ENABLE_NATIVE_PINGS", "false")], file);
    assert_eq!((seconds(&mixed), mixed.ws.native_pings), ([77, 5, 0], false));
    // Without pings there is no pong to wait for.
    assert_eq!(seconds(&serve("--reaping aggressive --ping-interval 0s", &[], None)), [30, 5, 0]);

    assert!(refusal("--reaping often", &[], None).contains("'relaxed' 'default' 'aggressive'"));
}
