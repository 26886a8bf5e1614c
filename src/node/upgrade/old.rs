//! The old process's side.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_bytes::ByteBuf;

use crate::broker::Broker;
use crate::config::ListenOn;
use crate::http::HttpServer;
use crate::link::local::Lost;
use crate::node::listeners::ReadyPort;
use crate::node::observe::Parts;
use crate::node::publish::Frozen;
use crate::node::state::{self, Given, NodeState, Snapshot};
use crate::node::{Node, UpgradeError, Upgraded};
use crate::os::clock::{self, Clock};
use crate::os::hand_over::Channel;
use crate::os::orphan::Started;
use crate::os::pidfd::Pidfd;
use crate::shard::{Copying, CopyingAhead, Divert, HandOver, Lanes, Message, Settled, Verdict};

use super::Understood;
use super::protocol::{Have, Hello, LineError, Offer, Port, Talk, ToNew, ToOld, Yours};
use super::successor::{Successor, ToSuccessor};

/// How long publications may take to be delivered, and shards to carry out what they were given, before they stop.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// How long a moment is waited for in which nothing is being delivered. A server that never has one stops all the same.
const LULL_MAX: Duration = Duration::from_secs(1);

/// How often all shards are asked whether anything came: what one of them does may be work for another.
const SETTLE_ROUNDS_MAX: usize = 64;

/// How often connections are copied while they are served: again those that have changed or come meanwhile.
const AHEAD_ROUNDS_MAX: usize = 3;

/// Copies that are not worth one more round.
const AHEAD_FEW: usize = 500;

/// How long the new process may take to put everything together once it is sent, beside the time that connections take.
const HAVE_MAX: Duration = Duration::from_secs(10);

/// What one connection may take of it: several times what it does take where nothing else has the processors.
const HAVE_MAX_EACH: Duration = Duration::from_micros(20);

/// How long the new process may take to say that it serves. Nothing is undone after that.
const STARTED_MAX: Duration = Duration::from_secs(5);

/// How long the new process is waited for to see that it is not wanted, before it is killed.
const ABORT_MAX: Duration = Duration::from_millis(200);

/// How long a process that has closed its end may take to end.
const END_MAX: Duration = Duration::from_secs(2);

/// What a supervisor has told this process of itself and what is not so for another one.
const NOT_INHERITED: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Who can be waited for, and ended.
enum Process {
    /// Until this is dropped, which is before anybody is told of it, its parent is one of this process's own.
    Own(Started),
    /// The parent of this process has started it.
    OfParent(Pidfd),
}

impl Process {
    /// Ends it and waits for that.
    fn kill(&self) {
        match self {
            Process::Own(process) => process.kill(),
            Process::OfParent(process) => {
                process.kill();
                // It ends, whenever the kernel gets to that.
                let _ = process.wait(None);
            }
        }
    }

    /// How it ended, if it does in time.
    fn ended(&self, patience: Duration) -> std::io::Result<Option<String>> {
        match self {
            Process::Own(process) => Ok(process.how_it_ended(patience)?.map(|status| format!("it ended ({status})"))),
            Process::OfParent(process) => Ok(process.wait(Some(patience))?.then(|| "it ended".to_owned())),
        }
    }

    /// Its number; of one that the parent has started, what it says itself.
    fn pid(&self, said: u32) -> u32 {
        match self {
            Process::Own(process) => process.pid(),
            Process::OfParent(_) => said,
        }
    }
}

/// A process that is not told yet that all is its own: it ends with this value.
pub(in crate::node) struct NewProcess {
    process: Process,
    talk: Talk,
    hello: Hello,
    is_let_go: bool,
}

impl NewProcess {
    /// Starts the program with the arguments and the environment of this process, and more of that, and hears what it
    /// understands.
    pub fn start(
        program: &Path,
        environment: &[(&'static str, String)],
        patience: Duration,
    ) -> Result<NewProcess, UpgradeError> {
        let started = Started::start(program, environment, &NOT_INHERITED, patience);
        let (process, talk) = started.map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => UpgradeError::Late(patience, "be started"),
            _ => UpgradeError::New(format!("{}: {error}", program.display())),
        })?;
        NewProcess::greet(Process::Own(process), talk, patience)
    }

