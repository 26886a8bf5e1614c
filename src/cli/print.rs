//! Commands that print what is made from the table of options: completions for shells, and the man page.

use std::io::{self, Write};
use std::process::ExitCode;

use super::{USAGE_ERROR, complain};
use crate::config::{self, SHELLS};

/// The command for completions.
pub(super) const COMPLETIONS_COMMAND: &str = "completions";

/// The command for the man page.
pub(super) const MAN_COMMAND: &str = "man";

/// Prints the completions of the shell that is named.
pub(super) fn completions(mut words: impl Iterator<Item = String>) -> ExitCode {
    let shells = SHELLS.join("|");
    let usage = format!(
        "usage: cableway completions {shells}\n\n  \
         bash   cableway completions bash > /usr/share/bash-completion/completions/cableway\n  \
         zsh    cableway completions zsh > /usr/share/zsh/vendor-completions/_cableway\n  \
         fish   cableway completions fish > /usr/share/fish/vendor_completions.d/cableway.fish"
    );
    print(
        &usage,
        match (words.next().as_deref(), words.next()) {
            (Some("--help" | "-h"), _) => Some(usage.clone()),
            (Some(shell), None) => config::completions(shell),
            _ => None,
        },
    )
}

/// Prints the man page.
pub(super) fn man(mut words: impl Iterator<Item = String>) -> ExitCode {
    let usage = "usage: cableway man\n\n  cableway man | man -l -";
    print(
        usage,
        match words.next().as_deref() {
            None => Some(config::man()),
            Some("--help" | "-h") => Some(usage.to_owned()),
            Some(_) => None,
        },
    )
}

/// Prints a text, or without one the usage as an error.
fn print(usage: &str, text: Option<String>) -> ExitCode {
    let Some(text) = text else {
        complain(usage);
        return ExitCode::from(USAGE_ERROR);
    };
    // Somebody who closed the pipe has read enough.
    let _ = writeln!(io::stdout(), "{}", text.trim_end());
    ExitCode::SUCCESS
}
