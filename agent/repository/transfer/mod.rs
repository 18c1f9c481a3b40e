//! What exports, imports and thorough checks share: how many run at once, how much room there is, how bytes come and go.

mod archive;
mod export;
mod import;
mod seeds;
mod stream;
mod takeover;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use stoker_core::reason::{Code, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::entry::{Entry, stopping};
use super::git::GitError;
pub use export::{Export, archive_of_path};
pub use import::ImportTarget;
pub(super) use seeds::plant;
pub use stream::{CHUNK_BYTES, Chunks};

/// How many imports, exports and thorough checks run at once, all together.
const TRANSFERS_MAX: usize = 4;

/// What they share.
pub(super) struct Transfers {
    /// How often each step mended a store.
    pub(super) heals: Mutex<BTreeMap<&'static str, u64>>,
    places: Arc<Semaphore>,
    numbers: AtomicU64,
}

impl Default for Transfers {
    fn default() -> Self {
        Self { heals: Mutex::default(), places: Arc::new(Semaphore::new(TRANSFERS_MAX)), numbers: AtomicU64::new(0) }
    }
}

impl Transfers {
    /// A place, where one is free: who comes too late is told so, and is not kept waiting with an open stream.
    pub(super) fn place(&self, subject: &str) -> Result<OwnedSemaphorePermit, Reason> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let message =
                format!("{TRANSFERS_MAX} imports, exports and checks run already; ask again when one is over");
            Reason::new(Code::UpstreamTimeout, subject, message)
        })
    }

    /// A number that no other staging directory of this agent has.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::SeqCst)
    }
}

/// Shown as at work while it lives, beside the repository's own task.
pub(super) struct Beside(Arc<Entry>);

impl Beside {
    pub(super) fn begin(shared: &Shared, entry: &Arc<Entry>) -> Self {
        entry.state().beside += 1;
        shared.tick();
        Self(Arc::clone(entry))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.beside = state.beside.saturating_sub(1);
        if state.beside == 0 && !state.busy {
            drop(state);
            self.0.progress.send_replace(super::Progress::default());
        }
    }
}

/// Runs what writes to the pool. It is told when the pool goes, the repository is removed or the agent stops, and comes
/// to its own end then.
pub(super) async fn guarded<T>(
    shared: &Shared,
    entry: &Entry,
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Reason>>,
) -> Result<T, Reason> {
    (shared.pool.root)()?;
    let lost = shared.presence.token();
    tokio::pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        () = lost.cancelled() => {
            cancel.cancel();
            work.await
        }
    };
    // Whatever broke because the pool went is told as that.
    done.map_err(|reason| match (shared.pool.root)() {
        Err(away) => away,
        Ok(_) if entry.stop.is_cancelled() => stopping(&entry.url),
        Ok(_) => reason,
    })
}

/// What a git command that works on what was brought means: never that an upstream is away.
pub(super) fn local_reason(error: &GitError, subject: &str, doing: &str) -> Reason {
    let reason = error.reason(subject, doing);
    match (error, reason.code) {
        (_, Code::DiskFloor | Code::PoolNotReady | Code::GitKilled) => reason,
        (GitError::Failed { .. }, _) => Reason { code: Code::RepositoryCorrupt, ..reason },
        _ => reason,
    }
}
