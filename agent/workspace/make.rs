//! One workspace is made: what belongs into it, by which method, with which file times; its record comes last.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use stoker_core::identity::{CommitId, Component};
use stoker_core::reason::Reason;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::caches::{self, Line, Times, Turn};
use super::checkouts::{Asker, Kept, Wanted};
use super::disk::{self, blocking, unwritable};
use super::method::{self, Chosen, Method};
use super::{CACHES, OVERLAYS, Order, Preparing, Progress, Workspace, Workspaces};
use super::{environment, materialise, quota, record, submodules, trees};
use crate::admission::now;
use crate::repository::{Nested, Project, SnapshotPin};

impl Workspaces {
    pub(super) async fn prepare_now(
        self,
        order: Order,
        line: Line,
        stage: watch::Sender<Preparing>,
        cancel: CancellationToken,
    ) {
        let id = order.id.clone();
        let (steps, mut seen) = watch::channel(Progress::phase("preparing"));
        let end = {
            let made = self.make(order, line, steps, cancel);
            tokio::pin!(made);
            loop {
                tokio::select! {
                    end = &mut made => break end,
                    Ok(()) = seen.changed() => {
                        stage.send_replace(Preparing::Under(seen.borrow_and_update().clone()));
                    }
                }
            }
        };
        match end {
            Ok(Made { workspace, pins, kept }) => {
                if let Some(entry) = self.entries().get_mut(&id) {
                    entry.pins.extend(pins);
                    entry.kept = kept;
                }
                stage.send_replace(Preparing::Ready(Arc::new(workspace)));
            }
            Err(reason) => {
                let (room, half_made) = (self.clone(), id.clone());
                if let Err(error) = blocking(move || room.discard(&half_made)).await {
                    tracing::warn!(%error, workspace = id, "a half-made workspace could not be removed yet");
                }
                stage.send_replace(Preparing::Failed(reason));
            }
        }
    }

    async fn make(
        &self,
        order: Order,
        line: Line,
        steps: watch::Sender<Progress>,
        cancel: CancellationToken,
    ) -> Result<Made, Reason> {
        let nested = self.nested(&order, &steps, &cancel).await?;
        let projects = self.projects(&order, &steps, &cancel).await?;
        let trees = trees::trees(&order, &projects);
        let pins = nested.iter().filter_map(|one| Some(one.resolved.as_ref()?.pin.clone()));
        let pins: Vec<SnapshotPin> = pins.chain(projects.iter().map(|one| one.resolved.pin.clone())).collect();
        // Before anything is made: one that cannot have all its files is not begun.
        let large = self.large_files(&order, &trees, &nested, &steps, &cancel).await?;
        let inner = &self.inner;
        let root = inner.pools.usable(&inner.pool)?;
        let chosen = self.chosen(&root).await;
        let chosen = if order.user_namespace { chosen.for_mapped_owners() } else { chosen };
        // What a failed one left while the pool was away.
        let (room, id) = (self.clone(), order.id.clone());
        let clear = blocking(move || room.discard(&id)).await;
        clear.map_err(|error| unwritable(&root.join("workspaces").join(&order.id), &error))?;
        let workspace = planned(&root, &order, (&nested, &projects), &pins, chosen.method, &line);
        let home = workspace.home().to_owned();
        let wanted = Wanted {
            pin: &order.pin,
            commit: order.source.commit,
            committed_at: self.committed_at(&order).await,
            trust: &order.trust,
            trees: &trees,
            nested: &nested,
            large: &large,
            owner: workspace.owner,
            asker: order.lease.as_ref().map_or(Asker::Caller, Asker::Lease),
        };
        let means = materialise::Means {
            git: &inner.git,
            checkouts: &inner.checkouts,
            namespaces: &inner.namespaces,
            chosen: &chosen,
            projects: &inner.projects,
            root: &root,
        };
        let times = self.take_turn(&root, &order, line).await.map_err(|error| unwritable(&home, &error))?;
        let made = materialise::materialise(means, wanted, workspace, steps, cancel).await;
        let (workspace, kept) = made?;
        let (room, mut done) = (self.clone(), workspace);
        let last = move || {
            let others = done.submodules.iter().chain(&done.projects).map(|one| one.path.as_str());
            times.apply(&done.src.join(done.top()), &done.src, others)?;
            environment::write(&done, &order.environment)?;
            room.begin_to_count(&mut done);
            record::write(&root, &done)?;
            Ok(done)
        };
        let workspace = blocking(last).await.map_err(|error| unwritable(&home, &error))?;
        Ok(Made { workspace, pins, kept })
    }

    /// When its commit was made, where that can be read.
    pub(super) async fn committed_at(&self, order: &Order) -> Option<i64> {
        let (reader, pin, commit) = (self.inner.repositories.reader(), order.pin.clone(), order.source.commit);
        blocking(move || Ok(reader.committed_at(&pin, commit).ok())).await.ok().flatten()
    }

