//! The broker in Redis (6.2 or newer, or Valkey): what all nodes of a cluster keep together.
//!
//! Everything that must happen at once happens in a script. Names of keys, after `--broker-prefix`:
//!
//! | key | what |
//! | --- | --- |
//! | `:s:{STREAM}` | the history: a Redis stream whose ids are the offsets |
//! | `:c:{STREAM}` | a hash: the newest offset (`o`) and its epoch (`e`), where the count (`b`) and the epoch (`f`, if not there) began, the last store of each node (`n:NODE`) |
//! | `:epoch` | the generation of the storage |
//! | `:r:{SID}` | a session that waits for its client, with its time to live |
//! | `:x:{HASH}` | when identities with this hash were sent away |
//! | `:p:{STREAM}` | a hash of who is present: sessions (`s:SID`), how many there are of an id (`c:ID`), what is told (`i:ID`) |
//! | `:nodes` | when the lease of each node ends |
//! | `:q:{NODE}` | the streams with somebody of a node |
//!
//! In a Redis Cluster the keys of one stream are on one server, by the part in braces.
//!
//! **What Redis forgets.** Redis may lose the last of what it has acknowledged: at a failover, or at a crash (with
//! `appendfsync everysec`, a second). A position that was told to a client would then be given out again for another message.
//! Therefore each time that the link comes back a node looks whether its last stores are there, and the streams that it
//! follows are no shorter than they were. Redis loses an end and nothing in between, so if they are there, all is. If one is
//! not, the storage gets a new epoch, and no position of the old one is taken any more.

mod link;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redis::{FromRedisValue, RedisError, RedisResult, Script, Value};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use link::{Call, Link, new_epoch};

use super::remote::store::{
    Count, Entry, From, LEASE, Lease, Person, Presence, Reach, Read, Remembered, Store, StoreId, Stored, Trouble,
    Unstored,
};
use super::sent_away::ON_THE_WAY;
use crate::link::redis::{Connection, Redis};
use crate::link::{LinkState, keep};
use crate::model::{Admission, NodeId, Position, Publication, ResumeTicket, SavedSession, Sid};
use crate::proto::json;
use crate::proto::publication::between_nodes;

/// What the broker in Redis is told by the configuration.
#[derive(Clone, Debug)]
pub struct RedisBrokerSettings {
    /// Begins the name of every key (`--broker-prefix`).
    pub prefix: String,
    /// Messages kept of one stream (`--history-limit`).
    pub history_limit: u32,
    /// How long they are kept after the last one (`--history-ttl`).
    pub history_ttl: Duration,
    /// How long a session is kept (`--sessions-ttl`).
    pub sessions_ttl: Duration,
    /// The channels to which publications are published when they are stored; none where another medium than Redis tells the
    /// nodes.
    pub channels: Option<Channels>,
    /// How often sentinels are asked for the master.
    pub ask_sentinels_every: Duration,
}

/// The channels of streams in Redis.
#[derive(Clone, Debug)]
pub struct Channels {
    /// Begins their names (`--pubsub-prefix`).
    pub prefix: String,
    /// Streams whose channels are those of servers: nothing is published there.
    pub reserved: Vec<String>,
}

/// The scripts; see their files.
struct Scripts {
    store: Script,
    read: Script,
    epoch: Script,
    save: Script,
    take: Script,
    send_away: Script,
    presence: Script,
    sweep: Script,
    lease: Script,
}

impl Default for Scripts {
    fn default() -> Scripts {
        Scripts {
            store: Script::new(concat!(include_str!("redis/stream.lua"), include_str!("redis/store.lua"))),
            read: Script::new(concat!(include_str!("redis/stream.lua"), include_str!("redis/read.lua"))),
            epoch: Script::new(include_str!("redis/epoch.lua")),
            save: Script::new(include_str!("redis/save.lua")),
            take: Script::new(include_str!("redis/take.lua")),
            send_away: Script::new(include_str!("redis/send_away.lua")),
            presence: Script::new(include_str!("redis/presence.lua")),
            sweep: Script::new(include_str!("redis/sweep.lua")),
            lease: Script::new(include_str!("redis/lease.lua")),
        }
    }
}

