//! What clients do: commands in and out of order, nonsense, and the many ways to leave.

use std::io::ErrorKind;

use super::{Aim, KEY};
use crate::frames::{self, op};
use crate::kept::Ask;
use crate::model::{Extras, Item, close_payload, quoted};
use crate::scenario::{Ident, Route};
use crate::world::Sim;

impl Sim {
    pub fn key(&mut self) -> [u8; 4] {
        (self.rng.next() as u32).to_be_bytes()
    }

    /// Queues an item and its bytes.
    pub(super) fn send(&mut self, c: usize, item: Item, payload: &[u8]) {
        self.trace(|| format!("client {c} says {item:?}"));
        match &item {
            Item::Subscribe(Ident { text, route: Route::Stream { name, .. } }, _) => {
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
        let from = self.clients[c].said_bytes();
        for n in 0..fragments {
            let fin = n + 1 == fragments;
            let cut = if fin { rest.len() } else { self.rng.below(rest.len() + 1) };
            let (part, later) = rest.split_at(cut);
            rest = later;
            let frame = frames::frame(if n == 0 { opcode } else { op::CONTINUATION }, fin, part, self.key());
            self.clients[c].says(frame);
            if !fin && self.rng.chance(300) {
                self.native_ping(c);
            }
        }
        self.clients[c].is_one_message(from);
        self.clients[c].model.items.push_back(item);
    }

    pub(super) fn native_ping(&mut self, c: usize) {
        let payload: Vec<u8> = (0..self.rng.pick(&[0, 4, 125])).map(|n| n as u8).collect();
        let frame = frames::frame(op::PING, true, &payload, self.key());
        self.clients[c].says(frame);
        self.clients[c].model.items.push_back(Item::NativePing(payload));
    }

    /// Says one thing.
    pub(super) fn act(&mut self, c: usize) {
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
        // With a broker there is more to ask.
        let has_broker = self.scenario.settings.session.broker;
        let what = if has_broker && self.rng.chance(120) { self.rng.between(87, 93) } else { self.rng.below(100) };
        let (item, text) = match what {
            0..=34 => (Item::Subscribe(ident.clone(), Extras::default()), named("subscribe", "")),
            35..=39 => {
                let history = Some(self.some_ask(c, &ident.text));
                let join = self.rng.chance(300).then(|| self.some_join(c, n));
                let more = extras_json(&history, &join);
                (Item::Subscribe(ident.clone(), Extras { history, join }), named("subscribe", &more))
            }
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
            87..=88 => {
                let ask = self.some_ask(c, &ident.text);
                let text = named("history", &ask.json());
                (Item::History(ident.clone(), ask), text)
            }
            89..=90 => match self.rng.below(3) {
                0 => (Item::Presence(ident.clone(), true), named("presence", "")),
                1 => (Item::Presence(ident.clone(), true), named("presence", ",\"data\":{\"return_records\":true}")),
                _ => (Item::Presence(ident.clone(), false), named("presence", ",\"data\":{\"return_records\":false}")),
            },
            91..=92 => {
                let (id, info) = self.some_join(c, n);
                let text = named("join", &extras_json(&None, &Some((id.clone(), info.clone()))));
                (Item::Join(ident.clone(), id, info), text)
            }
            93 => (Item::Leave(ident.clone()), named("leave", "")),
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

    /// From where on a client asks: what it has, some time, or something that never was.
    fn some_ask(&mut self, c: usize, identifier: &str) -> Ask {
        if !self.scenario.settings.session.broker {
            return Ask::all();
        }
        let now = (self.broker_now().unix.as_secs()) as i64;
        let since = self.rng.pick(&[0, 1, now, now - 3, now + 1_000]);
        let mut positions = self.clients[c].positions.under(identifier);
        if self.rng.chance(200) {
            positions.retain(|_| false);
        }
        if self.rng.chance(100) {
            let stream = self.scenario.streams[self.rng.below(self.scenario.streams.len())].clone();
            let epoch = self.rng.pick(&["sim1", "sim1", "sim0", ""]).to_owned();
            positions.push((stream, epoch, self.rng.below(30) as u64));
        }
        let since = if positions.is_empty() { since.max(1) } else { since };
        // An object cannot have a key twice in what is sent here: the last one counts.
        let mut last = std::collections::BTreeMap::new();
        positions.into_iter().for_each(|(stream, epoch, offset)| _ = last.insert(stream, (epoch, offset)));
        let positions = last.into_iter().map(|(stream, (epoch, offset))| (stream, epoch, offset));
        Ask { since, positions: positions.collect() }
    }

    /// As whom a client joins, and what others are told.
    fn some_join(&mut self, c: usize, n: u64) -> (String, String) {
        (format!("u{}", self.rng.below(4)), format!("{{\"j\":[{c},{n}]}}"))
    }

    /// The client was welcomed, to its session or to a new one: it asks for what it missed.
    pub(super) fn is_welcome(&mut self, c: usize, restored: Option<Vec<String>>) {
        if self.clients[c].shown.is_none() || self.clients[c].silent || self.clients[c].left {
            return;
        }
        let max = self.scenario.settings.limits.message_bytes_max;
        let is_restored = restored.is_some();
        for identifier in restored.unwrap_or_else(|| self.clients[c].positions.identifiers().into_iter().collect()) {
            let Some(ident) = self.scenario.idents.iter().find(|ident| ident.text == identifier).cloned() else {
                continue;
            };
            if !self.rng.chance(850) {
                continue;
            }
            let positions = self.clients[c].positions.under(&identifier);
            let since = if positions.is_empty() { 1 } else { self.rng.pick(&[0, 1]) };
            let ask = Ask { since, positions };
            let (command, more) = if is_restored { ("history", ask.json()) } else { ("subscribe", ask.json()) };
            let text = format!("{{\"command\":\"{command}\",\"identifier\":{}{more}}}", quoted(&identifier));
            let item = match is_restored {
                true => Item::History(ident, ask),
                false => Item::Subscribe(ident, Extras { history: Some(ask), join: None }),
            };
            if text.len() <= max {
                self.send(c, item, text.as_bytes());
            }
        }
    }

    /// Breaks a rule; the server closes with the code for it.
    pub(super) fn misbehave(&mut self, c: usize) {
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
        client.says(bytes);
        client.model.items.push_back(Item::Close(close_payload(code, reason)));
        client.silent = true;
        // Some go on talking; nobody listens.
        if self.rng.chance(400) {
            let frame = frames::frame(op::TEXT, true, b"{\"command\":\"ping\"}", self.key());
            (0..self.rng.between(1, 30)).for_each(|_| self.clients[c].says(frame.clone()));
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
                client.says(frame);
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

    /// Somebody loses its connection, and perhaps is back at once.
    pub fn drop_some(&mut self, clients_max: usize) {
        let can = |&c: &usize| {
            let client = &self.clients[c];
            client.can_come_back && client.welcomed && !client.left && !client.saw_close
        };
        let some: Vec<usize> = (0..self.clients.len()).filter(can).collect();
        // Those with subscriptions first: they have something to miss.
        let with_subs: Vec<usize> = some.iter().copied().filter(|&c| !self.clients[c].model.subs.is_empty()).collect();
        let among = if with_subs.is_empty() || self.rng.chance(200) { some } else { with_subs };
        if among.is_empty() {
            return;
        }
        let c = self.rng.pick(&among);
        // Some are dropped without the server's knowing of it.
        if self.rng.chance(800) {
            let error = self.rng.pick(&[ErrorKind::ConnectionReset, ErrorKind::TimedOut]);
            self.break_off(c, error);
        }
        if self.rng.chance(600) && self.clients.len() < clients_max {
            self.new_client();
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
        self.clients[c].dropped = !self.clients[c].left;
        self.clients[c].left = true;
        self.clients[c].ended = true;
        self.net.break_off(c, error, &mut self.rng);
    }
}

/// What rides on a command.
fn extras_json(history: &Option<Ask>, join: &Option<(String, String)>) -> String {
    let history = history.as_ref().map_or(String::new(), Ask::json);
    let join =
        join.as_ref().map_or(String::new(), |(id, info)| format!(",\"presence\":{{\"id\":\"{id}\",\"info\":{info}}}"));
    history + &join
}

/// A request head for an aim. A bad one's status is drawn here.
pub(super) fn head(
    rng: &mut crate::rng::Rng,
    aim: Aim,
    c: usize,
    offered: &str,
    shown: Option<&str>,
) -> (Aim, Vec<u8>) {
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
    let mut protocol =
        if offered.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {offered}\r\n") };
    match shown {
        Some(shown) if rng.chance(500) => path.push_str(&format!("&sid={shown}")),
        Some(shown) => protocol.push_str(&format!("X-ANYCABLE-RESTORE-SID: {shown}\r\n")),
        None => {}
    }
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