    /// One that the parent of this process has started, with the channel to it and what stands for it.
    pub fn of_parent(
        channel: Channel,
        process: Pidfd,
        link_format: u16,
        patience: Duration,
    ) -> Result<NewProcess, UpgradeError> {
        let new = NewProcess::greet(Process::OfParent(process), channel, patience)?;
        new.hello.understands_parent(link_format).map_err(UpgradeError::New)?;
        Ok(new)
    }

    /// Hears what it understands.
    fn greet(process: Process, channel: Channel, patience: Duration) -> Result<NewProcess, UpgradeError> {
        let hello = Hello::default();
        let mut new = NewProcess { process, talk: Talk(channel), hello, is_let_go: false };
        match new.hear(patience, "say hello")? {
            (ToOld::Hello(hello), _) => new.hello = hello,
            (other, _) => return Err(UpgradeError::New(format!("it began with {other:?}"))),
        }
        new.hello.understands_us().map_err(UpgradeError::New)?;
        Ok(new)
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.hello.version
    }

    /// What it says next.
    fn hear(&mut self, patience: Duration, what: &'static str) -> Result<(ToOld, Vec<OwnedFd>), UpgradeError> {
        match self.talk.hear(Some(patience)) {
            Ok((ToOld::Failed { why }, _)) => Err(UpgradeError::New(why)),
            Ok(said) => Ok(said),
            Err(LineError::Silent(_)) => Err(UpgradeError::Late(patience, what)),
            Err(LineError::Ended) => Err(UpgradeError::New(self.how_it_ended())),
            Err(error) => Err(UpgradeError::New(error.to_string())),
        }
    }

    /// It has closed its end. It is about to end, and may have something to say before.
    fn how_it_ended(&self) -> String {
        match self.process.ended(END_MAX) {
            Ok(Some(how)) => format!("{how}; its log says why"),
            Ok(None) => "it does not talk to this one any more".to_owned(),
            Err(error) => format!("it ended; its log says why ({error})"),
        }
    }

    fn say(&self, message: &ToNew, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), UpgradeError> {
        self.talk.say(message, descriptors).map_err(|error| self.last_words(&error))
    }

    /// Why something cannot be sent to it: its own words come first, if it has any.
    fn last_words(&self, error: &std::io::Error) -> UpgradeError {
        UpgradeError::New(loop {
            match self.talk.hear(Some(ABORT_MAX)) {
                Ok((ToOld::Failed { why }, _)) => break why,
                Ok(_) => {}
                Err(LineError::Ended) => break self.how_it_ended(),
                Err(_) => break format!("it cannot be told: {error}"),
            }
        })
    }

    /// Offers it what it is made of; gives the lanes to its shards.
    pub fn prepare(&mut self, node: &Node, patience: Duration) -> Result<Arc<[Channel]>, UpgradeError> {
        let (offer, listeners) = node.offer()?;
        let listeners: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        let said = self.talk.say_with_all(&ToNew::Listeners {}, &listeners);
        said.map_err(|error| self.last_words(&error))?;
        self.say(&ToNew::Offer(Box::new(offer)), &[])?;
        let mut lanes = Vec::new();
        loop {
            match self.hear(patience, "make everything ready")? {
                (ToOld::Lanes {}, ends) => {
                    for end in ends {
                        lanes.push(Channel::try_from(end).map_err(|error| UpgradeError::New(error.to_string()))?);
                    }
                }
                (ToOld::Prepared {}, _) if !lanes.is_empty() => break,
                (other, _) => return Err(UpgradeError::New(format!("it says {other:?}, out of turn"))),
            }
        }
        for lane in &lanes {
            lane.set_patience(Some(HAVE_MAX)).map_err(UpgradeError::old)?;
        }
        Ok(lanes.into())
    }

