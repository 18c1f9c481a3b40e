//! The submodules of one commit, and theirs: each resolved to its commit in a mirror of its own, and pinned.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::submodules::{Submodule, Update};
use stoker_core::source::{RepositoryUrl, Request, SourceRef};
use tokio::sync::watch;
use tokio::time::Instant;

use super::declare::trust_class;
use super::entry::Entry;
use super::gitmodules::{self, too_many};
use super::progress::Progress;
use super::resolve::resolve_in;
use super::{Repositories, Resolved, SnapshotPin};

/// How many submodules are resolved at once.
pub(super) const AT_ONCE: usize = 4;

/// A submodule in its place.
#[derive(Debug, Clone)]
pub struct Nested {
    /// What its parent's commit says of it.
    pub says: Submodule,
    /// Its folder, from the top of the work tree.
    pub path: String,
    /// Its git directory, from the top's: `modules/a/modules/b`.
    pub git_dir: String,
    /// Its parent among those before it; none: the top.
    pub parent: Option<usize>,
    /// Its commit in its mirror; none where its folder stays empty.
    pub resolved: Option<Resolved>,
}

/// Where submodules are looked for.
struct Place {
    at: Option<usize>,
    url: RepositoryUrl,
    pin: SnapshotPin,
    commit: CommitId,
}

impl Repositories {
    /// The submodules of a commit and theirs, parents first. Those that are not mirrored yet are added where the
    /// configuration allows, in the trust class of the top. `steps` gets the progress, each with its submodule's name.
    ///
    /// # Errors
    /// The reason why one of them cannot be had, or `SUBMODULE_INVALID`.
    pub async fn submodules(
        &self,
        top: &RepositoryUrl,
        pin: &SnapshotPin,
        commit: CommitId,
        trust: &str,
        steps: &watch::Sender<Progress>,
    ) -> Result<Vec<Nested>, Reason> {
        let config = self.shared.config();
        let deadline = Instant::now() + config.fetch_within;
        let bounds = config.submodules;
        let mut all: Vec<Nested> = Vec::new();
        let mut level = vec![Place { at: None, url: top.clone(), pin: pin.clone(), commit }];
        for depth in 1.. {
            let found = self.level(&level, &all).await?;
            if found.is_empty() {
                break;
            }
            if depth > bounds.depth {
                return Err(too_many(top, "submodules nested deeper", bounds.depth, "depth"));
            }
            if all.len() + found.len() > bounds.repositories {
                return Err(too_many(top, "more submodules", bounds.repositories, "repositories"));
            }
            let resolved = stream::iter(found).map(|one| self.place(one, trust, deadline, steps));
            let resolved: Vec<Nested> = resolved.buffered(AT_ONCE).try_collect().await?;
            let first = all.len();
            all.extend(resolved);
            level = all.iter().enumerate().skip(first).filter_map(|(at, one)| next(at, one)).collect();
        }
        Ok(all)
    }

    /// What the commits of one level say, not resolved yet.
    async fn level(&self, level: &[Place], all: &[Nested]) -> Result<Vec<Nested>, Reason> {
        let mut found = Vec::new();
        for place in level {
            let (git, reader) = (&self.shared.git, &self.shared.reader);
            let above = place.at.and_then(|at| all.get(at));
            for says in gitmodules::read(git, reader, &place.pin, place.commit, &place.url).await? {
                let path = above.map_or_else(|| says.path.clone(), |above| format!("{}/{}", above.path, says.path));
                let name = &says.name;
                let git_dir = above
                    .map_or_else(|| format!("modules/{name}"), |above| format!("{}/modules/{name}", above.git_dir));
                found.push(Nested { says, path, git_dir, parent: place.at, resolved: None });
            }
        }
        Ok(found)
    }

    async fn place(
        &self,
        one: Nested,
        trust: &str,
        deadline: Instant,
        steps: &watch::Sender<Progress>,
    ) -> Result<Nested, Reason> {
        if one.says.update == Update::None {
            return Ok(one);
        }
        let (url, commit) = (&one.says.url, one.says.commit);
        let named = |reason: Reason| {
            let message = format!("submodule {:?} from {url}: {}", one.path, reason.message);
            Reason { message, ..reason }
        };
        let request = Request::new(url.clone(), SourceRef::Commit(commit));
        let subject = format!("submodule {}", one.path);
        let resolved = self.resolve_within(subject, &request, trust, deadline, steps).await.map_err(named)?;
        Ok(Nested { resolved: Some(resolved), ..one })
    }

    /// The commit of a repository that belongs to another of the trust class `trust`. One that is not mirrored yet is
    /// added where the configuration allows. `steps` gets the progress, with `subject`.
    pub(super) async fn resolve_within(
        &self,
        subject: String,
        request: &Request,
        trust: &str,
        deadline: Instant,
        steps: &watch::Sender<Progress>,
    ) -> Result<Resolved, Reason> {
        let entry = self.entry(&request.url, trust).await?;
        join_class(&entry, trust)?;
        steps.send_replace(Progress { subject: subject.clone(), ..Progress::phase("connecting") });
        let work = resolve_in(&self.shared, &entry, request, deadline);
        under(subject, entry.progress.subscribe(), steps, work).await
    }
}

/// Where the submodules of a submodule are looked for.
fn next(at: usize, one: &Nested) -> Option<Place> {
    let resolved = one.resolved.as_ref()?;
    let (url, pin) = (one.says.url.clone(), resolved.pin.clone());
    Some(Place { at: Some(at), url, pin, commit: resolved.commit })
}

/// A build gets nothing of another trust class than its own. A mirror that has none yet joins it.
fn join_class(entry: &Arc<Entry>, trust: &str) -> Result<(), Reason> {
    let mut state = entry.state();
    let has = &mut state.meta.trust;
    if has.is_empty() {
        trust.clone_into(has);
    }
    if trust_class(has) == trust_class(trust) {
        return Ok(());
    }
    let message = format!("its mirror is of the trust class {has:?}, and the build's repository of {trust:?}");
    Err(Reason::new(Code::RepositoryNotAllowed, entry.url.key(), message))
}

/// Passes progress on with its subject, until the work is done.
pub(crate) async fn under<T>(
    subject: String,
    mut from: watch::Receiver<Progress>,
    to: &watch::Sender<Progress>,
    work: impl Future<Output = T>,
) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            changed = from.changed() => {
                if changed.is_err() {
                    return work.await;
                }
                let now = from.borrow_and_update().clone();
                if !now.phase.is_empty() {
                    to.send_replace(Progress { subject: subject.clone(), ..now });
                }
            }
        }
    }
}
