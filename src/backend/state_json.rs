//! Channel states as JSON text: Disconnect carries one per channel (`contracts/rpc-grpc.md` section 2).

use serde::Serializer;

use crate::model::{ChannelIdentifier, State};

/// The JSON object of each state that has anything in it.
pub(super) fn non_empty(subscriptions: &[(ChannelIdentifier, State)]) -> impl Iterator<Item = (&str, String)> {
    let filled = subscriptions.iter().filter(|(_, state)| !state.is_empty());
    filled.map(|(identifier, state)| (&**identifier, text(state)))
}

fn text(state: &State) -> String {
    let mut json = Vec::new();
    // Neither writing to memory nor a map of texts can fail.
    let _ = serde_json::Serializer::new(&mut json).collect_map(state.iter());
    String::from_utf8(json).unwrap_or_default()
}
