//! The broker in NATS (2.9 or newer, with JetStream): what all nodes of a cluster keep together.
//!
//! Stores of JetStream and their subjects, with `--broker-prefix` as P:
//!
//! | store | subjects | what |
//! | --- | --- | --- |
//! | `P_history` | `_cw_.P.h.STREAM` | publications, as nodes send them to each other ([`history`]) |
//! | `P_sessions` | `_cw_.P.s.SID`, `_cw_.P.x.HASH` | sessions that wait for their clients; identities that were sent away |
//! | `P_presence` | `_cw_.P.p.STREAM.ID` | who is present, and by which sessions of which nodes ([`people`]) |
//! | `P_nodes` | `_cw_.P.n.NODE` | a lease of each node |
//! | `P_epoch` | `_cw_.P.e` | the generation of the storage |
//!
//! AnyCable makes a store for each stream and takes its numbers for offsets; names of streams then have to be names of
//! stores, which they often are not, and each costs the server files and memory. Here all streams are in one, so its numbers
//! have gaps in each stream. The offset therefore stands in the message, one more than in that before it, and JetStream
//! takes a message only as the next one of its subject behind the one that its publisher saw last: of two nodes that publish
//! at once, the later one is refused, looks again, and comes next.
//!
//! **What NATS forgets.** A machine that crashes can lose the last of what JetStream has acknowledged (`sync_interval`). A
//! position that was told to a client would then be given out again. Therefore each time that the link comes back a node
//! looks whether the history is the one it was and has come as far as it had seen it; if not, the storage gets a new epoch,
//! and no position of the old one is taken any more.

mod history;
mod people;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::COUNTER_TTLS;
use super::remote::store::{
    Count, From, LEASE, Lease, Person, Presence, Reach, Read, Remembered, Store, Stored, Trouble, Unstored,
};
use super::sent_away::ON_THE_WAY;
use crate::link::nats::{Client, Connection, JetStore, Limits, NatsError, OURS, Refused, Servers, StoreError};
use crate::link::{LinkState, keep};
use crate::model::{NodeId, ResumeTicket, SavedSession};
use crate::os::clock;

use history::{Head, Heads};

/// How long JetStream remembers ids of messages. A store is sent again within seconds or not at all.
const IDS: Duration = Duration::from_secs(60);

/// JetStream keeps nothing for less than this.
const AGE_MIN: Duration = Duration::from_secs(1);

/// Bytes of an epoch, written as characters of six bits each.
const EPOCH_BYTES: usize = 6;

/// How often a store is tried on which other nodes are quicker.
const EPOCH_TRIES: usize = 16;

/// The header of a session that says how long ago it was over when it was stored, in milliseconds.
const AGE_HEADER: &str = "Cw-Age";

/// The number of the subscription to epochs.
const EPOCH_SID: u64 = 1;

/// What the broker in NATS is told by the configuration.
#[derive(Clone, Debug)]
pub struct NatsBrokerSettings {
    /// Begins the names of everything (`--broker-prefix`).
    pub prefix: String,
    /// Messages kept of one stream (`--history-limit`).
    pub history_limit: u32,
    /// How long they are kept (`--history-ttl`).
    pub history_ttl: Duration,
    /// How long a session is kept (`--sessions-ttl`).
    pub sessions_ttl: Duration,
}

/// Everything in NATS.
pub struct NatsStore {
    servers: Arc<Servers>,
    state: Arc<LinkState>,
    settings: NatsBrokerSettings,
    node: NodeId,
    reach: watch::Sender<Reach>,
    /// Held to copy or to replace it.
    link: Mutex<Link>,
    /// Held for one look.
    heads: Mutex<Heads>,
    /// The nodes that lived when this was looked at last; none before it was.
    living: Mutex<Option<BTreeSet<String>>>,
    /// Another node has set a new epoch.
    epoch_came: Notify,
    /// A store was found to be gone.
    gone: Notify,
}

#[derive(Default)]
struct Link {
    stores: Option<Stores>,
    /// How often it was made.
    made: u64,
    epoch: Arc<str>,
    /// The newest message of the history that was seen in this epoch.
    seen: u64,
    remembered: Option<Arc<dyn Remembered>>,
}

/// The stores, over one connection.
#[derive(Clone)]
struct Stores {
    history: JetStore,
    sessions: JetStore,
    presence: JetStore,
    nodes: JetStore,
    epoch: JetStore,
}

/// The generation of the storage.
#[derive(Serialize, Deserialize)]
struct Epoch {
    epoch: String,
    /// When the history that it is for was made.
    history: String,
}

