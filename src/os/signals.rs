//! Signals that must not end the process, or not now.

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

/// What a server listens for.
const LISTENED_FOR: [c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGUSR2];

/// Those that a server listens for are kept from this thread from now on. Once no thread of the process takes them any more they
/// wait, also for another program that this process runs.
pub fn block() {
    mask(libc::SIG_BLOCK);
}

/// They may come to this thread again.
pub fn unblock() {
    mask(libc::SIG_UNBLOCK);
}

fn mask(how: c_int) {
    #[allow(unsafe_code, reason = "the mask of a thread has no safe wrapper")]
    // SAFETY: the set is made by `sigemptyset` before anything reads it, and lives through all calls; the numbers are signals.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in LISTENED_FOR {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}
