//! What a remote broker does on the thread "links": answers questions, opens and fills the gate, tells the storage who comes
//! and goes.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::gate::{Filling, Want, remembered_for};
use super::store::{From, LEASE_EVERY, Presence, Reach, Read, Remembered, Store, Trouble};
use super::writer::Writer;
use super::{Job, Running, Shared, WAIT_MAX, YIELD, YieldRequest};
use crate::broker::{PRESENT_BYTES_MAX, event_of};
use crate::model::{
    BrokerError, BrokerQuestion, BrokerReply, HistoryRequest, Missed, NameHasher, Position, Publication, ResumeTicket,
    SavedSession, Sid, SlotKey,
};
use crate::presence;

/// How long a session that lives on another node is waited for.
const YIELD_MAX: Duration = Duration::from_secs(1);

/// Questions of clients that are asked at once.
const QUESTIONS_MAX: usize = 256;

/// Streams whose counters are read at once.
const COUNTS_AT_ONCE: usize = 256;

/// Streams that are filled at once.
const FILLS_AT_ONCE: usize = 16;

/// How long a gap may close by itself: what is missing is often on its way.
const FILL_AFTER: Duration = Duration::from_millis(20);

/// How long the storage is left alone that refuses something.
const AFTER_REFUSAL: Duration = Duration::from_millis(500);

/// Streams whose last store is remembered, to see whether the storage remembers it, too.
const RECENT_MAX: usize = 64;

/// The streams that this node stored to last, how far they were, and when.
pub struct Recent {
    counters_ttl: Duration,
    stores: Mutex<VecDeque<(Arc<str>, u64, Instant)>>,
}

impl Recent {
    /// None. `counters_ttl`: how long the storage remembers how far a stream is.
    pub fn new(counters_ttl: Duration) -> Recent {
        Recent { counters_ttl, stores: Mutex::default() }
    }

    /// A store was acknowledged.
    pub fn note(&self, stream: &str, offset: u64) {
        let mut recent = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let known = recent.iter().position(|(name, ..)| **name == *stream);
        let name = known.and_then(|at| recent.remove(at)).map_or_else(|| stream.into(), |(name, ..)| name);
        recent.push_back((name, offset, Instant::now()));
        if recent.len() > RECENT_MAX {
            recent.pop_front();
        }
    }

    fn list(&self) -> Vec<(Arc<str>, u64)> {
        let recent = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let known = recent.iter().filter(|(.., at)| at.elapsed() < remembered_for(self.counters_ttl));
        known.map(|(name, offset, _)| (Arc::clone(name), *offset)).collect()
    }

    /// Each with how long ago it was.
    pub(super) fn given(&self) -> Vec<(Arc<str>, u64, Duration)> {
        let recent = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().map(|(name, offset, at)| (Arc::clone(name), *offset, at.elapsed())).collect()
    }

    pub(super) fn take_over(&self, given: Vec<(Arc<str>, u64, Duration)>) {
        let now = Instant::now();
        let known = given.into_iter().filter_map(|(name, offset, ago)| Some((name, offset, now.checked_sub(ago)?)));
        *self.stores.lock().unwrap_or_else(PoisonError::into_inner) = known.take(RECENT_MAX).collect();
    }

