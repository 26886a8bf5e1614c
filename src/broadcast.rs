//! The way in for publications, whatever they come through.
//!
//! A source has bytes from the app and says what it is ([`Source`]); here they are read, counted and logged, and what
//! they hold is handed on through [`PublicationSink`]. A whisper comes from a session that has read it already, and
//! enters by the same sink without waiting. Sources know nothing of each other and of what is behind the sink.

mod fanout;
mod nats;
mod redis;
mod redisx;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::metrics;
use crate::model::{Publication, RemoteDisconnect};
use crate::proto::publication::{self, Incoming};

pub use fanout::Fanout;
pub use nats::NatsSource;
pub use redis::RedisSource;
pub use redisx::{RedisXInHand, RedisXMetrics, RedisXSource};

/// The end of a hand-over; waits while there is no room.
pub type Handover<'a> = Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + 'a>>;

/// Where publications and remote commands go: to the clients of this node, or to all nodes.
///
/// A hand-over is done when everybody behind it has the message to deliver, not when clients have it. It may be dropped
/// unfinished when it takes too long; what was handed over by then stays so.
pub trait PublicationSink: Send + Sync + 'static {
    /// Hands publications over, in this order. Never empty.
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_>;

    /// Hands one publication over if there is room now; tells whether there was. Called by threads that must not wait.
    fn try_publish(&self, publication: Publication) -> bool;

    /// Hands a remote disconnect over.
    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_>;

    /// Hands publications over to the clients of this node only, in this order, past history and cluster: every node has
    /// them from elsewhere. Never empty.
    fn publish_here(&self, publications: Vec<Publication>) -> Handover<'_>;

    /// Hands a remote disconnect over to the clients of this node only.
    fn disconnect_here(&self, disconnect: RemoteDisconnect) -> Handover<'_>;
}

/// Why a publication could not be handed over: our fault, or that of what is behind us.
#[derive(Debug, thiserror::Error)]
#[error("publication not handed over: {0}")]
pub struct PublishError(pub String);

/// What a payload came through, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The broadcast endpoint.
    Http,
    /// The HTTP API.
    Api,
    /// Pub/sub of Redis.
    Redis,
    /// A stream of Redis.
    RedisX,
    /// NATS.
    Nats,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Http => "http",
            Source::Api => "api",
            Source::Redis => "redis",
            Source::RedisX => "redisx",
            Source::Nats => "nats",
        })
    }
}

metrics! {
    /// What comes in to be published.
    pub struct BroadcastMetrics {
        /// Publications taken from apps; a batch counts as one, a remote command too.
        publications_total: Counter,
        /// Payloads from apps that were no publication and were ignored; of a batch, each element that was none.
        failed_broadcast_msg_total: Counter,
        /// Remote commands taken from apps, unknown ones included.
        remote_commands_total: Counter,
        /// Publications taken from apps that every node hears by itself (`redis`, `nats`); a batch counts as one.
        fanout_publications_total: Counter,
        /// Publications that every node hears by itself, dropped because clients are served too slowly.
        fanout_overflow_total: Counter,
        /// Whispers dropped because too many publications waited to be delivered.
        whispers_dropped_total: Counter,
    }
}

/// What all sources of this node hand their publications to.
pub struct Broadcast {
    sink: Arc<dyn PublicationSink>,
    metrics: BroadcastMetrics,
}

impl Broadcast {
    /// Hands on to `sink`.
    pub fn new(sink: Arc<dyn PublicationSink>) -> Broadcast {
        Broadcast { sink, metrics: BroadcastMetrics::default() }
    }

    /// What was counted.
    pub fn metrics(&self) -> &BroadcastMetrics {
        &self.metrics
    }

    /// Takes one payload from an app and waits until what it holds is handed over.
    ///
    /// A payload or an element of a batch that is no publication is counted, logged and no error: its sender would only
    /// send it again.
    ///
    /// # Errors
    /// What it holds could not be handed over. It is logged here.
    pub async fn take(&self, source: Source, payload: &[u8]) -> Result<(), PublishError> {
        self.take_all(source, [payload]).await
    }

