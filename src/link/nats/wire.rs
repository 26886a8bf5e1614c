//! The NATS client protocol: what the server says, read from bytes, and what we say, written into them. No sockets.
//!
//! One line of text for each operation, with a payload behind some (<https://docs.nats.io/reference/reference-protocols/nats-protocol>).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Deserialize;

/// A line of the server. INFO is the longest: it lists the other servers of its cluster.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A message with its headers. A server can be told to take up to 64 MiB (`max_payload`).
const MESSAGE_BYTES_MAX: usize = (64 << 20) + (64 << 10);

/// The first line of a block of headers.
const HEADERS_VERSION: &str = "NATS/1.0";

/// What the server says.
#[derive(Debug, PartialEq)]
pub enum Op {
    /// Who it is, at the start and whenever that changes.
    Info(Box<Info>),
    /// A message of a subscription.
    Message(Message),
    /// It wants a PONG.
    Ping,
    /// It has carried out everything that was said before our PING.
    Pong,
    /// It has done what was said; only a server that is asked to be verbose says so.
    Ok,
    /// What is wrong. Most of these are followed by the end of the connection.
    Error(String),
}

/// A message of a subscription, or the answer to a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The number that the subscription was given.
    pub sid: u64,
    /// Where it was published.
    pub subject: Box<str>,
    /// Where an answer may be sent.
    pub reply: Option<Box<str>>,
    /// The block of headers; empty if it has none.
    pub headers: Bytes,
    /// What was published.
    pub payload: Bytes,
}

impl Message {
    /// The first value of a header. Names are told apart by their case, as servers do.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = std::str::from_utf8(&self.headers).ok()?.lines().skip(1);
        let mut fields = lines.filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| *field == name).map(|(_, value)| value.trim())
    }

    /// The status that stands beside the headers' version: 503 says that nobody has heard a request.
    pub fn status(&self) -> Option<u16> {
        let line = self.headers.split(|&byte| byte == b'\r').next()?;
        let status = std::str::from_utf8(line).ok()?.strip_prefix(HEADERS_VERSION)?.trim_start();
        status.split(' ').next()?.parse().ok()
    }
}

/// What we use of INFO.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Info {
    /// The server's name, for the log.
    pub server_name: String,
    /// Its version.
    pub version: String,
    /// Longest payload that it takes, headers included.
    pub max_payload: usize,
    /// TLS comes next.
    pub tls_required: bool,
    /// Messages may have headers.
    pub headers: bool,
    /// To be signed by who logs in with an nkey.
    pub nonce: Option<String>,
    /// The name of its cluster; none where it is alone.
    pub cluster: Option<String>,
    /// Other servers of its cluster, `host:port`.
    pub connect_urls: Vec<String>,
}

/// The server does not speak NATS, or not as we know it.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum WireError {
    /// A line has no end.
    #[error("a line of the server has more than {LINE_BYTES_MAX} bytes: is it a NATS server?")]
    LongLine,
    /// A message is announced that no server sends.
    #[error("the server announces a message of more than {MESSAGE_BYTES_MAX} bytes")]
    LongMessage,
    /// A line that is none of the protocol. Holds its first characters.
    #[error("the server says what is no NATS: {0:?}")]
    Unknown(String),
}

/// Reads what the server says from bytes as they come.
#[derive(Debug, Default)]
pub struct Parser {
    /// Where bytes are put.
    pub buffer: BytesMut,
    /// The line of a message that is not all here yet.
    announced: Option<Announced>,
    /// Bytes of the buffer that hold no end of a line.
    searched: usize,
}

#[derive(Debug)]
struct Announced {
    message: Message,
    headers: usize,
    /// Headers and payload.
    total: usize,
}

impl Parser {
    /// The next thing that the server has said, if all of it is here.
    ///
    /// # Errors
    /// It is not to be understood, nor is what follows.
    pub fn next(&mut self) -> Result<Option<Op>, WireError> {
        loop {
            if let Some(Announced { headers, total, .. }) = self.announced {
                if self.buffer.len() < total + 2 {
                    return Ok(None);
                }
                let Some(Announced { mut message, .. }) = self.announced.take() else { return Ok(None) };
                message.headers = self.buffer.split_to(headers).freeze();
                message.payload = self.buffer.split_to(total - headers).freeze();
                self.buffer.advance(2);
                return Ok(Some(Op::Message(message)));
            }
            let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') else {
                self.searched = self.buffer.len();
                return if self.searched > LINE_BYTES_MAX { Err(WireError::LongLine) } else { Ok(None) };
            };
            let line = self.buffer.split_to(self.searched + end + 1);
            self.searched = 0;
            match read_line(&line)? {
                Line::Op(op) => return Ok(Some(op)),
                Line::Announced(announced) => self.announced = Some(announced),
            }
        }
    }
}

