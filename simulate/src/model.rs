//! What a session must do, told a second time: commands and answers in, expectations out.
//!
//! Written from the contracts, not from the server. It runs behind the server: a client's items stand in a queue,
//! and the model takes them off when something is seen that proves that the server has (a call, a reply).

use std::collections::{BTreeMap, VecDeque};

use cableway::model::{AppReply, BrokerReply, CommandKind, CommandReply, PresenceChange, Reply, State, Status};

use crate::frames::op;
use crate::kept::{Ask, replayed};
use crate::scenario::{Ident, Route};

/// Something a client sent whose handling can be seen, in the order in which it has to be handled.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// With what it asks for besides.
    Subscribe(Ident, Extras),
    Unsubscribe(Ident),
    Message(Ident, String),
    Ping,
    Whisper(Ident, String),
    History(Ident, Ask),
    /// Whether the records are wanted.
    Presence(Ident, bool),
    /// As whom, and what others are told.
    Join(Ident, String, String),
    Leave(Ident),
    /// Nothing comes of it.
    Junk,
    /// A ping frame.
    NativePing(Vec<u8>),
    /// A message on the echo path.
    Echo(u8, Vec<u8>),
    /// A close frame, or something that is answered with one: what comes back.
    Close(Vec<u8>),
}

/// What rides on a subscribe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    pub history: Option<Ask>,
    /// As whom, and what others are told.
    pub join: Option<(String, String)>,
}

/// What a client must see next, among what comes in an order of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    Text(String),
    /// The welcome that the server writes itself.
    Welcome,
    /// The same to a session that is back with these identifiers.
    Restored(Vec<String>),
    Frame(u8, Vec<u8>),
}

/// Close frame payload.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// The text of a message about an identifier.
pub fn about(kind: &str, identifier: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"identifier\":{}}}", quoted(identifier))
}

/// JSON string.
pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string has a JSON form")
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase {
    Connecting,
    Open,
    Over,
}

#[derive(Clone, Debug)]
pub struct Sub {
    pub identifier: String,
    pub by_app: bool,
    pub whisper: bool,
    pub streams: Vec<String>,
    pub istate: BTreeMap<String, String>,
}

/// What has to be asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Asks {
    /// A call that the app must get.
    App(CommandKind),
    /// The broker, for history.
    History(Ask),
    /// The broker, for who is present, with records or without.
    Present(bool),
}

/// A question that must be asked.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub asks: Asks,
    pub identifier: String,
    pub data: String,
    /// It rode on the subscribe.
    pub riding: bool,
}

/// How streams of a session change; for the ledger of deliveries.
#[derive(Clone, Debug)]
pub enum Change {
    Attached(String, String),
    Detached(String),
}

/// What taking one item off the queue came to.
pub enum Step {
    Done,
    /// The app must be asked first; the item stays.
    Blocked(Wanted),
    /// An answer of the app is awaited; nothing moves.
    Waiting,
    /// The queue is empty.
    Empty,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub phase: Phase,
    pub echo: bool,
    pub has_backend: bool,
    pub has_broker: bool,
    /// It has shown the id of a session, and the broker has not said yet what becomes of that.
    pub resuming: bool,
    /// What it shows to come back to its session, which the app cannot know.
    pub token: Option<String>,
    /// It goes on with an earlier session.
    pub restored: bool,
    pub identifiers: String,
    pub subs: Vec<Sub>,
    pub cstate: BTreeMap<String, String>,
    pub disconnectable: bool,
    /// A call runs: the one for this item, or Connect.
    pub waiting: Option<Option<Wanted>>,
    pub items: VecDeque<Item>,
    pub expected: VecDeque<Expect>,
    /// Things put into `expected` so far.
    pub expected_total: u64,
    /// Payloads of pings that are not answered yet.
    pub pings: VecDeque<Vec<u8>>,
    /// The last answer to one. It stands for all that came before it (RFC 6455 section 5.5.3).
    pub last_pong: Option<Vec<u8>>,
    /// Whispers that must have been published: stream and text.
    pub whispers: VecDeque<(String, String)>,
    /// Changes of presence that must have been made.
    pub presences: VecDeque<(String, PresenceChange)>,
    pub changes: Vec<Change>,
    /// The history that is asked for next rode on the subscribe.
    pub riding: bool,
}

