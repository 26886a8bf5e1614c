//! How clients read what comes back, and what they hold the server to: the answer to the upgrade, replies in order,
//! pings, publications, close frames.

use std::time::Duration;

use cableway::model::CloseCause;
use serde_json::Value;

use super::{ACCEPT, Aim, Due, Reading};
use crate::frames::{self, op};
use crate::model::{Expect, Item, Phase, Step, close_payload};
use crate::scenario::{Ident, Route};
use crate::world::Sim;

impl Sim {
    pub(super) fn parse(&mut self, c: usize) {
        loop {
            if self.violation.is_some() {
                return;
            }
            let client = &mut self.clients[c];
            match client.reading {
                Reading::Head => {
                    let Some(end) = client.buffer.windows(4).position(|four| four == b"\r\n\r\n") else { return };
                    let head: Vec<u8> = client.buffer.drain(..end + 4).collect();
                    self.understands(c, end + 4);
                    match String::from_utf8(head) {
                        Ok(head) => self.response(c, &head),
                        Err(_) => self.fail(format!("client {c}: a response head that is not text")),
                    }
                }
                Reading::Body(len) => {
                    if client.buffer.len() < len {
                        return;
                    }
                    client.buffer.drain(..len);
                    client.reading = Reading::Done;
                }
                Reading::Done => {
                    if !client.buffer.is_empty() {
                        let bytes = client.buffer.len();
                        self.fail(format!("client {c}: {bytes} bytes after the end"));
                    }
                    return;
                }
                Reading::Frames => match frames::read(&client.buffer) {
                    Ok(None) => return,
                    Ok(Some((frame, len))) => {
                        client.buffer.drain(..len);
                        self.understands(c, len);
                        self.frame(c, frame);
                    }
                    Err(broken) => self.fail(format!("client {c}: {broken}")),
                },
            }
        }
    }

    /// So many more bytes are read and understood.
    fn understands(&mut self, c: usize, bytes: usize) {
        let client = &mut self.clients[c];
        client.understood += bytes as u64;
        client.clock.said_at = self.net.written_at(c, client.understood);
    }

