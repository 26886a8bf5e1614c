//! Faults at chosen moments of an upgrade, which only tests of debug builds can ask for: what a crash between two messages leaves
//! behind cannot be tried otherwise. A release build has none of this.
//!
//! `CABLEWAY_TEST_FAULT_FILE` names a file with one line, `ROLE MOMENT NUMBER ACTION`, such as `new receive 3 die`: the process that takes over
//! (`new`) or hands over (`old`) ends (`die`), stops for ever (`hang`), or waits (`wait`), just before it sends (`send`) or after it has
//! received (`receive`) its message of this number, on whichever channel. It is read each time, so a test may change its mind. One that
//! waits writes `waits` and its number into the file, and goes on when that says something else.

/// Before a message is sent, or after one has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before.
    Send,
    /// After.
    Receive,
}

#[cfg(not(debug_assertions))]
pub use absent::{at, is_new};
#[cfg(debug_assertions)]
pub use present::{at, is_new};

#[cfg(not(debug_assertions))]
mod absent {
    /// This process takes over.
    pub fn is_new() {}

    /// Nothing happens.
    pub fn at(_: super::Moment) {}
}

#[cfg(debug_assertions)]
mod present {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    use std::time::Duration;
    use std::{env, fs, thread};

    use super::Moment;

    /// The environment variable that names the file.
    const VARIABLE: &str = "CABLEWAY_TEST_FAULT_FILE";

    static IS_NEW: AtomicBool = AtomicBool::new(false);
    static SENT: AtomicU64 = AtomicU64::new(0);
    static RECEIVED: AtomicU64 = AtomicU64::new(0);

    /// This process takes over.
    pub fn is_new() {
        IS_NEW.store(true, Relaxed);
    }

    /// Does what the file asks for at this moment.
    pub fn at(moment: Moment) {
        let (counter, name) = match moment {
            Moment::Send => (&SENT, "send"),
            Moment::Receive => (&RECEIVED, "receive"),
        };
        let number = (counter.fetch_add(1, Relaxed) + 1).to_string();
        let Some(file) = env::var_os(VARIABLE) else { return };
        let Ok(text) = fs::read_to_string(&file) else { return };
        let role = if IS_NEW.load(Relaxed) { "new" } else { "old" };
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            [of, at, n, "die"] if of == role && at == name && n == number => {
                let own = rustix::process::getpid();
                let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
            }
            [of, at, n, "hang"] if of == role && at == name && n == number => loop {
                thread::sleep(Duration::from_secs(3600));
            },
            [of, at, n, "wait"] if of == role && at == name && n == number => {
                let waits = format!("waits {}", std::process::id());
                let written = fs::write(&file, &waits);
                while written.is_ok() && fs::read_to_string(&file).is_ok_and(|text| text == waits) {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            _ => {}
        }
    }
}
