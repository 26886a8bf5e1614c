//! The link between a process that is one of several and its parent: a Unix stream socket that the child has inherited.
//!
//! It carries frames: four bytes of length, little-endian, and one message ([`messages`]) as MessagePack. Frames leave in the
//! order in which they were put in, whichever thread did that, so what was said first is heard first. A frame that all children
//! get is written down once and its bytes are shared. Putting in never waits; what waits to be written has a bound, and a link
//! over it is lost, like one whose other end says what nobody understands or reads nothing. A lost link does not come back: the
//! two processes have ended to be one server.
//!
//! Requests and answers of others ride along ([`Sender::request`], [`Asked`]); the link knows nothing of them but their numbers.

pub mod messages;
mod reader;
mod requests;
mod stop;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::Notify;

use messages::{Direction, Request, ToChild, Welcome};
use requests::{Answers, Waiters};

pub use messages::ToParent;
pub use stop::{Ended, Stopped, Unfinished};

/// The longest frame: what a client missed of a stream, at the most. Nothing is allocated for a frame before it comes.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Bytes that wait to be written for which there is room: who can wait waits for it, and whispers are dropped without it.
const ROOM_BYTES: usize = 64 << 20;

/// With more than this, what cannot wait included, the link is lost: its other end does not read.
const QUEUE_BYTES_MAX: usize = 2 << 30;

/// What a frame that waits takes beside its bytes.
const FRAME_BYTES: usize = 64;

/// Places of deliveries that the other end is told of at once. Far less than its bound.
const TOGETHER: u32 = 64;

/// Deliveries are told of no later than this.
const TOLD_AFTER: Duration = Duration::from_millis(10);

/// The first thing that a child hears must come within this time.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);

/// The first frame has a few short texts.
const WELCOME_BYTES_MAX: usize = 64 << 10;

/// Why a link is lost.
#[derive(Debug, thiserror::Error)]
pub enum LinkLost {
    /// The other process has ended or has closed it.
    #[error("the other end is closed")]
    Closed,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is no message.
    #[error("what came is no message: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// A frame says that it is too long.
    #[error("a frame of {0} bytes, and at most {FRAME_BYTES_MAX} are taken")]
    TooLong(usize),
    /// Too much waits to be read by the other end.
    #[error("more than {QUEUE_BYTES_MAX} bytes wait for the other end")]
    Full,
    /// The other end reads nothing.
    #[error("the other end has read nothing for {0:?}")]
    Stalled(Duration),
}

/// The link is lost, so there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link between the processes is lost")]
pub struct Lost;

/// Answers requests of the other end.
pub trait Asked: Send + Sync + 'static {
    /// The answer. Several may be worked out at a time.
    fn asked(self: Arc<Self>, name: Box<str>, body: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>>;
}

/// A message as it travels.
#[derive(Clone, Debug)]
pub struct Frame(Bytes);

impl Frame {
    /// Writes a message down. `None` if it is too long to travel.
    pub fn new(message: &impl Serialize) -> Option<Frame> {
        let mut bytes = vec![0; size_of::<u32>()];
        // Plain data can always be written into memory.
        message.serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map()).ok()?;
        let len = bytes.len() - size_of::<u32>();
        if len > FRAME_BYTES_MAX {
            return None;
        }
        bytes[..size_of::<u32>()].copy_from_slice(&(len as u32).to_le_bytes());
        Some(Frame(bytes.into()))
    }
}

/// A link. Nothing is read or written before [`Link::run`].
pub struct Link<Out, In> {
    socket: UnixStream,
    sender: Sender<Out>,
    stalled_after: Option<Duration>,
    /// What was read before and is to be taken first.
    unread: BytesMut,
    direction: PhantomData<fn() -> In>,
}

/// The end of a link that any thread may use.
pub struct Sender<Out>(Arc<Shared<Out>>);

impl<Out> Clone for Sender<Out> {
    fn clone(&self) -> Self {
        Sender(Arc::clone(&self.0))
    }
}

struct Shared<Out> {
    /// Held for as long as it takes to put a pointer in.
    queue: Mutex<Queue>,
    /// There is something to write.
    wake: Notify,
    /// Something was written.
    written: Notify,
    /// Places of deliveries that are not done, or that the other end has not been told of.
    owed: AtomicU32,
    /// Those that it has not been told of.
    delivered: AtomicU32,
    waiters: Waiters,
    answers: Answers,
    direction: PhantomData<fn(Out)>,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Nothing is taken any more.
    lost: bool,
    /// There was too much.
    full: bool,
}

impl<Out: Direction, In: Direction> Link<Out, In> {
    /// A link over a connected socket. If the other end reads nothing for `stalled_after`, it is lost.
    pub fn new(socket: UnixStream, stalled_after: Option<Duration>) -> Link<Out, In> {
        Link::go_on(socket, Unfinished::default(), stalled_after)
    }