    /// The same for several payloads, in this order. What they hold is handed over together, so that a wait for what is behind
    /// the sink is paid once.
    ///
    /// # Errors
    /// Something of it could not be handed over.
    pub async fn take_all<'a>(
        &self,
        source: Source,
        payloads: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), PublishError> {
        let (mut together, mut taken) = (Vec::new(), 0);
        for payload in payloads {
            match self.read(source, payload) {
                Some(Incoming::Publications(publications) | Incoming::PartOfBatch { publications, .. }) => {
                    // Nearly always there is one payload.
                    match together.is_empty() {
                        true => together = publications,
                        false => together.extend(publications),
                    }
                    taken += 1;
                }
                Some(Incoming::Disconnect(disconnect)) => {
                    if !together.is_empty() {
                        let handover = self.sink.publish(std::mem::take(&mut together));
                        self.handed_over(source, handover, std::mem::take(&mut taken)).await?;
                    }
                    self.handed_over(source, self.sink.disconnect(disconnect), 1).await?;
                }
                Some(Incoming::UnknownCommand(_)) => self.metrics.publications_total.inc(),
                None => {}
            }
        }
        if together.is_empty() {
            return Ok(());
        }
        self.handed_over(source, self.sink.publish(together), taken).await
    }

    /// Waits for a hand-over of so many payloads.
    async fn handed_over(&self, source: Source, handover: Handover<'_>, payloads: u64) -> Result<(), PublishError> {
        handover.await.inspect_err(|error| tracing::error!(%source, %error, "broadcast failed"))?;
        self.metrics.publications_total.add(payloads);
        Ok(())
    }

    /// The same for what every node hears by itself: it is for the clients of this node only.
    async fn take_here(&self, source: Source, payload: &[u8]) {
        let handover = match self.read(source, payload) {
            Some(Incoming::Disconnect(disconnect)) => self.sink.disconnect_here(disconnect),
            Some(Incoming::Publications(publications) | Incoming::PartOfBatch { publications, .. }) => {
                self.sink.publish_here(publications)
            }
            Some(Incoming::UnknownCommand(_)) | None => return,
        };
        match handover.await {
            Ok(()) => self.metrics.fanout_publications_total.inc(),
            Err(error) => tracing::error!(%source, %error, "broadcast failed"),
        }
    }

    /// Reads a payload; what is ignored of it is counted and logged. Never publications of which there are none.
    fn read(&self, source: Source, payload: &[u8]) -> Option<Incoming> {
        let incoming = publication::parse(payload);
        match &incoming {
            Ok(Incoming::Publications(_)) => {}
            Ok(Incoming::PartOfBatch { publications, refused, first }) => {
                self.metrics.failed_broadcast_msg_total.add(*refused as u64);
                let (first, taken) = (with_cause(first), publications.len());
                tracing::warn!(%source, refused, taken, "part of a broadcast ignored: {first}");
                if publications.is_empty() {
                    return None;
                }
            }
            Ok(Incoming::Disconnect(_)) => self.metrics.remote_commands_total.inc(),
            Ok(Incoming::UnknownCommand(command)) => {
                self.metrics.remote_commands_total.inc();
                tracing::warn!(%source, command, "unknown remote command ignored; known are: disconnect");
            }
            Err(reason) => {
                self.metrics.failed_broadcast_msg_total.inc();
                tracing::warn!(%source, "broadcast ignored: {}", with_cause(reason));
            }
        }
        incoming.ok()
    }

    /// Takes what a client whispers. Without room it is dropped and counted: a session waits for nobody's delivery.
    pub fn whisper(&self, whisper: Publication) {
        if !self.sink.try_publish(whisper) {
            self.metrics.whispers_dropped_total.inc();
        }
    }
}

