//! A helper that comes back: what failed for want of it is tried again at once.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::reason::Code;

use super::Shared;
use super::contain::Containment;
use super::git::{Helper, HelperState};

/// Follows the helper that git runs in, where it does, until the repositories close.
pub(super) async fn follow_helper(shared: Arc<Shared>) {
    let Some(mut states) = shared.git.containment().and_then(Containment::helper).map(Helper::watch) else { return };
    while let Some(Ok(())) = shared.cancel.run_until_cancelled(states.changed()).await {
        let is_ready = *states.borrow_and_update() == HelperState::Ready;
        if is_ready {
            let missed = |entry: &Arc<super::entry::Entry>| {
                let state = entry.state();
                state.meta.error.as_ref().is_some_and(|error| error.code == Code::GitHelperAway)
            };
            let missed = shared.all().into_iter().filter(missed);
            missed.for_each(|entry| entry.refresh_in(Duration::ZERO, shared.now()));
        }
        shared.tick();
    }
}
