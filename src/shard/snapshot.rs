//! Sessions written out and read back while their connections live.
//!
//! A later release hands live sockets with their sessions to a new process. This is the half of that which can be
//! kept true from the first day: a session's whole state is plain data, and a shard goes on with what was read back
//! as if nothing had happened.

use crate::session::Session;

use super::slots::Stage;
use super::{Shard, World};

impl<W: World> Shard<W> {
    /// Writes every session out, reads it back in its place with its topics shared again, and attaches it to its
    /// streams. Nobody outside can tell.
    ///
    /// # Errors
    /// A session that cannot be written or read, or that is another one when it is read back; it stays as it was.
    pub fn rewrite_sessions(&mut self) -> serde_json::Result<()> {
        for index in 0..self.slots.end() {
            let (Stage::Session(session) | Stage::Orphan(session)) = &mut self.slots[index].stage else { continue };
            let written = serde_json::to_vec(session)?;
            let mut read: Session = serde_json::from_slice(&written)?;
            if read != **session {
                return Err(serde::de::Error::custom("a session reads back as another one"));
            }
            session.topics().for_each(|topic| self.hub.detach(index, topic));
            for topic in read.topics() {
                self.hub.attach(index, topic);
            }
            read.share_topics(|identifier, stream| self.hub.topic(identifier, stream));
            **session = read;
        }
        Ok(())
    }
}
