//! How long it took to find out that a peer is gone, and the last connections that ended.
//!
//! Everything that is said of a connection is found out when it ends: the kernel tells how long the peer has been silent
//! and how many bytes went each way, and the connection's slot when it began. How many messages there were is kept
//! nowhere, and is not told: counting them would cost every parked connection.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::model::{CloseCause, TICK_MS, tick};

use super::slots::Stage;
use super::{Machine, Services, Shard, TcpInfo};

/// Characters of connection identifiers that are kept of one connection.
const IDENTIFIERS_CHARS_MAX: usize = 256;

/// What a connection served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Served {
    /// Nothing yet: its request is not complete.
    Handshake,
    /// An Action Cable session.
    Cable,
    /// The echo.
    Echo,
}

impl Served {
    pub(super) fn of(stage: &Stage) -> Option<Served> {
        match stage {
            Stage::Handshake(_) => Some(Served::Handshake),
            Stage::Session(..) | Stage::Orphan(_) => Some(Served::Cable),
            Stage::Echo(_) => Some(Served::Echo),
            Stage::Free | Stage::Closing { .. } => None,
        }
    }
}

/// Where a connection came from, as far as it may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The network: the first 24 bits of an IPv4 address, 48 of an IPv6 one.
    Network(IpAddr),
    /// The address and port (`--debug-identifiers`).
    Address(SocketAddr),
}

