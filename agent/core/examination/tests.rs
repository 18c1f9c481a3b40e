//! What does not fit, one test a finding; and that what a patch says makes it fit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::places::{Places, Watched};
use super::*;
use crate::cluster::{Node, Pods};

const GIB: u64 = 1 << 30;

fn amounts(cpu_millis: u64, memory_bytes: u64) -> Amounts {
    Amounts { cpu_millis, memory_bytes, ..Amounts::default() }
}

fn static_pod(name: &str, cpu_millis: u64, memory_bytes: u64) -> Pod {
    let requests = amounts(cpu_millis, memory_bytes);
    let own = StaticPod {
        hash: format!("hash-{name}"),
        containers: vec![(name.to_string(), requests)],
        etcd_data: if name == "etcd" { "/var/lib/etcd".into() } else { String::new() },
    };
    let (name, uid) = (format!("{name}-ghost"), format!("uid-{name}"));
    Pod { name, uid, requests, own: Some(Arc::new(own)), ..Pod::default() }
}

fn cluster(pods: Vec<Pod>, kept: Amounts) -> Cluster {
    let machine = amounts(32_000, 62 * GIB);
    let node = Node { capacity: machine, allocatable: machine.less(kept), ..Node::default() };
    let pods = pods.into_iter().map(|pod| (pod.uid.clone(), Arc::new(pod))).collect();
    Cluster { asked: true, node: NodeState::Here(node), pods: Some(Arc::new(Pods::new(pods))), ..Cluster::default() }
}

/// What the kubelet has where nothing is written.
fn kubelet() -> Kubelet {
    Kubelet {
        path: "/var/lib/kubelet/config.yaml".into(),
        manifests: "/etc/kubernetes/manifests".into(),
        limits_pods: true,
        memory: Some(Threshold::Amount(100 << 20)),
        nodefs: Some(Threshold::Basis(1000)),
        nodefs_inodes: Some(Threshold::Basis(500)),
        imagefs: Some(Threshold::Basis(1500)),
        ..Kubelet::default()
    }
}

fn place(name: &str, path: &str, device: &str, disks: &[&str]) -> Place {
    let disks = disks.iter().map(ToString::to_string).collect();
    Place { name: name.into(), path: path.into(), mount: path.into(), device: device.into(), disks }
}

fn places() -> Places {
    Places {
        root: place("", "/", "259:2", &["nvme0n1"]),
        pools: vec![place("data", "/var/mnt/data", "8:1", &["sda"])],
        etcd: Ok(vec![place("", "/var/lib/etcd", "259:2", &["nvme0n1"])]),
        watched: vec![Watched {
            path: "/".into(),
            total_bytes: 100 * GIB,
            total_inodes: 1_000_000,
            floor_bytes: 15 * GIB,
            floor_inodes: 50_000,
            nodefs: true,
            imagefs: true,
        }],
    }
}

/// A node on which all fits: 32 CPUs, 62 GiB, of which 4 and 8 are kept.
fn well<'a>(cluster: &'a Cluster, static_pods: &'a BTreeMap<String, Amounts>) -> Facts<'a> {
    Facts {
        cluster,
        node_name: "ghost",
        machine: amounts(32_000, 62 * GIB),
        reserve: amounts(4000, 8 * GIB),
        system: Some(amounts(1000, 3 * GIB)),
        static_pods,
        pods_limit: PodsLimit::Bytes(54 * GIB),
        memory_floor: 3 * GIB,
        memory_narrow: 6 * GIB,
        kubelet: Ok(kubelet()),
        places: Ok(places()),
    }
}

fn kinds(found: &Examination) -> Vec<Kind> {
    found.findings.iter().map(|finding| finding.kind).collect()
}

fn control_plane() -> (Vec<Pod>, BTreeMap<String, Amounts>) {
    let pods = vec![static_pod("kube-apiserver", 1000, GIB), static_pod("etcd", 500, GIB)];
    let used = pods.iter().map(|pod| (pod.own.as_ref().unwrap().hash.clone(), amounts(200, GIB))).collect();
    (pods, used)
}

#[test]
fn a_node_on_which_all_fits_has_nothing_to_mend() {
    let (pods, used) = control_plane();
    let cluster = cluster(pods, amounts(5000, 9 * GIB));
    let found = examine(&well(&cluster, &used));
    assert_eq!(found, Examination::default());
}

#[test]
fn a_reserve_below_what_static_pods_ask_for_is_a_fault_and_the_patch_ends_it() {
    let (pods, used) = control_plane();
    let cluster = cluster(pods, amounts(5000, 9 * GIB));
    let little = Facts { reserve: amounts(500, GIB), ..well(&cluster, &used) };
    let found = examine(&little);
    assert_eq!(kinds(&found), [Kind::ReserveBelowRequests]);
    let finding = &found.findings[0];
    assert_eq!(finding.severity, Severity::Fault);
    assert_eq!(
        finding.what,
        "node.reserve keeps 0.5 CPU and 1 GiB of memory; its static pods (etcd, kube-apiserver) ask for 1.5 CPU and \
         2 GiB of memory"
    );
    // What the system uses beside them counts for the patch.
    assert_eq!(found.patches.len(), 1);
    let yaml = "apiVersion: stoker.build/v1\nkind: AgentConfig\nnode:\n  reserve: {cpu: 1500m, memory: 3GiB}\n";
    assert_eq!((found.patches[0].file.as_str(), found.patches[0].yaml.as_str()), ("the agent's configuration", yaml));
    assert_eq!(kinds(&examine(&Facts { reserve: amounts(1500, 3 * GIB), ..little })), []);
}

