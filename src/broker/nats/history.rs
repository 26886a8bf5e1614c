//! Publications in JetStream: how they get their offsets, and how a stream is read.
//!
//! A message holds what nodes tell each other of a publication, and in headers its offset, where the count began, its epoch,
//! and the numbers of the messages of its stream before it. By those a stream is read from its end, many at a time; the
//! store itself finds by subject only the newest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::NatsStore;
use crate::broker::remote::store::{Count, Entry, From, Read, StoreId, Stored, Trouble, Unstored};
use crate::link::nats::{JetStore, Kept, StoreError, token};
use crate::model::{NameHasher, NodeId, Position, Publication};
use crate::os::clock;
use crate::proto::publication::between_nodes::{self, NodeMessage};

/// Headers: the offset, where the count began, the epoch with the offset before the first of it, and the numbers of messages
/// before, the newest first.
const OFFSET: &str = "Cw-Offset";
const BASE: &str = "Cw-Base";
const EPOCH: &str = "Cw-Epoch";
const BEFORE: &str = "Cw-Before";

/// JetStream stores nothing again that has an id which it has seen. Ours is of the node's store.
const ID: &str = "Nats-Msg-Id";

/// How many messages a message knows before it.
const BEFORE_MAX: usize = 16;

/// Streams whose newest message is known, at least those published to last; twice as many at most.
const HEADS: usize = 16_384;

/// How often a store is tried on which other nodes are quicker.
const TRIES: u32 = 32;

/// The longest wait after the first of those; each one after it may be as much longer.
const RETRY: Duration = Duration::from_millis(2);

/// The newest message of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head {
    pub offset: u64,
    base: u64,
    /// None of a message that an older version of this server has stored.
    begun: Option<(Box<str>, u64)>,
    seq: u64,
    /// Numbers of those before it, the newest first.
    before: Vec<u64>,
}

impl Head {
    fn of(kept: &Kept) -> Option<Head> {
        let number = |name| kept.message.header(name)?.parse().ok();
        let before = kept.message.header(BEFORE).unwrap_or_default().split(',');
        Some(Head {
            offset: number(OFFSET)?,
            base: number(BASE)?,
            begun: kept.message.header(EPOCH).and_then(|begun| begun.split_once(' ')).and_then(begun_of),
            seq: kept.seq,
            before: before.filter_map(|seq| seq.parse().ok()).take(BEFORE_MAX).collect(),
        })
    }

    /// How far the stream is.
    pub(super) fn count(self) -> Count {
        Count { head: self.offset, base: self.base, begun: self.begun }
    }

    /// Numbers of it and those before it, for the next one.
    fn chain(&self) -> Vec<u64> {
        std::iter::once(self.seq).chain(self.before.iter().copied()).take(BEFORE_MAX).collect()
    }
}

fn begun_of((epoch, before): (&str, &str)) -> Option<(Box<str>, u64)> {
    Some((epoch.into(), before.parse().ok()?))
}

/// The newest messages of streams, as this node knows them. Another node may have stored more by now.
#[derive(Default)]
pub(super) struct Heads {
    recent: HashMap<Box<str>, Head, NameHasher>,
    older: HashMap<Box<str>, Head, NameHasher>,
}

impl Heads {
    fn get(&self, stream: &str) -> Option<Head> {
        self.recent.get(stream).or_else(|| self.older.get(stream)).cloned()
    }

    fn set(&mut self, stream: &str, head: Head) {
        if self.recent.len() >= HEADS {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(stream.into(), head);
    }

    fn forget(&mut self, stream: &str) {
        self.recent.remove(stream);
        self.older.remove(stream);
    }
}

/// What becomes of a store.
enum Outcome {
    Stored(Stored, Head),
    /// Another node has stored to this stream.
    Outrun,
}

impl NatsStore {
    fn history_subject(&self, stream: &str) -> String {
        self.subject('h', &format!(".{}", token(stream)))
    }

