//! The clients: a process of its own that holds connections, and dies in one way when it is told to.
//!
//! It says `ready` when all are welcome, does what it is told by lines on its input, and ends with that.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};

use crate::protocol::json_string;
use crate::wire::{opcode, parse_header, push_client_frame};
use crate::workers::raise_descriptor_limit;

/// How clients die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Death {
    /// Not by themselves: they read, and answer what has to be answered.
    None,
    /// They say nothing of their own any more, and answer what has to be answered.
    FallSilent,
    /// They follow a stream and read no more.
    NeverRead,
    /// The same with hardly any room for what arrives.
    ShutWindow,
    /// They reset their connections.
    Reset,
    /// They end their half of the stream.
    HalfClose,
    /// They say that it is over, and keep their sockets.
    SayGoodbye,
    /// They connect and say nothing.
    SayNothing,
    /// They connect and begin a request.
    StallRequest,
    /// They begin a message.
    StallMessage,
}

impl Death {
    /// Whether they connect only when they are to die.
    fn is_before_the_handshake(self) -> bool {
        matches!(self, Death::SayNothing | Death::StallRequest)
    }
}

/// The stream that some of them follow.
pub const STREAM: &str = "victims";

/// The receive buffer of those that shut their window, in bytes; the kernel doubles it.
const SMALL_BUFFER: usize = 2048;

/// What they say when they say something: a message to a channel that they do not follow, so nobody is asked.
const SOMETHING: &[u8] = br#"{"command":"message","identifier":"{}","data":"{}"}"#;

/// How long nothing may happen while they connect.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// What they are.
#[derive(Clone, clap::Args, Debug)]
pub struct Options {
    /// The server.
    #[arg(long)]
    pub address: SocketAddrV4,
    /// How many.
    #[arg(long)]
    pub count: usize,
    /// What their numbers begin with.
    #[arg(long)]
    pub name: String,
    /// How they die.
    #[arg(long, value_enum)]
    pub death: Death,
    /// They speak the extended protocol, which has pongs.
    #[arg(long)]
    pub extended: bool,
    /// They ask for no pings.
    #[arg(long)]
    pub no_pings: bool,
    /// They say something at each ping.
    #[arg(long)]
    pub talk: bool,
}

struct Peer {
    socket: TcpStream,
    received: Vec<u8>,
    upgraded: bool,
    /// Welcome, and confirmed where it subscribes.
    ready: bool,
    open: bool,
}

/// Runs until the input ends.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let options = &mut options.clone();
    raise_descriptor_limit();
    let mut peers = Vec::new();
    if !options.death.is_before_the_handshake() {
        peers = (0..options.count).map(|number| open(options, number)).collect::<anyhow::Result<Vec<_>>>()?;
        while !peers.iter().all(|peer| peer.ready) {
            ensure!(wait(&mut peers, options, Some(CONNECT_MAX))?, "not everybody is welcome");
            ensure!(peers.iter().all(|peer| peer.open), "one was closed before it was welcome");
        }
    }
    say("ready")?;
    let mut dead = false;
    let mut line = Vec::new();
    loop {
        // Those that do not read are not looked at either.
        let deaf =
            dead && options.death != Death::FallSilent || matches!(options.death, Death::NeverRead | Death::ShutWindow);
        wait(if deaf { &mut [] } else { &mut peers }, options, None)?;
        if !input_waits()? {
            continue;
        }
        let mut byte = [0];
        // Past the standard library, which would read ahead.
        if rustix::io::read(io::stdin(), &mut byte)? == 0 {
            return Ok(());
        }
        line.push(byte[0]);
        match &*line {
            b"die\n" => {
                dead = true;
                options.talk = false;
                die(&mut peers, options)?;
                say("dead")?;
            }
            b"count\n" => say(&peers.iter().filter(|peer| peer.open).count().to_string())?,
            _ if line.ends_with(b"\n") => bail!("what is {:?}?", String::from_utf8_lossy(&line)),
            _ => continue,
        }
        line.clear();
    }
}

fn say(line: &str) -> io::Result<()> {
    println!("{line}");
    io::stdout().flush()
}

