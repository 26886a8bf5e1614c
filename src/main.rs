//! The `cableway` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    cableway::os::allocator::give_back_early();
    cableway::cli::run()
}
