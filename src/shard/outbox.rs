//! Bytes waiting for one client.
//!
//! Made when there is something to write, gone when all of it is out. What a turn produces for a client is
//! collected here and leaves in one `writev`; only the rest of a short write stays longer.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::num::NonZero;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use smallvec::SmallVec;

use super::frame::Frame;
use crate::model::Tick;

/// Slices in one `writev`. Linux takes 1024 (`IOV_MAX`); with more than this the copy dominates anyway.
const SLICES_PER_WRITE: usize = 64;

/// Frames not written yet.
///
/// Small, because thousands of them are made and dropped in a turn; what only some need is behind a pointer.
#[derive(Default)]
pub(super) struct Outbox {
    /// The frame that is written next.
    first: Option<Frame>,
    /// Bytes of it that are out already.
    head_written: usize,
    /// What few outboxes need.
    more: Option<Box<More>>,
    /// Where the pong is that waits, if one does: this many frames are before it.
    pong: Option<NonZero<u16>>,
    /// Close the connection once everything is out.
    pub last: bool,
    /// The client is being told that it is too slow: what is said to it now is the last, so it is let in although
    /// the half of a long frame that is still here may be over the limit on its own.
    pub given_up: bool,
}

// In glibc's steps of 16 bytes with 8 of its own: 48.
const _: () = assert!(size_of::<Outbox>() <= 40);

#[derive(Default)]
struct More {
    /// Behind the first.
    frames: VecDeque<Frame>,
    /// Bytes over these.
    bytes: usize,
    /// What the shard's total holds of this outbox.
    counted_cost: usize,
    /// How many frames, from the first one on, that is for.
    counted_frames: usize,
    /// When the connection is given up unless some byte gets out before; set after a short write.
    stalled_until: Option<Tick>,
}

/// An outbox without a clock.
#[derive(Serialize, Deserialize)]
pub(super) struct OutboxState {
    frames: Vec<ByteBuf>,
    /// Bytes of the first frame that the peer has already.
    head_written: usize,
    stalled_ticks_left: Option<Tick>,
    last: bool,
    given_up: bool,
}

impl Outbox {
    pub fn push(&mut self, frame: Frame) {
        if self.first.is_none() {
            self.first = Some(frame);
            return;
        }
        let more = self.more.get_or_insert_default();
        more.bytes += frame.len();
        more.frames.push_back(frame);
    }

    /// A pong takes the place of one that waits: RFC 6455 section 5.5.3 asks for an answer to the last ping only.
    pub fn push_pong(&mut self, frame: Frame) {
        match (self.pong.map(|place| place.get() - 1), &mut self.more) {
            // One that is half out is not taken back.
            (Some(0), _) if self.head_written == 0 && self.first.is_some() => self.first = Some(frame),
            (Some(before @ 1..), Some(more)) => {
                let pong = &mut more.frames[usize::from(before) - 1];
                more.bytes = more.bytes - pong.len() + frame.len();
                *pong = frame;
            }
            _ => {
                self.pong = u16::try_from(self.len() + 1).ok().and_then(NonZero::new);
                self.push(frame);
            }
        }
    }

