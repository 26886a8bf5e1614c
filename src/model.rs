//! The words the rest of the server speaks: who is connected, what a client asked, what the app answered,
//! why a connection ended.
//!
//! Plain data only. Nothing here knows a socket, a clock, a lock or a wire format; every other module may
//! use this one and this one uses none of them.

pub mod admission;
pub mod close;
pub mod env;
mod index_set;
pub mod key;
pub mod name_hasher;
mod node_id;
pub mod now;
pub mod options;
pub mod path;
pub mod presence;
pub mod publication;
pub mod question;
pub mod resume;
pub mod rpc;
pub mod secret;
#[cfg(test)]
pub mod seeded;
pub mod server_url;
pub mod shared_text;
pub mod sid;
pub mod state;
pub mod text;
mod text_pair;
pub mod topic;

pub use admission::{Routed, TokenOutcome};
pub use close::{CloseCause, Disconnect, DisconnectReason, Ending, Side};
pub use env::Env;
pub(crate) use index_set::{IndexSet, Keyed, shrink};
pub use key::SlotKey;
pub use name_hasher::NameHasher;
pub use node_id::NodeId;
pub use now::{Now, TICK_MS, Tick, moved_tick, tick, tick_after, tick_phase};
pub use options::{DisconnectMode, PingPrecision, Scheme};
pub use path::{PathPattern, PathPatternError};
pub use presence::PresenceChange;
pub use publication::{Publication, RemoteDisconnect};
pub use question::{
    Answer, BrokerError, BrokerQuestion, BrokerReply, HistoryRequest, Missed, MissedSide, Position, Question, Reply,
};
pub use resume::{Admission, ResumeTicket, SavedSession, SavedSubscription};
pub use rpc::{AppReply, Call, CallError, CommandKind, CommandReply, ConnectReply, Request, Status};
pub use secret::Secret;
pub use server_url::{ServerUrl, UrlForm};
pub use shared_text::SharedText;
pub use sid::Sid;
pub use state::{State, StateChanges};
pub use text::floor_char_boundary;
pub use topic::{ChannelIdentifier, Topic};
