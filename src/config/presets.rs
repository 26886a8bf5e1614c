//! Presets: sets of options for a platform or a purpose, under the names that AnyCable gives them.
//!
//! A preset only sets what nobody else has set. What it would set up and is not there yet is named in a warning that says
//! what will not work.

use std::collections::BTreeMap;
use std::time::Duration;

use super::definition::Unit;
use super::layers::{Layers, Origin};
use super::setting::{Reaping, Setting};

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
            "broker" => layers.put_weakly("broker", "memory".to_owned(), Origin::Preset("broker")),
            "none" => {}
            other => layers.warnings.push(format!("unknown preset '{other}'; known are fly, heroku, broker and none")),
        }
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
    layers.warnings.push(
        "the preset fly sets up no cluster yet: each machine delivers only what is published to itself, so run one machine"
            .to_owned(),
    );
}
