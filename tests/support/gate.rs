//! A place in a build's script: the build tells that it got there and waits, without a clock on either side.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::stat::Mode;
use tempfile::TempDir;

use super::wait;

/// How long a build may take to get there, on two busy cores.
const REACHED_WITHIN: Duration = Duration::from_secs(60);

/// Dropped, it lets the build go on, so that a test that fails leaves nobody waiting.
pub(crate) struct Gate {
    place: TempDir,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let place = tempfile::Builder::new().prefix("gate-").tempdir().unwrap();
        nix::unistd::mkfifo(&place.path().join("go"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        Self { place }
    }

    /// The line of a shell script that stops at the gate.
    pub(crate) fn stop(&self) -> String {
        let place = self.place.path().display();
        format!(": > '{place}/here'; read -r went < '{place}/go'")
    }

    /// The file that is there when the build is.
    pub(crate) fn mark(&self) -> PathBuf {
        self.place.path().join("here")
    }

    /// Waits until the build is at the gate.
    #[track_caller]
    pub(crate) fn reached(&self) {
        wait::until(REACHED_WITHIN, "the build is at the gate", || self.mark().exists());
    }

    /// Lets the build go on. It must be at the gate, or come there.
    #[track_caller]
    pub(crate) fn open(&self) {
        // Until somebody reads, opening a pipe without blocking is refused.
        wait::until(REACHED_WITHIN, "the build goes through the gate", || self.try_open());
    }

    fn try_open(&self) -> bool {
        let pipe = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(self.place.path().join("go"));
        pipe.is_ok_and(|mut pipe| pipe.write_all(b"go\n").is_ok())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Who comes later finds no pipe, and fails.
        self.try_open();
    }
}
