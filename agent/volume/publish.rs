//! A volume is published: the pod proves who it is, gets its lease and its workspace, and finds that in its place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::cluster::{LEASE, Pod as Known};
use stoker_core::identity::RequestId;
use stoker_core::reason::Code as Why;
use stoker_proto::csi;
use stoker_proto::v1::{self, admit_response::Decision};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::attributes::{self, Asked, Of, Pod};
use super::target::{Found, Target};
use super::together::Meant;
use super::{Volumes, made, prefix};
use crate::access::{Caller, Peer, Role};
use crate::admission::new_id;
use crate::node::mount::Shown;
use crate::rpc::behalf::Behalf;
use crate::rpc::error::bad;

/// What the audit log calls it.
pub(super) const METHOD: &str = "NodePublishVolume";
/// How long a source is resolved, and then a workspace made, while the kubelet waits. What takes longer goes on.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
const PREPARE_WITHIN: Duration = Duration::from_secs(8);
/// How long a pod is waited for that the kubelet knows and the agent's view of the cluster does not know yet.
const SEEN_WITHIN: Duration = Duration::from_secs(3);
/// How long a grant is kept for the kubelet's next attempt, in seconds: it comes again after two minutes at the latest.
pub(super) const KEPT_SECONDS: i64 = 300;

impl Volumes {
    /// Returns when the volume is there, or with the reason why it is not: then nothing is mounted.
    pub(super) async fn publish(&self, request: csi::NodePublishVolumeRequest) -> Result<(), Status> {
        let csi::NodePublishVolumeRequest { volume_id, target_path, volume_context, secrets, readonly, .. } = request;
        let asked = Asked::read(&volume_context)?;
        may_write(&asked.of, readonly)?;
        let audience = self.inner.rooms.access.audience();
        let token = attributes::token(&volume_context, &secrets, &audience)?;
        let target = self.target(&target_path, Some(&asked.pod.uid))?;
        let turn = self.turn(&volume_id)?;
        let (caller, began) = (self.proven(&asked.pod, &token).await?, Instant::now());
        let behalf = self.inner.rooms.in_the_name_of(Arc::clone(&caller));
        let published = match &asked.of {
            Of::Lease(_) | Of::Build(_) => {
                self.publish_for(&caller, &behalf, &volume_id, &asked, target, readonly).await
            }
            Of::Cache { .. } | Of::Mirrors { .. } => {
                self.show(&caller, &behalf, &asked, target, (readonly, &turn)).await
            }
        };
        drop(turn);
        behalf.audit(METHOD, &format!("volume {volume_id}"), began, &published);
        published
    }

    /// The same for one who proved who it is. What may come to be by itself is left on its way for the next attempt,
    /// everything else is taken back.
    async fn publish_for(
        &self,
        caller: &Caller,
        behalf: &Behalf,
        volume: &str,
        asked: &Asked,
        target: Target,
        read_only: bool,
    ) -> Result<(), Status> {
        behalf.may_ask(METHOD)?;
        let of = asked_for(caller, asked)?;
        let looked = target.clone();
        let found = blocking(move || looked.look_for(read_only)).await?;
        let is_its_end = || match &of {
            Of::Build(_) => self.lease_of(volume).is_none() && self.held_by(&asked.pod.uid).is_empty(),
            Of::Lease(id) => !self.is_live(id),
            Of::Cache { .. } | Of::Mirrors { .. } => true,
        };
        if found != Found::Free && is_its_end() {
            return Ok(()); // its build has ended here: what the pod has stays as it is
        }
        let known = self.is_known(&asked.pod).await?;
        self.is_seen_by_pods().await?;
        let meant = self.meant(behalf, volume, (asked, &of), &known, found != Found::Free)?;
        if matches!(meant, Meant::Made { by: LEASE, .. } | Meant::Shared(_)) {
            self.leave_queue(volume).await?; // the place that it had before
        }
        // A pod that has it waits for nothing.
        let since = match found {
            Found::Free => self.asked_since(volume, &asked.pod.uid, &meant)?,
            Found::Ours(..) => None,
        };
        let (lease, made) = match (&meant, &of) {
            (Meant::Made { lease, by }, _) => (lease.clone(), Some(*by)),
            (Meant::Shared(lease), _) => (lease.clone(), Some(LEASE)),
            (_, Of::Build(wanted)) => (self.admitted(behalf, volume, &asked.pod, &wanted.build, since).await?, None),
            _ => return Err(bad("kind", "is no build's")),
        };
        let whole = self.give(behalf, volume, (&lease, made), (asked, &known), target, read_only).await;
        // What a pod has already keeps its lease, whatever befell this attempt.
        if let (Err(status), Found::Free) = (&whole, found)
            && !matches!(meant, Meant::Made { .. })
            && !comes_by_itself(status)
        {
            if made.is_some() {
                self.came(volume); // whose lease it is ends it without this one
            }
            self.give_back(volume, &asked.pod.uid, None).await?;
        }
        if whole.is_ok() {
            self.came(volume);
        }
        whole
    }

