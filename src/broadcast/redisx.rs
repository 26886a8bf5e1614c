//! Broadcasts by a stream of Redis (adapter `redisx`, `contracts/broadcast.md` section 2): the nodes read it as one group,
//! each entry on one node, which tells the others by the cluster.
//!
//! An entry is acknowledged and deleted when it has been handed over, and not before. So nothing is lost that is in the
//! stream: what a node had when it died is claimed by another one. What may not happen is that two nodes have one entry:
//!
//! * Entries that are idle for [`CLAIM_IDLE`] are claimed. A node whose clients are served slowly says every second that it
//!   is still at those it holds, which makes them not idle.
//! * When Redis was away, a node may hold entries that it has handed over and could not acknowledge. It does so as soon as
//!   it is back, and nobody claims anything before [`CLAIM_AFTER_LOSS`], when all are.
//!
//! Back-pressure is that nothing is read while what was read is not handed over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::streams::{StreamId, StreamReadReply};
use redis::{RedisError, RedisResult, Value};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Broadcast, Source};
use crate::link::redis::{ANSWER_TIMEOUT, Connection, Redis};
use crate::link::{LinkState, Turns, keep};
use crate::metrics;

/// Entries of one reading. All of them are in hand while the first is handed over, so few; enough to read at a hundred
/// times the rate of answers.
const ENTRIES: usize = 100;

/// Entries that are handed over and acknowledged together. Each wait for a broker on another machine is for so many; and a
/// node that dies has handed over no more of them without a word.
const TOGETHER: usize = 16;

/// While more than these are handed over and not acknowledged, nothing is read.
const ACKS_MAX: usize = 10 * ENTRIES;

/// Entries that nobody has acknowledged for so long are claimed; and how often it is looked for such.
const CLAIM_IDLE: Duration = Duration::from_secs(2);

/// How often a node says that it is still at what it has in hand.
const HOLD_EVERY: Duration = Duration::from_secs(1);

/// After a loss of the link, nothing is claimed for longer than any node waits between two tries.
const CLAIM_AFTER_LOSS: Duration = Duration::from_secs(30);

/// An entry that was delivered so often and never acknowledged is dropped: it ends who handles it.
const DELIVERIES_MAX: u64 = 5;

/// Deletes this consumer if it holds nothing: entries that it holds would be gone with it.
const LEAVE: &str = r"if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end";

metrics! {
    /// What came by the stream of Redis.
    pub struct RedisXMetrics {
        /// Entries handed over.
        redisx_entries_total: Counter,
        /// Entries taken over from another node that did not acknowledge them.
        redisx_claimed_total: Counter,
        /// Entries dropped because they were delivered 5 times and never acknowledged, or had no payload.
        redisx_poison_total: Counter,
    }
}

/// The source.
pub struct RedisXSource {
    /// Where it is.
    pub redis: Arc<Redis>,
    /// How the link is doing.
    pub state: Arc<LinkState>,
    /// The stream (`--redisx-stream`).
    pub stream: String,
    /// The group of the nodes (`--redisx-group`).
    pub group: String,
    /// What this process is called in it.
    pub consumer: String,
    /// How long one reading waits for an entry; [`CLAIM_IDLE`] at most.
    pub read_block: Duration,
    /// What was counted.
    pub metrics: Arc<RedisXMetrics>,
    /// What it has in hand.
    pub in_hand: Arc<RedisXInHand>,
}

/// What a source has in hand, and the way to have it stand still between two readings.
#[derive(Default)]
pub struct RedisXInHand {
    /// One for each reading and what it gave.
    pub turns: Turns,
    acks: Acks,
    /// Readings are to be short.
    is_hasty: AtomicBool,
}

impl RedisXInHand {
    /// From now on no reading waits for longer than [`HASTY_BLOCK`]: somebody is about to have it stand still. Or as ever.
    pub fn set_hasty(&self, is_hasty: bool) {
        self.is_hasty.store(is_hasty, Relaxed);
    }

    /// Entries that were handed over and are not acknowledged for certain, while it stands still.
    pub fn unacknowledged(&self) -> Vec<String> {
        self.acks.ids().clone()
    }

    /// Goes on as the same consumer as another process that has handed these over.
    pub fn take_over(&self, unacknowledged: Vec<String>) {
        unacknowledged.into_iter().for_each(|id| self.acks.push(id));
    }
}

/// See [`RedisXInHand::set_hasty`].
const HASTY_BLOCK: Duration = Duration::from_millis(10);

impl RedisXSource {
    /// Reads for as long as the node runs, or until `stop` says so: then what is in hand is finished first.
    pub async fn run(self, broadcast: Arc<Broadcast>, mut stop: watch::Receiver<bool>) {
        let reader = tokio::sync::Mutex::new(Reader { source: &self, broadcast, claim_from: None, stop: stop.clone() });
        let left = Notify::new();
        let work = || async {
            match reader.lock().await.work().await {
                Err(why) => why,
                Ok(()) => {
                    left.notify_one();
                    std::future::pending().await
                }
            }
        };
        let stopped_while_away = async {
            let _ = stop.wait_for(|stop| *stop).await;
            if self.state.is_up() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = keep(&self.state, work) => {}
            () = left.notified() => {}
            () = stopped_while_away => {}
        }
    }

