//! The clients: what they send, how fast they read, how they leave, and how they check what comes back.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::time::Duration;

use cableway::model::{CloseCause, SlotKey};
use serde_json::Value;

use crate::frames::{self, op};
use crate::model::{Expect, Item, Model, Phase, Step, close_payload, quoted};
use crate::net::Got;
use crate::scenario::{Ident, Route};
use crate::world::Sim;

/// The sample key of RFC 6455 section 1.3 and what must be answered to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What a client is after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    Cable,
    Echo,
    /// A path of the ordinary HTTP server.
    Other,
    /// A request that is refused with this status.
    Bad(u16),
    /// A request that never ends.
    Stall,
}

/// How far the server's answer has been read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    Head,
    Body(usize),
    Frames,
    /// Nothing may follow.
    Done,
}

/// A publication that may or must come.
pub struct Due {
    pub must: bool,
    /// Replies that have to be read before it.
    floor: u64,
}

pub struct Client {
    pub aim: Aim,
    pub model: Model,
    /// By identifier and number of the publication.
    pub ledger: BTreeMap<(String, usize), Due>,
    last_seen: BTreeMap<(String, String), usize>,
    pub sid: Option<String>,
    /// The call that runs for this client.
    pub running: Option<SlotKey>,
    pub disconnect_seen: bool,
    /// A remote disconnect reached the shard while this client was connected.
    pub must_go: bool,
    out: VecDeque<u8>,
    buffer: Vec<u8>,
    reading: Reading,
    offered: &'static str,
    /// Reads everything whenever it has a turn.
    pub prompt: bool,
    /// Reads nothing for now.
    pub deaf: bool,
    read_max: usize,
    write_max: usize,
    bad: bool,
    answers_pings: bool,
    actions: usize,
    /// Shut its half or worse.
    pub left: bool,
    /// Will send nothing more of its own.
    silent: bool,
    pub saw_close: bool,
    pub ended: bool,
    farewell: Option<(String, bool)>,
    replies_read: u64,
    pub upgraded_at: Option<Duration>,
    connected_at: Duration,
    pub accepted_at: Option<Duration>,
    ping_at: Option<Duration>,
    ping_value: u64,
    pings: u32,
    emptied_at: Duration,
    pub turned_away: bool,
    pub handed_over: bool,
    /// The cause that the client can tell from what it saw.
    pub seen_cause: Option<CloseCause>,
}

impl Client {
    /// Takes part and expects to be served to the end.
    pub fn is_healthy(&self, sim_conn_faulty: bool) -> bool {
        !self.left && !self.ended && !self.saw_close && !sim_conn_faulty && self.farewell.is_none()
    }
}

impl Sim {
    /// A new client connects.
    pub fn new_client(&mut self) {
        let c = self.clients.len();
        let rng = &mut self.rng;
        let aim = match rng.below(100) {
            0..=2 => Aim::Other,
            3..=5 => Aim::Bad(0),
            6..=7 => Aim::Stall,
            8..=15 => Aim::Echo,
            _ => Aim::Cable,
        };
        let slow = rng.chance(self.scenario.slow);
        let offered = rng.pick(&[
            "",
            "actioncable-v1-json",
            "actioncable-v1-ext-json",
            "actioncable-v1-ext-json,actioncable-v1-json",
        ]);
        let (aim, head) = head(rng, aim, c, offered);
        let buffer_max = self.scenario.buffer_max;
        let conn = self.net.connect(rng.between(16, buffer_max.max(200)), rng.between(buffer_max / 2 + 1, buffer_max));
        assert_eq!(conn, c, "clients and connections are numbered alike");
        let rng = &mut self.rng;
        let client = Client {
            aim,
            model: Model::new(aim == Aim::Echo, self.scenario.settings.session.has_backend),
            ledger: BTreeMap::new(),
            last_seen: BTreeMap::new(),
            sid: None,
            running: None,
            disconnect_seen: false,
            must_go: false,
            out: head.into(),
            buffer: Vec::new(),
            reading: Reading::Head,
            offered,
            prompt: !slow,
            deaf: slow && rng.chance(500),
            read_max: if slow { rng.between(1, 300) } else { usize::MAX },
            write_max: rng.pick(&[1, 7, 100, 5_000, 1 << 20]),
            bad: rng.chance(self.scenario.bad),
            answers_pings: rng.chance(900),
            actions: rng.pick(&[0, 5, 20, 60]),
            left: false,
            silent: false,
            saw_close: false,
            ended: false,
            farewell: None,
            replies_read: 0,
            upgraded_at: None,
            connected_at: self.mono,
            accepted_at: None,
            ping_at: None,
            ping_value: 0,
            pings: 0,
            emptied_at: self.mono,
            turned_away: false,
            handed_over: false,
            seen_cause: None,
        };
        self.clients.push(client);
        self.trace(|| format!("client {c} connects: {aim:?}"));
        // Some say more before they are answered.
        if matches!(aim, Aim::Cable | Aim::Echo) && self.rng.chance(300) {
            for _ in 0..self.rng.between(1, 5) {
                self.act(c);
            }
        }
    }

