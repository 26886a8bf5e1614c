//! All children at once: who of them can be asked, and what they have said.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::link::local::Asked;
use crate::node::control::{ControlMetrics, talk};
use crate::node::metrics;
use crate::node::processes::{self, Answering, Counted, How, Order, PATIENCE, Question, Said, Turning, Wish};
use crate::node::upgrade::FailedUpgrades;
use crate::os::process;
use crate::telemetry::{Collect, Families, Parts};

use super::{ChildLink, Event, Relay};

/// Questions of one child to all that are answered at once. What is over it waits, and is bounded by what a child asks.
const ROUNDS_MAX: usize = 8;

crate::metrics! {
    /// What the parent knows of one process.
    struct ProcessMetrics {
        /// Whether this process serves and answers.
        process_up: Gauge,
        /// Times that this process was started again after it had ended.
        process_restarts_total: Counter,
    }
}

/// All children, for those who ask.
pub struct All {
    /// By number. Held to read or to change an entry.
    members: Mutex<Box<[Member]>>,
    relay: Arc<Relay>,
    tags: Vec<(String, String)>,
    /// What they had together when they were asked last.
    load: Mutex<Turning>,
    pub control: Arc<ControlMetrics>,
    /// Of the parent itself.
    pub upgrades: FailedUpgrades,
    /// `--max-conn` of all; 0: none.
    max_conn: AtomicU64,
    /// False: that was changed, and has to be dealt out anew.
    dealt: AtomicBool,
    changed: Notify,
    /// What the parent itself counted under the programs that it ran before.
    before: Parts,
}

/// What is known of all on its way to another program.
#[derive(Serialize, Deserialize)]
pub struct GivenAll {
    members: Vec<GivenMember>,
    load: Turning,
    /// What the parent itself counted.
    counted: Parts,
}

#[derive(Serialize, Deserialize)]
struct GivenMember {
    pid: u32,
    serves: bool,
    starts: u64,
    counted: Option<ByteBuf>,
    gone: Parts,
    #[serde(default)]
    room: Option<u64>,
}

/// One child, by whichever process it is at the moment.
#[derive(Default)]
struct Member {
    link: Option<ChildLink>,
    pid: u32,
    serves: bool,
    starts: u64,
    /// Its part of `--max-conn`, if that was dealt out anew.
    room: Option<u64>,
    /// Its last answer to [`Question::Metrics`]: what it counted stays counted when it is silent or ends.
    counted: Option<ByteBuf>,
    /// What those counted that have been this child before.
    gone: Parts,
}

impl All {
    pub fn new(of: u16, relay: Arc<Relay>, tags: Vec<(String, String)>, max_conn: usize) -> All {
        let members = Mutex::new((0..of).map(|_| Member::default()).collect());
        All {
            members,
            relay,
            tags,
            load: Mutex::default(),
            control: Arc::default(),
            upgrades: FailedUpgrades::default(),
            max_conn: AtomicU64::new(max_conn as u64),
            dealt: AtomicBool::new(true),
            changed: Notify::new(),
            before: Parts::default(),
        }
    }

    /// What another program in this process goes on with.
    pub fn export(&self) -> GivenAll {
        let given = |member: &Member| GivenMember {
            pid: member.pid,
            serves: member.serves,
            starts: member.starts,
            counted: member.counted.clone(),
            gone: member.gone.clone(),
            room: member.room,
        };
        let members = self.members().iter().map(given).collect();
        let mut families = Families::default();
        self.own_counts(&mut families);
        GivenAll { members, load: self.load().clone(), counted: families.into_parts().of_the_gone() }
    }

    /// The same again, without links.
    pub fn import(given: GivenAll, relay: Arc<Relay>, tags: Vec<(String, String)>, max_conn: usize) -> All {
        let GivenAll { members, load, counted } = given;
        let members = members.into_iter().map(|GivenMember { pid, serves, starts, counted, gone, room }| Member {
            pid,
            serves,
            starts,
            counted,
            gone,
            room,
            ..Member::default()
        });
        let all = All::new(0, relay, tags, max_conn);
        // This program may have been given another limit.
        let dealt = AtomicBool::new(false);
        All { members: Mutex::new(members.collect()), load: Mutex::new(load), before: counted, dealt, ..all }
    }

    /// The link to a child that was started before.
    pub fn has_link(&self, child: u16, pid: u32, link: ChildLink) {
        if let Some(member) = self.members().get_mut(usize::from(child)).filter(|member| member.pid == pid) {
            member.link = Some(link);
        }
    }

