//! `/debug/closes` and `/debug/connections`: an operator's question goes to all shards, and their answers become one.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONTENT_TYPE, HeaderValue};
use ::http::{Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot::error::TryRecvError;

use crate::model::{CloseCause, Sid};
use crate::os::clock::Clock;
use crate::shard::{CONNECTIONS_MAX, Inbox, Look, LookAt, Message, Seen};

use super::settings::CLOSES_MAX;
use super::state::Inherited;

pub(super) type Answer = Response<Full<Bytes>>;

/// How long shards may take. One with a million connections walks over them in about a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long shards may take to tell which connections ended last, when this is handed over.
const CLOSES_WAIT_MAX: Duration = Duration::from_secs(1);

/// Connections in an answer, unless `limit` says otherwise.
const LIMIT: usize = 20;

const USAGE: &str = "ask for one of: ?oldest  ?slowest  ?sid=SESSION_ID  ?identifier=CONNECTION_IDENTIFIERS, and if you like \
                     &limit=N (up to 100) and &format=text\n";

/// Columns of the table of closes, by their names in JSON.
const CLOSE_COLUMNS: &[&str] = &[
    "at_ms",
    "cause",
    "side",
    "code",
    "route",
    "age_ms",
    "silent_ms",
    "received_bytes",
    "sent_bytes",
    "peer",
    "process",
    "shard",
    "sid",
    "identifiers",
];

/// Columns of the table of connections.
const CONNECTION_COLUMNS: &[&str] = &[
    "route",
    "is_waiting",
    "age_ms",
    "silent_ms",
    "since_data_ms",
    "rtt_us",
    "unacked",
    "retransmits",
    "received_bytes",
    "sent_bytes",
    "waiting_bytes",
    "streams",
    "peer",
    "process",
    "shard",
    "sid",
    "identifiers",
];

/// What all shards have said.
#[derive(Default)]
struct Seens {
    seen: Vec<Seen>,
    /// Shards that had too much to do, or took too long.
    silent_shards: usize,
}

/// Asks every shard.
async fn ask(inboxes: &[Arc<Inbox>], at: LookAt) -> Seens {
    let answers: Vec<_> = inboxes
        .iter()
        .map(|inbox| {
            let (look, answered) = Look::new(at.clone());
            inbox.put(Message::Look(look));
            answered
        })
        .collect();
    let until = tokio::time::Instant::now() + ANSWER_TIMEOUT;
    let mut seens = Seens::default();
    for answered in answers {
        match tokio::time::timeout_at(until, answered).await {
            Ok(Ok(Seen::Busy)) | Ok(Err(_)) | Err(_) => seens.silent_shards += 1,
            Ok(Ok(seen)) => seens.seen.push(seen),
        }
    }
    seens
}

/// Rows of an answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Rows {
    pub rows: Vec<Value>,
    /// Shards that had too much to do, or took too long.
    pub silent_shards: usize,
    /// Processes that took too long, where there are several.
    pub silent_processes: Option<Vec<String>>,
}

impl Rows {
    /// The first of them, by what a column says, largest first.
    fn first(&mut self, by: &str, limit: usize) {
        sort_by(&mut self.rows, by);
        self.rows.truncate(limit);
    }
}

fn sort_by(rows: &mut [Value], column: &str) {
    rows.sort_by_key(|row| std::cmp::Reverse(row[column].as_u64()));
}

/// Why `/debug/closes` has no answer, if it has none.
pub(super) fn unknown_cause(query: &Query) -> Option<Answer> {
    let cause = query.cause.as_deref().filter(|cause| CloseCause::ALL.iter().all(|known| known.label() != *cause))?;
    let known: Vec<_> = CloseCause::ALL.iter().map(|cause| cause.label()).collect();
    let why = format!("no connection ends for {cause:?}; the causes are {}\n", known.join(", "));
    Some(text(StatusCode::BAD_REQUEST, why))
}

