//! The kubelet's reservations and thresholds against the reserve and the floors.
//!
//! Its configuration: `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`; what its thresholds mean: the page
//! "Node-pressure Eviction" of the Kubernetes documentation.

use alloc::format;
use alloc::string::String;

use super::patch::Floor;
use super::{Draft, Facts, Finding, Kind, PodsLimit, Severity, kept_by_kubelet, own_pods, round_up, shown};
use crate::quantity::{Amounts, Resource};

/// Where static pods' manifests are, where the kubelet's configuration is not seen.
pub const MANIFESTS: &str = "/etc/kubernetes/manifests";
/// The memory floor lies above the kubelet's threshold by so much: the gate shuts, and what runs still grows.
const ABOVE_BYTES: u64 = 512 << 20;
const FLOOR_STEP: u64 = 256 << 20;
const CPU_STEP: u64 = 100;
const MEMORY_STEP: u64 = 64 << 20;

/// From where on the kubelet evicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// So much must be there.
    Amount(u64),
    /// So many hundredths of a percent of the whole.
    Basis(u32),
}

impl Threshold {
    /// How much that is of `total`.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Basis(basis) => {
                let part = u128::from(total).saturating_mul(u128::from(basis)).checked_div(10_000);
                part.and_then(|part| u64::try_from(part).ok()).unwrap_or(u64::MAX)
            }
        }
    }
}

/// How a kubelet is configured, as far as it matters here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// Where that is written.
    pub path: String,
    /// Its own directory.
    pub root: String,
    /// Where its static pods' manifests are.
    pub manifests: String,
    /// `kubeReserved`.
    pub kube_reserved: Amounts,
    /// `systemReserved`.
    pub system_reserved: Amounts,
    /// `enforceNodeAllocatable` names the pods.
    pub limits_pods: bool,
    /// `memory.available` of `evictionHard`. Unset: it does not evict for it; so are the others.
    pub memory: Option<Threshold>,
    /// `nodefs.available`.
    pub nodefs: Option<Threshold>,
    /// `nodefs.inodesFree`.
    pub nodefs_inodes: Option<Threshold>,
    /// `imagefs.available`.
    pub imagefs: Option<Threshold>,
}

pub(super) fn examine(facts: &Facts<'_>, draft: &mut Draft) {
    match &facts.kubelet {
        Ok(kubelet) => {
            memory_floor(facts, kubelet, draft);
            disk_floors(facts, kubelet, draft);
        }
        Err(why) => draft.unseen.push(format!("the kubelet's thresholds for evictions: {why}")),
    }
    reservations(facts, draft);
    pods_limit(facts, draft);
}

fn memory_floor(facts: &Facts<'_>, kubelet: &Kubelet, draft: &mut Draft) {
    let Some(threshold) = kubelet.memory.map(|threshold| threshold.of(facts.machine.memory_bytes)) else { return };
    if facts.memory_floor > threshold {
        return;
    }
    let show = |bytes| Resource::Memory.show(bytes);
    let floor = round_up(threshold.saturating_add(ABOVE_BYTES), FLOOR_STEP);
    // The gate narrows at twice the floor, as by default.
    let narrow = facts.memory_narrow.max(floor.saturating_mul(2));
    draft.agent.memory = Some((floor, narrow));
    draft.findings.push(Finding {
        kind: Kind::MemoryFloorBelowEviction,
        severity: Severity::Fault,
        subject: "pressure.memoryFloor".into(),
        what: format!(
            "pressure.memoryFloor is {}; the kubelet evicts when less than {} is available",
            show(facts.memory_floor),
            show(threshold)
        ),
        why: "builds are admitted while running ones are already evicted".into(),
        remedy: format!("shut the gate at {}, narrow it at {}", show(floor), show(narrow)),
    });
}

