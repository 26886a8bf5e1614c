//! NATS: one connection to one server of those that are given, for as long as it lasts.
//!
//! [`Connection::open`] finds a server, logs in, and gives a connection that is ready; [`Connection::run`] reads and writes
//! until it is lost and says why. [`crate::link::keep`] calls again, so everything that must be there again, subscriptions
//! above all, is said anew by who uses it. A [`Client`] is the connection's other end: it can be used by any thread, and
//! waits for nothing unless it says so.
//!
//! The protocol ([`wire`]) is spoken here and not by the crate `async-nats`, which gives each subscription a channel of its
//! own: 4.9 KB, measured with 20,000 of them (version 0.50), where a node may follow a stream for each of its clients. What
//! finds such a channel full is dropped there; its reconnections have a counter and waits that are not ours; and its
//! newest version needs a newer Rust than we do.

mod jetstream;
mod login;
mod names;
mod servers;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::time::{MissedTickBehavior, timeout};

pub use jetstream::{Ack, JetStore, Kept, Limits, StoreError, StoreInfo};
pub use login::LoginError;
pub use names::{Names, OURS, token};
pub use servers::{Servers, Settings};
pub use wire::{Message, Outgoing, WireError};

use wire::{Op, Parser};

/// The server is asked this often whether it is still there. Two questions without an answer, and it is not.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Bytes that wait to be written. Whoever wants to publish more waits ([`Client::room`]) or is refused.
const OUT_BYTES_MAX: usize = 8 << 20;

/// Room in the buffer for one read.
const READ_BYTES: usize = 64 << 10;

/// Why there is no connection, or no more.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// It could not be made.
    #[error("{address}: {why}")]
    Connect {
        /// Of the server that was tried last.
        address: String,
        /// What happened.
        #[source]
        why: Box<NatsError>,
    },
    /// The network.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server has closed the connection; it may have said why.
    #[error("closed by the server{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Closed(Option<String>),
    /// Nothing came for too long.
    #[error("the server does not answer")]
    Silent,
    /// It says what nobody understands.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It wants TLS.
    #[error("it wants TLS, and no certificate is trusted: name one by --nats-tls-ca-cert-path")]
    NoTls,
    /// We cannot say who we are.
    #[error(transparent)]
    Login(#[from] LoginError),
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The connection is lost.
    #[error("the link to NATS is away")]
    Lost,
    /// Too much waits to be written.
    #[error("the link to NATS is too slow")]
    Full,
    /// The server does not take payloads that long.
    #[error("NATS takes payloads of up to {0} bytes: raise its max_payload")]
    TooLong(usize),
    /// There was no answer in time.
    #[error("no answer from NATS")]
    Late,
    /// Nobody answers requests of this kind.
    #[error("nobody answers in NATS: is JetStream on?")]
    Nobody,
}

/// Bytes of both directions, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that is ready. Nothing happens on it before [`run`](Self::run).
pub struct Connection {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    parser: Parser,
    servers: Arc<Servers>,
    client: Client,
}

/// Publishes one message on a connection of its own: everybody who listens gets it, this process too.
///
/// # Errors
/// The connection is not made, or is lost before the server has the message.
pub async fn publish_apart(servers: &Arc<Servers>, subject: &str, payload: &[u8]) -> Result<(), NatsError> {
    let connection = Connection::open(servers).await?;
    let client = connection.client();
    let publish = async {
        let message = Outgoing { subject, payload, ..Outgoing::default() };
        match client.publish(&message) {
            Ok(()) => client.flush().await,
            refused => refused,
        }
    };
    tokio::select! {
        why = connection.run(|_| {}) => Err(why),
        published = publish => published.map_err(|refused| NatsError::Closed(Some(refused.to_string()))),
    }
}

/// The end of a connection that others use.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    /// Held for as long as it takes to copy a message.
    state: Mutex<State>,
    /// There is something to write.
    wake: Notify,
    /// Something was written.
    written: Notify,
    payload_max: usize,
    is_clustered: bool,
    /// Answers to requests come to subjects that begin with this.
    inbox: String,
}