/// The last connections of this process that ended, and of those before it; `cause` chooses among them.
pub(super) async fn closes_here(inboxes: &[Arc<Inbox>], before: &Inherited, query: &Query) -> Rows {
    let Seens { seen, silent_shards } = ask(inboxes, LookAt::Closes).await;
    let mut closes = of_closes(seen);
    closes.extend_from_slice(before.closes());
    closes.retain(|closed| query.cause.as_deref().is_none_or(|cause| closed["cause"] == cause));
    Rows { rows: closes, silent_shards, silent_processes: None }
}

/// `/debug/closes`: newest first, `limit` of them.
pub(super) fn answer_closes(query: &Query, mut rows: Rows) -> Answer {
    rows.first("at_ms", query.limit.unwrap_or(CLOSES_MAX));
    query.answer("closes", CLOSE_COLUMNS, rows)
}

/// Plain data always makes JSON.
fn of_closes(seen: Vec<Seen>) -> Vec<Value> {
    let lists = seen.into_iter().filter_map(|seen| if let Seen::Closes(list) = seen { Some(list) } else { None });
    lists.flatten().map(|closed| serde_json::to_value(closed).unwrap_or_default()).collect()
}

/// The last connections that ended, here and in the processes before, newest first. Waits for the shards, and not for long.
pub(super) fn all_closes(inboxes: &[Arc<Inbox>], before: &[Value]) -> Vec<Value> {
    let ask = |inbox: &Arc<Inbox>| {
        let (look, answered) = Look::new(LookAt::Closes);
        inbox.put(Message::Look(look));
        answered
    };
    let answers: Vec<_> = inboxes.iter().map(ask).collect();
    let clock = Clock::start();
    let mut seen = Vec::new();
    for mut answered in answers {
        loop {
            match answered.try_recv() {
                Ok(closes) => seen.push(closes),
                Err(TryRecvError::Empty) if clock.now().mono < CLOSES_WAIT_MAX => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                // They are for people to look at: without them it goes on.
                Err(_) => {}
            }
            break;
        }
    }
    let mut closes = of_closes(seen);
    closes.extend_from_slice(before);
    sort_by(&mut closes, "at_ms");
    closes.truncate(CLOSES_MAX);
    closes
}

/// Why `/debug/connections` has no answer, if it has none.
pub(super) fn no_question(query: &Query) -> Option<Answer> {
    query.look_at.is_none().then(|| text(StatusCode::BAD_REQUEST, USAGE.to_owned()))
}

/// Some of the live connections of this process.
pub(super) async fn connections_here(inboxes: &[Arc<Inbox>], query: &Query) -> Rows {
    let Some(at) = query.look_at.clone() else { return Rows::default() };
    let Seens { seen, silent_shards } = ask(inboxes, at).await;
    let lists = seen.into_iter().filter_map(|seen| if let Seen::Connections(list) = seen { Some(list) } else { None });
    let rows = lists.flatten().map(|live| serde_json::to_value(live).unwrap_or_default()).collect();
    Rows { rows, silent_shards, silent_processes: None }
}

/// `/debug/connections`.
pub(super) fn answer_connections(query: &Query, mut rows: Rows) -> Answer {
    let by = if matches!(query.look_at, Some(LookAt::Slowest(_))) { "waiting_bytes" } else { "age_ms" };
    rows.first(by, query.limit.unwrap_or(LIMIT).min(CONNECTIONS_MAX));
    query.answer("connections", CONNECTION_COLUMNS, rows)
}

/// What the query of a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    look_at: Option<LookAt>,
    cause: Option<String>,
    limit: Option<usize>,
    as_text: bool,
}

