//! The loop of a real shard.

use std::io;
use std::time::Duration;

use crate::os::poll;

use super::epoll::{Epoll, LISTENER, Socket, WAKER};
use super::{Machine, Readiness, Services, Shard};

/// Events taken from the kernel in one turn.
const EVENTS_PER_TURN: usize = 1024;

/// Runs a shard on this thread until it is drained.
///
/// # Errors
/// The poller failed, which it does not.
pub fn run<N: Services<Socket>>(mut shard: Shard<Epoll, N>) -> io::Result<()> {
    let mut events = Vec::with_capacity(EVENTS_PER_TURN);
    let mut messages = Vec::new();
    while !shard.is_drained() {
        let now = shard.machine().now().mono;
        let timeout = match shard.machine().inbox.may_sleep() {
            true => shard.next_wake().map(|wake| wake.saturating_sub(now)),
            false => Some(Duration::ZERO),
        };
        shard.machine().poller.wait(&mut events, timeout)?;
        shard.begin_turn();
        for event in &events {
            let poll::Ready { token, readable, writable, hangup } = poll::ready(event);
            match token {
                LISTENER => shard.accept(),
                // Edge-triggered, so there is nothing to reset; what it is about is looked at below.
                WAKER => {}
                token => shard.ready(token, Readiness { readable, writable, hangup }),
            }
        }
        shard.machine().inbox.take(&mut messages);
        messages.drain(..).for_each(|message| shard.receive(message));
        shard.end_turn();
    }
    Ok(())
}