impl NatsStore {
    /// One that is not connected yet.
    pub fn new(servers: Arc<Servers>, state: Arc<LinkState>, settings: NatsBrokerSettings, node: NodeId) -> NatsStore {
        NatsStore {
            servers,
            state,
            settings,
            node,
            reach: watch::Sender::new(Reach::Down(Instant::now())),
            link: Mutex::default(),
            heads: Mutex::default(),
            living: Mutex::default(),
            epoch_came: Notify::new(),
            gone: Notify::new(),
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        lock(&self.link)
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        lock(&self.heads)
    }

    /// A subject of ours; the last token may be a wildcard.
    fn subject(&self, kind: char, rest: &str) -> String {
        format!("{OURS}.{}.{kind}{rest}", self.settings.prefix)
    }

    fn stores(&self) -> Result<Stores, Trouble> {
        let away = || match self.state.why() {
            why if why.is_empty() => Trouble::Away("not connected yet".to_owned()),
            why => Trouble::Away(why),
        };
        self.link().stores.clone().ok_or_else(away)
    }

    /// Connects and works until the link is lost; gives why.
    async fn work(&self, remembered: &Arc<dyn Remembered>) -> NatsError {
        let connection = match Connection::open(&self.servers).await {
            Ok(connection) => connection,
            Err(why) => return why,
        };
        let client = connection.client();
        let live = async {
            if let Err(error) = self.begin(client, remembered).await {
                return NatsError::Closed(Some(error.to_string()));
            }
            self.state.came_up();
            self.until_gone().await
        };
        let why = tokio::select! {
            why = connection.run(|_| self.epoch_came.notify_one()) => why,
            why = live => why,
        };
        if self.link().stores.take().is_some() {
            self.reach.send_replace(Reach::Down(Instant::now()));
        }
        why
    }

    /// Looks at the epoch whenever another node has set one; ends when a store is gone, which is made anew then.
    async fn until_gone(&self) -> NatsError {
        loop {
            tokio::select! {
                () = self.epoch_came.notified() => {
                    if let Err(trouble) = self.look_at_epoch().await {
                        tracing::debug!(%trouble, "the epoch could not be read, and will be with the next lease");
                    }
                }
                () = self.gone.notified() => return NatsError::Closed(Some(StoreError::Gone.to_string())),
            }
        }
    }

    /// What an error means: where nobody has answered, perhaps it was done.
    fn trouble(&self, error: StoreError) -> Trouble {
        match error {
            StoreError::Link(refused @ Refused::TooLong(_)) => Trouble::Never(refused.to_string()),
            StoreError::Link(refused) => Trouble::Away(refused.to_string()),
            StoreError::Gone => {
                self.gone.notify_one();
                Trouble::Refused(StoreError::Gone.to_string())
            }
            error => Trouble::Refused(error.to_string()),
        }
    }

    /// Makes the stores, and sees whether they have what they had.
    async fn begin(&self, client: Client, remembered: &Arc<dyn Remembered>) -> Result<(), StoreError> {
        client.subscribe(&self.subject('e', ""), EPOCH_SID);
        let store = |name: &str| JetStore::new(client.clone(), format!("{}_{name}", self.settings.prefix));
        let stores = Stores {
            history: store("history"),
            sessions: store("sessions"),
            presence: store("presence"),
            nodes: store("nodes"),
            epoch: store("epoch"),
        };
        let limits = |subjects: String, per_subject: u64, age: Duration| Limits {
            subjects: vec![subjects],
            per_subject,
            age,
            ids: if age.is_zero() { IDS } else { IDS.min(age) },
        };
        // The counter of a stream is its newest message, so all are kept that long; they are not given out any more.
        let counters = self.settings.history_ttl.max(AGE_MIN) * COUNTER_TTLS;
        let kept = u64::from(self.settings.history_limit).max(1);
        let history = limits(self.subject('h', ".*"), kept, counters);
        let mut sessions = limits(self.subject('s', ".*"), 1, self.settings.sessions_ttl.max(AGE_MIN));
        sessions.subjects.push(self.subject('x', ".*"));
        let found = stores.history.ensure(&history).await?;
        stores.sessions.ensure(&sessions).await?;
        stores.presence.ensure(&limits(self.subject('p', ".*.*"), 1, Duration::ZERO)).await?;
        stores.nodes.ensure(&limits(self.subject('n', ".*"), 1, LEASE)).await?;
        stores.epoch.ensure(&limits(self.subject('e', ""), 1, Duration::ZERO)).await?;
        let (known, seen) = {
            let link = self.link();
            (Arc::clone(&link.epoch), link.seen)
        };
        let is_over = |epoch: &Epoch| epoch.history != found.created || (*epoch.epoch == *known && found.last < seen);
        let epoch = self.epoch_unless(&stores, &found.created, is_over).await?;
        *self.heads() = Heads::default();
        self.adopt(&epoch, Some(remembered));
        let mut link = self.link();
        link.seen = link.seen.max(found.last);
        link.made += 1;
        let made = link.made;
        link.stores = Some(stores);
        drop(link);
        self.reach.send_replace(Reach::Up(made));
        Ok(())
    }

    /// The epoch; a new one for this history if it is over or there is none.
    async fn epoch_unless(
        &self,
        stores: &Stores,
        history: &str,
        is_over: impl Fn(&Epoch) -> bool,
    ) -> Result<Arc<str>, StoreError> {
        let subject = self.subject('e', "");
        for _ in 0..EPOCH_TRIES {
            let kept = stores.epoch.newest(&subject).await?;
            let epoch = kept.as_ref().and_then(|kept| serde_json::from_slice::<Epoch>(&kept.message.payload).ok());
            if let Some(epoch) = epoch.filter(|epoch| !is_over(epoch)) {
                return Ok(epoch.epoch.into());
            }
            let epoch = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; EPOCH_BYTES]>());
            let written = Epoch { epoch: epoch.clone(), history: history.to_owned() };
            let payload = serde_json::to_vec(&written).unwrap_or_default();
            match stores.epoch.put(&subject, Some(kept.map_or(0, |kept| kept.seq)), &[], &payload).await {
                Ok(_) => return Ok(epoch.into()),
                // Another node was quicker.
                Err(StoreError::Outrun) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Outrun)
    }

