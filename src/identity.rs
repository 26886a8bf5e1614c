//! Who is this client, and what may it read? Tokens and signed stream names, without a call to the app
//! (`contracts/jwt-and-signed-streams.md`).
//!
//! All of it is pure: the time is an argument, nothing is logged, nothing waits. Every comparison with a
//! secret takes the same time for every wrong answer.

mod jwt;
mod resume_token;
mod router;
mod signed_stream;

pub use crate::model::Secret;
pub use jwt::Jwt;
pub use resume_token::ResumeTokens;
pub use router::{StreamRouter, StreamSettings};
pub use signed_stream::sign_stream;