    fn members(&self) -> MutexGuard<'_, Box<[Member]>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A child was started.
    pub fn begins(&self, child: u16, pid: u32, link: ChildLink) {
        let member = &mut self.members()[usize::from(child)];
        member.pid = pid;
        member.link = Some(link);
        member.starts += 1;
    }

    /// Another process has taken over from a child, and goes on with what that has counted.
    pub fn succeeded(&self, child: u16, pid: u32, link: ChildLink) {
        let member = &mut self.members()[usize::from(child)];
        (member.pid, member.link) = (pid, Some(link));
    }

    /// `--max-conn` of all; 0: none.
    pub fn max_conn(&self) -> u64 {
        self.max_conn.load(SeqCst)
    }

    /// From now on `--max-conn` is this; it is dealt out soon.
    pub fn set_max_conn(&self, max_conn: usize) {
        self.max_conn.store(max_conn as u64, SeqCst);
        self.deal_anew();
        self.changed.notify_one();
    }

    /// Has room dealt out, soon, whether or not somebody needs it.
    pub fn deal_anew(&self) {
        self.dealt.store(false, SeqCst);
    }

    /// It is dealt out from now on. Tells whether it had to be.
    pub fn begins_dealing(&self) -> bool {
        !self.dealt.swap(true, SeqCst)
    }

    /// Waits until the limit is changed.
    pub async fn max_conn_changed(&self) {
        self.changed.notified().await;
    }

    /// Whether a process takes over from a child just now.
    pub fn is_changing(&self) -> bool {
        self.relay.is_changing()
    }

    /// Deals out room to a child. Gives how many clients it has, when it knows of it: those that came meanwhile may be more.
    pub async fn deal_room(&self, child: u16, room: u64) -> Option<u64> {
        let answer = self.order(child, &Order::Room(room)).await?;
        self.members()[usize::from(child)].room = Some(room);
        // One of an older version says nothing, and may have any number.
        Some(rmp_serde::from_slice(&answer).unwrap_or(u64::MAX))
    }

    /// Gives a process what the one before it had of what was dealt out.
    pub async fn give_room(&self, child: u16) {
        if let Some(room) = self.room(child) {
            self.deal_room(child, room).await;
        }
    }

    /// What was dealt out to a child, if that is not its share.
    pub fn room(&self, child: u16) -> Option<u64> {
        self.members()[usize::from(child)].room
    }

    /// The process that a child is at the moment, if it serves.
    pub fn pid(&self, child: u16) -> Option<u32> {
        let members = self.members();
        let member = &members[usize::from(child)];
        member.serves.then_some(member.pid)
    }

    /// A child serves. Tells whether all do.
    pub fn serves(&self, child: u16) -> bool {
        let mut members = self.members();
        members[usize::from(child)].serves = true;
        members.iter().all(|member| member.serves)
    }

    /// A child has ended.
    pub fn ended(&self, child: u16) {
        let member = &mut self.members()[usize::from(child)];
        (member.link, member.serves) = (None, false);
        let counted = member.counted.take().and_then(|last| rmp_serde::from_slice::<Counted>(&last).ok());
        if let Some(counted) = counted {
            member.gone.add(counted.parts.of_the_gone());
        }
    }

    /// How many serve.
    pub fn serving(&self) -> usize {
        self.members().iter().filter(|member| member.serves).count()
    }

    /// Has one child do something.
    pub async fn order(&self, child: u16, order: &Order) -> Option<Vec<u8>> {
        let link = self.members()[usize::from(child)].link.clone()?;
        tokio::time::timeout(PATIENCE, link.request("", processes::write(order))).await.ok()?.ok()
    }

    /// Has all that run do something, each of them something of its own.
    pub async fn order_each(&self, of_child: impl Fn(u16) -> Order) -> Vec<(u16, Option<Vec<u8>>)> {
        let children = 0..self.members().len() as u16;
        let of_child = &of_child;
        join_all(children.map(|child| async move { (child, self.order(child, &of_child(child)).await) })).await
    }

