//! A link that stops between two moments and goes on later over the same socket, perhaps in another program: the other end sees
//! nothing of it but a pause.
//!
//! What had come and was not taken, and what was put in and not written, goes along as bytes, so a frame may be half read or half
//! written. A request whose answer was not put in yet stands in front of what is to be taken, as if it had just come. Whoever
//! waited for an answer of the other end is told that there is none; its number is not used again, so one that comes later is
//! taken for nobody's.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::sync::Notify;

use super::messages::Direction;
use super::reader::Reader;
use super::requests::{Answers, Waiters};
use super::writer::Writer;
use super::{Asked, End, FRAME_BYTES, Frame, Link, LinkLost, Queue, Sender, Shared};

/// How the run of a link has ended.
pub enum Ended<Out> {
    /// It is lost.
    Lost(LinkLost),
    /// It was to stop.
    Stopped(Stopped<Out>),
}

/// A link that stands still: nothing is read or written, and what is put in is kept.
pub struct Stopped<Out> {
    socket: UnixStream,
    /// What has come and was not taken, but for requests.
    unread: BytesMut,
    /// What was taken out of the queue. The first may be partly written.
    taken: VecDeque<Bytes>,
    sender: Sender<Out>,
}

/// What a link that has stopped has begun and not finished.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Unfinished {
    /// What has come and was not taken. It begins with a frame.
    #[serde(with = "serde_bytes")]
    unread: Vec<u8>,
    /// What is to be written, in its order. It may begin in the middle of a frame.
    unwritten: Vec<ByteBuf>,
    /// The number of the last request.
    last_request: u64,
}

impl<Out: Direction, In: Direction> Link<Out, In> {
    /// A link that goes on where another one has stopped.
    pub fn go_on(socket: UnixStream, unfinished: Unfinished, stalled_after: Option<Duration>) -> Link<Out, In> {
        let Unfinished { unread, unwritten, last_request } = unfinished;
        let frames = unwritten.into_iter().map(|bytes| Bytes::from(bytes.into_vec()));
        let mut queue = Queue { frames: frames.collect(), ..Queue::default() };
        queue.bytes = queue.frames.iter().map(|bytes| bytes.len() + FRAME_BYTES).sum();
        let waiters = Waiters::default();
        waiters.go_on_from(last_request);
        let sender = Sender(Arc::new(Shared {
            queue: Mutex::new(queue),
            wake: Notify::new(),
            written: Notify::new(),
            owed: AtomicU32::new(0),
            delivered: AtomicU32::new(0),
            waiters,
            answers: Answers::default(),
            direction: PhantomData,
        }));
        let unread = BytesMut::from(&*unread);
        Link { socket, sender, stalled_after, unread, direction: PhantomData }
    }

    /// As [`Link::run`], but stops when `stop` is done. An end that owes deliveries must not stop.
    pub async fn run_until(
        self,
        stop: impl Future<Output = ()>,
        asked: Arc<dyn Asked>,
        on_message: impl FnMut(In),
    ) -> Ended<Out> {
        let Link { socket, sender, stalled_after, unread, .. } = self;
        // Also when this is dropped: whoever waits for something is told that it does not come.
        let end = End(Some(&sender.0));
        let socket = socket.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(socket));
        let (read, write) = match socket {
            Ok(socket) => socket.into_split(),
            Err(error) => return Ended::Lost(error.into()),
        };
        let mut reader = Reader::new(read, unread);
        let mut writer = Writer::new(write, sender.clone(), stalled_after);
        {
            let mut reading = pin!(reader.run(&sender, asked, on_message));
            let why = tokio::select! {
                why = &mut reading => Some(why),
                why = writer.run() => match why {
                    // What the other end has said before it ended is still there.
                    LinkLost::Closed => Some(reading.await),
                    why => Some(why),
                },
                () = stop => None,
            };
            if let Some(why) = why {
                return Ended::Lost(why);
            }
        }
        let (unread, taken) = (std::mem::take(&mut reader.buffer), std::mem::take(&mut writer.taken));
        let socket = reader.socket.reunite(writer.into_socket()).map_err(|_| LinkLost::Closed);
        match socket.and_then(|socket| Ok(socket.into_std()?)) {
            Ok(socket) => {
                end.cancel();
                Ended::Stopped(Stopped { socket, unread, taken, sender })
            }
            Err(why) => Ended::Lost(why),
        }
    }
}

impl<Out: Direction> Stopped<Out> {
    /// What is to go on later. From now on what is put in goes nowhere. `In` is what the other end says.
    pub fn finish<In: Direction>(self) -> (UnixStream, Unfinished) {
        let Stopped { socket, unread, mut taken, sender } = self;
        let shared = &sender.0;
        let _end = End(Some(shared));
        // First: an answer that was put in is in the queue.
        let mut with_requests = Vec::new();
        for request in shared.answers.give_up() {
            // It has travelled before.
            Frame::new(&In::request(request)).into_iter().for_each(|Frame(bytes)| with_requests.extend(bytes));
        }
        with_requests.extend_from_slice(&unread);
        {
            let mut queue = shared.queue();
            taken.append(&mut queue.frames);
            queue.lost = true;
        }
        let unwritten = taken.into_iter().map(|bytes| ByteBuf::from(Vec::from(bytes))).collect();
        (socket, Unfinished { unread: with_requests, unwritten, last_request: shared.waiters.last() })
    }
}
