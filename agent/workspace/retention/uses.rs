//! Which caches of tenants builds had since somebody asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::workspace::{ShownCache, Workspace, caches};

/// More are not remembered: they were used long ago for those who ask next.
const USES_MAX: usize = 10_000;

/// Caches that were used.
#[derive(Debug, Default)]
pub(in crate::workspace) struct Uses(Mutex<BTreeSet<PathBuf>>);

impl Uses {
    /// A build had the caches that it asked for.
    pub(in crate::workspace) fn add(&self, workspace: &Workspace) {
        let folder = caches::folder(&workspace.cache, workspace.cache_slot);
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = USES_MAX.saturating_sub(uses.len());
        uses.extend(workspace.cache_keys.iter().take(room).map(|key| folder.join(key)));
    }

    /// A volume shows caches.
    pub(super) fn add_shown(&self, folder: &Path, shown: &BTreeSet<ShownCache>) {
        let one = |shown: &ShownCache| Some(folder.join(shown.path()?));
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = USES_MAX.saturating_sub(uses.len());
        uses.extend(shown.iter().filter_map(one).take(room));
    }

    /// All since the last call.
    pub(super) fn take(&self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
