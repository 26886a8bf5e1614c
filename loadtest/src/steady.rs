//! Publications at their times from a thread of its own, while something else happens.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::ensure;

use crate::clock::now_ns;
use crate::protocol::{self, json_string};
use crate::publish::{Credentials, Publisher};

/// Length of a publication's data: a chat message.
const DATA_BYTES: usize = 100;

/// Publishes until it is told to stop.
pub struct Steady {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<anyhow::Result<u32>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    next: AtomicU32,
    repeated: AtomicU64,
    /// Why, the last time.
    why: Mutex<String>,
}

impl Steady {
    /// Begins to publish to a stream, so many a second, from this sequence number on.
    pub fn start(url: &str, stream: &str, rate: f64, first: u32) -> anyhow::Result<Self> {
        ensure!(rate > 0.0, "the rate of publications must be above 0");
        let mut publisher = Publisher::connect(url, &Credentials::None)?;
        let shared = Arc::new(Shared { next: AtomicU32::new(first), ..Shared::default() });
        let stream = json_string(stream);
        let thread = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || publish(&mut publisher, &stream, rate, first, &shared))
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Stops, and gives the sequence number that would be next.
    pub fn finish(&mut self) -> anyhow::Result<u32> {
        self.shared.stop.store(true, Relaxed);
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Ok(self.shared.next.load(Relaxed)),
        }
    }

    /// How many were sent again, and why the last one.
    pub fn repeated(&self) -> String {
        match self.shared.repeated.load(Relaxed) {
            0 => "none was sent again".to_owned(),
            n => format!("{n} sent again: {}", self.shared.why.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

fn publish(publisher: &mut Publisher, stream: &str, rate: f64, first: u32, shared: &Shared) -> anyhow::Result<u32> {
    let start_ns = now_ns();
    loop {
        let sequence = shared.next.load(Relaxed);
        let due_ns = start_ns + (f64::from(sequence - first) / rate * 1e9) as u64;
        // Not later than a tenth of a second behind an order to stop.
        while now_ns() < due_ns && !shared.stop.load(Relaxed) {
            thread::sleep(Duration::from_nanos((due_ns - now_ns().min(due_ns)).min(100_000_000)));
        }
        if shared.stop.load(Relaxed) {
            return Ok(sequence);
        }
        let mut data = protocol::mark(sequence, due_ns);
        data.push_str(&"x".repeat(DATA_BYTES.saturating_sub(data.len())));
        let body = format!(r#"{{"stream":{stream},"data":{}}}"#, json_string(&json_string(&data)));
        // A connection that the server closes may take a request with it that was on its way: an app sends it again, and
        // one that had been taken all the same would show as doubled.
        if let Err(error) = publisher.post(&body) {
            shared.repeated.fetch_add(1, Relaxed);
            *shared.why.lock().unwrap_or_else(PoisonError::into_inner) = format!("{error:#}");
            publisher.post(&body)?;
        }
        shared.next.fetch_add(1, Relaxed);
    }
}