enum Line {
    Op(Op),
    Announced(Announced),
}

fn read_line(line: &[u8]) -> Result<Line, WireError> {
    let unknown = || WireError::Unknown(String::from_utf8_lossy(line).chars().take(80).collect());
    let text = std::str::from_utf8(line).map_err(|_| unknown())?.trim_end();
    let (name, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    let rest = rest.trim();
    let op = match name.to_ascii_uppercase().as_str() {
        "MSG" => return announced(rest, false).map(Line::Announced).ok_or_else(unknown)?.bounded(),
        "HMSG" => return announced(rest, true).map(Line::Announced).ok_or_else(unknown)?.bounded(),
        "PING" => Op::Ping,
        "PONG" => Op::Pong,
        "+OK" => Op::Ok,
        "-ERR" => Op::Error(rest.trim_matches('\'').to_owned()),
        "INFO" => Op::Info(serde_json::from_str(rest).map_err(|_| unknown())?),
        _ => return Err(unknown()),
    };
    Ok(Line::Op(op))
}

impl Line {
    fn bounded(self) -> Result<Line, WireError> {
        match &self {
            Line::Announced(announced) if announced.total > MESSAGE_BYTES_MAX => Err(WireError::LongMessage),
            _ => Ok(self),
        }
    }
}

/// `subject sid [reply] [headers' bytes] bytes`.
fn announced(fields: &str, has_headers: bool) -> Option<Announced> {
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let (names, lengths) = fields.split_at_checked(fields.len().checked_sub(if has_headers { 2 } else { 1 })?)?;
    let (subject, sid, reply) = match *names {
        [subject, sid] => (subject, sid, None),
        [subject, sid, reply] => (subject, sid, Some(reply.into())),
        _ => return None,
    };
    let total = lengths.last()?.parse().ok()?;
    let headers = if has_headers { lengths.first()?.parse().ok().filter(|headers| *headers <= total)? } else { 0 };
    let message = Message { sid: sid.parse().ok()?, subject: subject.into(), reply, ..Message::default() };
    Some(Announced { message, headers, total })
}

/// A message to be published.
#[derive(Clone, Debug, Default)]
pub struct Outgoing<'a> {
    /// Where.
    pub subject: &'a str,
    /// Where the answer is to go.
    pub reply: Option<&'a str>,
    /// Names and values. Neither may hold the end of a line.
    pub headers: &'a [(&'a str, &'a str)],
    /// What.
    pub payload: &'a [u8],
}

impl Outgoing<'_> {
    /// What counts for the server's `max_payload`.
    pub fn bytes(&self) -> usize {
        self.header_bytes() + self.payload.len()
    }

    fn header_bytes(&self) -> usize {
        if self.headers.is_empty() {
            return 0;
        }
        let fields: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        HEADERS_VERSION.len() + 2 + fields + 2
    }

    /// Writes it.
    pub fn write(&self, out: &mut BytesMut) {
        let Outgoing { subject, reply, headers, payload } = self;
        out.reserve(self.bytes() + subject.len() + reply.map_or(0, str::len) + 64);
        out.put_slice(if headers.is_empty() { b"PUB " } else { b"HPUB " });
        put_words(out, &[subject]);
        if let Some(reply) = reply {
            put_words(out, &[" ", reply]);
        }
        if headers.is_empty() {
            put_words(out, &[" ", &payload.len().to_string(), "\r\n"]);
        } else {
            put_words(out, &[" ", &self.header_bytes().to_string(), " ", &self.bytes().to_string(), "\r\n"]);
            put_words(out, &[HEADERS_VERSION, "\r\n"]);
            for (name, value) in *headers {
                put_words(out, &[name, ": ", value, "\r\n"]);
            }
            out.put_slice(b"\r\n");
        }
        out.put_slice(payload);
        out.put_slice(b"\r\n");
    }
}

fn put_words(out: &mut BytesMut, words: &[&str]) {
    words.iter().for_each(|word| out.put_slice(word.as_bytes()));
}

/// Writes that we want what is published to a subject, under this number.
pub fn write_subscribe(out: &mut BytesMut, subject: &str, sid: u64) {
    put_words(out, &["SUB ", subject, " ", &sid.to_string(), "\r\n"]);
}