    fn command(&self, name: &str) -> redis::Cmd {
        let mut command = redis::cmd(name);
        command.arg(&self.stream).arg(&self.group);
        command
    }
}

struct Reader<'a> {
    source: &'a RedisXSource,
    broadcast: Arc<Broadcast>,
    /// When entries of others may be claimed; none before the first connection.
    claim_from: Option<Instant>,
    stop: watch::Receiver<bool>,
}

impl Reader<'_> {
    fn acks(&self) -> &Acks {
        &self.source.in_hand.acks
    }

    /// Works until the link is lost, or it is to stop and all is acknowledged.
    async fn work(&mut self) -> RedisResult<()> {
        let RedisXSource { redis, state, read_block, .. } = self.source;
        let commands = redis.connection(ANSWER_TIMEOUT).await?;
        let reading = redis.connection(*read_block + ANSWER_TIMEOUT).await?;
        self.join_group(&commands).await?;
        state.came_up();
        self.acks().failed().take();
        self.acks().flush(self.source, commands.clone()).await?;
        self.claim_from = Some(self.claim_from.map_or_else(Instant::now, |_| Instant::now() + CLAIM_AFTER_LOSS));
        let ended = tokio::select! {
            ended = self.read(&commands, reading) => ended,
            () = self.acks().keep_flushing(self.source, commands.clone()) => return Ok(()),
        };
        ended?;
        self.acks().flush(self.source, commands.clone()).await?;
        self.leave(commands).await;
        Ok(())
    }

    /// Makes the stream and the group, if they are not there. At first the group begins with what comes from now on; once
    /// this process has read, whatever is in the stream has come since.
    async fn join_group(&self, connection: &Connection) -> RedisResult<()> {
        let RedisXSource { stream, group, .. } = self.source;
        let from = if self.claim_from.is_some() { "0" } else { "$" };
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(stream).arg(group).arg(from).arg("MKSTREAM");
        match command.exec_async(&mut connection.clone()).await {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads and hands over. Ends between two entries only.
    async fn read(&self, commands: &Connection, mut reading: Connection) -> RedisResult<()> {
        // What this process was given and had no answer of, when the link was lost.
        let mut after = Some("0".to_owned());
        let mut claimed_at = Instant::now();
        while !*self.stop.borrow() {
            let _turn = self.source.in_hand.turns.next().await;
            if let Some(error) = self.acks().failed().take() {
                return Err(error);
            }
            if claimed_at.elapsed() >= CLAIM_IDLE && self.claim_from.is_some_and(|from| from <= Instant::now()) {
                claimed_at = Instant::now();
                let claimed = self.claim(commands.clone()).await?;
                self.source.metrics.redisx_claimed_total.add(claimed.len() as u64);
                self.hand_over(claimed, commands).await;
            }
            self.acks().wait_for_room().await;
            let entries = match self.next(&mut reading, after.as_deref()).await {
                Err(error) if error.code() == Some("NOGROUP") => {
                    self.join_group(commands).await?;
                    continue;
                }
                entries => entries?,
            };
            after = after.and_then(|_| entries.last().map(|entry| entry.id.clone()));
            self.hand_over(entries, commands).await;
        }
        Ok(())
    }

    /// The next entries: those behind `after` that this consumer holds, or new ones.
    async fn next(&self, reading: &mut Connection, after: Option<&str>) -> RedisResult<Vec<StreamId>> {
        let RedisXSource { stream, group, consumer, read_block, .. } = self.source;
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(group).arg(consumer).arg("COUNT").arg(ENTRIES);
        if after.is_none() {
            let block_max = if self.source.in_hand.is_hasty.load(Relaxed) { HASTY_BLOCK } else { CLAIM_IDLE };
            command.arg("BLOCK").arg((*read_block).min(block_max).as_millis().max(1) as u64);
        }
        command.arg("STREAMS").arg(stream).arg(after.unwrap_or(">"));
        let reply: Option<StreamReadReply> = command.query_async(reading).await?;
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect())
    }

    /// Takes over what others hold and do not acknowledge, and what this node could not hand over.
    async fn claim(&self, mut connection: Connection) -> RedisResult<Vec<StreamId>> {
        let RedisXSource { consumer, metrics, .. } = self.source;
        let idle = CLAIM_IDLE.as_millis() as u64;
        let mut command = self.source.command("XPENDING");
        command.arg("IDLE").arg(idle).arg("-").arg("+").arg(ENTRIES);
        let pending: Vec<(String, String, u64, u64)> = command.query_async(&mut connection).await?;
        let mut claim = self.source.command("XCLAIM");
        claim.arg(consumer).arg(idle);
        let mut wanted = false;
        for (id, holder, _, deliveries) in pending {
            if self.acks().holds(&id) {
                continue;
            }
            if deliveries >= DELIVERIES_MAX {
                metrics.redisx_poison_total.inc();
                tracing::error!(id, holder, deliveries, "an entry of the stream is never handed over: it is dropped");
                self.acks().push(id);
                continue;
            }
            claim.arg(id);
            wanted = true;
        }
        if !wanted {
            return Ok(Vec::new());
        }
        // Before Redis 7, an entry that was deleted stays pending and comes as nothing. After some tries it is dropped above.
        let claimed: Vec<Option<(String, HashMap<String, Value>)>> = claim.query_async(&mut connection).await?;
        Ok(claimed.into_iter().flatten().map(|(id, map)| StreamId { id, map, ..StreamId::default() }).collect())
    }

    async fn hand_over(&self, mut entries: Vec<StreamId>, commands: &Connection) {
        let metrics = &self.source.metrics;
        // Handed over before the link was lost.
        entries.retain(|entry| !self.acks().holds(&entry.id));
        for begin in (0..entries.len()).step_by(TOGETHER) {
            let (held, end) = (&entries[begin..], entries.len().min(begin + TOGETHER));
            let together = &entries[begin..end];
            let payloads = together.iter().filter_map(|entry| match entry.map.get("payload") {
                Some(Value::BulkString(payload)) => Some(&**payload),
                _ => {
                    metrics.redisx_poison_total.inc();
                    tracing::warn!(id = entry.id, "an entry of the stream has no field \"payload\": it is dropped");
                    None
                }
            });
            let payloads: Vec<&[u8]> = payloads.collect();
            let count = payloads.len() as u64;
            let taking = self.broadcast.take_all(Source::RedisX, payloads);
            // What failed stays pending, and is claimed again.
            if self.while_holding(held, commands.clone(), taking).await.is_ok() {
                metrics.redisx_entries_total.add(count);
                together.iter().for_each(|entry| self.acks().push(entry.id.clone()));
            }
        }
    }

    /// Waits for `work`, and keeps the entries in hand from being claimed by others meanwhile.
    async fn while_holding<T>(
        &self,
        held: &[StreamId],
        mut connection: Connection,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(HOLD_EVERY) => {}
            }
            let mut hold = self.source.command("XCLAIM");
            hold.arg(&self.source.consumer).arg(0);
            hold.arg(held.iter().map(|entry| &*entry.id).collect::<Vec<_>>()).arg("JUSTID");
            let holding = hold.exec_async(&mut connection);
            tokio::select! {
                done = &mut work => return done,
                // A link that is lost is noticed elsewhere.
                _ = holding => {}
            }
        }
    }

    async fn leave(&self, mut connection: Connection) {
        let RedisXSource { stream, group, consumer, .. } = self.source;
        let script = redis::Script::new(LEAVE);
        let mut call = script.key(stream);
        let left: RedisResult<Value> = call.arg(group).arg(consumer).invoke_async(&mut connection).await;
        if let Err(error) = left {
            tracing::info!(%error, consumer, "this consumer stays in the group; it holds nothing, or others claim it");
        }
    }
}