#[test]
fn use_beyond_the_reserve_is_a_warning() {
    let (pods, used) = control_plane();
    let cluster = cluster(pods, amounts(5000, 9 * GIB));
    let facts = Facts { system: Some(amounts(4700, 9 * GIB + 1)), ..well(&cluster, &used) };
    let found = examine(&facts);
    assert_eq!(kinds(&found), [Kind::ReserveBelowUse]);
    assert_eq!(found.findings[0].severity, Severity::Warning);
    assert!(found.patches[0].yaml.contains("reserve: {cpu: 4700m, memory: 9472MiB}"), "{}", found.patches[0].yaml);
}

#[test]
fn a_machine_that_is_too_small_gets_no_patch() {
    let cluster = cluster(vec![static_pod("kube-apiserver", 33_000, GIB)], amounts(5000, 9 * GIB));
    let used = BTreeMap::from([("hash-kube-apiserver".to_string(), amounts(200, GIB))]);
    let found = examine(&well(&cluster, &used));
    assert_eq!((kinds(&found), found.patches.len()), (vec![Kind::ReserveBelowRequests], 0));
    assert!(found.findings[0].remedy.contains("run builds on another one"));
}

/// The API server of the field asked for 125m.
#[test]
fn a_static_pod_that_uses_more_cpu_than_it_asks_for_gets_a_manifest() {
    let cluster = cluster(vec![static_pod("kube-apiserver", 125, GIB)], amounts(5000, 9 * GIB));
    let with = |used| {
        let used = BTreeMap::from([("hash-kube-apiserver".to_string(), amounts(used, GIB))]);
        examine(&well(&cluster, &used))
    };
    assert_eq!(kinds(&with(225)), []);
    let found = with(1200);
    assert_eq!(kinds(&found), [Kind::StaticPodStarves]);
    assert_eq!(found.findings[0].what, "kube-apiserver asks for 125m CPU and uses 1.2 CPU");
    assert_eq!(found.patches[0].file, "the static pod's manifest, /etc/kubernetes/manifests/kube-apiserver.yaml");
    assert!(found.patches[0].yaml.ends_with(
        "metadata:\n  name: kube-apiserver\nspec:\n  containers:\n    - name: kube-apiserver\n      \
         resources: {requests: {cpu: 1500m}}\n"
    ));
    // One that nobody saw is said to be unseen, and not guessed.
    let none = examine(&well(&cluster, &BTreeMap::new()));
    assert_eq!(none.unseen, ["what static pods use (kube-apiserver): their control groups were not found"]);
    assert_eq!(kinds(&none), []);
}

#[test]
fn the_gate_must_shut_before_the_kubelet_evicts() {
    let (pods, used) = control_plane();
    let cluster = cluster(pods, amounts(5000, 9 * GIB));
    let eager = Kubelet { memory: Some(Threshold::Basis(500)), ..kubelet() };
    let found = examine(&Facts { kubelet: Ok(eager.clone()), ..well(&cluster, &used) });
    assert_eq!(kinds(&found), [Kind::MemoryFloorBelowEviction]);
    assert_eq!(
        found.findings[0].what,
        "pressure.memoryFloor is 3 GiB; the kubelet evicts when less than 3.1 GiB is available"
    );
    let yaml =
        "apiVersion: stoker.build/v1\nkind: AgentConfig\npressure:\n  memoryFloor: 3840MiB\n  memoryNarrow: 7680MiB\n";
    assert_eq!(found.patches[0].yaml, yaml);
    let mended = Facts { kubelet: Ok(eager), memory_floor: 3840 << 20, ..well(&cluster, &used) };
    assert_eq!(kinds(&examine(&mended)), []);
    let never = Kubelet { memory: None, ..kubelet() };
    assert_eq!(kinds(&examine(&Facts { kubelet: Ok(never), memory_floor: 0, ..well(&cluster, &used) })), []);
}

