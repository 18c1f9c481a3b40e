//! A directory of a tenant's cache as a volume. A pod that has a build with this cache sees that build's own place, once its
//! workspace is there: what it writes fits the times that its files have. All others share the first place, which builds
//! leave to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use stoker_core::cluster::Pod as Known;
use tonic::Status;

use super::publish::blocking;
use super::target::{Found, Target};
use super::{Volumes, lock};
use crate::node::mount::Shown;
use crate::rpc::error::refusal;
use crate::workspace::ShownCache;

/// So long the pod's own build is waited for while the kubelet waits: as long as that build's own volume.
const BUILD_WITHIN: Duration = Duration::from_secs(8);
const BUILD_AGAIN: Duration = Duration::from_millis(100);
/// So long builds that begin leave a place to who waits for it, after each attempt: the next comes within two minutes.
const LEFT_FOR: Duration = Duration::from_secs(300);
/// The most volumes that are waited for so; a node has fewer pods.
const REFUSED_MAX: usize = 4096;

/// What volumes wait for, by pod and volume, and since when.
pub(super) type Refused = BTreeMap<(String, String), (ShownCache, Instant)>;

impl Volumes {
    pub(super) async fn show_cache(&self, known: &Known, cache: ShownCache, target: Target) -> Result<(), Status> {
        let (looked, read_only) = (target.clone(), !cache.written);
        let found = blocking(move || looked.look_for(read_only)).await?;
        if found != Found::Free {
            // What the pod has stays as it is, also where its build has ended.
            return Ok(());
        }
        let workspaces = &self.inner.rooms.workspaces;
        if !workspaces.are_taken_up() {
            return Err(Status::unavailable("key: which builds there are is being looked at; tried again"));
        }
        let began = Instant::now();
        while self.place_of_own(known, &cache).is_err() && began.elapsed() < BUILD_WITHIN {
            tokio::time::sleep(BUILD_AGAIN).await;
        }
        let shown = self.inner.shown.lock().await;
        let own = self.place_of_own(known, &cache)?;
        let cache = ShownCache { slot: own.unwrap_or(cache.slot), ..cache };
        // Held before it is made: retention looks at this before it takes anything, and builds before they begin.
        let mut held = self.held_caches().await?;
        held.insert(cache.clone());
        self.tell_caches(held);
        let waits = (cache.pod.clone(), target.volume());
        lock(&self.inner.refused).remove(&waits);
        let mounted = if !matches!(self.place_of_own(known, &cache), Ok(again) if again == own) {
            Err(Status::unavailable("key: the pod's build ended meanwhile; tried again"))
        } else if own.is_none() && cache.written && workspaces.has_builds(&cache) {
            let what =
                "a build has this directory of the cache, and trusts what is in it; tried again until it has ended";
            // Else there would always be a build.
            let mut refused = lock(&self.inner.refused);
            if refused.len() < REFUSED_MAX {
                refused.insert(waits, (cache, Instant::now()));
            }
            Err(Status::unavailable(format!("key: {what}")))
        } else {
            self.mount_cache(cache, target, own.is_some()).await
        };
        if mounted.is_err() {
            self.tell_caches(self.held_caches().await?);
        }
        drop(shown);
        mounted
    }

    /// Which of the tenant's places the pod's own build has for a cache; nothing where its build has no such cache, or the
    /// pod has no build.
    ///
    /// # Errors
    /// Where the pod is to have a build of which that is not known yet.
    fn place_of_own(&self, known: &Known, cache: &ShownCache) -> Result<Option<u32>, Status> {
        let Some(key) = &cache.key else { return Ok(None) };
        let builds = self.held_by(&known.uid);
        let has = builds.iter().find(|lease| lease.cache_keys.contains(key));
        let workspaces = &self.inner.rooms.workspaces;
        let comes = match has {
            Some(lease) if workspaces.get(lease.id.as_str()).is_some() => {
                return Ok(workspaces.place_of(&lease.id, cache));
            }
            Some(_) => known.builds,
            None => known.builds && builds.is_empty(),
        };
        match comes {
            true => Err(Status::unavailable(
                "key: the pod has a volume with a workspace, which comes first: its build may have a place of its own for \
                 this cache; tried again",
            )),
            false => Ok(None),
        }
    }

    /// What pods that are there wait for: builds that begin get other places, so that its builds come to their end.
    pub(super) fn refused_caches(&self) -> Vec<ShownCache> {
        let mut refused = lock(&self.inner.refused);
        refused.retain(|(pod, _), (_, since)| since.elapsed() < LEFT_FOR && !self.is_gone(pod));
        refused.values().map(|(cache, _)| cache.clone()).collect()
    }

    async fn mount_cache(&self, cache: ShownCache, target: Target, is_own: bool) -> Result<(), Status> {
        let how = Shown { read_only: !cache.written, ..Shown::default() };
        let folder = self.inner.rooms.workspaces.cache(cache.clone(), cache.written && !is_own).await;
        let folder = folder.map_err(|reason| refusal(&reason))?;
        let key = PathBuf::from(cache.key.unwrap_or_default());
        blocking(move || target.mount(&folder, &key, how)).await
    }
}
