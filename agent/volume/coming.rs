//! Volumes that pods wait for: since when, whether their pods have their leases yet, and that a pod has no more than one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::admission::{Lease, LeaseState, Terms};
use stoker_core::cluster::{LEASE, Pod};
use stoker_core::identity::RequestId;
use tonic::Status;

use super::together::Meant;
use super::{REQUESTS, Volumes, lock, prefix};
use crate::rpc::error::bad;

/// The most volumes that are remembered to be on their way; a node has fewer pods.
const COMING_MAX: usize = 4096;

/// A volume that was asked for and is not there yet.
pub(super) struct Coming {
    /// When it was asked for first.
    since: Instant,
    /// The uid of the pod that waits for it.
    pod: String,
    /// Of this lease, which was made before; unset: of one that is admitted for it.
    of: Option<String>,
    /// It has no lease yet.
    waits: bool,
}

impl Volumes {
    /// How long ago a volume was asked for first, where it was before; a restart forgets it. From now on its pod waits.
    ///
    /// # Errors
    /// Where the pod has, or waits for, another lease by another of its volumes.
    pub(super) fn asked_since(&self, volume: &str, pod: &str, of: &Meant) -> Result<Option<Duration>, Status> {
        if of.there().is_some_and(|lease| self.life(lease) == Some(false)) {
            return Ok(None); // it has ended, as whoever binds it is told
        }
        let mut coming = lock(&self.inner.coming);
        // All under one lock: of two that come at once the second sees the first.
        let others = coming.iter().filter(|(other, known)| other.as_str() != volume && known.pod == pod);
        let others: Vec<Option<&str>> = others.map(|(_, known)| known.of.as_deref()).collect();
        self.may_come(volume, pod, of, &others)?;
        let (waits, of) = (!matches!(of, Meant::Shared(_)), of.there());
        if let Some(known) = coming.get_mut(volume) {
            known.of = of.map(str::to_owned);
            let since = known.since.elapsed();
            // The lease that it had may have ended before it came.
            if self.held_by(pod).is_empty() && !std::mem::replace(&mut known.waits, true) {
                self.tell(&coming);
            }
            return Ok(Some(since));
        }
        // Of pods that went before their volumes came, and were never unpublished.
        let cluster = self.inner.rooms.kubernetes.view();
        if let Some(pods) = cluster.pods.as_ref().filter(|_| cluster.is_current()) {
            coming.retain(|_, known| pods.get(&known.pod).is_some_and(Pod::live));
        }
        if coming.len() >= COMING_MAX
            && let Some(oldest) = coming.iter().min_by_key(|(_, known)| known.since).map(|(volume, _)| volume.clone())
        {
            coming.remove(&oldest);
        }
        let new = Coming { since: Instant::now(), pod: pod.to_owned(), of: of.map(str::to_owned), waits };
        coming.insert(volume.to_owned(), new);
        self.tell(&coming);
        Ok(None)
    }

    /// Refuses a second lease to a pod. `others`: what its other volumes on their way are of.
    fn may_come(&self, volume: &str, pod: &str, of: &Meant, others: &[Option<&str>]) -> Result<(), Status> {
        let own = prefix(volume);
        let is_meant =
            |lease: &Lease| of.there() == Some(lease.id.as_str()) || lease.request_id.as_str().starts_with(&own);
        let of_another = |request: &RequestId, terms: &Terms| {
            terms.pod == pod && request.as_str().starts_with(REQUESTS) && !request.as_str().starts_with(&own)
        };
        let held = self.held_by(pod);
        self.inner.rooms.admission.read(|ledger| {
            // One that has ended is nobody's any more.
            let is_anothers = |id: &str| ledger.live().any(|lease| lease.id.as_str() == id && !is_meant(lease));
            if others.iter().flatten().any(|id| is_anothers(id))
                || held.iter().any(|lease| !is_meant(lease) && !of_another(&lease.request_id, &lease.terms))
            {
                return Err(second(of));
            }
            let is_admitted = others.contains(&None)
                || ledger.live().any(|lease| !is_meant(lease) && of_another(&lease.request_id, &lease.terms))
                || ledger.tickets().any(|held| of_another(&held.request.id, &held.request.terms));
            match of {
                Meant::Shared(_) => Ok(()),
                _ if !is_admitted => Ok(()),
                Meant::OneForAll => Err(of_another_volume()),
                Meant::Made { .. } | Meant::Own => Err(second(of)),
            }
        })
    }

    /// Whether another volume of a lease's pod is on its way, and is to be of that lease.
    pub(super) fn comes_beside(&self, volume: &str, lease: &Lease) -> bool {
        let coming = lock(&self.inner.coming);
        let is_its = |known: &Coming| known.pod == lease.terms.pod;
        let mut others = coming.iter().filter(|(other, known)| other.as_str() != volume && is_its(known));
        others.any(|(other, known)| match &known.of {
            Some(of) => *of == lease.id.as_str(),
            None => lease.request_id.as_str().starts_with(&prefix(other)),
        })
    }

    /// A volume is there, or is asked for no more.
    pub(super) fn came(&self, volume: &str) {
        let mut coming = lock(&self.inner.coming);
        if coming.remove(volume).is_some() {
            self.tell(&coming);
        }
    }

    /// Its pod has its lease, and counts by that from now on.
    pub(super) fn bound(&self, volume: &str) {
        let mut coming = lock(&self.inner.coming);
        if coming.get_mut(volume).is_some_and(|known| std::mem::take(&mut known.waits)) {
            self.tell(&coming);
        }
    }

    /// The lease that was admitted for it is given back: its pod waits again, if it does.
    pub(super) fn waits_again(&self, volume: &str) {
        let mut coming = lock(&self.inner.coming);
        if coming.get_mut(volume).is_some_and(|known| !std::mem::replace(&mut known.waits, true)) {
            self.tell(&coming);
        }
    }

    /// Says which pods wait: also those whose volumes an earlier agent was asked for, and that have a place in the queue, or
    /// a lease that is not bound yet.
    pub(super) fn tell(&self, coming: &BTreeMap<String, Coming>) {
        let waiting = coming.values().filter(|known| known.waits).map(|known| known.pod.clone());
        let mut pods: BTreeSet<String> = waiting.collect();
        self.inner.rooms.admission.read(|ledger| {
            let reserved = ledger.live().filter(|lease| lease.state == LeaseState::Reserved);
            let terms = ledger.tickets().map(|held| &held.request.terms).chain(reserved.map(|lease| &lease.terms));
            pods.extend(terms.map(|terms| &terms.pod).filter(|pod| !pod.is_empty()).cloned());
        });
        self.inner.rooms.waiting_pods.send_replace(Arc::new(pods));
    }
}

/// A pod is one build.
fn second(of: &Meant) -> Status {
    let what = format!(
        "a pod is one build, and another of its volumes has a lease, or waits for one: mount directories of that one \
         volume (`subPath` of volumeMounts), or give the pod a lease ({LEASE}) that all its volumes are of"
    );
    bad(if of.there().is_some() { "lease" } else { "repository" }, what)
}

/// One lease is admitted for all volumes of a pod.
fn of_another_volume() -> Status {
    Status::unavailable(format!(
        "the lease that the pod names ({LEASE}) has ended: another of its volumes asks for the one that all are of then, and \
         its event says what that waits for; tried again"
    ))
}
