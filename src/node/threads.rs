//! The threads of a node that are not tokio's own. Each kind ends with the value that holds it, so a start that fails
//! halfway leaves none behind.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::shard::{Inbox, Message};

/// Threads of shards. Dropping it closes their connections and waits for their end.
pub(super) struct ShardThreads {
    inboxes: Arc<[Arc<Inbox>]>,
    threads: Vec<JoinHandle<()>>,
}

impl ShardThreads {
    /// No thread yet, for the shards with these inboxes.
    pub(super) fn new(inboxes: Arc<[Arc<Inbox>]>) -> ShardThreads {
        ShardThreads { threads: Vec::with_capacity(inboxes.len()), inboxes }
    }

    /// Starts the thread of a shard. It must end once its inbox has told it to drain.
    pub(super) fn start(&mut self, shard: u16, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(format!("shard-{shard}")).spawn(run)?);
        Ok(())
    }

    /// Tells all shards to send their clients away within this time, and to end.
    pub(super) fn drain(&self, over: Duration) {
        self.inboxes.iter().for_each(|inbox| inbox.put(Message::Drain { over }));
    }

    /// Whether all have ended.
    pub(super) fn are_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Leaves the threads to the end of the process.
    pub(super) fn detach(mut self) {
        self.threads.clear();
    }
}

impl Drop for ShardThreads {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.drain(Duration::ZERO);
        }
        for thread in self.threads.drain(..) {
            // One that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// A thread with a tokio runtime of its own. Dropping it gives up what runs there and waits for its end.
///
/// One calls the app: all calls share a driver and a connection or two, so a second thread would only pass them to and
/// fro, and publications must not hold answers up. Where there are links to Redis or NATS, another keeps them.
pub(super) struct RuntimeThread {
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RuntimeThread {
    /// The runtime for it. What is put on it waits for [`RuntimeThread::start`].
    pub(super) fn runtime() -> io::Result<Runtime> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    }

    /// Starts the thread.
    pub(super) fn start(name: &str, runtime: Runtime) -> io::Result<RuntimeThread> {
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            let _ = runtime.block_on(stopped);
            // A name that is being resolved must not hold it up.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(RuntimeThread { stop: Some(stop), thread: Some(thread) })
    }

    /// Leaves the thread to the end of the process.
    pub(super) fn detach(mut self) {
        self.thread = None;
    }
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended too.
            let _ = thread.join();
        }
    }
}
