//! The `cableway` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    cableway::cli::run()
}
