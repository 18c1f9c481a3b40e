//! `AdmissionService`.

use std::pin::Pin;

use futures_util::Stream;
use stoker_core::admission::{BIND_WITHIN_MAX, Fit, Holder, PRIORITY_MAX, Queued};
use stoker_core::identity::LeaseId;
use stoker_proto::v1::{self, admission_service_server::AdmissionService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::asker::Asker;
use super::convert::{decision, reasons, ticket};
use super::error::bad;
use super::explain::evaluation;
use super::request::{Field, build, id, outcome, page, span, terms, usage};
use super::room::Rooming;
use super::waiting::{wait_for, watch};
use super::{Rooms, explain, patience};
use crate::access::Role;
use crate::admission::{self, BIND_WITHIN, Order};

const BUILDS_MAX: usize = 64;

pub(super) struct Admission(pub(super) Rooms);

type Watching = Pin<Box<dyn Stream<Item = Result<v1::WatchLeasesResponse, Status>> + Send>>;
type Awaiting = Pin<Box<dyn Stream<Item = Result<v1::AwaitAdmissionResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AdmissionService for Admission {
    async fn evaluate(&self, request: Request<v1::EvaluateRequest>) -> Result<Response<v1::EvaluateResponse>, Status> {
        let asker = Asker::of(&request)?;
        let mut builds = request.into_inner().builds;
        if builds.len() > BUILDS_MAX {
            return Err(bad("builds", format!("has {} entries, at most {BUILDS_MAX} are allowed", builds.len())));
        }
        asker.builds(&self.0, &mut builds)?;
        let named = |(i, given)| build(Field::At("builds", i), Some(given));
        let builds = builds.into_iter().enumerate().map(named).collect::<Result<Vec<_>, _>>()?;
        let evaluations = self.0.admission.evaluate(&builds).into_iter().map(evaluation).collect();
        Ok(Response::new(v1::EvaluateResponse { node: Some(self.0.node()), evaluations }))
    }

    async fn admit(&self, request: Request<v1::AdmitRequest>) -> Result<Response<v1::AdmitResponse>, Status> {
        let patience = patience(&request);
        let asker = Asker::of(&request)?;
        let mut request = request.into_inner();
        asker.may_name("request_id", &request.request_id)?;
        self.claim(&asker, "", &mut request)?;
        let mut order = order("", request)?;
        self.place(&asker, &mut order);
        let answer = asker.admit(&self.0, order, patience).await?;
        self.0.metrics.answered(&answer);
        let decision = Some(decision(&answer, self.0.name()));
        Ok(Response::new(v1::AdmitResponse { node: Some(self.0.node()), decision }))
    }

    async fn await_admission(&self, request: Request<v1::AwaitAdmissionRequest>) -> Result<Response<Awaiting>, Status> {
        let patience = patience(&request);
        let asker = Asker::of(&request)?;
        let mut admit = request.into_inner().admit.ok_or_else(|| bad("admit", "is missing"))?;
        asker.may_name("admit.request_id", &admit.request_id)?;
        self.claim(&asker, "admit.", &mut admit)?;
        let order = Order { take_ticket: true, awaited: true, ..order("admit", admit)? };
        let (answers, stream) = mpsc::channel(4);
        let rooms = self.0.clone();
        self.0.tasks.spawn(async move {
            let told = tokio::select! {
                () = rooms.cancel.cancelled() => Err(Status::unavailable("the agent is stopping")),
                () = answers.closed() => return,
                told = wait_for(&rooms, &asker, order, patience, &answers) => told,
            };
            if let Err(status) = told {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn bind(&self, request: Request<v1::BindRequest>) -> Result<Response<v1::BindResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let lease_id: LeaseId = id("lease_id", request.lease_id)?;
        let holder = match request.to {
            Some(v1::bind_request::To::Process(process)) => {
                if process.pid < 1 || i32::try_from(process.pid).is_err() {
                    return Err(bad("process.pid", format!("{} is no process id", process.pid)));
                }
                let holder = Holder::Process { pid: process.pid, start_ticks: process.start_ticks };
                if !self.0.process_lives(&process) {
                    let what =
                        "no such process of this node with that start time; a process in a pod is bound by its pod";
                    return Err(bad("process", what));
                }
                holder
            }
            Some(v1::bind_request::To::Pod(pod)) => {
                if pod.uid.is_empty() || pod.namespace.is_empty() || pod.name.is_empty() {
                    return Err(bad("pod", "is not whole; give namespace, name and uid"));
                }
                Holder::Pod { namespace: pod.namespace, name: pod.name, uid: pod.uid }
            }
            None => return Err(bad("to", "is not set; give a pod or a process")),
        };
        asker.lease(&self.0, Role::Scheduler, &lease_id)?;
        let bound = self.0.bind(&asker, lease_id, holder).await?;
        Ok(Response::new(v1::BindResponse { lease: Some(asker.shown(&self.0, &bound)) }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let lease_id = id("lease_id", request.lease_id)?;
        let span = span("reserve_for", request.reserve_for, BIND_WITHIN, BIND_WITHIN_MAX)?;
        asker.lease(&self.0, Role::Scheduler, &lease_id)?;
        let renewed = self.0.admission.renew(lease_id, span).await?;
        Ok(Response::new(v1::RenewResponse { lease: Some(asker.shown(&self.0, &renewed)) }))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let lease_id: LeaseId = id("lease_id", request.lease_id)?;
        let outcome = outcome("outcome", request.outcome)?;
        let usage = request.measured.map(|measured| usage("measured", measured)).transpose()?;
        asker.lease(&self.0, Role::Scheduler, &lease_id)?;
        let ended = self.0.admission.release(lease_id, outcome, request.exit_code, usage).await?;
        Ok(Response::new(v1::ReleaseResponse { lease: Some(asker.shown(&self.0, &ended)) }))
    }

    async fn get_lease(&self, request: Request<v1::GetLeaseRequest>) -> Result<Response<v1::GetLeaseResponse>, Status> {
        let asker = Asker::of(&request)?;
        let lease_id: LeaseId = id("lease_id", request.into_inner().lease_id)?;
        let found = asker.lease(&self.0, Role::Viewer, &lease_id)?;
        Ok(Response::new(v1::GetLeaseResponse { lease: Some(asker.shown(&self.0, &found)) }))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let wanted = super::request::scope("scope", request.scope.clone())?;
        let part = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        let states: Vec<v1::LeaseState> = request.states().collect();
        let (listed, watch_token) = self.0.admission.list(|ledger| {
            let ended = ledger.ended().filter(|_| !states.is_empty());
            let mut all: Vec<_> = ledger.live().chain(ended).collect();
            all.sort_by(|a, b| a.id.cmp(&b.id));
            let matching = all.into_iter().filter(|lease| {
                (states.is_empty() || states.contains(&super::convert::state(lease.state)))
                    && asker.sees(&lease.scope.tenant)
                    && part(&wanted.tenant, &lease.scope.tenant)
                    && part(&wanted.project, &lease.scope.project)
                    && part(&wanted.branch, &lease.scope.branch)
            });
            page(matching.cloned(), |lease| lease.id.to_string(), request.page_size, &request.page_token)
        });
        let (leases, next_page_token) = listed?;
        let leases = leases.iter().map(|held| asker.shown(&self.0, held)).collect();
        Ok(Response::new(v1::ListLeasesResponse { leases, next_page_token, watch_token }))
    }

    async fn list_tickets(
        &self,
        request: Request<v1::ListTicketsRequest>,
    ) -> Result<Response<v1::ListTicketsResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        super::request::scope("", Some(v1::Scope { tenant: request.tenant.clone(), ..v1::Scope::default() }))?;
        let (tickets, next_page_token) = self.0.admission.look(|view, _| {
            let named = |tenant: &str| request.tenant.is_empty() || request.tenant == tenant;
            let wanted = |tenant: &str| named(tenant) && asker.sees(tenant);
            let all = view.places().filter(|queued| wanted(&queued.ticket.request.scope.tenant));
            let key = |queued: &Queued<'_>| format!("{:08}", queued.ahead + 1);
            let (listed, next) = page(all, key, request.page_size, &request.page_token)?;
            let told = |queued: &Queued<'_>| {
                let why = match view.waits_at(queued) {
                    Fit::Later { reasons, .. } | Fit::Never(reasons) => reasons,
                    Fit::Now => Vec::new(),
                };
                v1::Ticket { reasons: reasons(&why), ..ticket(queued.ticket, queued.ahead + 1) }
            };
            Ok::<_, Status>((listed.iter().map(told).collect::<Vec<_>>(), next))
        })?;
        Ok(Response::new(v1::ListTicketsResponse { tickets, next_page_token }))
    }

    async fn cancel_ticket(
        &self,
        request: Request<v1::CancelTicketRequest>,
    ) -> Result<Response<v1::CancelTicketResponse>, Status> {
        let asker = Asker::of(&request)?;
        let ticket_id = id("ticket_id", request.into_inner().ticket_id)?;
        asker.ticket(&self.0, Role::Scheduler, &ticket_id)?;
        self.0.admission.cancel(ticket_id).await?;
        Ok(Response::new(v1::CancelTicketResponse {}))
    }

    async fn watch_leases(&self, request: Request<v1::WatchLeasesRequest>) -> Result<Response<Watching>, Status> {
        let asker = Asker::of(&request)?;
        Ok(Response::new(Box::pin(watch(&self.0, asker, request.into_inner().watch_token)?)))
    }

    async fn watch_room(&self, request: Request<v1::WatchRoomRequest>) -> Result<Response<Rooming>, Status> {
        let asker = Asker::of(&request)?;
        Ok(Response::new(super::room::watch(&self.0, asker, request.get_ref().mirrors_on_change)))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let asker = Asker::of(&request)?;
        let explanation = asker.explanation(explain::explain(&self.0, &asker, request.into_inner())?);
        Ok(Response::new(v1::ExplainResponse { node: Some(self.0.node()), explanation: Some(explanation) }))
    }
}

impl Admission {
    /// Says of a pod that is on the node already that it is, and what it asks of the cluster: it has that, so its lease is
    /// for no less.
    fn place(&self, asker: &Asker, order: &mut Order) {
        let Some(uid) = asker.placed() else { return };
        uid.clone_into(&mut order.terms.pod);
        let cluster = self.0.kubernetes.view();
        if let (Some(build), Some(pod)) = (&mut order.build, cluster.pods.as_ref().and_then(|pods| pods.get(uid))) {
            build.declared.pod = pod.requests;
        }
    }

    /// Whose build it is: what its lease, its history and its caches belong to.
    fn claim(&self, asker: &Asker, field: &str, request: &mut v1::AdmitRequest) -> Result<(), Status> {
        asker.about("request", &request.request_id);
        if asker.caller.may_do_everything() {
            return Ok(());
        }
        if let Some(build) = &mut request.build {
            asker.build(&self.0, &format!("{field}build"), build)?;
        }
        if !request.retry_of.is_empty() {
            let first: LeaseId = id(format!("{field}retry_of").as_str(), request.retry_of.clone())?;
            asker.lease_to_build(&self.0, &first)?;
        }
        asker.about("request", &request.request_id); // and not the lease that it retries
        Ok(())
    }
}

fn order(field: &'static str, request: v1::AdmitRequest) -> Result<Order, Status> {
    let field = Field::Of(field);
    let at = |name: &'static str| Field::In(&field, name);
    let content = v1::AdmitRequest { request_id: String::new(), take_ticket: false, ..request.clone() };
    let retry_of = match request.retry_of {
        first if first.is_empty() => None,
        first => Some(id(at("retry_of"), first)?),
    };
    // A retry builds what its first attempt did: it need not say so again.
    let told =
        (retry_of.is_none() || request.build.is_some()).then(|| build(at("build"), request.build)).transpose()?;
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&request.priority) {
        let what = format!("is {}; give -{PRIORITY_MAX} to {PRIORITY_MAX}", request.priority);
        return Err(bad(at("priority"), what));
    }
    let terms = terms(at("owner"), at("rebind"), request.owner.unwrap_or_default(), request.rebind)?;
    Ok(Order {
        request_id: id(at("request_id"), request.request_id)?,
        digest: admission::digest(&prost::Message::encode_to_vec(&content)),
        build: told,
        retry_of,
        priority: request.priority,
        take_ticket: request.take_ticket,
        awaited: false,
        bind_within: span(at("bind_within"), request.bind_within, BIND_WITHIN, BIND_WITHIN_MAX)?,
        terms,
    })
}
