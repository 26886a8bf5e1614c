//! What the node does for its shards.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::backend::Backend;
use crate::broadcast::Broadcast;
use crate::broker::{Broker, Departure, PRESENT_BYTES_MAX, Place, Resumption};
use crate::http::HttpServer;
use crate::hub::StreamChange;
use crate::model::{
    BrokerError, BrokerQuestion, BrokerReply, Call, PresenceChange, Publication, Question, Reply, Request,
    SavedSession, Sid, SlotKey,
};
use crate::shard::{Inbox, Incoming, Message, Services, Socket};

use super::counts::Counts;
use super::publish::Pipeline;

/// What all shards of a node share. Nothing in it holds it in turn, so it goes with the last shard.
pub(super) struct Shared {
    pub backend: Arc<Backend>,
    pub broadcast: Arc<Broadcast>,
    pub pipeline: Arc<Pipeline>,
    pub counts: Arc<Counts>,
    /// Of the shards, by number.
    pub inboxes: Arc<[Arc<Inbox>]>,
    /// Serves sockets that turned out to be ordinary HTTP, on `runtime`.
    pub http: HttpServer,
    pub runtime: Handle,
}

/// One shard's end of it.
pub(super) struct NodeServices {
    pub shard: u16,
    pub shared: Arc<Shared>,
}

impl NodeServices {
    /// What a broker with memory knows it knows at once, and yet the answer comes through the inbox: behind all
    /// publications that it covers.
    fn ask_broker(&self, key: SlotKey, question: BrokerQuestion) -> Option<Result<BrokerReply, BrokerError>> {
        let Pipeline { broker, clock, .. } = &*self.shared.pipeline;
        let broker = match broker {
            Broker::Local(local) => local,
            Broker::Remote(remote) => {
                remote.ask(key, question);
                return None;
            }
            Broker::Parent(parent) => return parent.ask(key, question),
        };
        let Some(sessions) = broker.sessions() else { return Some(Err(BrokerError::NotKept)) };
        let result = match question {
            BrokerQuestion::History { streams, since } => broker.history(&streams, &since, clock.now()),
            BrokerQuestion::Present { stream, records } => {
                broker.present(&stream, records, PRESENT_BYTES_MAX).map(BrokerReply::Present)
            }
            BrokerQuestion::Resume(ticket) => match sessions.resume(ticket, key, clock.now(), &broker.metrics) {
                Resumption::Now(saved) => Ok(BrokerReply::Resumed(saved)),
                Resumption::AfterYield(place, ticket) => {
                    self.shared.pipeline.ask_to_yield(place, ticket);
                    return None;
                }
            },
        };
        self.shared.pipeline.answer(key, result);
        None
    }

    fn tell_of(&self, departure: Option<Departure>) {
        if let Some(Departure { key, saved }) = departure {
            self.shared.pipeline.answer(key, Ok(BrokerReply::Resumed(saved)));
        }
    }
}

impl Services<Socket> for NodeServices {
    fn ask(&mut self, key: SlotKey, sid: Sid, question: Question) -> Option<Reply> {
        match question {
            Question::App(request) => {
                self.shared.backend.submit(Call { key, sid, request }).err().map(|error| Reply::App(Err(error)))
            }
            Question::Broker(question) => self.ask_broker(key, question).map(Reply::Broker),
            Question::Followed(streams) => self.shared.pipeline.ask_followed(key, &streams),
        }
    }

    fn cancel(&mut self, key: SlotKey) {
        self.shared.backend.cancel(key);
    }

    fn tell(&mut self, key: SlotKey, sid: Sid, request: Request) {
        // A full queue has counted the call as dropped.
        let _ = self.shared.backend.disconnect(Call { key, sid, request });
    }

    fn publish(&mut self, publication: Publication) {
        self.shared.broadcast.whisper(publication);
    }

    fn change_presence(&mut self, sid: Sid, stream: &str, change: PresenceChange) {
        self.shared.pipeline.change_presence(sid, stream, change);
    }

