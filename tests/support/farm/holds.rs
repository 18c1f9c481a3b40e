//! What must be so on a farm, whatever was lost and whoever leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stoker_core::admission::{Lease, LeaseState};

use super::Farm;
use super::agent::{Simulated, now};
use super::objects::{is_gated, lease_of, text};

/// Whose lease that is: `gate-UID-ATTEMPT`.
fn pod_of(lease: &Lease) -> Option<&str> {
    let rest = lease.request_id.as_str().strip_prefix("gate-")?;
    rest.rsplit_once('-').map(|(uid, _)| uid)
}

/// A lease, and who granted it.
type Held = (Arc<Simulated>, Arc<Lease>);

/// The live leases of each pod, and where they are. One on a node that does not answer holds as well.
pub(crate) fn by_pod(agents: &[Arc<Simulated>]) -> BTreeMap<String, Vec<Held>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for agent in agents {
        for lease in agent.live() {
            if let Some(uid) = pod_of(&lease) {
                all.entry(uid.to_owned()).or_default().push((Arc::clone(agent), lease));
            }
        }
    }
    all
}

/// At any moment: no agent is over its budget, and no pod has two leases that hold room, unless one of them is on a node that
/// did not answer when it was given up, for as long as a grant is kept.
pub(crate) fn at_any_time(agents: &[Arc<Simulated>], bind_within: Duration) -> Vec<String> {
    let mut wrongs: Vec<String> =
        agents.iter().filter(|agent| !agent.holds()).map(|agent| format!("the ledger of {}", agent.name)).collect();
    for (uid, leases) in by_pod(agents) {
        let of_one_that_answers = leases.iter().filter(|(agent, _)| !agent.was_away_within(bind_within * 2)).count();
        let bound = leases.iter().filter(|(_, lease)| lease.state == LeaseState::Bound).count();
        if of_one_that_answers > 1 || bound > 1 {
            let words = |(agent, lease): &Held| {
                format!("{} {} on {} ({:?})", lease.id, lease.request_id, agent.name, lease.state)
            };
            wrongs.push(format!("pod {uid} has {}", leases.iter().map(words).collect::<Vec<_>>().join(", ")));
        }
    }
    wrongs
}

impl Farm {
    /// Once all is well again: what is held for nobody, though its time is over.
    pub(crate) fn left_over(&self, bind_within: Duration) -> Vec<String> {
        let pods: BTreeMap<String, _> =
            self.pods().into_iter().map(|pod| (text(&pod, "/metadata/uid").to_owned(), pod)).collect();
        let mut left = Vec::new();
        for (uid, leases) in by_pod(&self.agents) {
            for (agent, lease) in leases {
                let is_its = pods.get(&uid).is_some_and(|pod| is_gated(pod) || lease_of(pod) == lease.id.as_str());
                let old = now().since(lease.created_at).0 >= bind_within.as_millis() as i64;
                if !is_its && old {
                    left.push(format!("{} on {} ({:?}) is held for nobody", lease.request_id, agent.name, lease.state));
                }
            }
        }
        left
    }

    /// Pods that still wait under the gate and of which no event says why.
    pub(crate) fn without_a_reason(&self) -> Vec<String> {
        let events = self.api.all("events");
        let told = |uid: &str| {
            let about = |path| events.iter().any(|event| text(event, path) == uid);
            about("/regarding/uid") || about("/involvedObject/uid")
        };
        let waits = self.pods().into_iter().filter(is_gated);
        let silent = waits.filter(|pod| !told(text(pod, "/metadata/uid")));
        silent.map(|pod| text(&pod, "/metadata/name").to_owned()).collect()
    }
}
