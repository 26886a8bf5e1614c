//! The brokers "none" and "memory": what this process keeps by itself.
//!
//! [`LocalBroker::in_order`] takes the lock of the stream, places the publication, stores it and lets the caller hand it on
//! under that lock, so whoever publishes to a stream at the same time, from whichever thread, reaches every shard in the
//! order of the offsets. A publication is stored before anybody gets it.
//!
//! "memory" also keeps who is present on a stream, under the same locks, so that the events come in order, and sessions
//! for clients that come back. "none" keeps the order and nothing else: it gives no positions and answers every question
//! with [`BrokerError::NotKept`].

mod hand_over;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::history::{Gone, History, HistoryLimits, Moment, StoredMessage};
use crate::model::{
    BrokerError, BrokerReply, HistoryRequest, Missed, NameHasher, Now, Position, PresenceChange, Publication, Sid,
};
use crate::presence::{self, Join, Presence};

use super::{BrokerMetrics, STRIPES, Sessions, SessionsSettings, presence_event};

pub use hand_over::{BrokerPart, LocalSnapshot};

/// What a broker that remembers is told by the configuration.
#[derive(Clone, Debug)]
pub struct MemorySettings {
    /// Identifies this storage: a position of another one means nothing here.
    pub epoch: Arc<str>,
    /// Messages kept of one stream (`--history-limit`).
    pub history_limit: u32,
    /// How long they are kept (`--history-ttl`).
    pub history_ttl: Duration,
    /// Bytes of history over all streams (`--history-max-size`).
    pub history_bytes_max: usize,
    /// How long somebody whose connection is over is reported as present (`--presence-ttl`).
    pub presence_ttl: Duration,
    /// Bytes of presence over all streams (`--presence-max-size`).
    pub presence_bytes_max: usize,
    /// For clients that come back.
    pub sessions: SessionsSettings,
}

/// Gives order; and remembers, if it has memory.
pub struct LocalBroker {
    /// By a keyed hash of the stream's name, so that nobody can choose names that share a lock. Taken by a publisher
    /// for one hand-over, which puts a pointer into each inbox and waits for nothing.
    stripes: Box<[Mutex<Stripe>]>,
    hasher: NameHasher,
    memory: Option<Memory>,
    /// What was counted.
    pub metrics: BrokerMetrics,
}

/// What is the same for all streams.
struct Memory {
    settings: MemorySettings,
    sessions: Sessions,
    /// Over all stripes, as they were when each was used last.
    history_bytes: AtomicUsize,
    presence_bytes: AtomicUsize,
}

/// The streams that share a lock.
#[derive(Default)]
struct Stripe {
    /// `None`: nothing is kept.
    kept: Option<Kept>,
}

struct Kept {
    /// That of the settings, or of the broker that this one goes on with.
    epoch: Arc<str>,
    history: History,
    presence: Presence,
}

impl Default for LocalBroker {
    fn default() -> LocalBroker {
        LocalBroker::new(None)
    }
}

/// Whole seconds of both clocks.
fn moment(now: Now) -> Moment {
    Moment { mono: now.mono.as_secs() as u32, wall: now.unix.as_secs() as u32 }
}

impl LocalBroker {
    /// The broker "memory" with these settings, or "none".
    pub fn new(settings: Option<MemorySettings>) -> LocalBroker {
        LocalBroker::with_hasher(settings, NameHasher::default())
    }

    /// The same, for whoever wants to have the same names share a lock in every run.
    pub fn with_hasher(settings: Option<MemorySettings>, hasher: NameHasher) -> LocalBroker {
        let stripe = || {
            let kept = settings.as_ref().map(|settings| {
                let ttl = |ttl: Duration| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
                let limits = HistoryLimits {
                    messages_max: settings.history_limit,
                    ttl: ttl(settings.history_ttl),
                    stream_bytes_max: settings.history_bytes_max,
                };
                let (history, presence) = (History::new(limits), Presence::new(ttl(settings.presence_ttl)));
                Kept { epoch: Arc::clone(&settings.epoch), history, presence }
            });
            Mutex::new(Stripe { kept })
        };
        let stripes = (0..STRIPES).map(|_| stripe()).collect();
        let memory = settings.map(|settings| Memory {
            sessions: Sessions::new(&settings.sessions, hasher),
            settings,
            history_bytes: AtomicUsize::new(0),
            presence_bytes: AtomicUsize::new(0),
        });
        LocalBroker { stripes, hasher, memory, metrics: BrokerMetrics::default() }
    }