    /// A client gets a turn: reads, writes, and perhaps does something.
    pub fn client_step(&mut self, c: usize) {
        if self.clients[c].ended {
            return;
        }
        self.client_reads(c, false);
        let client = &mut self.clients[c];
        if client.ended {
            return;
        }
        if client.saw_close && !client.left && self.rng.chance(700) {
            return self.leave(c, false);
        }
        let wrote = self.client_writes(c, false);
        let client = &self.clients[c];
        if wrote > 0 || client.silent || client.left || client.upgraded_at.is_none() {
            return;
        }
        if client.actions == 0 {
            if self.rng.chance(15) {
                self.farewell(c);
            }
            return;
        }
        self.clients[c].actions -= 1;
        if self.rng.chance(20) {
            return self.farewell(c);
        }
        for _ in 0..self.rng.pick(&[1, 1, 1, 2, 6]) {
            self.act(c);
        }
    }

    /// Sends what is queued; returns how many bytes the pipe took.
    pub fn client_writes(&mut self, c: usize, all: bool) -> usize {
        let client = &mut self.clients[c];
        if client.left || client.ended {
            return 0;
        }
        let max = if all { usize::MAX } else { self.rng.between(1, client.write_max) };
        let bytes: Vec<u8> = client.out.iter().take(max).copied().collect();
        if bytes.is_empty() {
            return 0;
        }
        let n = self.net.client_send(c, &bytes);
        client.out.drain(..n);
        n
    }

    /// Reads and checks; returns whether anything came.
    pub fn client_reads(&mut self, c: usize, all: bool) -> bool {
        let client = &mut self.clients[c];
        if client.ended || (client.deaf && !all) {
            return false;
        }
        let max = if all { usize::MAX } else { client.read_max };
        match self.net.client_receive(c, max) {
            Got::Bytes(bytes) => {
                let some = !bytes.is_empty();
                self.clients[c].buffer.extend_from_slice(&bytes);
                for byte in &bytes {
                    self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
                }
                self.digest_mix(c as u64);
                self.parse(c);
                if self.net.unread(c) == 0 {
                    self.clients[c].emptied_at = self.mono;
                }
                some
            }
            Got::End => {
                self.ends(c, "the stream ended");
                true
            }
            Got::Reset => {
                self.ends(c, "the connection was reset");
                true
            }
        }
    }

    fn ends(&mut self, c: usize, how: &str) {
        self.trace(|| format!("client {c}: {how}"));
        let faulty = self.net.conn(c).faulty;
        let now = self.mono;
        let client = &mut self.clients[c];
        client.ended = true;
        let fresh = client.prompt && now.saturating_sub(client.emptied_at) < Duration::from_millis(400);
        if client.left || faulty || client.handed_over || client.turned_away || client.saw_close || !fresh {
            return;
        }
        let complaint = match client.reading {
            Reading::Head if client.buffer.is_empty() => {
                let timeout = self.scenario.settings.handshake_timeout;
                let early = now.saturating_sub(client.connected_at) < timeout;
                early.then_some("without an answer to the request")
            }
            Reading::Head | Reading::Body(_) => Some("in the middle of the response"),
            Reading::Frames => Some("without a close frame"),
            Reading::Done => None,
        };
        if let Some(complaint) = complaint {
            self.fail(format!("client {c}: {how} {complaint}"));
        }
    }

