//! Lines on their way out. Whoever logs puts a line into a bounded queue and goes on; one thread writes them.
//!
//! So a log that nobody reads, a full disk or a closed pipe costs lines, which are counted, and nothing else: no thread of the
//! server ever waits for the log, and no error of it reaches one. `tracing-appender` does nearly the same, but it says on
//! standard error that it could not flush, and waits there for the same reader.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::os::clock::Clock;
use crate::os::signals;
use crate::telemetry::LOG_LINES_DROPPED;

/// Bytes that may wait: some seconds of a busy server at debug. A line that finds no room is dropped.
const BYTES_MAX: usize = 1 << 20;

/// Room that is kept when the queue runs empty.
const BYTES_KEPT: usize = 16 << 10;

/// Time before a descriptor that takes nothing just now is tried again. Ours do not block only when another process set
/// that on a terminal or pipe that it shares with us.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Time between two reports, see [`Queue::start`].
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The queue's end that takes lines.
#[derive(Clone)]
pub(super) struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    /// Held to copy a line or to swap two buffers.
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes whoever flushes.
    written: Condvar,
    clock: Clock,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// The writer is busy with lines that it took.
    writing: bool,
    report_at: Option<Duration>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Starts the thread that writes to `stream`. It calls `report` in the second after [`Queue::want_report`], when it may
    /// log something of its own.
    pub fn start(stream: impl Write + Send + 'static, report: impl Fn() + Send + 'static) -> io::Result<Queue> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            written: Condvar::new(),
            clock: Clock::start(),
        });
        let queue = Queue { shared: Arc::clone(&shared) };
        thread::Builder::new().name("log".into()).spawn(move || {
            // For others to take: this thread may be the only one for a moment, and listens for nothing.
            signals::block();
            run(&shared, stream, &report);
        })?;
        Ok(queue)
    }

    /// Queues a line made of these pieces, or drops and counts it.
    pub fn put(&self, pieces: &[&[u8]]) {
        let mut state = self.shared.state();
        if state.lines.len() + pieces.iter().map(|piece| piece.len()).sum::<usize>() > BYTES_MAX {
            drop(state);
            return LOG_LINES_DROPPED.inc();
        }
        pieces.iter().for_each(|piece| state.lines.extend_from_slice(piece));
        drop(state);
        self.shared.work.notify_one();
    }

    /// Asks for a report.
    pub fn want_report(&self) {
        let at = self.shared.clock.now().mono + REPORT_EVERY;
        let mut state = self.shared.state();
        if state.report_at.is_none() {
            state.report_at = Some(at);
            drop(state);
            self.shared.work.notify_one();
        }
    }

    /// Waits until everything is written, but not longer than this.
    pub fn flush(&self, at_most: Duration) {
        let state = self.shared.state();
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        drop(self.shared.written.wait_timeout_while(state, at_most, busy));
    }
}

/// The thread: writes whatever came since it looked last, in one piece.
fn run(shared: &Shared, mut stream: impl Write, report: &dyn Fn()) {
    let mut lines = Vec::new();
    loop {
        let report_is_due = take(shared, &mut lines);
        if let Err(unwritten) = write_out(&mut stream, &lines) {
            LOG_LINES_DROPPED.add(unwritten.iter().filter(|&&byte| byte == b'\n').count() as u64);
        }
        lines.clear();
        lines.shrink_to(BYTES_KEPT);
        if report_is_due {
            report();
        }
    }
}

/// Waits for lines, or for a report to be due; tells whether one is.
fn take(shared: &Shared, lines: &mut Vec<u8>) -> bool {
    let mut state = shared.state();
    state.writing = false;
    shared.written.notify_all();
    loop {
        let left = state.report_at.map(|at| at.saturating_sub(shared.clock.now().mono));
        let report_is_due = left.is_some_and(|left| left.is_zero());
        if report_is_due || !state.lines.is_empty() {
            std::mem::swap(&mut state.lines, lines);
            state.writing = true;
            if report_is_due {
                state.report_at = None;
            }
            return report_is_due;
        }
        state = match left {
            Some(left) => shared.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            None => shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

/// Writes all of it. On an error, gives what was not written.
fn write_out<'a>(stream: &mut impl Write, mut bytes: &'a [u8]) -> Result<(), &'a [u8]> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(bytes),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TRY_AGAIN_AFTER),
            Err(_) => return Err(bytes),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a piece whenever the test lets it, or fails.
    struct Reluctant {
        may: mpsc::Receiver<io::Result<usize>>,
        took: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = self.may.recv().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
            self.took.send(bytes[..n].to_vec()).map_err(io::Error::other)?;
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn reluctant() -> (Queue, mpsc::Sender<io::Result<usize>>, mpsc::Receiver<Vec<u8>>) {
        let ((let_it, may), (took, taken)) = (mpsc::channel(), mpsc::channel());
        (Queue::start(Reluctant { may, took }, || ()).unwrap(), let_it, taken)
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_what_cannot_be_written_too_and_both_are_counted() {
        // The count belongs to the process, so one test looks at it.
        let (queue, let_it, taken) = reluctant();
        queue.put(&[b"first\n"]);
        let_it.send(Ok(2)).unwrap();
        assert_eq!(taken.recv().unwrap(), b"fi");
        // The thread has the first line, and nobody takes the rest of it: all others wait.
        let line = [b'x'; 1024];
        let before = LOG_LINES_DROPPED.get();
        (0..1024).for_each(|_| queue.put(&[&line[1..], b"\n"]));
        assert_eq!(LOG_LINES_DROPPED.get(), before);
        queue.put(&[b"\n"]);
        assert_eq!(LOG_LINES_DROPPED.get(), before + 1);
        let_it.send(Err(ErrorKind::StorageFull.into())).unwrap();
        let_it.send(Err(ErrorKind::WouldBlock.into())).unwrap();
        let_it.send(Err(ErrorKind::Interrupted.into())).unwrap();
        drop(let_it);
        assert_eq!(taken.recv().unwrap().len(), BYTES_MAX);
        queue.flush(Duration::MAX);
        assert_eq!(LOG_LINES_DROPPED.get(), before + 2, "the rest of the first line is lost, no other");
    }

    #[test]
    fn a_flush_waits_for_the_last_line_but_not_for_ever() {
        let (queue, let_it, taken) = reluctant();
        queue.put(&[b"a\n", b"b\n"]);
        queue.flush(Duration::from_millis(1));
        assert!(taken.try_recv().is_err());
        drop(let_it);
        queue.flush(Duration::MAX);
        assert_eq!(taken.try_recv().unwrap(), b"a\nb\n");
    }

    #[test]
    fn a_report_is_made_once_for_each_time_that_some_were_wanted() {
        let (reported, reports) = mpsc::channel();
        let queue = Queue::start(io::sink(), move || reported.send(()).unwrap_or_default()).unwrap();
        (0..3).for_each(|_| queue.want_report());
        reports.recv().unwrap();
        assert!(reports.try_recv().is_err());
        queue.want_report();
        reports.recv().unwrap();
    }
}
