//! A lease that is bound by a call: what is named must be there, and be what may have it.

use stoker_core::admission::{Holder, Lease, Terms};
use stoker_core::cluster::Pod;
use stoker_core::identity::LeaseId;
use stoker_core::reason::Code;
use tonic::Status;

use super::Rooms;
use super::asker::Asker;
use super::error::bad;
use crate::node::process;

impl Rooms {
    /// Where the cluster is asked, and answers, a pod must run or wait on this node, as whom the request for the lease
    /// named. Where nobody can be asked, the caller's word counts: who may bind has the role for it.
    ///
    /// A holder is measured, and ended when its time is over. So who may not do everything binds a process of its own
    /// user only, and a pod only that its request named.
    pub(super) async fn bind(&self, asker: &Asker, lease: LeaseId, holder: Holder) -> Result<Lease, Status> {
        let may_all = asker.caller.may_do_everything();
        let Holder::Pod { namespace, name, uid } = &holder else {
            if !may_all && !self.is_its_own(asker, &holder).await {
                return Err(bad("process", "is not the caller's own: bind a process of your user, over the socket"));
            }
            return Ok(self.admission.bind(lease, holder, String::new()).await?);
        };
        let cluster = self.kubernetes.view();
        let Some(pods) = cluster.pods.as_ref().filter(|_| cluster.is_current()) else {
            if !may_all {
                let word = Code::ApiServerAway.word();
                let what = "pods cannot be looked at now, for the API server does not answer; try again when it does";
                return Err(Status::unavailable(format!("{word}: {what}")));
            }
            return Ok(self.admission.bind(lease, holder, String::new()).await?);
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
        let terms = terms.unwrap_or_default();
        let is_own = asker.caller.identity.pod.as_ref().is_some_and(|(_, of)| of == uid);
        if !may_all && !is_own && !terms.names_a_pod() {
            let what = format!(
                "{namespace}/{name} is no pod that the request for the lease named: name its `owner` (namespace and \
                 service account) with the request"
            );
            return Err(bad("pod", what));
        }
        if terms.names_a_pod() && !terms.admit(pod) {
            let what = format!(
                "{namespace}/{name} runs as {:?}, and the lease was given to another service account; name its `owner` \
                 with the request",
                pod.service_account
            );
            return Err(bad("pod", what));
        }
        Ok(self.admission.bind(lease, holder.clone(), pod.controller.clone()).await?)
    }

    /// Whether a process belongs to the caller's user.
    async fn is_its_own(&self, asker: &Asker, holder: &Holder) -> bool {
        let Holder::Process { pid, .. } = holder else { return false };
        let (root, pid) = (self.identity.host_root.clone(), i32::try_from(*pid).unwrap_or(-1));
        let owner = tokio::task::spawn_blocking(move || process::owner(&root, pid)).await.ok().flatten();
        owner.is_some() && owner == asker.caller.identity.uid
    }
}