    /// Which caches an order uses; its slot is not chosen yet.
    pub(super) fn line_of(&self, order: &Order) -> Line {
        Line {
            tenant: Component::of(&[&order.scope.tenant, &order.trust]).as_str().to_owned(),
            keys: order.cache_keys.iter().cloned().collect(),
            repository: order.pin.url().key().to_owned(),
            commit: order.source.commit,
            form: (order.submodules, order.lfs || self.inner.repositories.wants_lfs(order.pin.url())),
            several: order.manifest.is_some(),
            slot: 1,
        }
    }

    /// Remembers that the commit uses its caches from now on: what times its files must have.
    async fn take_turn(&self, root: &Path, order: &Order, line: Line) -> io::Result<Times> {
        if line.keys.is_empty() {
            return Ok(Times::default());
        }
        let (room, root, pin) = (self.clone(), root.to_owned(), order.pin.clone());
        blocking(move || {
            let reader = room.inner.repositories.reader();
            // Where the former commit is gone from upstream, nothing is known.
            let changes = |from: CommitId| reader.changes(&pin, from, line.commit).ok();
            let folder = caches::folder(&root.join(CACHES).join(&line.tenant), line.slot);
            let turn = Turn { root: &root, boot: &room.inner.boot, line: &line, folder: &folder, changes: &changes };
            let _one = room.inner.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turn.take()
        })
        .await
    }

    /// What works on the pool: tried once on each disk.
    pub(super) async fn chosen(&self, root: &Path) -> Chosen {
        let (room, root) = (self.clone(), root.to_owned());
        let tried = blocking(move || room.choose(&root)).await;
        tried.unwrap_or_else(|error| Chosen {
            reason: format!("nothing else could be tried: {error}"),
            ..Chosen::default()
        })
    }

    pub(super) fn choose(&self, root: &Path) -> io::Result<Chosen> {
        let device = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(root)?);
        let mut chosen = self.inner.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, chosen)) = chosen.as_ref()
            && *of == device
        {
            return Ok(chosen.clone());
        }
        self.inner.pools.discard(&root.join(OVERLAYS).join(method::TRIAL))?;
        disk::directory(&root.join(OVERLAYS), 0o700)?;
        let (wanted, quotas) = {
            let config = self.inner.config.borrow();
            (config.workspaces.method, config.workspaces.quotas)
        };
        let (mut tried, method_lasts) = method::choose(root, wanted, &self.inner.namespaces);
        let (found, quota_lasts) = quota::choose(&root.join(OVERLAYS).join(method::TRIAL), quotas);
        tried.quota = found;
        self.inner.pools.discard(&root.join(OVERLAYS).join(method::TRIAL))?;
        tracing::info!(method = %tried.method, idmapped = tried.idmapped, reason = tried.reason, "workspaces");
        tracing::info!(quota = tried.quota.works, reason = tried.quota.reason, "the disk of workspaces");
        if method_lasts && quota_lasts {
            *chosen = Some((device, tried.clone()));
        }
        Ok(tried)
    }
}

/// What came of a preparation.
struct Made {
    workspace: Workspace,
    /// Of the submodules and projects.
    pins: Vec<SnapshotPin>,
    kept: Option<Arc<Kept>>,
}

/// A workspace as it will be; its files are not counted yet.
fn planned(
    root: &Path,
    order: &Order,
    (nested, projects): (&[Nested], &[Project]),
    pins: &[SnapshotPin],
    method: Method,
    line: &Line,
) -> Workspace {
    let mut also_mount: Vec<PathBuf> = vec![order.pin.path().to_owned()];
    for path in pins.iter().map(SnapshotPin::path) {
        if !also_mount.iter().any(|other| other == path) {
            also_mount.push(path.to_owned());
        }
    }
    let home = root.join("workspaces").join(&order.id);
    let own = || (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let owner = (order.user.unwrap_or_else(|| own().0), order.group.unwrap_or_else(|| own().1));
    Workspace {
        src: home.join("src"),
        tmp: home.join("tmp"),
        out: home.join("out"),
        cache: root.join(CACHES).join(&line.tenant),
        cache_keys: order.cache_keys.clone(),
        cache_slot: line.slot,
        form: line.form,
        lease: order.lease.clone(),
        source: order.source.clone(),
        scope: order.scope.clone(),
        created_at: now(),
        expires_at: order.expires_at,
        files: 0,
        bytes: 0,
        also_mount,
        owner: (owner != own()).then_some(owner),
        submodules: submodules::remembered(nested),
        manifest: order.manifest.clone(),
        projects: trees::remembered(projects),
        method,
        checkout: None,
        self_contained: order.self_contained,
        given: (0, 0),
        tmpfs_bytes: order.tmpfs_bytes,
        project: None,
        trust: order.trust.clone(),
        id: order.id.clone(),
    }
}
