use futures_util::FutureExt;

use super::gate::Want;
use super::*;
use crate::broker::{RedisBrokerSettings, RedisStore};
use crate::link::LinkState;
use crate::link::redis::{Redis, RedisSettings};
use crate::model::{ServerUrl, UrlForm};

/// Nobody is told anything.
struct Nobody;

impl Outlet for Nobody {
    fn deliver(&self, _publication: Publication, _permit: Option<OwnedSemaphorePermit>) {}
    fn nobody_follows(&self) {}
    fn announce(&self, _publication: &Publication) {}
    fn command(&self, _name: &'static str, _payload: String) {}
    fn answer(&self, _key: SlotKey, _result: Result<BrokerReply, BrokerError>) {}
    fn ask_to_yield(&self, _place: Place, _ticket: ResumeTicket) {}
    fn now(&self) -> Now {
        Now::default()
    }
}

/// A broker whose storage is never reached.
fn broker() -> RemoteBroker {
    let servers = vec![ServerUrl::parse("redis://127.0.0.1:1", UrlForm::REDIS).unwrap()];
    let redis = Redis::new(&RedisSettings { servers, ..RedisSettings::default() }).unwrap();
    let settings = RedisBrokerSettings {
        prefix: "p".into(),
        history_limit: 100,
        history_ttl: Duration::from_secs(60),
        sessions_ttl: Duration::from_secs(60),
        channels: None,
        ask_sentinels_every: Duration::from_secs(60),
    };
    let node = NodeId::from_bits(1);
    let store = RedisStore::new(Arc::new(redis), Arc::new(LinkState::new("redis_broker", "")), settings, node);
    let settings = RemoteSettings {
        sessions_ttl: Duration::from_secs(60),
        sessions_bytes_max: 1 << 20,
        presence_ttl: Duration::from_secs(15),
        presence_bytes_max: 1 << 20,
        counters_ttl: Duration::from_secs(600),
        store_announces: true,
    };
    RemoteBroker::new(store, settings, node, Arc::new(Nobody)).0
}

#[test]
fn a_counter_that_was_read_before_the_subscription_is_read_again() {
    let broker = broker();
    let wanted = || broker.shared.gate.wanted(Want::Open, 10).now_or_never();
    assert!(broker.follow("s", None).is_some());
    // Nobody waits for a link that is away or slow.
    broker.subscribed("s");
    assert_eq!(wanted(), Some(vec!["s".into()]));
    // The answer is on its way, and does not count what is published before this.
    broker.subscribed_again("s");
    assert_eq!(wanted(), Some(vec!["s".into()]));
    broker.unfollow("s");
    broker.subscribed_again("s");
    assert_eq!(wanted(), None, "nobody follows it");
}