#[derive(Default)]
struct State {
    lost: bool,
    out: BytesMut,
    /// Who waits for the answers to our PINGs.
    pongs: VecDeque<Option<oneshot::Sender<()>>>,
    requests: HashMap<u64, oneshot::Sender<Message>>,
    requested: u64,
}

/// The subscription to answers. Users number theirs from 1.
const INBOX_SID: u64 = 0;

impl Connection {
    /// Tries the servers, one after the other, until one has let us in.
    ///
    /// # Errors
    /// What the last of them said.
    pub async fn open(servers: &Arc<Servers>) -> Result<Connection, NatsError> {
        let opened = servers.open().await?;
        let shared = Shared {
            state: Mutex::default(),
            wake: Notify::new(),
            written: Notify::new(),
            payload_max: opened.info.max_payload,
            is_clustered: opened.info.cluster.is_some(),
            inbox: format!("_INBOX.{:032x}.", rand::random::<u128>()),
        };
        let client = Client(Arc::new(shared));
        client.subscribe(&format!("{}*", client.0.inbox), INBOX_SID);
        let (reader, writer) = tokio::io::split(opened.stream);
        Ok(Connection { reader, writer, parser: opened.parser, servers: Arc::clone(servers), client })
    }

    /// For who uses it.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Reads and writes until the connection is lost. `on_message` gets the messages of all subscriptions in their order
    /// and must not wait.
    pub async fn run(self, on_message: impl FnMut(Message)) -> NatsError {
        let Connection { reader, writer, parser, servers, client } = self;
        let shared = &*client.0;
        // Also when this is dropped: then nobody reads any more.
        let _end = End(shared);
        tokio::select! {
            why = read(reader, parser, &servers, shared, on_message) => why,
            why = write(writer, shared) => why,
            why = watch(shared) => why,
        }
    }
}

/// Whoever waits for something is told that it does not come.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        *self.0.state() = State { lost: true, ..State::default() };
        self.0.written.notify_waiters();
    }
}

async fn read(
    mut reader: ReadHalf<Box<dyn Stream>>,
    mut parser: Parser,
    servers: &Servers,
    shared: &Shared,
    mut on_message: impl FnMut(Message),
) -> NatsError {
    let mut said = None;
    loop {
        loop {
            match parser.next() {
                Ok(Some(Op::Message(message))) if message.sid == INBOX_SID => shared.answered(message),
                Ok(Some(Op::Message(message))) => on_message(message),
                Ok(Some(Op::Ping)) => shared.say(b"PONG\r\n"),
                Ok(Some(Op::Pong)) => shared.pong(),
                Ok(Some(Op::Info(info))) => servers.discovered(&info.connect_urls),
                Ok(Some(Op::Ok)) => {}
                Ok(Some(Op::Error(error))) if is_about_one_thing(&error) => {
                    tracing::warn!(error, "NATS refuses something; check the permissions of its user");
                }
                Ok(Some(Op::Error(error))) => said = Some(error),
                Ok(None) => break,
                Err(error) => return error.into(),
            }
        }
        parser.buffer.reserve(READ_BYTES);
        match reader.read_buf(&mut parser.buffer).await {
            Ok(0) => return NatsError::Closed(said),
            Ok(_) => {}
            Err(error) => return error.into(),
        }
    }
}

/// Errors after which the connection goes on.
fn is_about_one_thing(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    error.starts_with("permissions violation") || error.starts_with("invalid")
}

async fn write(mut writer: WriteHalf<Box<dyn Stream>>, shared: &Shared) -> NatsError {
    loop {
        let out = std::mem::take(&mut shared.state().out);
        if out.is_empty() {
            shared.wake.notified().await;
            continue;
        }
        let written = async {
            writer.write_all(&out).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            return error.into();
        }
        shared.written.notify_waiters();
    }
}

