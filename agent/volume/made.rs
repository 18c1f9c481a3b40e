//! A workspace that was made before its volume, for the lease that the pod has: whether it is one that the pod can use.

use rustix::process::{getegid, geteuid};
use stoker_core::cluster::Pod as Known;
use stoker_proto::v1;
use tonic::Status;

use crate::workspace::{Method, Workspace};

/// Refuses a workspace that is not as the volume needs it. One that was made for it is.
pub(super) fn fits(made: &Workspace, wanted: &v1::PrepareWorkspaceRequest, known: &Known) -> Result<(), Status> {
    let refuse = |what: &str| {
        let what = format!("the workspace of lease {} was made before, and {what}delete it", made.id);
        Err(Status::failed_precondition(what))
    };
    if known.own_users && made.method == Method::Overlay {
        return refuse("is an overlay: a pod with `hostUsers: false` cannot have that; ");
    }
    let (user, group) = made.owner.unwrap_or_else(|| (geteuid().as_raw(), getegid().as_raw()));
    for (name, has, needs) in [("user", user, wanted.user), ("group", group, wanted.group)] {
        if let Some(needs) = needs.filter(|needs| *needs != has) {
            let what =
                format!("belongs to {name} {has}: the volume is for {needs}; give that `{name}: \"{has}\"`, or ");
            return refuse(&what);
        }
    }
    if wanted.self_contained && !made.self_contained {
        return refuse("reads objects of the node's cache, which a pod does not have: it is not self-contained; ");
    }
    let (submodules, lfs) = made.form;
    if wanted.submodules && !submodules {
        return refuse("has no submodules: `submodules` of the volume asks for them; ");
    }
    if wanted.lfs && !lfs {
        return refuse("has no large files: `lfs` of the volume asks for them; ");
    }
    Ok(())
}
