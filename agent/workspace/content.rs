//! What belongs into a workspace beside its commit: submodules, projects of a manifest and large files, each fetched before
//! anything is made.

use std::sync::Arc;

use stoker_core::admission::Source;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::large_files::Large;
use super::trees::Tree;
use super::{Order, Progress, Workspaces, submodules};
use crate::repository::git::GitError;
use crate::repository::{Nested, Project, Resolved, under};

impl Workspaces {
    /// The submodules of what is ordered, each pinned.
    pub(super) async fn nested(
        &self,
        order: &Order,
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Nested>, Reason> {
        if !order.submodules {
            return Ok(Vec::new());
        }
        let top = url_of(&order.source, Code::SubmoduleInvalid)?;
        let found = self.inner.repositories.submodules(&top, &order.pin, order.source.commit, &order.trust, steps);
        let stopped = || Err(stopped(&order.source, "its submodules"));
        cancel.run_until_cancelled(found).await.unwrap_or_else(stopped)
    }

    /// The projects of the manifest that is ordered, each pinned.
    pub(super) async fn projects(
        &self,
        order: &Order,
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Project>, Reason> {
        let Some(manifest) = &order.manifest else { return Ok(Vec::new()) };
        let url = url_of(&order.source, Code::ManifestInvalid)?;
        let top = (&url, &order.pin, order.source.commit);
        let found = self.inner.repositories.projects(top, &manifest.file, &manifest.groups, &order.trust, steps);
        let stopped = || Err(stopped(&order.source, "the projects of its manifest"));
        cancel.run_until_cancelled(found).await.unwrap_or_else(stopped)
    }

    /// The large files of what is to be checked out, where they are wanted. Who asks for
    /// those of the top gets those of its submodules and projects too.
    pub(super) async fn large_files(
        &self,
        order: &Order,
        trees: &[Tree],
        nested: &[Nested],
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Large>, Reason> {
        let repositories = &self.inner.repositories;
        let all = order.lfs || repositories.wants_lfs(order.pin.url());
        let mut large = Vec::new();
        for tree in trees.iter().filter(|tree| all || repositories.wants_lfs(tree.pin.url())) {
            let inner = watch::Sender::new(Progress::default());
            let seen = inner.subscribe();
            let work = repositories.lfs_files(&tree.pin, tree.commit, &order.trust, &inner, cancel);
            let files = under(tree.subject().unwrap_or_default(), seen, steps, work).await.map_err(|reason| {
                let message = format!("{}{}", tree.prefix(), reason.message);
                Reason { message, ..reason }
            })?;
            large.push(Large { tree: tree.path.clone(), git_dir: tree.git_dir(), files: Arc::new(files) });
        }
        for one in nested {
            let Some(Resolved { pin, commit, .. }) = &one.resolved else { continue };
            if !all && !repositories.wants_lfs(pin.url()) {
                continue;
            }
            let inner = watch::Sender::new(Progress::default());
            let work = repositories.lfs_files(pin, *commit, &order.trust, &inner, cancel);
            let files = under(format!("submodule {}", one.path), inner.subscribe(), steps, work).await;
            let files = files.map_err(|reason| {
                let message = format!("submodule {:?}: {}", one.path, reason.message);
                Reason { message, ..reason }
            })?;
            large.push(Large {
                tree: one.path.clone().into(),
                git_dir: submodules::below_git(one),
                files: Arc::new(files),
            });
        }
        // What has none is the same with and without them.
        large.retain(|one: &Large| !one.files.files().is_empty());
        Ok(large)
    }
}

fn url_of(source: &Source, code: Code) -> Result<RepositoryUrl, Reason> {
    let wrong = |error: <RepositoryUrl as std::str::FromStr>::Err| {
        Reason::new(code, source.repository.clone(), format!("{} {error}", source.clone_url))
    };
    source.clone_url.parse().map_err(wrong)
}

fn stopped(source: &Source, what: &str) -> Reason {
    let cancelled = GitError::Cancelled;
    Reason::new(cancelled.code(), source.repository.clone(), format!("{what}: {cancelled}"))
}
