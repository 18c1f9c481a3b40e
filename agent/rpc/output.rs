//! Outputs of `WorkspaceService`.

use std::io;

use stoker_core::reason::{Code, Reason};
use stoker_proto::v1;
use tonic::Status;

use super::Rooms;
use super::asker::Asker;
use super::convert::{outcome, scope, timestamp, wire};
use super::error::{bad, refusal};
use super::request::page;
use crate::access::Role;
use crate::workspace::outputs::{FOLDER, Output, Outputs, is_of};

/// The most characters of an id.
const ID_BYTES_MAX: usize = 160;

impl Rooms {
    /// The pool of the workspaces and outputs.
    pub(super) fn home(&self) -> &str {
        self.workspaces.outputs().pool()
    }
}

/// One output in words.
pub(super) fn message(rooms: &Rooms, output: &Output) -> v1::Output {
    let home = rooms.pools.view().iter().find(|pool| pool.name == rooms.home()).map(|pool| pool.path.join("stoker"));
    let path = home.map(|home| home.join(FOLDER).join(&output.id).to_string_lossy().into_owned());
    let size = output.size;
    v1::Output {
        id: output.id.clone(),
        path: path.unwrap_or_default(),
        scope: Some(scope(&output.scope)),
        commit: output.commit.to_string(),
        created_at: Some(timestamp(output.created_at)),
        expires_at: output.released_at.is_none().then(|| timestamp(output.expires_at)),
        released: output.released_at.is_some(),
        repository_url: output.repository_url.clone(),
        r#ref: output.reference.clone(),
        lease_id: output.lease.as_ref().map(ToString::to_string).unwrap_or_default(),
        outcome: output.outcome.map_or(v1::Outcome::Unspecified, outcome).into(),
        exit_code: output.exit_code,
        files: size.map(|size| wire(size.files)),
        bytes: size.map(|size| wire(size.bytes)),
        partial: size.is_some_and(|size| size.partial),
        rule: output.rule.clone(),
        released_at: output.released_at.map(timestamp),
        trust: output.trust.clone(),
    }
}

pub(super) async fn get(rooms: &Rooms, asker: &Asker, id: String) -> Result<v1::GetOutputResponse, Status> {
    let output = its(rooms, asker, Role::Viewer, &id).await?;
    Ok(v1::GetOutputResponse { output: Some(message(rooms, &output)) })
}

pub(super) async fn list(
    rooms: &Rooms,
    asker: &Asker,
    request: v1::ListOutputsRequest,
) -> Result<v1::ListOutputsResponse, Status> {
    let wanted = super::request::scope("scope", request.scope)?;
    let mut all = on_disk(rooms, |outputs| Ok(outputs.list())).await?.map_err(|reason| refusal(&reason))?;
    all.retain(|output| is_of(output, &wanted) && asker.sees_of(&output.scope.tenant, &output.trust));
    // The order of time and of the tokens.
    let key = |output: &std::sync::Arc<Output>| format!("{:016x}-{}", output.created_at.0, output.id);
    all.sort_by_cached_key(key);
    let (found, next_page_token) = page(all.into_iter(), key, request.page_size, &request.page_token)?;
    let outputs = found.iter().map(|output| message(rooms, output)).collect();
    Ok(v1::ListOutputsResponse { outputs, next_page_token })
}

pub(super) async fn release(rooms: &Rooms, asker: &Asker, id: String) -> Result<v1::ReleaseOutputResponse, Status> {
    its(rooms, asker, Role::Scheduler, &id).await?;
    let wanted = checked(&id)?.to_owned();
    let released = on_disk(rooms, move |outputs| outputs.release(&wanted, crate::admission::now())).await?;
    let output = released.ok_or_else(|| unknown(&id))?;
    Ok(v1::ReleaseOutputResponse { output: Some(message(rooms, &output)) })
}

pub(super) async fn delete(rooms: &Rooms, asker: &Asker, id: String) -> Result<v1::DeleteOutputResponse, Status> {
    its(rooms, asker, Role::Scheduler, &id).await?;
    let wanted = checked(&id)?.to_owned();
    match on_disk(rooms, move |outputs| outputs.delete(&wanted)).await? {
        true => Ok(v1::DeleteOutputResponse {}),
        false => Err(unknown(&id)),
    }
}

/// One of a tenant for which the caller has the role, and of a repository that it may read.
async fn its(rooms: &Rooms, asker: &Asker, role: Role, id: &str) -> Result<std::sync::Arc<Output>, Status> {
    let wanted = checked(id)?.to_owned();
    asker.about("output", id);
    let found = on_disk(rooms, move |outputs| Ok(outputs.get(&wanted))).await?;
    found.filter(|output| asker.caller.may_of(role, &output.scope.tenant, &output.trust)).ok_or_else(|| unknown(id))
}

/// On a thread that may wait: whether the pool is there is asked of its disk.
async fn on_disk<T: Send + 'static>(
    rooms: &Rooms,
    work: impl FnOnce(&Outputs) -> io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let outputs = rooms.workspaces.outputs().clone();
    let done = tokio::task::spawn_blocking(move || outputs.ready().map(|()| work(&outputs))).await;
    let done = done.unwrap_or_else(|error| Ok(Err(io::Error::other(error)))).map_err(|reason| refusal(&reason))?;
    done.map_err(|error| refusal(&Reason::new(Code::PoolNotReady, rooms.home(), format!("outputs: {error}"))))
}

fn checked(id: &str) -> Result<&str, Status> {
    match id.len() {
        0 => Err(bad("id", "is empty; `stoker output list` has the ids")),
        1..=ID_BYTES_MAX if id.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(id),
        _ => Err(bad("id", format!("is no id; give 1 to {ID_BYTES_MAX} visible ASCII characters"))),
    }
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("no output {id}: it never was, its time is over, or somebody deleted it"))
}
