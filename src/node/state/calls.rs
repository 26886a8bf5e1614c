//! Calls to the app that were taken and not started: the new process makes them.

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, HeldCalls};
use crate::model::{Call, SlotKey};

use super::Moved;

/// The calls.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct GivenCalls(HeldCalls);

impl GivenCalls {
    /// Of a backend that is held.
    pub fn of(backend: &Backend) -> GivenCalls {
        GivenCalls(backend.held())
    }

    /// Makes them; gives the old keys of their sessions. Those of sessions that are not here are forgotten: nobody waits for
    /// their answers.
    pub fn make(&self, backend: &Backend, moved: &Moved) -> Vec<SlotKey> {
        let mut made = Vec::new();
        for call in &self.0.disconnects {
            // A full queue has counted it as dropped.
            let _ = backend.disconnect(call.clone());
        }
        for Call { key, sid, request } in &self.0.of_sessions {
            let Some(&new) = moved.get(key) else { continue };
            // Two processes with one configuration have room for equally many.
            match backend.submit(Call { key: new, sid: *sid, request: request.clone() }) {
                Ok(()) => made.push(*key),
                Err(error) => tracing::warn!(%error, %sid, "a call of the process before this one is not made"),
            }
        }
        made
    }
}
