//! The node held against what is kept for it, for `stoker doctor`: facts from the rooms and from the host.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stoker_core::cluster::Cluster;
use stoker_core::examination::places::{Places, Watched};
use stoker_core::examination::{
    Examination, Facts, Finding, Kind, Kubelet, Place, Severity, etcd_data, examine as decide,
};
use stoker_core::pressure::DiskReading;
use stoker_core::quantity::Amounts;
use stoker_proto::v1;
use tonic::Status;

use super::Rooms;
use crate::kubernetes;
use crate::node::State;
use crate::node::host::{self, Mount, Mounts};

/// The host's files answer sooner, or a disk is gone.
const WITHIN: Duration = Duration::from_secs(10);
/// Where etcd, or what stands for it, keeps its data where no static pod says: kubeadm and OpenShift, k3s, RKE2, MicroShift,
/// k0s, MicroK8s.
const ETCD: [&str; 6] = [
    "/var/lib/etcd",
    "/var/lib/rancher/k3s/server/db",
    "/var/lib/rancher/rke2/server/db",
    "/var/lib/microshift/etcd",
    "/var/lib/k0s/etcd",
    "/var/snap/microk8s/current/var/kubernetes/backend",
];
/// Where container runtimes keep images.
const IMAGES: [&str; 5] = [
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/rancher/k3s/agent/containerd",
    "/var/lib/rancher/rke2/agent/containerd",
];

pub(super) async fn examine(rooms: &Rooms) -> Result<v1::ExamineResponse, Status> {
    let looker = rooms.clone();
    let looked = tokio::task::spawn_blocking(move || looker.examination());
    match tokio::time::timeout(WITHIN, looked).await {
        Ok(Ok(found)) => Ok(message(found)),
        Ok(Err(error)) => Err(Status::internal(format!("the look at the node ended early: {error}"))),
        Err(_) => Err(Status::unavailable(format!(
            "files of the host did not answer within {} s: is a disk gone?",
            WITHIN.as_secs()
        ))),
    }
}

impl Rooms {
    /// Blocks for some files of the host.
    fn examination(&self) -> Examination {
        let config = Arc::clone(&self.configured.borrow());
        let (cluster, look, pressure) = (self.kubernetes.view(), self.lease_meter.view(), self.pressure.view());
        let machine = &self.identity.machine;
        let machine = Amounts {
            cpu_millis: machine.cpu_millis,
            memory_bytes: pressure.readings.memory.map_or(machine.memory_bytes, |memory| memory.total_bytes),
            ..Amounts::default()
        };
        let kubelet = kubernetes::kubelet(&config.node.host_root);
        let places = self.places(&config.node.host_root, &cluster, kubelet.as_ref().ok());
        decide(&Facts {
            cluster: &cluster,
            node_name: &self.identity.name,
            machine,
            reserve: config.node.reserve,
            system: look.others.map(|others| Amounts {
                cpu_millis: others.cpu_millis.unwrap_or(0),
                memory_bytes: others.memory_bytes,
                ..Amounts::default()
            }),
            static_pods: &look.own_pods,
            pods_limit: look.pods_limit,
            memory_floor: config.pressure.memory_floor.of(machine.memory_bytes),
            memory_narrow: config.pressure.memory_narrow.of(machine.memory_bytes),
            kubelet,
            places,
        })
    }

    fn places(&self, host_root: &Path, cluster: &Cluster, kubelet: Option<&Kubelet>) -> Result<Places, String> {
        let mounts = Mounts::read(host_root)
            .map_err(|error| format!("{}/proc/1/mountinfo cannot be read: {error}", host_root.display()))?;
        let place = |name: &str, path: &Path| place(host_root, &mounts, name, path);
        let root = place("", Path::new("/")).ok_or("the host's mount table has no root")?;
        let pools = self.pools.view();
        let etcd = match etcd_data(cluster) {
            Some(told) => Ok(place("", Path::new(told)).into_iter().collect()),
            None => usual(host_root).map(|paths| paths.iter().filter_map(|path| place("", Path::new(path))).collect()),
        };
        Ok(Places {
            root,
            // One that is not mounted is on no disk, though its path is on the root's.
            pools: pools
                .iter()
                .filter(|pool| pool.state == State::Ready)
                .filter_map(|pool| place(&pool.name, &pool.path))
                .collect(),
            etcd,
            watched: self.watched(&mounts, kubelet),
        })
    }

