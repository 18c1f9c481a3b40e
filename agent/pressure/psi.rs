//! Being woken by the kernel when work stalls for memory: triggers of pressure stall information.
//!
//! The kernel's `Documentation/accounting/psi.rst`: who writes `some 150000 2000000` to an open file of
//! `/proc/pressure` is told by `POLLPRI` when work stalled for 150 ms within 2 s, at most once in that time. Without
//! `CAP_SYS_RESOURCE` the window must be a multiple of 2 s (since Linux 6.4, and in later releases of 6.1), and the kernel
//! looks every 2 s only; before that the capability is needed. A container often sees these files read-only. Where it
//! cannot be had, the averages do.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc::O_NONBLOCK;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::kernel_file::is_procfs;

/// Some work stalls for 7.5% of 2 s: memory is worth a look.
const SOME: &str = "some 150000 2000000\0";
/// All work stalls for 20% of 2 s, which is where the gate shuts.
const FULL: &str = "full 400000 2000000\0";

/// How the room learns of stalls for memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StallSource {
    /// The kernel says so at once.
    Triggers,
    /// Its averages are read each second; why not triggers.
    Averages(String),
}

impl Default for StallSource {
    fn default() -> Self {
        Self::Averages("not tried yet".to_owned())
    }
}

impl StallSource {
    /// One word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Triggers => "triggers",
            Self::Averages(_) => "averages",
        }
    }

    /// Why it is not triggers; empty where it is.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Triggers => "",
            Self::Averages(why) => why,
        }
    }
}

/// What a trigger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stalled {
    /// Some work, for as long as [`SOME`] says.
    Some,
    /// All work, for as long as [`FULL`] says.
    Full,
}

/// Armed triggers; they end with their descriptors.
#[derive(Debug)]
pub(super) struct Triggers([AsyncFd<File>; 2]);

impl Triggers {
    /// To be called inside a runtime.
    ///
    /// # Errors
    /// In words, why the kernel does not give any.
    pub(super) fn arm(proc: &Path) -> Result<Self, String> {
        let path = proc.join("pressure/memory");
        let told = |error: io::Error| format!("{}: {error}", path.display());
        Ok(Self([arm(&path, SOME).map_err(told)?, arm(&path, FULL).map_err(told)?]))
    }

    /// Returns when work stalls, with how much of it.
    ///
    /// # Errors
    /// The kernel took a trigger away.
    pub(super) async fn fired(&self) -> io::Result<Stalled> {
        let [some, full] = &self.0;
        tokio::select! {
            biased;
            fired = fired(full) => fired.map(|()| Stalled::Full),
            fired = fired(some) => fired.map(|()| Stalled::Some),
        }
    }
}

fn arm(path: &Path, trigger: &str) -> io::Result<AsyncFd<File>> {
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(path)?;
    if !is_procfs(&file) {
        // A recorded tree, which is not to be written to.
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not a file of the kernel"));
    }
    file.write_all(trigger.as_bytes())?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types that may close their descriptor early: no File does"
    )]
    AsyncFd::with_interest(file, Interest::PRIORITY)
}

async fn fired(trigger: &AsyncFd<File>) -> io::Result<()> {
    let mut guard = trigger.ready(Interest::PRIORITY | Interest::ERROR).await?;
    let ready = guard.ready();
    guard.clear_ready();
    if ready.is_error() { Err(io::Error::other("the kernel took the trigger away")) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_recorded_tree_is_never_written_to() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("pressure/memory");
        std::fs::create_dir(place.path().join("pressure")).unwrap();
        let error = Triggers::arm(place.path()).unwrap_err();
        assert!(error.contains("pressure/memory"), "{error}");
        std::fs::write(&path, "some avg10=0.00").unwrap();
        let error = Triggers::arm(place.path()).unwrap_err();
        assert!(error.contains("not a file of the kernel"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "some avg10=0.00");
    }

    /// Root is given triggers wherever the kernel has the file and it may be written; they stay armed. Whether one fires
    /// meanwhile is the machine's affair.
    #[tokio::test]
    async fn who_may_write_the_kernels_file_is_given_triggers() {
        let armed = Triggers::arm(Path::new("/proc"));
        let writable = File::options().read(true).write(true).open("/proc/pressure/memory");
        match (writable, armed) {
            (Ok(_), Ok(triggers)) => {
                let fired = tokio::time::timeout(std::time::Duration::from_millis(50), triggers.fired()).await;
                assert!(matches!(fired, Err(_) | Ok(Ok(_))), "the kernel took a trigger away");
            }
            (Ok(_), Err(why)) => assert!(!nix::unistd::geteuid().is_root(), "{why}"),
            (Err(error), Err(why)) => assert!(why.starts_with("/proc/pressure/memory: "), "{why}, and {error}"),
            (Err(error), Ok(_)) => panic!("armed on a file that cannot be written: {error}"),
        }
    }
}
