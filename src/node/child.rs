//! A process that is one of several: its end of the link to the parent.

use std::os::unix::net::UnixStream;

use crate::link::local::messages::Welcome;
use crate::link::local::{self, LinkLost};

/// The link to the parent, before anything runs on it.
pub struct ParentLink {
    /// What all children have alike.
    pub welcome: Welcome,
    /// What comes next on it waits until the node runs.
    pub socket: UnixStream,
}

impl ParentLink {
    /// Hears what the parent says first. Waits for it, at most half a minute.
    ///
    /// # Errors
    /// It does not come, or is something else.
    pub fn greet(mut socket: UnixStream) -> Result<ParentLink, LinkLost> {
        let welcome = local::welcome(&mut socket)?;
        Ok(ParentLink { welcome, socket })
    }
}