impl Model {
    pub fn new(echo: bool, has_backend: bool, has_broker: bool) -> Model {
        Model {
            phase: if echo { Phase::Open } else { Phase::Connecting },
            echo,
            has_backend,
            has_broker,
            resuming: false,
            token: None,
            restored: false,
            identifiers: String::new(),
            subs: Vec::new(),
            cstate: BTreeMap::new(),
            disconnectable: false,
            waiting: None,
            items: VecDeque::new(),
            expected: VecDeque::new(),
            expected_total: 0,
            pings: VecDeque::new(),
            last_pong: None,
            whispers: VecDeque::new(),
            presences: VecDeque::new(),
            changes: Vec::new(),
            riding: false,
        }
    }

    pub fn expect(&mut self, what: Expect) {
        self.expected.push_back(what);
        self.expected_total += 1;
    }

    /// A pong has come. Tells whether a ping asked for it, as far as they were handled.
    pub fn answered(&mut self, payload: &[u8]) -> bool {
        let Some(at) = self.pings.iter().position(|ping| ping == payload) else { return false };
        self.pings.drain(..=at);
        self.last_pong = Some(payload.to_vec());
        true
    }

    /// A ping that will not be answered any more, although it is the last of its kind.
    pub fn unanswered(&self) -> Option<&Vec<u8>> {
        self.pings.back().filter(|ping| self.last_pong.as_ref() != Some(ping))
    }

    fn say(&mut self, text: String) {
        self.expect(Expect::Text(text));
    }

    pub fn find(&self, identifier: &str) -> Option<usize> {
        self.subs.iter().position(|sub| sub.identifier == identifier)
    }

    /// Takes one item off the queue, if it can be handled without the app.
    pub fn step(&mut self) -> Step {
        if self.waiting.is_some() || self.phase == Phase::Connecting {
            return Step::Waiting;
        }
        if self.phase == Phase::Over {
            self.items.clear();
        }
        let Some(item) = self.items.front().cloned() else { return Step::Empty };
        if let Some(wanted) = self.wants(&item) {
            return Step::Blocked(wanted);
        }
        self.items.pop_front();
        self.riding = false;
        self.handle(item);
        Step::Done
    }

    fn wants(&self, item: &Item) -> Option<Wanted> {
        if self.echo {
            return None;
        }
        let (asks, ident, data) = match item {
            Item::History(ident, ask) if self.find(&ident.text).is_some_and(|at| !self.subs[at].streams.is_empty()) => {
                (Asks::History(ask.clone()), ident, String::new())
            }
            Item::Presence(ident, records) if self.has_broker && self.presence_stream(&ident.text).is_some() => {
                (Asks::Present(*records), ident, String::new())
            }
            _ if !self.has_backend => return None,
            Item::Subscribe(ident, _) if self.find(&ident.text).is_none() && ident.route == Route::App => {
                (Asks::App(CommandKind::Subscribe), ident, String::new())
            }
            Item::Unsubscribe(ident) if self.find(&ident.text).is_some_and(|at| self.subs[at].by_app) => {
                (Asks::App(CommandKind::Unsubscribe), ident, String::new())
            }
            Item::Message(ident, data) if self.find(&ident.text).is_some() => {
                (Asks::App(CommandKind::Message), ident, data.clone())
            }
            _ => return None,
        };
        Some(Wanted { asks, identifier: ident.text.clone(), data, riding: self.riding })
    }

    /// The stream of a subscription on which its subscribers see each other.
    pub fn presence_stream(&self, identifier: &str) -> Option<String> {
        let sub = &self.subs[self.find(identifier)?];
        match sub.istate.get("$p") {
            Some(stream) => Some(stream.clone()),
            None if sub.by_app => None,
            None => sub.streams.first().cloned(),
        }
    }

    fn change_presence(&mut self, identifier: &str, change: PresenceChange) {
        if let Some(stream) = self.presence_stream(identifier).filter(|_| self.has_broker) {
            self.presences.push_back((stream, change));
        }
    }