    /// The workspace of a lease, mounted. Of one that was made before, what names it.
    async fn give(
        &self,
        behalf: &Behalf,
        volume: &str,
        (lease, made): (&str, Option<&str>),
        (asked, known): (&Asked, &Known),
        target: Target,
        read_only: bool,
    ) -> Result<(), Status> {
        let Pod { namespace, name, uid, .. } = asked.pod.clone();
        let bound = behalf.bind(lease.to_owned(), v1::Pod { namespace, name, uid }).await;
        bound.map_err(|status| match made {
            Some(by) => Status::new(status.code(), format!("{by}: {}", status.message())),
            None => status,
        })?;
        self.bound(volume);
        let owner = known.owner_of(&target.volume());
        let order = v1::PrepareWorkspaceRequest {
            r#for: Some(v1::prepare_workspace_request::For::LeaseId(lease.to_owned())),
            user: asked.shape.user.or(owner.user),
            group: asked.shape.group.or(owner.group),
            user_namespace: known.own_users,
            submodules: asked.shape.submodules,
            lfs: asked.shape.lfs,
            // The pod has nothing but what is mounted.
            self_contained: true,
            ..Default::default()
        };
        let workspace = match behalf.prepare(order.clone(), PREPARE_WITHIN).await? {
            Ok(workspace) => workspace,
            Err(far) => return Err(on_its_way(lease, &far)),
        };
        let made = self.inner.rooms.workspaces.get(&workspace.id);
        let made = made.ok_or_else(|| Status::unavailable("the workspace went meanwhile; tried again"))?;
        made::fits(&made, &order, known)?;
        let home = Path::new(&workspace.src).parent().map(Path::to_owned);
        let home = home.ok_or_else(|| Status::internal(format!("the workspace of lease {lease} has no directory")))?;
        let sub_path: PathBuf = asked.shape.sub_path.clone();
        let shown = Shown { read_only, ..Shown::default() };
        blocking(move || target.mount(&home, &sub_path, shown)).await
    }

    /// Who asks: the pod that the kubelet names, by a token that is bound to it.
    async fn proven(&self, pod: &Pod, token: &str) -> Result<Arc<Caller>, Status> {
        let rooms = &self.inner.rooms;
        // Counted by itself: who shows what is no token keeps no other pod from showing one.
        let from = Peer::Local(None, format!("the kubelet, for pod {}", pod.uid));
        let caller = rooms.access.caller(&from, Some(token)).await.map_err(|denied| {
            rooms.access.tell_refused(&from, METHOD, &pod.uid, &denied);
            Status::from(denied)
        })?;
        let account = caller.identity.service_account.as_ref();
        let is_its = account.is_some_and(|is| is.namespace == pod.namespace && is.name == pod.service_account)
            && caller.identity.pod.as_ref().is_some_and(|(_, uid)| *uid == pod.uid);
        let whole = format!("{}/{} ({})", pod.namespace, pod.name, pod.uid);
        if !is_its {
            let who = &caller.identity.name;
            return Err(Status::permission_denied(format!("the token is {who}'s, and not one of the pod {whole}")));
        }
        Ok(caller)
    }

