//! What Redis and NATS are to the tests that hold for both.

use crate::client::Client;
use crate::nats_pubsub::Plain;
use crate::nodes::Nodes;
use crate::server::Server;
use crate::servers::{Nats, Redis, RedisStart, until};

/// A server that nodes meet at.
pub trait Engine: Sized {
    /// What `--pubsub` and `--broker` call it.
    const NAME: &'static str;
    /// The option that says where it is.
    const WHERE: &'static str;
    /// What a node says to the others comes back to it.
    const ECHOES: bool;

    /// One that keeps what it has acknowledged through a crash.
    fn begin() -> Self;
    /// Where it is, for clients.
    fn place(&self) -> String;
    /// Ends it as a crash does.
    fn crash(&mut self);
    /// Starts it again where it was, with what it has kept.
    fn rise(&mut self);
    /// Stops it without closing a connection, until [`Engine::thaw`].
    fn freeze(&self);
    /// Lets it go on.
    fn thaw(&self);
    /// Deletes what it has kept; it must not run.
    fn forget(&self);
    /// How many nodes are subscribed to the channel of a stream.
    fn heard(&self, channel: &str) -> usize;
    /// How many channels with names that begin so somebody is subscribed to.
    fn heard_of(&self, beginning: &str) -> usize;
    /// Publishes on a channel as an app or another node does.
    fn publish(&self, channel: &str, payloads: &[&str]);
    /// Waits until sessions wait for their clients.
    fn keeps_sessions(&self);
    /// Waits until so many nodes know of each other.
    fn knows_nodes(&self, nodes: u64);
}

impl Engine for Redis {
    const NAME: &'static str = "redis";
    const WHERE: &'static str = "--redis-url";
    const ECHOES: bool = true;

    fn begin() -> Redis {
        Redis::start_as(RedisStart { keeps: true, ..RedisStart::default() })
    }

    fn place(&self) -> String {
        self.url()
    }

    fn crash(&mut self) {
        self.kill();
    }

    fn rise(&mut self) {
        self.restart();
    }

    fn freeze(&self) {
        Redis::freeze(self);
    }

    fn thaw(&self) {
        self.go_on();
    }

    fn forget(&self) {
        Redis::forget(self);
    }

    fn heard(&self, channel: &str) -> usize {
        let answer = self.cli(&["PUBSUB", "NUMSUB", channel]);
        answer.lines().last().and_then(|count| count.parse().ok()).expect("a number")
    }

    fn heard_of(&self, beginning: &str) -> usize {
        self.cli(&["PUBSUB", "CHANNELS"]).lines().filter(|channel| channel.starts_with(beginning)).count()
    }

    fn publish(&self, channel: &str, payloads: &[&str]) {
        payloads.iter().for_each(|payload| _ = self.cli(&["PUBLISH", channel, payload]));
    }

    fn keeps_sessions(&self) {
        until("sessions are kept", || !self.cli(&["KEYS", "cableway:r:*"]).is_empty());
    }

    fn knows_nodes(&self, nodes: u64) {
        until("nodes are known", || self.cli(&["ZCARD", "cableway:nodes"]) == nodes.to_string());
    }
}

impl Engine for Nats {
    const NAME: &'static str = "nats";
    const WHERE: &'static str = "--nats-servers";
    const ECHOES: bool = false;

    fn begin() -> Nats {
        Nats::start()
    }

    fn place(&self) -> String {
        self.url()
    }

    fn crash(&mut self) {
        self.kill();
    }

    fn rise(&mut self) {
        self.restart();
    }

    fn freeze(&self) {
        Nats::freeze(self);
    }

    fn thaw(&self) {
        self.go_on();
    }

    fn forget(&self) {
        Nats::forget(self);
    }

    fn heard(&self, channel: &str) -> usize {
        self.subscriptions().iter().filter(|one| *one == channel).count()
    }

    fn heard_of(&self, beginning: &str) -> usize {
        self.subscriptions().iter().filter(|subject| subject.starts_with(beginning)).count()
    }

    fn publish(&self, channel: &str, payloads: &[&str]) {
        let mut app = Plain::at(self);
        payloads.iter().for_each(|payload| app.publish(channel, payload));
        app.flush();
    }

    fn keeps_sessions(&self) {
        until("sessions are kept", || self.store("cableway_sessions").0 > 0);
    }

    /// Each has said twice that it lives.
    fn knows_nodes(&self, nodes: u64) {
        until("nodes know each other", || self.store("cableway_nodes").1 >= 2 * nodes);
    }
}

/// What of the engine nodes use.
#[derive(Clone, Copy, PartialEq)]
pub enum Use {
    PubSub,
    /// The broker, and pub/sub with it.
    Broker,
}

impl Use {
    /// The options that say so.
    pub fn options<E: Engine>(self, engine: &E) -> Vec<String> {
        let kind = match self {
            Use::PubSub => "--pubsub",
            Use::Broker => "--broker",
        };
        [E::WHERE, &engine.place(), kind, E::NAME, "--broadcast-adapter", "http", "--noauth"].map(str::to_owned).into()
    }

    /// Nodes with these options, whose links are up.
    pub fn nodes<E: Engine>(self, engine: &E, count: usize, more: &[&str]) -> Nodes {
        let options = self.options(engine);
        let options: Vec<&str> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let nodes = Nodes::start(count, &options);
        nodes.0.iter().for_each(|node| self.links_are::<E>(node, true));
        nodes
    }

    /// Waits until all links of a node are up, or away.
    pub fn links_are<E: Engine>(self, node: &Server, up: bool) {
        let links: &[&str] = if self == Use::Broker { &["pubsub", "broker"] } else { &["pubsub"] };
        node.metrics_until("its links", |metrics| {
            let of = |link: &&str| metrics.get(&format!("link_up{{link=\"{}_{link}\"}}", E::NAME));
            links.iter().all(|link| of(link) == u64::from(up))
        });
    }

    /// Ends the engine as a crash does, and waits until these nodes know: what is up before that says nothing.
    pub fn crash<E: Engine>(self, engine: &mut E, nodes: &[Server]) {
        engine.crash();
        for node in nodes {
            // The broker's link learns of it when it is asked something, such as how far a stream is that is new here.
            drop(Client::following(node.address(), "new"));
            self.links_are::<E>(node, false);
        }
    }
}

/// Waits until so many nodes are subscribed to a channel.
pub fn is_heard<E: Engine>(engine: &E, channel: &str, nodes: usize) {
    until("subscribed", || engine.heard(channel) == nodes);
}

/// Makes a test for each engine of each of these scenarios.
macro_rules! for_both {
    ($($scenario:ident,)*) => {
        mod redis {
            $(
                #[test]
                #[ignore = "needs redis-server"]
                fn $scenario() {
                    super::$scenario::<crate::servers::Redis>();
                }
            )*
        }
        mod nats {
            $(
                #[test]
                #[ignore = "needs nats-server"]
                fn $scenario() {
                    super::$scenario::<crate::servers::Nats>();
                }
            )*
        }
    };
}
pub(crate) use for_both;
