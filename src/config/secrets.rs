//! Which key protects what.
//!
//! Sources: `contracts/jwt-and-signed-streams.md` section 3, `contracts/broadcast.md` sections 2, 4 and 5,
//! `contracts/rpc-http.md`. One thing differs from AnyCable: `none` as the app secret means "no secret" for
//! everything that would fall back to it, while AnyCable derives keys from the word.

use std::fmt;

use super::{Config, Secret};
use crate::model;

/// The keys in force. `None`: there is no such key, and what that means stands beside each field.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secrets {
    /// Key of tokens. `None`: tokens are not read.
    pub jwt: Option<String>,
    /// Key of signed stream names. `None`: every signed name is refused.
    pub streams: Option<String>,
    /// Key of Turbo's stream names. `None`: the channel is the app's.
    pub turbo: Option<String>,
    /// Key of CableReady's stream names. `None`: the channel is the app's.
    pub cable_ready: Option<String>,
    /// Bearer key of HTTP broadcasts. `None`: anybody may broadcast.
    pub broadcast: Option<String>,
    /// Whether the broadcast key was derived from the app secret (the boot log says so).
    pub broadcast_derived: bool,
    /// Bearer key sent with HTTP RPC. `None`: none is sent.
    pub http_rpc: Option<String>,
    /// Whether the HTTP RPC key was derived from the app secret.
    pub http_rpc_derived: bool,
    /// Bearer key of the API. `None` while [`Secrets::api_on`]: anybody may use it.
    pub api: Option<String>,
    /// Key of the admin port. `None`: everybody on this machine may ask there.
    pub admin: Option<String>,
    /// Whether the API is there at all.
    pub api_on: bool,
}

impl Secrets {
    /// Works out every key.
    pub fn resolve(config: &Config) -> Secrets {
        let app = &config.app.secret;
        let key = |secret: Secret| secret.key().map(str::to_owned);
        let derived = |own: &Secret, phrase: &str| match own {
            // `contracts/broadcast.md` section 5.
            Secret::Unset => {
                let key = app.key().and_then(model::Secret::new).map(|app| app.hex_mac(phrase));
                let is_derived = key.is_some();
                (key, is_derived)
            }
            Secret::Off => (None, false),
            Secret::Key(key) => (Some(key.clone()), false),
        };
        let streams = config.streams.secret.or(app);
        let turbo = config.streams.turbo_secret.or(&streams);
        let cable_ready = config.streams.cable_ready_secret.or(&streams);
        let (mut broadcast, mut broadcast_derived) = derived(&config.broadcast.key, "broadcast-cable");
        if config.app.public {
            (broadcast, broadcast_derived) = (None, false);
        }
        let (http_rpc, http_rpc_derived) = derived(&config.rpc.secret, "rpc-cable");
        let (api, _) = derived(&config.api.secret, "api-cable");
        let api_wanted = api.is_some() || config.api.port != 0 || config.app.public;
        Secrets {
            admin: key(config.admin.key.clone()),
            jwt: key(config.jwt.secret.or(app)),
            turbo: key(turbo).filter(|_| config.streams.turbo),
            cable_ready: key(cable_ready).filter(|_| config.streams.cable_ready),
            streams: key(streams),
            broadcast,
            broadcast_derived,
            http_rpc,
            http_rpc_derived,
            api_on: api_wanted && config.api.secret != Secret::Off,
            api,
        }
    }
}

impl fmt::Debug for Secrets {
    /// Says which keys there are, never what they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |key: &Option<String>| key.is_some();
        f.debug_struct("Secrets")
            .field("jwt", &set(&self.jwt))
            .field("streams", &set(&self.streams))
            .field("turbo", &set(&self.turbo))
            .field("cable_ready", &set(&self.cable_ready))
            .field("broadcast", &set(&self.broadcast))
            .field("http_rpc", &set(&self.http_rpc))
            .field("api", &set(&self.api))
            .field("admin", &set(&self.admin))
            .field("api_on", &self.api_on)
            .finish()
    }
}