    /// A lease is held by a pod that the API server knows to be on this node. The kubelet may know it sooner.
    pub(super) async fn is_known(&self, pod: &Pod) -> Result<Known, Status> {
        let mut view = self.inner.rooms.kubernetes.subscribe();
        let is_it = |known: &Known| known.live() && known.namespace == pod.namespace && known.name == pod.name;
        let known = view.wait_for(|cluster| {
            cluster.is_current() && cluster.pods.as_ref().and_then(|pods| pods.get(&pod.uid)).is_some_and(is_it)
        });
        if let Ok(Ok(cluster)) = tokio::time::timeout(SEEN_WITHIN, known).await
            && let Some(known) = cluster.pods.as_ref().and_then(|pods| pods.get(&pod.uid))
        {
            return Ok(known.clone());
        }
        let cluster = self.inner.rooms.kubernetes.view();
        if !cluster.asked {
            let what = "the agent asks no API server about pods: set `kubernetes.watch: on` and start it anew, or run it in a pod";
            return Err(Status::failed_precondition(what));
        }
        if cluster.is_current() {
            let Pod { namespace, name, uid, .. } = pod;
            let what =
                format!("{namespace}/{name} ({uid}): the API server knows no pod like that on this node; tried again");
            return Err(Status::unavailable(what));
        }
        let word = Why::ApiServerAway.word();
        Err(Status::unavailable(format!("{word}: pods cannot be looked at now ({}); tried again", cluster.trouble)))
    }

    fn is_live(&self, lease: &str) -> bool {
        self.life(lease) == Some(true)
    }

    /// The lease of a volume: the one that it has, the one that it gets now, or why it gets none yet.
    async fn admitted(
        &self,
        behalf: &Behalf,
        volume: &str,
        pod: &Pod,
        build: &v1::Build,
        since: Option<Duration>,
    ) -> Result<String, Status> {
        let known = self.lease_of(volume).map(|lease| lease.request_id.clone()).or_else(|| self.request_of(volume));
        let (request, stands) = match known {
            Some(request) => (request.clone(), behalf.again(request).await?),
            None => (fresh(volume)?, None),
        };
        let decision = match stands {
            Some(decision) => decision,
            None => self.asked_anew(behalf, pod, build, &request, since).await?,
        };
        match decision {
            Decision::Granted(lease) => Ok(lease.id),
            Decision::Waiting(waiting) => {
                if waiting.ticket.is_some() {
                    self.keep_place(&request, Some(&pod.uid));
                }
                Err(waits(&waiting))
            }
            Decision::Rejected(rejection) => {
                let why = words(&rejection.reasons);
                Err(Status::failed_precondition(format!("this node cannot build it: {why}")))
            }
        }
    }

    async fn asked_anew(
        &self,
        behalf: &Behalf,
        pod: &Pod,
        build: &v1::Build,
        request: &RequestId,
        since: Option<Duration>,
    ) -> Result<Decision, Status> {
        let mut build = build.clone();
        // What upstream said since the first attempt is as new as what it would say to a pod that came only once: else a
        // slow upstream would be asked anew by each attempt, and none would see the answer.
        if let (Some(source), Some(since)) = (&mut build.source, since) {
            source.max_age = prost_types::Duration::try_from(since).ok();
        }
        let owner = v1::Owner { namespace: pod.namespace.clone(), service_account: pod.service_account.clone() };
        let order = v1::AdmitRequest {
            request_id: request.to_string(),
            build: Some(build),
            take_ticket: true,
            bind_within: Some(prost_types::Duration { seconds: KEPT_SECONDS, nanos: 0 }),
            owner: Some(owner),
            ..v1::AdmitRequest::default()
        };
        behalf.admit(order, RESOLVE_WITHIN).await.map_err(of_attribute)
    }
}

fn fresh(volume: &str) -> Result<RequestId, Status> {
    let id = format!("{}{}", prefix(volume), new_id::<RequestId>());
    RequestId::try_from(id).map_err(|error| Status::internal(error.to_string()))
}

/// What is wrong with a source, by the attribute that names it.
fn of_attribute(status: Status) -> Status {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let is = |words: &[&str]| words.iter().any(|word| reason.starts_with(word));
    let name = match &reason {
        _ if is(&["REF_", "COMMIT_"]) => "ref",
        _ if is(&["REPOSITORY_", "UPSTREAM_", "OBJECT_FORMAT_"]) => "repository",
        _ => return status,
    };
    Status::new(status.code(), format!("{name}: {reason}: {}", status.message()))
}