impl Origin {
    pub(super) fn new(peer: SocketAddr, is_whole: bool) -> Origin {
        if is_whole {
            return Origin::Address(peer);
        }
        Origin::Network(match peer.ip().to_canonical() {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & (!0 << 8)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (!0 << 80)).into(),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Network(ip @ IpAddr::V4(_)) => write!(f, "{ip}/24"),
            Origin::Network(ip @ IpAddr::V6(_)) => write!(f, "{ip}/48"),
            Origin::Address(address) => write!(f, "{address}"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A connection that ended. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct ClosedConnection {
    /// When, since the Unix epoch.
    pub at_ms: u64,
    /// Why, as in `connections_closed_total`.
    pub cause: &'static str,
    /// Who ended it.
    pub side: &'static str,
    /// The code of our close frame; `None` where there is none.
    pub code: Option<u16>,
    /// What it served.
    pub route: Served,
    /// Since it was accepted, in steps of 200.
    pub age_ms: u64,
    /// Since the peer's last sign of life; `None` where the kernel knows nothing.
    pub silent_ms: Option<u64>,
    /// Bytes that came, the handshake's included.
    pub received_bytes: Option<u64>,
    /// Bytes that the peer has acknowledged, the handshake's included.
    pub sent_bytes: Option<u64>,
    /// Where it came from.
    pub peer: Option<Origin>,
    /// The shard that held it.
    pub shard: u16,
    /// Who it was; only with `--debug-identifiers`.
    #[serde(flatten)]
    pub who: Option<Who>,
}

/// Who a client is.
#[derive(Clone, Debug, Serialize)]
pub struct Who {
    /// The session's id.
    pub sid: String,
    /// The connection identifiers, cut off if they are very long; empty before the client is let in.
    pub identifiers: String,
}

/// The last connections of a shard that ended, oldest first.
pub(super) struct Closes {
    last: VecDeque<ClosedConnection>,
    max: usize,
}

impl Closes {
    /// Keeps so many.
    pub fn new(max: usize) -> Closes {
        Closes { last: VecDeque::with_capacity(max), max }
    }

    fn put(&mut self, closed: ClosedConnection) {
        if self.max == 0 {
            return;
        }
        if self.last.len() == self.max {
            self.last.pop_front();
        }
        self.last.push_back(closed);
    }

    /// All that are kept.
    pub fn list(&self) -> Vec<ClosedConnection> {
        self.last.iter().cloned().collect()
    }
}

/// Which signs of life a peer did not give, by what ends its connection.
fn silence(cause: CloseCause, tcp_info: &TcpInfo, stalled: Option<Duration>) -> Duration {
    match cause {
        // The program behind the socket is waited for. Its kernel may well acknowledge what we send.
        CloseCause::NoPong | CloseCause::MessageTimeout | CloseCause::HandshakeTimeout | CloseCause::IdleTimeout => {
            tcp_info.since_data
        }
        // Nothing gets out. The kernel of a peer that never reads answers our probes all the same.
        CloseCause::WriteTimeout | CloseCause::TooSlow => tcp_info.silent().max(stalled.unwrap_or_default()),
        _ => tcp_info.silent(),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// A connection is about to end: its slot is as it was, and the kernel still knows the peer. One that was handed over
    /// goes on elsewhere, and is no business of these notes.
    pub(super) fn note_end(&mut self, index: u32, cause: CloseCause, code: Option<u16>) {
        let slot = &self.slots[index];
        let (Some(route), Some(socket)) = (Served::of(&slot.stage), &slot.socket) else { return };
        let stalled = slot.outbox.as_ref().and_then(|outbox| outbox.stalled_until()).map(|until| {
            // It was set to the write time-out from when the last byte got out.
            let left = Duration::from_millis(u64::from(until.saturating_sub(tick(self.now.mono))) * TICK_MS);
            self.settings.write_timeout.saturating_sub(left)
        });
        let tcp_info = self.machine.tcp_info(socket);
        let silent = tcp_info.map(|tcp_info| silence(cause, &tcp_info, stalled));
        let age = slot.stage.age(self.now).unwrap_or_default();
        self.metrics.ended(cause, age, silent);
        let closed = ClosedConnection {
            at_ms: millis(self.now.unix),
            cause: cause.label(),
            side: cause.side().as_str(),
            code,
            route,
            age_ms: millis(age),
            silent_ms: silent.map(millis),
            received_bytes: tcp_info.map(|tcp_info| tcp_info.received),
            sent_bytes: tcp_info.map(|tcp_info| tcp_info.sent),
            peer: self.origin(index),
            shard: self.slots.key(index).shard,
            who: self.who(index),
        };
        self.closes.put(closed);
    }

    /// Where a connection comes from, as far as it may be shown.
    pub(super) fn origin(&self, index: u32) -> Option<Origin> {
        self.peer(index).map(|peer| Origin::new(peer, self.settings.debug_identifiers))
    }

    /// Who a client is, if that may be shown.
    pub(super) fn who(&self, index: u32) -> Option<Who> {
        if !self.settings.debug_identifiers {
            return None;
        }
        let (Stage::Session(session, _) | Stage::Orphan(session)) = &self.slots[index].stage else { return None };
        let identifiers: String = session.identifiers().chars().take(IDENTIFIERS_CHARS_MAX).collect();
        Some(Who { sid: session.sid().to_string(), identifiers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_shown_as_its_network() {
        for (peer, network) in [
            ("203.0.113.77:5000", "203.0.113.0/24"),
            ("[::ffff:203.0.113.77]:5000", "203.0.113.0/24"),
            ("[2001:db8:1:2:3:4:5:6]:5000", "2001:db8:1::/48"),
            ("[::1]:5000", "::/48"),
        ] {
            let peer: SocketAddr = peer.parse().unwrap();
            assert_eq!(Origin::new(peer, false).to_string(), network);
            assert_eq!(Origin::new(peer, true).to_string(), peer.to_string());
        }
    }

    #[test]
    fn what_counts_as_a_sign_of_life_depends_on_who_is_waited_for() {
        let seconds = Duration::from_secs;
        let tcp_info = TcpInfo { since_data: seconds(100), since_ack: seconds(2), ..TcpInfo::default() };
        for (cause, stalled, silent) in [
            (CloseCause::PeerTimeout, None, 2),
            (CloseCause::NoPong, None, 100),
            (CloseCause::MessageTimeout, None, 100),
            // It answers probes, and reads nothing.
            (CloseCause::WriteTimeout, Some(10), 10),
            (CloseCause::WriteTimeout, None, 2),
            (CloseCause::ClientGone, Some(10), 2),
        ] {
            assert_eq!(silence(cause, &tcp_info, stalled.map(seconds)), seconds(silent), "{cause:?} {stalled:?}");
        }
    }
}
