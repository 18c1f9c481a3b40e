//! Whether the pool is there, looked at all the time and not only before each use.
//!
//! A pool that is unmounted under way must be let go of: what is being fetched ends, and no snapshot stays open, for a
//! filesystem that was detached lazily lives as long as somebody holds it. When it is there again, what waited for it
//! goes on at once, and not when the pause after the next failure is over.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use stoker_core::reason::Code;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::fetch::blocking;
use super::{Shared, lock};

/// Two system calls each time.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What visits to upstream hold on to while they write to the pool.
#[derive(Default)]
pub(super) struct Presence {
    lost: Mutex<CancellationToken>,
}

impl Presence {
    /// Cancelled when the pool goes. To be asked right after the pool was found to be there.
    pub(super) fn token(&self) -> CancellationToken {
        let mut lost = lock(&self.lost);
        if lost.is_cancelled() {
            *lost = CancellationToken::new();
        }
        lost.clone()
    }

    fn lose(&self) {
        lock(&self.lost).cancel();
    }
}

/// Looks until the agent stops.
pub(super) async fn guard(shared: Arc<Shared>) {
    let mut there = shared.recovery.initialized();
    while shared.cancel.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
        let root = Arc::clone(&shared.pool.root);
        // A filesystem that hangs holds one thread, and does not keep the agent from ending.
        let look = shared.cancel.run_until_cancelled(blocking("pool", move || root().is_ok()));
        let Some(now) = look.await else { return };
        let now = now.unwrap_or(false);
        match (there, now) {
            // Again and again: a reader may have had a snapshot in its hands the last time.
            (_, false) => {
                shared.presence.lose();
                shared.reader.forget_all();
            }
            (false, true) => arrived(&shared).await,
            (true, true) => {}
        }
        there = now && shared.recovery.initialized();
    }
}

/// Takes over what is on the pool, where that was never done, and wakes everything that waited for it.
async fn arrived(shared: &Arc<Shared>) {
    if let Err(reason) = shared.recovered().await {
        tracing::warn!(reason = reason.code.word(), "repositories cannot be taken over yet: {}", reason.message);
        return;
    }
    for entry in shared.all() {
        let waits = {
            let state = entry.state();
            let failed = state.meta.error.as_ref().is_some_and(|reason| reason.code == Code::PoolNotReady);
            // Another disk than before has other snapshots, or none.
            let without = state.current.as_ref().is_none_or(|pin| !pin.path().is_dir());
            let asked_for = state.is_asked_for();
            !state.meta.removed && state.meta.evicted.is_none() && !asked_for && (failed || without)
        };
        if waits {
            entry.refresh_in(Duration::ZERO, shared.now());
        }
    }
    shared.tick();
}