/// Everything in Redis.
pub struct RedisStore {
    redis: Arc<Redis>,
    state: Arc<LinkState>,
    settings: RedisBrokerSettings,
    node: NodeId,
    scripts: Scripts,
    reach: watch::Sender<Reach>,
    /// Held to copy or to replace it.
    link: Mutex<Link>,
    /// The link does not work.
    broken: Notify,
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

fn bad_answer() -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "a script gave what it never gives").into()
}

impl RedisStore {
    /// One that is not connected yet.
    pub fn new(redis: Arc<Redis>, state: Arc<LinkState>, settings: RedisBrokerSettings, node: NodeId) -> RedisStore {
        RedisStore {
            redis,
            state,
            settings,
            node,
            scripts: Scripts::default(),
            reach: watch::Sender::new(Reach::Down(Instant::now())),
            link: Mutex::default(),
            broken: Notify::new(),
        }
    }

    /// This process.
    pub fn node(&self) -> NodeId {
        self.node
    }

    fn key(&self, kind: char, name: &str) -> String {
        let prefix = &self.settings.prefix;
        // Of a name that begins so the braces would hold nothing, and its keys would be anywhere in a cluster.
        if name.starts_with('}') {
            format!("{prefix}:{kind}:{{*}}{name}")
        } else {
            format!("{prefix}:{kind}:{{{name}}}")
        }
    }

    fn epoch_key(&self) -> String {
        format!("{}:epoch", self.settings.prefix)
    }

    /// The keys of a stream, and that of the epoch where it can be read together with them.
    fn stream_keys(&self, stream: &str, connection: &Connection) -> Vec<String> {
        let mut keys = vec![self.key('s', stream), self.key('c', stream)];
        if matches!(connection, Connection::One(_)) {
            keys.push(self.epoch_key());
        }
        keys
    }

    fn channel(&self, stream: &str) -> String {
        let channels = self.settings.channels.as_ref();
        let channels = channels.filter(|channels| !channels.reserved.iter().any(|reserved| reserved == stream));
        channels.map_or_else(String::new, |channels| format!("{}{stream}", channels.prefix))
    }

    async fn counts_by(&self, connection: &Connection, streams: &[Arc<str>]) -> RedisResult<Vec<Count>> {
        let command = |stream: &Arc<str>| {
            let mut command = redis::cmd("HMGET");
            command.arg(self.key('c', stream)).arg(&["o", "b", "e", "f"]);
            command
        };
        let count = |answer: RedisResult<Value>| {
            type Fields = (Option<u64>, Option<u64>, Option<String>, Option<u64>);
            let (head, base, epoch, before) = Fields::from_redis_value(answer?)?;
            let base = base.unwrap_or(0);
            let begun = epoch.map(|epoch| (epoch.into(), before.unwrap_or(base)));
            Ok(Count { head: head.unwrap_or(0), base, begun })
        };
        let commands = streams.iter().map(command).enumerate().collect();
        self.send(connection, commands).await.into_iter().map(count).collect()
    }

    /// The epoch that an answer came with is that of the storage.
    fn epoch(&self, epoch: &str) -> Arc<str> {
        let mut link = self.link();
        if *link.epoch != *epoch {
            link.epoch = epoch.into();
            let (epoch, remembered) = (Arc::clone(&link.epoch), link.remembered.clone());
            drop(link);
            remembered.iter().for_each(|remembered| remembered.epoch(&epoch));
            return epoch;
        }
        Arc::clone(&link.epoch)
    }

