//! Presets: sets of options for a platform or a purpose, under the names that AnyCable gives them.
//!
//! A preset only sets what nobody else has set. Those of AnyCable that would embed a NATS server name in a warning what to
//! run instead. Sources: `contracts/pubsub-cluster.md` sections 2 and 7.

use std::collections::BTreeMap;
use std::time::Duration;

use super::definition::Unit;
use super::layers::{Layers, Origin};
use super::setting::{Input, NatsServers, Reaping, RedisServers, SentinelServers, Setting};
use super::{Nats, Redis};

/// The variables by which a machine of the platform is known.
const FLY: [&str; 3] = ["FLY_APP_NAME", "FLY_ALLOC_ID", "FLY_REGION"];
const HEROKU: [&str; 2] = ["HEROKU_APP_ID", "HEROKU_DYNO_ID"];

/// What `--reaping relaxed` sets: a client may lose its network for two minutes, and a slow one is given time. Pings stay as
/// they are, for clients of Rails give up after six seconds without one.
const RELAXED: &[(&str, &str)] = &[
    ("tcp-keepalive-time", "600s"),
    ("tcp-keepalive-interval", "30s"),
    ("tcp-keepalive-probes", "6"),
    ("tcp-user-timeout", "120s"),
    ("ws-write-timeout", "10s"),
    ("ws-message-timeout", "180s"),
    ("handshake-timeout", "30s"),
];

/// What `--reaping aggressive` sets. `node::dead_peers` tests that it keeps what its help says.
const AGGRESSIVE: &[(&str, &str)] = &[
    ("tcp-keepalive-time", "30s"),
    ("tcp-keepalive-interval", "5s"),
    ("tcp-keepalive-probes", "4"),
    ("tcp-user-timeout", "5s"),
    ("ping-interval", "3s"),
    ("ws-message-timeout", "20s"),
    ("handshake-timeout", "5s"),
];

/// What it sets beside, where clients are pinged.
const AGGRESSIVE_PONGS: &[(&str, &str)] = &[("pong-timeout", "5s"), ("enable-native-pings", "true")];

/// Applies the presets that were asked for, or those of the platform this seems to be.
pub(super) fn apply(layers: &mut Layers, env: &BTreeMap<String, String>) {
    // What is no list is found wrong when the option itself is read.
    let asked =
        layers.given("presets").map(|input| <Vec<String> as Setting>::parse(input, Unit::None).unwrap_or_default());
    let presets = asked.filter(|asked| !asked.is_empty()).unwrap_or_else(|| {
        let found = found(env);
        for preset in &found {
            layers.notes.push(format!("preset {preset}: found by the environment of this machine"));
        }
        found
    });
    for preset in presets {
        match preset.as_str() {
            "fly" => fly(layers, env),
            "heroku" => all_addresses(layers, "heroku"),
            "broker" => broker(layers),
            "none" => {}
            other => layers.warnings.push(format!("unknown preset '{other}'; known are fly, heroku, broker and none")),
        }
    }
}

/// Turns broadcasts over Redis on where it is said that there is a Redis, as AnyCable does everywhere: without that, every
/// machine without a Redis would be told again and again that there is none.
pub(super) fn broadcasts(layers: &mut Layers) {
    let is_given = |option: &&str| layers.given(option).is_some_and(|input| *input != Input::One(String::new()));
    let given = ["redis-url", "redis-sentinels"].into_iter().find(is_given);
    if let Some(option) = given {
        layers.put_weakly("broadcast-adapter", "http,redis".to_owned(), Origin::Implied(option));
    }
}