    /// Gives it the snapshot, and waits until it has read it: that must not take time when everything stands still.
    fn keep(&mut self, parts: &Parts, patience: Duration) -> Result<Snapshot, UpgradeError> {
        let snapshot = Snapshot::give(parts, |piece| self.say(&ToNew::Snapshot(ByteBuf::from(piece)), &[]))?;
        self.say(&ToNew::SnapshotEnds {}, &[])?;
        self.is_kept(patience)?;
        Ok(snapshot)
    }

    /// Has it follow what clients have begun to follow since, if it can; it hears of that what this process hears.
    fn follow_more(&mut self, parts: &Parts, snapshot: &mut Snapshot, patience: Duration) -> Result<(), UpgradeError> {
        let more = if self.hello.follows_more { snapshot.more(parts) } else { None };
        let Some(more) = more else { return Ok(()) };
        self.say(&ToNew::Snapshot(ByteBuf::from(more)), &[])?;
        self.say(&ToNew::SnapshotEnds {}, &[])?;
        self.is_kept(patience)
    }

    fn is_kept(&mut self, patience: Duration) -> Result<(), UpgradeError> {
        match self.hear(patience, "read what is kept")? {
            (ToOld::Kept {}, _) => Ok(()),
            (other, _) => Err(UpgradeError::New(format!("it says {other:?}, out of turn"))),
        }
    }

    /// Has the connections that are at rest copied while they are served, if it can take them.
    fn copy_ahead(&self, parts: &Parts, lanes: &Arc<[Channel]>, patience: Duration) -> Result<(), UpgradeError> {
        let rounds = if self.hello.ahead { AHEAD_ROUNDS_MAX } else { 0 };
        for _ in 0..rounds {
            let (done, all_done) = mpsc::channel();
            let shards = parts.inboxes.len();
            for (shard, inbox) in parts.inboxes.iter().enumerate() {
                let copying = CopyingAhead { lanes: Lanes::new(Arc::clone(lanes), shard, shards), done: done.clone() };
                inbox.put(Message::HandOver(HandOver::CopyAhead(copying)));
            }
            let copied = self.copied(&all_done, shards, patience)?;
            tracing::debug!(copied, "upgrade: connections are copied ahead");
            if copied < AHEAD_FEW {
                break;
            }
        }
        Ok(())
    }

    /// Waits until so many shards have copied; gives what they say together.
    fn copied(
        &self,
        all_done: &mpsc::Receiver<std::io::Result<usize>>,
        shards: usize,
        patience: Duration,
    ) -> Result<usize, UpgradeError> {
        let (clock, mut copied) = (Clock::start(), 0);
        for _ in 0..shards {
            match all_done.recv_timeout(patience.saturating_sub(clock.now().mono)) {
                Ok(Ok(of_shard)) => copied += of_shard,
                Ok(Err(error)) => return Err(self.last_words(&error)),
                Err(RecvTimeoutError::Timeout) => return Err(UpgradeError::Late(patience, "take the connections")),
                Err(RecvTimeoutError::Disconnected) => return Err(UpgradeError::Old("a shard has ended".to_owned())),
            }
        }
        Ok(copied)
    }

    /// Ends it, and waits for its end: only then has nobody else the connections.
    fn end(&mut self) {
        if self.is_let_go {
            return;
        }
        self.is_let_go = true;
        let _ = self.talk.0.set_patience(Some(ABORT_MAX));
        let _ = self.talk.say(&ToNew::Abort {}, &[]);
        // One that listens has nothing to do any more; one that does not is not waited for.
        self.process.kill();
    }
}

impl Drop for NewProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// A node that stands still. Dropped: it goes on as if nothing had been.
struct Stopped<'a> {
    parts: &'a Parts,
    /// Since when, on the machine's clock.
    since_usec: u64,
    /// Whoever is told what becomes of the shards that have copied.
    verdicts: Vec<mpsc::Sender<Verdict>>,
    frozen: Option<Frozen>,
    clock: Clock,
}