    fn parse(&mut self, c: usize) {
        loop {
            if self.violation.is_some() {
                return;
            }
            let client = &mut self.clients[c];
            match client.reading {
                Reading::Head => {
                    let Some(end) = client.buffer.windows(4).position(|four| four == b"\r\n\r\n") else { return };
                    let head: Vec<u8> = client.buffer.drain(..end + 4).collect();
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
                        self.frame(c, frame);
                    }
                    Err(broken) => self.fail(format!("client {c}: {broken}")),
                },
            }
        }
    }

    fn response(&mut self, c: usize, head: &str) {
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
            if client.aim == Aim::Cable {
                self.upgraded(c);
            }
            return;
        }
        let allowed = match client.aim {
            Aim::Bad(status) => status,
            Aim::Stall => 408,
            Aim::Cable | Aim::Echo => 503,
            Aim::Other => 503,
        };
        let length = header("content-length").and_then(|(_, value)| value.parse().ok());
        let timeout = self.scenario.settings.handshake_timeout;
        let timed_out = status == 408 && self.mono >= client.connected_at + timeout;
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
        if model.phase != Phase::Connecting || model.waiting.is_some() {
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

    fn frame(&mut self, c: usize, frame: frames::Frame) {
        let text = || String::from_utf8_lossy(&frame.payload[..frame.payload.len().min(200)]).into_owned();
        self.trace(|| format!("client {c} gets opcode {} {:?}", frame.opcode, text()));
        let client = &mut self.clients[c];
        if client.farewell.is_some() && frame.opcode != op::CLOSE {
            return self.fail(format!("client {c}: {:?} after the disconnect message", text()));
        }
        match frame.opcode {
            op::CLOSE => return self.closed(c, &frame.payload),
            op::PING if frame.payload.is_empty() && self.scenario.settings.session.native_pings => {
                if client.answers_pings && !client.left && !client.silent {
                    let key = self.rng.next().to_be_bytes();
                    let pong = frames::frame(op::PONG, true, &[], [key[0], key[1], key[2], key[3]]);
                    self.clients[c].out.extend(pong);
                }
                return;
            }
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

    fn text(&mut self, c: usize, text: &str) {
        if self.clients[c].model.expected.front().is_some_and(|front| *front == Expect::Text(text.into())) {
            self.clients[c].model.expected.pop_front();
            self.clients[c].replies_read += 1;
            return;
        }
        let Ok(value) = serde_json::from_str::<Value>(text) else {
            return self.fail(format!("client {c}: not JSON: {text}"));
        };
        let message = &value["message"];
        if message.get("p").is_some() || message.get("w").is_some() {
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
        }
        self.reply(
            c,
            &|expect| match expect {
                Expect::Text(expected) => expected == text,
                Expect::Welcome => welcome,
                Expect::Frame(..) => false,
            },
            &|| text.to_owned(),
        );
    }

    /// Something that has its place among the replies.
    fn reply(&mut self, c: usize, fits: &dyn Fn(&Expect) -> bool, what: &dyn Fn() -> String) {
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

    fn closed(&mut self, c: usize, payload: &[u8]) {
        let blocked = self.net.conn(c).ever_blocked;
        let rules = &self.scenario.settings;
        let draining = self.draining;
        let now = self.mono;
        let identifiers = self.identifiers(c);
        let client = &mut self.clients[c];
        client.saw_close = true;
        client.reading = Reading::Done;
        let may_be_slow = blocked && rules.outbox_bytes_max > 0;
        if let Some((reason, reconnect)) = client.farewell.clone() {
            let pong_ms = rules.session.pong_timeout_ms;
            let no_pong = pong_ms > 0
                && (!client.prompt || client.ping_at.is_some_and(|at| now >= at + Duration::from_millis(pong_ms)))
                && (rules.session.native_pings || client.offered == "actioncable-v1-ext-json");
            let (code, words, fits, cause) = match reason.as_str() {
                "server_restart" => (1001, "Server restart", draining && reconnect, CloseCause::ServerRestart),
                "remote" => {
                    let demanded = self.evicted.contains(&(identifiers.clone(), reconnect));
                    (1000, "Closed remotely", demanded, CloseCause::Remote)
                }
                "too_slow" => (1000, "", may_be_slow && reconnect, CloseCause::TooSlow),
                "no_pong" => (1000, "No Pong", no_pong && reconnect, CloseCause::NoPong),
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

    fn ping(&mut self, c: usize, text: &str, message: &Value) {
        let rules = &self.scenario.settings.session;
        let now = self.mono;
        let client = &mut self.clients[c];
        let Some(value) = message.as_u64() else { return self.fail(format!("client {c}: {text}")) };
        let shortest = Duration::from_millis(rules.ping_interval_ms);
        client.pings += 1;
        // The first comes after half an interval at the earliest.
        let elapsed = now.saturating_sub(client.connected_at);
        let too_soon = rules.ping_interval_ms == 0 || shortest * (client.pings * 2 - 1) > elapsed * 2;
        let pings = client.pings;
        if too_soon || value < client.ping_value || text != format!("{{\"type\":\"ping\",\"message\":{value}}}") {
            return self.fail(format!("client {c}: a wrong ping {text}, number {pings}"));
        }
        client.ping_value = value;
        client.ping_at = Some(now);
        if client.answers_pings && !client.left && !client.silent && client.out.is_empty() {
            let key = self.key();
            let pong = if self.rng.chance(500) {
                frames::frame(op::PONG, true, b"", key)
            } else {
                frames::frame(op::TEXT, true, b"{\"command\":\"pong\"}", key)
            };
            self.clients[c].out.extend(pong);
        }
    }

    fn publication(&mut self, c: usize, text: &str, value: &Value) {
        let identifier = value["identifier"].as_str().unwrap_or_default().to_owned();
        let Some(&p) = self.by_text.get(&value["message"].to_string()) else {
            return self.fail(format!("client {c}: a message that nobody published: {text}"));
        };
        let published = &self.published[p];
        let kind = published.kind.as_ref().map_or(String::new(), |kind| format!("\"type\":{},", quoted(kind)));
        let wanted = format!("{{{kind}\"identifier\":{},\"message\":{}}}", quoted(&identifier), published.text);
        let stream = published.stream.clone();
        let client = &mut self.clients[c];
        let Some(due) = client.ledger.remove(&(identifier.clone(), p)) else {
            let why = "twice, or without a subscription, or although excluded";
            return self.fail(format!("client {c}: publication {p} of {stream} under {identifier}: {why}"));
        };
        if wanted != text {
            return self.fail(format!("client {c}: {text} instead of {wanted}"));
        }
        if due.floor > client.replies_read {
            return self.fail(format!("client {c}: publication {p} overtook a reply that was due before it"));
        }
        let last = client.last_seen.insert((identifier.clone(), stream.clone()), p);
        if last.is_some_and(|last| last > p) {
            return self.fail(format!("client {c}: publication {p} of {stream} came after {last:?}"));
        }
        let older: Vec<usize> = client
            .ledger
            .range((identifier.clone(), 0)..(identifier.clone(), p))
            .map(|((_, q), _)| *q)
            .filter(|q| self.published[*q].stream == stream)
            .collect();
        for q in older {
            if client.ledger.remove(&(identifier.clone(), q)).is_some_and(|due| due.must) {
                return self.fail(format!("client {c}: publication {q} of {stream} under {identifier} is lost"));
            }
        }
    }

    /// The shard has got publication `p`: notes who may and who must get it.
    pub fn note_publication(&mut self, p: usize) {
        let published = &self.published[p];
        for (c, client) in self.clients.iter_mut().enumerate() {
            if client.aim != Aim::Cable || client.ended || published.exclude == Some(c) {
                continue;
            }
            let floor = client.model.expected_total;
            let items = &client.model.items;
            for sub in &client.model.subs {
                if sub.streams.contains(&published.stream) {
                    let leaving = |item: &Item| matches!(item, Item::Unsubscribe(i) if i.text == sub.identifier);
                    let must = sub.by_app || !items.iter().any(leaving);
                    client.ledger.insert((sub.identifier.clone(), p), Due { must, floor });
                }
            }
            for item in items {
                if let Item::Subscribe(Ident { text, route: Route::Stream { name, .. } }) = item
                    && *name == published.stream
                {
                    client.ledger.entry((text.clone(), p)).or_insert(Due { must: false, floor: 0 });
                }
            }
        }
    }

    /// A stream is attached from here on; what the shard still holds may come too.
    pub fn attached(&mut self, c: usize, identifier: &str, stream: &str) {
        for p in self.drained..self.published.len() {
            let published = &self.published[p];
            if published.stream == stream && published.exclude != Some(c) {
                let due = Due { must: false, floor: 0 };
                self.clients[c].ledger.entry((identifier.into(), p)).or_insert(due);
            }
        }
    }

    /// A stream is or may be detached from here on; what the shard still holds need not come.
    pub fn detached(&mut self, c: usize, identifier: &str) {
        let (from, to) = ((identifier.to_owned(), self.drained), (identifier.to_owned(), usize::MAX));
        self.clients[c].ledger.range_mut(from..to).for_each(|(_, due)| due.must = false);
    }

    pub fn key(&mut self) -> [u8; 4] {
        (self.rng.next() as u32).to_be_bytes()
    }

    /// Queues an item and its bytes.
    fn send(&mut self, c: usize, item: Item, payload: &[u8]) {
        self.trace(|| format!("client {c} says {item:?}"));
        match &item {
            Item::Subscribe(Ident { text, route: Route::Stream { name, .. } }) => {
                let (text, name) = (text.clone(), name.clone());
                self.attached(c, &text, &name);
            }
            Item::Unsubscribe(ident) if ident.route != Route::App => {
                let text = ident.text.clone();
                self.detached(c, &text);
            }
            _ => {}
        }
        let text = if self.rng.chance(900) || matches!(item, Item::Echo(op::TEXT, _)) { op::TEXT } else { op::BINARY };
        let opcode = if let Item::Echo(opcode, _) = item { opcode } else { text };
        let fragments = match self.scenario.settings.limits.fragments_max {
            _ if self.rng.chance(800) => 1,
            max => self.rng.between(1, (max as usize).min(6)),
        };
        let mut rest = payload;
        for n in 0..fragments {
            let fin = n + 1 == fragments;
            let cut = if fin { rest.len() } else { self.rng.below(rest.len() + 1) };
            let (part, later) = rest.split_at(cut);
            rest = later;
            let frame = frames::frame(if n == 0 { opcode } else { op::CONTINUATION }, fin, part, self.key());
            self.clients[c].out.extend(frame);
            if !fin && self.rng.chance(300) {
                self.native_ping(c);
            }
        }
        self.clients[c].model.items.push_back(item);
    }

    fn native_ping(&mut self, c: usize) {
        let payload: Vec<u8> = (0..self.rng.pick(&[0, 4, 125])).map(|n| n as u8).collect();
        let frame = frames::frame(op::PING, true, &payload, self.key());
        self.clients[c].out.extend(frame);
        self.clients[c].model.items.push_back(Item::NativePing(payload));
    }

    /// Says one thing.
    fn act(&mut self, c: usize) {
        let client = &self.clients[c];
        if client.silent || client.left || client.saw_close {
            return;
        }
        if client.bad && self.rng.chance(60) {
            return self.misbehave(c);
        }
        if self.rng.chance(80) {
            return self.native_ping(c);
        }
        let limits = &self.scenario.settings.limits;
        if self.clients[c].aim == Aim::Echo {
            let len = self.rng.pick(&[0, 1, 125, 126, 1_000, 20_000]);
            let letter = b'a' + self.rng.below(26) as u8;
            let opcode = self.rng.pick(&[op::TEXT, op::BINARY]);
            let payload = vec![if opcode == op::TEXT { letter } else { letter | 0x80 }; len];
            return self.send(c, Item::Echo(opcode, payload.clone()), &payload);
        }
        let max = limits.message_bytes_max;
        let ident = self.scenario.idents[self.rng.below(self.scenario.idents.len())].clone();
        self.serial += 1;
        let n = self.serial;
        let named = |command: &str, more: &str| {
            format!("{{\"command\":\"{command}\",\"identifier\":{}{more}}}", quoted(&ident.text))
        };
        let (item, text) = match self.rng.below(100) {
            0..=39 => (Item::Subscribe(ident.clone()), named("subscribe", "")),
            40..=54 => (Item::Unsubscribe(ident.clone()), named("unsubscribe", "")),
            55..=69 => {
                let data = format!("data {n} {}", "x".repeat(self.rng.pick(&[0, 0, 10, 2_000])));
                let text = named("message", &format!(",\"data\":{}", quoted(&data)));
                (Item::Message(ident.clone(), data), text)
            }
            70..=79 => (Item::Ping, "{\"command\":\"ping\"}".into()),
            80..=86 => {
                let data = format!("{{\"w\":[{c},{n}]}}");
                let text = named("whisper", &format!(",\"data\":{data}"));
                (Item::Whisper(ident.clone(), data), text)
            }
            87..=90 => (Item::History(ident.clone()), named("history", ",\"history\":{\"since\":1}")),
            91..=93 => (Item::Presence(ident.clone()), named("presence", "")),
            _ => {
                let junk =
                    ["{", "", "[]", "null", "7", "{\"command\":\"dance\"}", "{\"command\":7}", "\u{1f6a0}", "{}"];
                (Item::Junk, self.rng.pick(&junk).to_owned())
            }
        };
        if text.len() <= max {
            self.send(c, item, text.as_bytes());
        }
    }

    /// Breaks a rule; the server closes with the code for it.
    fn misbehave(&mut self, c: usize) {
        let key = self.key();
        let echo = self.clients[c].aim == Aim::Echo;
        let max = if echo { 200_000 } else { self.scenario.settings.limits.message_bytes_max };
        let fragments_max = self.scenario.settings.limits.fragments_max;
        let (bytes, code, reason) = match self.rng.below(7) {
            0 => (vec![0x81, 2, b'{', b'}'], 1002, "frame is not masked"),
            1 => (frames::frame(op::TEXT | 0x40, true, b"x", key), 1002, "reserved bit set"),
            2 => (frames::frame(op::TEXT, true, b"\xff\xfe", key), 1007, "text is not UTF-8"),
            3 => (frames::frame(op::CONTINUATION, true, b"x", key), 1002, "continuation without a message"),
            4 => (frames::frame(op::TEXT, true, &vec![b'x'; max + 1], key), 1009, ""),
            5 => (frames::frame(op::CLOSE, true, &[3, 237], key), 1002, "illegal close code"),
            _ if fragments_max < 100 && !echo => {
                let mut bytes = frames::frame(op::TEXT, false, b"", key);
                (0..fragments_max).for_each(|_| bytes.extend(frames::frame(op::CONTINUATION, false, b"", key)));
                (bytes, 1009, "")
            }
            _ => (frames::frame(0x0b, true, b"x", key), 1002, "reserved opcode"),
        };
        let client = &mut self.clients[c];
        client.out.extend(bytes);
        client.model.items.push_back(Item::Close(close_payload(code, reason)));
        client.silent = true;
        // Some go on talking; nobody listens.
        if self.rng.chance(400) {
            let frame = frames::frame(op::TEXT, true, b"{\"command\":\"ping\"}", self.key());
            (0..self.rng.between(1, 30)).for_each(|_| self.clients[c].out.extend(frame.iter()));
        }
        self.trace(|| format!("client {c} breaks a rule: {code} {reason}"));
    }

    /// Leaves, in one of the ways there are.
    pub fn farewell(&mut self, c: usize) {
        let client = &mut self.clients[c];
        if client.left || client.ended {
            return;
        }
        match self.rng.below(10) {
            0..=3 if client.upgraded_at.is_some() && !client.silent => {
                let payload = match self.rng.below(4) {
                    0 => Vec::new(),
                    1 => close_payload(4_321, "bye"),
                    _ => close_payload(1000, ""),
                };
                let frame = frames::frame(op::CLOSE, true, &payload, self.key());
                let client = &mut self.clients[c];
                client.out.extend(frame);
                client.silent = true;
                let echoed = payload[..payload.len().min(2)].to_vec();
                client.model.items.push_back(Item::Close(echoed));
                self.trace(|| format!("client {c} sends a close frame"));
            }
            0..=5 => self.leave(c, false),
            6..=7 => self.leave(c, true),
            _ => {
                let error =
                    self.rng.pick(&[ErrorKind::ConnectionReset, ErrorKind::ConnectionReset, ErrorKind::TimedOut]);
                self.break_off(c, error);
            }
        }
    }

    /// Shuts its half, or the whole socket.
    pub fn leave(&mut self, c: usize, both: bool) {
        self.trace(|| format!("client {c} shuts {}", if both { "its socket" } else { "its half" }));
        self.clients[c].left = true;
        self.clients[c].ended |= both;
        self.net.client_end(c, both);
    }

    /// The connection breaks.
    pub fn break_off(&mut self, c: usize, error: ErrorKind) {
        self.trace(|| format!("client {c} breaks off: {error:?}"));
        self.clients[c].left = true;
        self.clients[c].ended = true;
        self.net.break_off(c, error, &mut self.rng);
    }

    /// With everything read and written and nothing to do for the shard: is anything missing?
    pub fn check_settled(&mut self, c: usize) {
        let faulty = self.net.conn(c).faulty;
        let now = self.mono;
        let stuck = self.net.conn(c).is_stuck();
        let blocked = self.net.conn(c).ever_blocked;
        let progress = self.net.conn(c).write_progress_at;
        let settings = self.scenario.settings.clone();
        let client = &self.clients[c];
        // A deadline is never early and at most a tick late.
        let slack = Duration::from_millis(cableway::model::TICK_MS + 100);
        if stuck && client.upgraded_at.is_some() && now > progress + settings.write_timeout + Duration::from_secs(3) {
            return self.fail(format!("client {c}: takes nothing and is not given up"));
        }
        if !client.is_healthy(faulty) || !client.prompt || client.turned_away || client.handed_over {
            return;
        }
        if client.reading == Reading::Head {
            let Some(accepted_at) = client.accepted_at else { return };
            let overdue = now > accepted_at + settings.handshake_timeout + slack;
            let asked = client.out.is_empty() && client.aim != Aim::Stall;
            if overdue || asked {
                self.fail(format!("client {c} ({:?}): its request is not answered", client.aim));
            }
            return;
        }
        if client.reading != Reading::Frames {
            return;
        }
        if let Some(((identifier, p), _)) = client.ledger.iter().find(|(_, due)| due.must) {
            return self.fail(format!("client {c}: publication {p} under {identifier} has not come"));
        }
        if client.must_go {
            return self.fail(format!("client {c}: was to be disconnected and is not"));
        }
        let interval = Duration::from_millis(settings.session.ping_interval_ms);
        let last = client.ping_at.or(client.upgraded_at).unwrap_or_default();
        let served = client.aim == Aim::Cable && !interval.is_zero() && !blocked;
        if served && now > last + interval * 3 / 2 + slack {
            return self.fail(format!("client {c}: no ping since {last:?}"));
        }
        if client.out.is_empty() {
            loop {
                match self.advance(c) {
                    Step::Done => {}
                    Step::Blocked(wanted) => {
                        return self.fail(format!("client {c}: the app was not asked for {wanted:?}"));
                    }
                    Step::Waiting | Step::Empty => break,
                }
            }
            let model = &self.clients[c].model;
            if model.phase == Phase::Connecting && model.waiting.is_none() {
                return self.fail(format!("client {c}: the app was not asked whether it may connect"));
            }
            if let Some(missing) = model.expected.front() {
                return self.fail(format!("client {c}: {missing:?} has not come"));
            }
            if let Some(whisper) = model.whispers.front() {
                self.fail(format!("client {c}: {whisper:?} was not published"));
            }
        }
    }
}

/// A request head for an aim. A bad one's status is drawn here.
fn head(rng: &mut crate::rng::Rng, aim: Aim, c: usize, offered: &str) -> (Aim, Vec<u8>) {
    let mut path = match aim {
        Aim::Echo => format!("/echo?c={c}"),
        Aim::Other => format!("/health?c={c}"),
        _ => format!("/cable?c={c}"),
    };
    let (mut method, mut version, mut upgrade, mut key) = ("GET", "13", "websocket", KEY);
    let mut status = 0;
    if let Aim::Bad(_) = aim {
        match rng.below(6) {
            0 => (status, upgrade) = (400, "h2c"),
            1 => (status, method) = (405, "POST"),
            2 => (status, version) = (400, "8"),
            3 => (status, key) = (400, "short"),
            4 => return (Aim::Bad(400), b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".to_vec()),
            _ => {
                let mut long = format!("GET {path} HTTP/1.1\r\nHost: h\r\nX-Long: ").into_bytes();
                long.extend(std::iter::repeat_n(b'x', 20_000));
                return (Aim::Bad(431), long);
            }
        }
    }
    if rng.chance(50) {
        path = format!("http://h{path}");
    }
    let protocol = if offered.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {offered}\r\n") };
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: h\r\nCookie: id={c}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {upgrade}\r\n\
         Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: {key}\r\nOrigin: http://ours.example\r\n{protocol}\r\n"
    )
    .into_bytes();
    if aim == Aim::Stall {
        head.truncate(rng.below(head.len()));
    }
    (if status > 0 { Aim::Bad(status) } else { aim }, head)
}
