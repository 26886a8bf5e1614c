//! What comes to the old process behind the point of no return, and belongs to the new one: the old one's end.
//!
//! Whoever has something puts it into a queue and goes on, or waits for the new process to say that it has it. A thread sends
//! what is in the queue, another hears what is said. The queue holds what was begun before the change and nothing else: calls
//! that run at the app, and requests of ordinary HTTP, both of which have bounds of their own.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::sync::oneshot;

use crate::broadcast::{Handover, PublishError};
use crate::model::{Call, Publication, RemoteDisconnect};
use crate::os::tcp;
use crate::shard::{Delivery, Incoming, Message, Socket, UNKNOWN_PEER};

use super::protocol::{Forward, LineError, Talk, ToNew, ToOld};

/// The new process, as the parts of the old one see it. Nothing here waits but where a future is given.
pub(in crate::node) trait Successor: Send + Sync {
    /// Publishes there. Done when the new process has handed them to its shards, as a publication here would be.
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_>;

    /// Sends sessions away there.
    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_>;

    /// What was or would have been for a shard here: answers by their old keys, sessions to be given up.
    fn message(&self, message: Message<Socket>);

    /// A connection that turned out to be a WebSocket here.
    fn adopt(&self, incoming: Incoming<Socket>, read: Vec<u8>);

    /// Tells the app there that a session is over: a call that waited here and was not begun.
    fn tell(&self, call: Call);
}

/// The way to the new process.
pub(in crate::node) struct ToSuccessor {
    queue: mpsc::Sender<Queued>,
    number: AtomicU64,
    /// Who waits for what was sent under which number. `None`: the new process has ended.
    waiting: Arc<Mutex<Option<Waiting>>>,
    /// When the new process said that it serves.
    started: Mutex<mpsc::Receiver<u64>>,
    /// What was left in the inbox of one shard may be left in those of others, too.
    delivered: Mutex<Vec<Arc<Delivery>>>,
}

type Waiting = HashMap<u64, oneshot::Sender<Result<(), String>>>;

/// What is in the queue.
struct Queued {
    forward: Forward,
    socket: Option<Socket>,
    /// Told when it is sent.
    sent: Option<oneshot::Sender<()>>,
}

impl ToSuccessor {
    /// Goes on with the channel on which both talked.
    ///
    /// # Errors
    /// Out of threads or descriptors. Before anything is given away.
    pub(super) fn new(talk: &Talk) -> io::Result<ToSuccessor> {
        let (queue, queued) = mpsc::channel::<Queued>();
        let waiting: Arc<Mutex<Option<Waiting>>> = Arc::new(Mutex::new(Some(Waiting::default())));
        let (says, hears) = (Talk(talk.0.try_clone()?), Talk(talk.0.try_clone()?));
        let say = move || {
            for Queued { forward, socket, sent } in queued {
                let socket: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
                if let Err(error) = says.say(&ToNew::Forward(Box::new(forward)), &socket) {
                    tracing::error!(%error, "what is for the new process cannot be sent to it");
                    return;
                }
                if let Some(sent) = sent {
                    // Whoever waited may have gone.
                    let _ = sent.send(());
                }
            }
        };
        thread::Builder::new().name("successor-out".into()).spawn(say)?;
        let known = Arc::clone(&waiting);
        let (starts, started) = mpsc::channel();
        let hear = move || {
            loop {
                match hears.hear::<ToOld>(None) {
                    Ok((ToOld::Taken { number, error }, _)) => {
                        let waiting = lock(&known).as_mut().and_then(|waiting| waiting.remove(&number));
                        waiting.into_iter().for_each(|waiting| drop(waiting.send(error.clone().map_or(Ok(()), Err))));
                    }
                    Ok((ToOld::Started { at_usec }, _)) => drop(starts.send(at_usec)),
                    Ok(_) | Err(LineError::Unreadable(_) | LineError::Silent(_)) => {}
                    Err(LineError::Ended | LineError::Channel(_)) => break,
                }
            }
            // Whoever waits is told by the end of its channel.
            lock(&known).take();
        };
        thread::Builder::new().name("successor-in".into()).spawn(hear)?;
        let started = Mutex::new(started);
        Ok(ToSuccessor { queue, number: AtomicU64::new(0), waiting, started, delivered: Mutex::default() })
    }

    /// Waits until it says that it serves; gives when, on the machine's clock. `None`: it does not.
    pub fn started(&self, patience: Duration) -> Option<u64> {
        lock(&self.started).recv_timeout(patience).ok()
    }

    fn put(&self, forward: Forward, socket: Option<Socket>) {
        // The thread ends only with the new process, and then nobody is there to have it.
        let _ = self.queue.send(Queued { forward, socket, sent: None });
    }

    fn ask(&self, forward: impl FnOnce(u64) -> Forward) -> Handover<'_> {
        let number = self.number.fetch_add(1, Relaxed);
        let (taken, is_taken) = oneshot::channel();
        if let Some(waiting) = lock(&self.waiting).as_mut() {
            waiting.insert(number, taken);
            self.put(forward(number), None);
        }
        Box::pin(async move {
            let ended = || Err("the process that serves now has ended".to_owned());
            is_taken.await.unwrap_or_else(|_| ended()).map_err(PublishError)
        })
    }

    /// Says that nothing more comes. Done when everything is sent.
    pub async fn finish(&self) {
        let (sent, is_sent) = oneshot::channel();
        let _ = self.queue.send(Queued { forward: Forward::Finished {}, socket: None, sent: Some(sent) });
        let _ = is_sent.await;
    }
}

impl Successor for ToSuccessor {
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_> {
        self.ask(|number| Forward::Publish { number, publications })
    }

    fn disconnect(&self, RemoteDisconnect { identifiers, reconnect }: RemoteDisconnect) -> Handover<'_> {
        self.ask(|number| Forward::Disconnect { number, identifiers, reconnect })
    }

    fn message(&self, message: Message<Socket>) {
        match message {
            Message::Answer(answer) => self.put(Forward::answer(answer), None),
            Message::Yield { ticket, .. } => self.put(Forward::Yield(ticket), None),
            Message::Adopt { incoming, read } => self.adopt(incoming, read),
            Message::Disconnect(RemoteDisconnect { identifiers, reconnect }) => {
                self.put(Forward::DisconnectHere { identifiers, reconnect }, None);
            }
            Message::Publication(delivery) => {
                let mut delivered = lock(&self.delivered);
                if !delivered.iter().any(|known| Arc::ptr_eq(known, &delivery)) {
                    self.put(Forward::Deliver(delivery.publication.clone()), None);
                    delivered.push(delivery);
                }
            }
            // It does turn, in its way.
            Message::Turn(answer) => drop(answer.send(())),
            Message::Look(_) | Message::Settings(_) | Message::HandOver(_) | Message::Drain { .. } => {}
        }
    }

    fn adopt(&self, Incoming { socket, listener }: Incoming<Socket>, read: Vec<u8>) {
        let peer = tcp::peer(&socket).unwrap_or(UNKNOWN_PEER);
        self.put(Forward::Adopt { peer, listener, read: ByteBuf::from(read) }, Some(socket));
    }

    fn tell(&self, call: Call) {
        self.put(Forward::Tell(Box::new(call)), None);
    }
}

/// A panic cannot leave what is locked half changed.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