    /// This is the epoch from now on.
    fn adopt(&self, epoch: &Arc<str>, remembered: Option<&Arc<dyn Remembered>>) {
        let mut link = self.link();
        if link.epoch != *epoch {
            link.epoch = Arc::clone(epoch);
            link.seen = 0;
        }
        if let Some(remembered) = remembered {
            link.remembered = Some(Arc::clone(remembered));
        }
        let remembered = link.remembered.clone();
        drop(link);
        remembered.iter().for_each(|remembered| remembered.epoch(epoch));
    }

    async fn look_at_epoch(&self) -> Result<(), Trouble> {
        let stores = self.stores()?;
        let found = stores.history.info("").await.map_err(|error| self.trouble(error))?;
        let epoch = self.epoch_unless(&stores, &found.created, |epoch| epoch.history != found.created).await;
        let epoch = epoch.map_err(|error| self.trouble(error))?;
        if self.link().epoch != epoch {
            *self.heads() = Heads::default();
            self.adopt(&epoch, None);
        }
        Ok(())
    }

    /// The history has come this far.
    fn saw(&self, seq: u64) {
        let mut link = self.link();
        link.seen = link.seen.max(seq);
    }

    /// The subject for whether identifiers were sent away. They are hashed because they may be long.
    fn sent_away_subject(&self, identifiers: &str) -> String {
        let hash = &Sha256::digest(identifiers.as_bytes())[..16];
        self.subject('x', &format!(".{}", BASE64_URL_SAFE_NO_PAD.encode(hash)))
    }

    async fn save_one(&self, stores: &Stores, session: &SavedSession, age: Duration) -> Result<(), StoreError> {
        let Ok(written) = rmp_serde::to_vec_named(session) else { return Ok(()) };
        let subject = self.subject('s', &format!(".{}", session.sid));
        let age = age.as_millis().to_string();
        stores.sessions.put(&subject, None, &[(AGE_HEADER, &age)], &written).await.map(drop)
    }
}

impl Store for NatsStore {
    fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    async fn run(&self, remembered: Arc<dyn Remembered>) {
        keep(&self.state, || self.work(&remembered)).await;
    }

    async fn store(&self, batch: &[Unstored]) -> Vec<Result<Stored, Trouble>> {
        match self.stores() {
            Ok(stores) => self.store_all(&stores.history, batch).await,
            Err(trouble) => batch.iter().map(|_| Err(trouble.clone())).collect(),
        }
    }

    async fn read(&self, stream: &str, from: From) -> Result<Read, Trouble> {
        let history = self.stores()?.history;
        self.read_stream(&history, stream, from).await.map_err(|error| self.trouble(error))
    }

    async fn begin_anew(&self) -> Result<(), Trouble> {
        let stores = self.stores()?;
        let known = Arc::clone(&self.link().epoch);
        let found = stores.history.info("").await.map_err(|error| self.trouble(error))?;
        let epoch = self.epoch_unless(&stores, &found.created, |epoch| *epoch.epoch == *known).await;
        self.adopt(&epoch.map_err(|error| self.trouble(error))?, None);
        Ok(())
    }

