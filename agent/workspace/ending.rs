//! Who ends a workspace: one at a time, and nobody makes it anew before that is done.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use stoker_core::reason::{Code, Reason};

use super::Workspaces;

/// The right to end the workspace of an id, until it is dropped.
pub(super) struct Ending {
    room: Workspaces,
    id: String,
}

impl Workspaces {
    /// Nothing where somebody else ends it. Whoever looks for the id's entry after this sees all that began before;
    /// nothing begins meanwhile.
    pub(super) fn reserve(&self, id: &str) -> Option<Ending> {
        let is_free = self.those_ending().insert(id.to_owned());
        is_free.then(|| Ending { room: self.clone(), id: id.to_owned() })
    }

    /// Asked with the entries locked, by who is about to add one.
    ///
    /// # Errors
    /// `POOL_NOT_READY` while somebody ends what lies under this id.
    pub(super) fn refuse_ending(&self, id: &str) -> Result<(), Reason> {
        match self.those_ending().contains(id) {
            true => Err(Reason::new(Code::PoolNotReady, id, format!("workspace {id} is being removed; ask again"))),
            false => Ok(()),
        }
    }

    fn those_ending(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.inner.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.room.those_ending().remove(&self.id);
    }
}