/// Refuses what is for reading alone to a pod that does not say that it only reads. The mount is read-only in any case; but
/// a runtime that is not told so makes it writable when it binds it into the container.
fn may_write(of: &Of, read_only: bool) -> Result<(), Status> {
    match of {
        Of::Mirrors { .. } if !read_only => {
            Err(bad("readOnly", "is not set, and mirrors are for reading; write `readOnly: true` into the csi volume"))
        }
        // All of it: also the places that builds have to themselves.
        Of::Cache { key: None, .. } if !read_only => {
            let what = "is missing, and all of a cache is for reading; name one directory of it, or write \
                        `readOnly: true` into the csi volume";
            Err(bad("key", what))
        }
        _ => Ok(()),
    }
}

/// What is asked for, in the tenant that it belongs to.
fn asked_for(caller: &Caller, asked: &Asked) -> Result<Of, Status> {
    let Of::Build(wanted) = &asked.of else { return Ok(asked.of.clone()) };
    let named = wanted.build.scope.as_ref().map_or("", |scope| scope.tenant.as_str());
    let tenant = tenant(caller, &asked.pod, named)?;
    let mut wanted = wanted.clone();
    wanted.build.scope = Some(v1::Scope { tenant, ..v1::Scope::default() });
    Ok(Of::Build(wanted))
}

/// The tenant that a pod asks for: its namespace where it names none, also where it might ask for all.
pub(super) fn tenant(caller: &Caller, pod: &Pod, named: &str) -> Result<String, Status> {
    let tenant = if named.is_empty() { pod.namespace.as_str() } else { named };
    caller.tenant(Role::Scheduler, tenant).map_err(|denied| {
        let status = Status::from(denied);
        Status::new(status.code(), format!("tenant: {}", status.message()))
    })
}

/// Whether the next attempt may find what this one did not, without anybody changing anything. These are the codes after
/// which a kubelet takes it that something may have been done, and unpublishes when the pod goes; after any other
/// it may not come again.
fn comes_by_itself(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled
    )
}

/// Reasons, each with its word and its figures.
fn words(reasons: &[v1::Reason]) -> String {
    let word = |reason: &v1::Reason| format!("{}: {}", reason.code().as_str_name(), reason.message);
    reasons.iter().map(word).collect::<Vec<_>>().join("; ")
}

fn waits(waiting: &v1::Waiting) -> Status {
    let place = match &waiting.ticket {
        Some(ticket) => format!("place {} of this node's queue is kept", ticket.position),
        None => "no place in this node's queue".to_owned(),
    };
    let after = waiting.retry_after.map_or(0, |after| after.seconds);
    let reasons = words(&waiting.reasons);
    Status::resource_exhausted(format!("waits for room ({place}, {after} s by what is known): {reasons}"))
}

fn on_its_way(lease: &str, far: &v1::Progress) -> Status {
    let v1::Progress { phase, done, total, .. } = far;
    let figures = if *total > 0 { format!(" ({done} of {total})") } else { String::new() };
    Status::unavailable(format!(
        "the workspace of lease {lease} is being made: {phase}{figures}; it goes on, tried again"
    ))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Status::unavailable(format!("{error}; tried again"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes is told by a code after which the kubelet comes again, or unpublishes.
    #[tokio::test]
    async fn what_passes_keeps_its_lease() {
        let lost: Result<(), Status> = blocking(|| std::panic::resume_unwind(Box::new("lost"))).await;
        assert!(lost.is_err_and(|status| status.code() == Code::Unavailable && comes_by_itself(&status)));
        for code in [Code::Internal, Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound, Code::DataLoss] {
            assert!(!comes_by_itself(&Status::new(code, "")), "{code:?}");
        }
    }

    #[test]
    fn what_waits_is_told_with_place_and_figures() {
        let reason = v1::Reason {
            code: v1::reason::Code::MemoryHeld.into(),
            message: "8 GiB wanted, 2 GiB free".to_owned(),
            ..Default::default()
        };
        let ticket = Some(v1::Ticket { position: 3, ..Default::default() });
        let retry_after = Some(prost_types::Duration { seconds: 40, nanos: 0 });
        let status = waits(&v1::Waiting { ticket, retry_after, reasons: vec![reason], ..Default::default() });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "waits for room (place 3 of this node's queue is kept, 40 s by what is known): MEMORY_HELD: 8 GiB wanted, 2 \
             GiB free"
        );
    }
}
