//! Whether a build ran out of memory, and whose limit that was.
//!
//! Who is killed at its own limit gets one retry, one step up; who is killed because the node, or something above it,
//! ran out gets the same size again; all others get none. Three witnesses tell, and none of them all of it:
//!
//! - The kernel's counters of the build's cgroup (`Documentation/admin-guide/cgroup-v2.rst`): `oom_kill` counts whom any
//!   killer took, `oom` how often an allocation failed at a limit of the cgroup or of one below it. Killed without such
//!   a failure: the limit was further up. Under v1 `failcnt` stands for `oom`: it also counts charges that reclaim
//!   saved, so it says that the limit was reached, and that is all that is asked of it.
//! - The exit: 137, or SIGKILL. Anyone can send one.
//! - The pod's status: `OOMKilled` (a container of it was killed, by any limit), `Evicted` (by the kubelet, because the
//!   node was short of something).
//!
//! The counters come first, but the last look at them can be older than the kill: none counted is no proof of none.

use serde::{Deserialize, Serialize};

/// What a pod's status says of its end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodEnd {
    /// Nothing of the following, or there is no pod.
    #[default]
    Other,
    /// `OOMKilled`.
    OomKilled,
    /// `Evicted`, with a message that names memory.
    EvictedForMemory,
    /// `Evicted` for another resource.
    Evicted,
    /// Somebody deleted it, and it ended by that.
    Deleted,
}

/// What is known of a build's end. Counters are of its own time, not of its cgroup's.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The cgroup's counters; unset where the build had none of its own.
    pub counters: Option<OomCounters>,
    /// The exit code; unset where a signal ended it, or nobody saw it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The pod's status.
    pub pod: PodEnd,
    /// The most memory that was seen.
    pub memory_bytes_peak: u64,
    /// Its own limit; unset: it had none.
    pub memory_bytes_limit: Option<u64>,
    /// The node's memory was below its floor when it ended.
    pub node_was_short: bool,
}

/// Counters of a cgroup and all below it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomCounters {
    /// Processes that were killed for memory, whoever's it was.
    pub kills: u64,
    /// Allocations that failed at a limit of its own (v2 `oom`), or charges (v1 `failcnt`).
    pub at_limit: u64,
}

impl OomCounters {
    /// What was added since `earlier`. A counter that is lower than before is that of a new cgroup: all of it counts.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let added = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self { kills: added(self.kills, earlier.kills), at_limit: added(self.at_limit, earlier.at_limit) }
    }

    /// Both, saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { kills: self.kills.saturating_add(other.kills), at_limit: self.at_limit.saturating_add(other.at_limit) }
    }
}

/// Whose memory it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryEnd {
    /// It ended for another reason, or well.
    NotMemory,
    /// It reached its own limit.
    OwnLimit,
    /// The node ran out, or a limit above its own was reached.
    AncestorOrNode,
}

/// SIGKILL of signal(7), and the exit code by which shells and container runtimes tell of it.
const SIGKILL: i32 = 9;
const KILLED: i32 = 128 + SIGKILL;

