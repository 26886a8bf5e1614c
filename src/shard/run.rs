//! The loop of a real shard.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::model::Reply;
use crate::os::poll;

use super::epoll::{Epoll, LISTENER, Socket, WAKER};
use super::lanes::{CopyingAhead, Divert, HandOver, Progress, Settled, Verdict};
use super::{Machine, Message, Readiness, Services, Shard};

/// Events taken from the kernel in one turn.
const EVENTS_PER_TURN: usize = 1024;

/// How long a shard that copies ahead waits for the new process to read.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Runs a shard on this thread until it is drained, or has left its connections to another process.
///
/// # Errors
/// The poller failed, which it does not.
pub fn run<N: Services<Socket>>(mut shard: Shard<Epoll, N>) -> io::Result<()> {
    let mut events = Vec::with_capacity(EVENTS_PER_TURN);
    let mut messages = Vec::new();
    let (mut settling, mut ahead) = (Settling::default(), Ahead::default());
    if shard.is_still() {
        // It begins with connections of another process.
        shard.begin_turn();
        shard.go_on();
        shard.end_turn();
    }
    while !shard.is_drained() {
        let now = shard.machine().now().mono;
        let timeout = match shard.machine().inbox.may_sleep() {
            true => {
                shard.next_wake().map(|wake| wake.saturating_sub(now)).into_iter().chain(ahead.goes_on_after()).min()
            }
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
        let mut taken = messages.drain(..);
        while let Some(message) = taken.next() {
            let Message::HandOver(told) = message else {
                settling.note(&message);
                shard.receive(message);
                continue;
            };
            if let Some(divert) = hand_over(&mut shard, &mut settling, &mut ahead, told) {
                let mut left = shard.take_messages();
                left.extend(taken);
                Arc::clone(&shard.machine().inbox).divert(left, divert);
                // With it goes its poller, and then its sockets, which are open elsewhere.
                return Ok(());
            }
        }
        drop(taken);
        shard.end_turn();
        settling.answer(&shard);
        ahead.go_on(&mut shard);
    }
    Ok(())
}

/// Does what a shard is told for a hand-over. Gives who takes its messages if it has left.
fn hand_over<N: Services<Socket>>(
    shard: &mut Shard<Epoll, N>,
    settling: &mut Settling,
    ahead: &mut Ahead,
    told: HandOver,
) -> Option<Divert> {
    match told {
        HandOver::Settle(answer) => {
            shard.stop();
            settling.asked = Some(answer);
        }
        HandOver::GoOn => {
            ahead.copying = None;
            shard.go_on();
        }
        HandOver::CopyAhead(copying) => *ahead = Ahead::begin(copying),
        HandOver::Copy(copying) => {
            let copied = shard.copy_into(&copying.lanes);
            let _ = copying.done.send(copied);
            // Whoever would say what comes of it is gone with the whole process.
            match copying.verdict.recv() {
                Ok(Verdict::Leave(divert)) => return Some(divert),
                Ok(Verdict::GoOn) | Err(_) => shard.go_on(),
            }
        }
    }
    None
}

/// Connections are copied while the shard serves.
#[derive(Default)]
struct Ahead {
    copying: Option<CopyingAhead>,
    /// The slot that is looked at next.
    next: u32,
    copied: usize,
    /// The new process has to read first.
    waits: bool,
}

impl Ahead {
    fn begin(copying: CopyingAhead) -> Ahead {
        Ahead { copying: Some(copying), ..Ahead::default() }
    }

    /// When there is more to do even if nothing happens.
    fn goes_on_after(&self) -> Option<Duration> {
        self.copying.as_ref().map(|_| if self.waits { LOOK_AGAIN } else { Duration::ZERO })
    }

    /// Copies some more, few enough that nobody waits long for the shard.
    fn go_on<N: Services<Socket>>(&mut self, shard: &mut Shard<Epoll, N>) {
        let Some(copying) = &self.copying else { return };
        let result = match shard.copy_some_ahead(&copying.lanes, &mut self.next) {
            Ok(Progress::Waits) => return self.waits = true,
            Ok(Progress::Copied(some)) => {
                self.copied += some;
                return self.waits = false;
            }
            Ok(Progress::Finished) => Ok(self.copied),
            Err(error) => Err(error),
        };
        let _ = copying.done.send(result);
        self.copying = None;
    }
}

/// Somebody waits for the shard to have carried out everything.
#[derive(Default)]
struct Settling {
    asked: Option<Sender<Settled>>,
    was_busy: bool,
}

impl Settling {
    /// Something came. What only asks, or waits, makes nothing that others could get.
    fn note(&mut self, message: &Message<Socket>) {
        let counts = match message {
            Message::Answer(answer) => !matches!(answer.reply, Reply::App(_)),
            Message::Publication(_) | Message::Disconnect(_) | Message::Yield { .. } => true,
            _ => false,
        };
        self.was_busy |= counts;
    }

    fn answer<N: Services<Socket>>(&mut self, shard: &Shard<Epoll, N>) {
        if shard.is_settled()
            && let Some(asked) = self.asked.take()
        {
            let _ = asked.send(Settled { was_busy: std::mem::take(&mut self.was_busy) });
        }
    }
}
