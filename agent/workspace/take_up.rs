//! What an earlier agent left on the pool: taken up where it is whole and somebody's, else removed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use stoker_core::reason::{Code, Reason};
use tokio::sync::watch;

use super::caches::Line;
use super::disk::unwritable;
use super::{Entry, Method, Preparing, Submodule, Workspace, Workspaces, record};
use crate::admission::now;
use crate::node::mount;
use crate::repository::SnapshotPin;

impl Workspaces {
    /// Takes up what is on the pool, where that was not done yet.
    ///
    /// # Errors
    /// When the pool is not there now, or it is not known yet which snapshots are.
    pub(super) fn take_up_once(&self) -> Result<(), Reason> {
        let mut taken_up = self.inner.taken_up.lock().unwrap_or_else(PoisonError::into_inner);
        let root = self.inner.pools.usable(&self.inner.pool)?;
        if !*taken_up {
            if !self.inner.repositories.are_known() {
                let message = "what lies on the pool of the repositories is being looked at; ask again".to_owned();
                return Err(Reason::new(Code::PoolNotReady, &self.inner.pool, message));
            }
            self.inner.admission.take_pins();
            self.choose(&root).and_then(|_| self.inner.checkouts.take_up(&root)).map_err(|e| unwritable(&root, &e))?;
            self.take_up(&root);
            *taken_up = true;
            self.inner.holds.send_replace(true);
        }
        Ok(())
    }

    /// What is on the disk: whole workspaces of live leases are known again, everything else goes.
    fn take_up(&self, root: &Path) {
        let admission = &self.inner.admission;
        let (mut known, mut over) = (BTreeMap::new(), BTreeMap::new());
        for workspace in record::read_all(root) {
            let lease = workspace.lease.as_ref();
            let lease = lease.and_then(|id| admission.read(|ledger| ledger.lease(id).cloned()));
            let live = match &workspace.lease {
                Some(_) => lease.as_ref().is_some_and(|lease| lease.live()),
                None => workspace.expires_at.is_some_and(|at| at > now()),
            };
            let kept = workspace.checkout.as_ref().and_then(|name| self.inner.checkouts.named(name));
            if live && is_whole(&workspace, kept.is_some()) {
                let pin = lease.and_then(|lease| admission.pin_of(&lease.request_id));
                let pin = pin.or_else(|| admission.pin_named(&workspace.source));
                let pins = pin.into_iter().chain(self.pins_of(&workspace)).collect();
                let id = workspace.id.clone();
                let line = Line {
                    tenant: name_of(&workspace.cache),
                    keys: workspace.cache_keys.iter().cloned().collect(),
                    repository: workspace.source.repository.clone(),
                    commit: workspace.source.commit,
                    form: workspace.form,
                    several: workspace.manifest.is_some(),
                    slot: workspace.cache_slot,
                };
                let (lease, expires_at) = (workspace.lease.clone(), workspace.expires_at);
                let (_, stage) = watch::channel(Preparing::Ready(Arc::new(workspace)));
                let cancel = self.inner.cancel.child_token();
                known.insert(id, Entry { lease, expires_at, stage, cancel, pins, kept, line });
            } else {
                over.insert(workspace.id.clone(), workspace);
            }
        }
        for id in record::names(root) {
            if !known.contains_key(&id) {
                match self.end(&id, over.get(&id)) {
                    Ok(()) => tracing::info!(workspace = id, "removed: no live lease has it"),
                    Err(error) => tracing::warn!(%error, workspace = id, "not removed"),
                }
            }
        }
        *self.entries() = known;
        if let Err(error) = self.inner.outputs.look() {
            tracing::warn!(%error, "outputs were not looked at yet; tried again");
        }
    }

    /// What keeps the submodules and projects of a workspace that was read back.
    fn pins_of(&self, workspace: &Workspace) -> Vec<SnapshotPin> {
        let pin = |one: &Submodule| {
            let pin = self.inner.repositories.pin_named(&one.url, &one.snapshot);
            if pin.is_none() {
                tracing::warn!(workspace = workspace.id, path = one.path, "the snapshot of what lies there is gone");
            }
            pin
        };
        workspace.submodules.iter().chain(&workspace.projects).filter_map(pin).collect()
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether its files are there. Those of an overlay go with its mount, so with the machine.
fn is_whole(workspace: &Workspace, is_kept: bool) -> bool {
    let scratch = workspace.tmpfs_bytes.is_none() || mount::is_mount(&workspace.tmp).unwrap_or(false);
    scratch
        && match workspace.method {
            Method::Overlay => is_kept && mount::is_mount(&workspace.src).unwrap_or(false),
            Method::Reflink | Method::Checkout => workspace.src.is_dir(),
        }
}
