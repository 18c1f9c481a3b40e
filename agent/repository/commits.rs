//! Commits that were fetched by their name. No ref of upstream may reach one, so the store keeps a ref of its own for it
//! (`refs/pins/<folder>/commits/<commit>`), until nobody needs it: no lease, ticket or workspace has it, and no request
//! asked for it for as long as mirrors are kept at least. Snapshots that hold it are untouched: they have its objects.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;

use super::Shared;
use super::entry::Entry;
use super::meta::Meta;
use super::refs::RefTable;

/// The commits that leases, tickets and workspaces have.
pub type NeededCommits = Arc<BTreeSet<CommitId>>;

/// How many one repository remembers; what it forgets is found again in the store, and counts as new.
const REMEMBERED_MAX: usize = 1000;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    pub(super) commit: CommitId,
    /// When a request last asked for it.
    pub(super) used_at: Timestamp,
}

impl Meta {
    /// A commit was fetched by its name.
    pub(super) fn remember_commit(&mut self, commit: CommitId, now: Timestamp) {
        self.commits.retain(|named| named.commit != commit);
        self.commits.push(Named { commit, used_at: now });
        let surplus = self.commits.len().saturating_sub(REMEMBERED_MAX);
        self.commits.drain(..surplus);
    }

    /// A request asked for a commit, which may be one that was fetched by its name.
    pub(super) fn use_commit(&mut self, commit: CommitId, now: Timestamp) {
        if self.commits.iter().any(|named| named.commit == commit) {
            self.remember_commit(commit, now);
        }
    }
}

/// What decides whether a commit stays.
pub(super) struct Need {
    needed: NeededCommits,
    /// Asked for before that, and no more.
    before: Timestamp,
}

impl Need {
    fn has_passed(&self, named: &Named) -> bool {
        named.used_at <= self.before && !self.needed.contains(&named.commit)
    }

    /// Whether one of the repository's may be forgotten.
    pub(super) fn has_passed_for_some(&self, entry: &Entry) -> bool {
        entry.state().meta.commits.iter().any(|named| self.has_passed(named))
    }

    /// The store's refs without those for commits of the repository that may be forgotten; none where all stay.
    pub(super) fn without_passed(&self, entry: &Entry, refs: &RefTable, now: Timestamp) -> Option<RefTable> {
        let prefix = format!("refs/pins/{}/commits/", entry.folder);
        let named = |name: &[u8]| {
            let commit = name.strip_prefix(prefix.as_bytes())?;
            std::str::from_utf8(commit).ok()?.parse::<CommitId>().ok()
        };
        let there: BTreeSet<CommitId> = refs.iter().filter_map(|line| named(line.name)).collect();
        let passed = self.forget(entry, &there, now);
        if passed.is_empty() {
            return None;
        }
        tracing::info!(repository = entry.url.key(), count = passed.len(), "commits that nobody needs were forgotten");
        let stays = |name: &[u8]| named(name).is_none_or(|commit| !passed.contains(&commit));
        Some(refs.rename(|name| stays(name).then(|| name.to_vec())))
    }

    /// Those of `there` that may be forgotten, which the repository then does not remember. What it does not know is
    /// remembered from now on.
    fn forget(&self, entry: &Entry, there: &BTreeSet<CommitId>, now: Timestamp) -> BTreeSet<CommitId> {
        let mut state = entry.state();
        let commits = &mut state.meta.commits;
        commits.retain(|named| there.contains(&named.commit));
        let passed: BTreeSet<CommitId> =
            commits.iter().filter(|named| self.has_passed(named)).map(|named| named.commit).collect();
        commits.retain(|named| !passed.contains(&named.commit));
        let known: BTreeSet<CommitId> = commits.iter().map(|named| named.commit).collect();
        for commit in there.difference(&known).filter(|commit| !passed.contains(commit)) {
            state.meta.remember_commit(*commit, now);
        }
        passed
    }
}

impl Shared {
    /// What is needed at this moment; nothing where nobody can say.
    pub(super) fn need(&self) -> Option<Need> {
        let needed = self.needed_commits.get()?.borrow().clone()?;
        let age = i64::try_from(self.config().min_age.as_millis()).unwrap_or(i64::MAX);
        Some(Need { needed, before: Timestamp(self.now().0.saturating_sub(age)) })
    }
}
