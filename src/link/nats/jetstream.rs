//! JetStream: messages that NATS keeps. What we use of its API
//! (<https://docs.nats.io/reference/reference-protocols/nats_api_reference>), by requests and answers in JSON.
//!
//! A store here is a stream of JetStream (the word stream is that of publications everywhere else). It keeps messages by
//! their subject and numbers all of them together. Everything is asked of the store's leader, so that what was acknowledged
//! is seen by everybody.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, Message, Outgoing, Refused};

/// How long an answer is waited for. A server that keeps on disks can take a while; less than a publisher waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Codes of errors (`err_code`) that mean something to us.
const WRONG_LAST_SEQUENCE: u32 = 10071;
const NO_MESSAGE: u32 = 10037;
const NO_STORE: u32 = 10059;
const NOT_DELETED: u32 = 10057;
const TOO_FEW_SERVERS: u32 = 10005;
const NOT_CLUSTERED: u32 = 10074;

/// Servers of a cluster that keep the same: one of them may be gone.
const REPLICAS: u32 = 3;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nobody has answered; perhaps it was done.
    #[error(transparent)]
    Link(#[from] Refused),
    /// The subject has got another message meanwhile.
    #[error("the subject has another message by now")]
    Outrun,
    /// There is no such store.
    #[error("JetStream does not have what it was told to keep: somebody has deleted it")]
    Gone,
    /// The server says no.
    #[error("JetStream says: {description} ({err_code})")]
    Api {
        /// What it is about.
        err_code: u32,
        /// In its words.
        description: String,
    },
    /// It answers what we do not understand.
    #[error("the answer of JetStream is not understood: {0}")]
    Unreadable(String),
}

/// What a store is to keep.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The subjects of what is kept, with wildcards.
    pub subjects: Vec<String>,
    /// Messages of a subject.
    pub per_subject: u64,
    /// How long. Zero: for ever.
    pub age: Duration,
    /// How long the id of a message is remembered, so that a second one with it is not stored. No longer than `age`.
    pub ids: Duration,
}

/// A store as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// When it was made.
    pub created: String,
    /// The number of the newest message that it ever had.
    pub last: u64,
    /// How many messages it has by subject, of those that were asked for.
    pub subjects: BTreeMap<String, u64>,
}

/// A message that is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its number in the store.
    pub seq: u64,
    /// When it was stored, in Unix time.
    pub at: Duration,
    /// Subject, headers and payload.
    pub message: Message,
}

/// A message that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Its number in the store.
    pub seq: u64,
    /// It was there: one with this id has been stored before.
    pub was_there: bool,
}

/// One store.
#[derive(Clone)]
pub struct JetStore {
    client: Client,
    name: String,
}

#[derive(Deserialize)]
struct Answer {
    error: Option<ApiError>,
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    success: bool,
    config: Option<Value>,
    created: Option<String>,
    state: Option<State>,
    message: Option<StoredMessage>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct State {
    last_seq: u64,
    #[serde(default)]
    subjects: Option<BTreeMap<String, u64>>,
}

#[derive(Deserialize)]
struct StoredMessage {
    subject: Box<str>,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

impl JetStore {
    /// The store of this name: letters, digits, `-` and `_`.
    pub fn new(client: Client, name: impl Into<String>) -> JetStore {
        JetStore { client, name: name.into() }
    }

    /// Makes the store, on three servers of a cluster if there are as many; or sets the limits of the one that is there, and
    /// whatever else somebody has set of it stays.
    ///
    /// # Errors
    /// The server does not want it, or cannot be reached.
    pub async fn ensure(&self, limits: &Limits) -> Result<StoreInfo, StoreError> {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let wanted = json!({
            "name": self.name,
            "subjects": limits.subjects,
            "max_msgs_per_subject": limits.per_subject,
            "max_age": nanos(limits.age),
            "duplicate_window": nanos(limits.ids),
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "allow_rollup_hdrs": false,
        });
        let mut config = match self.api("STREAM.INFO", &Value::Null).await {
            Ok(Answer { config: Some(Value::Object(config)), .. }) => config,
            Ok(_) => return Err(StoreError::Unreadable("a store without a configuration".to_owned())),
            Err(StoreError::Gone) => return self.create(wanted).await,
            Err(error) => return Err(error),
        };
        let differing = |(key, value): &(&String, &Value)| key.as_str() != "storage" && config.get(*key) != Some(value);
        let changes: Vec<(String, Value)> = wanted
            .as_object()
            .into_iter()
            .flatten()
            .filter(differing)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if changes.is_empty() {
            return self.info("").await;
        }
        config.extend(changes);
        StoreInfo::of(self.api("STREAM.UPDATE", &Value::Object(config)).await?)
    }

