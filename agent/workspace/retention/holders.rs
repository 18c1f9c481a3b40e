//! Who holds what retention may not take, and the removals that must not race with them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_core::identity::LeaseId;
use stoker_core::quantity::Timestamp;

use crate::workspace::outputs::Ending;
use crate::workspace::{CACHES, ShownCache, Workspaces, record};

/// What is held.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Known {
    /// When each lease that lives was granted.
    pub leases: Vec<Timestamp>,
    /// The ids of workspaces that are there or come.
    pub workspaces: BTreeSet<String>,
    /// The folders of the tenants whose caches they have.
    pub caches: BTreeSet<String>,
    /// Caches that volumes show, each by itself.
    pub shown: BTreeSet<PathBuf>,
}

impl Known {
    /// Whether a name in the folder of the workspaces is of one that is there: its directory, or what is kept beside it.
    pub(super) fn has_workspace(&self, name: &str) -> bool {
        // Ids may have dots, so each beginning that ends before one is tried.
        let beginnings = name.match_indices('.').map(|(at, _)| &name[..at]);
        std::iter::once(name).chain(beginnings).any(|id| self.workspaces.contains(id))
    }
}

/// Takes a path and the folder of its tenant; false: it is held.
pub type RemoveCache = dyn Fn(&Path, &str) -> io::Result<bool> + Send + Sync;
/// Takes an id; false: it is held.
pub type RemoveWorkspace = dyn Fn(&str) -> io::Result<bool> + Send + Sync;

/// How retention asks the room of the workspaces.
#[derive(Clone)]
pub struct Holders {
    /// What is held now; nothing while that is not known yet.
    pub known: Arc<dyn Fn() -> Option<Known> + Send + Sync>,
    /// The caches that builds had since the last call.
    pub used: Arc<dyn Fn() -> BTreeSet<PathBuf> + Send + Sync>,
    /// How the build of a lease ended.
    pub ending: Arc<dyn Fn(&LeaseId) -> Ending + Send + Sync>,
    /// Removes a cache, unless a build of its tenant came meanwhile.
    pub remove_cache: Arc<RemoveCache>,
    /// Ends what lies in the folder of the workspaces under an id that nobody knows, unless it is known meanwhile.
    pub remove_workspace: Arc<RemoveWorkspace>,
}

impl Workspaces {
    /// What retention asks this room.
    #[must_use]
    pub fn holders(&self) -> Holders {
        let room = || self.clone();
        let (known, used, ending, cache, workspace) = (room(), room(), room(), room(), room());
        Holders {
            known: Arc::new(move || known.held()),
            used: Arc::new(move || used.inner.uses.take()),
            ending: Arc::new(move |lease| ending.ending(lease)),
            remove_cache: Arc::new(move |path, tenant| {
                // It waits for the disk, and others do not wait for that: the tenant alone is held. A build that comes has
                // its entry before it has its caches, and a volume is told before it does.
                let Some(_removing) = cache.reserve_caches(tenant) else { return Ok(false) };
                let is_it = |shown: &ShownCache| {
                    shown.path().is_some_and(|shown| path.ends_with(Path::new(CACHES).join(shown)))
                };
                let shows = |shown: &BTreeSet<ShownCache>| shown.iter().any(is_it);
                if cache.entries().values().any(|entry| entry.line.tenant == tenant)
                    || cache.shown().is_none_or(|shown| shows(&shown))
                {
                    return Ok(false);
                }
                cache.inner.pools.discard(path).map(|()| true)
            }),
            remove_workspace: Arc::new(move |id| {
                // Its end waits for the disk, and others do not wait for that: the id alone is held.
                let Some(_ending) = workspace.reserve(id) else { return Ok(false) };
                if workspace.entries().contains_key(id) {
                    return Ok(false);
                }
                let root = workspace.inner.outputs.root()?;
                // What could not be ended when it was time may still have left something.
                let whole = record::read(&root, id);
                workspace.end(id, whole.as_ref()).map(|()| true)
            }),
        }
    }

    fn held(&self) -> Option<Known> {
        let shown = self.shown().filter(|_| self.are_taken_up())?;
        for workspace in self.list() {
            self.inner.uses.add(&workspace);
        }
        let leases = self.inner.admission.read(|ledger| ledger.live().map(|lease| lease.created_at).collect());
        let entries = self.entries();
        let all = entries.iter().map(|(id, entry)| (id.clone(), entry.line.tenant.clone()));
        let (workspaces, caches) = all.unzip();
        drop(entries);
        let folder = self.inner.outputs.root().ok()?.join(CACHES);
        self.inner.uses.add_shown(&folder, &shown);
        let shown = shown.iter().filter_map(|shown| Some(folder.join(shown.path()?))).collect();
        Some(Known { leases, workspaces, caches, shown })
    }
}