/// Asks the server again and again whether it is there.
async fn watch(shared: &Shared) -> NatsError {
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut state = shared.state();
        if state.pongs.iter().filter(|waiter| waiter.is_none()).count() >= 2 {
            return NatsError::Silent;
        }
        state.ping(None);
        drop(state);
        shared.wake.notify_one();
    }
}

impl State {
    fn ping(&mut self, waiter: Option<oneshot::Sender<()>>) {
        self.out.extend_from_slice(b"PING\r\n");
        self.pongs.push_back(waiter);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, bytes: &[u8]) {
        self.state().out.extend_from_slice(bytes);
        self.wake.notify_one();
    }

    fn pong(&self) {
        let waiter = self.state().pongs.pop_front();
        // One who does not wait any more needs no answer.
        let _ = waiter.flatten().map(|waiter| waiter.send(()));
    }

    fn answered(&self, message: Message) {
        let number = message.subject.strip_prefix(&self.inbox).and_then(|number| number.parse().ok());
        let waiter = number.and_then(|number: u64| self.state().requests.remove(&number));
        let _ = waiter.map(|waiter| waiter.send(message));
    }
}

impl Client {
    /// Whether the server is one of a cluster.
    pub fn is_clustered(&self) -> bool {
        self.0.is_clustered
    }

    /// Wants what is published to a subject, under a number other than 0. On a connection that is lost this does nothing.
    pub fn subscribe(&self, subject: &str, sid: u64) {
        wire::write_subscribe(&mut self.0.state().out, subject, sid);
        self.0.wake.notify_one();
    }

    /// Wants no more of it.
    pub fn unsubscribe(&self, sid: u64) {
        wire::write_unsubscribe(&mut self.0.state().out, sid);
        self.0.wake.notify_one();
    }

    /// Publishes a message, behind all that were published before.
    ///
    /// # Errors
    /// It was not, and why.
    pub fn publish(&self, message: &Outgoing<'_>) -> Result<(), Refused> {
        if message.bytes() > self.0.payload_max {
            return Err(Refused::TooLong(self.0.payload_max));
        }
        let mut state = self.0.state();
        match &state.out {
            _ if state.lost => return Err(Refused::Lost),
            // One that is longer than all of it still passes, alone.
            out if !out.is_empty() && out.len() + message.bytes() > OUT_BYTES_MAX => return Err(Refused::Full),
            _ => message.write(&mut state.out),
        }
        drop(state);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Waits until what is to be written is not much.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn room(&self) -> Result<(), Refused> {
        loop {
            let written = self.0.written.notified();
            {
                let state = self.0.state();
                if state.lost {
                    return Err(Refused::Lost);
                }
                if state.out.len() < OUT_BYTES_MAX / 2 {
                    return Ok(());
                }
            }
            written.await;
        }
    }

    /// Waits until the server has carried out everything that was said before.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn flush(&self) -> Result<(), Refused> {
        let (waiter, answered) = oneshot::channel();
        {
            let mut state = self.0.state();
            if state.lost {
                return Err(Refused::Lost);
            }
            state.ping(Some(waiter));
        }
        self.0.wake.notify_one();
        answered.await.map_err(|_| Refused::Lost)
    }

    /// Publishes a message and waits for the answer to it.
    ///
    /// # Errors
    /// There is none: the request may have been carried out all the same.
    pub async fn request(&self, message: Outgoing<'_>, within: Duration) -> Result<Message, Refused> {
        let (waiter, answer) = oneshot::channel();
        let number = {
            let mut state = self.0.state();
            state.requested += 1;
            let number = state.requested;
            state.requests.insert(number, waiter);
            number
        };
        let _asked = Asked { shared: &self.0, number };
        let reply = format!("{}{number}", self.0.inbox);
        self.publish(&Outgoing { reply: Some(&reply), ..message })?;
        match timeout(within, answer).await {
            Ok(Ok(answer)) if answer.status() == Some(503) => Err(Refused::Nobody),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Refused::Lost),
            Err(_) => Err(Refused::Late),
        }
    }
}

/// A request that is out; forgotten when nobody waits for it.
struct Asked<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.shared.state().requests.remove(&self.number);
    }
}