#[test]
fn floors_of_disks_are_no_lower_than_the_kubelets() {
    let (pods, used) = control_plane();
    let cluster = cluster(pods, amounts(5000, 9 * GIB));
    let with = |floor_bytes, floor_inodes, imagefs, path: &str| {
        let mut places = places();
        let watched = &mut places.watched[0];
        (watched.floor_bytes, watched.floor_inodes, watched.imagefs) = (floor_bytes, floor_inodes, imagefs);
        watched.path = path.into();
        examine(&Facts { places: Ok(places), ..well(&cluster, &used) })
    };
    let found = with(10 * GIB, 50_000, true, "/");
    assert_eq!(kinds(&found), [Kind::DiskFloorBelowEviction]);
    let what = "node.rootFloor is 10 GiB; the kubelet evicts when less than 15 GiB is free (imagefs.available)";
    assert_eq!(found.findings[0].what, what);
    assert!(found.patches[0].yaml.ends_with("node:\n  rootFloor: {bytes: 15%}\n"), "{}", found.patches[0].yaml);
    assert_eq!(kinds(&with(10 * GIB, 50_000, false, "/")), []);
    let both = with(0, 0, false, "/");
    assert_eq!(kinds(&both), [Kind::DiskFloorBelowEviction, Kind::DiskFloorBelowEviction]);
    assert!(both.patches[0].yaml.ends_with("  rootFloor: {bytes: 10%, inodes: 5%}\n"));
    // A list of filesystems is the operator's: it is told, and not written.
    let other = with(0, 50_000, false, "/var/lib/kubelet");
    assert_eq!((kinds(&other), other.patches.len()), (vec![Kind::DiskFloorBelowEviction], 0));
}

#[test]
fn what_the_scheduler_could_give_away_of_the_reserve_is_told() {
    let (pods, used) = control_plane();
    let bare = cluster(pods, amounts(0, 100 << 20));
    let found = examine(&well(&bare, &used));
    assert_eq!(kinds(&found), [Kind::KubeletReservesLess]);
    assert_eq!(
        found.findings[0].what,
        "the kubelet keeps 0 CPU and 100 MiB of memory from pods, and static pods ask for 1.5 CPU and 2 GiB of memory; \
         the reserve is 4 CPU and 8 GiB of memory"
    );
    let yaml = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                systemReserved: {cpu: 2500m, memory: 6080Mi}\n";
    assert_eq!(found.patches[0].yaml, yaml);
    assert_eq!(found.patches[0].file, "the kubelet's configuration, /var/lib/kubelet/config.yaml");
    let unseen = examine(&Facts { kubelet: Err("it cannot be read".into()), ..well(&bare, &used) });
    assert_eq!(unseen.unseen, ["the kubelet's thresholds for evictions: it cannot be read"]);
    assert!(unseen.patches[0].yaml.contains("# more than there is now"));
    // With that the node keeps 2.5 CPU, 6080 MiB and what it evicts at.
    let (pods, used) = control_plane();
    let mended = cluster(pods, amounts(2500, (6080 + 100) << 20));
    assert_eq!(kinds(&examine(&well(&mended, &used))), []);
}

#[test]
fn pods_without_a_common_limit_are_told() {
    let (pods, used) = control_plane();
    let cluster = cluster(pods, amounts(5000, 9 * GIB));
    let off = Kubelet { limits_pods: false, ..kubelet() };
    let found = examine(&Facts { pods_limit: PodsLimit::Nothing, kubelet: Ok(off), ..well(&cluster, &used) });
    assert_eq!(kinds(&found), [Kind::PodsUnlimited]);
    assert!(found.patches[0].yaml.ends_with("enforceNodeAllocatable: [pods]\n"));
}

#[test]
fn a_pool_on_the_disk_of_etcd_or_of_the_root_is_told() {
    let (pods, used) = control_plane();
    let cluster = cluster(pods, amounts(5000, 9 * GIB));
    let with = |pool: Place| {
        let places = Places { pools: vec![pool], ..places() };
        examine(&Facts { places: Ok(places), ..well(&cluster, &used) })
    };
    // Another partition of the same disk; a volume over two.
    let found = with(place("data", "/var/mnt/data", "253:0", &["nvme0n1", "sda"]));
    assert_eq!(kinds(&found), [Kind::PoolOnEtcdDisk]);
    assert_eq!(found.findings[0].what, "pool data (/var/mnt/data) shares nvme0n1 with etcd's data (/var/lib/etcd)");
    let found = with(place("data", "/var/mnt/data", "259:2", &["nvme0n1"]));
    assert_eq!(kinds(&found), [Kind::PoolOnEtcdDisk, Kind::PoolOnRoot]);
    assert!(found.findings.iter().all(|finding| finding.severity == Severity::Warning));
    assert!(with(place("data", "/var/mnt/data", "", &[])).findings.is_empty(), "what is not known is not told");
}

#[test]
fn without_kubernetes_disks_alone_are_looked_at() {
    let cluster = Cluster::default();
    let mut places = places();
    places.pools[0].device = "259:2".into();
    let used = BTreeMap::new();
    let facts =
        Facts { places: Ok(places), kubelet: Err("none".into()), reserve: Amounts::default(), ..well(&cluster, &used) };
    let found = examine(&facts);
    assert_eq!(kinds(&found), [Kind::PoolOnEtcdDisk, Kind::PoolOnRoot]);
    assert_eq!(found.unseen.len(), 1);
    assert!(found.unseen[0].starts_with("there is no Kubernetes here"));
}