    /// Sessions of clients that may come back; none without memory.
    pub fn sessions(&self) -> Option<&Sessions> {
        self.memory.as_ref().map(|memory| &memory.sessions)
    }

    /// Gives the publication its place in its stream, stores it unless it is transient, and hands it on before the next
    /// one of that stream gets its own.
    ///
    /// `hand_over` must not wait and must not publish.
    pub fn in_order<R>(&self, mut publication: Publication, now: Now, hand_over: impl FnOnce(Publication) -> R) -> R {
        let mut stripe = self.lock(&publication.stream);
        if let (Some(memory), Some(kept)) = (&self.memory, &mut stripe.kept)
            && !publication.transient
        {
            let Publication { stream, message, kind, .. } = &publication;
            let before = kept.history.bytes();
            let offset = kept.history.store(stream, message, kind.as_ref(), moment(now));
            self.make_room(memory, &mut kept.history, before);
            publication.position = Some(Position { epoch: Arc::clone(&kept.epoch), offset });
        }
        hand_over(publication)
    }

    /// What was published to these streams since the client had them. All of it, or an error.
    ///
    /// # Errors
    /// Nothing is kept, or not all of it is there any more.
    pub fn history(&self, streams: &[Box<str>], since: &HistoryRequest, now: Now) -> Result<BrokerReply, BrokerError> {
        if self.memory.is_none() {
            return Err(BrokerError::NotKept);
        }
        // Of two entries for one stream the later one counts.
        let mut had: HashMap<&str, &Position, NameHasher> = HashMap::default();
        had.extend(since.positions.iter().map(|(stream, position)| (&**stream, position)));
        let of = |stream: &str| self.missed(stream, had.get(stream).copied(), since.since, moment(now));
        let missed: Result<Vec<_>, _> = streams.iter().map(|stream| of(stream)).collect();
        match &missed {
            Ok(_) => self.metrics.history_served_total.inc(),
            Err(_) => self.metrics.history_rejected_total.inc(),
        }
        Ok(BrokerReply::History(missed?))
    }

    fn missed(&self, stream: &str, had: Option<&Position>, since: i64, now: Moment) -> Result<Missed, BrokerError> {
        let stripe = self.lock(stream);
        let kept = stripe.kept.as_ref().ok_or(BrokerError::NotKept)?;
        let messages = match had {
            Some(had) if had.epoch != kept.epoch => return Err(BrokerError::Gone),
            Some(had) => kept.history.after(stream, had.offset, now).map_err(|Gone| BrokerError::Gone)?,
            None if since > 0 && since <= i64::from(now.wall) => kept.history.since(stream, since, now),
            None => Vec::new(),
        };
        let had = had.map_or(0, |had| had.offset);
        let publication = |stored: StoredMessage| {
            let StoredMessage { offset, message, kind } = stored;
            let position = Some(Position { epoch: Arc::clone(&kept.epoch), offset });
            Publication { kind, position, ..Publication::new(stream, message) }
        };
        Ok(Missed { stream: stream.into(), had, publications: messages.into_iter().map(publication).collect() })
    }

    /// Changes who is present. What others are to be told is handed on under the stream's lock; as with
    /// [`in_order`](Self::in_order), it must not wait.
    pub fn change_presence(
        &self,
        stream: &str,
        sid: Sid,
        change: PresenceChange,
        now: Now,
        hand_over: impl FnOnce(Publication),
    ) {
        let mut stripe = self.lock(stream);
        let (Some(memory), Some(kept)) = (&self.memory, &mut stripe.kept) else { return };
        let presence = &mut kept.presence;
        let before = presence.bytes();
        let mut event = Vec::new();
        match change {
            PresenceChange::Join { .. }
                if memory.presence_bytes.load(Ordering::Relaxed) >= memory.settings.presence_bytes_max =>
            {
                self.metrics.presence_refused_total.inc();
            }
            PresenceChange::Join { id, info } => match presence.join(stream, sid, &id, info.as_deref()) {
                Join::Came => presence::write_join(&mut event, &id, info.as_deref()),
                Join::Known => {}
                Join::OtherId => {
                    tracing::debug!(%sid, stream, "a session joined under a second id, which is ignored");
                    self.metrics.presence_refused_total.inc();
                }
            },
            PresenceChange::Leave => {
                if let Some(id) = presence.leave(stream, sid) {
                    presence::write_leave(&mut event, &id);
                }
            }
            PresenceChange::Gone => {
                presence.disconnected(stream, sid, moment(now).mono);
            }
        }
        changed(&memory.presence_bytes, before, presence.bytes());
        if let Some(event) = presence_event(stream, event) {
            hand_over(event);
        }
    }

