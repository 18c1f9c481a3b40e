//! The cluster as it is without pods that are placed here and wait for their volume: nothing of them runs before they have
//! it, and what they ask for is what their lease is to be. Counted among those that run beside leases, a build would wait
//! for its own pod. The scheduler of the cluster has given them what they ask for: of what that has left they are no part.

use std::collections::BTreeSet;
use std::sync::Arc;

use stoker_core::cluster::{Cluster, Pods};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The uids of pods that wait for their volume.
pub type WaitingPods = Arc<BTreeSet<String>>;

/// The view without those that wait, until `cancel`.
pub(super) fn without(
    mut waiting: watch::Receiver<WaitingPods>,
    mut cluster: watch::Receiver<Arc<Cluster>>,
    tasks: &TaskTracker,
    cancel: CancellationToken,
) -> watch::Receiver<Arc<Cluster>> {
    let (seen, view) = watch::channel(here(&cluster.borrow(), &waiting.borrow()));
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = cluster.changed() => if changed.is_err() { return },
                changed = waiting.changed() => if changed.is_err() { return },
            }
            let now = here(&cluster.borrow_and_update(), &waiting.borrow_and_update());
            seen.send_replace(now);
        }
    });
    view
}

fn here(cluster: &Arc<Cluster>, waiting: &BTreeSet<String>) -> Arc<Cluster> {
    let Some(pods) = cluster.pods.as_ref().filter(|_| !waiting.is_empty()) else { return Arc::clone(cluster) };
    let others = pods.iter().filter(|pod| !waiting.contains(&pod.uid));
    let others = others.map(|pod| (pod.uid.clone(), Arc::new(pod.clone()))).collect();
    Arc::new(Cluster { pods: Some(Arc::new(Pods::new(others))), ..Cluster::clone(cluster) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stoker_core::cluster::Pod;
    use stoker_core::quantity::Amounts;

    use super::*;

    #[test]
    fn a_pod_that_waits_for_its_volume_asks_for_nothing_yet() {
        let pod = |uid: &str, cpu_millis| {
            let requests = Amounts { cpu_millis, ..Amounts::default() };
            (uid.to_owned(), Arc::new(Pod { uid: uid.to_owned(), requests, ..Pod::default() }))
        };
        let pods = Pods::new(BTreeMap::from([pod("waits", 20_000), pod("runs", 5_000)]));
        let cluster = Arc::new(Cluster { pods: Some(Arc::new(pods)), ..Cluster::default() });
        let seen = |waiting: &[&str]| {
            let waiting = waiting.iter().map(|uid| (*uid).to_owned()).collect();
            let pods = here(&cluster, &waiting).pods.clone().unwrap_or_default();
            (pods.requested().cpu_millis, pods.live())
        };
        assert_eq!(seen(&[]), (25_000, 2));
        assert_eq!(seen(&["waits", "gone"]), (5_000, 1));
    }
}
