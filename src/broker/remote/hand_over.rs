//! What the end of a remote broker at this node gives to another process that goes on as the same node. The storage knows
//! everything else.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::gate::GivenStream;
use super::people::GivenPeople;
use super::store::StoreId;
use super::{AllTurns, RemoteBroker};
use crate::broker::GivenAway;
use crate::link::Turns;
use crate::model::SavedSession;

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GivenRemote {
    /// The generation of the storage, if it is known.
    #[serde(default)]
    epoch: Option<Arc<str>>,
    /// Up to where clients have each stream.
    #[serde(default)]
    streams: Vec<GivenStream>,
    #[serde(default)]
    served: Vec<StoreId>,
    /// Streams, offsets, and how long ago it was.
    #[serde(default)]
    recent: Vec<(Arc<str>, u64, Duration)>,
    /// Numbers of stores go on, or the storage would take them for old ones.
    #[serde(default)]
    last_store: u64,
    #[serde(default)]
    unsaved: Vec<SavedSession>,
    #[serde(default)]
    people: GivenPeople,
    #[serde(default)]
    sent_away: GivenAway,
}

impl RemoteBroker {
    /// What works beside the shards, to be held up in this order.
    pub fn turns(&self) -> [Turns; 4] {
        let AllTurns { saving, telling, leasing, filling } = &self.shared.turns;
        [saving, telling, leasing, filling].map(Turns::clone)
    }

    /// Waits until all questions are answered, and no longer than this.
    pub async fn questions_answered(&self, at_most: Duration) {
        let answered = async {
            while self.shared.jobs.load(Relaxed) > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        // Those that are left are answered later.
        let _ = timeout(at_most, answered).await;
    }

    /// Everything, while all that works beside the shards is held up.
    pub fn given(&self) -> GivenRemote {
        let shared = &*self.shared;
        let (epoch, streams) = shared.gate.given();
        GivenRemote {
            epoch,
            streams,
            served: shared.gate.served(),
            recent: shared.recent.given(),
            last_store: shared.last_store.load(Relaxed),
            unsaved: shared.saves.given(),
            people: shared.people.given(),
            sent_away: shared.sent_away.given(0),
        }
    }

    /// Goes on with it, before anything runs.
    pub fn take_over(&self, given: GivenRemote) {
        let GivenRemote { epoch, streams, served, recent, last_store, unsaved, people, sent_away } = given;
        let shared = &*self.shared;
        shared.gate.take_over(epoch.as_ref(), streams, served);
        shared.recent.take_over(recent);
        shared.last_store.store(last_store, Relaxed);
        for session in unsaved {
            shared.yields.leaves(session.sid, false);
            shared.saves.put(session).into_iter().for_each(|sid| _ = shared.yields.left(sid));
        }
        shared.people.take_over(people);
        shared.sent_away.take_over(sent_away);
    }

    /// All connections of the other process are here.
    pub fn all_are_here(&self) {
        self.shared.gate.forget_inherited();
    }
}
