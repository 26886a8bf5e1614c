//! What systemd, or whoever else supervises this process, is told of it: that it serves, that it lives, what it does.
//!
//! The watchdog is fed while everything that clients need turns: each shard, the thread that calls the app, and the one for
//! ordinary HTTP, on which this runs. A shard is asked through its inbox, which wakes it if it sleeps, and answers in
//! its next turn: nothing is counted in turns that nobody asks about. A socket that is missing or deaf changes nothing else.

use std::fmt::Write;
use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::os::clock;
use crate::os::notify::{self, Notifier};
use crate::shard::Message;

use super::observe::Observer;
use super::processes::Turning;

/// How old the status may be. A watchdog may make it newer.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Rounds in which a process that has taken over may not be listened to yet: what it says then, it says again.
const UNHEARD_ROUNDS: u32 = 2;

/// Signs of life in the time that the watchdog waits for one, so that one may be late.
const SIGNS_PER_WATCHDOG: u32 = 3;

/// Where the service is in the eyes of its supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not ready yet.
    Starting,
    /// The configuration is being read again.
    Reloading,
    /// Ready, and the supervisor has not been reached since.
    Ready,
    /// Ready, and the supervisor knows.
    ToldReady,
    /// It ends.
    Stopping,
    /// Another process is the service now, and tells the rest.
    HandedOver,
}

/// What is supervised.
pub(super) trait Watched: Send + 'static {
    /// Names what does not turn within this time, and says in one line for people how it is.
    fn look(&mut self, patience: Duration) -> impl Future<Output = (Option<String>, String)> + Send;
}

/// Whether a node turns.
pub(super) struct Turns {
    observer: Arc<Observer>,
    /// Those that no shard has answered yet, by shard: none is asked again before, so a stuck one gathers no questions.
    questions: Vec<Option<oneshot::Receiver<()>>>,
}

impl Turns {
    pub fn new(observer: Arc<Observer>) -> Turns {
        Turns { observer, questions: Vec::new() }
    }
}

impl Watched for Turns {
    async fn look(&mut self, patience: Duration) -> (Option<String>, String) {
        let stuck = self.observer.stuck(&mut self.questions, patience).await;
        let status = self.observer.status(stuck.as_deref());
        (stuck, status)
    }
}

/// The supervisor of this process; perhaps there is none.
pub(super) struct Supervisor {
    notifier: Option<Notifier>,
    watchdog: Option<Duration>,
    /// Whether this process has taken over from another one. Before that one has named it, it is not listened to.
    has_taken_over: bool,
    /// Held while one datagram is sent, so that they arrive in the order of phases.
    phase: Mutex<Phase>,
}

