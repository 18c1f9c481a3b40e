//! `WorkspaceService`.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_util::Stream;
use stoker_core::admission::Refused;
use stoker_core::identity::{LeaseId, RequestId};
use stoker_core::quantity::Span;
use stoker_proto::v1::{self, workspace_service_server::WorkspaceService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::asker::Asker;
use super::convert::{scope, timestamp, wire};
use super::error::{bad, refusal};
use super::request::{id, page, source, span};
use super::{Rooms, output, patience};
use crate::access::Role;
use crate::admission::{WriterError, survey};
use crate::config::MANIFEST_FILE;
use crate::repository::SnapshotPin;
use crate::workspace::{Manifest, Method, NotBegun, Order, Preparing, Progress, Submodule, Workspace as Prepared};

const LIFETIME: Span = Span::hours(24);
const LIFETIME_MAX: Span = Span::hours(7 * 24);
/// The longest name of a manifest, and the longest list of its groups, in bytes.
const MANIFEST_TEXT_MAX: usize = 4096;

pub(super) struct Workspace(pub(super) Rooms);

type Stages = Pin<Box<dyn Stream<Item = Result<v1::PrepareWorkspaceResponse, Status>> + Send>>;

#[tonic::async_trait]
impl WorkspaceService for Workspace {
    async fn prepare_workspace(
        &self,
        request: Request<v1::PrepareWorkspaceRequest>,
    ) -> Result<Response<Stages>, Status> {
        let patience = patience(&request);
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let order = match request.r#for {
            Some(v1::prepare_workspace_request::For::LeaseId(lease)) => self.leased(&asker, id("lease_id", lease)?)?,
            Some(v1::prepare_workspace_request::For::Unleased(mut wanted)) => {
                asker.claim("unleased.scope.tenant", &mut wanted.scope)?;
                let tenant = wanted.scope.as_ref().map_or("", |scope| scope.tenant.as_str());
                asker.source(&self.0, tenant, wanted.source.as_ref())?;
                self.unleased(&asker, wanted, patience).await?
            }
            None => return Err(bad("for", "is not set; give a lease_id, or unleased")),
        };
        let manifest = request.manifest.as_ref().map(|wanted| manifest(wanted, request.submodules)).transpose()?;
        let tmpfs_bytes = self.in_memory(&order, request.tmpfs_bytes)?;
        let environment = self.0.serve.build_environment().await;
        let v1::PrepareWorkspaceRequest { user, group, submodules, lfs, self_contained, user_namespace, .. } = request;
        let order = Order { user, group, submodules, manifest, lfs, self_contained, ..order };
        let order = Order { user_namespace, tmpfs_bytes, environment, ..order };
        let mut preparing = self.0.workspaces.prepare(order).await.map_err(|why| match why {
            NotBegun::Anothers => in_use(),
            NotBegun::Because(reason) => refusal(&reason),
        })?;
        let (events, stream) = mpsc::channel(8);
        let (cancel, serve) = (self.0.cancel.clone(), self.0.serve.clone());
        self.0.tasks.spawn(async move {
            use v1::prepare_workspace_response::Event;
            loop {
                let stage = preparing.borrow_and_update().clone();
                let event = match stage {
                    Preparing::Under(progress) => Event::Progress(wire_progress(&progress)),
                    Preparing::Ready(workspace) => {
                        let event = Some(Event::Workspace(prepared(&workspace, &serve.build_environment().await)));
                        let _ = events.send(Ok(v1::PrepareWorkspaceResponse { event })).await;
                        return;
                    }
                    Preparing::Failed(reason) => {
                        let _ = events.send(Err(refusal(&reason))).await;
                        return;
                    }
                };
                let _ = events.try_send(Ok(v1::PrepareWorkspaceResponse { event: Some(event) }));
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = events.closed() => return, // it goes on; the same lease attaches again
                    changed = preparing.changed() => if changed.is_err() {
                        let _ = events.send(Err(Status::unavailable("the agent is stopping"))).await;
                        return;
                    },
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get_workspace(
        &self,
        request: Request<v1::GetWorkspaceRequest>,
    ) -> Result<Response<v1::GetWorkspaceResponse>, Status> {
        let asker = Asker::of(&request)?;
        let wanted: LeaseId = id("id", request.into_inner().id)?;
        let sees = |held: &std::sync::Arc<Prepared>| asker.sees_of(&held.scope.tenant, &held.trust);
        let found = self.0.workspaces.get(wanted.as_str()).filter(sees);
        let found = found.ok_or_else(|| unknown(wanted.as_str()))?;
        let workspace = Some(prepared(&found, &self.0.serve.build_environment().await));
        Ok(Response::new(v1::GetWorkspaceResponse { workspace }))
    }

    async fn list_workspaces(
        &self,
        request: Request<v1::ListWorkspacesRequest>,
    ) -> Result<Response<v1::ListWorkspacesResponse>, Status> {
        let asker = Asker::of(&request)?;
        let request = request.into_inner();
        let sees = |held: &std::sync::Arc<Prepared>| asker.sees_of(&held.scope.tenant, &held.trust);
        let all = self.0.workspaces.list().into_iter().filter(sees);
        let (found, next_page_token) = page(all, |held| held.id.clone(), request.page_size, &request.page_token)?;
        let git = self.0.serve.build_environment().await;
        // Thousands of projects in each would be more than one message takes.
        let listed = |held| v1::Workspace { projects: Vec::new(), ..prepared(held, &git) };
        let workspaces = found.iter().map(|held| listed(held)).collect();
        Ok(Response::new(v1::ListWorkspacesResponse { workspaces, next_page_token }))
    }

    async fn delete_workspace(
        &self,
        request: Request<v1::DeleteWorkspaceRequest>,
    ) -> Result<Response<v1::DeleteWorkspaceResponse>, Status> {
        let asker = Asker::of(&request)?;
        let wanted: LeaseId = id("id", request.into_inner().id)?;
        if !asker.workspace(&self.0, Role::Scheduler, wanted.as_str()) {
            return Err(unknown(wanted.as_str()));
        }
        let made = self.0.workspaces.get(wanted.as_str()).map(|held| held.created_at);
        let found = self.0.workspaces.delete(wanted.as_str()).await.map_err(|reason| refusal(&reason))?;
        if !found {
            return Err(unknown(wanted.as_str()));
        }
        let left = made.and_then(|at| self.0.workspaces.outputs().of_workspace(wanted.as_str(), at));
        let output = left.map(|left| output::message(&self.0, &left));
        Ok(Response::new(v1::DeleteWorkspaceResponse { output }))
    }

    async fn get_output(
        &self,
        request: Request<v1::GetOutputRequest>,
    ) -> Result<Response<v1::GetOutputResponse>, Status> {
        let asker = Asker::of(&request)?;
        output::get(&self.0, &asker, request.into_inner().id).await.map(Response::new)
    }

    async fn list_outputs(
        &self,
        request: Request<v1::ListOutputsRequest>,
    ) -> Result<Response<v1::ListOutputsResponse>, Status> {
        let asker = Asker::of(&request)?;
        output::list(&self.0, &asker, request.into_inner()).await.map(Response::new)
    }

    async fn release_output(
        &self,
        request: Request<v1::ReleaseOutputRequest>,
    ) -> Result<Response<v1::ReleaseOutputResponse>, Status> {
        let asker = Asker::of(&request)?;
        output::release(&self.0, &asker, request.into_inner().id).await.map(Response::new)
    }

    async fn delete_output(
        &self,
        request: Request<v1::DeleteOutputRequest>,
    ) -> Result<Response<v1::DeleteOutputResponse>, Status> {
        let asker = Asker::of(&request)?;
        output::delete(&self.0, &asker, request.into_inner().id).await.map(Response::new)
    }
}

impl Workspace {
    fn trust(&self, pin: &SnapshotPin) -> String {
        self.0.repositories.get(pin.url()).map(|view| view.trust).unwrap_or_default()
    }

    /// What `tmp` may hold in memory: within the lease's memory, in which it is counted, and never above half of what is
    /// available.
    fn in_memory(&self, order: &Order, wanted: Option<i64>) -> Result<Option<u64>, Status> {
        let Some(wanted) = wanted else { return Ok(None) };
        let field = "tmpfs_bytes";
        let bytes = u64::try_from(wanted).ok().filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| bad(field, format!("is {wanted}; give a number of bytes, or leave it out")))?;
        let lease = order.lease.as_ref();
        let lease =
            lease.ok_or_else(|| bad(field, "is counted in a lease's memory; give a lease_id, or leave it out"))?;
        let memory = self.0.admission.read(|ledger| ledger.lease(lease).map(|l| l.sizing.size.amounts.memory_bytes));
        let memory = memory.unwrap_or_default();
        if bytes > memory {
            return Err(bad(field, format!("is {bytes}, the lease has memory of {memory} bytes; ask for less")));
        }
        let available = self.0.pressure.view().readings.memory.map_or(0, |memory| memory.available_bytes);
        if bytes > available / 2 {
            let message =
                format!("is {bytes}, half of the memory that is available is {}; ask for less", available / 2);
            return Err(bad(field, message));
        }
        Ok(Some(bytes))
    }

    fn leased(&self, asker: &Asker, lease_id: LeaseId) -> Result<Order, Status> {
        let lease = asker.lease_to_build(&self.0, &lease_id)?;
        if !lease.live() {
            return Err(WriterError::Refused(Refused::Ended(lease_id, lease.state)).into());
        }
        let pin = self.0.admission.pin_of(&lease.request_id);
        let pin = pin.ok_or_else(|| Status::data_loss(format!("the snapshot of lease {lease_id} is gone")))?;
        Ok(Order {
            id: lease.id.to_string(),
            lease: Some(lease.id.clone()),
            source: lease.source.clone(),
            scope: lease.scope.clone(),
            cache_keys: lease.cache_keys.clone(),
            expires_at: None,
            trust: self.trust(&pin),
            pin,
            user: None,
            group: None,
            submodules: false,
            manifest: None,
            lfs: false,
            self_contained: false,
            user_namespace: false,
            tmpfs_bytes: None,
            environment: BTreeMap::new(),
        })
    }

    async fn unleased(
        &self,
        asker: &Asker,
        wanted: v1::Unleased,
        patience: std::time::Duration,
    ) -> Result<Order, Status> {
        let request_id: RequestId = id("unleased.request_id", wanted.request_id)?;
        let id_of_workspace = crate::workspace::unleased_id(&request_id);
        // The same id is the same workspace: it must not be another's. One that comes meanwhile is seen when it begins.
        if self.0.workspaces.get(&id_of_workspace).is_some()
            && !asker.workspace(&self.0, Role::Scheduler, &id_of_workspace)
        {
            return Err(in_use());
        }
        asker.about("workspace", &id_of_workspace);
        let lifetime = span("unleased.lifetime", wanted.lifetime, LIFETIME, LIFETIME_MAX)?;
        let scope = super::request::scope("unleased.scope", wanted.scope)?;
        let from = source("unleased.source", wanted.source)?;
        let resolved = self.0.repositories.resolve(&from, patience).await;
        let resolved = resolved.map_err(|reason| asker.unresolved(&self.0, &from.url, &reason))?;
        Ok(Order {
            id: id_of_workspace,
            lease: None,
            source: survey::source(&from, &resolved),
            scope,
            cache_keys: Vec::new(),
            expires_at: Some(crate::admission::now().plus(lifetime)),
            trust: self.trust(&resolved.pin),
            pin: resolved.pin,
            user: None,
            group: None,
            submodules: false,
            manifest: None,
            lfs: false,
            self_contained: false,
            user_namespace: false,
            tmpfs_bytes: None,
            environment: BTreeMap::new(),
        })
    }
}

fn in_use() -> Status {
    Status::already_exists("unleased.request_id: is in use; choose another, as a random one")
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("no workspace {id}: it never was, or its lease has ended"))
}

fn wire_progress(progress: &Progress) -> v1::Progress {
    v1::Progress {
        phase: progress.phase.to_owned(),
        done: wire(progress.done),
        total: wire(progress.total),
        bytes: wire(progress.bytes),
        subject: progress.subject.clone(),
    }
}

/// `git` sends the build's own git through the node.
fn prepared(held: &Prepared, git: &BTreeMap<String, String>) -> v1::Workspace {
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    v1::Workspace {
        id: held.id.clone(),
        lease_id: held.lease.as_ref().map(ToString::to_string).unwrap_or_default(),
        src: path(&held.src),
        tmp: path(&held.tmp),
        out: path(&held.out),
        cache: path(&held.cache),
        commit: held.source.commit.to_string(),
        repository_url: held.source.clone_url.clone(),
        r#ref: held.source.reference.clone(),
        scope: Some(scope(&held.scope)),
        created_at: Some(timestamp(held.created_at)),
        expires_at: held.expires_at.map(timestamp),
        environment: git.clone().into_iter().chain(held.environment()).collect(),
        method: method(held.method).into(),
        files: wire(held.files),
        bytes: wire(held.bytes),
        also_mount: held.also_mount.iter().map(|mount| path(mount)).collect(),
        submodules: held.submodules.iter().map(submodule).collect(),
        projects: held.projects.iter().map(project).collect(),
    }
}

pub(super) const fn method(method: Method) -> v1::Method {
    match method {
        Method::Overlay => v1::Method::Overlay,
        Method::Reflink => v1::Method::Reflink,
        Method::Checkout => v1::Method::Checkout,
    }
}

fn submodule(held: &Submodule) -> v1::Submodule {
    v1::Submodule {
        path: held.path.clone(),
        repository_url: held.url.fetch_url().to_owned(),
        commit: held.commit.to_string(),
    }
}

fn project(held: &Submodule) -> v1::Project {
    let v1::Submodule { path, repository_url, commit } = submodule(held);
    v1::Project { path, repository_url, commit }
}

fn manifest(wanted: &v1::Manifest, submodules: bool) -> Result<Manifest, Status> {
    let (field, file) = ("manifest.file", wanted.file.trim());
    let file = if file.is_empty() { MANIFEST_FILE } else { file };
    let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    if file.len() > MANIFEST_TEXT_MAX || !std::path::Path::new(file).components().all(plain) {
        return Err(bad(field, "names no file in the repository; write a plain relative path"));
    }
    if wanted.groups.len() > MANIFEST_TEXT_MAX {
        return Err(bad("manifest.groups", format!("has more than {MANIFEST_TEXT_MAX} bytes; name fewer groups")));
    }
    if submodules {
        return Err(bad("submodules", "cannot be had together with a manifest; list them in it as projects"));
    }
    let groups = wanted.groups.split(|c: char| c == ',' || c.is_whitespace()).filter(|group| !group.is_empty());
    Ok(Manifest { file: file.to_owned(), groups: groups.map(str::to_owned).collect() })
}
