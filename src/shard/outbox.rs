//! Bytes waiting for one client.
//!
//! Made when there is something to write, gone when all of it is out. What a turn produces for a client is
//! collected here and leaves in one `writev`; only the rest of a short write stays longer.

use std::io::IoSlice;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use smallvec::SmallVec;

use crate::model::Tick;

/// Frames in one `writev`. Linux takes 1024 (`IOV_MAX`); with more than this the copy dominates anyway.
const FRAMES_PER_WRITE: usize = 64;

/// Frames not written yet.
#[derive(Default)]
pub(super) struct Outbox {
    frames: SmallVec<[Arc<[u8]>; 2]>,
    /// Frames at the front that are out completely; dropped together, now and then.
    done: usize,
    /// Bytes of the first frame that are out already.
    head_written: usize,
    /// Bytes over all frames that are not out.
    bytes: usize,
    /// When the connection is given up unless some byte gets out before; set after a short write.
    pub stalled_until: Option<Tick>,
    /// Close the connection once everything is out.
    pub last: bool,
    /// The client is being told that it is too slow: what is said to it now is the last, so it is let in although
    /// the half of a long frame that is still here may be over the limit on its own.
    pub given_up: bool,
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
    pub fn push(&mut self, frame: Arc<[u8]>) {
        self.bytes += frame.len();
        self.frames.push(frame);
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Throws away what has not begun to leave, to make room for a last word. The frame that is half out stays:
    /// without its end the peer could not read what follows.
    pub fn clear_unsent(&mut self) {
        let keep = self.done + usize::from(self.head_written > 0);
        self.frames.truncate(keep);
        self.bytes =
            self.frames[self.done.min(self.frames.len())..].iter().map(|f| f.len()).sum::<usize>() - self.head_written;
    }

    /// Calls `write` with the bytes at the front and takes off what it wrote.
    pub fn write_with(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> std::io::Result<usize>,
    ) -> std::io::Result<usize> {
        let waiting = &self.frames[self.done..];
        let mut slices: SmallVec<[IoSlice<'_>; 4]> = SmallVec::new();
        for (n, frame) in waiting.iter().take(FRAMES_PER_WRITE).enumerate() {
            slices.push(IoSlice::new(if n == 0 { &frame[self.head_written..] } else { frame }));
        }
        let written = write(&slices)?;
        drop(slices);
        self.advance(written);
        Ok(written)
    }

    /// What is needed to go on elsewhere; `now` is the tick of the clock here.
    pub fn take_apart(self, now: Tick) -> OutboxState {
        OutboxState {
            frames: self.frames[self.done..].iter().map(|frame| ByteBuf::from(&**frame)).collect(),
            head_written: self.head_written,
            stalled_ticks_left: self.stalled_until.map(|until| until.saturating_sub(now)),
            last: self.last,
            given_up: self.given_up,
        }
    }

    /// Goes on with what another one left. What cannot be is made harmless: more written than there is, for instance.
    pub fn put_together(state: OutboxState, now: Tick) -> Outbox {
        let frames: SmallVec<[Arc<[u8]>; 2]> = state.frames.iter().map(|frame| Arc::from(frame.as_slice())).collect();
        let head_written = state.head_written.min(frames.first().map_or(0, |frame| frame.len()));
        Outbox {
            bytes: frames.iter().map(|frame| frame.len()).sum::<usize>() - head_written,
            frames,
            done: 0,
            head_written,
            stalled_until: state.stalled_ticks_left.map(|left| now.saturating_add(left)),
            last: state.last,
            given_up: state.given_up,
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while written > 0 {
            let left = self.frames[self.done].len() - self.head_written;
            if written < left {
                self.head_written += written;
                break;
            }
            written -= left;
            self.head_written = 0;
            self.done += 1;
        }
        if self.done > FRAMES_PER_WRITE {
            self.frames.drain(..self.done);
            self.done = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for room in 1..9 {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            let mut seen = Vec::new();
            for n in 0..200u8 {
                let frame: Vec<u8> = (0..n % 7 + 1).map(|_| n).collect();
                expected.extend_from_slice(&frame);
                outbox.push(frame.into());
                seen.extend(written(&mut outbox, room));
            }
            while !outbox.is_empty() {
                seen.extend(written(&mut outbox, room));
            }
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn clearing_keeps_the_frame_that_is_half_out() {
        let mut outbox = Outbox::default();
        for text in ["one", "two", "three"] {
            outbox.push(text.as_bytes().into());
        }
        assert_eq!(written(&mut outbox, 4), b"onet");
        outbox.clear_unsent();
        assert_eq!(outbox.bytes(), 2);
        outbox.push(b"bye".as_slice().into());
        assert_eq!(written(&mut outbox, 99), b"wobye");
        outbox.clear_unsent();
        assert!(outbox.is_empty());
    }
}