/// Whose memory ended a build.
#[must_use]
pub fn classify(evidence: &Evidence) -> MemoryEnd {
    match evidence.pod {
        PodEnd::EvictedForMemory => return MemoryEnd::AncestorOrNode,
        PodEnd::Evicted | PodEnd::Deleted => return MemoryEnd::NotMemory,
        PodEnd::OomKilled | PodEnd::Other => {}
    }
    let said = evidence.pod == PodEnd::OomKilled;
    // A build that went on without what was killed in it has done what it was to do.
    if evidence.exit_code == Some(0) && !said {
        return MemoryEnd::NotMemory;
    }
    if let Some(counters) = evidence.counters.filter(|counters| counters.kills > 0) {
        return if counters.at_limit > 0 { MemoryEnd::OwnLimit } else { MemoryEnd::AncestorOrNode };
    }
    let killed = evidence.signal == Some(SIGKILL) || evidence.exit_code == Some(KILLED);
    if !said && !killed {
        return MemoryEnd::NotMemory;
    }
    // Within a tenth of its limit: what comes between two looks is not seen.
    let near = |limit: u64| evidence.memory_bytes_peak >= limit.saturating_sub(limit / 10);
    match (evidence.memory_bytes_limit.is_some_and(near), evidence.node_was_short) {
        (true, _) => MemoryEnd::OwnLimit,
        (false, true) => MemoryEnd::AncestorOrNode,
        // The status says memory, and the node had some: it can only be its own.
        (false, false) if said => MemoryEnd::OwnLimit,
        (false, false) => MemoryEnd::NotMemory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    const fn counted(kills: u64, at_limit: u64) -> Evidence {
        let counters = Some(OomCounters { kills, at_limit });
        Evidence { counters, signal: Some(9), ..NOTHING }
    }

    const NOTHING: Evidence = Evidence {
        counters: None,
        exit_code: None,
        signal: None,
        pod: PodEnd::Other,
        memory_bytes_peak: 0,
        memory_bytes_limit: None,
        node_was_short: false,
    };

    #[test]
    fn whose_memory_it_was() {
        use MemoryEnd::{AncestorOrNode, NotMemory, OwnLimit};
        let killed = Evidence { exit_code: Some(137), ..NOTHING };
        let signalled = Evidence { signal: Some(9), ..NOTHING };
        let full =
            |evidence| Evidence { memory_bytes_peak: 15 * GIB / 2, memory_bytes_limit: Some(8 * GIB), ..evidence };
        let roomy = |evidence| Evidence { memory_bytes_peak: GIB, memory_bytes_limit: Some(8 * GIB), ..evidence };
        let short = |evidence| Evidence { node_was_short: true, ..evidence };
        let pod = |pod, evidence| Evidence { pod, ..evidence };
        let table = [
            ("it ended well", Evidence { exit_code: Some(0), ..NOTHING }, NotMemory),
            ("it failed", Evidence { exit_code: Some(1), ..counted(0, 0) }, NotMemory),
            ("its end was not seen", NOTHING, NotMemory),
            ("killed at its limit", counted(1, 1), OwnLimit),
            ("killed, and its limit was never reached", counted(2, 0), AncestorOrNode),
            (
                "its compiler was killed and it failed",
                Evidence { exit_code: Some(2), signal: None, ..counted(1, 4) },
                OwnLimit,
            ),
            (
                "its compiler was killed and it went on",
                Evidence { exit_code: Some(0), signal: None, ..counted(1, 4) },
                NotMemory,
            ),
            (
                "the limit was reached, reclaim helped, it failed",
                Evidence { exit_code: Some(1), signal: None, ..counted(0, 9) },
                NotMemory,
            ),
            ("somebody sent SIGKILL", roomy(signalled), NotMemory),
            ("somebody sent SIGKILL, and the counters say nothing", roomy(counted(0, 0)), NotMemory),
            ("137 near its limit, no counters", full(killed), OwnLimit),
            ("SIGKILL near its limit, the counters were read before", full(counted(0, 3)), OwnLimit),
            ("137 far from its limit on a node that ran out", short(roomy(killed)), AncestorOrNode),
            ("137 without a limit on a node that ran out", short(killed), AncestorOrNode),
            ("SIGTERM on a node that ran out", short(Evidence { signal: Some(15), ..NOTHING }), NotMemory),
            ("OOMKilled, no counters", pod(PodEnd::OomKilled, killed), OwnLimit),
            (
                "OOMKilled far from its limit on a node that ran out",
                short(roomy(pod(PodEnd::OomKilled, killed))),
                AncestorOrNode,
            ),
            (
                "OOMKilled, a sidecar hid the exit code",
                pod(PodEnd::OomKilled, Evidence { exit_code: Some(0), ..counted(1, 1) }),
                OwnLimit,
            ),
            ("OOMKilled, and the counters know better", pod(PodEnd::OomKilled, counted(1, 0)), AncestorOrNode),
            ("evicted for memory", pod(PodEnd::EvictedForMemory, killed), AncestorOrNode),
            (
                "evicted for memory, and killed at its limit before",
                pod(PodEnd::EvictedForMemory, counted(1, 1)),
                AncestorOrNode,
            ),
            ("evicted for disk", pod(PodEnd::Evicted, full(killed)), NotMemory),
        ];
        for (what, evidence, expected) in table {
            assert_eq!(classify(&evidence), expected, "{what}");
        }
    }

    #[test]
    fn counters_of_a_new_cgroup_count_in_full() {
        let before = OomCounters { kills: 5, at_limit: 7 };
        assert_eq!(OomCounters { kills: 6, at_limit: 7 }.since(before), OomCounters { kills: 1, at_limit: 0 });
        assert_eq!(OomCounters { kills: 1, at_limit: 9 }.since(before), OomCounters { kills: 1, at_limit: 2 });
    }
}
