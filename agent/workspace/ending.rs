//! Who ends a workspace: one at a time, and nobody makes it anew before that is done. The same of a tenant's caches, of
//! which one is removed.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use stoker_core::reason::{Code, Reason};

use super::Workspaces;

/// So long a build that begins waits for the removal of a cache of its tenant.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);

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

    /// The right to remove caches of a tenant; nothing where somebody else has it. Whoever looks for builds and volumes that
    /// have them after this sees all that began before; nothing begins meanwhile.
    pub(super) fn reserve_caches(&self, tenant: &str) -> Option<Removing> {
        let is_free = self.inner.removing.send_if_modified(|tenants| tenants.insert(tenant.to_owned()));
        is_free.then(|| Removing { room: self.clone(), tenant: tenant.to_owned() })
    }

    /// Asked by who is about to use a tenant's caches, once that is told: with the entries locked where one is added.
    ///
    /// # Errors
    /// `POOL_NOT_READY` while somebody removes one of them.
    pub(super) fn refuse_removing(&self, tenant: &str) -> Result<(), Reason> {
        match self.inner.removing.borrow().contains(tenant) {
            true => Err(Reason::new(Code::PoolNotReady, tenant, "a cache of the tenant is being removed; ask again")),
            false => Ok(()),
        }
    }

    /// Waits until nobody removes a cache of a tenant, for a while: that waits for the disk.
    pub(super) async fn caches_stay(&self, tenant: &str) {
        let mut removing = self.inner.removing.subscribe();
        let _ = tokio::time::timeout(REMOVED_WITHIN, removing.wait_for(|tenants| !tenants.contains(tenant))).await;
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

/// The right to remove caches of a tenant, until it is dropped.
pub(super) struct Removing {
    room: Workspaces,
    tenant: String,
}

impl Drop for Removing {
    fn drop(&mut self) {
        self.room.inner.removing.send_if_modified(|tenants| tenants.remove(&self.tenant));
    }
}
