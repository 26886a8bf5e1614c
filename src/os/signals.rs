//! Signals that must not end the process.

use libc::c_int;

/// What ends a process that says nothing about it, and means nothing to this one. Terminals, shells and process managers
/// send the first five; the last two are about the log: a file that may not grow further, and a terminal that belongs to
/// somebody else. With them ignored such a write fails, or succeeds.
const MEANINGLESS: [c_int; 7] =
    [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTOU];

/// Ignores them from now on. Whoever has a use for one listens for it later.
pub fn ignore_meaningless() {
    for signal in MEANINGLESS {
        // SAFETY: `SIG_IGN` runs no code of ours, and each of these signals may be ignored.
        #[allow(unsafe_code, reason = "sigaction has no safe wrapper")]
        unsafe {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}
