//! What the node does for its shards.

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use tokio::runtime::Handle;

use crate::backend::Backend;
use crate::broadcast::Broadcast;
use crate::http::HttpServer;
use crate::hub::StreamKey;
use crate::model::{Call, Publication, Question, Reply, Request, Sid, SlotKey};
use crate::shard::{Services, Socket};

use super::publish::Pipeline;

/// What all shards of a node share.
pub(super) struct Shared {
    backend: Arc<Backend>,
    broadcast: Arc<Broadcast>,
    pipeline: Arc<Pipeline>,
    http: Arc<OnceLock<HttpServer>>,
    runtime: Handle,
    open: AtomicU64,
    open_max: u64,
    /// On how many shards there are sessions with these connection identifiers, by 48 bits of their hash: with a
    /// million identities, one run in 500 counts a single one too few. An entry is 8 bytes.
    identities: DashMap<[u8; 6], u16, RandomState>,
    hasher: RandomState,
}

impl Shared {
    pub fn new(
        backend: Arc<Backend>,
        broadcast: Arc<Broadcast>,
        pipeline: Arc<Pipeline>,
        http: Arc<OnceLock<HttpServer>>,
        runtime: Handle,
        open_max: u64,
    ) -> Shared {
        Shared {
            backend,
            broadcast,
            pipeline,
            http,
            runtime,
            open: AtomicU64::new(0),
            open_max,
            identities: DashMap::with_hasher(RandomState::default()),
            hasher: RandomState::default(),
        }
    }

    /// WebSockets that are open.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// Distinct connection identifiers.
    pub fn identities(&self) -> usize {
        self.identities.len()
    }

    fn identity(&self, identifiers: &str) -> [u8; 6] {
        let [hash @ .., _, _] = self.hasher.hash_one(identifiers).to_le_bytes();
        hash
    }
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
        let identity = self.shared.identity(identifiers);
        *self.shared.identities.entry(identity).or_default() += 1;
    }

    fn identity_left(&mut self, identifiers: &str) {
        if let dashmap::Entry::Occupied(mut entry) = self.shared.identities.entry(self.shared.identity(identifiers)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn try_open(&mut self) -> bool {
        let fits = self.shared.open.fetch_add(1, Relaxed) < self.shared.open_max;
        if !fits {
            self.shared.open.fetch_sub(1, Relaxed);
        }
        fits
    }

    fn reopened(&mut self) {
        self.shared.open.fetch_add(1, Relaxed);
    }

    fn closed(&mut self) {
        self.shared.open.fetch_sub(1, Relaxed);
    }

    fn serve_http(&mut self, socket: Socket, _peer: SocketAddr, read: Vec<u8>) -> Result<(), Socket> {
        let Some(http) = self.shared.http.get().cloned() else { return Err(socket) };
        let stream = socket.into_stream();
        // The server bounds how many it serves and turns the others away at once.
        self.shared.runtime.spawn(async move {
            if let Ok(socket) = tokio::net::TcpStream::from_std(stream) {
                http.serve(socket, read).await;
            }
        });
        Ok(())
    }
}
