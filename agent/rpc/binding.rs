//! A lease that is bound by a call: what is named must be there, and be what may have it.

use stoker_core::admission::{Holder, Lease, Terms};
use stoker_core::cluster::Pod;
use stoker_core::identity::LeaseId;
use tonic::Status;

use super::Rooms;
use super::error::bad;

impl Rooms {
    /// Where the cluster is asked, and answers, a pod must run or wait on this node, as whom the request for the lease
    /// named. Where nobody can be asked, the caller's word counts: who may bind has the role for it.
    pub(super) async fn bind(&self, lease: LeaseId, holder: Holder) -> Result<Lease, Status> {
        let Holder::Pod { namespace, name, uid } = &holder else {
            return Ok(self.admission.bind(lease, holder).await?);
        };
        let cluster = self.kubernetes.view();
        let Some(pods) = cluster.pods.as_ref().filter(|_| cluster.is_current()) else {
            return Ok(self.admission.bind(lease, holder).await?);
        };
        let is_it = |pod: &&Pod| pod.live() && pod.namespace == *namespace && pod.name == *name;
        let Some(pod) = pods.get(uid).filter(is_it) else {
            let what = format!(
                "{namespace}/{name} ({uid}) does not run on this node, by the API server's word; give a \
                                pod that was placed here and has not ended"
            );
            return Err(bad("pod", what));
        };
        let terms: Option<Terms> = self.admission.read(|ledger| ledger.lease(&lease).map(|lease| lease.terms.clone()));
        if terms.is_some_and(|terms| terms.names_a_pod() && !terms.admit(pod)) {
            let what = format!(
                "{namespace}/{name} runs as {:?}, and the lease was given to another service account; name its `owner` \
                 with the request",
                pod.service_account
            );
            return Err(bad("pod", what));
        }
        Ok(self.admission.bind_pod(lease, holder.clone(), pod.controller.clone()).await?)
    }
}
