//! Static pods, and what else the system uses, against the reserve.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::patch::PodPatch;
use super::{Draft, Facts, Finding, Kind, Severity, cpu, own_pods, round_up, shown};
use crate::cluster::{Pod, StaticPod};
use crate::quantity::Amounts;

/// A reserve is written in steps of these.
const CPU_STEP: u64 = 100;
const MEMORY_STEP: u64 = 256 << 20;
/// So much more CPU than it asks for tells nothing of a pod.
const SPIKE_MILLIS: u64 = 100;
/// Pods that a sentence names.
const NAMED_MAX: usize = 4;

pub(super) fn examine(facts: &Facts<'_>, draft: &mut Draft) {
    if facts.cluster.pods.is_none() {
        let why = match facts.cluster.pods_denied {
            true => "the API server does not let the agent list pods",
            false => "the API server has not told the node's pods yet",
        };
        draft.unseen.push(format!("static pods: {why}"));
        return;
    }
    let (mut asked, mut wanted) = (Amounts::default(), Amounts::default());
    let mut unseen = Vec::new();
    for (pod, own) in own_pods(facts.cluster) {
        asked = asked.plus(pod.requests);
        let used = facts.static_pods.get(&own.hash).copied();
        if used.is_none() {
            unseen.push(short(pod, facts.node_name).to_string());
        }
        let cpu_millis = used.and_then(|used| starves(pod, own, used, facts.node_name, draft));
        wanted = wanted.plus(Amounts { cpu_millis: cpu_millis.unwrap_or(0), ..Amounts::default() }.max(pod.requests));
    }
    if !unseen.is_empty() {
        draft.unseen.push(format!("what static pods use ({}): their control groups were not found", named(&unseen)));
    }
    reserve(facts, asked, wanted, draft);
}

/// What it should ask for, where it asks for too little.
fn starves(pod: &Pod, own: &StaticPod, used: Amounts, node: &str, draft: &mut Draft) -> Option<u64> {
    let asked = pod.requests.cpu_millis;
    if used.cpu_millis <= asked.saturating_add(asked / 2).max(asked.saturating_add(SPIKE_MILLIS)) {
        return None;
    }
    let wanted = round_up(used.cpu_millis.saturating_add(used.cpu_millis / 4), CPU_STEP);
    let name = short(pod, node);
    // What more the pod needs goes to the container that asks for most: the others stand beside it.
    let first = own.containers.iter().max_by_key(|(_, asks)| asks.cpu_millis);
    if let Some((container, asks)) = first {
        let more = asks.cpu_millis.saturating_add(wanted.saturating_sub(asked));
        draft.pods.push(PodPatch { pod: name.into(), container: container.clone(), cpu_millis: more });
    }
    draft.findings.push(Finding {
        kind: Kind::StaticPodStarves,
        severity: Severity::Warning,
        subject: name.into(),
        what: format!("{name} asks for {} and uses {}", cpu(asked), cpu(used.cpu_millis)),
        why: "the kernel shares a busy CPU by requests: beside builds it gets no more than it asks for".into(),
        remedy: format!("let it ask for {}", cpu(wanted)),
    });
    Some(wanted)
}

fn reserve(facts: &Facts<'_>, asked: Amounts, wanted: Amounts, draft: &mut Draft) {
    let names: Vec<String> = own_pods(facts.cluster).map(|(pod, _)| short(pod, facts.node_name).to_string()).collect();
    let system = facts.system.unwrap_or_default();
    let needed = wanted.max(system);
    let below = |what: Amounts| what.less(facts.reserve) != Amounts::default();
    let (kind, severity, what) = if below(asked) {
        let what = format!("its static pods ({}) ask for {}", named(&names), shown(asked));
        (Kind::ReserveBelowRequests, Severity::Fault, what)
    } else if below(system) {
        let what = format!("the system and its static pods use {} now", shown(system));
        (Kind::ReserveBelowUse, Severity::Warning, what)
    } else if below(wanted) {
        let what = format!("its static pods ({}) should ask for {}", named(&names), shown(wanted));
        (Kind::ReserveBelowUse, Severity::Warning, what)
    } else {
        return;
    };
    let target = Amounts {
        cpu_millis: round_up(needed.cpu_millis, CPU_STEP).max(facts.reserve.cpu_millis),
        memory_bytes: round_up(needed.memory_bytes, MEMORY_STEP).max(facts.reserve.memory_bytes),
        ..Amounts::default()
    };
    let fits = target.cpu_millis < facts.machine.cpu_millis && target.memory_bytes < facts.machine.memory_bytes;
    let remedy = if fits {
        draft.agent.reserve = Some(target);
        format!("keep {} for them", shown(target))
    } else {
        format!("the machine has {}: run builds on another one", shown(facts.machine))
    };
    draft.findings.push(Finding {
        kind,
        severity,
        subject: "node.reserve".into(),
        what: format!("node.reserve keeps {}; {what}", shown(facts.reserve)),
        why: "builds are admitted into what keeps the node alive".into(),
        remedy,
    });
}

/// The name of its file: the kubelet adds the node's.
fn short<'a>(pod: &'a Pod, node: &str) -> &'a str {
    pod.name.strip_suffix(node).and_then(|name| name.strip_suffix('-')).unwrap_or(&pod.name)
}

fn named(names: &[String]) -> String {
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let more = sorted.len().saturating_sub(NAMED_MAX);
    sorted.truncate(NAMED_MAX);
    let shown = sorted.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
