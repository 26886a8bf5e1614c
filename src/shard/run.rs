//! The loop of a real shard.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::model::Reply;
use crate::os::poll;

use super::epoll::{Epoll, LISTENER, Socket, WAKER};
use super::lanes::{CopyingAhead, Divert, HandOver, Progress, Round, Settled, Verdict};
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
    let (mut settling, mut ahead) = (Settling::default(), None::<Ahead>);
    if shard.is_still() {
        // It begins with connections of another process.
        shard.begin_turn();
        shard.go_on();
        shard.end_turn();
    }
    while !shard.is_drained() {
        let now = shard.machine().now().mono;
        let wakes = shard.next_wake().map(|wake| wake.saturating_sub(now));
        let timeout = match shard.machine().inbox.may_sleep() {
            true => wakes.into_iter().chain(ahead.as_ref().map(Ahead::goes_on_after)).min(),
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
        ahead = ahead.and_then(|ahead| ahead.go_on(&mut shard));
    }
    Ok(())
}

/// Does what a shard is told for a hand-over. Gives who takes its messages if it has left.
fn hand_over<N: Services<Socket>>(
    shard: &mut Shard<Epoll, N>,
    settling: &mut Settling,
    ahead: &mut Option<Ahead>,
    told: HandOver,
) -> Option<Divert> {
    match told {
        HandOver::Settle(answer) => {
            shard.stop();
            settling.asked = Some(answer);
        }
        HandOver::GoOn => {
            *ahead = None;
            shard.go_on();
        }
        HandOver::CopyAhead(CopyingAhead { lanes, done }) => {
            *ahead = Some(Ahead { round: shard.begin_round(lanes), copied: 0, done, waits: false });
        }
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
struct Ahead {
    round: Round,
    copied: usize,
    /// Where to say how many.
    done: Sender<io::Result<usize>>,
    /// The new process has to read first.
    waits: bool,
}

impl Ahead {
    /// When there is more to do even if nothing happens.
    fn goes_on_after(&self) -> Duration {
        if self.waits { LOOK_AGAIN } else { Duration::ZERO }
    }

    /// Copies some more, few enough that nobody waits long for the shard. Gives what there is to be gone on with.
    fn go_on<N: Services<Socket>>(mut self, shard: &mut Shard<Epoll, N>) -> Option<Ahead> {
        let progress = shard.copy_some_ahead(&mut self.round);
        self.waits = matches!(progress, Ok(Progress::Waits));
        let result = match progress {
            Ok(Progress::Waits) => return Some(self),
            Ok(Progress::Copied(some)) => {
                self.copied += some;
                return Some(self);
            }
            Ok(Progress::Finished) => Ok(self.copied),
            Err(error) => Err(error),
        };
        // Whoever asked may have given up.
        let _ = self.done.send(result);
        None
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
