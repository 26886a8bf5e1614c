//! What the shards share: the ways out of them.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use std::hash::BuildHasher;
use tokio::runtime::Handle;

use crate::backend::Backend;
use crate::broadcast::Broadcast;
use crate::http::HttpServer;
use crate::model::{Call, CallError, Publication, SlotKey};
use crate::shard::Neighbours;

/// The ways out of all shards.
pub(super) struct Wires {
    backend: Arc<Backend>,
    broadcast: Arc<Broadcast>,
    http: Arc<OnceLock<HttpServer>>,
    runtime: Handle,
    open: AtomicU64,
    open_max: u64,
    /// On how many shards there are sessions with these connection identifiers, by 48 bits of their hash: with a
    /// million identities, one run in 500 counts a single one too few. An entry is 8 bytes.
    identities: DashMap<[u8; 6], u16, RandomState>,
    hasher: RandomState,
}

impl Wires {
    pub fn new(
        backend: Arc<Backend>,
        broadcast: Arc<Broadcast>,
        http: Arc<OnceLock<HttpServer>>,
        runtime: Handle,
        open_max: u64,
    ) -> Wires {
        Wires {
            backend,
            broadcast,
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
}

impl Neighbours for Wires {
    fn call(&self, call: Call) -> Result<(), CallError> {
        self.backend.submit(call)
    }

    fn cancel(&self, key: SlotKey) {
        self.backend.cancel(key);
    }

    fn disconnect(&self, call: Call) {
        // A full queue has counted the call as dropped.
        let _ = self.backend.disconnect(call);
    }

    fn hand_over(&self, socket: TcpStream, _peer: SocketAddr, read: Vec<u8>) -> Result<(), TcpStream> {
        let Some(http) = self.http.get().cloned() else { return Err(socket) };
        // It bounds how many it serves and turns the others away at once.
        self.runtime.spawn(async move {
            if let Ok(socket) = tokio::net::TcpStream::from_std(socket) {
                http.serve(socket, read).await;
            }
        });
        Ok(())
    }

    fn publish(&self, publication: Publication) {
        self.broadcast.whisper(publication);
    }

    fn identifiers_present(&self, _shard: u16, identifiers: &str, present: bool) {
        let [hash @ .., _, _] = self.hasher.hash_one(identifiers).to_le_bytes();
        if present {
            *self.identities.entry(hash).or_default() += 1;
        } else if let dashmap::Entry::Occupied(mut entry) = self.identities.entry(hash) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn count_open(&self, open: bool) -> bool {
        if !open {
            self.open.fetch_sub(1, Relaxed);
            return true;
        }
        let fits = self.open.fetch_add(1, Relaxed) < self.open_max;
        if !fits {
            self.open.fetch_sub(1, Relaxed);
        }
        fits
    }
}