    /// Frames that wait.
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.as_ref().map_or(0, |more| more.frames.len())
    }

    /// Bytes that wait.
    fn bytes(&self) -> usize {
        let first = self.first.as_ref().map_or(0, |first| first.len() - self.head_written);
        first + self.more.as_ref().map_or(0, |more| more.bytes)
    }

    /// What waits, in bytes of memory if nobody shared it.
    pub fn cost(&self) -> usize {
        self.bytes() + self.len() * Frame::COST
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// When the connection is given up unless some byte gets out before; `None` for one that never had to wait.
    pub fn stalled_until(&self) -> Option<Tick> {
        self.more.as_ref()?.stalled_until
    }

    pub fn set_stalled_until(&mut self, until: Tick) {
        self.more.get_or_insert_default().stalled_until = Some(until);
    }

    /// Makes an empty one as new, so that it can be used for somebody else; false if more hangs on it.
    pub fn renew(&mut self) -> bool {
        if self.last || self.given_up || self.more.as_ref().is_some_and(|more| more.stalled_until.is_some()) {
            return false;
        }
        self.more = None;
        self.first.is_none()
    }

    /// Throws away what has not begun to leave, to make room for a last word. The frame that is half out stays:
    /// without its end the peer could not read what follows.
    pub fn clear_unsent(&mut self) {
        if self.head_written == 0 {
            self.first = None;
        }
        if let Some(more) = &mut self.more {
            more.frames.clear();
            more.bytes = 0;
        }
        self.pong = self.pong.filter(|place| usize::from(place.get()) <= self.len());
    }

    /// Calls `write` with the bytes at the front and takes off what it wrote.
    pub fn write_with(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> std::io::Result<usize>,
    ) -> std::io::Result<usize> {
        let Some(first) = &self.first else { return Ok(0) };
        let written = match (first.whole(), &self.more) {
            // What nearly always waits.
            (Some(only), None) => write(&[IoSlice::new(&only[self.head_written..])])?,
            (_, more) => {
                let frames = std::iter::once(first).chain(more.iter().flat_map(|more| &more.frames));
                write(&slices(frames, self.head_written))?
            }
        };
        self.advance(written);
        Ok(written)
    }

    /// Brings what the shard's total holds of it up to date, and gives it: before, and now. Each frame is looked at once.
    pub fn count(&mut self) -> (usize, usize) {
        let (cost, len) = (self.cost(), self.len());
        let more = self.more.get_or_insert_default();
        let before = more.counted_cost;
        let frames = self.first.iter().chain(&more.frames);
        let new: usize = frames.skip(more.counted_frames).map(Frame::cost_shared).sum();
        more.counted_cost = (before + new).min(cost);
        more.counted_frames = len;
        (before, more.counted_cost)
    }

    /// What the shard's total holds of it.
    pub fn counted(&self) -> usize {
        self.more.as_ref().map_or(0, |more| more.counted_cost)
    }

    /// What is needed to go on elsewhere; `now` is the tick of the clock here.
    pub fn copy(&self, now: Tick) -> OutboxState {
        let frames = self.first.iter().chain(self.more.iter().flat_map(|more| &more.frames));
        OutboxState {
            frames: frames.map(|frame| ByteBuf::from(frame.parts().concat())).collect(),
            head_written: self.head_written,
            stalled_ticks_left: self.stalled_until().map(|until| until.saturating_sub(now)),
            last: self.last,
            given_up: self.given_up,
        }
    }

    /// Goes on with what another one left. What cannot be is made harmless: more written than there is, for instance.
    pub fn put_together(state: OutboxState, now: Tick) -> Outbox {
        let mut outbox = Outbox { last: state.last, given_up: state.given_up, ..Outbox::default() };
        state.frames.iter().filter(|frame| !frame.is_empty()).for_each(|frame| outbox.push(Frame::new(frame)));
        // The first frame has something left, else it would not be there.
        outbox.head_written = state.head_written.min(outbox.first.as_ref().map_or(0, |first| first.len() - 1));
        if let Some(left) = state.stalled_ticks_left {
            outbox.set_stalled_until(now.saturating_add(left));
        }
        outbox
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = &self.first {
            let left = first.len() - self.head_written;
            if written < left {
                self.head_written += written;
                return;
            }
            written -= left;
            self.head_written = 0;
            self.pong = self.pong.and_then(|place| NonZero::new(place.get() - 1));
            self.first = self.more.as_mut().and_then(|more| {
                more.counted_frames = more.counted_frames.saturating_sub(1);
                let next = more.frames.pop_front()?;
                more.bytes -= next.len();
                Some(next)
            });
        }
    }
}