fn input_waits() -> io::Result<bool> {
    let stdin = io::stdin();
    let mut input = [PollFd::new(&stdin, PollFlags::IN)];
    Ok(poll(&mut input, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}

/// Waits until something arrives, at the clients or at the input, and takes what the clients get. False when nothing came.
fn wait(peers: &mut [Peer], options: &Options, at_most: Option<Duration>) -> anyhow::Result<bool> {
    let at_most = at_most.map(Timespec::try_from).transpose()?;
    let stdin = io::stdin();
    let mut watched = vec![PollFd::new(&stdin, PollFlags::IN)];
    let open: Vec<usize> = (0..peers.len()).filter(|&at| peers[at].open).collect();
    watched.extend(open.iter().map(|&at| PollFd::new(&peers[at].socket, PollFlags::IN)));
    let ready = poll(&mut watched, at_most.as_ref())?;
    let flags: Vec<PollFlags> = watched[1..].iter().map(PollFd::revents).collect();
    for (&at, flags) in open.iter().zip(&flags) {
        if !flags.is_empty() {
            take(&mut peers[at], options);
        }
    }
    Ok(ready > 0)
}

fn open(options: &Options, number: usize) -> anyhow::Result<Peer> {
    let socket = connected(options)?;
    let mut peer = Peer { socket, received: Vec::new(), upgraded: false, ready: false, open: true };
    peer.socket.write_all(request(options, number).as_bytes())?;
    peer.socket.set_nonblocking(true)?;
    Ok(peer)
}

fn connected(options: &Options) -> anyhow::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    if options.death == Death::ShutWindow {
        // Before the handshake, which announces the window.
        sockopt::set_socket_recv_buffer_size(&socket, SMALL_BUFFER)?;
    }
    connect(&socket, &SocketAddr::V4(options.address)).with_context(|| format!("connecting to {}", options.address))?;
    let socket = TcpStream::from(socket);
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn request(options: &Options, number: usize) -> String {
    let Options { name, address, .. } = options;
    let pings = if options.no_pings { "&pi=0" } else { "" };
    let protocol = if options.extended { "actioncable-v1-ext-json" } else { "actioncable-v1-json" };
    format!(
        "GET /cable?client={name}{number}{pings} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
}

/// Reads what is there and answers what has to be answered.
fn take(peer: &mut Peer, options: &Options) {
    let mut piece = [0; 16 * 1024];
    loop {
        match peer.socket.read(&mut piece) {
            Ok(0) => peer.open = false,
            Ok(n) => {
                peer.received.extend_from_slice(&piece[..n]);
                continue;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => peer.open = false,
        }
        break;
    }
    if !peer.upgraded {
        let Some(end) = peer.received.windows(4).position(|end| end == b"\r\n\r\n") else { return };
        peer.upgraded = peer.received.starts_with(b"HTTP/1.1 101");
        peer.open &= peer.upgraded;
        peer.received.drain(..end + 4);
    }
    let mut answers = Vec::new();
    while let Ok(Some(header)) = parse_header(&peer.received) {
        let end = header.header_length + header.payload_length as usize;
        if peer.received.len() < end {
            break;
        }
        let payload = &peer.received[header.header_length..end];
        match header.opcode {
            opcode::PING => push_client_frame(&mut answers, opcode::PONG, payload),
            opcode::TEXT => peer.ready |= text(payload, options, &mut answers),
            opcode::CLOSE => peer.open = false,
            _ => {}
        }
        peer.received.drain(..end);
    }
    if peer.received.is_empty() {
        peer.received = Vec::new();
    }
    if peer.socket.write_all(&answers).is_err() {
        peer.open = false;
    }
}

/// Takes a message of the protocol; true when nothing more has to be waited for.
fn text(message: &[u8], options: &Options, answers: &mut Vec<u8>) -> bool {
    let message = String::from_utf8_lossy(message);
    let follows = matches!(options.death, Death::NeverRead | Death::ShutWindow);
    if message.starts_with(r#"{"type":"ping""#) {
        if options.extended {
            push_client_frame(answers, opcode::TEXT, br#"{"command":"pong"}"#);
        }
        if options.talk {
            push_client_frame(answers, opcode::TEXT, SOMETHING);
        }
        return false;
    }
    if message.starts_with(r#"{"type":"welcome""#) && follows {
        let identifier = json_string(&format!(r#"{{"channel":"$pubsub","stream_name":"{STREAM}"}}"#));
        let subscribe = format!(r#"{{"command":"subscribe","identifier":{identifier}}}"#);
        push_client_frame(answers, opcode::TEXT, subscribe.as_bytes());
        return false;
    }
    message.contains(r#""type":"welcome""#) || message.contains("confirm_subscription")
}

fn die(peers: &mut Vec<Peer>, options: &Options) -> anyhow::Result<()> {
    if options.death.is_before_the_handshake() {
        for number in 0..options.count {
            let mut socket = connected(options)?;
            if options.death == Death::StallRequest {
                socket.write_all(&request(options, number).as_bytes()[..20])?;
            }
            peers.push(Peer { socket, received: Vec::new(), upgraded: false, ready: false, open: true });
        }
        return Ok(());
    }
    for peer in peers.iter_mut() {
        match options.death {
            Death::Reset => sockopt::set_socket_linger(&peer.socket, Some(Duration::ZERO))?,
            Death::FallSilent => {
                let mut frame = Vec::new();
                push_client_frame(&mut frame, opcode::TEXT, SOMETHING);
                peer.socket.write_all(&frame)?;
            }
            Death::HalfClose => peer.socket.shutdown(Shutdown::Write)?,
            Death::SayGoodbye => {
                let mut frame = Vec::new();
                push_client_frame(&mut frame, opcode::CLOSE, &1000_u16.to_be_bytes());
                peer.socket.write_all(&frame)?;
            }
            // The first byte of a message and half of its length.
            Death::StallMessage => peer.socket.write_all(&[0x81, 0xfe, 0x01])?,
            _ => {}
        }
    }
    if options.death == Death::Reset {
        peers.clear();
    }
    Ok(())
}
