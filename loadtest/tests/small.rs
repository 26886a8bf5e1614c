//! Every comparison in seconds, the yardstick against itself: both sides must agree within noise, and nothing may be
//! lost. Limits are not checked here, since a debug build on a busy machine promises nothing.

use std::path::PathBuf;

use cableway_loadtest::bench::{self, Figure, Name, Options};

fn small() -> Options {
    Options {
        server: None,
        server_args: Vec::new(),
        connections: Some(300),
        rounds: Some(1),
        repeat: Some(5),
        seconds: 1.5,
        ping_interval: 1,
        settle: 0.1,
        at_once: 32,
        backlog: 4096,
        acceptors: None,
        rpc_concurrency: 28,
        medium: bench::Medium::Redis,
        yardstick: Some(PathBuf::from(env!("CARGO_BIN_EXE_cableway-loadtest"))),
    }
}

fn figures(name: Name, options: &Options) -> Vec<Figure> {
    let mut figures = Vec::new();
    bench::run(name, options, &mut |figure| figures.push(figure)).unwrap();
    assert!(!figures.is_empty());
    figures
}

#[test]
fn handshakes_cost_cpu_on_both_sides() {
    let figures = figures(Name::Handshake, &small());
    assert!(figures[0].server > 0.0 && figures[0].bare.unwrap() > 0.0);
    assert!(figures[1].name.ends_with("one thread") && figures[1].bare.unwrap() > 0.0);
}

#[test]
fn everybody_is_back_after_a_storm() {
    let figures = figures(Name::Storm, &small());
    assert!(figures[0].server > 0.0);
    assert_eq!(figures[2].server, 0.0, "no segment is sent twice");
}

#[test]
fn a_spike_within_the_queue_loses_none() {
    assert_eq!(figures(Name::Spike, &small())[0].server, 0.0);
}

#[test]
fn a_publication_reaches_everybody_once_and_in_order() {
    assert!(figures(Name::Fanout, &small())[0].server > 0.0);
}

#[test]
fn a_publication_reaches_its_room_and_nobody_else() {
    assert!(figures(Name::Rooms, &small())[0].server > 0.0);
}

#[test]
fn a_publication_to_ten_subscribers_wakes_ten_shards() {
    let figures = figures(Name::Publish, &small());
    let handovers = figures.iter().find(|figure| figure.name.contains("hand-overs")).unwrap();
    assert!((8.0..15.0).contains(&handovers.server), "of 64 shards: {}", handovers.line());
}

#[test]
fn a_server_that_is_compared_with_itself_must_be_given() {
    for name in [Name::PublishStored, Name::FanoutStored, Name::History, Name::Restore, Name::Resumable] {
        let error = bench::run(name, &small(), &mut |figure| panic!("{}", figure.line())).unwrap_err();
        assert!(format!("{error:#}").contains("--server"), "{error:#}");
    }
}

#[test]
fn heartbeats_come_at_the_rate_asked_for() {
    let figures = figures(Name::Idle, &small());
    let rate = figures.iter().find(|figure| figure.name.contains("heartbeats received")).unwrap().server;
    assert!((250.0..350.0).contains(&rate), "{rate} a second from 300 connections, one a second each");
}

#[test]
fn a_connection_costs_cpu_with_everything_on_and_with_everything_off() {
    let figures = figures(Name::IdleAll, &small());
    assert_eq!(figures.len(), 3);
    assert!(figures.iter().all(|figure| figure.server > 0.0 && figure.bare.is_some_and(|bare| bare > 0.0)));
}

#[test]
fn large_messages_leave_nothing_behind() {
    let figures = figures(Name::Memory, &Options { connections: Some(64), ..small() });
    assert_eq!(figures.len(), 16, "four variants, four figures each");
}

#[test]
fn the_app_answers_every_call_of_the_bare_client_and_of_the_relay() {
    let options = Options { connections: Some(10), ..small() };
    assert!(figures(Name::Commands, &options)[0].server > 0.0, "through gRPC");
    assert!(figures(Name::CommandsHttp, &options)[0].server > 0.0, "through HTTP");
}
