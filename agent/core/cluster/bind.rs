//! Which pod holds which lease, and what ends with it.
//!
//! A pod names its lease in an annotation, which anyone can copy: it gets the lease only in the namespace and as the
//! service account that were named at admission. One live pod holds a lease. A lease ends when its pod has ended *and*
//! nothing of the pod runs any more; where the API server is away, when the pod's group was there and is gone, for the
//! kubelet removes it last.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Cluster, Ended, Pod, PodLife};
use crate::admission::{Holder, Lease, LeaseState, Rebind};
use crate::identity::LeaseId;
use crate::quantity::{Span, Timestamp};
use crate::reason::{Code, Reason};

/// What is seen of a pod's control group.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// It was never seen.
    #[default]
    Unseen,
    /// Something is in it.
    Runs,
    /// Nothing is in it: not yet, or between two containers, or no more.
    Empty,
    /// It was there, and is gone.
    Gone,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// This pod holds it from now on, for the first time or in place of one that ended.
    Bind {
        /// The lease.
        lease: LeaseId,
        /// The pod.
        holder: Holder,
        /// What controls it.
        controller: String,
    },
    /// Its pod ended, and may come again: that is waited for.
    Wait(LeaseId),
    /// Its build is over; how, where that was told.
    End(LeaseId, Option<Ended>),
    /// A pod that says it has a lease that it does not get.
    Refuse {
        /// The pod's uid.
        pod: String,
        /// Why not.
        reason: Reason,
    },
}

/// What follows from the pods for the leases, at this moment.
#[must_use]
pub fn decide(
    leases: &[Arc<Lease>],
    cluster: &Cluster,
    group: impl Fn(&str) -> Group,
    grace: Span,
    now: Timestamp,
) -> Vec<Act> {
    let claims = claims(cluster);
    let mut acts = Vec::new();
    let mut holders: BTreeMap<&str, &str> = BTreeMap::new();
    for lease in leases.iter().filter(|lease| lease.live()) {
        let claimed = claims.get(lease.id.as_str()).map(Vec::as_slice).unwrap_or_default();
        let holder = match (&lease.state, &lease.holder) {
            (LeaseState::Reserved, _) => reserved(lease, claimed, &mut acts),
            (LeaseState::Bound, Some(Holder::Pod { uid, .. })) => {
                bound(lease, uid, claimed, &Around { cluster, group: group(uid), grace, now }, &mut acts)
            }
            _ => None,
        };
        holders.insert(lease.id.as_str(), holder.unwrap_or_default());
    }
    for (lease, pods) in &claims {
        for pod in pods {
            let why = match holders.get(lease) {
                Some(holder) if *holder == pod.uid => continue,
                Some(holder) => not_theirs(leases, lease, holder, pod),
                None => format!("there is no live lease {lease:?} on this node: it ended, or belongs to another node"),
            };
            let subject = format!("{}/{}", pod.namespace, pod.name);
            let reason = Reason::new(Code::LeaseNotTheirs, subject, why);
            acts.push(Act::Refuse { pod: pod.uid.clone(), reason });
        }
    }
    acts
}

/// The live pods that name a lease, by it, in the order of their uids.
fn claims(cluster: &Cluster) -> BTreeMap<&str, Vec<&Pod>> {
    let mut claims: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in cluster.pods.iter().flat_map(|pods| pods.iter()) {
        if pod.live() && !pod.ending && !pod.lease.is_empty() {
            claims.entry(pod.lease.as_str()).or_default().push(pod);
        }
    }
    claims
}

fn not_theirs(leases: &[Arc<Lease>], lease: &str, holder: &str, pod: &Pod) -> String {
    if !holder.is_empty() {
        return format!("lease {lease} is held by another: this pod counts beside it, not within it");
    }
    let terms = leases.iter().find(|held| held.id.as_str() == lease).map(|held| &held.terms);
    match terms {
        Some(terms) if terms.names_a_pod() => format!(
            "lease {lease} was given to the service account {:?} in the namespace {:?}, and this pod runs as {:?} in {:?}",
            terms.service_account, terms.namespace, pod.service_account, pod.namespace
        ),
        _ => format!(
            "lease {lease} was asked for without naming whose pod may have it: name `owner` (namespace and service \
             account) with the request, or bind it with the pod's own token"
        ),
    }
}

fn holder_of(pod: &Pod) -> Holder {
    Holder::Pod { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() }
}

/// The first pod that proves itself.
fn reserved<'a>(lease: &Lease, claimed: &[&'a Pod], acts: &mut Vec<Act>) -> Option<&'a str> {
    let pod = claimed.iter().find(|pod| lease.terms.admit(pod))?;
    acts.push(Act::Bind { lease: lease.id.clone(), holder: holder_of(pod), controller: pod.controller.clone() });
    Some(&pod.uid)
}

/// Whether a pod is the next one of what controls the pod before. Anyone can write an owner's uid: it counts within the
/// namespace of that pod, and for the service account that the lease was asked for.
fn follows(lease: &Lease, pod: &Pod) -> bool {
    let same_place = matches!(&lease.holder, Some(Holder::Pod { namespace, .. }) if *namespace == pod.namespace);
    same_place && pod.controller == lease.controller && (!lease.terms.names_a_pod() || lease.terms.admit(pod))
}

struct Around<'a> {
    cluster: &'a Cluster,
    group: Group,
    grace: Span,
    now: Timestamp,
}

/// Who holds it after this.
fn bound<'a>(
    lease: &Lease,
    uid: &'a str,
    claimed: &[&'a Pod],
    around: &Around<'_>,
    acts: &mut Vec<Act>,
) -> Option<&'a str> {
    let pods = around.cluster.pods.as_ref().filter(|_| around.cluster.is_current());
    let ended = match pods.map(|pods| pods.get(uid)) {
        // Its group alone tells.
        None if around.group == Group::Gone => None,
        // Told by nobody, or nobody knows: it may still begin.
        None => return Some(uid),
        Some(_) if around.group == Group::Runs => return Some(uid),
        Some(None) => None,
        Some(Some(pod)) => match pod.life {
            PodLife::Ended(ended) => Some(ended),
            PodLife::Waiting | PodLife::Running => return Some(uid),
        },
    };
    let may_come_again = lease.terms.rebind == Rebind::SameOwner
        && !lease.controller.is_empty()
        && !ended.is_some_and(|ended| ended.succeeded);
    if may_come_again {
        let again = claimed.iter().find(|pod| pod.uid != uid && follows(lease, pod));
        if let Some(pod) = again {
            acts.push(Act::Bind {
                lease: lease.id.clone(),
                holder: holder_of(pod),
                controller: pod.controller.clone(),
            });
            return Some(&pod.uid);
        }
        match lease.unheld_since {
            None => {
                acts.push(Act::Wait(lease.id.clone()));
                return Some(uid);
            }
            Some(since) if around.now.since(since) < around.grace => return Some(uid),
            Some(_) => {}
        }
    }
    acts.push(Act::End(lease.id.clone(), ended));
    Some(uid)
}
