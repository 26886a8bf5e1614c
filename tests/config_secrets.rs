//! Which key protects what: the precedence of secrets, derived keys, and what depends on them.

use std::collections::BTreeMap;

use cableway::config::{self, Command, Config, ListenOn, Secrets};

fn serve(args: &str) -> Config {
    let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    match config::parse_with(args.split_whitespace(), &BTreeMap::new(), &no_file).expect("good").command {
        Command::Serve(config) => *config,
        other => panic!("{other:?}"),
    }
}

fn secrets(args: &str) -> Secrets {
    Secrets::resolve(&serve(args))
}

/// `contracts/broadcast.md` section 5.
const BROADCAST: &str = "83149057b2f956b5f862c0ef5ad6a24d3677dc076d77e8999c24f77ca17d7a20";
const RPC: &str = "4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d";
const API: &str = "e3b70326c38efad4042c57f65cc19e4ce2925e5aea5ea0c98dca248b837c17de";

#[test]
fn the_app_secret_derives_three_keys_and_is_itself_the_key_of_tokens_and_streams() {
    let secrets = secrets("--secret s3cr3t --turbo-streams --cable-ready");
    assert_eq!(secrets.broadcast.as_deref(), Some(BROADCAST));
    assert_eq!(secrets.http_rpc.as_deref(), Some(RPC));
    assert_eq!(secrets.api.as_deref(), Some(API));
    assert!(secrets.broadcast_derived && secrets.http_rpc_derived && secrets.api_on);
    for own in [secrets.jwt, secrets.streams, secrets.turbo, secrets.cable_ready] {
        assert_eq!(own.as_deref(), Some("s3cr3t"));
    }
}

/// `printf rpc-cable | openssl dgst -sha256 -hmac qwerty`
#[test]
fn a_derived_key_is_that_of_openssl() {
    let derived = secrets("--secret qwerty").http_rpc;
    assert_eq!(derived.as_deref(), Some("57c40610d142fe7d7999be4e23dfba4f42c3c542e1f278063e8e3b6a30b0c2bd"));
}

#[test]
fn without_any_secret_there_is_no_key_and_no_api() {
    assert_eq!(secrets("--turbo-streams --cable-ready"), Secrets::default());
}

#[test]
fn a_secret_of_none_means_no_secret_for_everything_that_would_fall_back_to_it() {
    assert_eq!(secrets("--secret none"), Secrets::default());
    assert_eq!(serve("--secret none").broadcast_on(), serve("").broadcast_on());
}

#[test]
fn own_keys_win_over_the_app_secret_and_none_switches_one_thing_off() {
    let own =
        secrets("--secret a --jwt-secret j --streams-secret s --broadcast-key b --http-rpc-secret h --api-secret p");
    assert_eq!(own.jwt.as_deref(), Some("j"));
    assert_eq!(own.streams.as_deref(), Some("s"));
    assert_eq!(own.broadcast.as_deref(), Some("b"));
    assert_eq!(own.http_rpc.as_deref(), Some("h"));
    assert_eq!(own.api.as_deref(), Some("p"));
    assert!(!own.broadcast_derived && !own.http_rpc_derived);
    let off = secrets(
        "--secret a --jwt-secret none --streams-secret none --broadcast-key none --http-rpc-secret none --api-secret none",
    );
    assert_eq!(off, Secrets::default());
}

#[test]
fn turbo_and_cable_ready_fall_back_to_the_streams_secret_and_only_when_they_are_on() {
    let both = secrets("--secret a --streams-secret s --turbo-streams --cable-ready --cable-ready-secret c");
    assert_eq!((both.turbo.as_deref(), both.cable_ready.as_deref()), (Some("s"), Some("c")));
    assert_eq!(secrets("--secret a --turbo-streams-secret t").turbo, None);
    assert_eq!(secrets("--secret a --streams-secret none --turbo-streams").turbo, None);
    assert_eq!(secrets("--turbo_rails_key t").turbo.as_deref(), Some("t"));
}

