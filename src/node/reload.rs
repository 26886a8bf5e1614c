//! Takes a new configuration over while clients are connected. Nobody is closed by that.
//!
//! Everything that can fail is made first, so a configuration that is refused has changed nothing. Then each part gets its new
//! settings whole: a shard by a message, ordinary HTTP by new routes. What is under way ends under the settings it began with.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::broadcast::Broadcast;
use crate::config::{Config, ConfigError, Reloaded, Secrets};
use crate::http::Routes;
use crate::os::facts::Facts;
use crate::shard::{self, Message};

use super::capacity::Capacity;
use super::{Node, StartError, settings};

/// What the settings of parts are made of, beside the configuration.
pub(super) struct MadeOf {
    /// As they were at the start: what is in use since then is in use by this server.
    pub machine: Facts,
    pub shards: usize,
    pub sockets_max: usize,
    pub settings: Arc<shard::Settings>,
    pub broadcast: Arc<Broadcast>,
    /// Where the program was when this process began.
    pub program: io::Result<PathBuf>,
    /// A supervisor has opened the main port.
    pub main_was_passed: bool,
    /// Environment variables for a process that takes over, beside those of this one.
    pub for_successors: Vec<(&'static str, String)>,
}

/// Why a configuration is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It cannot be together with what needs a restart.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A part refuses it.
    #[error(transparent)]
    Setting(#[from] StartError),
}

impl Node {
    /// Takes over what can be, and says what was and what needs a restart. Not for a node with extra routes.
    ///
    /// # Errors
    /// See [`ReloadError`]; nothing has changed then.
    pub fn reload(&mut self, new: &Config) -> Result<Reloaded, ReloadError> {
        let reloaded = Reloaded::from(&self.config, new)?;
        let config = Arc::new(reloaded.config.clone());
        let secrets = Secrets::resolve(&config);
        let MadeOf { machine, shards, sockets_max, settings: before, broadcast, .. } = &self.made_of;
        let mut settings = settings::shard(&config, &secrets, *shards, *sockets_max, before.listeners.len())?;
        // The followers of streams are known under these names.
        settings.stream_hasher = before.stream_hasher.clone();
        // Clients have been told theirs.
        settings.resume_tokens.clone_from(&before.resume_tokens);
        // It is the process that is one of several, or not.
        settings.session.cluster = before.session.cluster;
        let settings = Arc::new(settings);
        let ports = settings::ports(&config, &secrets, broadcast, &self.observer, None);
        self.backend.set_http_secret(secrets.http_rpc.as_deref()).map_err(StartError::from)?;

        // Room of one of several processes is dealt out by its parent, which knows what the others have.
        if !self.is_child {
            self.observer.parts.counts.set_open_max(Capacity::find(&config, machine, *shards).clients);
        }
        self.observer.parts.inboxes.iter().for_each(|inbox| inbox.put(Message::Settings(Arc::clone(&settings))));
        self.main_http.set_routes(Routes { websockets: Some(settings.handshake.clone()), ..ports.main });
        // The same ports in the same order: no option that says where something is can change.
        for (port, (_, routes)) in self.http_ports.iter().zip(ports.others) {
            port.server.set_routes(routes);
        }
        self.observer.set_config(Arc::clone(&config));
        self.made_of.settings = settings;
        self.config = config;
        Ok(reloaded)
    }
}
