//! The end of a workspace: what is to be kept is kept, then all else goes.

use std::io;

use super::super::{Workspace, Workspaces};
use super::{Ending, Outputs};
use crate::admission::now;

impl Workspaces {
    /// What builds left.
    #[must_use]
    pub fn outputs(&self) -> &Outputs {
        &self.inner.outputs
    }

    /// Ends a workspace; one that was never whole left nothing. Again is the same as once.
    pub(in crate::workspace) fn end(&self, id: &str, whole: Option<&Workspace>) -> io::Result<()> {
        if let Some(workspace) = whole {
            self.inner.uses.add(workspace);
            let ending = workspace.lease.as_ref().map(|lease| self.ending(lease)).unwrap_or_default();
            if let Err(error) = self.inner.outputs.keep(workspace, ending, now()) {
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                    // What is not kept makes room for the record of what is.
                    if let Err(error) = self.discard_scratch(id) {
                        tracing::warn!(%error, workspace = id, "its scratch cannot make room yet; tried again");
                    }
                }
                return Err(error);
            }
        }
        self.discard(id)
    }

    /// How the build of a lease ended, as far as it is known yet.
    pub(in crate::workspace) fn ending(&self, lease: &stoker_core::identity::LeaseId) -> Ending {
        self.inner.admission.read(|ledger| {
            let lease = ledger.lease(lease).filter(|lease| !lease.live());
            lease.map(|lease| Ending { outcome: lease.outcome, exit_code: lease.exit_code }).unwrap_or_default()
        })
    }
}
