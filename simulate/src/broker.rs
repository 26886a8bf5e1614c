//! The broker: checks every question against the model, and answers at once or late, well or badly.
//!
//! In half of the runs it is the real one, wired as a node does it: what it says of history and presence is said behind the
//! publications that it covers, and it is checked against [`Memory`]. In the others nothing is kept,
//! and chance makes the answers up.

use std::rc::Rc;
use std::time::Duration;

use cableway::broker::{Departure, LocalBroker, MemorySettings, Place, Resumption, SWEEPS, SessionsSettings};
use cableway::model::{
    BrokerError, BrokerQuestion, BrokerReply, HistoryRequest, Missed, NameHasher, Now, PresenceChange, Publication,
    Reply, ResumeTicket, SavedSession, Sid, SlotKey,
};

use crate::kept::{Ask, EPOCH, Fate, Kept, Memory, replayed};
use crate::model::{Asks, Phase, Step, Wanted, same_state};
use crate::rng::Rng;
use crate::seams::UNIX;
use crate::world::{Open, Sim};

/// Something that the broker has for a shard.
pub enum Outgoing {
    Answer(SlotKey, Reply),
    Yield(Place, ResumeTicket),
    Event(Publication),
}

/// The real broker and the second opinion about it.
pub fn draw(rng: &mut Rng) -> (Rc<LocalBroker>, Memory) {
    let memory = Memory {
        history_limit: rng.pick(&[0, 1, 3, 10, 100, 100]),
        history_ttl: rng.pick(&[1, 5, 60, 300]),
        presence_ttl: rng.pick(&[1, 5, 15]),
        sessions_ttl: rng.pick(&[1, 10, 300, 300]),
        ..Memory::default()
    };
    let seconds = Duration::from_secs;
    let settings = MemorySettings {
        epoch: EPOCH.into(),
        history_limit: memory.history_limit as u32,
        history_ttl: seconds(memory.history_ttl),
        history_bytes_max: usize::MAX,
        presence_ttl: seconds(memory.presence_ttl),
        presence_bytes_max: usize::MAX,
        sessions: SessionsSettings { ttl: seconds(memory.sessions_ttl), bytes_max: usize::MAX },
    };
    (Rc::new(LocalBroker::with_hasher(Some(settings), NameHasher::new(rng.next()))), memory)
}

impl Sim {
    /// The time, as the broker knows it.
    pub fn broker_now(&self) -> Now {
        Now { mono: self.mono, unix: self.mono + UNIX }
    }

    /// The same in whole seconds, monotonic and since 1970.
    fn seconds(&self) -> (u64, u64) {
        let Now { mono, unix } = self.broker_now();
        (mono.as_secs(), unix.as_secs())
    }

    /// The shard asks on behalf of a session.
    pub fn on_broker_question(&mut self, key: SlotKey, sid: Sid, question: BrokerQuestion) -> Option<Reply> {
        let Some(c) = self.net.holder_of(key) else {
            self.fail("a question of nobody".into());
            return None;
        };
        self.trace(|| format!("question for client {c}: {question:?}"));
        self.digest_mix(c as u64 + 3_000);
        let sid = sid.to_string();
        if self.clients[c].sid.get_or_insert(sid.clone()) != &sid {
            self.fail(format!("client {c}: two session ids"));
        }
        if self.clients[c].running.is_some() {
            self.fail(format!("client {c}: two questions at once"));
        }
        let waiting = match &question {
            BrokerQuestion::Resume(ticket) => {
                let client = &self.clients[c];
                let is_due = client.model.resuming && client.model.waiting.is_none();
                if !is_due || client.shown != Some(ticket.sid.to_string()) || ticket.identifiers.is_some() {
                    self.fail(format!("client {c}: {ticket:?} is not due"));
                }
                None
            }
            _ => Some(self.wanted_of_broker(c, &question)?),
        };
        let history = waiting.clone().filter(|wanted| matches!(wanted.asks, Asks::History(_)));
        self.clients[c].model.waiting = Some(waiting);
        if self.broker.is_none() {
            if self.rng.chance(400) {
                let reply = self.made_up(&question);
                self.apply(c, &reply);
                return Some(reply);
            }
        } else if let Some(wanted) = &history {
            self.begins_to_hold(c, wanted);
        }
        if self.rng.chance(self.scenario.broker_trouble / 4) {
            let reply = Reply::Broker(Err(BrokerError::Unavailable));
            self.apply(c, &reply);
            return Some(reply);
        }
        self.clients[c].running = Some(key);
        if self.broker.is_some() && self.rng.chance(400) {
            self.in_flight.push((key, c));
            self.broker_decides(key, c, question);
        } else {
            self.running.push((key, c, Open::Broker(question)));
        }
        None
    }