    /// Stores a batch: streams side by side, what is for one stream one after the other.
    pub(super) async fn store_all(&self, history: &JetStore, batch: &[Unstored]) -> Vec<Result<Stored, Trouble>> {
        let mut streams: HashMap<&str, Vec<usize>, NameHasher> = HashMap::default();
        for (at, unstored) in batch.iter().enumerate() {
            streams.entry(&*unstored.publication.stream).or_default().push(at);
        }
        let of_stream = |places: Vec<usize>| async move {
            let mut results = Vec::with_capacity(places.len());
            let mut lost: Option<Trouble> = None;
            for at in places {
                // What comes behind one of which nobody knows must not come before it.
                let result = match &lost {
                    Some(trouble) => Err(trouble.clone()),
                    None => self.store_one(history, &batch[at]).await,
                };
                lost = result.as_ref().err().filter(|trouble| matches!(trouble, Trouble::Away(_))).cloned();
                results.push((at, result));
            }
            results
        };
        let mut results: Vec<_> = join_all(streams.into_values().map(of_stream)).await.into_iter().flatten().collect();
        results.sort_unstable_by_key(|(at, _)| *at);
        results.into_iter().map(|(_, result)| result).collect()
    }

    async fn store_one(&self, history: &JetStore, unstored: &Unstored) -> Result<Stored, Trouble> {
        let stream = &*unstored.publication.stream;
        for attempt in 1..=TRIES {
            let known = self.heads().get(stream);
            let outcome = async {
                let head = match known {
                    Some(head) => Some(head),
                    None => self.head(history, stream).await?,
                };
                self.try_store(history, unstored, head.as_ref()).await
            };
            match outcome.await {
                Ok(Outcome::Stored(stored, head)) => {
                    self.saw(head.seq);
                    self.heads().set(stream, head);
                    return Ok(stored);
                }
                Ok(Outcome::Outrun) => {
                    self.heads().forget(stream);
                    sleep(RETRY.mul_f64(f64::from(attempt - 1) * rand::random::<f64>())).await;
                }
                Err(error) => {
                    self.heads().forget(stream);
                    return Err(self.trouble(error));
                }
            }
        }
        Err(Trouble::Refused(format!("other nodes published to the stream first, {TRIES} times")))
    }

    /// Stores a publication as the next one behind `head`.
    async fn try_store(
        &self,
        history: &JetStore,
        unstored: &Unstored,
        head: Option<&Head>,
    ) -> Result<Outcome, StoreError> {
        let Unstored { seq, publication } = unstored;
        // A counter that was forgotten must not give out a number again: it begins with the time in microseconds.
        let base = head.map_or_else(|| clock::unix().as_micros() as u64, |head| head.base);
        let last = head.map_or(base, |head| head.offset);
        let offset = last + 1;
        let epoch = Arc::clone(&self.link().epoch);
        let begun = head.and_then(|head| head.begun.clone()).filter(|(of, _)| **of == *epoch);
        let begun = begun.unwrap_or_else(|| (Box::from(&*epoch), last));
        let before = head.map(Head::chain).unwrap_or_default();
        let texts = [
            (ID, format!("{}-{seq}", self.node)),
            (OFFSET, offset.to_string()),
            (BASE, base.to_string()),
            (EPOCH, format!("{} {}", begun.0, begun.1)),
            (BEFORE, before.iter().map(u64::to_string).collect::<Vec<_>>().join(",")),
        ];
        let headers = texts.each_ref().map(|(name, value)| (*name, value.as_str()));
        let payload = between_nodes::write_beginning(publication) + "}";
        let after = head.map_or(0, |head| head.seq);
        let subject = self.history_subject(&publication.stream);
        let ack = match history.put(&subject, Some(after), &headers, payload.as_bytes()).await {
            Ok(ack) => ack,
            Err(StoreError::Outrun) => return Ok(Outcome::Outrun),
            Err(error) => return Err(error),
        };
        let epoch = Arc::clone(&self.link().epoch);
        if !ack.was_there {
            let stored = Stored::At { epoch, offset, is_again: false };
            return Ok(Outcome::Stored(stored, Head { offset, base, begun: Some(begun), seq: ack.seq, before }));
        }
        // It was stored when it was sent before; others may have come since.
        let newest = self.head(history, &publication.stream).await?.ok_or(StoreError::Outrun)?;
        let first = history.at(ack.seq).await?.as_ref().and_then(Head::of);
        let at = |first: Head| Stored::At { epoch, offset: first.offset, is_again: true };
        let stored = first.map_or(Stored::Before(newest.offset), at);
        Ok(Outcome::Stored(stored, newest))
    }

