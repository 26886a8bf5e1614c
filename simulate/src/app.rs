//! The app server: checks every call against the model, and answers late, in any order, well or badly.

use std::sync::Arc;

use cableway::model::rpc::PresenceReply;
use cableway::model::{
    AppReply, Call, CallError, CommandKind, CommandReply, ConnectReply, DisconnectMode, Env, Publication, Reply,
    Request, Sid, SlotKey, Status,
};

use crate::model::{Asks, Change, Phase, Step, about, quoted, same_state};
use crate::world::{Open, Sim};

impl Sim {
    /// The client that a call is about: it put its number into the URL.
    fn client_of(&mut self, env: &Env) -> Option<usize> {
        let url = env.url();
        let c = url.strip_prefix("http://h/cable?c=");
        let c = c.and_then(|c| c.split('&').next()?.parse::<usize>().ok());
        let known = c.filter(|&c| c < self.clients.len());
        let cookie = known.map(|c| format!("id={c}")).unwrap_or_default();
        if known.is_none() || !env.headers().eq([("cookie", cookie.as_str()), ("REMOTE_ADDR", "127.0.0.1")]) {
            self.fail(format!("a call with a wrong environment {env:?}"));
            return None;
        }
        known
    }

    /// The shard asks.
    pub fn on_call(&mut self, call: Call) -> Result<(), CallError> {
        let env = match &call.request {
            Request::Connect { env } | Request::Command { env, .. } | Request::Disconnect { env, .. } => env.clone(),
        };
        let Some(c) = self.client_of(&env) else { return Ok(()) };
        self.trace(|| format!("call for client {c}: {:?}", call.request));
        self.digest_mix(c as u64 + 1_000);
        let rules = self.scenario.settings.session.clone();
        if !rules.has_backend {
            self.fail(format!("client {c}: a call although there is no app"));
        }
        let sid = call.sid.to_string();
        if self.clients[c].running.is_some() {
            self.fail(format!("client {c}: two calls at once"));
        }
        if self.clients[c].disconnect_seen {
            self.fail(format!("client {c}: a call after Disconnect"));
        }
        if self.clients[c].sid.get_or_insert(sid.clone()) != &sid {
            self.fail(format!("client {c}: two session ids"));
        }
        let waiting = match &call.request {
            Request::Connect { .. } => {
                let model = &self.clients[c].model;
                if rules.no_auth || model.phase != Phase::Connecting || model.waiting.is_some() || model.resuming {
                    self.fail(format!("client {c}: a Connect that is not due"));
                }
                None
            }
            Request::Command { command, identifier, data, env, cstate, istate } => {
                self.upgraded(c);
                let wanted = loop {
                    match self.advance(c) {
                        Step::Done => {}
                        Step::Blocked(wanted) => break wanted,
                        Step::Waiting | Step::Empty => {
                            self.fail(format!("client {c}: a call for {command:?} that is not due"));
                            return Ok(());
                        }
                    }
                };
                self.catch_up_with_presence(c);
                let model = &self.clients[c].model;
                let no_state = Default::default();
                let known = model.find(&wanted.identifier).map_or(&no_state, |at| &model.subs[at].istate);
                let known = if wanted.asks == Asks::App(CommandKind::Subscribe) { &no_state } else { known };
                let identifiers_fit = model.identifiers == env.identifiers() || rules.no_auth;
                if wanted.asks != Asks::App(*command) || *wanted.identifier != **identifier || wanted.data != *data {
                    self.fail(format!("client {c}: {command:?} {identifier:?} {data}, and {wanted:?} is due"));
                } else if !identifiers_fit || !same_state(&model.cstate, cstate) || !same_state(known, istate) {
                    self.fail(format!("client {c}: a call with wrong identifiers or state: {:?}", call.request));
                } else if !model.presences.is_empty() {
                    self.fail(format!("client {c}: presence was not changed before this command"));
                } else if !model.whispers.is_empty() {
                    self.fail(format!("client {c}: a whisper before this command was not published"));
                }
                Some(wanted)
            }
            Request::Disconnect { .. } => return Ok(()),
        };
        self.clients[c].model.waiting = Some(waiting);
        if self.rng.chance(self.scenario.app_trouble / 4) {
            self.apply(c, &Reply::App(Err(CallError::Overloaded)));
            return Err(CallError::Overloaded);
        }
        self.clients[c].running = Some(call.key);
        self.running.push((call.key, c, Open::App(call)));
        Ok(())
    }

