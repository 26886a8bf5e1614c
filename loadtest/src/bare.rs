//! The yardstick: the least a WebSocket server can do. `accept4`, `read`, answer 101, hold; one `send` per receiver.
//!
//! Every figure of a real server is given as a ratio to this one in the same run on the same machine, so it must be
//! honest in both directions: as fast as a plain epoll loop gets, and doing real handshakes (SHA-1 of the client's key),
//! real frames and no less than the sockets need. It has no limits, no deadlines, no metrics and no security, and is not
//! meant to serve anybody.

mod control;
pub(crate) mod dialect;
mod shard;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::protocol::Protocol;
use crate::wire::{self, opcode};
use shard::Shard;

/// How the yardstick is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where clients connect; port 0 for any.
    pub listen: SocketAddr,
    /// Accept queue of each shard. The kernel clamps it to `net.core.somaxconn`.
    pub backlog: i32,
    /// Threads, each with its own listener on the same port (`SO_REUSEPORT`).
    pub shards: usize,
    /// `raw` holds plain WebSockets; the others welcome everybody and confirm every subscription.
    pub protocol: Protocol,
    /// Heartbeat of every connection, spread evenly; none for none.
    pub ping_interval: Option<Duration>,
    /// Send every message back, when it holds plain WebSockets.
    pub echo: bool,
    /// Send what is posted only to those that subscribed to its `identifier`, with Action Cable.
    pub rooms: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            backlog: 4096,
            shards: std::thread::available_parallelism().map_or(1, usize::from),
            protocol: Protocol::Raw,
            ping_interval: None,
            echo: false,
            rooms: false,
        }
    }
}

/// What another thread tells a shard.
#[derive(Clone)]
struct Publication {
    frame: Arc<[u8]>,
    /// Who gets it; none for everybody.
    room: Option<Arc<str>>,
}

struct ShardHandle {
    inbox: Sender<Publication>,
    wake: Arc<OwnedFd>,
    open: Arc<AtomicU64>,
}

/// A running yardstick. It runs until the process ends.
pub struct Bare {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where `POST /_broadcast` sends its body as one text frame to everybody, or to a room, and `GET /` says how many
    /// there are.
    pub control: SocketAddr,
}

/// Starts the threads and returns once clients can connect.
pub fn start(settings: &Settings) -> anyhow::Result<Bare> {
    let mut address = settings.listen;
    let mut shards = Vec::new();
    for index in 0..settings.shards.max(1) {
        let listener = listen(address, settings.backlog).with_context(|| format!("cannot listen on {address}"))?;
        if index == 0 {
            address = net::getsockname(&listener)?.try_into().context("the listener has no address")?;
        }
        let (inbox, publications) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let open = Arc::new(AtomicU64::new(0));
        let mut shard = Shard::new(settings, listener, publications, Arc::clone(&wake), Arc::clone(&open))?;
        std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || shard.run())?;
        shards.push(ShardHandle { inbox, wake, open });
    }
    let control = control::start(shards, settings.rooms)?;
    Ok(Bare { address, control })
}

fn listen(address: SocketAddr, backlog: i32) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    sockopt::set_socket_reuseport(&listener, true)?;
    // Accepted sockets inherit it, which saves a call for each.
    sockopt::set_tcp_nodelay(&listener, true)?;
    net::bind(&listener, &address)?;
    net::listen(&listener, backlog)?;
    Ok(listener)
}

fn text_frame(text: &str) -> Arc<[u8]> {
    let mut frame = Vec::new();
    wire::push_server_frame(&mut frame, opcode::TEXT, text.as_bytes());
    frame.into()
}
