//! What pods hold that have no lease: of each what it asks of the scheduler or what it uses, whichever is more.
//!
//! The node's own pods (static ones) are no builds' neighbours but part of the system, for which the operator keeps a
//! reserve: they stay in what the rest of the machine uses, with what they ask for at least. What each uses is told
//! beside it, for whoever examines the node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use stoker_core::cluster::{Cluster, Pod};
use stoker_core::quantity::Amounts;

use super::cgroup::{Group, Layout};
use super::others::{Leases, smoothed};

/// Pods whose groups were found, by uid.
#[derive(Default)]
pub(super) struct OtherPods(BTreeMap<String, Known>);

struct Known {
    group: Group,
    cpu: Option<(Instant, u64)>,
    cpu_millis: Option<f64>,
}

/// What one look at all of them adds up to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Sum {
    /// What they hold.
    pub(super) held: Amounts,
    /// What they were seen to use, as of leases.
    pub(super) used: Leases,
    /// What the node's own pods ask for.
    pub(super) of_the_system: Amounts,
    /// And what each of them uses whose group is there, by the hash of its file.
    pub(super) own: BTreeMap<String, Amounts>,
}

impl OtherPods {
    /// `leased` are the uids of pods that hold leases: those are looked at as leases.
    pub(super) fn look(&mut self, layout: &Layout, cluster: &Cluster, leased: &BTreeSet<&str>, at: Instant) -> Sum {
        let pods = cluster.pods.as_deref();
        self.0.retain(|uid, _| pods.is_some_and(|pods| pods.get(uid).is_some_and(Pod::live)));
        let mut sum = Sum::default();
        for pod in pods.into_iter().flat_map(|pods| pods.iter()).filter(|pod| pod.live()) {
            if leased.contains(pod.uid.as_str()) {
                self.0.remove(&pod.uid);
            } else if let Some(own) = &pod.own {
                sum.of_the_system = sum.of_the_system.plus(pod.requests);
                // What it uses stays in what the rest of the machine uses.
                let used = self.look_at(layout, &pod.uid, &own.hash, at, &mut Leases::default());
                sum.own.extend(used.map(|used| (own.hash.clone(), used)));
            } else {
                let used = self.look_at(layout, &pod.uid, &pod.uid, at, &mut sum.used);
                sum.held = sum.held.plus(pod.requests.max(used.unwrap_or_default()));
            }
        }
        sum
    }

    /// Nothing where the pod of this uid has no group by that name.
    fn look_at(&mut self, layout: &Layout, uid: &str, name: &str, at: Instant, sum: &mut Leases) -> Option<Amounts> {
        if !self.0.contains_key(uid) {
            let group = layout.of_pod(name)?;
            self.0.insert(uid.to_owned(), Known { group, cpu: None, cpu_millis: None });
        }
        let known = self.0.get_mut(uid)?;
        let Ok((memory_bytes, unavailable_bytes, cpu_micros)) = known.group.read_briefly() else {
            self.0.remove(uid);
            return None;
        };
        let before = known.cpu.replace((at, cpu_micros));
        if let Some((then, micros)) = before {
            let (seconds, spent) = (at.duration_since(then).as_secs_f64(), cpu_micros.saturating_sub(micros));
            sum.cpu_micros = sum.cpu_micros.saturating_add(spent);
            known.cpu_millis = smoothed(known.cpu_millis, spent as f64 / 1000.0, seconds);
        }
        sum.unavailable_bytes = sum.unavailable_bytes.saturating_add(unavailable_bytes);
        let cpu_millis = known.cpu_millis.unwrap_or(0.0).round() as u64;
        Some(Amounts { cpu_millis, memory_bytes, ..Amounts::default() })
    }
}
