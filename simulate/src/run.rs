//! One run: a shard, everything around it, and chance deciding what happens next.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cableway::model::{Answer, CloseCause, DisconnectMode, Publication, RemoteDisconnect, Sid, SlotKey};
use cableway::shard::{Delivery, Message, Readiness, Shard, ShardMetrics};

use crate::client::Aim;
use crate::model::Phase;
use crate::world::{Open, Published, Seams, Sim, Socket};

/// Turns in a row that move neither the clock nor a client, after which the shard is said to spin.
const TURNS_MAX: usize = 1_000;

/// What a run amounted to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub digest: u64,
    pub clients: usize,
    pub turns: u64,
    pub published: usize,
    pub frames: u64,
}

/// Something on its way to the shard's inbox.
enum Post {
    Answer(SlotKey),
    /// An answer that nobody waits for.
    Late(SlotKey, Open),
    Publish(Arc<Publication>),
    Disconnect(RemoteDisconnect),
    Drain(Duration),
}

struct Run {
    sim: Rc<RefCell<Sim>>,
    shard: Shard<Seams, Seams>,
    metrics: Arc<ShardMetrics>,
    inbox: VecDeque<Post>,
    turns: u64,
}

/// Runs one seed to its end.
///
/// # Errors
/// Says what was wrong.
pub fn run(seed: u64, trace: bool) -> Result<Summary, String> {
    let sim = Rc::new(RefCell::new(Sim::new(seed, trace)));
    let metrics = Arc::new(ShardMetrics::new(0));
    let settings = Arc::clone(&sim.borrow().scenario.settings);
    let shard = Shard::new(0, Seams(Rc::clone(&sim)), Seams(Rc::clone(&sim)), settings, Arc::clone(&metrics));
    let mut run = Run { sim, shard, metrics, inbox: VecDeque::new(), turns: 0 };
    let outcome = run.play();
    let sim = run.sim.borrow();
    outcome.map(|()| Summary {
        digest: sim.digest,
        clients: sim.clients.len(),
        turns: run.turns,
        published: sim.published.len(),
        frames: run.metrics.counters.server_msg_total.get(),
    })
}

impl Run {
    fn play(&mut self) -> Result<(), String> {
        let (steps, clients) = {
            let sim = self.sim.borrow();
            (sim.scenario.steps, sim.scenario.clients)
        };
        let drain_at = if self.sim.borrow_mut().rng.chance(200) { steps * 4 / 5 } else { usize::MAX };
        for step in 0..steps {
            if step == drain_at {
                let over = Duration::from_millis(self.sim.borrow_mut().rng.pick(&[0, 100, 5_000]));
                self.inbox.push_back(Post::Drain(over));
            }
            self.step(clients)?;
            self.check()?;
        }
        self.settle()?;
        self.end()?;
        self.final_checks()
    }

    fn check(&self) -> Result<(), String> {
        self.sim.borrow_mut().violation.take().map_or(Ok(()), Err)
    }

    /// One thing happens.
    fn step(&mut self, clients: usize) -> Result<(), String> {
        let mut sim = self.sim.borrow_mut();
        let known = sim.clients.len();
        match sim.rng.below(1000) {
            0..=39 if known < clients && sim.listening => sim.new_client(),
            0..=419 if known > 0 => {
                for _ in 0..sim.rng.between(1, 4) {
                    let c = sim.rng.below(known);
                    sim.client_step(c);
                }
            }
            420..=519 => {
                drop(sim);
                self.answer_some(2);
            }
            520..=599 => {
                drop(sim);
                self.publish();
            }
            600..=679 => {
                let ms = sim.rng.between(0, 50) as u64;
                sim.mono += Duration::from_millis(ms);
            }
            680..=689 => {
                let reconnect = sim.rng.chance(500);
                let identifiers: Vec<String> = sim.present.iter().cloned().collect();
                let identifiers = match sim.rng.below(identifiers.len() + 1) {
                    at if at < identifiers.len() && sim.rng.chance(400) => identifiers[at].as_str().into(),
                    _ => "nobody".into(),
                };
                self.inbox.push_back(Post::Disconnect(RemoteDisconnect { identifiers, reconnect }));
            }
            690..=692 => sim.exhausted = !sim.exhausted,
            693..=696 if known > 0 => {
                let c = sim.rng.below(known);
                if !sim.clients[c].prompt {
                    sim.clients[c].deaf = !sim.clients[c].deaf;
                }
            }
            697..=699 => {
                drop(sim);
                return self.leap();
            }
            700..=704 => {
                drop(sim);
                return self.settle();
            }
            705..=709 => {
                let faults = sim.scenario.faults;
                if known > 0 && sim.rng.chance(faults * 20) {
                    let c = sim.rng.below(known);
                    sim.break_off(c, ErrorKind::TimedOut);
                }
            }
            _ => {
                let rewrites = sim.scenario.rewrites;
                let rewrite = sim.rng.chance(rewrites);
                drop(sim);
                if rewrite {
                    self.rewrite()?;
                }
                self.turn();
            }
        }
        Ok(())
    }