#[test]
fn the_api_is_on_with_a_secret_a_port_or_in_public_mode() {
    assert!(!secrets("").api_on);
    for args in ["--secret a", "--api-secret p", "--api-port 8091", "--public"] {
        assert!(secrets(args).api_on, "{args}");
    }
    assert_eq!(secrets("--public").api, None);
    assert_eq!(secrets("--public --secret s3cr3t").api.as_deref(), Some(API));
}

#[test]
fn an_api_without_a_key_is_refused_beside_broadcasts_that_need_one() {
    for (args, is_refused) in [
        ("--broadcast-key k --api-port 8091", true),
        ("--broadcast-key k --api-port 8091 --api-secret s", false),
        ("--broadcast-key k --api-port 8091 --secret s", false),
        ("--broadcast-key k --api-port 8091 --public", false),
        ("--broadcast-key k", false),
        ("--api-port 8091", false),
    ] {
        let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let read = config::parse_with(args.split(' '), &Default::default(), &no_file);
        match read {
            Err(error) => assert!(is_refused && error.to_string().contains("--api-secret"), "{args}: {error}"),
            Ok(_) => assert!(!is_refused, "{args}"),
        }
    }
}

#[test]
fn broadcasts_are_on_the_main_port_only_behind_a_key_or_when_asked_for() {
    let own = |port| ListenOn::Own { host: "localhost".to_owned(), port };
    assert_eq!(serve("").broadcast_on(), own(8090));
    assert_eq!(serve("--secret a").broadcast_on(), ListenOn::Main);
    assert_eq!(serve("--broadcast-key b").broadcast_on(), ListenOn::Main);
    assert_eq!(serve("--secret a --broadcast-key none").broadcast_on(), own(8090));
    assert_eq!(serve("--secret a --http-broadcast-port 8091").broadcast_on(), own(8091));
    assert_eq!(serve("--http-broadcast-port 8080").broadcast_on(), ListenOn::Main);
    assert_eq!(serve("--port 0 --secret a").broadcast_on(), ListenOn::Main);
}

#[test]
fn public_mode_takes_the_key_away_and_leaves_the_port() {
    assert_eq!(secrets("--public --secret a --broadcast-key b").broadcast, None);
    assert_eq!(serve("--public --secret a").broadcast_on(), ListenOn::Main);
    assert_ne!(serve("--public").broadcast_on(), ListenOn::Main);
}

#[test]
fn metrics_and_api_share_the_main_listener_unless_told_otherwise() {
    assert_eq!(serve("").metrics_on(), ListenOn::Main);
    assert_eq!(serve("--metrics-port 8080 --api-port 8080").metrics_on(), ListenOn::Main);
    assert_eq!(serve("--metrics-host 127.0.0.1").metrics_on(), ListenOn::Main);
    let own = serve("--metrics-port 9100 --metrics-host 0.0.0.0 --api-port 9101");
    assert_eq!(own.metrics_on(), ListenOn::Own { host: "0.0.0.0".to_owned(), port: 9100 });
    assert_eq!(own.api_on(), ListenOn::Own { host: "localhost".to_owned(), port: 9101 });
}

#[test]
fn the_address_decides_how_calls_travel() {
    use cableway::config::RpcImplementation::{Grpc, Http, None};
    assert_eq!(serve("").rpc_implementation(), Grpc);
    assert_eq!(serve("--rpc-host https://app.test/_anycable").rpc_implementation(), Http);
    assert_eq!(serve("--rpc-host dns:///app:1 --rpc-impl grpc").rpc_implementation(), Grpc);
    assert_eq!(serve("--norpc --noauth --rpc-host http://a").rpc_implementation(), None);
}

#[test]
fn the_time_limit_of_a_request_to_the_app_over_http_has_an_option_of_its_own() {
    let millis = |args: &str| serve(args).rpc_request_timeout().map(|timeout| timeout.as_millis());
    assert_eq!(millis(""), None);
    assert_eq!(millis("--rpc-request-timeout 700"), Some(700));
    assert_eq!(millis("--rpc-host http://a"), None);
    assert_eq!(millis("--http-rpc-timeout 50"), None);
    assert_eq!(millis("--rpc-host http://a --rpc-request-timeout 700"), Some(700));
    assert_eq!(millis("--rpc-host http://a --rpc-request-timeout 700 --http-rpc-timeout 50"), Some(50));
}