    /// History or presence: what the model has to ask for next must be this.
    fn wanted_of_broker(&mut self, c: usize, question: &BrokerQuestion) -> Option<Wanted> {
        self.upgraded(c);
        let wanted = loop {
            match self.advance(c) {
                Step::Done => {}
                Step::Blocked(wanted) if !matches!(wanted.asks, Asks::App(_)) => break wanted,
                Step::Blocked(_) | Step::Waiting | Step::Empty => {
                    self.fail(format!("client {c}: {question:?} is not due"));
                    return None;
                }
            }
        };
        self.catch_up_with_presence(c);
        let model = &self.clients[c].model;
        let is_it = match (&wanted.asks, question) {
            (Asks::History(ask), BrokerQuestion::History { streams, since }) => {
                let ours = model.find(&wanted.identifier).map(|at| &model.subs[at].streams);
                ours.is_some_and(|ours| ours.iter().map(String::as_str).eq(streams.iter().map(|stream| &**stream)))
                    && *ask == ask_of(since)
            }
            (Asks::Present(records), BrokerQuestion::Present { stream, records: asked }) => {
                records == asked && model.presence_stream(&wanted.identifier).as_deref() == Some(stream)
            }
            _ => false,
        };
        if !is_it {
            self.fail(format!("client {c}: {question:?} instead of {wanted:?}"));
        } else if !model.presences.is_empty() {
            self.fail(format!("client {c}: presence was not changed before this question"));
        }
        Some(wanted)
    }

    /// What becomes of a question if nothing is kept.
    pub fn made_up(&mut self, question: &BrokerQuestion) -> Reply {
        let BrokerQuestion::History { streams, .. } = question else { return Reply::Broker(Err(BrokerError::NotKept)) };
        Reply::Broker(match self.rng.below(5) {
            0 => Err(BrokerError::NotKept),
            1 => Err(BrokerError::Gone),
            2 => Err(BrokerError::Unavailable),
            _ => {
                let count = self.rng.below(4);
                let missed = (0..count).map(|_| {
                    self.serial += 1;
                    let stream = streams[self.rng.below(streams.len())].clone();
                    let publications = vec![Publication::new(stream.clone(), format!("{{\"h\":{}}}", self.serial))];
                    Missed { stream, had: 0, publications }
                });
                Ok(BrokerReply::History(missed.collect()))
            }
        })
    }

    /// The broker deals with a question; its answer is on its way, or follows when a session was given up.
    pub fn broker_decides(&mut self, key: SlotKey, c: usize, question: BrokerQuestion) {
        let Some(broker) = self.broker.clone() else { return };
        let now = self.broker_now();
        let result = match question {
            _ if self.rng.chance(self.scenario.broker_trouble) => Err(BrokerError::Unavailable),
            BrokerQuestion::History { streams, since } => {
                let result = broker.history(&streams, &since, now);
                self.check_history(c, &streams, &since, &result);
                result
            }
            BrokerQuestion::Present { stream, records } => {
                let result = broker.present(&stream, records, usize::MAX);
                match &result {
                    Ok(told) if self.memory.is_present(&stream, records, told) => {}
                    told => self.fail(format!("client {c}: present on {stream}: {told:?}")),
                }
                result.map(BrokerReply::Present)
            }
            BrokerQuestion::Resume(ticket) => match self.resumes(&broker, key, c, ticket) {
                Some(saved) => Ok(BrokerReply::Resumed(saved)),
                None => return,
            },
        };
        self.trace(|| format!("the broker answers client {c}: {result:?}"));
        self.outgoing.push_back(Outgoing::Answer(key, Reply::Broker(result)));
    }