    /// The filesystems whose floors the gate goes by, without the pools.
    fn watched(&self, mounts: &Mounts, kubelet: Option<&Kubelet>) -> Vec<Watched> {
        let point = |path: &str| mounts.of(Path::new(path)).map(|mount| mount.point.as_path());
        let root = point("/");
        // Images are on the root filesystem where no runtime has a filesystem of its own.
        let own = IMAGES.into_iter().map(point).find(|place| *place != root);
        let (images, nodefs) = (own.unwrap_or(root), kubelet.map_or(root, |kubelet| point(&kubelet.root)));
        let readings = &self.pressure.view().readings;
        let others = readings.filesystems.iter().map(|reading| (reading.path.as_str(), &reading.disk));
        let known = std::iter::once(("/", &readings.root)).chain(others).filter_map(|(path, reading)| {
            let DiskReading::Known(disk) = reading else { return None };
            Some(Watched {
                path: path.to_owned(),
                total_bytes: disk.total_bytes,
                total_inodes: disk.total_inodes,
                floor_bytes: disk.floor_bytes,
                floor_inodes: disk.floor_inodes,
                nodefs: point(path) == nodefs,
                imagefs: point(path) == images,
            })
        });
        known.collect()
    }
}

/// The usual places of etcd that are there.
fn usual(host_root: &Path) -> Result<Vec<&'static str>, String> {
    let looked: io::Result<Vec<Option<&str>>> =
        ETCD.into_iter().map(|path| host::exists(host_root, path).map(|there| there.then_some(path))).collect();
    looked.map(|found| found.into_iter().flatten().collect()).map_err(|error| {
        format!(
            "no static pod runs it, and the usual places cannot be looked at, for which the profile is `full`: {error}"
        )
    })
}

fn place(host_root: &Path, mounts: &Mounts, name: &str, path: &Path) -> Option<Place> {
    let mount: &Mount = mounts.of(path)?;
    let disks: BTreeSet<String> = host::disks(host_root, mount);
    Some(Place {
        name: name.to_owned(),
        path: path.to_string_lossy().into_owned(),
        mount: mount.point.to_string_lossy().into_owned(),
        device: mount.device.clone(),
        disks,
    })
}

fn message(found: Examination) -> v1::ExamineResponse {
    let patch = |patch: stoker_core::examination::Patch| v1::Patch { file: patch.file, yaml: patch.yaml };
    v1::ExamineResponse {
        findings: found.findings.into_iter().map(finding).collect(),
        patches: found.patches.into_iter().map(patch).collect(),
        unseen: found.unseen,
    }
}

fn finding(found: Finding) -> v1::NodeFinding {
    use v1::node_finding::{Kind as WireKind, Severity as WireSeverity};
    let kind = match found.kind {
        Kind::ReserveBelowRequests => WireKind::ReserveBelowRequests,
        Kind::ReserveBelowUse => WireKind::ReserveBelowUse,
        Kind::StaticPodStarves => WireKind::StaticPodStarves,
        Kind::MemoryFloorBelowEviction => WireKind::MemoryFloorBelowEviction,
        Kind::DiskFloorBelowEviction => WireKind::DiskFloorBelowEviction,
        Kind::KubeletReservesLess => WireKind::KubeletReservesLess,
        Kind::PodsUnlimited => WireKind::PodsUnlimited,
        Kind::PoolOnEtcdDisk => WireKind::PoolOnEtcdDisk,
        Kind::PoolOnRoot => WireKind::PoolOnRoot,
    };
    let severity = match found.severity {
        Severity::Fault => WireSeverity::Fault,
        Severity::Warning => WireSeverity::Warning,
    };
    v1::NodeFinding {
        kind: kind.into(),
        severity: severity.into(),
        subject: found.subject,
        what: found.what,
        why: found.why,
        remedy: found.remedy,
    }
}