impl<'a> Stopped<'a> {
    /// Stops a node: everything is delivered, and no call is begun.
    fn stop(node: &'a Node) -> Result<Stopped<'a>, UpgradeError> {
        let parts = &node.observer.parts;
        // Who publishes now would wait for what is being delivered, and for the change behind it.
        node.runtime.block_on(parts.pipeline.lull(LULL_MAX));
        let (since_usec, clock) = (clock::machine_usec(), Clock::start());
        let frozen = node.runtime.block_on(async { tokio::time::timeout(SETTLE_MAX, parts.pipeline.freeze()).await });
        let frozen = frozen.map_err(|_| {
            UpgradeError::Old(format!("publications are not delivered within {SETTLE_MAX:?}; is a client flooded?"))
        })?;
        parts.backend.hold();
        let stopped = Stopped { parts, since_usec, verdicts: Vec::new(), frozen: Some(frozen), clock };
        stopped.hand_over_by_parent(node)?;
        stopped.mark("everything is delivered");
        stopped.settle()?;
        stopped.mark("the shards are at rest");
        Ok(stopped)
    }

    /// One of several processes has everything delivered that came from the parent, and gets nothing more.
    fn hand_over_by_parent(&self, node: &Node) -> Result<(), UpgradeError> {
        match &self.parts.pipeline.broker {
            Broker::Parent(parent) => wait_for_parent(node, parent.hand_over()),
            Broker::Local(_) | Broker::Remote(_) => Ok(()),
        }
    }

    /// Waits until the parent has heard everything that this process has said.
    fn heard_by_parent(&self, node: &Node) -> Result<(), UpgradeError> {
        match &self.parts.pipeline.broker {
            Broker::Parent(parent) => wait_for_parent(node, parent.carried_out()),
            Broker::Local(_) | Broker::Remote(_) => Ok(()),
        }
    }

    /// Notes for who measures how far it is, in milliseconds since it began to stop.
    fn mark(&self, what: &str) {
        let ms = self.clock.now().mono.as_secs_f64() * 1e3;
        tracing::debug!(ms, "upgrade: {what}");
    }

    /// Has all shards carry out what they were given, until none of them gets anything from another.
    fn settle(&self) -> Result<(), UpgradeError> {
        let clock = Clock::start();
        for _ in 0..SETTLE_ROUNDS_MAX {
            let (settled, all) = mpsc::channel();
            tell(self.parts, || HandOver::Settle(settled.clone()));
            drop(settled);
            let mut was_busy = false;
            for _ in 0..self.parts.inboxes.len() {
                let left = SETTLE_MAX.saturating_sub(clock.now().mono);
                let Settled { was_busy: one_was } = all.recv_timeout(left).map_err(|_| self.unsettled())?;
                was_busy |= one_was;
            }
            if !was_busy {
                return Ok(());
            }
        }
        Err(self.unsettled())
    }

    fn unsettled(&self) -> UpgradeError {
        UpgradeError::Old("its shards do not come to rest".to_owned())
    }

    /// Has all shards send copies of everything.
    fn copy(&mut self, lanes: &Arc<[Channel]>) -> mpsc::Receiver<std::io::Result<usize>> {
        let (done, all_done) = mpsc::channel();
        let shards = self.parts.inboxes.len();
        for (shard, inbox) in self.parts.inboxes.iter().enumerate() {
            let (verdict, hears) = mpsc::channel();
            self.verdicts.push(verdict);
            let lanes = Lanes::new(Arc::clone(lanes), shard, shards);
            let copying = Copying { lanes, done: done.clone(), verdict: hears };
            inbox.put(Message::HandOver(HandOver::Copy(copying)));
        }
        all_done
    }

    /// Everything is somebody else's.
    fn leave(mut self, successor: &Arc<ToSuccessor>) {
        let to = Arc::clone(successor);
        let divert: Divert = Arc::new(move |message| to.message(message));
        for verdict in self.verdicts.drain(..) {
            let _ = verdict.send(Verdict::Leave(Arc::clone(&divert)));
        }
        self.parts.pipeline.succeed(Arc::clone(successor) as Arc<dyn Successor>);
        let to = Arc::clone(successor);
        self.parts.backend.succeed(move |call| to.tell(call));
        self.frozen = None;
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if self.frozen.is_none() {
            return;
        }
        if let Broker::Parent(parent) = &self.parts.pipeline.broker {
            parent.go_on();
        }
        // Shards that have not copied are told by their inbox, the others wait for their verdict.
        tell(self.parts, || HandOver::GoOn);
        for verdict in self.verdicts.drain(..) {
            let _ = verdict.send(Verdict::GoOn);
        }
        self.parts.backend.go_on();
        state::forget_changes(self.parts);
    }
}

/// Tells all shards.
fn tell(parts: &Parts, mut what: impl FnMut() -> HandOver) {
    parts.inboxes.iter().for_each(|inbox| inbox.put(Message::HandOver(what())));
}

/// Waits for the parent of several processes.
fn wait_for_parent(node: &Node, answer: impl Future<Output = Result<(), Lost>>) -> Result<(), UpgradeError> {
    match node.runtime.block_on(async { tokio::time::timeout(SETTLE_MAX, answer).await }) {
        Ok(result) => result.map_err(|error| UpgradeError::Old(error.to_string())),
        Err(_) => Err(UpgradeError::Old(format!("the parent process says nothing for {SETTLE_MAX:?}"))),
    }
}

/// Beside the connections.
struct Sent {
    have: Have,
    bytes: usize,
}

impl Node {
    /// Whether it can be upgraded at all.
    pub(super) fn may_be_upgraded(&self) -> Result<&Path, UpgradeError> {
        if std::process::id() == 1 {
            return Err(UpgradeError::Refused(
                "it is process 1, and a container ends with that; start new containers beside it".to_owned(),
            ));
        }
        self.made_of
            .program
            .as_deref()
            .map_err(|error| UpgradeError::Refused(format!("where it is is unknown: {error}")))
    }