    fn resident(&mut self, sid: Sid, index: u32) {
        let place = Place { shard: self.shard, index };
        match &self.shared.pipeline.broker {
            Broker::Local(local) => local.sessions().iter().for_each(|sessions| sessions.resident(sid, place)),
            Broker::Remote(remote) => remote.resident(sid, place),
            Broker::Parent(parent) => parent.resident(sid, place),
        }
    }

    fn departed(&mut self, sid: Sid, saved: Option<Box<SavedSession>>) {
        let Pipeline { broker, clock, .. } = &*self.shared.pipeline;
        match broker {
            Broker::Local(local) => {
                let sessions = local.sessions();
                self.tell_of(sessions.and_then(|sessions| sessions.departed(sid, saved, clock.now(), &local.metrics)));
            }
            Broker::Remote(remote) => remote.departed(sid, saved),
            Broker::Parent(parent) => parent.departed(sid, saved),
        }
    }

    fn stays(&mut self, sid: Sid) {
        match &self.shared.pipeline.broker {
            Broker::Local(local) => {
                self.tell_of(local.sessions().and_then(|sessions| sessions.stays(sid, &local.metrics)));
            }
            Broker::Remote(remote) => remote.stays(sid),
            Broker::Parent(parent) => parent.stays(sid),
        }
    }

    fn not_here(&mut self, sid: Sid, index: u32) {
        let from = Place { shard: self.shard, index };
        match &self.shared.pipeline.broker {
            Broker::Local(local) => match local.sessions().and_then(|sessions| sessions.moved(sid, from)) {
                Some((place, ticket)) => self.shared.pipeline.ask_to_yield(place, ticket),
                // It has ended, and whoever waited has heard of that; or it is lost.
                None => self.stays(sid),
            },
            Broker::Remote(remote) => remote.not_here(sid, from),
            Broker::Parent(parent) => parent.not_here(sid, from),
        }
    }

    fn may_go_on(&mut self, saved: &SavedSession) -> bool {
        match &self.shared.pipeline.broker {
            Broker::Local(local) => local.sessions().is_some_and(|sessions| sessions.may_go_on(saved)),
            Broker::Remote(remote) => remote.may_go_on(saved),
            Broker::Parent(parent) => parent.may_go_on(saved),
        }
    }

    fn follow(&mut self, stream: &str, change: StreamChange) -> u64 {
        self.shared.pipeline.follow(stream, change, self.shard)
    }

    fn unfollow(&mut self, stream: &str, change: StreamChange) {
        self.shared.pipeline.unfollow(stream, change, self.shard);
    }

    fn identity_came(&mut self, identifiers: &str) {
        self.shared.counts.identity_came(identifiers);
    }

    fn identity_left(&mut self, identifiers: &str) {
        self.shared.counts.identity_left(identifiers);
    }

    fn try_open(&mut self) -> bool {
        self.shared.counts.try_open()
    }

    fn reopened(&mut self) {
        self.shared.counts.reopened();
    }

    fn closed(&mut self) {
        self.shared.counts.closed();
    }

    fn serve_http(&mut self, incoming: Incoming<Socket>, read: Vec<u8>) -> Result<(), Socket> {
        let Incoming { socket, listener } = incoming;
        let http = self.shared.http.clone();
        let inbox = Arc::clone(&self.shared.inboxes[usize::from(self.shard)]);
        let stream = socket.into_stream();
        // The server bounds how many it serves and turns the others away at once. Taken in here: a shutdown waits for what the
        // shards have handed over.
        let place = http.enter();
        self.shared.runtime.spawn(async move {
            let Ok(socket) = tokio::net::TcpStream::from_std(stream) else { return };
            let Some((socket, read)) = http.serve_in(place, socket, read).await else { return };
            // Its peer asks for a WebSocket now. That takes it from the runtime, too.
            if let Ok(stream) = socket.into_std() {
                let incoming = Incoming { socket: Socket::from(stream), listener };
                inbox.put(Message::Adopt { incoming, read });
            }
        });
        Ok(())
    }
}
