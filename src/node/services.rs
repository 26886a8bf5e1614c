//! What the node does for its shards.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::backend::Backend;
use crate::broadcast::Broadcast;
use crate::http::HttpServer;
use crate::hub::StreamKey;
use crate::model::{Call, Publication, Question, Reply, Request, Sid, SlotKey};
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

impl Services<Socket> for NodeServices {
    fn ask(&mut self, key: SlotKey, sid: Sid, question: Question) -> Option<Reply> {
        match question {
            Question::App(request) => {
                self.shared.backend.submit(Call { key, sid, request }).err().map(|error| Reply::App(Err(error)))
            }
            Question::Broker(question) => self.shared.pipeline.broker.ask(&question).map(Reply::Broker),
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

    fn follow(&mut self, stream: StreamKey) {
        self.shared.pipeline.followers.follow(stream, self.shard);
    }

    fn unfollow(&mut self, stream: StreamKey) {
        self.shared.pipeline.followers.unfollow(stream, self.shard);
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
        let Incoming { socket, peer, listener } = incoming;
        let http = self.shared.http.clone();
        let inbox = Arc::clone(&self.shared.inboxes[usize::from(self.shard)]);
        let stream = socket.into_stream();
        // The server bounds how many it serves and turns the others away at once.
        self.shared.runtime.spawn(async move {
            let Ok(socket) = tokio::net::TcpStream::from_std(stream) else { return };
            let Some((socket, read)) = http.serve(socket, read).await else { return };
            // Its peer asks for a WebSocket now. That takes it from the runtime, too.
            if let Ok(stream) = socket.into_std() {
                let incoming = Incoming { socket: Socket::from(stream), peer, listener };
                inbox.put(Message::Adopt { incoming, read });
            }
        });
        Ok(())
    }
}