    pub(super) fn try_check(&self) -> Result<Understood, UpgradeError> {
        let program = self.may_be_upgraded()?;
        let new = NewProcess::start(program, &self.made_of.for_successors, self.config.app.upgrade_timeout)?;
        self.check_with(new)
    }

    /// Goes as far with the new process as nothing changes here.
    pub(in crate::node) fn check_with(&self, mut new: NewProcess) -> Result<Understood, UpgradeError> {
        let prepared = new.prepare(self, self.config.app.upgrade_timeout);
        state::forget_changes(&self.observer.parts);
        prepared?;
        let (old_version, new_version) = (env!("CARGO_PKG_VERSION").to_owned(), new.version().to_owned());
        let program = self.may_be_upgraded().map(Path::to_owned).unwrap_or_default();
        Ok(Understood { old_version, new_version, program })
    }

    pub(super) fn start_and_hand_over(&mut self) -> Result<Upgraded, UpgradeError> {
        let clock = Clock::start();
        let patience = self.config.app.upgrade_timeout;
        let new = NewProcess::start(self.may_be_upgraded()?, &self.made_of.for_successors, patience)?;
        let upgraded = self.hand_over_to(new)?;
        Ok(Upgraded { took: clock.now().mono, ..upgraded })
    }

    /// Gives the new process everything.
    pub(in crate::node) fn hand_over_to(&mut self, mut new: NewProcess) -> Result<Upgraded, UpgradeError> {
        let clock = Clock::start();
        let patience = self.config.app.upgrade_timeout;
        let prepared = new.prepare(self, patience);
        let lanes = prepared.inspect_err(|_| state::forget_changes(&self.observer.parts))?;
        // All that can fail is made first.
        let kept = new.keep(&self.observer.parts, patience);
        let handed_over = kept.and_then(|mut snapshot| {
            new.copy_ahead(&self.observer.parts, &lanes, patience)?;
            new.follow_more(&self.observer.parts, &mut snapshot, patience)?;
            let mut stopped = Stopped::stop(self)?;
            let sent = give(&mut new, &mut stopped, &snapshot, &lanes).and_then(|sent| {
                stopped.heard_by_parent(self)?;
                let successor = ToSuccessor::new(&new.talk).map_err(UpgradeError::old)?;
                let longest_pause_usec = self.observer.parts.upgrades.longest_pause_usec();
                let yours = Yours { stopped_usec: stopped.since_usec, longest_pause_usec };
                new.say(&ToNew::Yours(yours), &[])?;
                Ok((sent, Arc::new(successor)))
            });
            match sent {
                Ok((sent, successor)) => {
                    let since_usec = stopped.since_usec;
                    new.is_let_go = true;
                    stopped.leave(&successor);
                    Ok((sent, successor, since_usec, snapshot.bytes))
                }
                Err(error) => {
                    // Before this node goes on.
                    new.end();
                    Err(error)
                }
            }
        });
        if handed_over.is_err() {
            tell(&self.observer.parts, || HandOver::GoOn);
            state::forget_changes(&self.observer.parts);
        }
        let (Sent { have, bytes }, successor, since_usec, snapshot_bytes) = handed_over?;
        drop(lanes);
        // Senders that keep connections hear of it by an answer, so that none of their requests meets a closed connection.
        self.http_servers().for_each(HttpServer::leave);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let started_usec = successor.started(STARTED_MAX);
        if started_usec.is_none() {
            tracing::error!("the new process has everything and does not say that it serves; its log may say why");
        }
        self.successor = Some(successor);
        let pause_usec = started_usec.unwrap_or_else(clock::machine_usec).saturating_sub(since_usec);
        Ok(Upgraded {
            pid: new.process.pid(new.hello.pid),
            version: new.hello.version.clone(),
            connections: have.connections,
            state_bytes: have.bytes + bytes + snapshot_bytes,
            pause: Duration::from_micros(pause_usec),
            took: clock.now().mono,
        })
    }

