//! What belongs into a workspace beside its commit: submodules and large files, each fetched before anything is made.

use std::path::PathBuf;
use std::sync::Arc;

use stoker_core::admission::Source;
use stoker_core::quantity::Resource;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::disk::blocking;
use super::large_files::Large;
use super::{Order, Progress, Workspaces, submodules};
use crate::repository::git::GitError;
use crate::repository::{Nested, Resolved, under};

impl Workspaces {
    /// The submodules of what is ordered, each pinned.
    pub(super) async fn nested(
        &self,
        order: &Order,
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Nested>, Reason> {
        let Source { repository, clone_url, commit, .. } = &order.source;
        let wrong = |error: <RepositoryUrl as std::str::FromStr>::Err| {
            Reason::new(Code::SubmoduleInvalid, repository.clone(), format!("{clone_url} {error}"))
        };
        let top: RepositoryUrl = clone_url.parse().map_err(wrong)?;
        let found = self.inner.repositories.submodules(&top, &order.pin, *commit, &order.trust, steps);
        let stopped = || {
            let cancelled = GitError::Cancelled;
            Err(Reason::new(cancelled.code(), repository.clone(), format!("its submodules: {cancelled}")))
        };
        cancel.run_until_cancelled(found).await.unwrap_or_else(stopped)
    }

    /// The large files of what is to be checked out, where they are wanted, and room for copies of them. Who asks for
    /// those of the top gets those of its submodules too.
    pub(super) async fn large_files(
        &self,
        order: &Order,
        nested: &[Nested],
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Large>, Reason> {
        let repositories = &self.inner.repositories;
        let all = order.lfs || repositories.wants_lfs(order.pin.url());
        let mut large = Vec::new();
        if all {
            let files = repositories.lfs_files(&order.pin, order.source.commit, &order.trust, steps, cancel).await?;
            large.push(Large { tree: PathBuf::new(), git_dir: ".git".into(), files: Arc::new(files) });
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
        let wanted = large.iter().fold(0_u64, |sum, one| sum.saturating_add(one.files.bytes()));
        if wanted > 0 {
            self.has_room(wanted).await?;
        }
        Ok(large)
    }

    /// Whether the pool has room for copies of large files above its floor.
    async fn has_room(&self, wanted: u64) -> Result<(), Reason> {
        let (pools, pool) = (self.inner.pools.clone(), self.inner.pool.clone());
        let measured = blocking(move || Ok(pools.measure().into_iter().find(|(name, _)| *name == pool)));
        let Ok(Some((_, Ok(disk)))) = measured.await else { return Ok(()) };
        let free = disk.free_bytes.saturating_sub(disk.floor_bytes);
        if wanted <= free {
            return Ok(());
        }
        let message = format!("large files of {wanted} bytes, the pool has {free} above its floor; free some");
        let reason = Reason::new(Code::DiskFloor, self.inner.pool.clone(), message);
        Err(reason.about(Resource::DiskBytes, wanted, free))
    }
}