    /// Whoever had sessions that were present is lost: they are as those whose connection is over.
    pub fn lost(&self, now: Now, mut is_lost: impl FnMut(&str, Sid) -> bool) {
        let Some(memory) = &self.memory else { return };
        for stripe in &self.stripes {
            let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(Kept { presence, .. }) = &mut stripe.kept else { continue };
            let before = presence.bytes();
            presence.lost(moment(now).mono, &mut is_lost);
            changed(&memory.presence_bytes, before, presence.bytes());
        }
    }

    /// Who is present on a stream, as clients and the API are told: JSON text. Without records, which is how many there
    /// are, if they are not wanted or the text would have more than `bytes_max`.
    ///
    /// # Errors
    /// Nothing is kept.
    pub fn present(&self, stream: &str, records: bool, bytes_max: usize) -> Result<Vec<u8>, BrokerError> {
        let stripe = self.lock(stream);
        let kept = stripe.kept.as_ref().ok_or(BrokerError::NotKept)?;
        let mut message = Vec::new();
        kept.presence.write_info(stream, records, &mut message);
        if message.len() > bytes_max {
            message.clear();
            kept.presence.write_info(stream, false, &mut message);
        }
        Ok(message)
    }

    /// Forgets what is over in one of [`SWEEPS`](crate::broker::SWEEPS) parts, and tells those who are still there who has gone.
    pub fn sweep(&self, part: usize, now: Now, mut hand_over: impl FnMut(Publication)) {
        let Some(memory) = &self.memory else { return };
        memory.sessions.sweep(part, now);
        let now = moment(now);
        let mut stripe = self.stripes[part % STRIPES].lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = &mut stripe.kept else { return };
        let before = kept.history.bytes();
        kept.history.expire(now);
        self.make_room(memory, &mut kept.history, before);
        let before = kept.presence.bytes();
        for (stream, id) in kept.presence.expire(now.mono) {
            let mut event = Vec::new();
            presence::write_leave(&mut event, &id);
            presence_event(&stream, event).into_iter().for_each(&mut hand_over);
        }
        changed(&memory.presence_bytes, before, kept.presence.bytes());
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let Some(memory) = &self.memory else { return };
        let (mut messages, mut streams, mut records) = (0, 0, 0);
        for stripe in &self.stripes {
            let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(kept) = &stripe.kept else { continue };
            messages += kept.history.messages();
            streams += kept.history.streams();
            records += kept.presence.records();
        }
        let bytes = |count: &AtomicUsize| count.load(Ordering::Relaxed) as i64;
        self.metrics.history_messages_num.set(messages as i64);
        self.metrics.history_streams_num.set(streams as i64);
        self.metrics.history_bytes.set(bytes(&memory.history_bytes));
        self.metrics.presence_records_num.set(records as i64);
        self.metrics.presence_bytes.set(bytes(&memory.presence_bytes));
        let sessions = memory.sessions.measure();
        self.metrics.saved_sessions_num.set(sessions.saved as i64);
        self.metrics.saved_sessions_bytes.set(sessions.bytes as i64);
    }

    /// A stripe had `before` bytes of history and has changed. What is over the bound of all goes, from this stripe: who
    /// stores gives back.
    fn make_room(&self, memory: &Memory, history: &mut History, before: usize) {
        let total = changed(&memory.history_bytes, before, history.bytes());
        let over = total.saturating_sub(memory.settings.history_bytes_max);
        if over > 0 {
            let (bytes, messages) = (history.bytes(), history.messages());
            history.evict(over);
            self.metrics.history_evicted_total.add((messages - history.messages()) as u64);
            changed(&memory.history_bytes, bytes, history.bytes());
        }
    }

    fn lock(&self, stream: &str) -> MutexGuard<'_, Stripe> {
        self.stripe_of(stream).lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe_of(&self, stream: &str) -> &Mutex<Stripe> {
        &self.stripes[self.hasher.hash_one(stream) as usize % STRIPES]
    }
}

/// Corrects a sum of which one part was `before` and is `after` now; gives the sum.
fn changed(sum: &AtomicUsize, before: usize, after: usize) -> usize {
    // Wraps around on the way for what has shrunk, and comes out right.
    let change = after.wrapping_sub(before);
    sum.fetch_add(change, Ordering::Relaxed).wrapping_add(change)
}
