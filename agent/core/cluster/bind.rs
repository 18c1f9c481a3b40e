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
    /// Its build is over.
    End {
        /// The lease.
        lease: LeaseId,
        /// The uid of the pod that held it.
        pod: String,
        /// How it ended, where that was told.
        ended: Option<Ended>,
    },
    /// A pod that says it has a lease that it does not get.
    Refuse {
        /// The pod's uid.
        pod: String,
        /// Why not.
        reason: Reason,
    },
}

/// What is seen at this moment.
pub struct Seen<'a> {
    /// What the API server tells.
    pub cluster: &'a Cluster,
    /// What there is of a pod with this uid.
    pub group: &'a dyn Fn(&str) -> Group,
    /// Whether a lease was held by the pod with this uid, and was released.
    pub held_before: &'a dyn Fn(&str, &str) -> bool,
    /// How long a lease waits for its next pod.
    pub grace: Span,
    /// The time.
    pub now: Timestamp,
}

/// What follows from the pods for the leases.
#[must_use]
pub fn decide(leases: &[Arc<Lease>], seen: &Seen<'_>) -> Vec<Act> {
    let claims = claims(seen.cluster);
    let mut acts = Vec::new();
    let mut holders: BTreeMap<&str, &str> = BTreeMap::new();
    for lease in leases.iter().filter(|lease| lease.live()) {
        let claimed = claims.get(lease.id.as_str()).map(Vec::as_slice).unwrap_or_default();
        let holder = match (&lease.state, &lease.holder) {
            (LeaseState::Reserved, _) => reserved(lease, claimed, &mut acts),
            (LeaseState::Bound, Some(Holder::Pod { uid, .. })) => bound(lease, uid, claimed, seen, &mut acts),
            _ => None,
        };
        holders.insert(lease.id.as_str(), holder.unwrap_or_default());
    }
    for (lease, pods) in &claims {
        for pod in pods.iter().filter(|pod| pod.live()) {
            let why = match holders.get(lease) {
                Some(holder) if *holder == pod.uid => continue,
                Some(holder) => not_theirs(leases, lease, holder, pod),
                // It released the lease itself, as its last step; or has another in its place.
                None if (seen.held_before)(lease, &pod.uid) => continue,
                None if holders.values().any(|holder| *holder == pod.uid) => continue,
                None => format!("there is no live lease {lease:?} on this node: it ended, or belongs to another node"),
            };
            let subject = format!("{}/{}", pod.namespace, pod.name);
            let reason = Reason::new(Code::LeaseNotTheirs, subject, why);
            acts.push(Act::Refuse { pod: pod.uid.clone(), reason });
        }
    }
    acts
}

/// The pods that name a lease, by it, those that live first, in the order of their uids. One can have begun and ended
/// while nobody looked.
fn claims(cluster: &Cluster) -> BTreeMap<&str, Vec<&Pod>> {
    let mut claims: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in cluster.pods.iter().flat_map(|pods| pods.iter()) {
        if !(pod.lease.is_empty() || pod.live() && pod.ending) {
            claims.entry(pod.lease.as_str()).or_default().push(pod);
        }
    }
    claims.values_mut().for_each(|pods| pods.sort_by_key(|pod| !pod.live()));
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

fn to(lease: &Lease, pod: &Pod) -> Act {
    let holder = Holder::Pod { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() };
    Act::Bind { lease: lease.id.clone(), holder, controller: pod.controller.clone() }
}

/// The first pod that proves itself.
fn reserved<'a>(lease: &Lease, claimed: &[&'a Pod], acts: &mut Vec<Act>) -> Option<&'a str> {
    let pod = claimed.iter().find(|pod| lease.terms.admit(pod))?;
    acts.push(to(lease, pod));
    Some(&pod.uid)
}

/// Whether a pod is the next one of what controls the pod before. Anyone can write an owner's uid: it counts within the
/// namespace of that pod, and for the service account that the lease was asked for.
fn follows(lease: &Lease, pod: &Pod) -> bool {
    let same_place = matches!(&lease.holder, Some(Holder::Pod { namespace, .. }) if *namespace == pod.namespace);
    same_place && pod.controller == lease.controller && (!lease.terms.names_a_pod() || lease.terms.admit(pod))
}

/// Who holds it after this.
fn bound<'a>(
    lease: &Lease,
    uid: &'a str,
    claimed: &[&'a Pod],
    seen: &Seen<'_>,
    acts: &mut Vec<Act>,
) -> Option<&'a str> {
    let group = (seen.group)(uid);
    let pods = seen.cluster.pods.as_ref().filter(|_| seen.cluster.is_current());
    let ended = match pods.map(|pods| pods.get(uid)) {
        // Its group alone tells.
        None if group == Group::Gone => None,
        // Told by nobody, or nobody knows: it may still begin.
        None => return Some(uid),
        Some(Some(pod)) if pod.live() => {
            // What was thought to have ended lives; and what controls a pod may not have been known when it was bound.
            if lease.unheld_since.is_some() || lease.controller != pod.controller {
                acts.push(to(lease, pod));
            }
            return Some(uid);
        }
        Some(_) if group == Group::Runs => return Some(uid),
        Some(None) => None,
        Some(Some(pod)) => match pod.life {
            PodLife::Ended(ended) => Some(ended),
            PodLife::Waiting | PodLife::Running => None,
        },
    };
    let may_come_again = lease.terms.rebind == Rebind::SameOwner
        && !lease.controller.is_empty()
        && !ended.is_some_and(|ended| ended.succeeded);
    if may_come_again {
        let again = claimed.iter().find(|pod| pod.live() && pod.uid != uid && follows(lease, pod));
        if let Some(pod) = again {
            acts.push(to(lease, pod));
            return Some(&pod.uid);
        }
        match lease.unheld_since {
            None => {
                acts.push(Act::Wait(lease.id.clone()));
                return Some(uid);
            }
            Some(since) if seen.now.since(since) < seen.grace => return Some(uid),
            Some(_) => {}
        }
    }
    acts.push(Act::End { lease: lease.id.clone(), pod: uid.into(), ended });
    Some(uid)
}
