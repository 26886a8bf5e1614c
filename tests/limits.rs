//! The real program at its limits, as an operator and a hostile client see it: no descriptors left, too many clients,
//! clients that say nothing or read nothing, messages that break the rules, signals, boot, and the metrics that have
//! to tell of all of it.
//!
//! Every test starts a server of its own on a free port. The peers are plain sockets and tungstenite, not our codec.

#![allow(clippy::disallowed_methods, reason = "these tests wait for a process of its own, which has its own clock")]

#[path = "limits/admin.rs"]
mod admin;
#[path = "limits/app.rs"]
mod app;
#[path = "limits/boot.rs"]
mod boot;
#[path = "limits/bounds.rs"]
mod bounds;
#[path = "limits/capacity.rs"]
mod capacity;
#[path = "limits/client.rs"]
mod client;
#[path = "limits/descriptors.rs"]
mod descriptors;
#[path = "limits/handshakes.rs"]
mod handshakes;
#[path = "limits/http.rs"]
mod http;
#[path = "limits/idle.rs"]
mod idle;
#[path = "limits/late.rs"]
mod late;
#[path = "limits/log.rs"]
mod log;
#[path = "limits/messages.rs"]
mod messages;
#[path = "limits/metrics.rs"]
mod metrics;
#[path = "limits/missed.rs"]
mod missed;
#[path = "limits/server.rs"]
mod server;
#[path = "limits/shutdown.rs"]
mod shutdown;
#[path = "limits/signals.rs"]
mod signals;
#[path = "limits/slow.rs"]
mod slow;
