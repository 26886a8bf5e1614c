//! The `cableway` program.

// The allocator is the C library's, told to give large blocks back at once. Measured over 15,000 connections
// (loadtest/results/, `cargo xtask bench memory`): jemalloc and mimalloc hold 5 to 10 % more for the same sessions and keep
// some 22 MB after a burst of 60 KB messages, where this one keeps nothing.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn main() -> std::process::ExitCode {
    cableway::os::allocator::give_back_early();
    cableway::cli::run()
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn main() {
    compile_error!("Cableway runs on 64-bit Linux only: it is built on epoll, eventfd and SO_REUSEPORT");
}