    /// The model gets an answer; the ledger follows.
    pub fn apply(&mut self, c: usize, reply: &Reply) {
        self.clients[c].clock.answered_at = self.mono;
        let model = &self.clients[c].model;
        if model.resuming {
            return self.resume_answered(c, reply);
        }
        let asked = model.waiting.clone().flatten();
        let sid = self.clients[c].sid.as_deref().and_then(Sid::parse).filter(|_| self.clients[c].can_come_back);
        let token = sid.and_then(|sid| Some(self.scenario.settings.resume_tokens.as_ref()?.token(sid)));
        self.clients[c].model.token = token;
        self.clients[c].before_answer = Some(Box::new(self.clients[c].model.clone()));
        self.clients[c].model.answer(reply);
        if let Some(wanted) = asked.filter(|wanted| matches!(wanted.asks, Asks::History(_))) {
            self.caught_up(c, &wanted.identifier, reply);
        }
        for change in std::mem::take(&mut self.clients[c].model.changes) {
            match change {
                Change::Attached(identifier, stream) => self.attached(c, &identifier, &stream),
                Change::Detached(identifier) => self.detached(c, &identifier),
            }
        }
    }

    /// The shard is not interested any more.
    pub fn on_cancel(&mut self, key: SlotKey) {
        if let Some((c, from)) = self.arriving.take() {
            self.rename(c, from, key);
        }
        let Some(at) = self.running.iter().position(|(running, ..)| *running == key) else {
            if self.broker_is_canceled(key) || self.following_answer_is_canceled(key) {
                return;
            }
            // What was said before the question may have been too much for a slow client, or have found it gone.
            if self.net.holder_of(key).is_none_or(|c| !self.net.conn(c).ever_blocked && !self.clients[c].left) {
                self.fail(format!("a cancel without a question: {key:?}"));
            }
            return;
        };
        let (key, c, call) = self.running.remove(at);
        self.trace(|| format!("call for client {c} canceled"));
        let (blocked, faulty) = (self.net.conn(c).ever_blocked, self.net.conn(c).faulty);
        let identifiers = self.identifiers(c);
        let demanded = self.evicted.iter().any(|(evicted, _)| *evicted == identifiers);
        // Bytes behind a command that runs count among those of which there may be too many.
        let bounded = self.scenario.settings.buffers_bytes_max < usize::MAX;
        // What the broker says is for the client alone.
        let of_broker = matches!(call, Open::Broker(_)) || self.clients[c].taken_over;
        if !demanded
            && !bounded
            && !of_broker
            && self.sites[self.clients[c].shard].drained_by.is_none()
            && !blocked
            && !faulty
        {
            // A client that leaves is no reason: its command is carried through.
            self.fail(format!("client {c}: its call was canceled without cause"));
        }
        self.clients[c].running = None;
        self.clients[c].model.phase = Phase::Over;
        self.canceled.push((key, c, call));
    }

    /// The same for a question whose answer is on its way already. Tells whether it is so.
    fn broker_is_canceled(&mut self, key: SlotKey) -> bool {
        if let Some(at) = self.in_flight.iter().position(|(known, _)| *known == key) {
            let (_, c) = self.in_flight.remove(at);
            self.clients[c].running = None;
            self.clients[c].model.phase = Phase::Over;
            return true;
        }
        let c = self.clients.iter().position(|client| client.answered == Some(key));
        if let Some(c) = c {
            let client = &mut self.clients[c];
            client.never_in = !client.welcomed;
            client.was_open_when_canceled = client.model.phase == Phase::Open;
            client.model.phase = Phase::Over;
        }
        c.is_some()
    }

    /// The same for one whose answer reached a shard that stood still, and follows its client to the one that has it now: nothing
    /// comes of that answer.
    fn following_answer_is_canceled(&mut self, key: SlotKey) -> bool {
        let Some(c) = self.net.holder_of(key).filter(|&c| self.clients[c].is_followed_by_answer) else { return false };
        let client = &mut self.clients[c];
        client.never_in = !client.welcomed;
        if let Some(before) = client.before_answer.take() {
            let model = &mut client.model;
            (model.subs, model.cstate, model.identifiers) = (before.subs, before.cstate, before.identifiers);
            (model.disconnectable, model.phase) = (before.disconnectable, Phase::Over);
        }
        true
    }

