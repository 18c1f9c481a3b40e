//! Places in the queue of those who wait for the kubelet to come again: it comes after up to two minutes, and a place that
//! nobody awaits runs out sooner. So the driver awaits it, as a caller of `AwaitAdmission` does, for as long as the kubelet
//! may take. A grant that comes meanwhile is confirmed, and kept as long.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::admission::{Answer, Ticket, Waiting};
use stoker_core::identity::RequestId;
use stoker_core::quantity::Span;

use super::publish::KEPT_SECONDS;
use super::{REQUESTS, Volumes, lock};

/// Whose place is kept, and until when, unless the kubelet comes again. Each has one keeper.
#[derive(Default)]
pub(super) struct Places(BTreeMap<RequestId, Instant>);

impl Places {
    /// Kept until then. Whether a keeper is to begin: one that is there sees the later end.
    fn keep(&mut self, request: &RequestId, until: Instant) -> bool {
        match self.0.entry(request.clone()) {
            Entry::Occupied(mut kept) => {
                let later = until.max(*kept.get());
                kept.insert(later);
                false
            }
            Entry::Vacant(free) => {
                free.insert(until);
                true
            }
        }
    }

    fn is_kept(&self, request: &RequestId, now: Instant) -> bool {
        self.0.get(request).is_some_and(|until| *until > now)
    }

    /// A keeper is about to end. `waits`: there is still a place; where that is to be kept longer by now, it goes on.
    fn ends(&mut self, request: &RequestId, waits: bool, now: Instant) -> bool {
        if waits && self.is_kept(request, now) {
            return false;
        }
        self.0.remove(request);
        true
    }
}

/// How often it is looked at whether a pod that waits is still there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Volumes {
    /// Keeps a place from now on, for a pod where it is known.
    pub(super) fn keep_place(&self, request: &RequestId, pod: Option<&str>) {
        let until = Instant::now() + Duration::from_secs(KEPT_SECONDS.unsigned_abs());
        if !lock(&self.inner.places).keep(request, until) {
            return;
        }
        let (volumes, request, pod) = (self.clone(), request.clone(), pod.map(str::to_owned));
        let cancel = self.inner.rooms.cancel.clone();
        self.inner.rooms.tasks.spawn(async move {
            while cancel.run_until_cancelled(volumes.await_place(&request, pod.as_deref())).await.is_some() {
                // The kubelet may come between the end of its time and this.
                let waits = volumes.inner.rooms.admission.read(|ledger| ledger.ticket_of(&request).is_some());
                if lock(&volumes.inner.places).ends(&request, waits, Instant::now()) {
                    return;
                }
            }
        });
    }

    /// The places that an earlier agent kept.
    pub(super) fn keep_all_places(&self) {
        let of_volumes = |held: &&Arc<Ticket>| held.request.id.as_str().starts_with(REQUESTS);
        let waiting: Vec<Arc<Ticket>> =
            self.inner.rooms.admission.read(|ledger| ledger.tickets().filter(of_volumes).cloned().collect());
        for ticket in waiting {
            let pod = Some(ticket.request.terms.pod.as_str()).filter(|pod| !pod.is_empty());
            self.keep_place(&ticket.request.id, pod);
        }
        self.tell(&lock(&self.inner.coming));
    }

    /// Ends when it is granted or gone, when nobody came for it for too long, or when its pod is gone.
    async fn await_place(&self, request: &RequestId, pod: Option<&str>) {
        let admission = &self.inner.rooms.admission;
        let mut waiter = admission.wait_for(request.clone());
        while lock(&self.inner.places).is_kept(request, Instant::now()) {
            let waiting: Waiting = match admission.still_waiting(request.clone()).await {
                Ok(Some(Answer::Waiting(waiting))) => *waiting,
                Ok(Some(Answer::Granted(lease))) => {
                    tracing::info!(%request, lease = %lease.id, "granted: kept until the kubelet comes again");
                    return;
                }
                Ok(Some(Answer::Rejected(..)) | None) => return,
                Err(error) => {
                    tracing::warn!(%error, %request, "the place of a volume cannot be kept now; tried again");
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
            };
            let Span(hint) = waiting.retry_after;
            let hint = Duration::from_millis(u64::try_from(hint).unwrap_or(5_000)).min(LOOK_EVERY);
            tokio::select! {
                () = tokio::time::sleep(hint) => {}
                () = waiter.woken() => {}
            }
            if let Some(ticket) = waiting.ticket.filter(|_| pod.is_some_and(|pod| self.is_gone(pod))) {
                tracing::info!(%request, "its pod is gone: it waits no more");
                let _ = admission.cancel(ticket.id).await;
                return;
            }
        }
    }

    /// Whether the API server says that a pod is no more.
    pub(super) fn is_gone(&self, pod: &str) -> bool {
        let cluster = self.inner.rooms.kubernetes.view();
        let pods = cluster.pods.as_ref().filter(|_| cluster.is_current());
        pods.is_some_and(|pods| pods.get(pod).is_none_or(|pod| !pod.live()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The kubelet comes again at the very moment at which nobody came for too long.
    #[test]
    fn a_place_that_is_kept_longer_at_its_end_has_its_keeper() {
        let (mut places, request) = (Places::default(), RequestId::try_from("csi-1-2".to_owned()).unwrap());
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(places.keep(&request, at(300)), "a keeper begins");
        // Its time is over, and before it has gone somebody comes.
        assert!(!places.is_kept(&request, at(300)));
        assert!(!places.keep(&request, at(600)), "the one that is there is told");
        assert!(!places.ends(&request, true, at(300)), "so it must stay");
        assert!(places.is_kept(&request, at(599)));
        assert!(!places.keep(&request, at(500)) && places.is_kept(&request, at(599)), "never sooner");
        assert!(places.ends(&request, true, at(600)) && places.keep(&request, at(900)), "the next one begins anew");
        // One that was granted, or whose pod is gone, waits no more.
        assert!(places.ends(&request, false, at(700)) && !places.is_kept(&request, at(700)));
    }
}