    /// Asks all, and waits for none longer than this.
    pub async fn ask(&self, question: &Question, patience: Duration) -> Vec<Said> {
        let body = processes::write(&Order::Answer(question.clone()));
        let links: Vec<Option<ChildLink>> = self.members().iter().map(|member| member.link.clone()).collect();
        let asked = links.into_iter().map(|link| async {
            let answer = tokio::time::timeout(patience, link?.request("", body.clone())).await.ok()?;
            answer.ok().map(ByteBuf::from)
        });
        let answers = join_all(asked).await;
        let is_counted = matches!(question, Question::Metrics);
        let mut said = Vec::with_capacity(answers.len() + 1);
        for (number, (member, answer)) in self.members().iter_mut().zip(answers).enumerate() {
            let how = match (&answer, member.serves) {
                (Some(_), _) => How::Now,
                (None, true) => How::Silent,
                (None, false) => How::Away,
            };
            if is_counted && answer.is_some() {
                member.counted.clone_from(&answer);
            }
            let answer = answer.or_else(|| member.counted.clone().filter(|_| is_counted));
            said.push(Said { process: number.to_string(), how, answer });
        }
        if is_counted {
            said.extend(self.gone());
            let answer = Some(ByteBuf::from(processes::write(&self.own(&said))));
            said.push(Said { process: "parent".to_owned(), how: How::Now, answer });
        }
        said
    }

    /// What is told at the control socket.
    pub fn status(&self) -> talk::Status {
        let Turning { websockets, websockets_max, .. } = *self.load();
        talk::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            websockets,
            websockets_max,
            descriptors: process::open_descriptors().unwrap_or(0),
            resident_bytes: process::resident_bytes().unwrap_or(0),
            ..talk::Status::default()
        }
    }

    /// What they had together when they were asked last.
    pub fn load(&self) -> MutexGuard<'_, Turning> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks what they have together.
    pub async fn look(&self) {
        let said = self.ask(&Question::Turns { patience: PATIENCE.mul_f64(0.8) }, PATIENCE).await;
        let turnings = said.iter().filter_map(|said| said.read_now::<Turning>());
        let sum = turnings.fold(Turning::default(), |sum, one| Turning {
            websockets: sum.websockets + one.websockets,
            websockets_max: sum.websockets_max + one.websockets_max,
            ..sum
        });
        *self.load() = sum;
    }

    /// What was counted by processes that have ended.
    fn gone(&self) -> Vec<Said> {
        let members = self.members();
        let counted = members.iter().map(|member| Counted { parts: member.gone.clone(), ..Counted::default() });
        let said = counted.enumerate().map(|(number, counted)| Said {
            process: number.to_string(),
            how: How::Away,
            answer: Some(ByteBuf::from(processes::write(&counted))),
        });
        said.collect()
    }

    /// What the parent itself counts, and what it knows of those who have `said` something now, or not.
    fn own(&self, said: &[Said]) -> Counted {
        let mut families = Families::new(self.tags.clone());
        self.own_counts(&mut families);
        for (number, (member, said)) in self.members().iter().zip(said).enumerate() {
            let metrics = ProcessMetrics::default();
            metrics.process_up.set(i64::from(member.serves && said.how == How::Now));
            metrics.process_restarts_total.add(member.starts.saturating_sub(1));
            metrics.collect(&[("process", number.to_string().as_str())], &mut families);
        }
        Counted { parts: families.into_parts(), ..Counted::default() }
    }

    /// What the parent itself counts, its earlier programs included.
    fn own_counts(&self, families: &mut Families) {
        self.relay.collect(families);
        self.control.collect(&[], families);
        self.upgrades.collect(&[], families);
        metrics::of_the_parent(families);
        families.go_on_from(self.before.clone());
    }
}

/// Answers the wishes of one child.
pub(super) struct Wishes {
    pub child: u16,
    pub pid: u32,
    pub all: Arc<All>,
    pub events: mpsc::UnboundedSender<Event>,
    rounds: Semaphore,
}

impl Wishes {
    pub fn new(child: u16, pid: u32, all: Arc<All>, events: mpsc::UnboundedSender<Event>) -> Wishes {
        Wishes { child, pid, all, events, rounds: Semaphore::new(ROUNDS_MAX) }
    }
}

impl Asked for Wishes {
    fn asked(self: Arc<Self>, _: Box<str>, body: Vec<u8>) -> Answering {
        Box::pin(async move {
            match rmp_serde::from_slice(&body) {
                Ok(Wish::Serving) => {
                    // It fails when the parent ends.
                    let _ = self.events.send(Event::Serves { child: self.child, pid: self.pid });
                    Vec::new()
                }
                Ok(Wish::Ask(question)) => {
                    let _round = self.rounds.acquire().await;
                    processes::write(&self.all.ask(&question, PATIENCE).await)
                }
                Err(error) => {
                    tracing::error!(process = self.child, %error, "a process says what its parent does not understand");
                    Vec::new()
                }
            }
        })
    }
}