/// A server that nodes can meet at, as far as the layers say. The same rule as [`Redis::is_given`] and [`Nats::is_given`].
fn meeting_place(layers: &Layers) -> Option<&'static str> {
    fn read<T: Setting>(layers: &Layers, option: &str) -> Option<T> {
        // What is no URL is found wrong when the option itself is read.
        layers.given(option).and_then(|input: &Input| T::parse(input, Unit::None).ok())
    }
    let mut redis = Redis::default();
    redis.urls = read::<RedisServers>(layers, "redis-url").unwrap_or(redis.urls);
    redis.sentinels = read::<SentinelServers>(layers, "redis-sentinels").unwrap_or(redis.sentinels);
    let mut nats = Nats::default();
    nats.servers = read::<NatsServers>(layers, "nats-servers").unwrap_or(nats.servers);
    if redis.is_given() { Some("redis") } else { nats.is_given().then_some("nats") }
}

/// History for all nodes where there is something they can meet at, else for this one.
fn broker(layers: &mut Layers) {
    let place = meeting_place(layers);
    let sets: &[(&str, &str)] = match place {
        Some("redis") => &[("broker", "redis"), ("broadcast-adapter", "http,redisx,redis"), ("pubsub", "redis")],
        Some(_) => &[("broker", "nats"), ("broadcast-adapter", "http,nats"), ("pubsub", "nats")],
        None => &[("broker", "memory")],
    };
    for (option, value) in sets {
        layers.put_weakly(option, (*value).to_owned(), Origin::Preset("broker"));
    }
}

/// Sets what `--reaping` stands for.
pub(super) fn reaping(layers: &mut Layers) {
    // What is no word of it is found wrong when the option itself is read.
    let asked = layers.given("reaping").and_then(|input| Reaping::parse(input, Unit::None).ok());
    let no_pings = layers
        .given("ping-interval")
        .and_then(|input| Duration::parse(input, Unit::Seconds).ok())
        .is_some_and(|interval| interval.is_zero());
    let (origin, sets): (_, &[&[_]]) = match asked.unwrap_or_default() {
        Reaping::Default => return,
        Reaping::Relaxed => (Origin::Implied("reaping relaxed"), &[RELAXED]),
        Reaping::Aggressive if no_pings => (Origin::Implied("reaping aggressive"), &[AGGRESSIVE]),
        Reaping::Aggressive => (Origin::Implied("reaping aggressive"), &[AGGRESSIVE, AGGRESSIVE_PONGS]),
    };
    for (option, value) in sets.iter().copied().flatten() {
        layers.put_weakly(option, (*value).to_owned(), origin.clone());
    }
}

/// The presets of the machine this runs on.
fn found(env: &BTreeMap<String, String>) -> Vec<String> {
    let has = |names: &[&str]| names.iter().all(|name| env.contains_key(*name));
    let platforms = [("fly", has(&FLY)), ("heroku", has(&HEROKU))];
    platforms.into_iter().filter(|(_, is_it)| *is_it).map(|(name, _)| name.to_owned()).collect()
}

fn all_addresses(layers: &mut Layers, preset: &'static str) {
    layers.put_weakly("host", "0.0.0.0".to_owned(), Origin::Preset(preset));
}

fn fly(layers: &mut Layers, env: &BTreeMap<String, String>) {
    all_addresses(layers, "fly");
    if let (Some(region), Some(app)) = (env.get("FLY_REGION"), env.get("ANYCABLE_FLY_RPC_APP_NAME")) {
        let host = format!("dns:///{region}.{app}.internal:50051");
        layers.put_weakly("rpc-host", host, Origin::Preset("fly"));
    }
    match meeting_place(layers) {
        Some("redis") => layers.put_weakly("pubsub", "redis".to_owned(), Origin::Preset("fly")),
        Some(_) => {
            layers.put_weakly("pubsub", "nats".to_owned(), Origin::Preset("fly"));
            layers.put_weakly("broadcast-adapter", "http,nats".to_owned(), Origin::Preset("fly"));
        }
        None if layers.given("pubsub").is_some() => {}
        None => layers.warnings.push(
            "the preset fly of AnyCable embeds a NATS server, which this one cannot: run nats-server as an app of its own and \
             set --nats-servers, or set --redis-url; until then each machine delivers only what is published to itself, so \
             run one machine"
                .to_owned(),
        ),
    }
}
