//! What a simulated agent says, and how it is asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream;
use stoker::rpc::convert;
use stoker_core::admission::{Command, Lease, LeaseState, Refused, Reply};
use stoker_core::quantity::Span;
use stoker_core::sizing::Outcome;
use stoker_proto::v1;
use stoker_proto::v1::admission_service_server::AdmissionService;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{Simulated, State, lease_id, now, words};

/// At most one message on a stream in so long, and at least one.
const ROOM_AT_MOST_EVERY: Duration = Duration::from_secs(1);
const ROOM_AT_LEAST_EVERY: Duration = Duration::from_secs(15);

impl Simulated {
    fn node(&self, state: &State) -> v1::Node {
        v1::Node {
            name: self.name.clone(),
            agent_version: "simulated".into(),
            incarnation: state.incarnation.to_string(),
            observed_at: Some(convert::timestamp(now())),
        }
    }

    fn room(&self) -> v1::WatchRoomResponse {
        let state = self.state();
        let totals = state.ledger.totals(&state.facts);
        let is_of_a_gate = |lease: &&Arc<Lease>| lease.request_id.as_str().starts_with("gate-");
        let grant = |lease: &Arc<Lease>| v1::Grant {
            request_id: lease.request_id.to_string(),
            lease_id: lease.id.to_string(),
            state: convert::state(lease.state).into(),
            size: Some(convert::amounts(&lease.sizing.size.amounts)),
            bind_by: (lease.state == LeaseState::Reserved).then(|| convert::timestamp(lease.bind_by)),
        };
        self.counts.rooms.fetch_add(1, Ordering::Relaxed);
        v1::WatchRoomResponse {
            node: Some(self.node(&state)),
            room: Some(v1::Room {
                mode: v1::Mode::Accepting.into(),
                gate: v1::GateState::Open.into(),
                accepts: state.ledger.live_count() < state.facts.leases_max,
                free: Some(convert::amounts(&totals.free)),
                budget: Some(convert::amounts(&totals.budget)),
                idle: state.ledger.live_count() == 0,
                mirrors: self.mirrors.clone(),
                grants: state.ledger.live().filter(is_of_a_gate).map(grant).collect(),
                facts: Some(v1::NodeFacts { labels: self.labels.clone(), ..Default::default() }),
                ..Default::default()
            }),
        }
    }
}

/// Its gRPC side.
pub(super) struct Face(pub(super) Arc<Simulated>);

impl std::ops::Deref for Face {
    type Target = Simulated;

    fn deref(&self) -> &Simulated {
        &self.0
    }
}

/// Counts a stream for as long as it is open.
struct Open(Arc<Simulated>);

impl Open {
    fn new(of: &Arc<Simulated>) -> Self {
        of.counts.streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(of))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counts.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The room now, then when it changed, not more often than may be and not more seldom.
fn rooms(of: &Arc<Simulated>, mirrors_on_change: bool) -> BoxStream<v1::WatchRoomResponse> {
    let changes = of.changed.subscribe();
    let first = (Open::new(of), changes, None::<tokio::time::Instant>);
    Box::pin(stream::unfold(first, move |(open, mut changes, last)| async move {
        if let Some(last) = last {
            let heard = tokio::time::timeout_at(last + ROOM_AT_LEAST_EVERY, changes.changed()).await;
            if heard.is_ok() {
                tokio::time::sleep_until(last + ROOM_AT_MOST_EVERY).await;
            }
        }
        changes.mark_unchanged();
        let mut room = open.0.room();
        // They never change.
        if let Some(room) = room.room.as_mut().filter(|_| mirrors_on_change && last.is_some()) {
            room.mirrors.clear();
            room.mirrors_unchanged = true;
        }
        Some((Ok(room), (open, changes, Some(tokio::time::Instant::now()))))
    }))
}

#[tonic::async_trait]
impl AdmissionService for Face {
    async fn admit(&self, request: Request<v1::AdmitRequest>) -> Result<Response<v1::AdmitResponse>, Status> {
        let request = words::request(request.get_ref())?;
        self.counts.admits.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        self.tell(&mut state, &Command::Advance);
        let lease = state.fresh(&self.name);
        let before = state.ledger.live_count();
        let command = Command::Admit { request: Box::new(request), lease, ticket: None, awaited: false };
        let answer = match self.tell(&mut state, &command) {
            Reply::Answer(answer) => answer,
            Reply::Refused(why) => return Err(words::refused(why)),
            _ => return Err(Status::internal("no answer")),
        };
        if state.ledger.live_count() > before {
            self.counts.grants.fetch_add(1, Ordering::Relaxed);
            if let Some(since) = state.room_since.take() {
                self.counts.filled.lock().unwrap().push(since.elapsed());
            }
        } else {
            self.counts.waits.fetch_add(1, Ordering::Relaxed);
        }
        let decision = Some(convert::decision(&answer, &self.name));
        Ok(Response::new(v1::AdmitResponse { node: Some(self.node(&state)), decision }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let v1::RenewRequest { lease_id: id, reserve_for } = request.into_inner();
        self.counts.renewals.fetch_add(1, Ordering::Relaxed);
        let command = Command::Renew(lease_id(&id), words::span(reserve_for.as_ref(), Span::minutes(5)));
        let mut state = self.state();
        self.tell(&mut state, &Command::Advance);
        match self.tell(&mut state, &command) {
            Reply::Lease(lease) => {
                Ok(Response::new(v1::RenewResponse { lease: Some(convert::lease(&lease, &self.name)) }))
            }
            Reply::Refused(why) => Err(words::refused(why)),
            _ => Err(Status::internal("no answer")),
        }
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let lease = lease_id(&request.get_ref().lease_id);
        self.counts.releases.fetch_add(1, Ordering::Relaxed);
        let command = Command::Release { lease, outcome: Outcome::Lost, exit_code: None, usage: None };
        match self.tell(&mut self.state(), &command) {
            Reply::Lease(lease) => {
                Ok(Response::new(v1::ReleaseResponse { lease: Some(convert::lease(&lease, &self.name)) }))
            }
            Reply::Refused(why) => Err(words::refused(why)),
            _ => Err(Status::internal("no answer")),
        }
    }

    async fn get_lease(&self, request: Request<v1::GetLeaseRequest>) -> Result<Response<v1::GetLeaseResponse>, Status> {
        let id = lease_id(&request.get_ref().lease_id);
        let state = self.state();
        let lease = state.ledger.lease(&id).ok_or_else(|| words::refused(Refused::NoLease(id.clone())))?;
        Ok(Response::new(v1::GetLeaseResponse { lease: Some(convert::lease(lease, &self.name)) }))
    }

    async fn watch_room(
        &self,
        request: Request<v1::WatchRoomRequest>,
    ) -> Result<Response<BoxStream<v1::WatchRoomResponse>>, Status> {
        Ok(Response::new(rooms(&self.0, request.get_ref().mirrors_on_change)))
    }
}