    async fn create(&self, mut config: Value) -> Result<StoreInfo, StoreError> {
        if self.client.is_clustered() {
            config["num_replicas"] = REPLICAS.into();
            match self.api("STREAM.CREATE", &config).await {
                Err(StoreError::Api { err_code: TOO_FEW_SERVERS | NOT_CLUSTERED, .. }) => {
                    config["num_replicas"] = 1.into();
                }
                created => return StoreInfo::of(created?),
            }
        }
        StoreInfo::of(self.api("STREAM.CREATE", &config).await?)
    }

    /// How it is doing; with the subjects that this one, which may have wildcards, matches.
    ///
    /// # Errors
    /// There is no such store, or the server cannot be reached.
    pub async fn info(&self, subjects: &str) -> Result<StoreInfo, StoreError> {
        let body = if subjects.is_empty() { Value::Null } else { json!({ "subjects_filter": subjects }) };
        StoreInfo::of(self.api("STREAM.INFO", &body).await?)
    }

    /// Stores a message. With `after` it must be the next one of its subject behind that with this number; 0: the first.
    ///
    /// # Errors
    /// [`StoreError::Outrun`] if another one is; or it is not known to be stored.
    pub async fn put(
        &self,
        subject: &str,
        after: Option<u64>,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) -> Result<Ack, StoreError> {
        let after = after.map(|after| after.to_string());
        let mut all = headers.to_vec();
        all.extend(after.as_deref().map(|after| ("Nats-Expected-Last-Subject-Sequence", after)));
        let message = Outgoing { subject, headers: &all, payload, reply: None };
        let answer = read_answer(&self.request(message).await?)?;
        let seq = answer.seq.ok_or_else(|| StoreError::Unreadable("an acknowledgement without a number".to_owned()))?;
        Ok(Ack { seq, was_there: answer.duplicate })
    }

    /// The newest message of a subject.
    ///
    /// # Errors
    /// The server cannot be reached, or the store is gone.
    pub async fn newest(&self, subject: &str) -> Result<Option<Kept>, StoreError> {
        self.get(&json!({ "last_by_subj": subject })).await
    }

    /// The message with a number.
    ///
    /// # Errors
    /// The server cannot be reached, or the store is gone.
    pub async fn at(&self, seq: u64) -> Result<Option<Kept>, StoreError> {
        self.get(&json!({ "seq": seq })).await
    }

