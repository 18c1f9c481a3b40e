//! Calls from inside the agent in the name of somebody who proved who it is elsewhere: a pod whose volume is mounted. They
//! go through the same services as calls from outside, and so through the same checks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use stoker_core::admission::Lease;
use stoker_core::identity::{LeaseId, RequestId};
use stoker_proto::v1::admission_service_server::AdmissionService as _;
use stoker_proto::v1::prepare_workspace_response::Event;
use stoker_proto::v1::workspace_service_server::WorkspaceService as _;
use stoker_proto::v1::{self, admit_response::Decision};
use tonic::{Code, Request, Status};

use super::Rooms;
use super::admission::Admission;
use super::asker::{Asker, Subject};
use super::convert::decision;
use super::guard;
use super::workspace::Workspace;
use crate::access::{Caller, Role};
use crate::metrics::Face;

/// One in whose name is asked.
#[derive(Clone)]
pub(crate) struct Behalf {
    rooms: Rooms,
    asker: Asker,
}

impl Rooms {
    /// Asks in the name of a caller.
    pub(crate) fn in_the_name_of(&self, caller: Arc<Caller>) -> Behalf {
        let asker = Asker { caller, subject: Subject::default(), metrics: self.metrics.clone(), inside: true };
        Behalf { rooms: self.clone(), asker }
    }
}

impl Behalf {
    /// Refuses one that has no role in which it could ask for builds; `what` is what it wants.
    pub(crate) fn may_ask(&self, what: &str) -> Result<(), Status> {
        self.asker.caller.at_least(Role::Scheduler, what).map_err(|denied| {
            self.rooms.metrics.refused(Face::Grpc, &denied);
            denied.into()
        })
    }

    /// A lease that it could have built, as what it may not know of is not there.
    pub(crate) fn lease(&self, id: &LeaseId) -> Option<Arc<Lease>> {
        self.asker.lease_to_build(&self.rooms, id).ok()
    }

    /// The line of the audit log about what was asked, as each call has one.
    pub(crate) fn audit(&self, method: &str, on: &str, began: Instant, ended: &Result<(), Status>) {
        let identity = &self.asker.caller.identity;
        let (pod, pod_uid) = identity.pod.as_ref().map_or(("", ""), |(name, uid)| (name.as_str(), uid.as_str()));
        let outcome = guard::outcome(ended.as_ref().map_or_else(Status::code, |()| Code::Ok));
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (who, way, on) = (&identity.name, identity.way.word(), crate::access::cut(on.to_owned()));
        tracing::info!(target: "audit", who, way, pod, pod_uid, method, on, outcome, millis, "audit");
    }

    /// As `AdmissionService.Admit`.
    pub(crate) async fn admit(&self, order: v1::AdmitRequest, patience: Duration) -> Result<Decision, Status> {
        let answer = Admission(self.rooms.clone()).admit(self.request(order, patience)).await?;
        answer.into_inner().decision.ok_or_else(|| Status::internal("a request for a lease got no answer"))
    }

    /// How a request stands that was made before, in whoever's name: what it was resolved and sized to stands. A grant is
    /// confirmed. Nothing where it is not known.
    pub(crate) async fn again(&self, request: RequestId) -> Result<Option<Decision>, Status> {
        let answer = self.rooms.admission.still_waiting(request).await?;
        Ok(answer.map(|answer| decision(&answer, self.rooms.name())))
    }

    /// As `AdmissionService.Bind`, to a pod.
    pub(crate) async fn bind(&self, lease_id: String, pod: v1::Pod) -> Result<v1::Lease, Status> {
        let order = v1::BindRequest { lease_id, to: Some(v1::bind_request::To::Pod(pod)) };
        let answer = Admission(self.rooms.clone()).bind(self.request(order, super::PATIENCE)).await?;
        answer.into_inner().lease.ok_or_else(|| Status::internal("a lease that was bound is none"))
    }

    /// As `WorkspaceService.PrepareWorkspace`, for at most `within`: then how far it is. It goes on in any case.
    pub(crate) async fn prepare(
        &self,
        order: v1::PrepareWorkspaceRequest,
        within: Duration,
    ) -> Result<Result<v1::Workspace, v1::Progress>, Status> {
        let request = self.request(order, within);
        let mut far = v1::Progress::default();
        let whole = async {
            let mut stages = Workspace(self.rooms.clone()).prepare_workspace(request).await?.into_inner();
            while let Some(stage) = stages.next().await {
                match stage?.event {
                    Some(Event::Workspace(workspace)) => return Ok(workspace),
                    Some(Event::Progress(progress)) => far = progress,
                    None => {}
                }
            }
            Err(Status::unavailable("the agent is stopping"))
        };
        match tokio::time::timeout(within, whole).await {
            Ok(ended) => ended.map(Ok),
            Err(_) => Ok(Err(far)),
        }
    }

    fn request<T>(&self, message: T, patience: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(patience);
        request.extensions_mut().insert(self.asker.clone());
        request
    }
}
