//! Frames off the socket.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::net::unix::OwnedReadHalf;

use super::messages::{Direction, Reply, Request, Sorted};
use super::{Asked, FRAME_BYTES_MAX, LinkLost, Sender};

/// Room for one read. Short frames are read many at once.
const READ_BYTES: usize = 64 << 10;

/// Frames that are taken before others of the thread have their turn.
const FRAMES_AT_ONCE: usize = 256;

/// The reading end.
pub struct Reader<In> {
    pub(super) socket: OwnedReadHalf,
    /// What has come and is no whole frame yet. It grows with what comes, not with what is announced.
    pub(super) buffer: BytesMut,
    direction: PhantomData<fn() -> In>,
}

impl<In: Direction> Reader<In> {
    /// `buffer` has come before.
    pub fn new(socket: OwnedReadHalf, buffer: BytesMut) -> Reader<In> {
        Reader { socket, buffer, direction: PhantomData }
    }

    /// Whoever drops this has everything that came and was not taken in the buffer.
    pub async fn run<Out: Direction>(
        &mut self,
        sender: &Sender<Out>,
        asked: Arc<dyn Asked>,
        mut on_message: impl FnMut(In),
    ) -> LinkLost {
        loop {
            let mut taken = 0;
            loop {
                match self.next() {
                    Ok(None) => break,
                    Ok(Some(Sorted::Request(request))) => answer(request, sender.clone(), Arc::clone(&asked)),
                    Ok(Some(Sorted::Reply(reply))) => sender.0.waiters.answered(reply),
                    Ok(Some(Sorted::Other(message))) => on_message(message),
                    Err(why) => return why,
                }
                taken += 1;
                if taken % FRAMES_AT_ONCE == 0 {
                    tokio::task::yield_now().await;
                }
            }
            if let Err(why) = self.read().await {
                return why;
            }
        }
    }

    /// The next message, if all of it is there.
    pub(super) fn next(&mut self) -> Result<Option<Sorted<In>>, LinkLost> {
        let Some(length) = self.buffer.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize) else {
            return Ok(None);
        };
        if length > FRAME_BYTES_MAX {
            return Err(LinkLost::TooLong(length));
        }
        let Some(frame) = self.buffer.get(4..4 + length) else { return Ok(None) };
        let message: In = rmp_serde::from_slice(frame)?;
        self.buffer.advance(4 + length);
        Ok(Some(message.sort()))
    }

    pub(super) async fn read(&mut self) -> Result<(), LinkLost> {
        // What a long frame took is given back when it is over.
        if self.buffer.is_empty() && self.buffer.capacity() > 2 * READ_BYTES {
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(READ_BYTES);
        loop {
            self.socket.readable().await?;
            match self.socket.try_read_buf(&mut self.buffer) {
                Ok(0) => return Err(LinkLost::Closed),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(LinkLost::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Has a request answered, beside what else comes.
fn answer<Out: Direction>(request: Request, sender: Sender<Out>, asked: Arc<dyn Asked>) {
    let Request { number, name, body } = request;
    sender.0.answers.begin(Request { number, name: name.clone(), body: body.clone() });
    tokio::spawn(async move {
        let body = asked.asked(name, body).await;
        sender.0.answers.end(number, || sender.put(&Out::reply(Reply { number, body })));
    });
}