    fn clear(&self) {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Remembered for Shared {
    fn reached(&self) -> Vec<(Arc<str>, u64)> {
        let mut reached = self.recent.list();
        reached.extend(self.gate.offsets());
        reached
    }

    fn epoch(&self, epoch: &Arc<str>) {
        if self.gate.set_epoch(epoch) {
            self.recent.clear();
            self.remote_metrics.broker_epochs_total.inc();
            tracing::warn!(
                epoch = &**epoch,
                "the broker's storage has lost what it had acknowledged: positions begin anew, and clients that come back \
                 load their pages from the app"
            );
        }
    }
}

/// The same for all of them.
pub struct Tasks<S> {
    store: Arc<S>,
    shared: Arc<Shared>,
}

impl<S> Clone for Tasks<S> {
    fn clone(&self) -> Tasks<S> {
        Tasks { store: Arc::clone(&self.store), shared: Arc::clone(&self.shared) }
    }
}

impl<S: Store> Running<S> {
    /// Runs for as long as the node.
    pub async fn run(self) {
        let Running { tasks, publications, jobs } = self;
        let writer = Writer::new(Arc::clone(&tasks.store), Arc::clone(&tasks.shared));
        tokio::join!(
            tasks.store.run(Arc::clone(&tasks.shared) as Arc<_>),
            writer.run(publications),
            tasks.keep_working(jobs),
            tasks.keep_opening(),
            tasks.keep_filling(),
            tasks.keep_doubting(),
            tasks.keep_checking(),
            tasks.keep_saving(),
            tasks.keep_telling(),
            tasks.keep_lease(),
        );
    }
}

impl<S: Store> Tasks<S> {
    pub fn new(store: S, shared: Arc<Shared>) -> Tasks<S> {
        Tasks { store: Arc::new(store), shared }
    }

    async fn keep_working(&self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        let places = Arc::new(Semaphore::new(QUESTIONS_MAX));
        while let Some(job) = jobs.recv().await {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let tasks = self.clone();
            tokio::spawn(async move {
                tasks.work(job).await;
                tasks.shared.jobs.fetch_sub(1, Relaxed);
                drop(place);
            });
        }
    }

    async fn work(&self, job: Job) {
        match job {
            Job::Ask(key, since, question) => {
                let deadline = since + WAIT_MAX;
                match question {
                    BrokerQuestion::History { streams, since } => {
                        self.shared.outlet.answer(key, self.history(&streams, &since, deadline).await);
                    }
                    BrokerQuestion::Present { stream, records } => {
                        let present = self.present(&stream, records, PRESENT_BYTES_MAX, deadline).await;
                        self.shared.outlet.answer(key, present.map(BrokerReply::Present));
                    }
                    BrokerQuestion::Resume(ticket) => self.resume(key, &ticket, deadline).await,
                }
            }
            Job::Present(stream, answer) => {
                let present = self.present(&stream, true, usize::MAX, Instant::now() + WAIT_MAX).await;
                let _ = answer.send(present);
            }
            Job::SendAway(identifiers, done) => {
                // Until the storage knows: who was sent away must not come back on another node.
                while let Err(trouble) = self.store.send_away(&identifiers).await {
                    self.after(&trouble).await;
                }
                let _ = done.send(());
            }
        }
    }

    /// Waits until the storage may be asked again.
    async fn after(&self, trouble: &Trouble) {
        match trouble {
            Trouble::Away(_) => {
                let mut reach = self.store.reach();
                let is_up = |reach: &Reach| matches!(reach, Reach::Up(_));
                // Where it is up by now, the link was lost only a moment ago.
                if is_up(&reach.borrow_and_update()) {
                    sleep(AFTER_REFUSAL).await;
                }
                let _ = reach.wait_for(is_up).await;
            }
            Trouble::Refused(why) | Trouble::Never(why) => {
                tracing::warn!(why, "the broker's server refuses something, which is tried again");
                sleep(AFTER_REFUSAL).await;
            }
        }
    }

    /// Waits a moment where the storage is there, but did not do what it was asked, or did not answer. Tells whether it is there.
    async fn may_be_asked_again(&self, trouble: &Trouble) -> bool {
        let is_up = || matches!(*self.store.reach().borrow(), Reach::Up(_));
        if !is_up() {
            return false;
        }
        match trouble {
            Trouble::Away(_) => sleep(AFTER_REFUSAL).await,
            Trouble::Refused(_) | Trouble::Never(_) => self.after(trouble).await,
        }
        true
    }

    /// Asks the storage, and again where the link was lost meanwhile.
    async fn asked<T, F: Future<Output = Result<T, Trouble>> + Send>(
        &self,
        deadline: Instant,
        ask: impl Fn() -> F + Send,
    ) -> Result<T, BrokerError> {
        loop {
            if Instant::now() >= deadline || self.is_long_gone() {
                return Err(BrokerError::Unavailable);
            }
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => {
                    timeout_at(deadline, self.after(&trouble)).await.map_err(|_| BrokerError::Unavailable)?;
                }
            }
        }
    }

    fn is_long_gone(&self) -> bool {
        matches!(*self.store.reach().borrow(), Reach::Down(since) if since.elapsed() >= WAIT_MAX)
    }

    async fn history(
        &self,
        streams: &[Box<str>],
        since: &HistoryRequest,
        deadline: Instant,
    ) -> Result<BrokerReply, BrokerError> {
        // Of two entries for one stream the later one counts.
        let mut had: HashMap<&str, &Position, NameHasher> = HashMap::default();
        had.extend(since.positions.iter().map(|(stream, position)| (&**stream, position)));
        let of = |stream| self.missed(stream, had.get(stream).copied(), since.since, deadline);
        let missed = try_join_all(streams.iter().map(|stream| of(stream))).await;
        match &missed {
            Ok(_) => self.shared.metrics.history_served_total.inc(),
            Err(_) => self.shared.metrics.history_rejected_total.inc(),
        }
        Ok(BrokerReply::History(missed?))
    }

    async fn missed(
        &self,
        stream: &str,
        had: Option<&Position>,
        since: i64,
        deadline: Instant,
    ) -> Result<Missed, BrokerError> {
        let now = self.shared.outlet.now().unix.as_secs() as i64;
        let from = match had {
            Some(had) => From::After(had.offset),
            None if since > 0 && since <= now => From::Since(since),
            None => return Ok(Missed { stream: stream.into(), had: 0, publications: Vec::new() }),
        };
        // What passes the gate begins where it was opened, and has to begin within what is read.
        if let Some(open) = self.shared.gate.watch(stream, 0) {
            // Dropped when nobody follows the stream any more.
            timeout_at(deadline, open).await.map(drop).map_err(|_| BrokerError::Unavailable)?;
        }
        let read = self.asked(deadline, || self.store.read(stream, from)).await?;
        let Read { epoch, head, entries, .. } = &read;
        if let Some(had) = had {
            let is_whole =
                head.is_some_and(|head| had.offset > 0 && head.checked_sub(had.offset) == Some(entries.len() as u64));
            if had.epoch != *epoch || !is_whole {
                return Err(BrokerError::Gone);
            }
        }
        self.cover(stream, &read, deadline).await?;
        let had = had.map_or(0, |had| had.offset);
        let publications = read.entries.into_iter().map(|entry| entry.publication).collect();
        Ok(Missed { stream: stream.into(), had, publications })
    }

    /// Waits until the gate has delivered everything that was read: what comes later is not covered by the answer.
    async fn cover(&self, stream: &str, read: &Read, deadline: Instant) -> Result<(), BrokerError> {
        let Some(head) = read.head else { return Ok(()) };
        let gate = &self.shared.gate;
        gate.offer(stream, head, &read.entries);
        let Some(reached) = gate.watch(stream, head) else { return Ok(()) };
        // Dropped when nobody follows the stream any more.
        timeout_at(deadline, reached).await.map(drop).map_err(|_| BrokerError::Unavailable)
    }

    async fn present(
        &self,
        stream: &str,
        records: bool,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, BrokerError> {
        let people = self.asked(deadline, || self.store.present(stream)).await?;
        let all = people.iter().map(|person| (&*person.id, person.info.as_deref().map(str::as_bytes)));
        let mut message = Vec::new();
        presence::write_info(people.len(), all.filter(|_| records), &mut message);
        if message.len() > bytes_max {
            message.clear();
            presence::write_info(people.len(), std::iter::empty(), &mut message);
        }
        Ok(message)
    }

    async fn resume(&self, key: SlotKey, ticket: &ResumeTicket, deadline: Instant) {
        let shared = &self.shared;
        match self.found(ticket, deadline).await {
            Ok(saved) => shared.give(key, saved),
            Err(error) => {
                shared.metrics.sessions_refused_total.inc();
                shared.outlet.answer(key, Err(error));
            }
        }
        shared.resuming.fetch_sub(1, Relaxed);
    }

    async fn found(&self, ticket: &ResumeTicket, deadline: Instant) -> Result<Option<SavedSession>, BrokerError> {
        let Shared { yields, settings, .. } = &*self.shared;
        if settings.sessions_ttl.is_zero() {
            return Ok(None);
        }
        if let Some(left) = yields.until_left(ticket.sid) {
            let _ = timeout_at(deadline, left).await;
        }
        if let Some(saved) = self.take(ticket, deadline).await? {
            return Ok(Some(saved));
        }
        // Another one may have begun a moment ago.
        if self.shared.nodes() < 2 && (self.lease().await.is_err() || self.shared.nodes() < 2) {
            return Ok(None);
        }
        // It may live on another node.
        let Some(yielded) = yields.ask(ticket.sid) else { return Ok(None) };
        let request = YieldRequest { sid: ticket.sid, identifiers: ticket.identifiers.clone() };
        self.shared.say(YIELD, &request);
        let _ = timeout(YIELD_MAX, yielded).await;
        yields.yielded(ticket.sid);
        self.take(ticket, deadline).await
    }

    async fn take(&self, ticket: &ResumeTicket, deadline: Instant) -> Result<Option<SavedSession>, BrokerError> {
        let taken = self.asked(deadline, || self.store.take(ticket)).await?;
        Ok(taken.map(|(saved, age)| {
            let now = self.shared.outlet.now().mono.as_secs();
            SavedSession { saved_at: now.saturating_sub(age.as_secs()) as u32, ..saved }
        }))
    }

    /// Reads the counters of streams that are new to this node, and after a loss those of all.
    async fn keep_opening(&self) {
        let gate = &self.shared.gate;
        loop {
            let names = gate.wanted(Want::Open, COUNTS_AT_ONCE).await;
            match self.store.counts(&names).await {
                Ok(counts) => gate.opened(names.into_iter().zip(counts)),
                Err(trouble) => {
                    gate.not_opened(&names);
                    // Of storage that is away all are read when it is back.
                    if self.may_be_asked_again(&trouble).await {
                        names.iter().for_each(|name| gate.subscribed(name));
                    }
                }
            }
        }
    }

    async fn keep_filling(&self) {
        loop {
            let names = self.shared.gate.wanted(Want::Fill, FILLS_AT_ONCE).await;
            sleep(FILL_AFTER).await;
            let _turn = self.shared.turns.filling.next().await;
            join_all(names.into_iter().map(|name| self.fill(name))).await;
        }
    }

    async fn fill(&self, name: Arc<str>) {
        let gate = &self.shared.gate;
        let Some(last) = gate.last(&name) else { return gate.filled(&name, None) };
        if !gate.has_gap(&name) {
            return gate.filled(&name, None);
        }
        match self.store.read(&name, From::After(last)).await {
            Ok(Read { head, base, entries, .. }) => {
                gate.filled(&name, Some(Filling { after: last, head: head.unwrap_or(0), base, entries }));
            }
            // Of storage that is away everything is looked at when it is back.
            Err(trouble) => {
                let again = self.may_be_asked_again(&trouble).await;
                gate.filled(&name, None);
                if again {
                    gate.refill(&name);
                }
            }
        }
    }

    /// Storage that has less than it had begins anew. What was read of it may only have been overtaken by what came
    /// meanwhile, so it is looked at again.
    async fn keep_doubting(&self) {
        loop {
            let names = self.shared.gate.wanted(Want::Doubt, COUNTS_AT_ONCE).await;
            let reached = names.into_iter().filter_map(|name| Some((self.shared.gate.last(&name)?, name)));
            let (reached, streams): (Vec<u64>, Vec<Arc<str>>) = reached.unzip();
            // Where it is away it is checked when it is back.
            let begun = match self.store.counts(&streams).await {
                Ok(counts) if counts.iter().zip(&reached).all(|(count, reached)| count.head >= *reached) => continue,
                Ok(_) => self.store.begin_anew().await,
                Err(trouble) => Err(trouble),
            };
            if let Err(trouble) = begun {
                tracing::debug!(%trouble, "the storage has less than it had, and could not begin anew");
            }
        }
    }

    /// Whatever was missed while the link was away is fetched when it is back.
    async fn keep_checking(&self) {
        let mut reach = self.store.reach();
        loop {
            if matches!(*reach.borrow_and_update(), Reach::Up(_)) {
                self.shared.gate.open_all();
            }
            if reach.changed().await.is_err() {
                return;
            }
        }
    }

    async fn keep_saving(&self) {
        let Shared { saves, outlet, .. } = &*self.shared;
        loop {
            let sessions = saves.next().await;
            let turn = self.shared.turns.saving.next().await;
            let now = outlet.now().mono.as_secs();
            let aged: Vec<_> = sessions
                .iter()
                .map(|session| (session, Duration::from_secs(now.saturating_sub(u64::from(session.saved_at)))))
                .collect();
            match self.store.save(&aged).await {
                Ok(()) => {}
                Err(trouble @ Trouble::Away(_)) => {
                    drop(turn);
                    self.after(&trouble).await;
                    continue;
                }
                Err(Trouble::Refused(why) | Trouble::Never(why)) => {
                    tracing::warn!(why, sessions = sessions.len(), "sessions were not stored, and cannot be resumed");
                }
            }
            saves.taken(&sessions);
            let sids: Vec<Sid> = sessions.iter().map(|session| session.sid).collect();
            sids.into_iter().for_each(|sid| self.shared.gone(sid));
        }
    }

    async fn keep_telling(&self) {
        let people = &self.shared.people;
        loop {
            let changes = people.next().await;
            let turn = self.shared.turns.telling.next().await;
            match self.store.change_presence(&changes).await {
                Ok(due) => {
                    people.told(&changes);
                    for (Presence { stream, person, is_there, .. }, _) in
                        changes.iter().zip(due).filter(|(_, due)| *due)
                    {
                        self.tell(event_of(stream, &person.id, person.info.as_deref(), *is_there));
                    }
                }
                Err(trouble @ Trouble::Away(_)) => {
                    drop(turn);
                    self.after(&trouble).await;
                }
                Err(Trouble::Refused(why) | Trouble::Never(why)) => {
                    tracing::warn!(why, "changes of presence were not stored");
                    people.told(&changes);
                }
            }
        }
    }

    /// Tells who follows a stream, here and elsewhere, that somebody has come or gone.
    fn tell(&self, event: Option<Publication>) {
        if let Some(event) = event {
            self.shared.outlet.announce(&event);
            self.shared.gate.pass(event, None);
        }
    }

    /// Says that this node lives, and does what follows from the answer.
    async fn lease(&self) -> Result<(), Trouble> {
        let lease = self.store.keep_lease().await?;
        self.shared.set_nodes(lease.nodes);
        if !lease.was_known {
            self.shared.people.tell_again();
        }
        for (stream, id) in lease.gone {
            self.tell(event_of(&stream, &id, None, false));
        }
        Ok(())
    }

    /// Says again and again that this node lives; at once when the link is back.
    async fn keep_lease(&self) {
        let mut reach = self.store.reach();
        loop {
            reach.mark_unchanged();
            let turn = self.shared.turns.leasing.next().await;
            if let Err(trouble) = self.lease().await {
                tracing::debug!(%trouble, "the broker's server was not told that this node lives");
            }
            drop(turn);
            tokio::select! {
                changed = reach.changed() => if changed.is_err() { return },
                () = sleep(LEASE_EVERY) => {}
                // The answer says which epoch it is now.
                () = self.shared.gate.unknown_epoch.notified() => sleep(FILL_AFTER).await,
            }
        }
    }
}
