//! How many visits to upstreams run at once: in total, and to one host, so that one that hangs holds up no other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use stoker_core::source::RepositoryUrl;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::lock;

/// The most that may be configured.
const PLACES_MAX: usize = 64;

/// The places that there are.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    all_max: AtomicUsize,
    /// Those of hosts that were visited; paths of this machine count as one host.
    by_host: Mutex<BTreeMap<String, Arc<Semaphore>>>,
    host_max: AtomicUsize,
}

/// One place, for as long as it lives.
#[derive(Debug)]
pub(super) struct Place {
    _host: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(all: usize, per_host: usize) -> Self {
        let (all, per_host) = (all.clamp(1, PLACES_MAX), per_host.clamp(1, PLACES_MAX));
        Self {
            all: Arc::new(Semaphore::new(all)),
            all_max: AtomicUsize::new(all),
            by_host: Mutex::default(),
            host_max: AtomicUsize::new(per_host),
        }
    }

    /// Waits for a place, first for the host's: who waits for a slow host takes none from the others.
    pub(super) async fn take(&self, url: &RepositoryUrl) -> Option<Place> {
        let host = {
            let mut hosts = lock(&self.by_host);
            let max = self.host_max.load(Ordering::SeqCst);
            let host = hosts.entry(url.host().unwrap_or_default().to_owned());
            Arc::clone(host.or_insert_with(|| Arc::new(Semaphore::new(max))))
        };
        // They are never closed.
        let host = host.acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place { _host: host, _all: all })
    }

    /// Other numbers hold from now on; visits that run go on.
    pub(super) fn resize(&self, all: usize, per_host: usize) {
        let (all, per_host) = (all.clamp(1, PLACES_MAX), per_host.clamp(1, PLACES_MAX));
        resize(&self.all, self.all_max.swap(all, Ordering::SeqCst), all);
        let hosts = lock(&self.by_host);
        let before = self.host_max.swap(per_host, Ordering::SeqCst);
        for host in hosts.values() {
            resize(host, before, per_host);
        }
    }
}

fn resize(places: &Arc<Semaphore>, before: usize, after: usize) {
    places.add_permits(after.saturating_sub(before));
    let surplus = before.saturating_sub(after);
    let missing = surplus.saturating_sub(places.forget_permits(surplus));
    if let Ok(missing) = u32::try_from(missing)
        && missing > 0
    {
        // Those in use go when they come back.
        let places = Arc::clone(places);
        tokio::spawn(async move {
            if let Ok(permits) = places.acquire_many_owned(missing).await {
                permits.forget();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_slow_host_holds_up_no_other() {
        let places = Places::new(3, 2);
        let url = |text: &str| text.parse::<RepositoryUrl>().unwrap();
        let (slow, other) = (url("https://slow.example.org/a"), url("https://other.example.org/a"));
        let held = [places.take(&slow).await.unwrap(), places.take(&slow).await.unwrap()];
        assert!(places.take(&slow).now_or_never().is_none(), "the host's places are taken");
        let last = places.take(&other).await.unwrap();
        assert!(places.take(&other).now_or_never().is_none(), "all places are taken");
        places.resize(4, 2);
        drop(places.take(&other).await.unwrap());
        places.resize(4, 1);
        drop(held);
        tokio::task::yield_now().await;
        let _one = places.take(&slow).await.unwrap();
        assert!(places.take(&slow).now_or_never().is_none(), "one place is left");
        drop(last);
    }
}
