//! Whose things a call may see and change: the caller's grants, held against tenants and trust classes. What is another's
//! looks as if it were not there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stoker_core::admission::{Answer, Lease, Refused};
use stoker_core::identity::{LeaseId, TicketId};
use stoker_core::placement::GATED;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use stoker_proto::v1;
use tonic::{Request, Status};

use super::Rooms;
use super::error::refusal;
use crate::access::{Caller, Denied, Role};
use crate::admission::{AdmissionError, Order, WriterError};
use crate::metrics::{Face, Metrics};
use crate::volume::REQUESTS;

/// What a call is about, for the audit log.
pub(super) type Subject = Arc<Mutex<String>>;

/// Who asks, in the course of one call.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) caller: Arc<Caller>,
    pub(super) subject: Subject,
    pub(super) metrics: Metrics,
    /// It is the agent itself that asks, in the caller's name.
    pub(super) inside: bool,
}

impl Asker {
    /// The one behind a request. A call that did not come through the guard has none, and gets nothing.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let known = request.extensions().get::<Self>().cloned();
        known.ok_or_else(|| Status::internal("nobody knows who asks"))
    }

    fn deny(&self, denied: Denied) -> Status {
        self.metrics.refused(Face::Grpc, &denied);
        denied.into()
    }

    /// Refuses a request by a name that the agent gives: who took one would have its lease taken for a volume's. Names of
    /// pods that wait for a node are for those who may ask for every tenant: who took one would have that pod's place.
    pub(super) fn may_name(&self, field: &str, request: &str) -> Result<(), Status> {
        let why = if !self.inside && request.starts_with(REQUESTS) {
            format!("begins with {REQUESTS:?}, as requests for volumes do: choose another")
        } else if request.starts_with(GATED) && !self.caller.may_for_all(Role::Scheduler) {
            format!(
                "begins with {GATED:?}, as requests for pods that wait for a node do: choose another, or have a rule \
                 of role scheduler for tenants [\"*\"]"
            )
        } else {
            return Ok(());
        };
        Err(super::error::bad(field, why))
    }

    /// Says what the call is about.
    pub(super) fn about(&self, kind: &str, id: impl std::fmt::Display) {
        *self.subject.lock().unwrap_or_else(PoisonError::into_inner) = crate::access::cut(format!("{kind} {id}"));
    }

    /// Whether it sees all tenants.
    pub(super) fn sees_all(&self) -> bool {
        self.caller.may_for_all(Role::Viewer)
    }

    /// Whether it sees what belongs to a tenant.
    pub(super) fn sees(&self, tenant: &str) -> bool {
        self.caller.may(Role::Viewer, tenant)
    }

    /// Whether it sees what belongs to a tenant, and is made of a repository of a trust class.
    pub(super) fn sees_of(&self, tenant: &str, trust: &str) -> bool {
        self.caller.may_of(Role::Viewer, tenant, trust)
    }

    /// The pod that its order is for, where that waits on this node: the agent itself asks for it, by its own token.
    pub(super) fn placed(&self) -> Option<&str> {
        self.caller.identity.pod.as_ref().filter(|_| self.inside).map(|(_, uid)| uid.as_str())
    }

    /// Puts the tenant into a scope that names none, and refuses one that is not the caller's.
    pub(super) fn claim(&self, field: &str, scope: &mut Option<v1::Scope>) -> Result<(), Status> {
        let scope = scope.get_or_insert_default();
        let tenant = self.caller.tenant(Role::Scheduler, &scope.tenant);
        scope.tenant = tenant.map_err(|denied| self.deny(named(field, denied)))?;
        Ok(())
    }

    /// The same for many builds. Schedulers ask often: for those who may everything nothing is looked up.
    pub(super) fn builds(&self, rooms: &Rooms, builds: &mut [v1::Build]) -> Result<(), Status> {
        if self.caller.may_do_everything() {
            return Ok(());
        }
        let mut all = builds.iter_mut().enumerate();
        all.try_for_each(|(i, build)| self.build(rooms, &format!("builds[{i}]"), build))
    }

    /// The same for a build; its repository must be one that the caller may read.
    pub(super) fn build(&self, rooms: &Rooms, field: &str, build: &mut v1::Build) -> Result<(), Status> {
        self.claim(&format!("{field}.scope.tenant"), &mut build.scope)?;
        let tenant = build.scope.as_ref().map_or("", |scope| scope.tenant.as_str());
        self.source(rooms, tenant, build.source.as_ref())
    }

    /// The same for a source. What is malformed is refused elsewhere.
    pub(super) fn source(&self, rooms: &Rooms, tenant: &str, source: Option<&v1::Source>) -> Result<(), Status> {
        match source.and_then(|source| source.repository_url.parse::<RepositoryUrl>().ok()) {
            Some(url) if !self.caller.may_of(Role::Scheduler, tenant, &trust(rooms, &url)) => Err(absent(rooms, &url)),
            _ => Ok(()),
        }
    }

    /// Whether it has the role with the right to read a repository; one that is not here yet would be of the default
    /// trust class.
    pub(super) fn may_read(&self, rooms: &Rooms, role: Role, url: &RepositoryUrl) -> bool {
        self.caller.may_read_as(role, &trust(rooms, url))
    }

    /// Refuses to resolve what it may not read, as what is not here and cannot come.
    pub(super) fn resolves(&self, rooms: &Rooms, url: &RepositoryUrl) -> Result<(), Status> {
        self.about("repository", url.key());
        if self.may_read(rooms, Role::Scheduler, url) { Ok(()) } else { Err(absent(rooms, url)) }
    }

    /// Admits a build.
    pub(super) async fn admit(&self, rooms: &Rooms, order: Order, patience: Duration) -> Result<Answer, Status> {
        let url = order.build.as_ref().map(|build| build.source.url.clone());
        rooms.admission.admit(order, patience).await.map_err(|error| match (error, url) {
            (AdmissionError::Source(reason), Some(url)) => self.unresolved(rooms, &url, &reason),
            (error, _) => error.into(),
        })
    }

    /// Why a source is not resolved. What upstream does not have or does not show is told of as what the caller may not
    /// read, unless it is declared for it to read.
    pub(super) fn unresolved(&self, rooms: &Rooms, url: &RepositoryUrl, reason: &Reason) -> Status {
        let is_declared = || rooms.repositories.get(url).is_some_and(|view| view.declared);
        let tells = !reason.code.upstream_says_no() || self.caller.may_read_all(Role::Viewer) || is_declared();
        if tells { refusal(reason) } else { absent(rooms, url) }
    }

    /// Refuses repositories that it may not read, as those that are not here.
    pub(super) fn repository(&self, rooms: &Rooms, role: Role, url: &RepositoryUrl) -> Result<(), Status> {
        self.about("repository", url.key());
        if self.may_read(rooms, role, url) { Ok(()) } else { Err(refusal(&rooms.repositories.unknown(url))) }
    }

    /// Whether it may have a repository added: for its own trust classes, and pinned where it may pin.
    pub(super) fn add(
        &self,
        rooms: &Rooms,
        url: &RepositoryUrl,
        wanted: &v1::AddRepositoryRequest,
    ) -> Result<(), Status> {
        let role = if wanted.pin { Role::Operator } else { Role::Scheduler };
        self.caller.at_least(role, "adding a pinned repository").map_err(|denied| self.deny(denied))?;
        self.repository_of(rooms, role, url, &wanted.trust)
    }

    /// Whether it may import: without a URL the archive names what it brings, so that one must be free to read all.
    pub(super) fn import(&self, rooms: &Rooms, url: Option<&RepositoryUrl>, trust: &str) -> Result<(), Status> {
        match url {
            Some(url) => self.repository_of(rooms, Role::Operator, url, trust),
            None if self.caller.may_read_all(Role::Operator) => Ok(()),
            None => {
                let what = "an import without target.url is for operators of all trust classes: name the repository";
                Err(self.deny(Denied::Forbidden(Reason::new(Code::AccessDenied, "target.url", what))))
            }
        }
    }

    /// One that is here is of its own class, whatever is asked for.
    fn repository_of(&self, rooms: &Rooms, role: Role, url: &RepositoryUrl, wanted: &str) -> Result<(), Status> {
        self.about("repository", url.key());
        let here = rooms.repositories.trust_of(url);
        let trust = here.as_deref().unwrap_or(wanted);
        if self.caller.may_read_as(role, trust) { Ok(()) } else { Err(absent(rooms, url)) }
    }

    /// A lease of a tenant for which it has the role.
    pub(super) fn lease(&self, rooms: &Rooms, role: Role, id: &LeaseId) -> Result<Arc<Lease>, Status> {
        self.about("lease", id);
        let found = rooms.admission.read(|ledger| ledger.lease(id).cloned());
        let its = found.filter(|lease| self.caller.may(role, &lease.scope.tenant));
        its.ok_or_else(|| WriterError::Refused(Refused::NoLease(id.clone())).into())
    }

    /// A lease as it sees it: of what is built, only what it may read.
    pub(super) fn shown(&self, rooms: &Rooms, lease: &Lease) -> v1::Lease {
        let told = super::convert::lease(lease, rooms.name());
        if self.sees_all() || self.sees_of(&lease.scope.tenant, &trust_of(rooms, lease)) {
            return told;
        }
        v1::Lease { source: None, ..told }
    }

    /// A ticket of a tenant for which it has the role.
    pub(super) fn ticket(&self, rooms: &Rooms, role: Role, id: &TicketId) -> Result<(), Status> {
        self.about("ticket", id);
        let tenant = rooms.admission.read(|ledger| ledger.ticket(id).map(|held| held.request.scope.tenant.clone()));
        match tenant.is_some_and(|tenant| self.caller.may(role, &tenant)) {
            true => Ok(()),
            false => Err(WriterError::Refused(Refused::NoTicket(id.clone())).into()),
        }
    }

    /// The same, of a repository that it may read: what it may have built again, or checked out.
    pub(super) fn lease_to_build(&self, rooms: &Rooms, id: &LeaseId) -> Result<Arc<Lease>, Status> {
        let lease = self.lease(rooms, Role::Scheduler, id)?;
        match self.caller.may_of(Role::Scheduler, &lease.scope.tenant, &trust_of(rooms, &lease)) {
            true => Ok(lease),
            false => Err(WriterError::Refused(Refused::NoLease(id.clone())).into()),
        }
    }

    /// Whether a workspace is of a tenant for which it has the role, and of a repository that it may read.
    pub(super) fn workspace(&self, rooms: &Rooms, role: Role, id: &str) -> bool {
        self.about("workspace", id);
        rooms.workspaces.get(id).is_some_and(|held| self.caller.may_of(role, &held.scope.tenant, &held.trust))
    }

    /// The node as it sees it: what is wrong with it is for those who see all of it.
    pub(super) fn status(&self, rooms: &Rooms, mut status: v1::Status) -> v1::Status {
        if self.sees_all() {
            return status;
        }
        status.alarms.retain(|alarm| {
            let code = alarm.code();
            matches!(code, v1::reason::Code::PoolNotReady | v1::reason::Code::JournalUnavailable)
        });
        rooms.admission.read(|ledger| {
            status.lease_use.retain(|seen| {
                let id = LeaseId::try_from(seen.lease_id.clone()).ok();
                id.and_then(|id| ledger.lease(&id)).is_some_and(|lease| self.sees(&lease.scope.tenant))
            });
        });
        status
    }

    /// An explanation as it sees it: others' builds have sizes, and no names.
    pub(super) fn explanation(&self, told: v1::Explanation) -> v1::Explanation {
        if self.sees_all() {
            return told;
        }
        let mut told = v1::Explanation { head_request_id: String::new(), ..told };
        for holder in told.holders.iter_mut().filter(|holder| !self.sees(&holder.tenant)) {
            holder.lease_id.clear();
            holder.tenant.clear();
        }
        for count in told.ahead_of.iter_mut().filter(|count| !self.sees(&count.tenant)) {
            count.tenant.clear();
        }
        told
    }
}

fn trust(rooms: &Rooms, url: &RepositoryUrl) -> String {
    rooms.repositories.trust_of(url).unwrap_or_default()
}

/// Of what a lease is for.
fn trust_of(rooms: &Rooms, lease: &Lease) -> String {
    let url = lease.source.clone_url.parse::<RepositoryUrl>().ok();
    url.map(|url| trust(rooms, &url)).unwrap_or_default()
}

fn absent(rooms: &Rooms, url: &RepositoryUrl) -> Status {
    refusal(&rooms.repositories.absent(url))
}

fn named(field: &str, denied: Denied) -> Denied {
    match denied {
        Denied::Forbidden(reason) => {
            let message = format!("{field}: {}", reason.message);
            Denied::Forbidden(Reason { message, ..reason })
        }
        other => other,
    }
}