/// Entries that are handed over and are to be acknowledged. Publishing goes on meanwhile; the next entries are read when
/// those before are acknowledged or on their way, so there are few.
#[derive(Default)]
struct Acks {
    /// In the order they were handed over.
    ids: Mutex<Vec<String>>,
    came: Notify,
    went: Notify,
    failed: Mutex<Option<RedisError>>,
}

impl Acks {
    fn ids(&self) -> MutexGuard<'_, Vec<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, Option<RedisError>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, id: String) {
        self.ids().push(id);
        self.came.notify_one();
    }

    fn holds(&self, id: &str) -> bool {
        self.ids().iter().any(|held| held == id)
    }

    /// Waits while many are on their way, unless that has failed.
    async fn wait_for_room(&self) {
        while self.ids().len() > ACKS_MAX && self.failed().is_none() {
            self.went.notified().await;
        }
    }

    /// Acknowledges and deletes what is there. What is not certain stays.
    async fn flush(&self, source: &RedisXSource, mut connection: Connection) -> RedisResult<()> {
        loop {
            let ids: Vec<String> = self.ids().iter().take(ENTRIES).cloned().collect();
            if ids.is_empty() {
                return Ok(());
            }
            let mut pipeline = redis::pipe();
            pipeline.cmd("XACK").arg(&source.stream).arg(&source.group).arg(&ids).ignore();
            pipeline.cmd("XDEL").arg(&source.stream).arg(&ids).ignore();
            pipeline.exec_async(&mut connection).await?;
            self.ids().drain(..ids.len());
            self.went.notify_one();
        }
    }

    /// Flushes what comes until that fails, which the reader is told; then waits to be dropped.
    async fn keep_flushing(&self, source: &RedisXSource, connection: Connection) {
        loop {
            if let Err(error) = self.flush(source, connection.clone()).await {
                *self.failed() = Some(error);
                self.went.notify_one();
                return std::future::pending().await;
            }
            self.came.notified().await;
        }
    }
}