    fn store_call(&self, unstored: &Unstored, epoch: &str, connection: &Connection) -> Call<'_> {
        let Unstored { seq, publication } = unstored;
        let Publication { stream, message, kind, exclude, .. } = publication;
        let settings = &self.settings;
        let beginning = settings.channels.as_ref().map(|_| between_nodes::write_beginning(publication));
        Call::new(&self.scripts.store, self.stream_keys(stream, connection))
            .arg(epoch)
            .number(self.node)
            .number(seq)
            .arg(message.as_bytes())
            .arg(kind.as_ref().map_or(&b""[..], |kind| kind.as_bytes()))
            .arg(exclude.map_or_else(String::new, |sid| sid.to_string()))
            .number(settings.history_limit)
            .number(millis(settings.history_ttl))
            .arg(self.channel(stream))
            .arg(beginning.unwrap_or_default())
    }

    fn stored(&self, result: RedisResult<Value>) -> RedisResult<Stored> {
        let (epoch, offset, head, is_again) = <(String, Option<u64>, u64, bool)>::from_redis_value(result?)?;
        let epoch = self.epoch(&epoch);
        Ok(offset.map_or(Stored::Before(head), |offset| Stored::At { epoch, offset, is_again }))
    }

    /// Ends the presence of everybody on a node. Gives who has gone.
    async fn sweep(&self, node: &str) -> Result<Vec<(Box<str>, Box<str>)>, Trouble> {
        let mut connection = self.connection()?;
        let streams = redis::cmd("SMEMBERS").arg(self.key('q', node)).query_async::<Vec<String>>(&mut connection).await;
        let mut gone = Vec::new();
        for stream in streams.map_err(|error| self.trouble(error))? {
            let call = Call::new(&self.scripts.sweep, vec![self.key('p', &stream)])
                .arg(node)
                .arg(self.channel(&stream))
                .arg(json::string(&stream));
            let ids: Vec<String> = self.asked(call).await?;
            gone.extend(ids.into_iter().map(|id| (stream.as_str().into(), id.into())));
        }
        let mut over = redis::cmd("DEL");
        over.arg(self.key('q', node));
        over.exec_async(&mut connection).await.map_err(|error| self.trouble(error))?;
        let mut over = redis::cmd("ZREM");
        over.arg(self.nodes_key()).arg(node);
        over.exec_async(&mut connection).await.map_err(|error| self.trouble(error))?;
        Ok(if self.settings.channels.is_some() { Vec::new() } else { gone })
    }

    fn nodes_key(&self) -> String {
        format!("{}:nodes", self.settings.prefix)
    }

    /// The key for whether identifiers were sent away. They are hashed because they may be long.
    fn sent_away_key(&self, identifiers: &str) -> String {
        self.key('x', &URL_SAFE_NO_PAD.encode(&Sha256::digest(identifiers.as_bytes())[..16]))
    }
}

/// The number of the group of each, of which those of one name are one.
fn groups<'a>(names: impl Iterator<Item = &'a str>) -> Vec<usize> {
    let mut known = HashMap::new();
    names.enumerate().map(|(place, name)| *known.entry(name).or_insert(place)).collect()
}

/// A publication out of the history.
fn entry(stream: &str, epoch: &Arc<str>, id: &str, fields: Vec<(String, Vec<u8>)>) -> Option<(u64, Entry)> {
    let offset = id.strip_suffix("-0")?.parse().ok()?;
    let mut publication = Publication::new(stream, "null");
    publication.position = Some(Position { epoch: Arc::clone(epoch), offset });
    let (mut node, mut seq, mut at) = (None, None, 0);
    for (name, value) in fields {
        let value = String::from_utf8(value).ok()?;
        match name.as_str() {
            "m" => publication.message = value.into(),
            "k" => publication.kind = Some(value.into()),
            "x" => publication.exclude = Sid::parse(&value),
            "n" => node = NodeId::parse(&value),
            "q" => seq = value.parse().ok(),
            "t" => at = value.parse().ok()?,
            _ => {}
        }
    }
    let origin = node.zip(seq).map(|(node, seq)| StoreId { node, seq });
    Some((at, Entry { publication, origin }))
}

type RawEntry = (String, Vec<(String, Vec<u8>)>);

impl Store for RedisStore {
    fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    async fn run(&self, remembered: Arc<dyn Remembered>) {
        keep(&self.state, || self.work(&remembered)).await;
    }

    async fn store(&self, batch: &[Unstored]) -> Vec<Result<Stored, Trouble>> {
        let connection = match self.connection() {
            Ok(connection) => connection,
            Err(trouble) => return batch.iter().map(|_| Err(trouble.clone())).collect(),
        };
        let epoch = Arc::clone(&self.link().epoch);
        let groups = groups(batch.iter().map(|unstored| &*unstored.publication.stream));
        let commands = batch.iter().map(|unstored| self.store_call(unstored, &epoch, &connection).command());
        let results = self.send(&connection, groups.into_iter().zip(commands).collect()).await;
        let is_unknown =
            |result: &RedisResult<Value>| result.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT"));
        if results.iter().any(is_unknown)
            && let Err(error) = self.load(&mut connection.clone()).await
        {
            self.trouble(error);
        }
        results.into_iter().map(|result| self.stored(result).map_err(|error| self.trouble(error))).collect()
    }

