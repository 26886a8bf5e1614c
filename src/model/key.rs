//! Names a slot of a shard in such a way that a reused slot is never mistaken for the old one.

use serde::{Deserialize, Serialize};

/// Where a connection lives: which shard, which slot, and which use of that slot.
///
/// The generation changes each time a slot is reused, so an answer that comes late for a closed
/// connection finds a different generation and goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotKey {
    /// The shard that owns the slot.
    pub shard: u16,
    /// The slot's index within the shard.
    pub index: u32,
    /// How often the slot has been used before, wrapping.
    pub generation: u32,
}