    /// What a new process is made of, with its listeners.
    fn offer(&self) -> Result<(Offer, Vec<OwnedFd>), UpgradeError> {
        let server = &self.config.server;
        let mut listeners: VecDeque<OwnedFd> = VecDeque::new();
        let mut port = |host: &str, port: u16, own: &[std::net::TcpListener]| {
            for listener in own {
                listeners.push_back(listener.try_clone().map_err(UpgradeError::old)?.into());
            }
            Ok(Port { host: host.to_owned(), port, listeners: own.len() })
        };
        let main = {
            let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            port(&server.host, server.port, &listeners)?
        };
        let mut others = Vec::new();
        for ReadyPort { place, copies, .. } in &self.http_ports {
            if let ListenOn::Own { host, port: number } = place {
                others.push(port(host, *number, copies)?);
            }
        }
        let offer = Offer {
            given: Given::of(&self.observer.parts, &self.made_of.settings),
            main,
            main_was_passed: self.made_of.main_was_passed,
            others,
            shards: self.observer.parts.inboxes.len(),
            pid: Some(std::process::id()),
        };
        Ok((offer, listeners.into()))
    }
}

/// Gives the new process everything, and waits until it has it.
fn give(
    new: &mut NewProcess,
    stopped: &mut Stopped<'_>,
    snapshot: &Snapshot,
    lanes: &Arc<[Channel]>,
) -> Result<Sent, UpgradeError> {
    let clock = Clock::start();
    let connections = u32::try_from(stopped.parts.counts.open()).unwrap_or(u32::MAX);
    let patience = HAVE_MAX + HAVE_MAX_EACH * connections;
    let left = || patience.saturating_sub(clock.now().mono);
    let all_done = stopped.copy(lanes);
    let state = NodeState::collect(stopped.parts, snapshot).to_bytes();
    let bytes = state.len();
    new.say(&ToNew::State(ByteBuf::from(state)), &[])?;
    stopped.mark("the state beside the connections is sent");
    let copied = new.copied(&all_done, stopped.parts.inboxes.len(), left())?;
    stopped.mark("the connections are copied");
    match new.hear(left(), "put the connections together")? {
        (ToOld::Have(have), _) if have.connections == copied => {
            stopped.mark("the new process has everything");
            Ok(Sent { have, bytes })
        }
        (other, _) => Err(UpgradeError::New(format!("it says {other:?} of {copied} connections"))),
    }
}
