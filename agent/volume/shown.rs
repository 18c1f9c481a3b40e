//! Volumes that are no build's: caches of tenants, and mirrors. They have no lease.
//!
//! What they show is held while it is mounted: the kernel's table tells what is, so nothing has to be remembered, and after
//! a reboot nothing is held. A pod that is gone holds nothing either, whether or not the kubelet came to unmount.
//!
//! To lay mirrors out takes long where there are many: the kubelet's call returns before that, and its next one finds it.
//! Caches are looked at by themselves, so that nobody who unmounts waits behind a laying-out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;
use tonic::Status;

use super::attributes::{Asked, Of};
use super::publish::{METHOD, blocking, tenant};
use super::target::{Found, OF_CSI, Target};
use super::{Turn, Volumes, lock};
use crate::access::{Caller, Role};
use crate::node::mount::{self, Place, Shown};
use crate::repository::{Classes, SHELVES, Shelved};
use crate::rpc::behalf::Behalf;
use crate::rpc::error::{bad, refusal};
use crate::workspace::ShownCache;

/// How often it is looked at what is mounted, where nothing says that it changed.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Changes of mirrors and pods that come one after the other are looked at together.
const PAUSE: Duration = Duration::from_millis(500);

/// So long mirrors are laid out while the kubelet waits. What takes longer goes on.
const LAID_OUT_WITHIN: Duration = Duration::from_secs(8);
/// So long a directory of mirrors that is shown nowhere stays for the kubelet's next attempt: it comes within two minutes.
const WANTED_FOR: Duration = Duration::from_secs(300);

/// The mirrors of each directory, held.
pub(super) type Shelves = BTreeMap<String, Shelved>;
/// Of each volume that is on its way: which directory it is to show, and since when that is asked for.
pub(super) type WantedShelves = BTreeMap<String, (String, Instant)>;

impl Volumes {
    /// Shows what no build needs.
    pub(super) async fn show(
        &self,
        caller: &Caller,
        behalf: &Behalf,
        asked: &Asked,
        target: Target,
        (read_only, turn): (bool, &Turn),
    ) -> Result<(), Status> {
        behalf.may_ask(METHOD)?;
        match &asked.of {
            Of::Cache { tenant: named, trust, key } => {
                let tenant = tenant(caller, &asked.pod, named)?;
                if !caller.may_of(Role::Scheduler, &tenant, trust) {
                    let what = format!("{trust:?} is none that {} may read", caller.identity.name);
                    return Err(Status::permission_denied(format!(
                        "trust: {what}; a rule of access.rules has to say so"
                    )));
                }
                let known = self.is_known(&asked.pod).await?;
                self.is_seen_by_pods().await?;
                let cache = ShownCache::of(&tenant, trust, key.as_deref(), (&known.uid, !read_only));
                self.show_cache(&known, cache, target).await
            }
            Of::Mirrors { tenant: named } => {
                let tenant = tenant(caller, &asked.pod, named)?;
                self.is_known(&asked.pod).await?;
                self.is_seen_by_pods().await?;
                self.show_mirrors(Classes(caller.classes(Role::Scheduler, &tenant)), target, turn).await
            }
            Of::Lease(_) | Of::Build(_) => Err(bad("kind", "is a build's")),
        }
    }

    async fn show_mirrors(&self, classes: Classes, target: Target, turn: &Turn) -> Result<(), Status> {
        // What others have of a directory would be taken away from them.
        if !self.inner.rooms.repositories.are_known() {
            return Err(Status::unavailable("the mirrors that there are are being looked at; tried again"));
        }
        let looked = target.clone();
        if blocking(move || looked.look_for(true)).await? != Found::Free {
            return Ok(()); // what the pod has stays as it is, also where it may read others by now
        }
        lock(&self.inner.wanted).insert(turn.volume.clone(), (classes.name(), Instant::now()));
        let (shelf, held) = tokio::select! {
            () = turn.given_up() => return Err(Status::aborted("the volume is unpublished meanwhile")),
            laid_out = tokio::time::timeout(LAID_OUT_WITHIN, self.laid_out(classes)) => laid_out.unwrap_or_else(|_| {
                Err(Status::unavailable("the mirrors are being laid out; it goes on, tried again"))
            })?,
        };
        let how = Shown { read_only: true, no_exec: true };
        blocking(move || target.mount(&shelf, Path::new(""), how)).await?;
        drop(held);
        self.wants_no_shelf(&turn.volume);
        Ok(())
    }

    /// A directory of mirrors, and the right by which it stays as it is. Where nobody waits for that any more, it is laid out
    /// to its end; nothing shows it then, and it goes with the next look.
    async fn laid_out(&self, classes: Classes) -> Result<(PathBuf, OwnedMutexGuard<Shelves>), Status> {
        let mut shelves = Arc::clone(&self.inner.shelves).lock_owned().await;
        let volumes = self.clone();
        let laid_out = self.inner.rooms.tasks.spawn(async move {
            let name = classes.name();
            let (shelf, shelved) = volumes.shelve(classes).await?;
            shelves.insert(name, shelved);
            Ok((shelf, shelves))
        });
        laid_out.await.unwrap_or_else(|error| Err(Status::unavailable(format!("{error}; tried again"))))
    }

    /// A volume is shown, or is to be no more.
    pub(super) fn wants_no_shelf(&self, volume: &str) {
        lock(&self.inner.wanted).remove(volume);
    }

    async fn shelve(&self, classes: Classes) -> Result<(PathBuf, Shelved), Status> {
        let repositories = self.inner.rooms.repositories.clone();
        blocking(move || repositories.shelve(&classes).map_err(|reason| refusal(&reason))).await
    }