    fn check_history(
        &mut self,
        c: usize,
        streams: &[Box<str>],
        since: &HistoryRequest,
        result: &Result<BrokerReply, BrokerError>,
    ) {
        let (mono, unix) = self.seconds();
        let ours = self.memory.missed(streams, &ask_of(since), mono, unix);
        let is_same = match (&ours, result) {
            (Ok(ours), Ok(BrokerReply::History(theirs))) => {
                ours.len() == theirs.len()
                    && ours.iter().zip(theirs).all(|((had, ours), theirs)| {
                        let texts = ours.iter().map(|&p| self.published_as("", p));
                        theirs.had == *had
                            && texts.eq(theirs.publications.iter().map(|publication| replayed("", publication)))
                    })
            }
            (Err(ours), Err(theirs)) => ours == theirs,
            _ => false,
        };
        if !is_same {
            self.fail(format!("client {c}: history of {streams:?} {since:?} is {result:?} instead of {ours:?}"));
        }
    }

    /// A client asks for its session. `None`: it is told when whoever has it has given it up.
    fn resumes(
        &mut self,
        broker: &LocalBroker,
        key: SlotKey,
        c: usize,
        ticket: ResumeTicket,
    ) -> Option<Option<Box<SavedSession>>> {
        let sid = ticket.sid.to_string();
        let (mono, _) = self.seconds();
        let ttl = self.memory.sessions_ttl;
        let is_sent_away = |memory: &Memory, kept: &Kept, at| memory.is_sent_away(&kept.identifiers, at);
        let kept = self.memory.sessions.get(&sid);
        let has_waiter = matches!(kept, Some(Kept { fate: Fate::Lives(Some(_)), .. }));
        let lives = matches!(kept, Some(Kept { fate: Fate::Lives(None), .. }));
        let is_there = matches!(kept, Some(Kept { fate: Fate::Saved(at), .. }) if at + ttl >= mono);
        let may_have = kept.is_some_and(
            |kept| matches!(kept.fate, Fate::Saved(at) if at + ttl >= mono && !is_sent_away(&self.memory, kept, at)),
        );
        let resumption = broker.sessions()?.resume(ticket, key, self.broker_now(), &broker.metrics);
        let kept = self.memory.sessions.get_mut(&sid);
        match resumption {
            Resumption::Now(saved) => {
                if saved.is_some() != may_have || lives {
                    self.fail(format!("client {c}: gets {saved:?} for {sid}, and may have it: {may_have}"));
                } else if let Some(kept) = kept.filter(|_| is_there) {
                    kept.fate = if may_have { Fate::Given(c) } else { Fate::Over };
                }
                Some(saved)
            }
            Resumption::AfterYield(place, ticket) => {
                if !lives || has_waiter {
                    self.fail(format!("client {c}: waits for session {sid}, which does not live"));
                } else if let Some(kept) = kept {
                    kept.fate = Fate::Lives(Some(c));
                    let owner = kept.owner;
                    self.clients[owner].taken_over = true;
                }
                self.outgoing.push_back(Outgoing::Yield(place, ticket));
                None
            }
        }
    }

    /// Whoever waited for a session is told.
    fn tell_of(&mut self, departure: Option<Departure>) {
        if let Some(Departure { key, saved }) = departure {
            let key = self.current_key(key);
            self.outgoing.push_back(Outgoing::Answer(key, Reply::Broker(Ok(BrokerReply::Resumed(saved)))));
        }
    }

    /// The key that a connection with this one has now.
    fn current_key(&self, mut key: SlotKey) -> SlotKey {
        while let Some((_, to)) = self.renamed.iter().find(|(from, _)| *from == key) {
            key = *to;
        }
        key
    }