    async fn counts(&self, streams: &[Arc<str>]) -> Result<Vec<Count>, Trouble> {
        let history = self.stores()?.history;
        let heads = streams.iter().map(|stream| self.head(&history, stream));
        let heads = try_join_all(heads).await.map_err(|error| self.trouble(error))?;
        Ok(heads.into_iter().map(|head| head.map(Head::count).unwrap_or_default()).collect())
    }

    async fn save(&self, sessions: &[(&SavedSession, Duration)]) -> Result<(), Trouble> {
        let stores = self.stores()?;
        let in_time = sessions.iter().filter(|(_, age)| *age < self.settings.sessions_ttl);
        let saved = join_all(in_time.map(|(session, age)| self.save_one(&stores, session, *age))).await;
        saved.into_iter().collect::<Result<(), _>>().map_err(|error| self.trouble(error))
    }

    async fn take(&self, ticket: &ResumeTicket) -> Result<Option<(SavedSession, Duration)>, Trouble> {
        let sessions = self.stores()?.sessions;
        let subject = self.subject('s', &format!(".{}", ticket.sid));
        let Some(kept) = sessions.newest(&subject).await.map_err(|error| self.trouble(error))? else { return Ok(None) };
        let Ok(session) = rmp_serde::from_slice::<SavedSession>(&kept.message.payload) else {
            tracing::warn!(sid = %ticket.sid, "a session could not be read: another version of this server kept it");
            return Ok(None);
        };
        let age = kept
            .message
            .header(AGE_HEADER)
            .and_then(|age| age.parse().ok())
            .map_or(Duration::ZERO, Duration::from_millis);
        let was_over = kept.at.saturating_sub(age);
        let now_age = clock::unix().saturating_sub(was_over);
        if now_age > self.settings.sessions_ttl || !session.may_be_resumed_by(ticket) {
            return Ok(None);
        }
        let sent_away = sessions
            .newest(&self.sent_away_subject(&session.identifiers))
            .await
            .map_err(|error| self.trouble(error))?;
        let on_the_way = Duration::from_secs(ON_THE_WAY.into());
        if sent_away.is_some_and(|sent_away| sent_away.at + on_the_way >= was_over) {
            return Ok(None);
        }
        // Whoever deletes it has it.
        let is_mine = sessions.delete(kept.seq).await.map_err(|error| self.trouble(error))?;
        Ok(is_mine.then_some((session, now_age)))
    }

    async fn send_away(&self, identifiers: &str) -> Result<(), Trouble> {
        let sessions = self.stores()?.sessions;
        sessions
            .put(&self.sent_away_subject(identifiers), None, &[], b"")
            .await
            .map(drop)
            .map_err(|error| self.trouble(error))
    }

    async fn change_presence(&self, changes: &[Presence]) -> Result<Vec<bool>, Trouble> {
        let presence = self.stores()?.presence;
        self.change_people(&presence, changes).await.map_err(|error| self.trouble(error))
    }

    async fn present(&self, stream: &str) -> Result<Vec<Person>, Trouble> {
        let presence = self.stores()?.presence;
        self.people_of(&presence, stream).await.map_err(|error| self.trouble(error))
    }

    async fn keep_lease(&self) -> Result<Lease, Trouble> {
        self.look_at_epoch().await?;
        let stores = self.stores()?;
        let own = self.subject('n', &format!(".{}", self.node));
        let was_known = stores.nodes.newest(&own).await.map_err(|error| self.trouble(error))?.is_some();
        stores.nodes.put(&own, None, &[], b"").await.map_err(|error| self.trouble(error))?;
        let found = stores.nodes.info(&self.subject('n', ".*")).await.map_err(|error| self.trouble(error))?;
        let living: BTreeSet<String> =
            found.subjects.keys().filter_map(|subject| Some(subject.rsplit_once('.')?.1.to_owned())).collect();
        let nodes = living.len();
        let before = lock(&self.living).clone();
        let some_died = before.is_none_or(|before| !before.is_subset(&living));
        // One is enough, and all know which.
        let is_first = living.first().is_some_and(|first| *first == self.node.to_string());
        let gone = if some_died && is_first {
            self.sweep(&stores.presence, &living).await.map_err(|error| self.trouble(error))?
        } else {
            Vec::new()
        };
        *lock(&self.living) = Some(living);
        Ok(Lease { was_known, nodes, gone })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave any of them half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
