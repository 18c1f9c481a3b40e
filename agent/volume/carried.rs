//! The lease that a pod has before its volume asks for one: it holds it already, or names it in its annotation, as whoever
//! admitted its build outside of the kubelet wrote it. Then none is admitted beside it.

use std::sync::Arc;

use stoker_core::admission::{Holder, Lease};
use stoker_core::cluster::LEASE;
use stoker_core::identity::LeaseId;
use tonic::Status;

use super::attributes::Wanted;
use super::{REQUESTS, Volumes};
use crate::rpc::behalf::Behalf;
use crate::rpc::error::bad;

impl Volumes {
    /// The live lease that a pod has, where it has one that was not admitted for a volume. It must be for what the volume is
    /// to be: a pod is one build.
    pub(super) fn carried(&self, behalf: &Behalf, uid: &str, wanted: &Wanted) -> Result<Option<String>, Status> {
        let held = self.held_by(uid).into_iter().find(|lease| !is_of_a_volume(lease));
        let Some(lease) = held.or_else(|| self.annotated(behalf, uid)) else { return Ok(None) };
        fits(&lease, &format!("the pod has lease {} ({LEASE})", lease.id), wanted)?;
        Ok(Some(lease.id.to_string()))
    }

    /// The live leases that a pod holds.
    pub(super) fn held_by(&self, pod: &str) -> Vec<Arc<Lease>> {
        let is_its = |lease: &&Arc<Lease>| matches!(&lease.holder, Some(Holder::Pod { uid, .. }) if uid == pod);
        self.inner.rooms.admission.read(|ledger| ledger.live().filter(is_its).cloned().collect())
    }

    /// The lease that a pod names. It is a claim: what proves it is looked at when it is bound. One that has run out, or that
    /// the pod may not know of, is none.
    fn annotated(&self, behalf: &Behalf, uid: &str) -> Option<Arc<Lease>> {
        let cluster = self.inner.rooms.kubernetes.view();
        let named = cluster.pods.as_ref()?.get(uid)?.lease.clone();
        let lease = behalf.lease(&LeaseId::try_from(named).ok()?)?;
        (lease.live() && !is_of_a_volume(&lease)).then_some(lease)
    }
}

pub(super) fn is_of_a_volume(lease: &Lease) -> bool {
    lease.request_id.as_str().starts_with(REQUESTS)
}

/// Refuses a lease of another source or tenant, by the attribute that differs. `which`: the lease, in words.
pub(super) fn fits(lease: &Lease, which: &str, wanted: &Wanted) -> Result<(), Status> {
    let tenant = wanted.build.scope.as_ref().map_or("", |scope| scope.tenant.as_str());
    let differs = |name: &str, has: &str, asked: &str| {
        let what = format!("is {asked:?}, and {which}, which is for {has:?}; give both the same, or the pod no lease");
        Err(bad(name, what))
    };
    if lease.source.repository != wanted.repository {
        return differs("repository", &lease.source.repository, &wanted.repository);
    }
    if lease.source.reference != wanted.reference {
        return differs("ref", &lease.source.reference, &wanted.reference);
    }
    if !tenant.is_empty() && lease.scope.tenant != tenant {
        return differs("tenant", &lease.scope.tenant, tenant);
    }
    Ok(())
}