    /// A session that can be resumed is in a slot.
    pub fn on_resident(&mut self, sid: Sid, shard: usize, index: u32) {
        let Some(broker) = self.broker.clone() else { return self.fail(format!("{sid} is resident without a broker")) };
        let name = sid.to_string();
        match self.memory.sessions.get(&name) {
            Some(Kept { fate: Fate::Lives(_), .. }) => {}
            Some(_) => self.fail(format!("{sid} lives again")),
            None => {
                let Some(c) = self.net.live_at(shard, index) else {
                    return self.fail(format!("{sid} is resident in an empty slot"));
                };
                let client = &mut self.clients[c];
                if client.sid.get_or_insert(name.clone()) != &name || !client.can_come_back {
                    self.fail(format!("client {c}: {sid} is resident"));
                }
                let kept = Kept { owner: c, fate: Fate::Lives(None), model: None, identifiers: String::new() };
                self.memory.sessions.insert(name, kept);
            }
        }
        if let Some(sessions) = broker.sessions() {
            sessions.resident(sid, Place { shard: shard as u16, index });
        }
    }

    /// A session is over.
    pub fn on_departed(&mut self, sid: Sid, saved: Option<Box<SavedSession>>) {
        let Some(broker) = self.broker.clone() else { return self.fail(format!("{sid} departs without a broker")) };
        let name = sid.to_string();
        self.trace(|| format!("session {sid} departs: {saved:?}"));
        let Some(Kept { owner, fate, .. }) = self.memory.sessions.get(&name) else {
            // Its client was gone before it was let in.
            if saved.is_none() {
                return;
            }
            return self.fail(format!("{sid} departs and never lived"));
        };
        let (owner, fate, now) = (*owner, fate.clone(), self.seconds().0);
        let is_left = saved.is_some();
        match (&fate, &saved) {
            (Fate::Lives(_), Some(saved)) => self.check_saved(owner, &name, saved),
            (Fate::Lives(_), None) => self.check_not_saved(owner),
            // Who asked for it was gone before the answer came.
            (Fate::Given(c), Some(_)) if !self.clients[*c].welcomed => {}
            _ => self.fail(format!("{sid} departs, and was {fate:?}")),
        }
        let departure =
            broker.sessions().and_then(|sessions| sessions.departed(sid, saved, self.broker_now(), &broker.metrics));
        let Some(kept) = self.memory.sessions.get(&name) else { return };
        let may_have = is_left && !self.memory.is_sent_away(&kept.identifiers, now);
        let told = departure.as_ref().map(|departure| departure.saved.is_some());
        let (fate, wanted) = match fate {
            Fate::Lives(Some(waiter)) if may_have => (Fate::Given(waiter), Some(true)),
            Fate::Lives(Some(_)) => (Fate::Over, Some(false)),
            _ if is_left => (Fate::Saved(now), None),
            _ => (Fate::Over, None),
        };
        if told != wanted {
            self.fail(format!("{sid} departs: who waits is told {told:?} instead of {wanted:?}"));
        }
        if let Some(kept) = self.memory.sessions.get_mut(&name) {
            kept.fate = fate;
        }
        self.tell_of(departure);
    }

