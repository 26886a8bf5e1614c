//! The link of the broker to Redis: how it is made and lost, and how scripts are called over it.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, Script, Value};
use tokio::time::{Instant, sleep};

use super::super::remote::store::{Reach, Remembered, Trouble};
use super::{RedisStore, Scripts, bad_answer};
use crate::link::redis::{Connection, is_of_link};

/// How long an answer may take. Less than a publisher waits for the link.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the server is asked whether it is there, when nothing else is asked.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Characters of an epoch, six bits each.
const EPOCH_BYTES: usize = 6;

/// What there is of it now.
#[derive(Default)]
pub(super) struct Link {
    pub(super) connection: Option<Connection>,
    /// How often it was made.
    pub(super) made: u64,
    pub(super) epoch: Arc<str>,
    pub(super) why: Option<RedisError>,
    pub(super) remembered: Option<Arc<dyn Remembered>>,
}

/// A call of a script.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Vec<String>,
    args: Vec<Vec<u8>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(script: &'a Script, keys: Vec<String>) -> Call<'a> {
        Call { script, keys, args: Vec::new() }
    }

    pub(super) fn arg(mut self, arg: impl AsRef<[u8]>) -> Self {
        self.args.push(arg.as_ref().to_vec());
        self
    }

    pub(super) fn number(self, arg: impl ToString) -> Self {
        self.arg(arg.to_string())
    }

    pub(super) fn command(&self) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.script.get_hash()).arg(self.keys.len()).arg(&self.keys).arg(&self.args);
        command
    }
}

pub(super) fn new_epoch() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; EPOCH_BYTES]>())
}

/// Sends commands in one piece and gives the answer to each.
async fn send_together(mut connection: Connection, commands: Vec<Cmd>) -> Vec<RedisResult<Value>> {
    let count = commands.len();
    let mut pipeline = Pipeline::with_capacity(count);
    commands.into_iter().for_each(|command| _ = pipeline.add_command(command));
    match connection.req_packed_commands(&pipeline, 0, count).await {
        Ok(values) if values.len() == count => values
            .into_iter()
            .map(|value| match value {
                Value::ServerError(error) => Err(error.into()),
                value => Ok(value),
            })
            .collect(),
        Ok(_) => (0..count).map(|_| Err(bad_answer())).collect(),
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    }
}

impl RedisStore {
    pub(super) fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connection(&self) -> Result<Connection, Trouble> {
        let link = self.link();
        let away = || Trouble::Away(link.why.as_ref().map_or_else(|| "not connected yet".into(), ToString::to_string));
        link.connection.clone().ok_or_else(away)
    }

    /// What an error means. One of the link ends it.
    pub(super) fn trouble(&self, error: RedisError) -> Trouble {
        let text = error.to_string();
        // What was kept is gone, and it has to be found out what else is.
        let is_empty = error.code() == Some("NOEPOCH");
        if !is_empty && !is_of_link(&error) {
            return Trouble::Refused(text);
        }
        let mut link = self.link();
        if link.connection.take().is_some() {
            link.why = Some(error);
            drop(link);
            self.reach.send_replace(Reach::Down(Instant::now()));
            self.broken.notify_one();
        }
        if is_empty { Trouble::Refused(text) } else { Trouble::Away(text) }
    }

    /// Sends commands of which some are for the same keys, each with the place of its group; commands of one group are
    /// carried out in order.
    pub(super) async fn send(&self, connection: &Connection, commands: Vec<(usize, Cmd)>) -> Vec<RedisResult<Value>> {
        let count = commands.len();
        if matches!(connection, Connection::One(_)) {
            let commands = commands.into_iter().map(|(_, command)| command).collect();
            return send_together(connection.clone(), commands).await;
        }
        // On a cluster, what is sent together must be for one server.
        let mut groups: Vec<(Vec<usize>, Vec<Cmd>)> = Vec::new();
        groups.resize_with(count, Default::default);
        for (place, (group, command)) in commands.into_iter().enumerate() {
            groups[group].0.push(place);
            groups[group].1.push(command);
        }
        let mut results: Vec<_> = (0..count).map(|_| Ok(Value::Nil)).collect();
        let sent = groups.into_iter().filter(|(places, _)| !places.is_empty());
        let sent = sent.map(|(places, commands)| async { (places, send_together(connection.clone(), commands).await) });
        for (places, values) in join_all(sent).await {
            places.into_iter().zip(values).for_each(|(place, value)| results[place] = value);
        }
        results
    }