/// The root filesystem, and the kubelet's and the images' where they are others.
fn disk_floors(facts: &Facts<'_>, kubelet: &Kubelet, draft: &mut Draft) {
    let Ok(places) = &facts.places else { return };
    for disk in &places.watched {
        let signals =
            [(disk.nodefs, "nodefs.available", kubelet.nodefs), (disk.imagefs, "imagefs.available", kubelet.imagefs)];
        let there = signals.into_iter().filter(|(is_there, ..)| *is_there);
        let told = there.filter_map(|(_, signal, threshold)| {
            threshold.map(|threshold| (threshold.of(disk.total_bytes), signal, threshold))
        });
        let bytes = told.max_by_key(|(amount, ..)| *amount).filter(|(amount, ..)| disk.floor_bytes < *amount);
        let inodes = kubelet.nodefs_inodes.filter(|_| disk.nodefs && disk.total_inodes > 0);
        let inodes = inodes.map(|threshold| (threshold.of(disk.total_inodes), "nodefs.inodesFree", threshold));
        let inodes = inodes.filter(|(amount, ..)| disk.floor_inodes < *amount);
        if disk.path == "/" {
            draft.agent.root_floor = Floor {
                bytes: bytes.map(|(.., threshold)| threshold),
                inodes: inodes.map(|(.., threshold)| threshold),
            };
        }
        let figures =
            [(bytes, Resource::DiskBytes, disk.floor_bytes), (inodes, Resource::DiskInodes, disk.floor_inodes)];
        for (found, resource, floor) in figures {
            let Some((amount, signal, _)) = found else { continue };
            let least = resource.show(amount);
            let (field, remedy) = match disk.path.as_str() {
                "/" => (String::from("node.rootFloor"), format!("a floor of {least}, as the kubelet's")),
                path => {
                    (format!("the floor of {path}"), format!("list it in `node.filesystems` with a floor of {least}"))
                }
            };
            draft.findings.push(Finding {
                kind: Kind::DiskFloorBelowEviction,
                severity: Severity::Fault,
                subject: disk.path.clone(),
                what: format!(
                    "{field} is {}; the kubelet evicts when less than {} is free ({signal})",
                    resource.show(floor),
                    least
                ),
                why: "builds are admitted to a node that evicts them for its disk".into(),
                remedy,
            });
        }
    }
}

/// What the scheduler cannot give away: the kubelet's reservations, and what static pods ask for.
fn reservations(facts: &Facts<'_>, draft: &mut Draft) {
    let Some(kept) = kept_by_kubelet(facts.cluster) else {
        draft.unseen.push("the kubelet's reservations: the node object has not told its capacity".into());
        return;
    };
    let asked = own_pods(facts.cluster).fold(Amounts::default(), |sum, (pod, _)| sum.plus(pod.requests));
    // The patch of the reserve counts already.
    let reserve = draft.agent.reserve.unwrap_or(facts.reserve);
    let missing = reserve.less(kept).less(asked);
    if missing == Amounts::default() {
        return;
    }
    let system = facts.kubelet.as_ref().map(|kubelet| kubelet.system_reserved);
    let target = Amounts {
        cpu_millis: round_up(system.map_or(0, |all| all.cpu_millis).saturating_add(missing.cpu_millis), CPU_STEP),
        memory_bytes: round_up(
            system.map_or(0, |all| all.memory_bytes).saturating_add(missing.memory_bytes),
            MEMORY_STEP,
        ),
        ..Amounts::default()
    };
    draft.kubelet.system_reserved = Some((target, system.is_err()));
    draft.findings.push(Finding {
        kind: Kind::KubeletReservesLess,
        severity: Severity::Warning,
        subject: "kubelet".into(),
        what: format!(
            "the kubelet keeps {} from pods, and static pods ask for {}; the reserve is {}",
            shown(kept),
            shown(asked),
            shown(reserve)
        ),
        why: "the scheduler of the cluster places pods into the rest of the reserve, which no lease counts".into(),
        remedy: match system {
            Ok(_) => format!("systemReserved of {}", shown(target)),
            Err(_) => format!("systemReserved of {} more", shown(target)),
        },
    });
}

fn pods_limit(facts: &Facts<'_>, draft: &mut Draft) {
    match facts.pods_limit {
        PodsLimit::Unseen => {
            draft.unseen.push("the limit of all pods: their control group (kubepods) was not found".into())
        }
        PodsLimit::Bytes(_) => {}
        PodsLimit::Nothing => {
            let off = facts.kubelet.as_ref().is_ok_and(|kubelet| !kubelet.limits_pods);
            let (because, remedy) = match off {
                true => ("; `enforceNodeAllocatable` does not name pods", "let it name them"),
                false => ("", "let `enforceNodeAllocatable` name pods, and start the kubelet again"),
            };
            draft.kubelet.enforce = true;
            draft.findings.push(Finding {
                kind: Kind::PodsUnlimited,
                severity: Severity::Warning,
                subject: "kubepods".into(),
                what: format!("the control group of all pods has no limit of memory{because}"),
                why: "pods without limits can take what is kept for the system, and the kernel kills whom it likes"
                    .into(),
                remedy: remedy.into(),
            });
        }
    }
}