    /// What is saved of a session is what it was. How many of the last items its shard has handled cannot be seen; one of
    /// the numbers must fit.
    fn check_saved(&mut self, c: usize, sid: &str, saved: &SavedSession) {
        self.upgraded(c);
        let identifiers = self.identifiers(c);
        let mut model = self.clients[c].model_at_its_end();
        loop {
            let subs = model.subs.iter().zip(&saved.subscriptions).all(|(ours, theirs)| {
                let streams = theirs.topics.iter().map(|topic| topic.stream()).filter(|stream| !stream.is_empty());
                theirs.topics[0].identifier() == ours.identifier
                    && streams.eq(ours.streams.iter().map(String::as_str))
                    && same_state(&ours.istate, &theirs.istate)
                    && theirs.here.is_none() == ours.by_app
            });
            if subs
                && model.subs.len() == saved.subscriptions.len()
                && same_state(&model.cstate, &saved.cstate)
                && *saved.identifiers == *identifiers
                && saved.disconnectable == model.disconnectable
            {
                break;
            }
            if !matches!(model.step(), Step::Done) {
                let model = &self.clients[c].model;
                let ours = (&model.subs, &model.cstate, model.disconnectable);
                return self.fail(format!("client {c}: saved is {saved:?} instead of {identifiers} {ours:?}"));
            }
        }
        if let Some(kept) = self.memory.sessions.get_mut(sid) {
            (kept.model, kept.identifiers) = (Some(model), identifiers);
        }
    }

    /// Nothing is left of a session: not without a reason.
    fn check_not_saved(&mut self, c: usize) {
        let identifiers = self.identifiers(c);
        let client = &self.clients[c];
        let is_sent_away = self.evicted.iter().any(|(evicted, _)| *evicted == identifiers);
        let is_drained = client.was_drained || self.sites[client.shard].drained_by.is_some();
        let is_idle = self.scenario.settings.session.idle_timeout_ms > 0;
        let is_over = client.model.phase == Phase::Over;
        if client.dropped && !client.silent && !is_sent_away && !is_drained && !is_idle && !is_over {
            self.fail(format!("client {c}: dropped, and nothing is left of its session"));
        }
    }

    /// A session is not given up.
    pub fn on_stays(&mut self, sid: Sid) {
        let Some(broker) = self.broker.clone() else { return self.fail(format!("{sid} stays without a broker")) };
        let departure = broker.sessions().and_then(|sessions| sessions.stays(sid, &broker.metrics));
        if let Some(kept) = self.memory.sessions.get_mut(&sid.to_string())
            && matches!(kept.fate, Fate::Lives(_))
        {
            kept.fate = Fate::Lives(None);
            let owner = kept.owner;
            if self.clients[owner].is_healthy(self.net.conn(owner).faulty) && !self.clients[owner].is_nowhere {
                let identifiers = self.identifiers(owner);
                let is_sent_away = self.evicted.iter().any(|(evicted, _)| *evicted == identifiers);
                let is_over = self.clients[owner].model.phase == Phase::Over;
                if !is_sent_away && !is_over {
                    self.fail(format!("client {owner}: its session is not given up without cause"));
                }
            }
        }
        self.tell_of(departure);
    }

    /// A session was asked for in a slot where it is not.
    pub fn on_not_here(&mut self, sid: Sid, shard: usize, index: u32) {
        let Some(broker) = self.broker.clone() else {
            return self.fail(format!("{sid} is asked for without a broker"));
        };
        let from = Place { shard: shard as u16, index };
        match broker.sessions().and_then(|sessions| sessions.moved(sid, from)) {
            Some((place, ticket)) => self.outgoing.push_back(Outgoing::Yield(place, ticket)),
            None => self.on_stays(sid),
        }
    }

    /// A session that was found is about to go on.
    pub fn on_may_go_on(&mut self, saved: &SavedSession) -> bool {
        let Some(broker) = self.broker.clone() else { return false };
        let may = broker.sessions().is_some_and(|sessions| sessions.may_go_on(saved));
        let sid = saved.sid.to_string();
        let Some(Kept { fate: Fate::Given(c), .. }) = self.memory.sessions.get(&sid) else {
            self.fail(format!("{sid} goes on, and was not given to anybody"));
            return may;
        };
        let c = *c;
        let undo = self.clients[c].undo.take();
        if may {
            return true;
        }
        if !self.memory.is_sent_away(&saved.identifiers, saved.saved_at.into()) {
            self.fail(format!("client {c}: may not go on with {sid}, and was not sent away"));
        }
        if let Some(kept) = self.memory.sessions.get_mut(&sid) {
            kept.fate = Fate::Over;
        }
        if let Some(undo) = undo {
            let client = &mut self.clients[c];
            let items = std::mem::take(&mut client.model.items);
            client.model = *undo;
            client.model.items = items;
            client.ledger.clear();
            client.must_go = false;
            client.holding.clear();
            self.upgraded(c);
        }
        false
    }