    /// A session is over.
    pub fn on_disconnect(&mut self, call: &Call) {
        let Request::Disconnect { subscriptions, env, cstate } = &call.request else {
            return self.fail("a disconnect that is none".into());
        };
        let Some(c) = self.client_of(env) else { return };
        self.trace(|| format!("disconnect for client {c}"));
        self.digest_mix(c as u64 + 2_000);
        if self.clients[c].disconnect_seen {
            return self.fail(format!("client {c}: two Disconnects"));
        }
        if self.clients[c].running.is_some() {
            return self.fail(format!("client {c}: Disconnect while a call runs"));
        }
        self.clients[c].disconnect_seen = true;
        self.upgraded(c);
        let rules = self.scenario.settings.session.clone();
        let model = &self.clients[c].model;
        let due = match rules.disconnect_mode {
            DisconnectMode::Auto => model.disconnectable,
            DisconnectMode::Always => model.disconnectable || rules.no_auth,
            DisconnectMode::Never => false,
        };
        if !due || !rules.has_backend {
            return self.fail(format!("client {c}: a Disconnect that is not due"));
        }
        if (model.identifiers != env.identifiers() && !rules.no_auth) || !same_state(&model.cstate, cstate) {
            return self.fail(format!("client {c}: Disconnect with wrong identifiers or state"));
        }
        // How many of the last items the shard has handled cannot be seen; one of the numbers must fit.
        let mut model = self.clients[c].model_at_its_end();
        loop {
            let same = model.subs.len() == subscriptions.len()
                && model.subs.iter().zip(subscriptions).all(|(ours, (identifier, istate))| {
                    *ours.identifier == **identifier && same_state(&ours.istate, istate)
                });
            if same {
                break;
            }
            if !matches!(model.step(), Step::Done) {
                let ours: Vec<_> = self.clients[c].model.subs.iter().map(|sub| &sub.identifier).collect();
                let what = format!("client {c}: Disconnect lists {subscriptions:?} instead of {ours:?}");
                return self.fail(what);
            }
        }
    }

