//! Calls to the app that were taken and not started: the new process makes them.

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, HeldCalls};
use crate::model::Call;

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

    /// Makes them. Those of sessions that are not here are forgotten: nobody waits for their answers.
    pub fn make(&self, backend: &Backend, moved: &Moved) {
        for call in &self.0.disconnects {
            // A full queue has counted it as dropped.
            let _ = backend.disconnect(call.clone());
        }
        for Call { key, sid, request } in &self.0.of_sessions {
            let Some(&key) = moved.get(key) else { continue };
            // Two processes with one configuration have room for equally many.
            if let Err(error) = backend.submit(Call { key, sid: *sid, request: request.clone() }) {
                tracing::warn!(%error, %sid, "a call of the process before this one is not made");
            }
        }
    }
}