    /// The broker has said whether a client goes on with its session.
    pub fn resume_answered(&mut self, c: usize, reply: &Reply) {
        let model = &mut self.clients[c].model;
        (model.waiting, model.resuming) = (None, false);
        let Reply::Broker(Ok(BrokerReply::Resumed(Some(saved)))) = reply else { return self.upgraded(c) };
        let Some(kept) = self.memory.sessions.get(&saved.sid.to_string()) else { return };
        let (Some(then), Fate::Given(given)) = (&kept.model, &kept.fate) else {
            return self.fail(format!("client {c}: goes on with {}, which is {:?}", saved.sid, kept.fate));
        };
        if *given != c {
            return self.fail(format!("client {c}: goes on with the session of client {given}"));
        }
        let client = &mut self.clients[c];
        client.undo = Some(Box::new(client.model.clone()));
        client.model.goes_on(then, &kept.identifiers);
        if self.scenario.settings.session.ping_interval_ms > 0 {
            let subs = client.model.subs.iter().filter(|sub| !sub.streams.is_empty());
            let identifiers: Vec<_> = subs.map(|sub| sub.identifier.clone()).collect();
            identifiers.into_iter().for_each(|identifier| self.holds(c, identifier, true));
        }
    }

    /// A session changes who is present.
    pub fn on_presence(&mut self, sid: Sid, stream: &str, change: PresenceChange) {
        let Some(broker) = self.broker.clone() else {
            return self.fail(format!("{change:?} of {stream} without a broker"));
        };
        let name = sid.to_string();
        let said = match &change {
            PresenceChange::Join { info: Some(info), .. } => serde_json::from_str::<serde_json::Value>(info).ok(),
            _ => None,
        };
        let by_info = said.and_then(|info| info["j"][0].as_u64()).map(|c| c as usize);
        let by_sid = || self.clients.iter().position(|client| client.sid.as_ref() == Some(&name));
        if let Some(c) = by_info.or_else(by_sid).filter(|&c| c < self.clients.len()) {
            self.catch_up_with_presence(c);
            self.check_presence(c, &name, stream, &change);
        } else if change != PresenceChange::Gone {
            self.early_presences.push((name.clone(), stream.into(), change.clone()));
        }
        let (mono, _) = self.seconds();
        let event = match &change {
            PresenceChange::Join { id, info } => self.memory.join(stream, &name, id, info.as_deref().unwrap_or("null")),
            PresenceChange::Leave => self.memory.leave(stream, &name),
            PresenceChange::Gone => {
                self.memory.gone(stream, &name, mono);
                None
            }
        };
        let mut events = Vec::new();
        broker.change_presence(stream, sid, change.clone(), self.broker_now(), |told| events.push(told));
        let told = events.first().map(|told| told.message.to_string());
        if told != event || events.len() > 1 {
            self.fail(format!("{change:?} on {stream} is told as {told:?} instead of {event:?}"));
        }
        self.outgoing.extend(events.into_iter().map(Outgoing::Event));
    }

    /// Looks at what a client did before it was known whose session it is.
    pub fn catch_up_with_presence(&mut self, c: usize) {
        let Some(sid) = self.clients[c].sid.clone() else { return };
        let (its, others) =
            std::mem::take(&mut self.early_presences).into_iter().partition::<Vec<_>, _>(|(known, ..)| *known == sid);
        self.early_presences = others;
        its.iter().for_each(|(sid, stream, change)| self.check_presence(c, sid, stream, change));
    }

