//! Volumes of one pod whose lease was admitted for one of them: the pod names a lease that all are of, and that has ended, as
//! by a reboot. The first volume that comes asks for another one, and the others are of that too. It ends with the last of
//! them: which of them are there is told by the kernel's table, as ever.

use std::sync::Arc;

use stoker_core::admission::{Lease, LeaseState};
use stoker_core::cluster::{LEASE, Pod};
use stoker_core::identity::LeaseId;
use tonic::Status;

use super::Volumes;
use super::attributes::{Asked, Of, Wanted};
use super::carried::{fits, is_of_a_volume};
use super::publish::blocking;
use super::target::OF_CSI;
use crate::node::mount;
use crate::rpc::behalf::Behalf;

/// The lease that a volume is to be of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meant {
    /// One that was made before, and what names it.
    Made { lease: String, by: &'static str },
    /// One that is admitted for it alone.
    Own,
    /// One that is admitted for it and all other volumes of its pod.
    OneForAll,
    /// That one, where another volume of the pod has it.
    Shared(String),
}

impl Meant {
    /// One that is there.
    pub(super) fn there(&self) -> Option<&str> {
        match self {
            Self::Made { lease, .. } | Self::Shared(lease) => Some(lease),
            Self::Own | Self::OneForAll => None,
        }
    }
}

impl Volumes {
    /// Which lease a volume is to be of. `is_there`: it is mounted, so it is of what its pod has, whatever that says by now.
    ///
    /// # Errors
    /// Where the lease that its pod has is for something else.
    pub(super) fn meant(
        &self,
        behalf: &Behalf,
        volume: &str,
        (asked, of): (&Asked, &Of),
        pod: &Pod,
        is_there: bool,
    ) -> Result<Meant, Status> {
        if let Of::Lease(lease) = of {
            return Ok(Meant::Made { lease: lease.clone(), by: "lease" });
        }
        let names_one = !pod.lease.is_empty();
        if let Of::Build(wanted) = &asked.of
            && self.lease_of(volume).is_none()
        {
            if let Some(lease) = self.carried(behalf, &asked.pod.uid, wanted)? {
                return Ok(Meant::Made { lease, by: LEASE });
            }
            if (names_one || is_there)
                && let Some(lease) = self.joined(&asked.pod.uid, wanted)?
            {
                return Ok(Meant::Shared(lease));
            }
        }
        Ok(if names_one { Meant::OneForAll } else { Meant::Own })
    }

    /// Whether a lease is live; nothing where it is not known.
    pub(super) fn life(&self, lease: &str) -> Option<bool> {
        let id = LeaseId::try_from(lease.to_owned()).ok()?;
        self.inner.rooms.admission.read(|ledger| ledger.lease(&id).map(|lease| lease.live()))
    }

    /// The live lease that was admitted for another volume of a pod. It must be for what this one is to be.
    fn joined(&self, pod: &str, wanted: &Wanted) -> Result<Option<String>, Status> {
        let Some(lease) = self.admitted_for(pod) else { return Ok(None) };
        fits(&lease, &format!("another volume of the pod has lease {}", lease.id), wanted)?;
        Ok(Some(lease.id.to_string()))
    }

    /// The live lease that was admitted for a volume of a pod.
    fn admitted_for(&self, pod: &str) -> Option<Arc<Lease>> {
        let is_its = |lease: &&Arc<Lease>| lease.terms.pod == pod && is_of_a_volume(lease);
        self.inner.rooms.admission.read(|ledger| ledger.live().find(is_its).cloned())
    }

    /// The lease that ends when a volume of a pod goes: its own, or that of the pod's volumes where it was the last of them.
    /// One that no pod has yet is left to the volume that asked for it.
    pub(super) async fn ends_with(&self, volume: &str, pod: &str) -> Result<Option<Arc<Lease>>, Status> {
        let shared = || self.admitted_for(pod).filter(|lease| lease.state == LeaseState::Bound);
        let Some(lease) = self.lease_of(volume).or_else(shared) else { return Ok(None) };
        Ok((!self.is_used_beside(volume, &lease).await?).then_some(lease))
    }

    /// Whether another volume of the pod shows something of a lease's workspace, or is about to.
    async fn is_used_beside(&self, volume: &str, lease: &Lease) -> Result<bool, Status> {
        // In this order: what is on its way is mounted before it is said to have come.
        if self.comes_beside(volume, lease) {
            return Ok(true);
        }
        if lease.terms.pod.is_empty() {
            return Ok(false);
        }
        let of_pod = self.inner.kubelet.join("pods").join(&lease.terms.pod).join("volumes").join(OF_CSI);
        let workspace = lease.id.to_string();
        let seen = blocking(move || {
            mount::seen_below(&of_pod).map_err(|error| Status::unavailable(format!("mounts: {error}; tried again")))
        });
        // By its name, which no other directory of a pool has: also while the pool is away.
        let is_its = |seen: &mount::Seen| {
            seen.source == mount::SOURCE || seen.place.path().iter().any(|part| part == workspace.as_str())
        };
        Ok(seen.await?.iter().any(is_its))
    }
}
