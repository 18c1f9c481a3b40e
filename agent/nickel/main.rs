//! `stoker-nickel --memory BYTES --seconds N [--user UID:GID] <SOURCE >FIELDS`: one Nickel build spec to its fields.
//!
//! The source comes from people whom the node need not trust, and Nickel is a whole language. So before a byte of it is
//! read this process bounds its memory and CPU, lays off its user, and can open nothing any more: no file, no socket.
//! Out goes one JSON document, `{"fields": [{"name", "line", "value"}]}` with status 0, or
//! `{"error": {"line", "kind"}}` with status 1: of an error nothing but where it is and of what kind. Whoever starts it
//! bounds its time and its output, and reads the end of a process that reached a limit.

mod evaluate;
mod limits;

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use serde_json::{Value, json};

use evaluate::{Failure, evaluate};
use limits::Limits;

/// The most bytes of a source; one more says that there are more.
const SOURCE_BYTES_MAX: u64 = 64 << 10;
/// Wrong usage, as `EX_USAGE` of sysexits(3).
const USAGE: u8 = 64;
/// It could not bound itself, so it read nothing.
const UNBOUNDED: u8 = 125;

fn main() -> ExitCode {
    let Some(limits) = Limits::parse(std::env::args().skip(1)) else {
        let _ = writeln!(std::io::stderr(), "usage: stoker-nickel --memory BYTES --seconds N [--user UID:GID] <SOURCE");
        return ExitCode::from(USAGE);
    };
    if let Err(error) = limits.enforce() {
        let _ = writeln!(std::io::stderr(), "limits cannot be set: {error}");
        return ExitCode::from(UNBOUNDED);
    }
    // A message with what is in the source is nobody's business.
    std::panic::set_hook(Box::new(|_| {}));
    let found = std::panic::catch_unwind(read_and_evaluate).unwrap_or(Err(Failure::new("the evaluator failed")));
    let (answer, code) = match found {
        Ok(fields) => (json!({ "fields": fields }), ExitCode::SUCCESS),
        Err(Failure { line, kind }) => (json!({ "error": { "line": line, "kind": kind } }), ExitCode::FAILURE),
    };
    match writeln!(std::io::stdout(), "{answer}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn read_and_evaluate() -> Result<Vec<Value>, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(SOURCE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|_| Failure::new("it cannot be read"))?;
    if bytes.len() as u64 > SOURCE_BYTES_MAX {
        return Err(Failure::new("it has more than 65536 bytes"));
    }
    evaluate(&String::from_utf8(bytes).map_err(|_| Failure::new("it is not UTF-8"))?)
}
