//! A clock that goes faster, for a program that waits for minutes: see `fast_clock.c`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the library reads.
pub(crate) const TIMES: &str = "STOKER_CLOCK_TIMES";

/// The library, made in a folder; it is for `LD_PRELOAD`.
pub(crate) fn library(folder: &Path) -> PathBuf {
    let library = folder.join("fast_clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/fast_clock.c");
    let made = Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).args([source, "-ldl"]).output();
    let made = made.unwrap();
    assert!(made.status.success(), "cc: {}", String::from_utf8_lossy(&made.stderr));
    library
}
