//! How the C library's allocator gives memory back.

/// Blocks from this size on come from the kernel one by one and go back the moment they are freed.
///
/// The only large blocks of a parked server are the buffers of unfinished messages. Out of the heap they would leave
/// holes between the small blocks of sessions, and the heap would keep what a busy minute took. 32 KiB is half of the
/// largest client message by default; a block like that costs a system call, which is little beside receiving it.
pub const MAPPED_FROM: usize = 32 * 1024;

/// Sets [`MAPPED_FROM`], and has the heap's end given back from 64 KiB on. Call it first thing in `main`.
///
/// glibc only; elsewhere nothing happens. Without it glibc raises its threshold (to 32 MiB) when such a block is freed,
/// and from then on takes them from the heap.
pub fn give_back_early() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
    // SAFETY: mallopt takes two numbers and touches nothing but the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM as libc::c_int);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
    }
}
