//! The broker of a process that is one of several: everything is kept by the parent, and asked for over the link.
//!
//! The link is the order of everything. What the parent says about a stream comes in the order of that stream, an answer comes
//! behind the publications that it covers, and what is said here before a question is known when it is answered. So nothing
//! waits here for anything but the parent's word.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::hub::StreamKey;
use crate::link::local::messages::{ToChild, ToParent, Welcome};
use crate::link::local::{Lost, Sender};
use crate::model::{
    BrokerError, BrokerQuestion, BrokerReply, Now, PresenceChange, Publication, RemoteDisconnect, Reply, ResumeTicket,
    SavedSession, Sid, SlotKey,
};

use super::sent_away::SentAway;
use super::{BrokerMetrics, Place};

/// Where what the parent says goes to. Nothing here waits.
pub trait FromParent: Send + Sync + 'static {
    /// A publication that has its place, for the shards that follow its stream.
    fn deliver(&self, publication: Publication, credit: Credit);

    /// Sessions to be sent away.
    fn send_away(&self, disconnect: RemoteDisconnect);

    /// The answer to a session's question.
    fn answer(&self, key: SlotKey, reply: Reply);

    /// A session is to be given up to whoever shows the ticket.
    fn ask_to_yield(&self, place: Place, ticket: ResumeTicket);
}

/// How often it is looked at what shards have not delivered.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A publication's share of the parent's bound. Given back when it is dropped.
pub struct Credit {
    sender: Sender<ToParent>,
    places: u32,
}

impl Drop for Credit {
    fn drop(&mut self) {
        // What the parent itself has to tell has no bound.
        if self.places == 0 {
            return;
        }
        self.sender.delivered(self.places);
    }
}

/// The node's end of it.
pub struct ParentBroker {
    sender: Sender<ToParent>,
    remembers: bool,
    /// How often the parent was told that a stream is followed.
    follows: AtomicU64,
    /// Of how many of these it is certain that the parent has heard.
    known: AtomicU64,
    sent_away: SentAway,
    /// Who waits until the parent has taken something.
    taken: Waiting<()>,
    /// Who waits for who is present.
    present: Waiting<Result<Vec<u8>, BrokerError>>,
    /// Nothing is counted here: the parent does that.
    metrics: BrokerMetrics,
}

/// Those who wait for an answer, by number.
struct Waiting<T>(Mutex<(u64, HashMap<u64, oneshot::Sender<T>>)>);

impl<T> Waiting<T> {
    fn add(&self) -> (u64, oneshot::Receiver<T>) {
        let (answer, is_answered) = oneshot::channel();
        let mut state = self.state();
        state.0 += 1;
        let number = state.0;
        state.1.insert(number, answer);
        (number, is_answered)
    }

    fn answered(&self, number: u64, answer: T) {
        let waiting = self.state().1.remove(&number);
        // Who has given up is gone.
        waiting.map(|waiting| waiting.send(answer));
    }

    /// Tells whether it was still waited for.
    fn forget(&self, number: u64) -> bool {
        self.state().1.remove(&number).is_some()
    }

    fn state(&self) -> MutexGuard<'_, (u64, HashMap<u64, oneshot::Sender<T>>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Waiting(Mutex::default())
    }
}

/// Tells the parent if nobody waits any more.
struct GivesUp<'a> {
    broker: &'a ParentBroker,
    number: u64,
}

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        if self.broker.taken.forget(self.number) {
            self.broker.sender.put(&ToParent::GiveUp { number: self.number });
        }
    }
}

impl ParentBroker {
    /// A broker behind this link. `sessions_ttl`: how long a session is kept.
    pub fn new(sender: Sender<ToParent>, welcome: &Welcome, sessions_ttl: Duration) -> ParentBroker {
        ParentBroker {
            sender,
            remembers: welcome.remembers,
            follows: AtomicU64::new(0),
            known: AtomicU64::new(0),
            sent_away: SentAway::new(sessions_ttl),
            taken: Waiting::default(),
            present: Waiting::default(),
            metrics: BrokerMetrics::default(),
        }
    }

