//! What the lanes count. Each lane has its own set, so that counting is one uncontended add; readers sum them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Why a connection did not get ready or did not stay: never one lump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Failure {
    /// `ECONNREFUSED`: nobody listens.
    Refused,
    /// Reset by the server, at any time.
    Reset,
    /// Not ready in time, or the kernel gave up.
    Timeout,
    /// The answer to the upgrade was not 101.
    Status,
    /// The 101 was malformed, or its accept value wrong.
    Handshake,
    /// No free source port.
    NoPort,
    /// No free descriptor in this process.
    NoDescriptor,
    /// The server ended the stream or sent a close frame.
    Closed,
    /// The server said goodbye: a message, or a close code of its own (3000 and up).
    Disconnected,
    /// The subscription was rejected.
    Rejected,
    /// The server sent an error message.
    Error,
    /// A frame broke the protocol.
    Frame,
    /// Another error of the operating system.
    Other,
}

impl Failure {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 13] = [
        Self::Refused,
        Self::Reset,
        Self::Timeout,
        Self::Status,
        Self::Handshake,
        Self::NoPort,
        Self::NoDescriptor,
        Self::Closed,
        Self::Disconnected,
        Self::Rejected,
        Self::Error,
        Self::Frame,
        Self::Other,
    ];

    /// The words for a table.
    pub fn words(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Timeout => "time-out",
            Self::Status => "handshake status",
            Self::Handshake => "bad handshake",
            Self::NoPort => "no port",
            Self::NoDescriptor => "no descriptor",
            Self::Closed => "closed by server",
            Self::Disconnected => "told to disconnect",
            Self::Rejected => "subscription rejected",
            Self::Error => "error message",
            Self::Frame => "broken frame",
            Self::Other => "other",
        }
    }
}

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of one lane while it works.
        #[derive(Debug, Default)]
        #[repr(align(64))]
        pub(super) struct Counters {
            $(pub $name: AtomicU64,)+
            pub failures: [AtomicU64; Failure::ALL.len()],
        }

        /// The counters at one moment. All only grow, except that what is open now is a difference of two.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Counts {
            $($(#[doc = $doc])+ pub $name: u64,)+
            /// Connections that failed, by [`Failure`].
            pub failures: [u64; Failure::ALL.len()],
        }

        impl Counters {
            pub fn read(&self) -> Counts {
                Counts {
                    $($name: self.$name.load(Ordering::Relaxed),)+
                    failures: std::array::from_fn(|kind| self.failures[kind].load(Ordering::Relaxed)),
                }
            }
        }

        impl std::iter::Sum for Counts {
            fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
                let mut all = Self::default();
                for one in counts {
                    $(all.$name += one.$name;)+
                    for (sum, more) in all.failures.iter_mut().zip(one.failures) {
                        *sum += more;
                    }
                }
                all
            }
        }
    };
}

counts! {
    /// Connects begun.
    connects,
    /// Upgrades answered with a good 101.
    upgraded,
    /// Connections that became ready, each time they did.
    ready,
    /// Ready connections that ended, by us or by the server.
    ended,
    /// Ready connections that ended although we did not want it.
    lost,
    /// Connections ready at the moment that had to send a segment twice to get there: a full accept queue.
    retransmitted,
    /// Connections tried again after a failure.
    retried,
    /// Whole messages received, all kinds.
    messages,
    /// Heartbeats received: the protocol's pings and WebSocket pings.
    pings,
    /// Pings that came later after the one before than the settings allow.
    pings_late,
    /// Marked messages received.
    marked,
    /// Marked messages that came with a gap before them: how many were skipped.
    skipped,
    /// Marked messages that had been skipped and came later: out of order.
    reordered,
    /// Marked messages that came again.
    duplicated,
    /// Connections dropped by a bad network.
    dropped,
    /// Clients that came back and got their session again.
    restored,
    /// Clients that came back and had to be let in and subscribe anew.
    anew,
    /// Marked messages that came to clients that had asked for what they missed.
    replayed,
    /// Clients that were told that what they missed cannot be sent.
    unrecoverable,
    /// Rounds of a saying that got their reply.
    replies,
    /// Connections that have finished a saying, one way or the other.
    said,
    /// Bytes received.
    bytes,
}

impl Counters {
    pub fn add(counter: &AtomicU64, more: u64) {
        // One writer: a plain load and store would do, but a relaxed add of an owned cache line costs the same.
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

impl Counts {
    /// Connections that are ready now.
    pub fn ready_now(&self) -> u64 {
        self.ready.saturating_sub(self.ended)
    }

    /// All failures.
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// The kinds of failure that occurred, with their numbers.
    pub fn failures_by_kind(&self) -> impl Iterator<Item = (Failure, u64)> {
        Failure::ALL.into_iter().zip(self.failures).filter(|(_, count)| *count > 0)
    }

    /// "refused 3, time-out 1", or "none".
    pub fn failure_words(&self) -> String {
        let words: Vec<_> = self.failures_by_kind().map(|(kind, count)| format!("{} {count}", kind.words())).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    }

    /// What happened since `before`.
    pub fn failures_since(&self, before: &Self) -> Self {
        Self { failures: std::array::from_fn(|kind| self.failures[kind] - before.failures[kind]), ..*self }
    }

    /// Marked messages that were skipped and never came.
    pub fn lost_between(&self) -> u64 {
        self.skipped.saturating_sub(self.reordered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_listed_in_the_order_of_their_counters() {
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index);
        }
        let mut counts = Counts::default();
        assert_eq!(counts.failure_words(), "none");
        counts.failures[Failure::NoPort as usize] = 2;
        assert_eq!(counts.failure_words(), "no port 2");
    }
}