/// Writes that we want no more of it.
pub fn write_unsubscribe(out: &mut BytesMut, sid: u64) {
    put_words(out, &["UNSUB ", &sid.to_string(), "\r\n"]);
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn read(parser: &mut Parser, bytes: &[u8]) -> Vec<Op> {
        parser.buffer.extend_from_slice(bytes);
        std::iter::from_fn(|| parser.next().unwrap()).collect()
    }

    const TALK: &[u8] = b"INFO {\"server_name\":\"n\",\"max_payload\":9,\"other\":[1]} \r\nPING\r\n+OK\r\n\
        MSG room.7 12 5\r\nhel\r\n\r\nhmsg a 1 _INBOX.x 27 29\r\nNATS/1.0 503\r\nA: b\r\nB:c\r\n\r\nhi\r\n-ERR 'Stale Connection'\r\npong\r\n";

    #[test]
    fn what_the_server_says_is_read_however_it_is_cut() {
        let whole = read(&mut Parser::default(), TALK);
        let mut parser = Parser::default();
        let in_bytes: Vec<Op> = TALK.iter().flat_map(|byte| read(&mut parser, &[*byte])).collect();
        assert_eq!(whole, in_bytes);
        let [Op::Info(info), Op::Ping, Op::Ok, Op::Message(first), Op::Message(second), Op::Error(error), Op::Pong] =
            &whole[..]
        else {
            panic!("{whole:?}")
        };
        assert_eq!((&*info.server_name, info.max_payload), ("n", 9));
        assert_eq!((first.sid, &*first.subject, &first.payload[..]), (12, "room.7", &b"hel\r\n"[..]));
        assert_eq!((second.reply.as_deref(), &second.payload[..]), (Some("_INBOX.x"), &b"hi"[..]));
        assert_eq!((second.status(), second.header("A"), second.header("B")), (Some(503), Some("b"), Some("c")));
        assert_eq!((second.header("C"), first.status(), first.header("A")), (None, None, None));
        assert_eq!(error, "Stale Connection");
    }

    #[test]
    fn what_is_no_nats_is_an_error_and_takes_no_memory() {
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let cases: &[&[u8]] = &[
            b"HTTP/1.1 400 Bad Request\r\n",
            b"MSG\r\n",
            b"MSG a 1\r\n",
            b"MSG a b c d e\r\n",
            b"MSG a 1 -5\r\n",
            b"HMSG a 1 9 5\r\n",
            b"HMSG a 1 5\r\n",
            b"MSG a 1 99999999999\r\n",
            b"MSG a 1 99999999999999999999999999\r\n",
            b"INFO x\r\n",
            b"\xff\xfe\r\n",
            b"\r\n",
            &long,
        ];
        for case in cases {
            let mut parser = Parser::default();
            parser.buffer.extend_from_slice(case);
            assert!(parser.next().is_err(), "{:?}", String::from_utf8_lossy(&case[..case.len().min(80)]));
        }
    }

    #[test]
    fn whatever_comes_is_read_or_refused() {
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..20_000 {
            let mut bytes = TALK.to_vec();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes[at] = rng.random(),
                    1 if bytes.len() > 1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, b"0 9-\r\n"[rng.random_range(0..6)]),
                    3 => bytes.truncate(at.max(1)),
                    _ => {}
                }
            }
            let mut parser = Parser::default();
            parser.buffer.extend_from_slice(&bytes);
            while let Ok(Some(op)) = parser.next() {
                if let Op::Message(message) = op {
                    let _ = (message.status(), message.header("A"));
                }
            }
        }
    }

    #[test]
    fn what_we_say_is_as_the_protocol_has_it() {
        let mut out = BytesMut::new();
        write_subscribe(&mut out, "room.7", 3);
        write_unsubscribe(&mut out, 3);
        let plain = Outgoing { subject: "a", payload: b"hi", ..Outgoing::default() };
        plain.write(&mut out);
        let headers = [("Nats-Msg-Id", "x1")];
        let full = Outgoing { subject: "a", reply: Some("r"), headers: &headers, payload: b"hi" };
        full.write(&mut out);
        let said = "SUB room.7 3\r\nUNSUB 3\r\nPUB a 2\r\nhi\r\n\
            HPUB a r 29 31\r\nNATS/1.0\r\nNats-Msg-Id: x1\r\n\r\nhi\r\n";
        assert_eq!(std::str::from_utf8(&out).unwrap(), said);
        assert_eq!((plain.bytes(), full.bytes()), (2, 31));
    }
}