    /// For the metrics' names. The parent counts.
    pub fn metrics(&self) -> &BrokerMetrics {
        &self.metrics
    }

    /// Whether history, sessions and presence are kept.
    pub fn remembers(&self) -> bool {
        self.remembers
    }

    /// Whether everything that was to be said is said, or never will be.
    pub fn has_said_all(&self) -> bool {
        self.sender.waiting_bytes() == 0
    }

    /// Publishes, and waits until everybody who is to have these has them to deliver. Waits for room first.
    ///
    /// # Errors
    /// The link is lost, and perhaps they are published.
    pub async fn publish(&self, publications: Vec<Publication>) -> Result<(), Lost> {
        self.sender.room().await;
        let (number, is_taken) = self.taken.add();
        let _given_up = GivesUp { broker: self, number };
        let is_said = self.sender.put(&ToParent::Publish { number, publications });
        self.wait(is_said, is_taken).await
    }

    /// Waits until the parent has carried out everything that was said to it.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn carried_out(&self) -> Result<(), Lost> {
        let (number, is_taken) = self.taken.add();
        let is_said = self.sender.put(&ToParent::CarryOut { number });
        self.wait(is_said, is_taken).await
    }

    /// Hands over to a successor: when this is done, everything that came is delivered, and nothing more comes for clients until
    /// [`go_on`](Self::go_on).
    ///
    /// # Errors
    /// The link is lost.
    pub async fn hand_over(&self) -> Result<(), Lost> {
        let (number, is_taken) = self.taken.add();
        let is_said = self.sender.put(&ToParent::HandOver { number });
        self.wait(is_said, is_taken).await?;
        while self.sender.undelivered() > 0 && !self.sender.is_lost() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Waits until the successor has said to the parent what it has.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn succeeded(&self) -> Result<(), Lost> {
        let (number, is_taken) = self.taken.add();
        let is_said = self.sender.put(&ToParent::AwaitSuccessor { number });
        self.wait(is_said, is_taken).await
    }

    /// What the parent has sent and shards have not delivered, in places of its bound.
    pub fn undelivered(&self) -> u32 {
        self.sender.undelivered()
    }

    /// Nothing was handed over.
    pub fn go_on(&self) {
        self.sender.put(&ToParent::GoOn);
    }

    /// Publishes if there is room for it in the parent. Tells whether there was room here.
    pub fn whisper(&self, publication: Publication) -> bool {
        self.sender.has_room() && self.sender.put(&ToParent::Whisper(publication))
    }

    /// Sends sessions away, wherever they are, and waits until all processes know.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn disconnect(&self, disconnect: RemoteDisconnect) -> Result<(), Lost> {
        let (number, is_taken) = self.taken.add();
        let is_said = self.sender.put(&ToParent::Disconnect { number, disconnect });
        self.wait(is_said, is_taken).await
    }

    /// The app sends everybody with these identifiers away, and every process hears that by itself.
    pub fn sent_away_everywhere(&self, identifiers: &str, now: Now) {
        self.sent_away.note(identifiers, now);
        self.sender.put(&ToParent::SentAway(identifiers.into()));
    }

    /// The first shard of this process follows a stream with this key.
    pub fn follow(&self, key: StreamKey) {
        // Counted first: whoever asks after that asks for one that the parent has not heard of.
        self.follows.fetch_add(1, SeqCst);
        self.sender.put(&ToParent::Follow(key.to_bits()));
    }

    /// No shard follows one any more.
    pub fn unfollow(&self, key: StreamKey) {
        self.sender.put(&ToParent::Unfollow(key.to_bits()));
    }

    /// Whether the parent knows of everything that is followed by now. If not, the answer comes later.
    pub fn is_followed(&self, key: SlotKey) -> Option<Reply> {
        if self.known.load(SeqCst) >= self.follows.load(SeqCst) {
            return Some(Reply::Followed);
        }
        self.sender.put(&ToParent::IsFollowed(key));
        None
    }

    /// Asks on behalf of a session. Gives the answer if it is known here.
    pub fn ask(&self, key: SlotKey, question: BrokerQuestion) -> Option<Result<BrokerReply, BrokerError>> {
        if !self.remembers {
            return Some(Err(BrokerError::NotKept));
        }
        self.sender.put(&ToParent::Ask { key, question });
        None
    }

    /// Who is present on a stream, as JSON text.
    ///
    /// # Errors
    /// Nothing is kept, or the link is lost.
    pub async fn present(&self, stream: &str) -> Result<Vec<u8>, BrokerError> {
        let (number, answer) = self.present.add();
        let is_said = self.sender.put(&ToParent::WhoIsPresent { number, stream: stream.into() });
        self.wait(is_said, answer).await.unwrap_or(Err(BrokerError::Unavailable))
    }

    /// Waits for an answer to what was said. Who is added after [`lost`](Self::lost) is not waited for by anybody.
    async fn wait<T>(&self, is_said: bool, answer: oneshot::Receiver<T>) -> Result<T, Lost> {
        if !is_said || self.sender.is_lost() {
            return Err(Lost);
        }
        answer.await.map_err(|_| Lost)
    }

    /// Changes who is present.
    pub fn change_presence(&self, sid: Sid, stream: &str, change: PresenceChange) {
        if self.remembers {
            self.sender.put(&ToParent::Presence { sid, stream: stream.into(), change });
        }
    }

    /// A session lives there from now on.
    pub fn resident(&self, sid: Sid, Place { shard, index }: Place) {
        if self.remembers {
            self.sender.put(&ToParent::Resident { sid, shard, index });
        }
    }

    /// A session is over.
    pub fn departed(&self, sid: Sid, saved: Option<Box<SavedSession>>) {
        if self.remembers {
            self.sender.put(&ToParent::Departed { sid, saved });
        }
    }

    /// A session is not given up.
    pub fn stays(&self, sid: Sid) {
        self.sender.put(&ToParent::Stays(sid));
    }

    /// A session is not where it was asked for.
    pub fn not_here(&self, sid: Sid, Place { shard, index }: Place) {
        self.sender.put(&ToParent::NotHere { sid, shard, index });
    }

    /// Whether the app has not sent a session's client away since it was saved.
    pub fn may_go_on(&self, saved: &SavedSession) -> bool {
        self.sent_away.may_go_on(saved)
    }

    /// Forgets what is over. To be called about once a second.
    pub fn sweep(&self, now: Now) {
        self.sent_away.sweep(now);
    }

    /// The parent says something.
    pub fn heard(&self, message: ToChild, outlet: &impl FromParent, now: Now) {
        match message {
            ToChild::Publication { places, publication } => {
                self.sender.owes(places);
                outlet.deliver(publication, Credit { sender: self.sender.clone(), places });
            }
            ToChild::Disconnect(disconnect) => {
                // Before the shards are told: whoever comes back to a session after that is refused.
                self.sent_away.note(&disconnect.identifiers, now);
                outlet.send_away(disconnect);
            }
            ToChild::Taken(number) => self.taken.answered(number, ()),
            ToChild::Followed { key, follows } => {
                self.known.fetch_max(follows, SeqCst);
                outlet.answer(key, Reply::Followed);
            }
            ToChild::Answer { key, result } => outlet.answer(key, Reply::Broker(result)),
            ToChild::Present { number, result } => {
                self.present.answered(number, result.map(|text| text.into_boxed_bytes().into_vec()));
            }
            ToChild::Yield { shard, index, ticket } => outlet.ask_to_yield(Place { shard, index }, ticket),
            ToChild::Welcome(_) | ToChild::Request(_) | ToChild::Reply(_) => {}
        }
    }

    /// The link is lost: nobody gets an answer any more.
    pub fn lost(&self) {
        self.taken.state().1.clear();
        self.present.state().1.clear();
    }
}
