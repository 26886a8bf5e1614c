//! Clients that have half of a long message on its way while the server changes its process: half of them have sent half of a
//! command, and the other half read nothing of a long answer. Both must end whole.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::IDENTIFIER;
use crate::protocol::{Protocol, Script, Target, find_mark, json_string};
use crate::wire::{self, opcode};

/// How long anything may take that a client waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of the command that is sent in two halves: below the server's limit for messages, above what it reads at once.
const COMMAND_BYTES: usize = 60_000;

/// Bytes of the answer that is not read: more than the kernel takes for a client with small buffers, less than may wait in the
/// server.
pub const ANSWER_BYTES: usize = 700_000;

/// Receive buffer of a client that does not read.
const SMALL_BUFFER: usize = 4096;

/// Which half is out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// One such client.
struct Half {
    stream: TcpStream,
    direction: Direction,
    /// What came and was not looked at yet.
    came: Vec<u8>,
    /// Number of the next publication; none before the first has come.
    sequence: Option<u32>,
    /// What is left of the command that is sent in halves.
    unsent: Vec<u8>,
}

/// All of them.
pub struct Halves(Vec<Half>);

impl Halves {
    /// Connects and subscribes them: as many of each kind.
    pub fn open(server: SocketAddr, of_each: u32) -> anyhow::Result<Self> {
        let both = [Direction::Up, Direction::Down].into_iter();
        let all = both.flat_map(|direction| (0..of_each).map(move |number| (direction, number)));
        all.map(|(direction, number)| Half::open(server, direction, number)).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Commands that the app gets for each [`Halves::finish`].
    pub fn commands(&self) -> u64 {
        self.0.len() as u64
    }

    /// Brings half of each message under way.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        self.0.iter_mut().try_for_each(Half::begin)
    }

    /// Sends and reads the rest: each command is answered, and each answer is whole.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.0.iter_mut().try_for_each(Half::finish)
    }
}

impl Half {
    fn open(server: SocketAddr, direction: Direction, number: u32) -> anyhow::Result<Self> {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
        if direction == Direction::Down {
            // Before it connects: the window is agreed on then.
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SMALL_BUFFER)?;
        }
        rustix::net::connect(&socket, &server)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut half = Self { stream, direction, came: Vec::new(), sequence: None, unsent: Vec::new() };
        let target = Target { authority: server.to_string(), path: "/cable".to_owned() };
        let script = Script::new(Protocol::ActionCable, &target, 0, Some(IDENTIFIER));
        let mut request = Vec::new();
        script.push_request(&mut request, number, 0, None);
        half.stream.write_all(&request)?;
        let until = Instant::now() + PATIENCE;
        let head = loop {
            if let Some(end) = half.came.windows(4).position(|end| end == b"\r\n\r\n") {
                break half.came.drain(..end + 4).collect::<Vec<u8>>();
            }
            half.read(until)?;
        };
        ensure!(head.starts_with(b"HTTP/1.1 101"), "an upgrade was answered: {}", String::from_utf8_lossy(&head));
        half.wait_for("welcome")?;
        half.say(&script.subscribe_text(number).unwrap_or_default())?;
        half.wait_for("confirm_subscription")?;
        Ok(half)
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        match self.direction {
            Direction::Up => {
                let data = format!(r#"{{"action":"echo","text":"{}"}}"#, "y".repeat(COMMAND_BYTES / 2));
                let mut frame = Vec::new();
                wire::push_client_frame(&mut frame, opcode::TEXT, message(&data).as_bytes());
                self.unsent = frame.split_off(frame.len() / 2);
                self.stream.write_all(&frame)?;
                Ok(())
            }
            Direction::Down => self.say(&message(&format!(r#"{{"action":"long","bytes":{ANSWER_BYTES}}}"#))),
        }
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        let rest = std::mem::take(&mut self.unsent);
        self.stream.write_all(&rest)?;
        match self.direction {
            Direction::Up => self.wait_for("done").map(drop),
            Direction::Down => {
                let answer = self.wait_for("zzzz")?;
                let length = answer.iter().filter(|byte| **byte == b'z').count();
                ensure!(length == ANSWER_BYTES, "{length} of {ANSWER_BYTES} bytes of an answer came");
                Ok(())
            }
        }
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let mut frame = Vec::new();
        wire::push_client_frame(&mut frame, opcode::TEXT, text.as_bytes());
        Ok(self.stream.write_all(&frame)?)
    }

    /// Reads until a message comes that holds this and is no publication; those must come in order.
    fn wait_for(&mut self, what: &str) -> anyhow::Result<Vec<u8>> {
        let until = Instant::now() + PATIENCE;
        loop {
            let message = self.message(until).with_context(|| format!("waiting for {what:?}"))?;
            if let Some((sequence, _)) = find_mark(&message) {
                if let Some(expected) = self.sequence {
                    ensure!(sequence == expected, "publication {sequence} came in the place of {expected}");
                }
                self.sequence = Some(sequence + 1);
            } else if memchr::memmem::find(&message, what.as_bytes()).is_some() {
                return Ok(message);
            }
        }
    }

    /// The next whole message.
    fn message(&mut self, until: Instant) -> anyhow::Result<Vec<u8>> {
        loop {
            let header = wire::parse_header(&self.came).ok().context("a broken frame")?;
            let whole =
                header.filter(|header| self.came.len() as u64 >= header.header_length as u64 + header.payload_length);
            let Some(header) = whole else {
                self.read(until)?;
                continue;
            };
            let frame: Vec<u8> = self.came.drain(..header.header_length + header.payload_length as usize).collect();
            match header.opcode {
                opcode::TEXT if header.fin => return Ok(frame[header.header_length..].to_vec()),
                opcode::PING => {}
                other => bail!("a frame with opcode {other} came"),
            }
        }
    }

    fn read(&mut self, until: Instant) -> anyhow::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "nothing came");
        self.stream.set_read_timeout(Some(left))?;
        let mut piece = [0; 65536];
        match self.stream.read(&mut piece) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(length) => self.came.extend_from_slice(&piece[..length]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A message command with this data.
pub fn message(data: &str) -> String {
    format!(r#"{{"command":"message","identifier":{},"data":{}}}"#, json_string(IDENTIFIER), json_string(data))
}
