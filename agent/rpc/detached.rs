//! What still holds the disk of a pool that was detached, in words.

use std::collections::BTreeSet;
use std::path::Path;

use super::Rooms;
use crate::node::mount::{self, Place, Seen};
use crate::node::{PoolView, State};

/// So many pods are named.
const NAMED_MAX: usize = 8;

impl Rooms {
    /// Workspaces that are mounted, and what pods have in their volumes; nothing where neither is, or the pool is in use.
    pub(super) fn holding(&self, pool: &PoolView) -> Option<String> {
        if pool.state != State::Detached {
            return None;
        }
        let all = [self.workspaces.holding(&pool.name), self.volumes_of(pool)];
        let all: Vec<String> = all.into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn volumes_of(&self, pool: &PoolView) -> Option<String> {
        let pods = self.configured.borrow().volume.as_ref()?.kubelet.join("pods");
        let seen = match mount::seen_below(&pods) {
            Ok(seen) => seen,
            Err(error) => return Some(format!("whether pods hold its disk is not known: mounts: {error}")),
        };
        // A disk that is not mounted there any more is held by nothing that could be told from here.
        let place = mount::place_of(&pool.path).ok();
        let makes_overlays = self.configured.borrow().workspaces.pool == pool.name;
        words(&holders(&pods, &seen, place.as_ref(), makes_overlays))
    }
}

/// The uids of the pods for which something of a pool is mounted. Overlays and memory of workspaces are told by their
/// source: of them the kernel's table does not tell where they lie.
fn holders(pods: &Path, seen: &[Seen], pool: Option<&Place>, makes_overlays: bool) -> BTreeSet<String> {
    let is_of = |seen: &&Seen| {
        pool.is_some_and(|pool| seen.place.below(pool).is_some()) || makes_overlays && seen.source == mount::SOURCE
    };
    let uid = |seen: &Seen| Some(seen.point.strip_prefix(pods).ok()?.iter().next()?.to_string_lossy().into_owned());
    seen.iter().filter(is_of).filter_map(uid).collect()
}

fn words(pods: &BTreeSet<String>) -> Option<String> {
    let named = pods.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    let (which, further) = match (pods.len(), pods.len().saturating_sub(NAMED_MAX)) {
        (0, _) => return None,
        (1, _) => ("a volume of the pod with this uid holds", String::new()),
        (_, 0) => ("volumes of the pods with these uids hold", String::new()),
        (_, more) => ("volumes of the pods with these uids hold", format!(" and {more} more")),
    };
    Some(format!("{which} its disk: {named}{further}; each goes when its pod is gone and the kubelet has unmounted it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_so_many_pods_are_named() {
        let pods = |count: usize| (0..count).map(|number| format!("uid-{number:02}")).collect::<BTreeSet<_>>();
        assert_eq!(words(&pods(0)), None);
        let told = words(&pods(NAMED_MAX)).unwrap_or_default();
        assert!(told.contains("uid-07;") && !told.contains("more"), "{told}");
        let told = words(&pods(NAMED_MAX + 3)).unwrap_or_default();
        assert!(told.contains("uid-07 and 3 more;") && !told.contains("uid-08"), "{told}");
    }
}
