//! `AdmissionService`.

use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use stoker_core::admission::{Answer, BIND_WITHIN_MAX, Holder};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Span;
use stoker_proto::v1::{self, admission_service_server::AdmissionService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert::{awaited, decision, lease, reasons, sizing, ticket};
use super::error::bad;
use super::request::{build, id, outcome, page, span, usage};
use super::{Rooms, patience};
use crate::admission::{self, Evaluated, Order, SourceState};

const BUILDS_MAX: usize = 64;
const BIND_WITHIN: Span = Span::minutes(5);

pub(super) struct Admission(pub(super) Rooms);

type Awaiting = Pin<Box<dyn Stream<Item = Result<v1::AwaitAdmissionResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AdmissionService for Admission {
    async fn evaluate(&self, request: Request<v1::EvaluateRequest>) -> Result<Response<v1::EvaluateResponse>, Status> {
        let builds = request.into_inner().builds;
        if builds.len() > BUILDS_MAX {
            return Err(bad("builds", format!("has {} entries, at most {BUILDS_MAX} are allowed", builds.len())));
        }
        let named = |(i, given)| build(&format!("builds[{i}]"), Some(given));
        let builds = builds.into_iter().enumerate().map(named).collect::<Result<Vec<_>, _>>()?;
        let evaluations = self.0.admission.evaluate(&builds).into_iter().map(evaluation).collect();
        Ok(Response::new(v1::EvaluateResponse { node: Some(self.0.node()), evaluations }))
    }

    async fn admit(&self, request: Request<v1::AdmitRequest>) -> Result<Response<v1::AdmitResponse>, Status> {
        let patience = patience(&request);
        let order = order("", request.into_inner())?;
        let answer = self.0.admission.admit(order, patience).await?;
        self.0.metrics.answered(&answer);
        let decision = Some(decision(&answer, self.0.name()));
        Ok(Response::new(v1::AdmitResponse { node: Some(self.0.node()), decision }))
    }

    async fn await_admission(&self, request: Request<v1::AwaitAdmissionRequest>) -> Result<Response<Awaiting>, Status> {
        let patience = patience(&request);
        let admit = request.into_inner().admit.ok_or_else(|| bad("admit", "is missing"))?;
        let order = Order { take_ticket: true, ..order("admit.", admit)? };
        let (answers, stream) = mpsc::channel(4);
        let rooms = self.0.clone();
        self.0.tasks.spawn(async move {
            let told = tokio::select! {
                () = rooms.cancel.cancelled() => Err(Status::unavailable("the agent is stopping")),
                () = answers.closed() => return,
                told = wait_for(&rooms, order, patience, &answers) => told,
            };
            if let Err(status) = told {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn bind(&self, request: Request<v1::BindRequest>) -> Result<Response<v1::BindResponse>, Status> {
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
        let bound = self.0.admission.bind(lease_id, holder).await?;
        Ok(Response::new(v1::BindResponse { lease: Some(lease(&bound, self.0.name())) }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let request = request.into_inner();
        let lease_id = id("lease_id", request.lease_id)?;
        let span = span("reserve_for", request.reserve_for, BIND_WITHIN, BIND_WITHIN_MAX)?;
        let renewed = self.0.admission.renew(lease_id, span).await?;
        Ok(Response::new(v1::RenewResponse { lease: Some(lease(&renewed, self.0.name())) }))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let request = request.into_inner();
        let lease_id: LeaseId = id("lease_id", request.lease_id)?;
        let outcome = outcome("outcome", request.outcome)?;
        let usage = request.measured.map(|measured| usage("measured", measured)).transpose()?;
        let ended = self.0.admission.release(lease_id, outcome, request.exit_code, usage).await?;
        Ok(Response::new(v1::ReleaseResponse { lease: Some(lease(&ended, self.0.name())) }))
    }

    async fn get_lease(&self, request: Request<v1::GetLeaseRequest>) -> Result<Response<v1::GetLeaseResponse>, Status> {
        let lease_id: LeaseId = id("lease_id", request.into_inner().lease_id)?;
        let found = self.0.admission.read(|ledger, _| ledger.lease(&lease_id).cloned());
        let found = found.ok_or_else(|| {
            Status::from(admission::WriterError::Refused(stoker_core::admission::Refused::NoLease(lease_id)))
        })?;
        Ok(Response::new(v1::GetLeaseResponse { lease: Some(lease(&found, self.0.name())) }))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        let request = request.into_inner();
        let wanted = super::request::scope("scope", request.scope.clone())?;
        let part = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        let states: Vec<v1::LeaseState> = request.states().collect();
        let version = *self.0.admission.watch().borrow();
        let (leases, next_page_token) = self.0.admission.read(|ledger, _| {
            let ended = ledger.ended().filter(|_| !states.is_empty());
            let mut all: Vec<_> = ledger.live().chain(ended).collect();
            all.sort_by(|a, b| a.id.cmp(&b.id));
            let matching = all.into_iter().filter(|lease| {
                (states.is_empty() || states.contains(&super::convert::state(lease.state)))
                    && part(&wanted.tenant, &lease.scope.tenant)
                    && part(&wanted.project, &lease.scope.project)
                    && part(&wanted.branch, &lease.scope.branch)
            });
            page(matching.cloned(), |lease| lease.id.to_string(), request.page_size, &request.page_token)
        })?;
        let leases = leases.iter().map(|held| lease(held, self.0.name())).collect();
        Ok(Response::new(v1::ListLeasesResponse { leases, next_page_token, watch_token: version.to_string() }))
    }

    async fn list_tickets(
        &self,
        request: Request<v1::ListTicketsRequest>,
    ) -> Result<Response<v1::ListTicketsResponse>, Status> {
        let request = request.into_inner();
        let (tickets, next_page_token) = self.0.admission.read(|ledger, _| {
            let all = ledger.tickets().enumerate().map(|(place, held)| (place + 1, held.clone()));
            page(all, |(place, _)| format!("{place:08}"), request.page_size, &request.page_token)
        })?;
        let tickets = tickets.iter().map(|(place, held)| ticket(held, *place)).collect();
        Ok(Response::new(v1::ListTicketsResponse { tickets, next_page_token }))
    }

    async fn cancel_ticket(
        &self,
        request: Request<v1::CancelTicketRequest>,
    ) -> Result<Response<v1::CancelTicketResponse>, Status> {
        self.0.admission.cancel(id("ticket_id", request.into_inner().ticket_id)?).await?;
        Ok(Response::new(v1::CancelTicketResponse {}))
    }
}

/// Takes a place, then tells each change until it is granted or rejected. While it runs, the ticket lives.
async fn wait_for(
    rooms: &Rooms,
    order: Order,
    patience: Duration,
    answers: &mpsc::Sender<Result<v1::AwaitAdmissionResponse, Status>>,
) -> Result<(), Status> {
    let mut changes = rooms.admission.watch();
    let request_id = order.request_id.clone();
    let mut answer = rooms.admission.admit(order.clone(), patience).await?;
    let mut told: Option<v1::await_admission_response::Decision> = None;
    loop {
        if told.is_none() || !matches!(answer, Answer::Waiting(_)) {
            rooms.metrics.answered(&answer); // the first answer and the last, not every change of a hint
        }
        let decision = awaited(&answer, rooms.name());
        if told.as_ref() != Some(&decision) {
            let message = v1::AwaitAdmissionResponse { node: Some(rooms.node()), decision: Some(decision.clone()) };
            if answers.send(Ok(message)).await.is_err() {
                return Ok(()); // the caller went; the ticket runs out by itself
            }
            told = Some(decision);
        }
        let Answer::Waiting(waiting) = answer else { return Ok(()) };
        let hint = Duration::from_millis(u64::try_from(waiting.retry_after.0).unwrap_or(30_000));
        // Woken when the ledger changes in a way that may concern this request, or to keep the ticket alive.
        let deadline = tokio::time::sleep(hint);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => break,
                changed = changes.changed() => {
                    changed.map_err(|_| Status::unavailable("the agent is stopping"))?;
                    let still = rooms.admission.read(|ledger, _| ledger.place_of(&request_id).is_some());
                    if !still { break }
                }
            }
        }
        answer = match rooms.admission.still_waiting(request_id.clone()).await? {
            Some(answer) => answer,
            // Cancelled, or it ran out: take a place anew.
            None => rooms.admission.admit(order.clone(), patience).await?,
        };
    }
}

fn order(field: &str, request: v1::AdmitRequest) -> Result<Order, Status> {
    let content = v1::AdmitRequest { request_id: String::new(), take_ticket: false, ..request.clone() };
    if !request.retry_of.is_empty() {
        return Err(Status::unimplemented(format!("{field}retry_of: retries are not served yet; send a new build")));
    }
    Ok(Order {
        request_id: id(&format!("{field}request_id"), request.request_id)?,
        digest: admission::digest(&prost::Message::encode_to_vec(&content)),
        build: build(&format!("{field}build"), request.build)?,
        take_ticket: request.take_ticket,
        bind_within: span(&format!("{field}bind_within"), request.bind_within, BIND_WITHIN, BIND_WITHIN_MAX)?,
    })
}

fn evaluation(found: Evaluated) -> v1::Evaluation {
    let state = match found.source {
        SourceState::None => v1::SourceState::None,
        SourceState::Mirror => v1::SourceState::Mirror,
    };
    let verdict = match found.never {
        true => v1::Verdict::Never,
        false if found.reasons.is_empty() => v1::Verdict::Fits,
        false => v1::Verdict::Waits,
    };
    v1::Evaluation {
        verdict: verdict.into(),
        sizing: Some(sizing(&found.sizing)),
        score: i32::from(found.score),
        source: state.into(),
        reasons: reasons(&found.reasons),
        predicted_wait: found.predicted_wait.map(super::convert::duration),
    }
}