    async fn read(&self, stream: &str, from: From) -> Result<Read, Trouble> {
        let connection = self.connection()?;
        let epoch = Arc::clone(&self.link().epoch);
        let first = match from {
            From::After(offset) => format!("{}-0", offset.saturating_add(1)),
            From::Since(_) => "-".into(),
        };
        let call = Call::new(&self.scripts.read, self.stream_keys(stream, &connection)).arg(&*epoch).arg(first);
        let read = self.call::<(String, Option<u64>, u64, Vec<RawEntry>)>(&connection, call).await;
        let (epoch, head, base, entries) = read.map_err(|error| self.trouble(error))?;
        let epoch = self.epoch(&epoch);
        let entries = entries.into_iter().filter_map(|(id, fields)| entry(stream, &epoch, &id, fields));
        let entries: Vec<_> = match from {
            From::After(_) => entries.map(|(_, entry)| entry).collect(),
            // They are in order of publication, so a clock that was set back makes them more.
            From::Since(since) => entries.skip_while(|(at, _)| (*at as i64) < since).map(|(_, entry)| entry).collect(),
        };
        Ok(Read { epoch, head, base, entries })
    }

    async fn begin_anew(&self) -> Result<(), Trouble> {
        let known = Arc::clone(&self.link().epoch);
        let call = Call::new(&self.scripts.epoch, vec![self.epoch_key()]).arg(&*known).arg(new_epoch());
        let epoch: String = self.asked(call).await?;
        self.epoch(&epoch);
        Ok(())
    }

    async fn counts(&self, streams: &[Arc<str>]) -> Result<Vec<Count>, Trouble> {
        let connection = self.connection()?;
        self.counts_by(&connection, streams).await.map_err(|error| self.trouble(error))
    }