    pub(super) fn response(&mut self, c: usize, head: &str) {
        let status: u16 = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        let header = |name: &str| {
            head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)))
        };
        self.trace(|| format!("client {c}: response {status}"));
        let client = &self.clients[c];
        if status == 101 {
            let wanted = if client.aim == Aim::Echo || client.offered.is_empty() {
                None
            } else if client.offered.contains("actioncable-v1-json") {
                Some("actioncable-v1-json")
            } else {
                Some(client.offered)
            };
            if !matches!(client.aim, Aim::Cable | Aim::Echo)
                || header("sec-websocket-accept").map(|(_, value)| value) != Some(ACCEPT)
                || header("sec-websocket-protocol").map(|(_, value)| value) != wanted
            {
                return self.fail(format!("client {c} ({:?}): a wrong upgrade: {head:?}", client.aim));
            }
            let now = self.mono;
            let client = &mut self.clients[c];
            client.reading = Reading::Frames;
            client.upgraded_at = Some(now);
            client.clock.opened_at = Some(client.clock.said_at);
            if client.aim == Aim::Cable {
                self.upgraded(c);
            }
            return;
        }
        let allowed = match client.aim {
            Aim::Bad(status) => status,
            // Told so in time, or when it is too slow: see below.
            Aim::Cable | Aim::Echo | Aim::Other | Aim::Stall => 503,
        };
        let length = header("content-length").and_then(|(_, value)| value.parse().ok());
        let timeout = self.scenario.settings.handshake_timeout;
        let clock = &client.clock;
        let waited = clock.accepted_at.is_some_and(|at| !clock.is_early(at, timeout, clock.said_at));
        let timed_out = status == 408 && waited;
        match length {
            Some(length) if status == 503 || timed_out || status == allowed => {
                self.clients[c].reading = Reading::Body(length);
            }
            _ => self.fail(format!("client {c} ({:?}): a response it must not get: {head:?}", self.clients[c].aim)),
        }
    }

    /// The client's session exists; where the server decides alone, it has decided.
    pub fn upgraded(&mut self, c: usize) {
        let rules = &self.scenario.settings.session;
        let model = &mut self.clients[c].model;
        if model.phase != Phase::Connecting || model.waiting.is_some() || model.resuming {
            return;
        }
        if rules.no_auth {
            model.expect(Expect::Welcome);
            model.let_in("");
        } else if !rules.has_backend {
            model.expect(Expect::Text(
                "{\"type\":\"disconnect\",\"reason\":\"unauthorized\",\"reconnect\":false}".into(),
            ));
            model.over("Auth Failed", 1000);
        }
    }

    pub(super) fn frame(&mut self, c: usize, frame: frames::Frame) {
        let text = || String::from_utf8_lossy(&frame.payload[..frame.payload.len().min(200)]).into_owned();
        self.trace(|| format!("client {c} gets opcode {} {:?}", frame.opcode, text()));
        let client = &mut self.clients[c];
        if client.farewell.is_some() && frame.opcode != op::CLOSE {
            return self.fail(format!("client {c}: {:?} after the disconnect message", text()));
        }
        match frame.opcode {
            op::CLOSE => return self.closed(c, &frame.payload),
            // Where they are off, one whose session is back is sent some until it asks for what it missed.
            op::PING
                if frame.payload.is_empty()
                    && (self.scenario.settings.session.native_pings || client.can_come_back) =>
            {
                if !client.can_come_back {
                    self.ping_frame_is_needed(c);
                }
                let client = &mut self.clients[c];
                if client.answers_pings && !client.left && !client.silent {
                    let key = self.rng.next().to_be_bytes();
                    let pong = frames::frame(op::PONG, true, &[], [key[0], key[1], key[2], key[3]]);
                    self.clients[c].says(pong);
                }
                return;
            }
            op::PONG => return self.pong(c, &frame.payload),
            op::TEXT if client.aim == Aim::Cable => match String::from_utf8(frame.payload.clone()) {
                Ok(text) => return self.text(c, &text),
                Err(_) => return self.fail(format!("client {c}: text that is not UTF-8")),
            },
            _ => {}
        }
        self.reply(
            c,
            &|expect| {
                matches!(expect, Expect::Frame(opcode, payload)
            if *opcode == frame.opcode && *payload == frame.payload)
            },
            &text,
        );
    }

    pub(super) fn text(&mut self, c: usize, text: &str) {
        if self.clients[c].model.expected.front().is_some_and(|front| *front == Expect::Text(text.into())) {
            self.clients[c].model.expected.pop_front();
            self.clients[c].replies_read += 1;
            return self.expected_text(c, text);
        }
        let Ok(value) = serde_json::from_str::<Value>(text) else {
            return self.fail(format!("client {c}: not JSON: {text}"));
        };
        let message = &value["message"];
        let is_event = value["type"] == "presence" && message["type"] != "info" && message["type"] != "error";
        if message.get("p").is_some() || message.get("w").is_some() || is_event {
            return self.publication(c, text, &value);
        }
        match value["type"].as_str() {
            Some("ping") => return self.ping(c, text, message),
            Some("disconnect") => {
                let reason = value["reason"].as_str().unwrap_or_default().to_owned();
                let reconnect = value["reconnect"].as_bool().unwrap_or_default();
                self.clients[c].farewell = Some((reason, reconnect));
                return;
            }
            _ => {}
        }
        let welcome = value["type"] == "welcome" && value["sid"].as_str().is_some_and(|sid| sid.len() == 21);
        if welcome {
            let client = &mut self.clients[c];
            let sid = value["sid"].as_str().unwrap_or_default();
            if client.sid.as_deref().is_some_and(|known| known != sid) {
                return self.fail(format!("client {c}: two session ids"));
            }
            client.sid = Some(sid.into());
            client.welcomed = true;
        }
        let restored = &value["restored_ids"];
        let is_restored = |ids: &[String]| {
            let theirs = restored.as_array().map_or(&[][..], Vec::as_slice).iter().map(Value::as_str);
            value["restored"] == true && theirs.eq(ids.iter().map(|id| Some(id.as_str())))
        };
        self.reply(
            c,
            &|expect| match expect {
                Expect::Text(expected) => expected == text,
                Expect::Welcome => welcome && value.get("restored").is_none(),
                Expect::Restored(ids) => welcome && is_restored(ids),
                Expect::Frame(..) => false,
            },
            &|| text.to_owned(),
        );
        if welcome && self.violation.is_none() {
            let ids = restored.as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into);
            self.is_welcome(c, (value["restored"] == true).then(|| ids.collect()));
        } else {
            self.history_answer(c, &value);
        }
    }

    /// What a client makes of a text that had to come now.
    fn expected_text(&mut self, c: usize, text: &str) {
        let Ok(value) = serde_json::from_str::<Value>(text) else { return };
        match value["type"].as_str() {
            // The app's, by the session's id.
            Some("welcome") => {
                let sid = value["sid"].as_str().unwrap_or_default().to_owned();
                self.clients[c].sid.get_or_insert(sid);
                self.clients[c].welcomed = true;
                return self.is_welcome(c, None);
            }
            _ => self.history_answer(c, &value),
        }
        if value.get("offset").is_some() {
            let identifier = value["identifier"].as_str().unwrap_or_default();
            let numbers = self.by_text.get(&value["message"].to_string());
            if let Some(&p) = numbers.and_then(|numbers| numbers.first()) {
                self.follows(c, identifier, p);
            }
        }
    }

    fn history_answer(&mut self, c: usize, value: &Value) {
        let kind = value["type"].as_str().unwrap_or_default();
        if matches!(kind, "confirm_history" | "reject_history") {
            let identifier = value["identifier"].as_str().unwrap_or_default();
            self.history_read(c, identifier, kind == "confirm_history");
        }
    }

    /// One of several pings may be answered for all, and then earlier than what was asked between them.
    fn pong(&mut self, c: usize, payload: &[u8]) {
        while !self.clients[c].model.answered(payload) {
            if !matches!(self.advance(c), Step::Done) {
                return self.fail(format!("client {c}: a pong {payload:?} which nothing asked for"));
            }
        }
    }

    /// Something that has its place among the replies.
    pub(super) fn reply(&mut self, c: usize, fits: &dyn Fn(&Expect) -> bool, what: &dyn Fn() -> String) {
        while self.clients[c].model.expected.is_empty() {
            match self.advance(c) {
                Step::Done => {}
                Step::Blocked(_) | Step::Waiting => {
                    return self.fail(format!("client {c}: {} before its turn: the app is not done", what()));
                }
                Step::Empty => return self.fail(format!("client {c}: {} which nothing asked for", what())),
            }
        }
        let client = &mut self.clients[c];
        if !client.model.expected.front().is_some_and(fits) {
            let expected = format!("{:?}", client.model.expected.front());
            return self.fail(format!("client {c}: {} instead of {expected}", what()));
        }
        client.model.expected.pop_front();
        client.replies_read += 1;
        if !client.model.whispers.is_empty() {
            self.fail(format!("client {c}: a whisper was not published before the reply to what followed it"));
        }
    }

    /// Who the client is, as the server knows it.
    pub fn identifiers(&self, c: usize) -> String {
        let client = &self.clients[c];
        match &client.sid {
            _ if client.model.restored => client.model.identifiers.clone(),
            Some(sid) if self.scenario.settings.session.no_auth => format!("{{\"sid\":\"{sid}\"}}"),
            _ => client.model.identifiers.clone(),
        }
    }

    /// Takes one item off the client's queue as far as the app is not needed.
    pub fn advance(&mut self, c: usize) -> Step {
        let step = self.clients[c].model.step();
        self.clients[c].model.changes.clear();
        step
    }

    pub(super) fn closed(&mut self, c: usize, payload: &[u8]) {
        let blocked = self.net.conn(c).ever_blocked;
        let rules = &self.scenario.settings;
        let draining = self.clients[c].was_drained || self.sites[self.clients[c].shard].drained_by.is_some();
        let no_pong = self.may_have_no_pong(c);
        let idle = self.may_be_idle(c);
        let identifiers = self.identifiers(c);
        let client = &mut self.clients[c];
        client.saw_close = true;
        client.reading = Reading::Done;
        let may_be_slow = (blocked && rules.outbox_bytes_max > 0) || client.may_overflow;
        let taken_over = client.taken_over;
        if payload == close_payload(1013, "Try again later") && rules.buffers_bytes_max < usize::MAX {
            client.seen_cause = Some(CloseCause::BuffersFull);
            return;
        }
        if payload == close_payload(1008, "Message Timeout") {
            client.seen_cause = Some(CloseCause::MessageTimeout);
            let closed_at = client.clock.said_at;
            if !self.may_have_no_end(c, closed_at) {
                self.fail(format!(
                    "client {c}: told that a message has no end, and all that it began have one in time"
                ));
            }
            return;
        }
        if let Some((reason, reconnect)) = client.farewell.clone() {
            let (code, words, fits, cause) = match reason.as_str() {
                "server_restart" => (1001, "Server restart", draining && reconnect, CloseCause::ServerRestart),
                "remote" => {
                    let demanded = self.evicted.contains(&(identifiers.clone(), reconnect));
                    (1000, "Closed remotely", demanded, CloseCause::Remote)
                }
                "too_slow" => (1000, "", may_be_slow && reconnect, CloseCause::TooSlow),
                "session_resumed" => (1000, "Session resumed elsewhere", taken_over && !reconnect, CloseCause::Resumed),
                "no_pong" => (1000, "No Pong", no_pong && reconnect, CloseCause::NoPong),
                "idle_timeout" => (1000, "Idle Timeout", idle && !reconnect, CloseCause::IdleTimeout),
                _ => (0, "", false, CloseCause::Http),
            };
            client.seen_cause = Some(cause);
            if !fits || payload != close_payload(code, words) {
                self.fail(format!(
                    "client {c}: told {reason:?} ({reconnect}) without cause, or closed with {payload:?}"
                ));
            }
            return;
        }
        if client.aim == Aim::Echo {
            let restart = draining && payload == close_payload(1001, "Server restart");
            if restart || (may_be_slow && payload == close_payload(1000, "")) {
                return;
            }
        }
        let payload = payload.to_vec();
        self.reply(c, &|expect| *expect == Expect::Frame(op::CLOSE, payload.clone()), &|| format!("close {payload:?}"));
    }

    pub(super) fn ping(&mut self, c: usize, text: &str, message: &Value) {
        let rules = &self.scenario.settings.session;
        let now = self.mono;
        let client = &mut self.clients[c];
        let Some(value) = message.as_u64() else { return self.fail(format!("client {c}: {text}")) };
        let shortest = Duration::from_millis(rules.ping_interval_ms);
        client.pings += 1;
        // The first comes at any moment of the first interval, and the first behind a move after half of one.
        let elapsed = now.saturating_sub(client.connected_at);
        let moves = client.clock.moves.len() as u32;
        let time = elapsed * 2 + shortest * moves + super::deadlines::TICK * 2 * (moves + 1);
        let too_soon = rules.ping_interval_ms == 0 || shortest * (client.pings * 2 - 2) > time;
        let pings = client.pings;
        if too_soon || value < client.ping_value || text != format!("{{\"type\":\"ping\",\"message\":{value}}}") {
            return self.fail(format!("client {c}: a wrong ping {text}, number {pings}"));
        }
        client.ping_value = value;
        self.ping_in_time(c);
        let client = &self.clients[c];
        if client.answers_pings && !client.left && !client.silent && client.out.is_empty() {
            let key = self.key();
            let pong = if self.rng.chance(500) {
                frames::frame(op::PONG, true, b"", key)
            } else {
                frames::frame(op::TEXT, true, b"{\"command\":\"pong\"}", key)
            };
            self.clients[c].says(pong);
        }
    }

    pub(super) fn publication(&mut self, c: usize, text: &str, value: &Value) {
        let identifier = value["identifier"].as_str().unwrap_or_default().to_owned();
        let Some(numbers) = self.by_text.get(&value["message"].to_string()) else {
            return self.fail(format!("client {c}: a message that nobody published: {text}"));
        };
        let is_due = |p: &&usize| self.clients[c].ledger.contains_key(&(identifier.clone(), **p));
        let p = *numbers.iter().find(is_due).unwrap_or(&numbers[0]);
        let later: Vec<usize> = numbers.iter().copied().filter(|&q| q > p).collect();
        let wanted = self.published_as(&identifier, p);
        let published = &self.published[p];
        let (stream, has_position) = (published.stream.clone(), published.offset.is_some());
        let client = &mut self.clients[c];
        let Some(due) = client.ledger.remove(&(identifier.clone(), p)) else {
            let why = "twice, or without a subscription, or although excluded";
            return self.fail(format!("client {c}: publication {p} of {stream} under {identifier}: {why}"));
        };
        if wanted != text {
            return self.fail(format!("client {c}: {text} instead of {wanted}"));
        }
        // It may be one of the same text that had to come, and this one need not have.
        if !due.must {
            let same = later
                .into_iter()
                .find(|&q| client.ledger.get(&(identifier.clone(), q)).is_some_and(|later| later.must));
            if let Some(later) = same.and_then(|q| client.ledger.get_mut(&(identifier.clone(), q))) {
                later.must = false;
            }
        }
        if due.floor > client.replies_read {
            return self.fail(format!("client {c}: publication {p} overtook a reply that was due before it"));
        }
        let last = client.last_seen.insert((identifier.clone(), stream.clone(), has_position), p);
        if last.is_some_and(|last| last > p) {
            return self.fail(format!("client {c}: publication {p} of {stream} came after {last:?}"));
        }
        let older: Vec<usize> = client
            .ledger
            .range((identifier.clone(), 0)..(identifier.clone(), p))
            .map(|((_, q), _)| *q)
            .filter(|q| self.published[*q].stream == stream && self.published[*q].offset.is_some() == has_position)
            .collect();
        for q in older {
            if client.ledger.remove(&(identifier.clone(), q)).is_some_and(|due| due.must) {
                return self.fail(format!("client {c}: publication {q} of {stream} under {identifier} is lost"));
            }
        }
        self.follows(c, &identifier, p);
    }

    /// The client's shard has got publication `p`: notes whether the client may get it or, unless `may_miss`, must. What an
    /// answer attaches is attached when the shard has taken that.
    pub fn note_publication(&mut self, c: usize, p: usize, may_miss: bool) {
        let published = &self.published[p];
        let client = &mut self.clients[c];
        if client.aim != Aim::Cable || client.ended || published.exclude == Some(c) {
            return;
        }
        // What an answer that follows its client has it told may come behind this.
        let before = client.before_answer.as_ref().filter(|_| client.is_followed_by_answer);
        let floor = before.map_or(client.model.expected_total, |before| before.expected_total);
        let items = &client.model.items;
        let mut held = Vec::new();
        for sub in &client.model.subs {
            if sub.streams.contains(&published.stream) {
                let leaving = |item: &Item| matches!(item, Item::Unsubscribe(i) if i.text == sub.identifier);
                let must = !may_miss && !client.is_followed_by_answer && (sub.by_app || !items.iter().any(leaving));
                client.ledger.insert((sub.identifier.clone(), p), Due { must, floor });
                if published.offset.is_some() {
                    held.push(sub.identifier.clone());
                }
            }
        }
        for item in items {
            if let Item::Subscribe(Ident { text, route: Route::Stream { name, .. } }, _) = item
                && *name == published.stream
            {
                client.ledger.entry((text.clone(), p)).or_insert(Due { must: false, floor: 0 });
            }
        }
        let bytes = published.text.len();
        held.into_iter().for_each(|identifier| self.note_held(c, &identifier, bytes));
    }

    /// A stream is attached from here on; what the client's shard still holds may come too.
    pub fn attached(&mut self, c: usize, identifier: &str, stream: &str) {
        let site = &self.sites[self.clients[c].shard];
        for p in site.delivered..site.got {
            let published = &self.published[p];
            if published.stream == stream && published.exclude != Some(c) {
                let due = Due { must: false, floor: 0 };
                self.clients[c].ledger.entry((identifier.into(), p)).or_insert(due);
            }
        }
    }

    /// Nobody on a shard follows a stream any more: what it has been given and has not delivered need not come to anybody. Whose
    /// answer the shard has, and has not carried out, follows the stream after that.
    pub fn nobody_follows(&mut self, shard: usize, stream: &str) {
        let waiting = self.sites[shard].delivered..self.sites[shard].got;
        let published = &self.published;
        for client in self.clients.iter_mut().filter(|client| client.shard == shard) {
            let is_it = |p: usize| waiting.contains(&p) && published[p].stream == stream;
            let dues = client.ledger.iter_mut().filter(|((_, p), _)| is_it(*p));
            dues.for_each(|(_, due)| due.must = false);
        }
    }

    /// A stream is or may be detached from here on; what the client's shard still holds need not come.
    pub fn detached(&mut self, c: usize, identifier: &str) {
        let delivered = self.sites[self.clients[c].shard].delivered;
        let (from, to) = ((identifier.to_owned(), delivered), (identifier.to_owned(), usize::MAX));
        self.clients[c].ledger.range_mut(from..to).for_each(|(_, due)| due.must = false);
        self.clients[c].positions.stopped(identifier);
        // What waits may be dropped.
        if self.clients[c].holding.contains_key(identifier) {
            let of_it = (identifier.to_owned(), 0)..(identifier.to_owned(), usize::MAX);
            self.clients[c].ledger.range_mut(of_it).for_each(|(_, due)| due.must = false);
        }
    }
}