fn with_cause(reason: &dyn std::error::Error) -> String {
    reason.source().map_or_else(|| reason.to_string(), |cause| format!("{reason} ({cause})"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Records what is handed over, or has no room for it.
    #[derive(Default)]
    struct Recorder {
        taken: Mutex<Vec<String>>,
        full: bool,
    }

    impl Recorder {
        fn take(&self, what: impl IntoIterator<Item = String>) -> Result<(), PublishError> {
            if self.full {
                return Err(PublishError("no room".into()));
            }
            self.taken.lock().unwrap().extend(what);
            Ok(())
        }
    }

    fn said(publication: &Publication) -> String {
        format!("{}={}", publication.stream, publication.message)
    }

    impl PublicationSink for Recorder {
        fn publish(&self, publications: Vec<Publication>) -> Handover<'_> {
            Box::pin(async move { self.take(publications.iter().map(said)) })
        }

        fn try_publish(&self, publication: Publication) -> bool {
            self.take([said(&publication)]).is_ok()
        }

        fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
            Box::pin(async move { self.take([format!("disconnect {}", disconnect.identifiers)]) })
        }

        fn publish_here(&self, publications: Vec<Publication>) -> Handover<'_> {
            Box::pin(async move { self.take(publications.iter().map(|publication| said(publication) + " here")) })
        }

        fn disconnect_here(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
            Box::pin(async move { self.take([format!("disconnect {} here", disconnect.identifiers)]) })
        }
    }

    fn broadcast(full: bool) -> (Broadcast, Arc<Recorder>) {
        let recorder = Arc::new(Recorder { full, ..Recorder::default() });
        (Broadcast::new(Arc::clone(&recorder) as Arc<_>), recorder)
    }

    /// Publications, failed ones, remote commands, dropped whispers.
    fn counted(broadcast: &Broadcast) -> [u64; 4] {
        let BroadcastMetrics {
            publications_total,
            failed_broadcast_msg_total,
            remote_commands_total,
            whispers_dropped_total,
            ..
        } = broadcast.metrics();
        [publications_total, failed_broadcast_msg_total, remote_commands_total, whispers_dropped_total]
            .map(|counter| counter.get())
    }

    #[tokio::test]
    async fn payloads_are_handed_on_in_order_and_count_as_one_each() {
        let (broadcast, recorder) = broadcast(false);
        for payload in [
            r#"[{"stream":"a","data":"1"},{"stream":"b","data":"x"}]"#,
            r#"{"command":"disconnect","payload":{"identifier":"u"}}"#,
            r#"{"command":"dance"}"#,
        ] {
            broadcast.take(Source::Http, payload.as_bytes()).await.unwrap();
        }
        assert_eq!(*recorder.taken.lock().unwrap(), ["a=1", "b=\"x\"", "disconnect u"]);
        assert_eq!(counted(&broadcast), [3, 0, 2, 0]);
    }

    #[tokio::test]
    async fn what_is_no_publication_is_counted_and_no_error() {
        let (broadcast, recorder) = broadcast(false);
        for payload in ["", "x", r#"{"stream":"s","data":7}"#, r#"[{},{"stream":"s","data":7}]"#] {
            broadcast.take(Source::Api, payload.as_bytes()).await.unwrap();
        }
        assert!(recorder.taken.lock().unwrap().is_empty());
        assert_eq!(counted(&broadcast), [0, 5, 0, 0]);
    }

    #[tokio::test]
    async fn a_bad_element_of_a_batch_is_counted_and_the_others_are_handed_on() {
        let (broadcast, recorder) = broadcast(false);
        let batch = r#"[{"stream":"a","data":"1"},{"stream":"b","data":7},{"stream":"c","data":"hi \ud83d"},7]"#;
        broadcast.take(Source::Http, batch.as_bytes()).await.unwrap();
        assert_eq!(*recorder.taken.lock().unwrap(), ["a=1", "c=\"hi \u{fffd}\""]);
        assert_eq!(counted(&broadcast), [1, 2, 0, 0]);
    }

    #[tokio::test]
    async fn several_payloads_are_handed_on_in_order_with_commands_between_them() {
        let (broadcast, recorder) = broadcast(false);
        let disconnect = r#"{"command":"disconnect","payload":{"identifier":"u"}}"#;
        let publication = |n: u32| format!("{{\"stream\":\"a\",\"data\":\"{n}\"}}");
        let payloads = [publication(1), publication(2), "x".into(), disconnect.into(), publication(3)];
        broadcast.take_all(Source::RedisX, payloads.iter().map(String::as_bytes)).await.unwrap();
        assert_eq!(*recorder.taken.lock().unwrap(), ["a=1", "a=2", "disconnect u", "a=3"]);
        assert_eq!(counted(&broadcast), [4, 1, 1, 0]);
    }

    #[tokio::test]
    async fn what_every_node_hears_is_for_the_clients_of_this_one() {
        let (broadcast, recorder) = broadcast(false);
        for payload in [r#"{"stream":"a","data":"1"}"#, r#"{"command":"disconnect","payload":{"identifier":"u"}}"#, "x"]
        {
            broadcast.take_here(Source::Redis, payload.as_bytes()).await;
        }
        assert_eq!(*recorder.taken.lock().unwrap(), ["a=1 here", "disconnect u here"]);
        assert_eq!(counted(&broadcast), [0, 1, 1, 0]);
        assert_eq!(broadcast.metrics().fanout_publications_total.get(), 2);
    }

    #[tokio::test]
    async fn without_room_payloads_fail_and_whispers_are_dropped() {
        let (full, _) = broadcast(true);
        full.take(Source::Http, br#"{"stream":"s"}"#).await.unwrap_err();
        let whisper = Publication::new("s", "1");
        full.whisper(whisper.clone());
        assert_eq!(counted(&full), [0, 0, 0, 1]);

        let (roomy, recorder) = broadcast(false);
        roomy.whisper(whisper);
        assert_eq!(*recorder.taken.lock().unwrap(), ["s=1"]);
        assert_eq!(counted(&roomy), [0, 0, 0, 0], "a whisper is no publication of an app");
    }
}