    async fn save(&self, sessions: &[(&SavedSession, Duration)]) -> Result<(), Trouble> {
        let connection = self.connection()?;
        let ttl = self.settings.sessions_ttl;
        let mut commands = Vec::new();
        for (session, age) in sessions {
            let Some(left) = ttl.checked_sub(*age).filter(|left| !left.is_zero()) else { continue };
            let Ok(written) = rmp_serde::to_vec_named(session) else { continue };
            let key = self.key('r', &session.sid.to_string());
            let call = Call::new(&self.scripts.save, vec![key])
                .arg(if session.admission == Admission::Token { "t" } else { "o" })
                .arg(&*session.identifiers)
                .arg(written)
                .number(millis(left))
                .number(millis(*age));
            commands.push((commands.len(), call.command()));
        }
        let results = self.send(&connection, commands).await.into_iter().collect::<RedisResult<Vec<_>>>();
        match results {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.load(&mut connection.clone()).await.map_err(|error| self.trouble(error))?;
                Err(Trouble::Away("a script was missing".into()))
            }
            Err(error) => Err(self.trouble(error)),
        }
    }

    async fn take(&self, ticket: &ResumeTicket) -> Result<Option<(SavedSession, Duration)>, Trouble> {
        let call = Call::new(&self.scripts.take, vec![self.key('r', &ticket.sid.to_string())])
            .arg(if ticket.identifiers.is_some() { "1" } else { "0" })
            .arg(ticket.identifiers.as_deref().unwrap_or_default());
        let Some((written, at, now)) = self.asked::<Option<(Vec<u8>, u64, u64)>>(call).await? else { return Ok(None) };
        let Ok(session) = rmp_serde::from_slice::<SavedSession>(&written) else {
            tracing::warn!(sid = %ticket.sid, "a session could not be read: another version of this server kept it");
            return Ok(None);
        };
        let mut connection = self.connection()?;
        let mut sent_away = redis::cmd("GET");
        sent_away.arg(self.sent_away_key(&session.identifiers));
        let sent_away = sent_away.query_async::<Option<u64>>(&mut connection).await;
        let sent_away = sent_away.map_err(|error| self.trouble(error))?;
        if sent_away.is_some_and(|sent_away| sent_away + u64::from(ON_THE_WAY) * 1000 >= at) {
            return Ok(None);
        }
        Ok(Some((session, Duration::from_millis(now.saturating_sub(at)))))
    }

    async fn send_away(&self, identifiers: &str) -> Result<(), Trouble> {
        let call = Call::new(&self.scripts.send_away, vec![self.sent_away_key(identifiers)]);
        self.asked(call.number(millis(self.settings.sessions_ttl))).await
    }

    async fn change_presence(&self, changes: &[Presence]) -> Result<Vec<bool>, Trouble> {
        let connection = self.connection()?;
        let node = self.node.to_string();
        let of_node = |command: &str, change: &Presence| {
            let mut command = redis::cmd(command);
            command.arg(self.key('q', &node)).arg(&*change.stream);
            (0, command)
        };
        // Before they come and after they have gone: a stream too many does no harm.
        let coming = changes.iter().filter(|change| change.is_there).map(|change| of_node("SADD", change)).collect();
        let last: HashMap<_, _> = changes.iter().map(|change| (&change.stream, change)).collect();
        let going = last.into_values().filter(|change| !change.node_is_there).map(|change| of_node("SREM", change));
        let all = |results: Vec<RedisResult<Value>>| results.into_iter().collect::<RedisResult<Vec<_>>>();
        all(self.send(&connection, coming).await).map_err(|error| self.trouble(error))?;
        let groups = groups(changes.iter().map(|change| &*change.stream));
        let calls = changes.iter().map(|change| self.presence_call(change, &node).command());
        let mut due = all(self.send(&connection, groups.iter().copied().zip(calls).collect()).await);
        if due.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT")) {
            self.load(&mut connection.clone()).await.map_err(|error| self.trouble(error))?;
            let calls = changes.iter().map(|change| self.presence_call(change, &node).command());
            due = all(self.send(&connection, groups.into_iter().zip(calls).collect()).await);
        }
        let due = due.map_err(|error| self.trouble(error))?;
        all(self.send(&connection, going.collect()).await).map_err(|error| self.trouble(error))?;
        Ok(due.iter().map(|due| self.settings.channels.is_none() && *due == Value::Int(1)).collect())
    }

    async fn present(&self, stream: &str) -> Result<Vec<Person>, Trouble> {
        let mut connection = self.connection()?;
        let mut all = redis::cmd("HGETALL");
        all.arg(self.key('p', stream));
        let fields = all.query_async::<Vec<(String, String)>>(&mut connection).await;
        let fields = fields.map_err(|error| self.trouble(error))?;
        let person = |(field, info): (String, String)| {
            let id = field.strip_prefix("i:")?.into();
            Some(Person { id, info: (!info.is_empty()).then(|| info.into()) })
        };
        Ok(fields.into_iter().filter_map(person).collect())
    }

    async fn keep_lease(&self) -> Result<Lease, Trouble> {
        let call = Call::new(&self.scripts.lease, vec![self.nodes_key()]).number(self.node).number(millis(LEASE));
        let (was_known, nodes, dead) = self.asked::<(bool, usize, Option<String>)>(call).await?;
        // Storage that was emptied, or that another node has given a new epoch.
        let epoch = Call::new(&self.scripts.epoch, vec![self.epoch_key()]).arg("").arg(new_epoch());
        self.epoch(&self.asked::<String>(epoch).await?);
        let gone = match dead {
            Some(dead) => self.sweep(&dead).await?,
            None => Vec::new(),
        };
        Ok(Lease { was_known, nodes, gone })
    }
}

impl RedisStore {
    fn presence_call(&self, change: &Presence, node: &str) -> Call<'_> {
        let Presence { stream, sid, person, is_there, .. } = change;
        let channel = self.channel(stream);
        let event = || super::event_of(stream, &person.id, person.info.as_deref(), *is_there);
        let event = if channel.is_empty() { None } else { event() };
        let event = event.map(|event| between_nodes::write_beginning(&event) + "}");
        Call::new(&self.scripts.presence, vec![self.key('p', stream)])
            .arg(if *is_there { "1" } else { "0" })
            .arg(node)
            .number(sid)
            .arg(&*person.id)
            .arg(person.info.as_deref().unwrap_or_default())
            .arg(channel)
            .arg(event.unwrap_or_default())
    }
}
