//! Bytes waiting for one client.
//!
//! Made when there is something to write, gone when all of it is out. What a turn produces for a client is
//! collected here and leaves in one `writev`; only the rest of a short write stays longer.

use std::collections::VecDeque;
use std::io::IoSlice;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use smallvec::SmallVec;

use super::frame::Frame;
use crate::model::Tick;

/// Slices in one `writev`. Linux takes 1024 (`IOV_MAX`); with more than this the copy dominates anyway.
const SLICES_PER_WRITE: usize = 64;

/// Room for frames that an outbox may keep when it is used again.
const FRAMES_KEPT: usize = 8;

/// Frames not written yet.
#[derive(Default)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that are out already.
    head_written: usize,
    /// Bytes over all frames that are not out.
    bytes: usize,
    /// What the shard's total holds of this outbox, and how many frames at the front that is for.
    counted: Counted,
    /// Where the pong is that waits, if one does.
    pong: Option<u32>,
    /// When the connection is given up unless some byte gets out before; set after a short write.
    pub stalled_until: Option<Tick>,
    /// Close the connection once everything is out.
    pub last: bool,
    /// The client is being told that it is too slow: what is said to it now is the last, so it is let in although
    /// the half of a long frame that is still here may be over the limit on its own.
    pub given_up: bool,
}

#[derive(Default)]
struct Counted {
    cost: usize,
    frames: usize,
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
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// A pong takes the place of one that waits: RFC 6455 section 5.5.3 asks for an answer to the last ping only.
    pub fn push_pong(&mut self, frame: Frame) {
        let waiting = self.pong.map(|at| at as usize).filter(|&at| at > 0 || self.head_written == 0);
        match waiting.and_then(|at| self.frames.get_mut(at)) {
            Some(pong) => {
                self.bytes = self.bytes - pong.len() + frame.len();
                *pong = frame;
            }
            None => {
                self.pong = u32::try_from(self.frames.len()).ok();
                self.push(frame);
            }
        }
    }

    /// What waits, in bytes of memory if nobody shared it.
    pub fn cost(&self) -> usize {
        self.bytes + self.frames.len() * Frame::COST
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether it is as a new one, and not larger: fit to be used for somebody else.
    pub fn is_fresh(&self) -> bool {
        self.frames.is_empty()
            && self.frames.capacity() <= FRAMES_KEPT
            && self.counted.cost == 0
            && self.stalled_until.is_none()
            && !self.last
            && !self.given_up
    }

    /// Throws away what has not begun to leave, to make room for a last word. The frame that is half out stays:
    /// without its end the peer could not read what follows.
    pub fn clear_unsent(&mut self) {
        self.frames.truncate(usize::from(self.head_written > 0));
        self.bytes = self.frames.iter().map(Frame::len).sum::<usize>() - self.head_written;
        self.pong = self.pong.filter(|&at| (at as usize) < self.frames.len());
    }

    /// Calls `write` with the bytes at the front and takes off what it wrote.
    pub fn write_with(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> std::io::Result<usize>,
    ) -> std::io::Result<usize> {
        if let (1, Some(only)) = (self.frames.len(), self.frames.front().and_then(Frame::whole)) {
            // What nearly always waits.
            let written = write(&[IoSlice::new(&only[self.head_written..])])?;
            self.advance(written);
            return Ok(written);
        }
        let mut slices: SmallVec<[IoSlice<'_>; 4]> = SmallVec::new();
        let mut skip = self.head_written;
        for part in self.frames.iter().flat_map(Frame::parts) {
            let unwritten = &part[skip.min(part.len())..];
            skip -= part.len() - unwritten.len();
            if !unwritten.is_empty() {
                slices.push(IoSlice::new(unwritten));
            }
            if slices.len() == SLICES_PER_WRITE {
                break;
            }
        }
        let written = write(&slices)?;
        drop(slices);
        self.advance(written);
        Ok(written)
    }

    /// Brings what the shard's total holds of it up to date, and gives it: before, and now. Each frame is looked at once.
    pub fn count(&mut self) -> (usize, usize) {
        let before = self.counted.cost;
        let new = self.frames.iter().skip(self.counted.frames).map(Frame::cost_shared).sum::<usize>();
        self.counted = Counted { cost: (before + new).min(self.cost()), frames: self.frames.len() };
        (before, self.counted.cost)
    }

    /// What the shard's total holds of it.
    pub fn counted(&self) -> usize {
        self.counted.cost
    }

    /// What is needed to go on elsewhere; `now` is the tick of the clock here.
    pub fn take_apart(self, now: Tick) -> OutboxState {
        OutboxState {
            frames: self.frames.iter().map(|frame| ByteBuf::from(frame.parts().concat())).collect(),
            head_written: self.head_written,
            stalled_ticks_left: self.stalled_until.map(|until| until.saturating_sub(now)),
            last: self.last,
            given_up: self.given_up,
        }
    }

    /// Goes on with what another one left. What cannot be is made harmless: more written than there is, for instance.
    pub fn put_together(state: OutboxState, now: Tick) -> Outbox {
        let frames: VecDeque<Frame> =
            state.frames.iter().filter(|frame| !frame.is_empty()).map(|frame| Frame::new(frame)).collect();
        // The first frame has something left, else it would not be there.
        let head_written = state.head_written.min(frames.front().map_or(0, |frame| frame.len() - 1));
        Outbox {
            bytes: frames.iter().map(Frame::len).sum::<usize>() - head_written,
            frames,
            head_written,
            counted: Counted::default(),
            pong: None,
            stalled_until: state.stalled_ticks_left.map(|left| now.saturating_add(left)),
            last: state.last,
            given_up: state.given_up,
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        if self.bytes == 0 {
            // Every frame has at least one byte.
            self.frames.clear();
            self.head_written = 0;
            self.pong = None;
            self.counted.frames = 0;
            return;
        }
        while let Some(first) = self.frames.front() {
            let left = first.len() - self.head_written;
            if written < left {
                self.head_written += written;
                return;
            }
            written -= left;
            self.head_written = 0;
            self.frames.pop_front();
            self.pong = self.pong.and_then(|at| at.checked_sub(1));
            self.counted.frames = self.counted.frames.saturating_sub(1);
        }
    }
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
