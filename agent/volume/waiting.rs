//! Places in the queue of those who wait for the kubelet to come again: it comes after up to two minutes, and a place that
//! nobody awaits runs out sooner. So the driver awaits it, as a caller of `AwaitAdmission` does, for as long as the kubelet
//! may take. A grant that comes meanwhile is confirmed, and kept as long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stoker_core::admission::{Answer, Waiting};
use stoker_core::identity::RequestId;
use stoker_core::quantity::Span;

use super::publish::KEPT_SECONDS;
use super::{REQUESTS, Volumes, lock};

/// Whose place is kept, and until when, unless the kubelet comes again.
pub(super) type Places = BTreeMap<RequestId, Instant>;

/// How often it is looked at whether a pod that waits is still there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Volumes {
    /// Keeps a place from now on, for a pod where it is known.
    pub(super) fn keep_place(&self, request: &RequestId, pod: Option<&str>) {
        let until = Instant::now() + Duration::from_secs(KEPT_SECONDS.unsigned_abs());
        // One keeper a place; it sees the later end.
        if lock(&self.inner.places).insert(request.clone(), until).is_some() {
            return;
        }
        let (volumes, request, pod) = (self.clone(), request.clone(), pod.map(str::to_owned));
        let cancel = self.inner.rooms.cancel.clone();
        self.inner.rooms.tasks.spawn(async move {
            cancel.run_until_cancelled(volumes.await_place(&request, pod.as_deref())).await;
            lock(&volumes.inner.places).remove(&request);
        });
    }

    /// The places that an earlier agent kept.
    pub(super) fn keep_all_places(&self) {
        let of_volumes = |request: &&RequestId| request.as_str().starts_with(REQUESTS);
        let waiting: Vec<RequestId> = self
            .inner
            .rooms
            .admission
            .read(|ledger| ledger.tickets().map(|held| &held.request.id).filter(of_volumes).cloned().collect());
        for request in waiting {
            self.keep_place(&request, None);
        }
    }

    /// Ends when it is granted or gone, when nobody came for it for too long, or when its pod is gone.
    async fn await_place(&self, request: &RequestId, pod: Option<&str>) {
        let admission = &self.inner.rooms.admission;
        let mut waiter = admission.wait_for(request.clone());
        while lock(&self.inner.places).get(request).is_some_and(|until| *until > Instant::now()) {
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
