//! What a session must do, told a second time: commands and answers in, expectations out.
//!
//! Written from the contracts, not from the server. It runs behind the server: a client's items stand in a queue,
//! and the model takes them off when something is seen that proves that the server has (a call, a reply).

use std::collections::{BTreeMap, VecDeque};

use cableway::model::{AppReply, BrokerReply, CommandKind, CommandReply, Reply, State, Status};

use crate::frames::op;
use crate::scenario::{Ident, Route};

/// Something a client sent whose handling can be seen, in the order in which it has to be handled.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Whether it asks for history too.
    Subscribe(Ident, bool),
    Unsubscribe(Ident),
    Message(Ident, String),
    Ping,
    Whisper(Ident, String),
    History(Ident),
    Presence(Ident),
    /// Nothing comes of it.
    Junk,
    /// A ping frame.
    NativePing(Vec<u8>),
    /// A message on the echo path.
    Echo(u8, Vec<u8>),
    /// A close frame, or something that is answered with one: what comes back.
    Close(Vec<u8>),
}

/// What a client must see next, among what comes in an order of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    Text(String),
    /// The welcome that the server writes itself.
    Welcome,
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

/// A question that must be asked: a call that the app must get, or history that the broker is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// `None`: history.
    pub kind: Option<CommandKind>,
    pub identifier: String,
    pub data: String,
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
    pub changes: Vec<Change>,
}

impl Model {
    pub fn new(echo: bool, has_backend: bool) -> Model {
        Model {
            phase: if echo { Phase::Open } else { Phase::Connecting },
            echo,
            has_backend,
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
            changes: Vec::new(),
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
        self.handle(item);
        Step::Done
    }

    fn wants(&self, item: &Item) -> Option<Wanted> {
        if self.echo {
            return None;
        }
        let (kind, ident, data) = match item {
            Item::History(ident) if self.find(&ident.text).is_some_and(|at| !self.subs[at].streams.is_empty()) => {
                (None, ident, String::new())
            }
            _ if !self.has_backend => return None,
            Item::Subscribe(ident, _) if self.find(&ident.text).is_none() && ident.route == Route::App => {
                (Some(CommandKind::Subscribe), ident, String::new())
            }
            Item::Unsubscribe(ident) if self.find(&ident.text).is_some_and(|at| self.subs[at].by_app) => {
                (Some(CommandKind::Unsubscribe), ident, String::new())
            }
            Item::Message(ident, data) if self.find(&ident.text).is_some() => {
                (Some(CommandKind::Message), ident, data.clone())
            }
            _ => return None,
        };
        Some(Wanted { kind, identifier: ident.text.clone(), data })
    }

    fn handle(&mut self, item: Item) {
        match item {
            Item::NativePing(payload) => self.pings.push_back(payload),
            Item::Echo(opcode, payload) => self.expect(Expect::Frame(opcode, payload)),
            Item::Close(payload) => {
                self.expect(Expect::Frame(op::CLOSE, payload));
                self.phase = Phase::Over;
            }
            Item::Subscribe(ident, history) => self.subscribe(ident, history),
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
            Item::History(ident) => {
                if self.find(&ident.text).is_some() {
                    self.say(about("confirm_history", &ident.text));
                }
            }
            Item::Presence(ident) => {
                if self.find(&ident.text).is_some() {
                    self.say(format!(
                        "{{\"type\":\"presence\",\"identifier\":{},\"message\":{{\"type\":\"error\",\"total\":0}}}}",
                        quoted(&ident.text)
                    ));
                }
            }
            Item::Junk | Item::Message(..) => {}
        }
    }

    fn subscribe(&mut self, ident: Ident, history: bool) {
        if self.find(&ident.text).is_some() {
            return;
        }
        match ident.route {
            Route::Stream { ref name, whisper } => {
                self.say(about("confirm_subscription", &ident.text));
                self.add(&ident.text, false, whisper);
                self.follow(self.subs.len() - 1, name);
                if history {
                    self.items.push_front(Item::History(ident));
                }
            }
            Route::Rejected | Route::App => self.say(about("reject_subscription", &ident.text)),
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
        let sub = self.subs.remove(at);
        self.changes.push(Change::Detached(sub.identifier));
    }

    /// The client is let in.
    pub fn let_in(&mut self, identifiers: &str) {
        self.identifiers = identifiers.into();
        self.phase = Phase::Open;
    }

    /// The question that is open is answered.
    pub fn answer(&mut self, reply: &Reply) {
        let Some(waiting) = self.waiting.take() else { return };
        let Some(wanted) = waiting else { return self.connected(reply) };
        let item = self.items.pop_front();
        match (wanted.kind, reply) {
            (None, Reply::Broker(Ok(BrokerReply::History(missed)))) => {
                for publication in missed.iter().flat_map(|missed| &missed.publications) {
                    let identifier = quoted(&wanted.identifier);
                    self.say(format!("{{\"identifier\":{identifier},\"message\":{}}}", publication.message));
                }
                self.say(about("confirm_history", &wanted.identifier));
            }
            (None, Reply::Broker(Err(_))) => self.say(about("reject_history", &wanted.identifier)),
            (Some(kind), Reply::App(Ok(AppReply::Command(reply)))) if reply.status != Status::Error => {
                self.carried_out(kind, &wanted.identifier, reply);
                if let Some(Item::Subscribe(ident, true)) = item
                    && reply.status == Status::Success
                    && !reply.disconnect
                {
                    self.items.push_front(Item::History(ident));
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
            self.over("Closed by the app", 1000);
        }
    }

    fn apply(&mut self, at: usize, reply: &CommandReply) {
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
    }

    fn connected(&mut self, reply: &Reply) {
        match reply {
            Reply::App(Ok(AppReply::Connect(reply))) if reply.status == Status::Success => {
                self.disconnectable = true;
                merge(&mut self.cstate, &reply.cstate);
                self.let_in(&reply.identifiers);
                reply.transmissions.iter().for_each(|text| self.say(text.clone()));
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
