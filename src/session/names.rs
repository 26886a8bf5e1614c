//! The names a session holds, shared with the other sessions of its shard: for sessions that are written out and
//! read back.

use crate::model::Names;

use super::Session;

impl Session {
    /// Replaces every name by the shared one with the same text, as after reading a session back.
    pub fn share_names(&mut self, names: &mut Names) {
        for subscription in &mut self.subscriptions {
            subscription.identifier = names.get(subscription.identifier.as_str());
            for stream in subscription.streams.iter_mut() {
                *stream = names.get(stream.as_str());
            }
        }
    }

    /// Drops the session, giving back every name it held. Its streams are detached already.
    pub fn release_names(self, names: &mut Names) {
        for subscription in self.subscriptions {
            names.release(subscription.identifier);
            subscription.streams.into_iter().for_each(|stream| names.release(stream));
        }
    }
}