impl Supervisor {
    /// Whoever the environment names; of a process that has taken over from another one, or not.
    pub fn from_env(has_taken_over: bool) -> Supervisor {
        let notifier = Notifier::from_env().unwrap_or_else(|error| {
            tracing::warn!(%error, "NOTIFY_SOCKET cannot be used: the supervisor is told nothing");
            None
        });
        let watchdog = notifier.as_ref().and_then(|_| notify::watchdog());
        Supervisor { notifier, watchdog, has_taken_over, phase: Mutex::new(Phase::Starting) }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the supervisor took it.
    fn tell(&self, assignments: &str) -> bool {
        let Some(notifier) = &self.notifier else { return true };
        let told = notifier.tell(assignments);
        if let Err(error) = &told {
            tracing::debug!(%error, "the supervisor was not told {assignments:?}");
        }
        told.is_ok()
    }

    /// The configuration is about to be read again. Not told before the service is ready: the answer would be that.
    pub fn reloading(&self) {
        let mut phase = self.phase();
        if matches!(*phase, Phase::Ready | Phase::ToldReady) {
            *phase = Phase::Reloading;
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::machine_usec()));
        }
    }

    /// It has been read, or refused.
    pub fn reloaded(&self) {
        let mut phase = self.phase();
        if *phase == Phase::Reloading {
            *phase = if self.tell("READY=1") { Phase::ToldReady } else { Phase::Ready };
        }
    }

    /// Another process serves from now on and will tell what is to be told; this one is still the one that is listened to. It is
    /// ready, which the supervisor may not have heard from it: before this, it did not listen to it.
    pub fn handed_over(&self, successor: u32) {
        let mut phase = self.phase();
        *phase = Phase::HandedOver;
        self.tell(&format!("MAINPID={successor}\nREADY=1"));
    }

    /// The end begins.
    pub fn stopping(&self, connections: u64) {
        let mut phase = self.phase();
        *phase = Phase::Stopping;
        self.tell(&format!("STOPPING=1\nSTATUS={}", draining(connections)));
    }

    /// Tells the supervisor what is to be told, for ever. On the runtime of ordinary HTTP.
    pub async fn keep_told(self: Arc<Self>, mut watched: impl Watched) {
        if self.notifier.is_none() {
            return;
        }
        let every = self.watchdog.map_or(STATUS_EVERY, |watchdog| STATUS_EVERY.min(watchdog / SIGNS_PER_WATCHDOG));
        // Long enough for a turn that is long and ends, short enough for another question before the watchdog barks.
        let patience = self.watchdog.map_or(STATUS_EVERY, |watchdog| watchdog / SIGNS_PER_WATCHDOG);
        let (mut was_stuck, mut told_status) = (None, String::new());
        let mut unheard = if self.has_taken_over { UNHEARD_ROUNDS } else { 0 };
        loop {
            let (stuck, status) = watched.look(patience).await;
            if stuck != was_stuck {
                match &stuck {
                    Some(who) => tracing::error!("{who} does not turn; the watchdog is not fed"),
                    None => tracing::info!("everything turns again"),
                }
                was_stuck.clone_from(&stuck);
            }
            let mut told = String::new();
            if status != told_status {
                let _ = writeln!(told, "STATUS={status}");
            }
            if self.tell_regularly(told, stuck.is_none(), every, unheard == 0) && unheard == 0 {
                told_status = status;
            }
            unheard = unheard.saturating_sub(1);
            tokio::time::sleep(every).await;
        }
    }

    /// Adds to what is told whatever the phase wants; tells whether the supervisor took it.
    fn tell_regularly(&self, mut told: String, all_turn: bool, every: Duration, is_heard: bool) -> bool {
        let mut phase = self.phase();
        if *phase == Phase::Starting && all_turn {
            *phase = Phase::Ready;
        }
        if *phase == Phase::Ready {
            told.push_str("READY=1\n");
        }
        if all_turn && self.watchdog.is_some() {
            told.push_str("WATCHDOG=1\n");
        }
        if *phase == Phase::Stopping && all_turn {
            // The drain has an end of its own, which `TimeoutStopSec=` does not know.
            let _ = writeln!(told, "EXTEND_TIMEOUT_USEC={}", (every * SIGNS_PER_WATCHDOG).as_micros());
        }
        if told.is_empty() || *phase == Phase::HandedOver {
            return true;
        }
        let is_told = self.tell(told.trim_end());
        if is_told && is_heard && *phase == Phase::Ready {
            *phase = Phase::ToldReady;
        }
        is_told
    }
}

fn draining(connections: u64) -> String {
    format!("draining; connections left: {connections}")
}

impl Observer {
    /// Asks everything that clients need whether it turns, and names what has not answered within this time. A shard that
    /// has ended is stuck unless the node drains.
    async fn stuck(&self, questions: &mut Vec<Option<oneshot::Receiver<()>>>, patience: Duration) -> Option<String> {
        let inboxes = &self.parts.inboxes;
        questions.resize_with(inboxes.len(), || None);
        for (inbox, question) in inboxes.iter().zip(questions.iter_mut()).filter(|(_, question)| question.is_none()) {
            let (answer, answered) = oneshot::channel();
            inbox.put(Message::Turn(answer));
            *question = Some(answered);
        }
        let until = tokio::time::Instant::now() + patience;
        let mut stuck = None;
        for (shard, question) in questions.iter_mut().enumerate() {
            let Some(answered) = question else { continue };
            let answer = tokio::time::timeout_at(until, answered).await;
            let is_over = matches!(answer, Ok(Err(_))) && self.parts.draining.load(Relaxed);
            if answer.is_ok() {
                *question = None;
            }
            if !matches!(answer, Ok(Ok(()))) && !is_over {
                stuck.get_or_insert_with(|| format!("shard {shard}"));
            }
        }
        let calls_turn = self.parts.backend.turns().await;
        stuck.or_else(|| (!calls_turn).then(|| "the thread that calls the app".to_owned()))
    }

    /// The same, for the parent of several processes.
    pub(super) fn turning(&self, stuck: Option<String>) -> Turning {
        Turning {
            stuck,
            websockets: self.parts.counts.open(),
            websockets_max: self.parts.counts.open_max(),
            room_max: self.parts.family.as_ref().map_or(0, |family| family.room_max),
            app_is_away: self.app_is_away(),
        }
    }

    /// Whether it is known that the app cannot be called: before the first look at it nothing is known.
    fn app_is_away(&self) -> bool {
        self.calls_turn.load(Relaxed) && !self.backend_reachable.load(Relaxed)
    }

    /// One line for people.
    fn status(&self, stuck: Option<&str>) -> String {
        let connections = self.parts.counts.open();
        if self.parts.draining.load(Relaxed) {
            return draining(connections);
        }
        let mut status = format!("connections: {connections} of at most {}", self.parts.counts.open_max());
        if self.app_is_away() {
            status.push_str("; the app cannot be called");
        }
        if let Some(stuck) = stuck {
            let _ = write!(status, "; {stuck} does not turn");
        }
        status
    }
}
