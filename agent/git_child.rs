//! What a git child is before it is git, and whom git asks for credentials: a part of `stoker` in a program of its own.
//!
//! `stoker` can do the same, and does where this program does not lie beside it. But all of `stoker` has to be mapped and
//! relocated for each git that starts, and that takes some times as long as the start of git itself.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    // 64: wrong usage, as EX_USAGE of sysexits(3).
    ExitCode::from(stoker::repository::hidden_command(&args).unwrap_or(64))
}