    fn handle(&mut self, item: Item) {
        match item {
            Item::NativePing(payload) => self.pings.push_back(payload),
            Item::Echo(opcode, payload) => self.expect(Expect::Frame(opcode, payload)),
            Item::Close(payload) => {
                self.expect(Expect::Frame(op::CLOSE, payload));
                self.phase = Phase::Over;
            }
            Item::Subscribe(ident, extras) => self.subscribe(ident, extras),
            Item::Join(ident, id, info) => {
                let (id, info) = (id.into(), Some(info.into()));
                self.change_presence(&ident.text, PresenceChange::Join { id, info });
            }
            Item::Leave(ident) => self.change_presence(&ident.text, PresenceChange::Leave),
            Item::Unsubscribe(ident) => {
                if let Some(at) = self.find(&ident.text) {
                    self.forget(at);
                }
            }
            Item::Ping => self.say("{\"type\":\"pong\"}".into()),
            Item::Whisper(ident, data) => {
                let Some(at) = self.find(&ident.text) else { return };
                let sub = &self.subs[at];
                let named = sub.istate.get("$w").cloned();
                let own = sub.streams.first().filter(|_| sub.whisper).cloned();
                if let Some(stream) = named.or(own) {
                    self.whispers.push_back((stream, data));
                }
            }
            // With a stream the broker is asked.
            Item::History(ident, _) => {
                if self.find(&ident.text).is_some() {
                    self.say(about("confirm_history", &ident.text));
                }
            }
            // With a broker only where there is no presence: nothing is said.
            Item::Presence(ident, _) => {
                if self.find(&ident.text).is_some() && !self.has_broker {
                    self.say(format!(
                        "{{\"type\":\"presence\",\"identifier\":{},\"message\":{{\"type\":\"error\",\"total\":0}}}}",
                        quoted(&ident.text)
                    ));
                }
            }
            Item::Junk | Item::Message(..) => {}
        }
    }

    fn subscribe(&mut self, ident: Ident, extras: Extras) {
        if self.find(&ident.text).is_some() {
            return;
        }
        match ident.route {
            Route::Stream { ref name, whisper } => {
                self.say(about("confirm_subscription", &ident.text));
                self.add(&ident.text, false, whisper);
                self.follow(self.subs.len() - 1, name);
                self.give_extras(ident, extras);
            }
            Route::Rejected | Route::App => self.say(about("reject_subscription", &ident.text)),
        }
    }

    fn give_extras(&mut self, ident: Ident, Extras { history, join }: Extras) {
        if let Some((id, info)) = join {
            let (id, info) = (id.into(), Some(info.into()));
            self.change_presence(&ident.text, PresenceChange::Join { id, info });
        }
        if let Some(ask) = history {
            self.items.push_front(Item::History(ident, ask));
            self.riding = true;
        }
    }

    fn add(&mut self, identifier: &str, by_app: bool, whisper: bool) {
        self.subs.push(Sub {
            identifier: identifier.into(),
            by_app,
            whisper,
            streams: Vec::new(),
            istate: BTreeMap::new(),
        });
    }

    fn follow(&mut self, at: usize, stream: &str) {
        let sub = &mut self.subs[at];
        if !sub.streams.iter().any(|known| known == stream) {
            sub.streams.push(stream.into());
            self.changes.push(Change::Attached(sub.identifier.clone(), stream.into()));
        }
    }

    fn forget(&mut self, at: usize) {
        let identifier = self.subs[at].identifier.clone();
        self.change_presence(&identifier, PresenceChange::Leave);
        let sub = self.subs.remove(at);
        self.changes.push(Change::Detached(sub.identifier));
    }

    /// The client is let in.
    pub fn let_in(&mut self, identifiers: &str) {
        self.identifiers = identifiers.into();
        self.phase = Phase::Open;
    }

    /// It goes on with what a session was, under these identifiers.
    pub fn goes_on(&mut self, then: &Model, identifiers: &str) {
        (self.subs, self.cstate) = (then.subs.clone(), then.cstate.clone());
        (self.disconnectable, self.restored) = (then.disconnectable, true);
        self.let_in(identifiers);
        self.expect(Expect::Restored(self.subs.iter().map(|sub| sub.identifier.clone()).collect()));
    }

    /// The question that is open is answered.
    pub fn answer(&mut self, reply: &Reply) {
        let Some(waiting) = self.waiting.take() else { return };
        let Some(wanted) = waiting else { return self.connected(reply) };
        let item = self.items.pop_front();
        self.riding = false;
        match (wanted.asks, reply) {
            (Asks::History(_), Reply::Broker(Ok(BrokerReply::History(missed)))) => {
                for publication in missed.iter().flat_map(|missed| &missed.publications) {
                    self.say(replayed(&wanted.identifier, publication));
                }
                self.say(about("confirm_history", &wanted.identifier));
            }
            (Asks::History(_), Reply::Broker(Err(_))) => self.say(about("reject_history", &wanted.identifier)),
            (Asks::Present(_), Reply::Broker(reply)) => {
                let message = match reply {
                    Ok(BrokerReply::Present(message)) => String::from_utf8_lossy(message).into_owned(),
                    _ => "{\"type\":\"error\",\"total\":0}".into(),
                };
                let identifier = quoted(&wanted.identifier);
                self.say(format!("{{\"type\":\"presence\",\"identifier\":{identifier},\"message\":{message}}}"));
            }
            (Asks::App(kind), Reply::App(Ok(AppReply::Command(reply)))) if reply.status != Status::Error => {
                self.carried_out(kind, &wanted.identifier, reply);
                if let Some(Item::Subscribe(ident, extras)) = item
                    && reply.status == Status::Success
                    && !reply.disconnect
                {
                    self.give_extras(ident, extras);
                }
            }
            _ => {}
        }
    }