    /// Some connections are taken apart and put together again.
    fn rewrite(&mut self) -> Result<(), String> {
        if self.shard.is_delivering() {
            return Ok(());
        }
        let keys: Vec<_> = self.shard.keys().collect();
        for key in keys {
            if self.sim.borrow_mut().rng.chance(500) {
                continue;
            }
            let Some(apart) = self.shard.take_apart(key) else { return Err(format!("{key:?} cannot be taken apart")) };
            let together = self.shard.put_together(apart.socket, &apart.state);
            let key = together.map_err(|(_, error)| format!("a connection cannot be put together: {error}"))?;
            self.sim.borrow_mut().moved(apart.key, key);
            for post in &mut self.inbox {
                match post {
                    Post::Answer(old) | Post::Late(old, _) if *old == apart.key => *old = key,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The shard's loop, once round, if there is anything to wake it.
    fn turn(&mut self) -> bool {
        let (events, listener) = {
            let sim = &mut *self.sim.borrow_mut();
            let listener = sim.watching && sim.listening && !sim.net.backlog.is_empty();
            let due = self.shard.next_wake().is_some_and(|wake| wake <= sim.mono);
            if !listener && !due && self.inbox.is_empty() && !sim.net.has_ready() {
                return false;
            }
            (sim.net.take_ready(&mut sim.rng), listener)
        };
        self.turns += 1;
        self.shard.begin_turn();
        let listener_at = self.sim.borrow_mut().rng.below(events.len() + 1);
        let inbox_at = self.sim.borrow_mut().rng.below(events.len() + 1);
        for n in 0..=events.len() {
            if listener && n == listener_at {
                self.shard.accept();
            }
            if n == inbox_at {
                for post in std::mem::take(&mut self.inbox) {
                    self.deliver(post);
                }
            }
            if let Some(event) = events.get(n) {
                let (readable, writable, hangup) = (event.readable, event.writable, event.hangup);
                self.shard.ready(event.token, Readiness { readable, writable, hangup });
            }
            // The world does not wait for the shard.
            let sim = &mut *self.sim.borrow_mut();
            if !sim.clients.is_empty() && sim.rng.chance(150) {
                let c = sim.rng.below(sim.clients.len());
                sim.client_step(c);
            }
        }
        self.shard.end_turn();
        let sim = &mut *self.sim.borrow_mut();
        if self.shard.next_wake() != Some(sim.mono) {
            sim.drained = sim.published.len();
        }
        true
    }

    /// Something reaches the shard.
    fn deliver(&mut self, post: Post) {
        let mut sim = self.sim.borrow_mut();
        let message: Message<Socket> = match post {
            Post::Answer(key) => {
                // Canceled in the meantime: it comes as a late answer, or not at all.
                let Some(at) = sim.running.iter().position(|(running, ..)| *running == key) else { return };
                let (key, c, question) = sim.running.remove(at);
                sim.clients[c].running = None;
                let reply = sim.make_answer(&question);
                sim.trace(|| format!("answer for client {c}: {reply:?}"));
                sim.apply(c, &reply);
                Message::Answer(Answer { key, reply })
            }
            Post::Late(key, question) => {
                sim.trace(|| "a late answer".into());
                let reply = sim.make_answer(&question);
                Message::Answer(Answer { key, reply })
            }
            Post::Publish(publication) => {
                sim.trace(|| format!("publication {}: {publication:?}", sim.published.len()));
                let excluded = publication.exclude.map(|sid| sid.to_string());
                let whisperer = serde_json::from_str::<serde_json::Value>(&publication.message)
                    .ok()
                    .and_then(|value| value["w"][0].as_u64())
                    .map(|c| c as usize);
                let by_sid = sim.clients.iter().position(|client| excluded.is_some() && client.sid == excluded);
                let p = sim.published.len();
                sim.by_text.insert(publication.message.to_string(), p);
                sim.published.push(Published {
                    stream: publication.stream.to_string(),
                    text: publication.message.to_string(),
                    kind: publication.kind.as_ref().map(|kind| kind.to_string()),
                    exclude: whisperer.or(by_sid),
                });
                sim.note_publication(p);
                let publication = Publication::clone(&publication);
                Message::Publication(Arc::new(Delivery { publication, permit: None }))
            }
            Post::Disconnect(disconnect) => {
                sim.trace(|| format!("{disconnect:?}"));
                sim.evicted.insert((disconnect.identifiers.to_string(), disconnect.reconnect));
                for c in 0..sim.clients.len() {
                    let client = &sim.clients[c];
                    let open = client.upgraded_at.is_some() && client.model.phase == Phase::Open;
                    if open && client.aim == Aim::Cable && sim.identifiers(c) == *disconnect.identifiers {
                        sim.clients[c].must_go = true;
                    }
                }
                Message::Disconnect(disconnect)
            }
            Post::Drain(over) => {
                sim.trace(|| format!("drain over {over:?}"));
                sim.draining = true;
                Message::Drain { over }
            }
        };
        drop(sim);
        self.shard.receive(message);
    }

    /// The app answers some of the calls that run.
    fn answer_some(&mut self, most: usize) {
        let sim = &mut *self.sim.borrow_mut();
        for _ in 0..most.min(sim.running.len()) {
            let (key, ..) = sim.running[sim.rng.below(sim.running.len())];
            let known = self.inbox.iter().any(|post| matches!(post, Post::Answer(other) if *other == key));
            if !known {
                self.inbox.push_back(Post::Answer(key));
            }
        }
        for (key, call) in std::mem::take(&mut sim.canceled) {
            // Late ones stay away long enough for their slots to be used again.
            match sim.rng.below(20) {
                0..=1 => self.inbox.push_back(Post::Late(key, call)),
                2 => {}
                _ => sim.canceled.push((key, call)),
            }
        }
    }

    /// The app publishes one thing or many.
    fn publish(&mut self) {
        let sim = &mut *self.sim.borrow_mut();
        self.inbox.extend(sim.whispered.drain(..).map(Post::Publish));
        let count = match sim.rng.below(100) {
            0 if sim.scenario.clients < 10 => 2_500,
            1..=5 => sim.rng.between(20, 100),
            _ => sim.rng.between(1, 3),
        };
        for _ in 0..count {
            sim.serial += 1;
            let pad = match sim.scenario.long_publications && count < 10 {
                true => sim.rng.pick(&[0, 100, 5_000, 30_000]),
                false => sim.rng.pick(&[0, 0, 20]),
            };
            let serial = sim.serial;
            let message = match pad {
                0 => format!("{{\"p\":{serial}}}"),
                n => format!("{{\"p\":{serial},\"pad\":\"{}\"}}", "p".repeat(n)),
            };
            let exclude = match sim.rng.chance(200) && !sim.clients.is_empty() {
                true => sim.clients[sim.rng.below(sim.clients.len())].sid.as_deref().and_then(Sid::parse),
                false => None,
            };
            let stream = sim.scenario.streams[sim.rng.below(sim.scenario.streams.len())].as_str().into();
            let kind = sim.rng.chance(50).then(|| "announce".into());
            let publication = Publication { stream, message: message.into(), exclude, kind };
            self.inbox.push_back(Post::Publish(Arc::new(publication)));
        }
    }

    /// Those who read at once read and write everything, and the shard goes on until it has nothing to do.
    fn go_on(&mut self) -> Result<(), String> {
        let mut turns = 0;
        while turns < TURNS_MAX {
            let turned = self.turn();
            let mut moved = false;
            let sim = &mut *self.sim.borrow_mut();
            for c in 0..sim.clients.len() {
                if sim.clients[c].prompt {
                    moved |= sim.client_reads(c, true);
                    moved |= sim.client_writes(c, true) > 0;
                }
            }
            if let Some(violation) = sim.violation.take() {
                return Err(violation);
            }
            if !turned && !moved {
                return Ok(());
            }
            turns = if moved { 0 } else { turns + 1 };
        }
        Err(format!("the shard spins: {TURNS_MAX} turns at one moment, and nothing comes of them"))
    }

    /// Comes to rest and looks whether anything is missing.
    fn settle(&mut self) -> Result<(), String> {
        self.sim.borrow().trace(|| "settle".into());
        self.go_on()?;
        let sim = &mut *self.sim.borrow_mut();
        for c in 0..sim.clients.len() {
            sim.check_settled(c);
        }
        sim.violation.take().map_or(Ok(()), Err)?;
        Ok(())
    }

    /// Time passes in one piece.
    fn leap(&mut self) -> Result<(), String> {
        self.go_on()?;
        let wake = self.shard.next_wake();
        {
            let sim = &mut *self.sim.borrow_mut();
            sim.mono = match (sim.rng.below(4), wake) {
                (0 | 1, Some(wake)) => sim.mono.max(wake),
                (2, _) => sim.mono + Duration::from_millis(sim.rng.between(1, 5_000) as u64),
                _ => sim.mono + Duration::from_secs(sim.rng.pick(&[1, 10, 60, 400, 20_000])),
            };
            sim.trace(|| "the clock leaps".into());
        }
        self.settle()
    }

    /// Everybody leaves, the app answers everything, time passes.
    fn end(&mut self) -> Result<(), String> {
        self.sim.borrow_mut().exhausted = false;
        for round in 0..2_000 {
            {
                let sim = &mut *self.sim.borrow_mut();
                sim.trace(|| format!("end, round {round}"));
                for c in 0..sim.clients.len() {
                    if round > 20 && !sim.clients[c].left && !sim.clients[c].ended {
                        sim.leave(c, true);
                    } else if round < 20 && sim.rng.chance(300) {
                        sim.farewell(c);
                    }
                    sim.client_step(c);
                }
                sim.whispered.clear();
            }
            self.answer_some(usize::MAX);
            self.go_on()?;
            if self.shard.holds_nothing() && self.sim.borrow().net.backlog.is_empty() && self.inbox.is_empty() {
                return Ok(());
            }
            let wake = self.shard.next_wake();
            let sim = &mut *self.sim.borrow_mut();
            match wake {
                Some(wake) if round > 5 => sim.mono = sim.mono.max(wake),
                _ => sim.mono += Duration::from_millis(30),
            }
        }
        let (held, sim) = (self.shard.connections(), self.sim.borrow());
        Err(format!(
            "the shard still holds something ({held} connections) when all have left; {} calls run",
            sim.running.len()
        ))
    }

    /// What must hold when all is over.
    fn final_checks(&mut self) -> Result<(), String> {
        let sim = self.sim.borrow();
        let counters = &self.metrics.counters;
        let zero = [
            ("clients_num", counters.clients_num.get()),
            ("broadcast_streams_num", counters.broadcast_streams_num.get()),
            ("subscriptions_num", counters.subscriptions_num.get()),
            ("connections_num", counters.connections_num.get()),
            ("handshakes_num", counters.handshakes_num.get()),
            ("open WebSockets", sim.open as i64),
            ("identifiers present", sim.present.len() as i64),
            ("calls that run", sim.running.len() as i64),
        ];
        if let Some((name, value)) = zero.into_iter().find(|(_, value)| *value != 0) {
            return Err(format!("{name} is {value} at the end"));
        }
        let cause = |cause| self.metrics.closed_for(cause);
        let closed: u64 = CloseCause::ALL.iter().map(|c| cause(*c)).sum();
        let same = [
            ("closed and accepted connections", closed, sim.accepted),
            ("counted and accepted connections", counters.connections_accepted_total.get(), sim.accepted),
            ("connections handed over", cause(CloseCause::Http), sim.handed_over),
            ("connections turned away", cause(CloseCause::NoDescriptors), sim.turned_away),
            ("connections over the limit", cause(CloseCause::MaxConnections), sim.refused_open),
        ];
        if let Some((what, ours, theirs)) = same.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            return Err(format!("{what}: {ours} and {theirs}"));
        }
        for seen in [CloseCause::ServerRestart, CloseCause::Remote, CloseCause::TooSlow, CloseCause::NoPong] {
            let by_clients = sim.clients.iter().filter(|client| client.seen_cause == Some(seen)).count() as u64;
            if cause(seen) < by_clients {
                return Err(format!("{by_clients} clients were closed for {seen:?}, {} counted", cause(seen)));
            }
        }
        let rules = &sim.scenario.settings.session;
        for (c, client) in sim.clients.iter().enumerate() {
            let due = rules.has_backend
                && match rules.disconnect_mode {
                    DisconnectMode::Auto => client.model.disconnectable,
                    DisconnectMode::Always => {
                        client.model.disconnectable
                            || (rules.no_auth && client.upgraded_at.is_some() && client.aim == Aim::Cable)
                    }
                    DisconnectMode::Never => false,
                };
            if due && !client.disconnect_seen {
                return Err(format!("client {c}: the app was not told that its session is over"));
            }
        }
        Ok(())
    }
}
