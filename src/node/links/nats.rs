//! What is kept over links to NATS.

use std::sync::Arc;

use crate::broadcast::NatsSource;
use crate::broker::{NatsBrokerSettings, NatsStore, RemoteBroker};
use crate::cluster::NatsMedium;
use crate::config::{BroadcastAdapter, BrokerKind, Config, PubSub};
use crate::link::nats::{Names, Servers, Settings};
use crate::link::tls::{self, TlsSettings};
use crate::node::StartError;

use super::{HandedLinks, Links, until_stopped};

impl Links {
    pub(super) fn add_nats(&mut self, config: &Config, handed: &mut HandedLinks) -> Result<(), StartError> {
        // Each link has its own: what one has learned of other servers holds for its connection.
        let settings = settings(config)?;
        let servers = || Arc::new(Servers::new(settings.clone()));
        let advice = format!("NATS at {} (--nats-servers)", servers().addresses());
        if config.pubsub() == PubSub::Nats {
            let cluster = &config.cluster;
            let commands = format!("{}{}", cluster.prefix, cluster.nats_channel);
            self.medium = Some(Box::new(NatsMedium {
                servers: servers(),
                state: self.state("nats_pubsub", advice.clone()),
                names: Names::new(&cluster.prefix, &[&commands, &config.broadcast.nats_channel]),
                commands,
            }));
        }
        if config.broker.kind == BrokerKind::Nats {
            let broker = NatsBrokerSettings {
                prefix: config.broker.prefix.clone(),
                history_limit: config.broker.history_limit,
                history_ttl: config.broker.history_ttl,
                sessions_ttl: config.broker.sessions_ttl,
            };
            let (node, state) = (handed.node(), self.state("nats_broker", advice.clone()));
            let store = NatsStore::new(servers(), state, broker, node);
            self.store = Some(Box::new(move |settings, outlet| {
                let (broker, running) = RemoteBroker::new(store, settings, node, outlet);
                (broker, Box::pin(running.run()))
            }));
        }
        if config.broadcast.has(BroadcastAdapter::Nats) {
            let source = NatsSource {
                servers: servers(),
                state: self.state("nats", advice),
                subject: config.broadcast.nats_channel.clone(),
                fanout: handed.fanout("nats"),
            };
            self.sources.push(Box::new(|broadcast, stop| Box::pin(until_stopped(source.run(broadcast), stop))));
        }
        Ok(())
    }
}

fn settings(config: &Config) -> Result<Settings, StartError> {
    let nats = &config.nats;
    let named = |path: &String| (!path.is_empty()).then(|| path.clone());
    let files = TlsSettings {
        verify: true,
        root_ca: named(&nats.tls_ca),
        client: named(&nats.tls_client_cert).zip(named(&nats.tls_client_key)),
    };
    let is_wanted = nats.servers.0.iter().any(|url| url.tls) || files.root_ca.is_some() || files.client.is_some();
    let tls = match tls::client_config(&files) {
        Ok(tls) => Some(Arc::new(tls)),
        // A server may want it all the same, and says so then.
        Err(_) if !is_wanted => None,
        Err(error) => return Err(StartError::Setting(format!("TLS to NATS: {error}"))),
    };
    Ok(Settings { servers: nats.servers.0.clone(), in_order: nats.dont_randomize, tls })
}