    fn carried_out(&mut self, kind: CommandKind, identifier: &str, reply: &CommandReply) {
        let success = reply.status == Status::Success;
        match kind {
            CommandKind::Subscribe => {
                self.disconnectable = true;
                if success {
                    self.add(identifier, true, false);
                    self.apply(self.subs.len() - 1, reply);
                }
            }
            CommandKind::Unsubscribe => {
                if let Some(at) = self.find(identifier) {
                    self.forget(at);
                }
            }
            CommandKind::Message => {
                if let Some(at) = self.find(identifier) {
                    self.apply(at, reply);
                }
            }
        }
        merge(&mut self.cstate, &reply.cstate);
        reply.transmissions.iter().for_each(|text| self.say(text.clone()));
        if reply.disconnect {
            return self.over("Closed by the app", 1000);
        }
        // The app's answers to Unsubscribe never have one.
        if let Some(presence) = reply.presence.as_ref().filter(|_| success || kind == CommandKind::Message) {
            let change = match presence.kind.as_str() {
                "join" => {
                    let (id, info) = (presence.id.as_str().into(), Some(presence.info.as_str().into()));
                    PresenceChange::Join { id, info }
                }
                _ => PresenceChange::Leave,
            };
            self.change_presence(identifier, change);
        }
    }

    fn apply(&mut self, at: usize, reply: &CommandReply) {
        let identifier = self.subs[at].identifier.clone();
        let presence = self.presence_stream(&identifier).filter(|_| self.has_broker);
        let streams = self.subs[at].streams.clone();
        for stream in streams {
            if reply.stop_streams || reply.stopped_streams.contains(&stream) {
                let sub = &mut self.subs[at];
                sub.streams.retain(|known| *known != stream);
                self.changes.push(Change::Detached(sub.identifier.clone()));
            }
        }
        reply.streams.iter().for_each(|stream| self.follow(at, stream));
        merge(&mut self.subs[at].istate, &reply.istate);
        if let Some(stream) = presence.filter(|stream| self.presence_stream(&identifier).as_ref() != Some(stream)) {
            self.presences.push_back((stream, PresenceChange::Leave));
        }
    }

    fn connected(&mut self, reply: &Reply) {
        match reply {
            Reply::App(Ok(AppReply::Connect(reply))) if reply.status == Status::Success => {
                self.disconnectable = true;
                merge(&mut self.cstate, &reply.cstate);
                self.let_in(&reply.identifiers);
                for text in &reply.transmissions {
                    match (&self.token, text.strip_suffix('}').filter(|text| text.contains("welcome"))) {
                        (Some(token), Some(head)) => self.say(format!("{head},\"resume_token\":\"{token}\"}}")),
                        _ => self.say(text.clone()),
                    }
                }
            }
            Reply::App(Ok(AppReply::Connect(reply))) if reply.status == Status::Failure => {
                reply.transmissions.iter().for_each(|text| self.say(text.clone()));
                self.over("Auth Failed", 1000);
            }
            _ => self.over("Auth Error", 1011),
        }
    }

    /// The server closes now.
    pub fn over(&mut self, reason: &str, code: u16) {
        self.expect(Expect::Frame(op::CLOSE, close_payload(code, reason)));
        self.phase = Phase::Over;
    }
}

fn merge(state: &mut BTreeMap<String, String>, changes: &[(String, String)]) {
    for (key, value) in changes {
        if value.is_empty() {
            state.remove(key);
        } else {
            state.insert(key.clone(), value.clone());
        }
    }
}

/// Whether the server's state says the same.
pub fn same_state(ours: &BTreeMap<String, String>, theirs: &State) -> bool {
    ours.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(theirs.iter())
}
