//! One held connection as plain data: at most 64 bytes, asserted, because a million of them must fit beside the
//! server they test.

use std::os::fd::OwnedFd;

/// Where a connection is on its way to being ready.
///
/// ```text
/// Free -> Connecting -> Answering -+-> Ready                               raw
///   ^                              +-> Welcoming -> Subscribing -> Ready   the others
///   |                                    |                          ^
///   |                                    +-> Resubscribing --+      |      those that resume, when they come back
///   |                                    +-------------------+-> CatchingUp
///   +------------------- any state, when it fails or is dropped
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No socket.
    Free,
    /// SYN sent.
    Connecting,
    /// Request sent, waiting for the 101.
    Answering,
    /// Waiting for the welcome.
    Welcoming,
    /// Waiting for the confirmation.
    Subscribing,
    /// The session is lost: waiting for the confirmation, and then for what was missed.
    Resubscribing,
    /// Waiting for what was missed.
    CatchingUp,
    /// Held.
    Ready,
}

/// Buffers that exist only while bytes are on their way.
#[derive(Debug, Default)]
pub(super) struct Transit {
    /// The start of a head or frame whose rest has not come yet.
    pub received: Vec<u8>,
    /// Fragments of a message that has not ended yet.
    pub fragments: Vec<u8>,
    /// What the socket did not take yet.
    pub unsent: Vec<u8>,
}

impl Transit {
    pub fn is_empty(&self) -> bool {
        self.received.is_empty() && self.fragments.is_empty() && self.unsent.is_empty()
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Slot {
    /// When the step that is being timed began: the connect, or the message that waits for its reply.
    pub since_ns: u64,
    /// Buffers, while there are bytes in them.
    pub transit: Option<Box<Transit>>,
    /// Which sequence numbers came.
    pub sequence: Sequence,
    /// The socket.
    pub socket: Option<OwnedFd>,
    /// Bytes of a large frame still to be dropped.
    pub skip: u32,
    /// Messages it still has to say.
    pub to_say: u32,
    /// When something last came, in seconds of the lane's clock: some protocols want a ping after a silence.
    pub heard_s: u32,
    /// When the last ping came, or when it got ready, in milliseconds of the lane's clock, which wraps around.
    pub pinged_ms: u32,
    /// How often it connected.
    pub attempt: u16,
    /// Where it is.
    pub state: State,
    /// The frame being skipped ends a message.
    pub skip_ends_message: bool,
    /// The server wants its heartbeats answered.
    pub answers_pings: bool,
}

// socket 4, times and pointer 24, sequence 16, counters 10, flags 3: 64 bytes with the gaps.
const _: () = assert!(size_of::<Slot>() <= 64);

impl Slot {
    pub fn new() -> Self {
        Self {
            since_ns: 0,
            transit: None,
            sequence: Sequence::default(),
            socket: None,
            skip: 0,
            to_say: 0,
            heard_s: 0,
            pinged_ms: 0,
            attempt: 0,
            state: State::Free,
            skip_ends_message: false,
            answers_pings: false,
        }
    }

    pub fn transit(&mut self) -> &mut Transit {
        self.transit.get_or_insert_default()
    }
}

/// Which of the numbers 0, 1, 2, … have come, exact for the last 64 before the highest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sequence {
    /// One more than the highest number so far.
    next: u32,
    /// Bit i: number `next - 1 - i` has come.
    seen: u64,
}

/// What a number meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one.
    InOrder,
    /// Ahead of the next one by this many.
    Skipped(u32),
    /// One that had been skipped.
    Late,
    /// One that had come already.
    Duplicate,
    /// So far back that we no longer know; counted as a duplicate and as out of order by no one.
    Stale,
}

impl Sequence {
    /// Starts again: the next number to come is `next`.
    pub fn expect(next: u32) -> Self {
        Self { next, seen: 0 }
    }

    /// One more than the highest number so far.
    pub fn next(self) -> u32 {
        self.next
    }

    /// Takes note of a number.
    pub fn arrive(&mut self, number: u32) -> Arrival {
        if number >= self.next {
            let ahead = number - self.next;
            self.seen = self.seen.checked_shl(ahead.saturating_add(1)).unwrap_or(0) | 1;
            self.next = number.saturating_add(1);
            return if ahead == 0 { Arrival::InOrder } else { Arrival::Skipped(ahead) };
        }
        let back = self.next - 1 - number;
        if back >= 64 {
            return Arrival::Stale;
        }
        let bit = 1_u64 << back;
        if self.seen & bit == 0 {
            self.seen |= bit;
            Arrival::Late
        } else {
            Arrival::Duplicate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_arrival_is_told_apart() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.arrive(0), Arrival::InOrder);
        assert_eq!(sequence.arrive(1), Arrival::InOrder);
        assert_eq!(sequence.arrive(4), Arrival::Skipped(2));
        assert_eq!(sequence.arrive(2), Arrival::Late);
        assert_eq!(sequence.arrive(2), Arrival::Duplicate);
        assert_eq!(sequence.arrive(4), Arrival::Duplicate);
        assert_eq!(sequence.arrive(3), Arrival::Late);
        assert_eq!(sequence.arrive(5), Arrival::InOrder);
        assert_eq!(sequence.next(), 6);
    }

    #[test]
    fn a_jump_of_more_than_the_window_forgets_it() {
        let mut sequence = Sequence::default();
        sequence.arrive(0);
        assert_eq!(sequence.arrive(200), Arrival::Skipped(199));
        assert_eq!(sequence.arrive(0), Arrival::Stale);
        assert_eq!(sequence.arrive(199), Arrival::Late);
        assert_eq!(sequence.arrive(137), Arrival::Late);
        assert_eq!(sequence.arrive(136), Arrival::Stale);
    }

    #[test]
    fn numbers_before_the_agreed_start_are_not_missed() {
        let mut sequence = Sequence::expect(100);
        assert_eq!(sequence.arrive(100), Arrival::InOrder);
    }
}