    /// A volume of any kind was unmounted. What it showed stays held where that cannot be looked at now: it is looked at
    /// again.
    pub(super) async fn look_after_unmounting(&self) {
        let _shown = self.inner.shown.lock().await;
        match self.held_caches().await {
            Ok(held) => self.tell_caches(held),
            Err(status) => tracing::warn!(why = status.message(), "what volumes show is not up to date; tried again"),
        }
    }

    /// Keeps what is mounted held, and mirrors up to date, until the agent stops.
    pub(super) async fn keep_shown(self) {
        let cancel = self.inner.rooms.cancel.clone();
        let (mut mirrors, mut pods) = (self.inner.rooms.repositories.watch(), self.inner.rooms.kubernetes.subscribe());
        loop {
            if let Err(status) = self.look_at_shown().await {
                tracing::warn!(why = status.message(), "what volumes show is not up to date; tried again");
            }
            if cancel.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                changed = mirrors.changed() => if changed.is_err() { return },
                changed = pods.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn look_at_shown(&self) -> Result<(), Status> {
        let shown = self.inner.shown.lock().await;
        // They may be of two pools, of which one is not there.
        let caches = self.held_caches().await.map(|held| self.tell_caches(held));
        drop(shown);
        let mirrors = self.look_at_shelves().await;
        caches.and(mirrors)
    }

    async fn look_at_shelves(&self) -> Result<(), Status> {
        let mut shelves = self.inner.shelves.lock().await;
        let repositories = self.inner.rooms.repositories.clone();
        if !repositories.are_known() {
            return Ok(());
        }
        let mut shown = self.held_shelves().await?;
        shown.extend({
            let mut wanted = lock(&self.inner.wanted);
            wanted.retain(|_, (_, since)| since.elapsed() < WANTED_FOR);
            wanted.values().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        });
        let there = blocking(move || repositories.shelves().map_err(|reason| refusal(&reason))).await?;
        shelves.retain(|name, _| there.contains_key(name));
        // All of them before anything is laid out, which takes its time and may fail: what pods see is not evicted.
        let repositories = &self.inner.rooms.repositories;
        for (name, classes) in there.iter().filter(|(name, _)| shown.contains(*name)) {
            shelves.entry(name.clone()).or_insert_with(|| repositories.hold(classes));
        }
        self.inner.rooms.mirrors_held.send_if_modified(|held| !std::mem::replace(held, true));
        let mut ended = Ok(());
        for (name, classes) in there {
            // One keeps no other from being laid out.
            if shown.contains(&name) {
                if shelves.get(&name).is_some_and(|shelved| repositories.is_laid_out(&classes, shelved)) {
                    continue;
                }
                let shelved = self.shelve(classes).await;
                ended = ended.and(shelved.map(|(_, shelved)| drop(shelves.insert(name, shelved))));
                continue;
            }
            shelves.remove(&name);
            let repositories = self.inner.rooms.repositories.clone();
            let gone = blocking(move || repositories.unshelve(&name).map_err(|reason| refusal(&reason))).await;
            ended = ended.and(gone);
        }
        ended
    }

    pub(super) fn tell_caches(&self, caches: BTreeSet<ShownCache>) {
        self.inner.rooms.shown_caches.send_if_modified(|before| {
            let differs = before.as_deref() != Some(&caches);
            if differs {
                *before = Some(Arc::new(caches));
            }
            differs
        });
    }

    /// What is mounted for pods that are there, by their uids, and whether for reading alone. Only what lies where a pool is
    /// says something: what else is mounted may be called as one likes.
    async fn seen(&self) -> Result<Vec<(String, Place, bool)>, Status> {
        let pods = self.inner.kubelet.join("pods");
        let below_pods = pods.clone();
        let mounts = blocking(move || {
            mount::seen_below(&below_pods).map_err(|error| Status::unavailable(format!("mounts: {error}; tried again")))
        });
        let for_pod = |seen: mount::Seen| Some((pod_of(&pods, &seen.point)?, seen.place, seen.reads_only));
        Ok(mounts.await?.into_iter().filter_map(for_pod).filter(|(uid, ..)| !self.is_gone(uid)).collect())
    }

    /// Caches that are mounted, or that pods wait for.
    pub(super) async fn held_caches(&self) -> Result<BTreeSet<ShownCache>, Status> {
        let workspaces = self.inner.rooms.workspaces.clone();
        let caches = blocking(move || workspaces.place_of_caches().map_err(|reason| refusal(&reason))).await?;
        let seen = self.seen().await?;
        let cache =
            |(pod, place, reads): &(String, Place, bool)| ShownCache::shown_by(place.below(&caches)?, pod, !*reads);
        Ok(seen.iter().filter_map(cache).chain(self.refused_caches()).collect())
    }

    /// The directories of mirrors that are mounted.
    async fn held_shelves(&self) -> Result<BTreeSet<String>, Status> {
        let repositories = self.inner.rooms.repositories.clone();
        let shelves = blocking(move || repositories.place_in(SHELVES).map_err(|reason| refusal(&reason))).await?;
        let seen = self.seen().await?;
        let name = |(_, place, _): &(String, Place, bool)| {
            let name = place.below(&shelves)?.iter().next()?;
            Some(name.to_string_lossy().into_owned())
        };
        Ok(seen.iter().filter_map(name).collect())
    }
}

/// The uid of the pod whose volume is mounted at a point.
fn pod_of(pods: &Path, point: &Path) -> Option<String> {
    let mut parts = point.strip_prefix(pods).ok()?.iter().map(|part| part.to_string_lossy().into_owned());
    let (uid, volumes, of_csi) = (parts.next()?, parts.next()?, parts.next()?);
    (volumes == "volumes" && of_csi == OF_CSI).then_some(uid)
}