/// What is not written of these frames, as far as one call takes it.
fn slices<'a>(frames: impl Iterator<Item = &'a Frame>, mut written: usize) -> SmallVec<[IoSlice<'a>; 4]> {
    let mut slices = SmallVec::new();
    for part in frames.flat_map(Frame::parts) {
        let unwritten = &part[written.min(part.len())..];
        written -= part.len() - unwritten.len();
        if !unwritten.is_empty() {
            slices.push(IoSlice::new(unwritten));
        }
        if slices.len() == SLICES_PER_WRITE {
            break;
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: impl AsRef<[u8]>) -> Frame {
        Frame::new(bytes.as_ref())
    }

    fn written(outbox: &mut Outbox, room: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let result = outbox.write_with(|slices| {
            slices.iter().for_each(|slice| out.extend_from_slice(slice));
            out.truncate(room);
            Ok(out.len())
        });
        assert_eq!(result.unwrap(), out.len());
        out
    }

    #[test]
    fn short_writes_continue_where_they_stopped() {
        let body = super::super::frame::Body::new(b"shared body");
        for room in 1..9 {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            let mut seen = Vec::new();
            for n in 0..200u8 {
                let bytes: Vec<u8> = (0..n % 7 + 1).map(|_| n).collect();
                expected.extend_from_slice(&bytes);
                if n % 3 == 0 {
                    expected.extend_from_slice(b"shared body");
                    outbox.push(Frame::with_body(&bytes, body.clone()));
                } else {
                    outbox.push(frame(bytes));
                }
                seen.extend(written(&mut outbox, room));
            }
            while !outbox.is_empty() {
                seen.extend(written(&mut outbox, room));
            }
            assert_eq!((seen, outbox.cost()), (expected, 0));
        }
    }

    #[test]
    fn clearing_keeps_the_frame_that_is_half_out() {
        let mut outbox = Outbox::default();
        for text in ["one", "two", "three"] {
            outbox.push(frame(text));
        }
        assert_eq!(written(&mut outbox, 4), b"onet");
        outbox.clear_unsent();
        assert_eq!(outbox.cost(), 2 + Frame::COST);
        outbox.push(frame("bye"));
        assert_eq!(written(&mut outbox, 99), b"wobye");
        outbox.clear_unsent();
        assert!(outbox.is_empty());
    }

    #[test]
    fn one_pong_waits_however_many_pings_came() {
        let mut outbox = Outbox::default();
        outbox.push(frame("first"));
        for n in 0..1000 {
            outbox.push_pong(frame(format!("pong {n}")));
        }
        outbox.push(frame("last"));
        outbox.push_pong(frame("pong x"));
        assert_eq!(written(&mut outbox, 99), b"firstpong xlast");
        // One that is half out is not taken back.
        outbox.push_pong(frame("pong 1"));
        assert_eq!(written(&mut outbox, 4), b"pong");
        outbox.push_pong(frame("pong 2"));
        outbox.push_pong(frame("pong 3"));
        assert_eq!(written(&mut outbox, 99), b" 1pong 3");
        outbox.push_pong(frame("pong 4"));
        outbox.clear_unsent();
        outbox.push(frame("bye"));
        outbox.push_pong(frame("pong 5"));
        assert_eq!(written(&mut outbox, 99), b"byepong 5");
    }

    #[test]
    fn what_is_shared_is_counted_in_shares_and_what_is_not_in_full() {
        let shared = frame([b'x'; 10_000]);
        let mut outboxes: Vec<_> = (0..10).map(|_| Outbox::default()).collect();
        for outbox in &mut outboxes {
            outbox.push(shared.clone());
            outbox.push(frame([b'y'; 500]));
        }
        let total: usize = outboxes.iter_mut().map(|outbox| outbox.count().1).sum();
        assert!((15_000 - 1_000..15_000 + 20 * Frame::COST).contains(&total), "{total}");
        assert_eq!(outboxes[0].count(), (outboxes[0].counted(), outboxes[0].counted()), "each frame counts once");
        while !outboxes[0].is_empty() {
            written(&mut outboxes[0], 1_000);
        }
        assert_eq!(outboxes[0].count().1, 0);
    }
}