    /// Deletes a message. Tells whether it was there: of several who delete it, one is told so.
    ///
    /// # Errors
    /// The server cannot be reached, or the store is gone.
    pub async fn delete(&self, seq: u64) -> Result<bool, StoreError> {
        match self.api("STREAM.MSG.DELETE", &json!({ "seq": seq, "no_erase": true })).await {
            Ok(answer) => Ok(answer.success),
            Err(StoreError::Api { err_code: NO_MESSAGE | NOT_DELETED, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn get(&self, which: &Value) -> Result<Option<Kept>, StoreError> {
        let answer = match self.api("STREAM.MSG.GET", which).await {
            Ok(answer) => answer,
            Err(StoreError::Api { err_code: NO_MESSAGE, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let unreadable = |what: &str| StoreError::Unreadable(what.to_owned());
        let stored = answer.message.ok_or_else(|| unreadable("no message"))?;
        let decode = |text: &str| BASE64_STANDARD.decode(text).map(Bytes::from).map_err(|_| unreadable("base64"));
        let message = Message {
            headers: decode(&stored.hdrs)?,
            payload: decode(&stored.data)?,
            subject: stored.subject,
            ..Message::default()
        };
        let at = unix_time(&stored.time).ok_or_else(|| unreadable(&stored.time))?;
        Ok(Some(Kept { seq: stored.seq, at, message }))
    }

    async fn api(&self, what: &str, body: &Value) -> Result<Answer, StoreError> {
        let subject = format!("$JS.API.{what}.{}", self.name);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Outgoing { subject: &subject, payload: body.as_bytes(), ..Outgoing::default() };
        read_answer(&self.request(request).await?)
    }

    async fn request(&self, message: Outgoing<'_>) -> Result<Message, Refused> {
        self.client.room().await?;
        self.client.request(message, ANSWER_TIMEOUT).await
    }
}

fn read_answer(message: &Message) -> Result<Answer, StoreError> {
    let answer: Answer =
        serde_json::from_slice(&message.payload).map_err(|error| StoreError::Unreadable(error.to_string()))?;
    match answer.error {
        Some(ApiError { err_code: WRONG_LAST_SEQUENCE, .. }) => Err(StoreError::Outrun),
        Some(ApiError { err_code: NO_STORE, .. }) => Err(StoreError::Gone),
        Some(ApiError { err_code, description }) => Err(StoreError::Api { err_code, description }),
        None => Ok(answer),
    }
}

impl StoreInfo {
    fn of(answer: Answer) -> Result<StoreInfo, StoreError> {
        let (Some(created), Some(State { last_seq, subjects })) = (answer.created, answer.state) else {
            return Err(StoreError::Unreadable("a store without a state".to_owned()));
        };
        Ok(StoreInfo { created, last: last_seq, subjects: subjects.unwrap_or_default() })
    }
}

/// Reads `2026-11-28T21:43:44.123456789Z` (RFC 3339, as servers write it).
fn unix_time(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers =
        |text: &str, by: char| text.split(by).map(|number| number.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let (date, time) = (numbers(date, '-')?, numbers(time, ':')?);
    let ([year @ ..=9999, month @ 1..=12, day @ 1..=31], [hours @ ..=23, minutes @ ..=59, seconds @ ..=60]) =
        (&date[..], &time[..])
    else {
        return None;
    };
    // Years begin in March, so that the day that only some have is their last; 0000-03-01 is 719,468 days before 1970.
    let (year, month) = if *month > 2 { (*year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days =
        (year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1).checked_sub(719_468)?;
    let nanos = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(Duration::new(((days * 24 + hours) * 60 + minutes) * 60 + seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_servers_are_read() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2000-02-29T23:59:59.5Z", 951_868_799, 500_000_000),
            ("2026-11-28T21:43:44.123456789Z", 1_795_902_224, 123_456_789),
            ("2100-03-01T00:00:00.000000001Z", 4_107_542_400, 1),
        ];
        for (text, seconds, nanos) in cases {
            assert_eq!(unix_time(text), Some(Duration::new(seconds, nanos)), "{text}");
        }
        for text in [
            "",
            "Z",
            "2026-11-28",
            "2026-13-01T00:00:00Z",
            "1969-12-31T00:00:00Z",
            "x-1-1T0:0:0Z",
            "18446744073709551615-1-1T0:0:0Z",
            "2026-1-1T18446744073709551615:0:0Z",
        ] {
            assert_eq!(unix_time(text), None, "{text}");
        }
    }

    #[test]
    fn errors_are_told_apart() {
        let answer = |payload: &'static str| {
            read_answer(&Message { payload: Bytes::from_static(payload.as_bytes()), ..Message::default() }).map(|_| ())
        };
        let outrun = r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"},"stream":"x"}"#;
        assert_eq!(answer(outrun), Err(StoreError::Outrun));
        let other = answer(r#"{"error":{"code":503,"err_code":10008,"description":"no"}}"#);
        assert_eq!(other, Err(StoreError::Api { err_code: 10008, description: "no".to_owned() }));
        assert!(matches!(answer("x"), Err(StoreError::Unreadable(_))));
    }
}