    /// For who says something.
    pub fn sender(&self) -> Sender<Out> {
        self.sender.clone()
    }

    /// Reads and writes until the link is lost, and says why. `on_message` gets what comes, in its order, and must not wait;
    /// `asked` answers requests.
    pub async fn run(self, asked: Arc<dyn Asked>, on_message: impl FnMut(In)) -> LinkLost {
        match self.run_until(std::future::pending(), asked, on_message).await {
            Ended::Lost(why) => why,
            // Nobody asks for it.
            Ended::Stopped(..) => LinkLost::Closed,
        }
    }
}

/// The end of a link, when it is dropped.
struct End<'a, Out>(Option<&'a Shared<Out>>);

impl<Out> End<'_, Out> {
    /// It is not the end.
    fn cancel(mut self) {
        self.0 = None;
    }
}

impl<Out> Drop for End<'_, Out> {
    fn drop(&mut self) {
        let Some(shared) = self.0 else { return };
        let full = shared.queue().full;
        *shared.queue() = Queue { lost: true, full, ..Queue::default() };
        shared.written.notify_waiters();
        shared.waiters.close();
    }
}

impl<Out> Shared<Out> {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Out: Direction> Sender<Out> {
    /// Says something. Never waits; after the link is lost nothing happens. What is too long to travel is not said, and that is
    /// told.
    pub fn put(&self, message: &Out) -> bool {
        let frame = Frame::new(message);
        let fits = frame.is_some();
        frame.into_iter().for_each(|frame| self.put_frame(frame));
        fits
    }

    /// Says what is written down.
    pub fn put_frame(&self, Frame(bytes): Frame) {
        let mut queue = self.0.queue();
        if queue.lost || queue.full {
            return;
        }
        queue.bytes += bytes.len() + FRAME_BYTES;
        queue.full = queue.bytes > QUEUE_BYTES_MAX;
        queue.frames.push_back(bytes);
        let is_first = queue.frames.len() == 1 || queue.full;
        drop(queue);
        if is_first {
            self.0.wake.notify_one();
        }
    }

    /// Whether there is room for what need not be said.
    pub fn has_room(&self) -> bool {
        let queue = self.0.queue();
        !queue.lost && queue.bytes < ROOM_BYTES
    }

    /// Waits for room, or until the link is lost.
    pub async fn room(&self) {
        loop {
            let written = self.0.written.notified();
            if self.is_lost() || self.has_room() {
                return;
            }
            written.await;
        }
    }

    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        self.0.queue().lost
    }

    /// Bytes that wait to be written.
    pub fn waiting_bytes(&self) -> usize {
        self.0.queue().bytes
    }

    /// A delivery has begun that takes so many places. To be called where the link runs.
    pub fn owes(&self, places: u32) {
        // The writer looks at what is delivered from now on.
        if self.0.owed.fetch_add(places, AcqRel) == 0 {
            self.0.wake.notify_one();
        }
    }

    /// It is done. The other end is told with what is written next, when [`TOGETHER`] places are to be told, or after
    /// [`TOLD_AFTER`]: a word for each would cost both ends more than the publication.
    pub fn delivered(&self, places: u32) {
        let before = self.0.delivered.fetch_add(places, AcqRel);
        if before < TOGETHER && before + places >= TOGETHER {
            self.0.wake.notify_one();
        }
    }

    /// Places of deliveries that are not done. While deliveries begin, it may say more.
    pub fn undelivered(&self) -> u32 {
        // In this order: what the writer tells of in between is counted as not done.
        let owed = self.0.owed.load(Acquire);
        owed.saturating_sub(self.0.delivered.load(Acquire))
    }

    /// Asks the other end. It has as long as it likes; whoever gives up drops this.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn request(&self, name: &str, body: Vec<u8>) -> Result<Vec<u8>, Lost> {
        let (number, answer) = self.0.waiters.add()?;
        self.put(&Out::request(Request { number, name: name.into(), body }));
        answer.wait().await
    }
}

/// Reads the first thing that a parent says, before there is a runtime.
///
/// # Errors
/// It does not come, or is something else.
pub fn welcome(socket: &mut UnixStream) -> Result<Welcome, LinkLost> {
    socket.set_read_timeout(Some(WELCOME_TIMEOUT))?;
    let mut length = [0; size_of::<u32>()];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > WELCOME_BYTES_MAX {
        return Err(LinkLost::TooLong(length));
    }
    let mut frame = vec![0; length];
    socket.read_exact(&mut frame)?;
    match rmp_serde::from_slice(&frame)? {
        ToChild::Welcome(welcome) => Ok(welcome),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the parent's first message is no welcome").into()),
    }
}
