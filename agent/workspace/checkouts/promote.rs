//! A layer that many builds use becomes a full checkout of its own: what comes after it then differs from it alone, and not
//! from an ever older one.

use std::path::Path;
use std::sync::Arc;

use stoker_core::identity::{CommitId, Component};
use tokio::sync::watch;

use super::{Asker, Checkouts, Kept, Wanted, lock};
use crate::repository::{Nested, Progress, SnapshotPin};
use crate::workspace::large_files::Large;
use crate::workspace::trees::Tree;

/// A layer that was used so often is often used.
const OFTEN: u64 = 16;
/// So many are made at once: builds come first.
const AT_ONCE_MAX: usize = 1;

/// What is wanted, for as long as it takes.
struct Owned {
    pin: SnapshotPin,
    commit: CommitId,
    committed_at: Option<i64>,
    trust: String,
    trees: Vec<Tree>,
    nested: Vec<Nested>,
    large: Vec<Large>,
    owner: Option<(u32, u32)>,
}

impl Owned {
    fn of(wanted: &Wanted<'_>) -> Self {
        Self {
            pin: wanted.pin.clone(),
            commit: wanted.commit,
            committed_at: wanted.committed_at,
            trust: wanted.trust.to_owned(),
            trees: wanted.trees.to_vec(),
            nested: wanted.nested.to_vec(),
            large: wanted.large.to_vec(),
            owner: wanted.owner,
        }
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            pin: &self.pin,
            commit: self.commit,
            committed_at: self.committed_at,
            trust: &self.trust,
            trees: &self.trees,
            nested: &self.nested,
            large: &self.large,
            owner: self.owner,
            asker: Asker::Nobody,
        }
    }
}

impl Wanted<'_> {
    /// What the full checkout is called that takes the place of a layer. The layer stays for those who have it, and goes
    /// when it was not used for longest.
    pub(super) fn full_name(&self) -> String {
        let (commit, settings) = (self.commit.to_string(), self.settings());
        Component::of(&[self.pin.url().key(), &commit, &settings, "full"]).as_str().to_owned()
    }
}

impl Checkouts {
    /// Makes a full checkout in the background, where a layer is often used and nobody does already.
    pub(super) fn promote(&self, root: &Path, kept: &Arc<Kept>, wanted: &Wanted<'_>) {
        let uses = kept.record().uses;
        if kept.base.is_none() || uses < OFTEN {
            return;
        }
        let name = wanted.full_name();
        {
            let mut promoting = lock(&self.inner.promoting);
            if promoting.len() >= AT_ONCE_MAX || !promoting.insert(name.clone()) {
                return;
            }
        }
        let (room, root, owned) = (self.clone(), root.to_owned(), Owned::of(wanted));
        self.inner.tasks.spawn(async move {
            let wanted = owned.wanted();
            let steps = watch::Sender::new(Progress::default());
            let made = room.make(&root, &name, None, &wanted, &steps, &room.inner.cancel).await;
            match made {
                Ok(_) => tracing::info!(checkout = name, "a layer that is often used is a full checkout now"),
                Err(reason) => tracing::warn!(checkout = name, "no full checkout of a layer: {}", reason.message),
            }
            lock(&room.inner.promoting).remove(&name);
        });
    }
}
