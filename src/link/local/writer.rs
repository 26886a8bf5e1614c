//! Frames onto the socket, many at once.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::timeout;

use super::messages::Direction;
use super::{FRAME_BYTES, Frame, LinkLost, Sender, TOGETHER, TOLD_AFTER};

/// Frames that leave in one system call.
const FRAMES_AT_ONCE: usize = 64;

/// The writing end.
pub struct Writer<Out> {
    socket: OwnedWriteHalf,
    sender: Sender<Out>,
    stalled_after: Option<Duration>,
    /// What was taken out of the queue. The first may be partly written.
    pub(super) taken: VecDeque<Bytes>,
}

impl<Out: Direction> Writer<Out> {
    pub fn new(socket: OwnedWriteHalf, sender: Sender<Out>, stalled_after: Option<Duration>) -> Writer<Out> {
        Writer { socket, sender, stalled_after, taken: VecDeque::new() }
    }

    /// Whoever drops this has everything that is not written in `taken` and in the queue.
    pub async fn run(&mut self) -> LinkLost {
        loop {
            if let Err(why) = self.take().await {
                return why;
            }
            while !self.taken.is_empty() {
                if let Err(why) = self.write().await {
                    return why;
                }
            }
        }
    }

    /// The socket, to be put together with the other half.
    pub fn into_socket(self) -> OwnedWriteHalf {
        self.socket
    }

    /// Waits for frames and takes all that there are.
    async fn take(&mut self) -> Result<(), LinkLost> {
        let mut is_time = false;
        loop {
            let shared = &*self.sender.0;
            {
                let mut queue = shared.queue();
                if queue.full {
                    return Err(LinkLost::Full);
                }
                self.taken.append(&mut queue.frames);
            }
            if is_time || !self.taken.is_empty() || shared.delivered.load(Acquire) >= TOGETHER {
                self.tell_of_deliveries();
            }
            if !self.taken.is_empty() {
                return Ok(());
            }
            let shared = &*self.sender.0;
            is_time = match shared.owed.load(Acquire) {
                0 => {
                    shared.wake.notified().await;
                    false
                }
                _ => timeout(TOLD_AFTER, shared.wake.notified()).await.is_err(),
            };
        }
    }

    fn tell_of_deliveries(&mut self) {
        let delivered = self.sender.0.delivered.swap(0, AcqRel);
        self.sender.0.owed.fetch_sub(delivered, AcqRel);
        let message = Some(delivered).filter(|delivered| *delivered > 0).and_then(Out::delivered);
        if let Some(Frame(bytes)) = message.and_then(|message| Frame::new(&message)) {
            self.sender.0.queue().bytes += bytes.len() + FRAME_BYTES;
            self.taken.push_back(bytes);
        }
    }

    async fn write(&mut self) -> Result<(), LinkLost> {
        let slices: Vec<_> = self.taken.iter().take(FRAMES_AT_ONCE).map(|frame| IoSlice::new(frame)).collect();
        match self.socket.try_write_vectored(&slices) {
            Ok(written) => {
                self.written(written);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait().await,
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(LinkLost::Closed)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the other end has read something.
    async fn wait(&self) -> Result<(), LinkLost> {
        match self.stalled_after {
            None => self.socket.writable().await?,
            Some(after) => {
                timeout(after, self.socket.writable()).await.map_err(|_| LinkLost::Stalled(after))??;
            }
        }
        Ok(())
    }

    fn written(&mut self, mut bytes: usize) {
        let mut freed = 0;
        while let Some(first) = self.taken.front_mut() {
            if bytes < first.len() {
                first.advance(bytes);
                freed += bytes;
                break;
            }
            bytes -= first.len();
            freed += first.len() + FRAME_BYTES;
            self.taken.pop_front();
        }
        let mut queue = self.sender.0.queue();
        // Everything is forgotten when the link is lost.
        queue.bytes = queue.bytes.saturating_sub(freed);
        drop(queue);
        self.sender.0.written.notify_waiters();
    }
}