    /// Calls a script, and has it loaded if the server does not know it.
    pub(super) async fn call<T: FromRedisValue>(&self, connection: &Connection, call: Call<'_>) -> RedisResult<T> {
        let mut connection = connection.clone();
        match call.command().query_async(&mut connection).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.load(&mut connection).await?;
                call.command().query_async(&mut connection).await
            }
            result => result,
        }
    }

    pub(super) async fn asked<T: FromRedisValue>(&self, call: Call<'_>) -> Result<T, Trouble> {
        let connection = self.connection()?;
        self.call(&connection, call).await.map_err(|error| self.trouble(error))
    }

    pub(super) async fn load(&self, connection: &mut Connection) -> RedisResult<()> {
        let Scripts { store, read, epoch, save, take, send_away, presence, sweep, lease } = &self.scripts;
        for script in [store, read, epoch, save, take, send_away, presence, sweep, lease] {
            script.load_async(connection).await?;
        }
        Ok(())
    }

    /// Connects and works until the link is lost; gives why.
    pub(super) async fn work(&self, remembered: &Arc<dyn Remembered>) -> RedisError {
        if let Err(error) = self.connect(remembered).await {
            return error;
        }
        self.state.came_up();
        let why = tokio::select! {
            why = self.until_broken() => why,
            why = self.until_replaced() => why,
        };
        let mut link = self.link();
        let was_up = link.connection.take().is_some();
        let why = link.why.take().unwrap_or(why);
        drop(link);
        if was_up {
            self.reach.send_replace(Reach::Down(Instant::now()));
        }
        why
    }

    pub(super) async fn connect(&self, remembered: &Arc<dyn Remembered>) -> RedisResult<()> {
        let mut connection = self.redis.connection(ANSWER_TIMEOUT).await?;
        self.load(&mut connection).await?;
        let epoch = self.checked_epoch(&mut connection, remembered).await?;
        remembered.epoch(&epoch);
        let mut link = self.link();
        link.made += 1;
        let made = link.made;
        *link = Link { connection: Some(connection), made, epoch, why: None, remembered: Some(Arc::clone(remembered)) };
        drop(link);
        self.reach.send_replace(Reach::Up(made));
        Ok(())
    }

    /// The epoch; a new one if the storage does not have what it had.
    pub(super) async fn checked_epoch(
        &self,
        connection: &mut Connection,
        remembered: &Arc<dyn Remembered>,
    ) -> RedisResult<Arc<str>> {
        let reached = remembered.reached();
        let mut is_whole = true;
        for part in reached.chunks(1024) {
            let streams: Vec<_> = part.iter().map(|(stream, _)| Arc::clone(stream)).collect();
            let counts = self.counts_by(connection, &streams).await?;
            is_whole &= part.iter().zip(counts).all(|((_, reached), count)| count.head >= *reached);
        }
        let known = self.link().epoch.to_string();
        // Nothing is over for a node that has just begun.
        let over = if is_whole { "" } else { &known };
        let call = Call::new(&self.scripts.epoch, vec![self.epoch_key()]).arg(over).arg(new_epoch());
        self.call::<String>(connection, call).await.map(Arc::from)
    }

    pub(super) async fn until_broken(&self) -> RedisError {
        loop {
            tokio::select! {
                () = self.broken.notified() => {}
                () = sleep(PING_EVERY) => {
                    if let Ok(mut connection) = self.connection()
                        && let Err(error) = redis::cmd("PING").exec_async(&mut connection).await
                    {
                        self.trouble(error);
                    }
                }
            }
            if self.connection().is_err() {
                return (redis::ErrorKind::Io, "the connection is lost").into();
            }
        }
    }

    pub(super) async fn until_replaced(&self) -> RedisError {
        loop {
            // Sentinels that cannot be asked say nothing against a master that answers.
            if let Ok(server) = self.redis.server().await {
                return self.redis.until_replaced(&server, self.settings.ask_sentinels_every).await;
            }
            sleep(self.settings.ask_sentinels_every).await;
        }
    }
}
