//! The `stoker` command. Arguments in, an exit code out; everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(stoker::cli::main(std::env::args_os()))
}
