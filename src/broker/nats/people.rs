//! Who is present, in JetStream: one message for each id in each stream, with the sessions that are there under it.
//!
//! It is changed by storing it anew as the next one behind what was read, or by deleting what was read when nobody is left;
//! both fail if another node has changed it meanwhile. Whoever stores the first session of an id, or deletes its last, is
//! who tells the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};

use super::NatsStore;
use crate::broker::remote::store::{Person, Presence};
use crate::link::nats::{JetStore, StoreError, token};

/// How often a change is tried on which other nodes are quicker.
const TRIES: usize = 64;

/// Records that are read at once.
const RECORDS_AT_ONCE: usize = 256;

/// An id in a stream.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    stream: Box<str>,
    id: Box<str>,
    /// JSON text.
    info: Option<Box<str>>,
    /// Sessions, each with its node.
    sessions: BTreeMap<String, String>,
}

impl NatsStore {
    fn person_subject(&self, stream: &str, id: &str) -> String {
        self.subject('p', &format!(".{}.{}", token(stream), token(id)))
    }

    /// Carries out changes: ids side by side, what is for one id one after the other. Tells of each whether others are to
    /// be told.
    pub(super) async fn change_people(
        &self,
        presence: &JetStore,
        changes: &[Presence],
    ) -> Result<Vec<bool>, StoreError> {
        let mut ids: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, change) in changes.iter().enumerate() {
            ids.entry(self.person_subject(&change.stream, &change.person.id)).or_default().push(at);
        }
        let of_id = |(subject, places): (String, Vec<usize>)| async move {
            let mut due = Vec::with_capacity(places.len());
            for at in places {
                due.push((at, self.change_person(presence, &subject, &changes[at]).await?));
            }
            Ok::<_, StoreError>(due)
        };
        let mut due: Vec<_> = try_join_all(ids.into_iter().map(of_id)).await?.into_iter().flatten().collect();
        due.sort_unstable();
        Ok(due.into_iter().map(|(_, due)| due).collect())
    }

    async fn change_person(&self, presence: &JetStore, subject: &str, change: &Presence) -> Result<bool, StoreError> {
        let Presence { stream, sid, person, is_there, .. } = change;
        let (sid, node) = (sid.to_string(), self.node.to_string());
        self.change_record(presence, subject, |record| {
            let mut record = record.unwrap_or_else(|| Record {
                stream: stream.clone(),
                id: person.id.clone(),
                info: None,
                sessions: BTreeMap::new(),
            });
            if *is_there {
                record.info = person.info.clone();
                record.sessions.insert(sid.clone(), node.clone());
            } else {
                record.sessions.remove(&sid)?;
            }
            Some(record)
        })
        .await
    }

    /// Changes a record, which may not be there; `None`: it stays as it is. Tells whether the first session has come with
    /// that, or the last one gone.
    async fn change_record(
        &self,
        presence: &JetStore,
        subject: &str,
        change: impl Fn(Option<Record>) -> Option<Record>,
    ) -> Result<bool, StoreError> {
        for _ in 0..TRIES {
            let kept = presence.newest(subject).await?;
            let seq = kept.as_ref().map_or(0, |kept| kept.seq);
            let before = kept.and_then(|kept| serde_json::from_slice::<Record>(&kept.message.payload).ok());
            let was_there = before.as_ref().is_some_and(|record| !record.sessions.is_empty());
            let Some(record) = change(before) else { return Ok(false) };
            let is_there = !record.sessions.is_empty();
            let changed = if is_there {
                let payload = serde_json::to_vec(&record).unwrap_or_default();
                presence.put(subject, Some(seq), &[], &payload).await.map(|_| true)
            } else {
                presence.delete(seq).await
            };
            match changed {
                Ok(true) => return Ok(was_there != is_there),
                // Another node was quicker.
                Ok(false) | Err(StoreError::Outrun) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Outrun)
    }

    /// Who is present on a stream.
    pub(super) async fn people_of(&self, presence: &JetStore, stream: &str) -> Result<Vec<Person>, StoreError> {
        let records = self.records(presence, &self.subject('p', &format!(".{}.*", token(stream)))).await?;
        Ok(records.into_iter().map(|(_, Record { id, info, .. })| Person { id, info }).collect())
    }

    /// Ends the presence of everybody on nodes that do not live. Gives who has gone.
    pub(super) async fn sweep(
        &self,
        presence: &JetStore,
        living: &BTreeSet<String>,
    ) -> Result<Vec<(Box<str>, Box<str>)>, StoreError> {
        let mut gone = Vec::new();
        for (subject, record) in self.records(presence, &self.subject('p', ".*.*")).await? {
            if record.sessions.values().all(|node| living.contains(node)) {
                continue;
            }
            let without_the_dead = |record: Option<Record>| {
                let mut record = record?;
                record.sessions.retain(|_, node| living.contains(node));
                Some(record)
            };
            if self.change_record(presence, &subject, without_the_dead).await? {
                gone.push((record.stream, record.id));
            }
        }
        Ok(gone)
    }

    /// All records under subjects that match.
    async fn records(&self, presence: &JetStore, subjects: &str) -> Result<Vec<(String, Record)>, StoreError> {
        let subjects: Vec<String> = presence.info(subjects).await?.subjects.into_keys().collect();
        let mut records = Vec::with_capacity(subjects.len());
        for piece in subjects.chunks(RECORDS_AT_ONCE) {
            let kept = join_all(piece.iter().map(|subject| presence.newest(subject))).await;
            for (subject, kept) in piece.iter().zip(kept) {
                // One that is gone by now is nobody.
                let Some(kept) = kept? else { continue };
                let record = serde_json::from_slice::<Record>(&kept.message.payload).ok();
                records.extend(record.map(|record| (subject.clone(), record)));
            }
        }
        Ok(records)
    }
}