    fn check_presence(&mut self, c: usize, sid: &str, stream: &str, change: &PresenceChange) {
        if self.clients[c].sid.get_or_insert(sid.into()) != sid {
            return self.fail(format!("client {c}: two session ids"));
        }
        if *change == PresenceChange::Gone {
            return;
        }
        self.upgraded(c);
        while self.clients[c].model.presences.is_empty() {
            if !matches!(self.advance(c), Step::Done) {
                return self.fail(format!("client {c}: {change:?} on {stream} is not due"));
            }
        }
        let due = self.clients[c].model.presences.pop_front();
        if due != Some((stream.into(), change.clone())) {
            self.fail(format!("client {c}: {change:?} on {stream} instead of {due:?}"));
        }
    }

    /// The broker looks for what is over.
    pub fn sweep(&mut self) {
        let Some(broker) = self.broker.clone() else { return };
        let (now, (mono, _)) = (self.broker_now(), self.seconds());
        let mut events = Vec::new();
        (0..SWEEPS).for_each(|part| broker.sweep(part, now, |event| events.push(event)));
        // Which streams are looked at first is a matter of chance.
        events.sort_by(|a, b| (&a.stream, &*a.message).cmp(&(&b.stream, &*b.message)));
        let mut wanted = self.memory.sweep(mono);
        wanted.sort();
        if !events.iter().map(|event| (event.stream.to_string(), event.message.to_string())).eq(wanted.iter().cloned())
        {
            self.fail(format!("the broker tells of {events:?} instead of {wanted:?}"));
        }
        self.outgoing.extend(events.into_iter().map(Outgoing::Event));
    }

    /// When everybody has gone and their time is over, nothing is kept.
    pub fn check_nothing_is_kept(&mut self) -> Result<(), String> {
        let Some(broker) = self.broker.clone() else { return Ok(()) };
        let memory = &self.memory;
        let longest = (memory.history_ttl * 10).max(memory.sessions_ttl + 20).max(memory.presence_ttl);
        self.mono += Duration::from_secs(longest + 2);
        self.sweep();
        self.violation.take().map_or(Ok(()), Err)?;
        broker.measure();
        let metrics = &broker.metrics;
        let gauges = [
            ("history_messages_num", metrics.history_messages_num.get()),
            ("history_streams_num", metrics.history_streams_num.get()),
            ("history_bytes", metrics.history_bytes.get()),
            ("presence_records_num", metrics.presence_records_num.get()),
            ("presence_bytes", metrics.presence_bytes.get()),
            ("saved_sessions_num", metrics.saved_sessions_num.get()),
            ("saved_sessions_bytes", metrics.saved_sessions_bytes.get()),
        ];
        if let Some((name, value)) = gauges.into_iter().find(|(_, value)| *value != 0) {
            return Err(format!("{name} is {value} when everybody has gone and their time is over"));
        }
        let listed = broker.sessions().map(|sessions| sessions.listed());
        if listed != Some((0, 0)) || !self.in_flight.is_empty() {
            let waiting = &self.in_flight;
            return Err(format!("sessions and identities that are still listed: {listed:?}; who waits: {waiting:?}"));
        }
        Ok(())
    }

    /// A publication gets its place in its stream.
    pub fn stored(&mut self, publication: Publication, p: usize) -> Publication {
        let Some(broker) = self.broker.clone() else { return publication };
        let is_transient = publication.transient;
        let publication = broker.in_order(publication, self.broker_now(), |publication| publication);
        let (mono, unix) = self.seconds();
        match &publication.position {
            Some(position) if !is_transient && &*position.epoch == EPOCH => {
                if let Err(wrong) = self.memory.store(&publication.stream, p, position.offset, mono, unix) {
                    self.fail(format!("publication {p} of {} is stored at {wrong}", publication.stream));
                }
            }
            None if is_transient => {}
            other => self.fail(format!("publication {p} (transient: {is_transient}) is at {other:?}")),
        }
        publication
    }
}

fn ask_of(since: &HistoryRequest) -> Ask {
    let positions = since.positions.iter();
    let positions = positions.map(|(stream, at)| (stream.to_string(), at.epoch.to_string(), at.offset));
    Ask { since: since.since, positions: positions.collect() }
}
