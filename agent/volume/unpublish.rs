//! A volume is unpublished: what is mounted goes, and with it the lease that was admitted for it. One that was made before
//! belongs to whoever made it, and ends with its pod; one that several volumes of a pod have, with the last of them.

use std::time::Duration;

use stoker_core::admission::{Lease, LeaseState, Refused};
use stoker_core::sizing::Outcome;
use tonic::Status;

use super::Volumes;
use super::publish::blocking;
use crate::admission::WriterError;

/// How long the API server's word of how a pod ended is waited for: the kubelet unmounts and tells at about the same time.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

impl Volumes {
    /// Returns when nothing is mounted there and nothing is held for the volume any more. What is not known is no error.
    pub(super) async fn unpublish(&self, volume: &str, target_path: &str) -> Result<(), Status> {
        let target = self.target(target_path, None)?;
        let (pod, _turn) = (target.pod(), self.turn_to_end(volume).await?);
        blocking(move || target.unmount()).await?;
        self.came(volume);
        self.wants_no_shelf(volume);
        let given_back = self.give_back(volume, &pod, Some(TOLD_WITHIN)).await;
        self.look_after_unmounting().await;
        given_back
    }

    /// Ends the lease that was admitted for a volume of a pod, or for the last of its volumes, and gives up its place in the
    /// queue. `told_within`: so long somebody else may tell how its build ended.
    pub(super) async fn give_back(&self, volume: &str, pod: &str, told_within: Option<Duration>) -> Result<(), Status> {
        self.leave_queue(volume).await?;
        while let Some(lease) = self.ends_with(volume, pod).await? {
            if let Some(limit) = told_within.filter(|_| lease.state == LeaseState::Bound) {
                self.ends_by_itself(&lease, limit).await;
            }
            // First, else a look between the two counts what it asks for as others'.
            self.waits_again(volume);
            let admission = &self.inner.rooms.admission;
            gone_is_gone(admission.release(lease.id.clone(), Outcome::Lost, None, None).await.map(drop))?;
        }
        Ok(())
    }

    /// Gives up the place that a volume has in the queue.
    pub(super) async fn leave_queue(&self, volume: &str) -> Result<(), Status> {
        let admission = &self.inner.rooms.admission;
        let Some(request) = self.request_of(volume) else { return Ok(()) };
        match admission.read(|ledger| ledger.ticket_of(&request).map(|held| held.id.clone())) {
            Some(ticket) => gone_is_gone(admission.cancel(ticket).await),
            None => Ok(()),
        }
    }

    /// Waits until the lease of a pod that the API server tells of has ended as that pod did.
    async fn ends_by_itself(&self, lease: &Lease, limit: Duration) {
        let rooms = &self.inner.rooms;
        if !rooms.kubernetes.view().is_current() {
            return;
        }
        let mut changes = rooms.admission.watch();
        let ended = async {
            while rooms.admission.read(|ledger| ledger.lease(&lease.id).is_some_and(|held| held.live())) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limit, ended).await;
    }
}

/// What somebody else ended meanwhile is ended.
fn gone_is_gone(ended: Result<(), WriterError>) -> Result<(), Status> {
    match ended {
        Err(WriterError::Refused(Refused::NoLease(_) | Refused::NoTicket(_) | Refused::Ended(..))) => Ok(()),
        other => Ok(other?),
    }
}