    /// A whisper leaves the shard; it comes back as a publication.
    pub fn on_whisper(&mut self, publication: Publication) {
        let text = publication.message.to_string();
        let from = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|value| value["w"][0].as_u64());
        let Some(c) = from.map(|c| c as usize).filter(|&c| c < self.clients.len()) else {
            return self.fail(format!("a whisper that nobody sent: {text}"));
        };
        self.upgraded(c);
        while self.clients[c].model.whispers.is_empty() {
            if !matches!(self.advance(c), Step::Done) {
                return self.fail(format!("client {c}: a whisper that is not due: {text}"));
            }
        }
        let due = self.clients[c].model.whispers.pop_front();
        if due != Some((publication.stream.to_string(), text)) {
            return self.fail(format!("client {c}: whisper {publication:?} instead of {due:?}"));
        }
        let sid = publication.exclude.map(|sid| sid.to_string());
        if self.clients[c].sid.is_some() && self.clients[c].sid != sid {
            return self.fail(format!("client {c}: its whisper does not exclude it"));
        }
        self.whispered.push_back(Arc::new(publication));
    }

    /// Texts for a client, with a number so that none is like another.
    fn transmissions(&mut self, identifier: &str, most: usize) -> Vec<String> {
        let count = self.rng.below(most + 1);
        (0..count)
            .map(|_| {
                self.serial += 1;
                let pad = "t".repeat(self.rng.pick(&[0, 0, 0, 700]));
                format!(
                    "{{\"identifier\":{},\"message\":{{\"t\":{},\"x\":\"{pad}\"}}}}",
                    quoted(identifier),
                    self.serial
                )
            })
            .collect()
    }

    fn some_streams(&mut self, most: usize) -> Vec<String> {
        let count = self.rng.below(most + 1);
        (0..count).map(|_| self.scenario.streams[self.rng.below(self.scenario.streams.len())].clone()).collect()
    }

    fn state_changes(&mut self) -> Vec<(String, String)> {
        let count = self.rng.pick(&[0, 0, 1, 2]);
        (0..count).map(|_| (format!("k{}", self.rng.below(4)), self.rng.pick(&["", "1", "2"]).to_owned())).collect()
    }

    /// What the app makes of a call.
    pub fn app_answer(&mut self, call: &Call) -> Result<AppReply, CallError> {
        let trouble = self.rng.chance(self.scenario.app_trouble);
        if trouble && self.rng.chance(400) {
            return match self.rng.below(5) {
                0 => Err(CallError::Timeout),
                1 => Err(CallError::Unavailable("simulated".into())),
                2 => Err(CallError::Failed("simulated".into())),
                3 => Ok(AppReply::Connect(ConnectReply { status: Status::Error, ..Default::default() })),
                _ => Ok(AppReply::Command(CommandReply { status: Status::Error, ..Default::default() })),
            };
        }
        match &call.request {
            Request::Command { command, identifier, env, .. } => {
                let (command, identifier) = (*command, identifier.to_string());
                let mut reply = self.command_reply(command, &identifier, trouble);
                let c = self.client_of(env);
                if let Some(c) =
                    c.filter(|_| self.scenario.settings.session.broker && command != CommandKind::Unsubscribe)
                    && self.rng.chance(150)
                {
                    self.serial += 1;
                    let kind = self.rng.pick(&["join", "join", "leave"]).to_owned();
                    let (id, info) = (format!("u{}", self.rng.below(4)), format!("{{\"j\":[{c},{}]}}", self.serial));
                    reply.presence = Some(PresenceReply { kind, id, info });
                }
                Ok(AppReply::Command(reply))
            }
            _ => {
                let sid = call.sid;
                let (status, transmissions) = if trouble {
                    let text = "{\"type\":\"disconnect\",\"reason\":\"unauthorized\",\"reconnect\":false}";
                    (Status::Failure, if self.rng.chance(800) { vec![text.to_owned()] } else { Vec::new() })
                } else {
                    let mut texts = vec![format!("{{\"type\":\"welcome\",\"sid\":\"{sid}\"}}")];
                    texts.extend(self.transmissions("x", 1));
                    (Status::Success, if self.rng.chance(950) { texts } else { Vec::new() })
                };
                let identifiers = self.rng.pick(&["", "user 1", "user 2", "user 3", "user 4"]).to_owned();
                let cstate = self.state_changes();
                Ok(AppReply::Connect(ConnectReply { status, identifiers, transmissions, cstate, ..Default::default() }))
            }
        }
    }

    fn command_reply(&mut self, command: CommandKind, identifier: &str, trouble: bool) -> CommandReply {
        let mut reply = CommandReply {
            status: if trouble { Status::Failure } else { Status::Success },
            disconnect: self.rng.chance(20),
            transmissions: self.transmissions(identifier, 2),
            cstate: self.state_changes(),
            istate: self.state_changes(),
            ..Default::default()
        };
        match command {
            CommandKind::Subscribe => {
                reply.streams = self.some_streams(3);
                if self.rng.chance(300) {
                    let stream = self.scenario.streams[0].clone();
                    reply.istate.push(("$w".into(), stream));
                }
                if self.scenario.settings.session.broker && self.rng.chance(300) {
                    let stream = self.scenario.streams[self.rng.below(self.scenario.streams.len())].clone();
                    reply.istate.push(("$p".into(), stream));
                }
                if self.rng.chance(900) {
                    let word = if trouble { "reject_subscription" } else { "confirm_subscription" };
                    reply.transmissions.push(about(word, identifier));
                }
            }
            CommandKind::Message => {
                reply.stop_streams = self.rng.chance(150);
                if self.rng.chance(300) {
                    reply.stopped_streams = self.some_streams(2);
                }
                if self.rng.chance(400) {
                    reply.streams = self.some_streams(2);
                }
                if self.scenario.settings.session.broker && self.rng.chance(100) {
                    let stream = self.scenario.streams[self.rng.below(self.scenario.streams.len())].clone();
                    reply.istate.push(("$p".into(), if self.rng.chance(300) { String::new() } else { stream }));
                }
            }
            CommandKind::Unsubscribe => {}
        }
        reply
    }
}