    /// The newest message of a stream, from the store.
    pub(super) async fn head(&self, history: &JetStore, stream: &str) -> Result<Option<Head>, StoreError> {
        let kept = history.newest(&self.history_subject(stream)).await?;
        let head = kept.as_ref().and_then(Head::of);
        if let Some(head) = &head {
            self.saw(head.seq);
        }
        Ok(head)
    }

    pub(super) async fn read_stream(&self, history: &JetStore, stream: &str, from: From) -> Result<Read, StoreError> {
        let epoch = Arc::clone(&self.link().epoch);
        let subject = self.history_subject(stream);
        let newest = history.newest(&subject).await?;
        let Some((newest, head)) = newest.and_then(|kept| Head::of(&kept).map(|head| (kept, head))) else {
            return Ok(Read { epoch, head: None, base: 0, entries: Vec::new() });
        };
        self.saw(head.seq);
        let oldest_allowed = clock::unix().saturating_sub(self.settings.history_ttl);
        let is_wanted = |kept: &Kept, head: &Head| {
            let is_behind = match from {
                From::After(offset) => head.offset > offset,
                From::Since(since) => kept.at.as_secs() as i64 >= since,
            };
            is_behind && kept.at >= oldest_allowed
        };
        let most = self.settings.history_limit as usize;
        let mut entries = Vec::new();
        let mut found = vec![(newest, head.clone())];
        'pieces: while !found.is_empty() {
            let mut last = None;
            for (kept, head) in found {
                if entries.len() == most || !is_wanted(&kept, &head) {
                    break 'pieces;
                }
                entries.extend(entry(stream, &epoch, &kept, head.offset));
                last = Some(head);
            }
            let Some(last) = last else { break };
            found = before(history, &subject, &last, from, most - entries.len()).await?;
        }
        entries.reverse();
        Ok(Read { epoch, head: Some(head.offset), base: head.base, entries })
    }
}

/// Messages before one, the newest first, as many as it knows and as are wanted; up to the first that is not kept any more.
async fn before(
    history: &JetStore,
    subject: &str,
    head: &Head,
    from: From,
    most: usize,
) -> Result<Vec<(Kept, Head)>, StoreError> {
    let wanted = match from {
        From::After(offset) => usize::try_from(head.offset - 1 - offset.min(head.offset - 1)).unwrap_or(usize::MAX),
        From::Since(_) => most,
    };
    let numbers = head.before.iter().take(wanted.min(most));
    let kept = join_all(numbers.map(|seq| history.at(*seq))).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    for (kept, offset) in kept.into_iter().zip((0..head.offset).rev()) {
        let Some(kept) = kept.filter(|kept| *kept.message.subject == *subject) else { break };
        let Some(head) = Head::of(&kept).filter(|head| head.offset == offset) else { break };
        found.push((kept, head));
    }
    Ok(found)
}

/// A publication out of the history.
fn entry(stream: &str, epoch: &Arc<str>, kept: &Kept, offset: u64) -> Option<Entry> {
    let Ok(NodeMessage::Publication(publication, _)) = between_nodes::parse(&kept.message.payload) else { return None };
    let position = Some(Position { epoch: Arc::clone(epoch), offset });
    let publication = Publication { stream: stream.into(), position, ..publication };
    let id = kept.message.header(ID).and_then(|id| id.split_once('-'));
    let origin = id.and_then(|(node, seq)| Some(StoreId { node: NodeId::parse(node)?, seq: seq.parse().ok()? }));
    Some(Entry { publication, origin })
}
