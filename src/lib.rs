//! Cableway holds very many WebSocket connections on one machine, hands what clients say to ordinary
//! app servers over RPC, and delivers what the apps broadcast.
//!
//! The modules stand on floors and use only floors below their own; `ARCHITECTURE.md` has the map and
//! `tests/floors.rs` keeps it true.
// Elsewhere this crate is empty, and `main.rs` says why: one clear line instead of errors about sockets.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

// Floor 0: words.
pub mod model;

// Floor 1: languages and the machine.
pub mod config;
pub mod identity;
pub mod link;
pub mod os;
pub mod proto;
pub mod telemetry;

// Floor 2: decisions.
pub mod doctor;
pub mod history;
pub mod hub;
pub mod presence;
pub mod session;

// Floor 3: things that wait.
pub mod backend;
pub mod broadcast;
pub mod broker;
pub mod cluster;
pub mod shard;

// Floor 4: ordinary HTTP.
pub mod http;

// Floor 5: assembly.
pub mod cli;
pub mod demo;
pub mod node;