impl Query {
    /// Of several things that are asked for the last counts.
    pub fn parse(query: &str) -> Query {
        let (mut look_at, mut cause, mut limit, mut as_text) = (None, None, None, false);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "sid" => look_at = Sid::parse(&value).map(LookAt::Sid),
                "identifier" => look_at = Some(LookAt::Identifiers(value.into_owned(), LIMIT)),
                "oldest" => look_at = Some(LookAt::Oldest(LIMIT)),
                "slowest" => look_at = Some(LookAt::Slowest(LIMIT)),
                "cause" => cause = Some(value.into_owned()),
                "limit" => limit = value.parse().ok().map(|limit: usize| limit.max(1)),
                "format" => as_text = value == "text",
                _ => {}
            }
        }
        if let Some(LookAt::Identifiers(_, most) | LookAt::Oldest(most) | LookAt::Slowest(most)) = &mut look_at {
            *most = limit.unwrap_or(LIMIT).min(CONNECTIONS_MAX);
        }
        Query { look_at, cause, limit, as_text }
    }

    fn answer(&self, name: &str, columns: &[&str], rows: Rows) -> Answer {
        let Rows { rows, silent_shards, silent_processes } = rows;
        if self.as_text {
            let mut table = table(columns, &rows);
            if silent_shards > 0 {
                let _ = writeln!(table, "({silent_shards} shards did not answer)");
            }
            if let Some(silent) = silent_processes.filter(|silent| !silent.is_empty()) {
                let _ = writeln!(table, "(no answer from process {})", silent.join(", "));
            }
            return text(StatusCode::OK, table);
        }
        let mut json = serde_json::json!({ name: rows, "silent_shards": silent_shards });
        if let Some(silent) = silent_processes {
            json["silent_processes"] = silent.into();
        }
        with_type(StatusCode::OK, "application/json", json.to_string() + "\n")
    }
}

/// A table with a column for each name that any row has.
fn table(columns: &[&str], rows: &[Value]) -> String {
    let cell = |row: &Value, name: &str| match &row[name] {
        Value::Null => "-".to_owned(),
        // A client chooses its identifiers, and a terminal obeys control characters.
        Value::String(text) => text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
        other => other.to_string(),
    };
    let used = columns.iter().filter(|name| rows.is_empty() || rows.iter().any(|row| row.get(**name).is_some()));
    let used: Vec<&str> = used.copied().collect();
    let heading = used.iter().map(|name| (*name).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(heading)
        .chain(rows.iter().map(|row| used.iter().map(|name| cell(row, name)).collect()))
        .collect();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..used.len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let padded: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += padded.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn text(status: StatusCode, body: String) -> Answer {
    with_type(status, "text/plain; charset=utf-8", body)
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_query_names_what_to_look_at() {
        let sid = "AAAAAAAAAAAAAAAAAAAAA";
        for (query, look_at, limit, as_text) in [
            ("", None, None, false),
            ("oldest", Some(LookAt::Oldest(20)), None, false),
            ("slowest&limit=3&format=text", Some(LookAt::Slowest(3)), Some(3), true),
            ("limit=0&oldest=", Some(LookAt::Oldest(1)), Some(1), false),
            ("oldest&limit=1000000", Some(LookAt::Oldest(CONNECTIONS_MAX)), Some(1_000_000), false),
            ("oldest&limit=x", Some(LookAt::Oldest(20)), None, false),
            (&format!("sid={sid}"), Sid::parse(sid).map(LookAt::Sid), None, false),
            ("sid=x", None, None, false),
            ("identifier=%7B%22u%22%3A1%7D", Some(LookAt::Identifiers("{\"u\":1}".into(), 20)), None, false),
        ] {
            assert_eq!(Query::parse(query), Query { look_at, cause: None, limit, as_text }, "{query}");
        }
        let causes = Query { look_at: None, cause: Some("no_pong".into()), limit: Some(2), as_text: false };
        assert_eq!(Query::parse("cause=no_pong&limit=2"), causes);
    }

    #[test]
    fn a_table_is_aligned_and_obeys_no_client() {
        let rows =
            [json!({"cause": "no_pong", "code": 1000, "sid": "a\u{1b}[2J"}), json!({"cause": "io", "code": null})];
        let text = table(&["cause", "code", "sid", "never"], &rows);
        assert_eq!(text, "cause    code  sid\nno_pong  1000  a\u{fffd}[2J\nio       -     -\n");
        assert_eq!(table(&["cause", "code"], &[]), "cause  code\n");
    }
}
