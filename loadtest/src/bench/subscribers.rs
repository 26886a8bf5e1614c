//! Clients that follow streams, and a publisher whose every message must reach them once and in order.

use std::time::Duration;

use anyhow::ensure;

use super::{OPENING_WINDOW, Running, TIMEOUT};
use crate::clock::now_ns;
use crate::engine::{Collected, Engine, Goodbye, Pace};
use crate::protocol::{self, Protocol, json_string};
use crate::publish::{Credentials, Publisher};
use crate::template::Template;

/// Length of a publication's data: a chat message.
const DATA_BYTES: usize = 100;

/// After the last message, for a copy too many to come.
const LINGER: Duration = Duration::from_millis(50);

/// Subscribers of some streams, as many of each, and who publishes to these.
pub(super) struct Subscribers {
    /// The clients.
    pub engine: Engine,
    publisher: Publisher,
    connections: u32,
    streams: u32,
    /// To the yardstick, a message is posted as its receivers get it.
    bare: bool,
    /// The stream of a client, and the identifier under which the client reads it.
    stream: Template,
    identifier: Template,
    /// Number of the next message of each stream.
    sequence: u32,
}

impl Subscribers {
    /// Prepares them; client `n` follows stream `n` modulo `streams`. `bare` says that the server is the yardstick.
    pub fn new(server: &Running, bare: bool, connections: u32, streams: u32) -> anyhow::Result<Self> {
        Self::with(server, &server.publish_url, bare, connections, streams)
    }

    /// Subscribers of one stream of a node; what reaches it is published to another one, or to itself.
    pub fn published_to(node: &Running, publish_url: &str, connections: u32) -> anyhow::Result<Self> {
        Self::with(node, publish_url, false, connections, 1)
    }

    fn with(server: &Running, publish_url: &str, bare: bool, connections: u32, streams: u32) -> anyhow::Result<Self> {
        let stream = format!("room:{{n%{}}}", streams.max(1));
        let identifier = format!(r#"{{"channel":"$pubsub","stream_name":"{stream}"}}"#);
        Ok(Self {
            engine: super::clients(server, Protocol::ActionCable, connections, 0, Some(&identifier))?,
            publisher: Publisher::connect(publish_url, &Credentials::None)?,
            connections,
            streams,
            bare,
            stream: Template::new(&stream),
            identifier: Template::new(&identifier),
            sequence: 0,
        })
    }

    /// Connects them and subscribes each. They expect the next message first.
    pub fn open(&self) -> anyhow::Result<()> {
        super::open_all(&self.engine, self.connections, Pace::Window(OPENING_WINDOW))?;
        self.engine.expect(self.sequence);
        // Its answer says that the lanes have taken the order before, and no message has overtaken it.
        self.engine.collect(self.sequence);
        Ok(())
    }

    /// Resets all connections.
    pub fn drop_all(&self) -> anyhow::Result<()> {
        self.engine.drop_share(1.0, Goodbye::Reset);
        ensure!(self.engine.wait(TIMEOUT, |counts| counts.ready_now() == 0), "the subscribers do not go");
        Ok(())
    }

    /// Publishes once to every stream, and waits until the last receiver has its message.
    pub fn publish(&mut self) -> anyhow::Result<()> {
        for stream in 0..self.streams {
            let mut data = protocol::mark(self.sequence, now_ns());
            data.push_str(&"x".repeat(DATA_BYTES.saturating_sub(data.len())));
            let data = json_string(&data);
            // The text that every receiver gets has the same length on both sides.
            let body = if self.bare {
                format!(r#"{{"identifier":{},"message":{data}}}"#, json_string(&self.identifier.expand(stream)))
            } else {
                format!(r#"{{"stream":"{}","data":{}}}"#, self.stream.expand(stream), json_string(&data))
            };
            self.publisher.post(&body)?;
        }
        self.sequence += 1;
        let expected = self.deliveries();
        let arrived = self.engine.wait(TIMEOUT, |counts| counts.marked >= expected || counts.failed() > 0);
        ensure!(arrived, "{} of {expected} deliveries came", self.engine.counts().marked);
        super::all_ready(&self.engine, self.connections)
    }

    /// Messages that should have come so far.
    fn deliveries(&self) -> u64 {
        u64::from(self.sequence) * u64::from(self.connections)
    }

    /// What was measured since the last time; fails unless every message has come once and in order.
    pub fn collect(&self) -> anyhow::Result<Collected> {
        super::pause(LINGER);
        let counts = self.engine.counts();
        let collected = self.engine.collect(self.sequence);
        super::all_ready(&self.engine, self.connections)?;
        ensure!(
            counts.marked == self.deliveries()
                && counts.skipped == 0
                && counts.reordered == 0
                && counts.duplicated == 0
                && collected.missing_at_end == 0,
            "{} delivered; {} lost, {} doubled, {} out of order",
            counts.marked,
            counts.lost_between() + collected.missing_at_end,
            counts.duplicated,
            counts.reordered
        );
        Ok(collected)
    }
}
