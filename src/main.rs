//! The `cableway` program.

use std::process::ExitCode;

// The allocator is the C library's, told to give large blocks back at once. Measured over 15,000 connections
// (loadtest/results/, `cargo xtask bench memory`): jemalloc and mimalloc hold 5 to 10 % more for the same sessions and keep
// some 22 MB after a burst of 60 KB messages, where this one keeps nothing.
fn main() -> ExitCode {
    cableway::os::allocator::give_back_early();
    cableway::cli::run()
}
