//! Presets: sets of options for a platform or a purpose, under the names that AnyCable gives them.
//!
//! A preset only sets what nobody else has set. What it would set up and is not there yet is named in a warning that says
//! what will not work.

use std::collections::BTreeMap;

use super::definition::Unit;
use super::layers::{Layers, Origin};
use super::setting::Setting;

/// The variables by which a machine of the platform is known.
const FLY: [&str; 3] = ["FLY_APP_NAME", "FLY_ALLOC_ID", "FLY_REGION"];
const HEROKU: [&str; 2] = ["HEROKU_APP_ID", "HEROKU_DYNO_ID"];

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
            "broker" => layers.warnings.push(
                "the preset broker is not there yet: this release keeps no history, sessions or presence, so clients that \
                 reconnect miss what was published meanwhile"
                    .to_owned(),
            ),
            "none" => {}
            other => layers.warnings.push(format!("unknown preset '{other}'; known are fly, heroku, broker and none")),
        }
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
