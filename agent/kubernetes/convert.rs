//! Objects of the API as the core sees them: what does not matter here is dropped at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stoker_core::cluster::{self, Container, DRIVER, Ended, LEASE, PodLife, Resources, RunAs, StaticPod, Taint, user};
use stoker_core::quantity::Amounts;
use stoker_core::sizing::PodEnd;

use super::quantity::{millis, ones};

/// A name in these objects is at most so long; an API server gives no longer ones.
const NAME_BYTES_MAX: usize = 253;
/// A longer path is none (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4095;
/// Containers of a static pod that are remembered.
const CONTAINERS_MAX: usize = 16;
/// Volumes of a pod that are remembered.
const VOLUMES_MAX: usize = 16;

type Amount = BTreeMap<String, Quantity>;

fn amounts(list: Option<&Amount>) -> Amounts {
    let part = |name: &str, read: fn(&Quantity) -> Option<u64>| list.and_then(|list| list.get(name)).and_then(read);
    Amounts {
        cpu_millis: part("cpu", millis).unwrap_or(0),
        memory_bytes: part("memory", ones).unwrap_or(0),
        ..Amounts::default()
    }
}

fn requests(resources: Option<&core::ResourceRequirements>) -> Amounts {
    amounts(resources.and_then(|resources| resources.requests.as_ref()))
}

fn containers(spec: &[core::Container], status: Option<&Vec<core::ContainerStatus>>) -> Vec<Container> {
    let allocated = |name: &str| {
        let status = status.into_iter().flatten().find(|status| status.name == name)?;
        let has = status.allocated_resources.as_ref();
        Some(amounts(has).max(requests(status.resources.as_ref())))
    };
    let one = |container: &core::Container| Container {
        requests: requests(container.resources.as_ref()),
        allocated: allocated(&container.name).unwrap_or_default(),
        sidecar: container.restart_policy.as_deref() == Some("Always"),
    };
    spec.iter().map(one).collect()
}

/// What a pod asks of the scheduler.
pub(crate) fn effective(spec: &core::PodSpec, status: Option<&core::PodStatus>) -> Amounts {
    let of_init = status.and_then(|status| status.init_container_statuses.as_ref());
    let of_rest = status.and_then(|status| status.container_statuses.as_ref());
    let init = containers(spec.init_containers.as_deref().unwrap_or_default(), of_init);
    let rest = containers(&spec.containers, of_rest);
    Resources {
        init: &init,
        containers: &rest,
        pod: requests(spec.resources.as_ref()),
        overhead: amounts(spec.overhead.as_ref()),
    }
    .effective()
}

/// When its deletion was asked for: what it is to be gone by, less the time that it was given.
fn deletion(meta: &ObjectMeta) -> Option<Timestamp> {
    let by = meta.deletion_timestamp.as_ref()?.0;
    by.checked_sub(SignedDuration::from_secs(meta.deletion_grace_period_seconds.unwrap_or(0))).ok()
}

fn ended(meta: &ObjectMeta, status: &core::PodStatus, succeeded: bool) -> Ended {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let terminated: Vec<_> =
        lists.into_iter().flatten().flatten().filter_map(|status| status.state.as_ref()?.terminated.as_ref()).collect();
    let finished = terminated.iter().filter_map(|end| end.finished_at.as_ref()).map(|at| at.0).max();
    let said = |reason: &str| terminated.iter().any(|end| end.reason.as_deref() == Some(reason));
    let end = match status.reason.as_deref() {
        Some("Evicted") if status.message.as_deref().is_some_and(|message| message.contains("memory")) => {
            PodEnd::EvictedForMemory
        }
        Some("Evicted" | "Preempting" | "NodeShutdown" | "Terminated") => PodEnd::Evicted,
        _ if said("OOMKilled") => PodEnd::OomKilled,
        _ => match deletion(meta) {
            Some(asked) if finished.is_none_or(|at| at >= asked) => match is_disrupted(status) {
                true => PodEnd::Evicted,
                false => PodEnd::Deleted,
            },
            _ => PodEnd::Other,
        },
    };
    let succeeded = succeeded && matches!(end, PodEnd::Other | PodEnd::OomKilled);
    let exit_code = terminated.iter().map(|end| end.exit_code).find(|code| *code != 0);
    Ended { succeeded, exit_code: if succeeded { Some(0) } else { exit_code }, end }
}

/// The cluster ends it for its own sake: an eviction that somebody asked for, a drained node, a pod of a higher priority.
fn is_disrupted(status: &core::PodStatus) -> bool {
    let conditions = status.conditions.iter().flatten();
    conditions.into_iter().any(|found| found.type_ == "DisruptionTarget" && found.status == "True")
}

fn life(meta: &ObjectMeta, status: Option<&core::PodStatus>) -> PodLife {
    let Some(status) = status else { return PodLife::Waiting };
    match status.phase.as_deref() {
        Some("Running") => PodLife::Running,
        Some("Succeeded") => PodLife::Ended(ended(meta, status, true)),
        Some("Failed") => PodLife::Ended(ended(meta, status, false)),
        _ => PodLife::Waiting,
    }
}

/// A pod of the node's own. Of very many containers only the first are kept.
fn own(spec: &core::PodSpec, hash: &str) -> StaticPod {
    let named = spec.containers.iter().take(CONTAINERS_MAX).map(|container| {
        let name = container.name.get(..NAME_BYTES_MAX).unwrap_or(&container.name);
        (name.to_owned(), requests(container.resources.as_ref()))
    });
    let etcd = spec.containers.iter().find(|container| container.name == "etcd");
    StaticPod {
        hash: hash.get(..NAME_BYTES_MAX).unwrap_or(hash).to_owned(),
        containers: named.collect(),
        etcd_data: etcd.and_then(|etcd| data_of(spec, etcd)).unwrap_or_default(),
    }
}

/// Where etcd's data is on the node: the path by its arguments or its environment, through the volume that is mounted
/// there. Some have a script for an argument.
fn data_of(spec: &core::PodSpec, etcd: &core::Container) -> Option<String> {
    let written = etcd.command.iter().chain(&etcd.args).flatten();
    let words: Vec<&str> = written.flat_map(|word| word.split_whitespace()).collect();
    let flag = words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix("--data-dir")? {
        "" => words.get(at + 1).copied(),
        value => value.strip_prefix('='),
    });
    let variable = etcd.env.iter().flatten().find(|variable| variable.name == "ETCD_DATA_DIR");
    let inside = Path::new(flag.or_else(|| variable?.value.as_deref()).unwrap_or("/var/lib/etcd"));
    let mounts = etcd.volume_mounts.iter().flatten().filter(|mount| inside.starts_with(&mount.mount_path));
    let mount = mounts.max_by_key(|mount| Path::new(&mount.mount_path).components().count())?;
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name)?;
    let mut path = PathBuf::from(&volume.host_path.as_ref()?.path);
    path.extend(mount.sub_path.as_ref());
    path.extend(inside.strip_prefix(&mount.mount_path).ok().filter(|rest| !rest.as_os_str().is_empty()));
    let path = path.to_str()?.to_owned();
    (path.starts_with('/') && path.len() <= PATH_BYTES_MAX).then_some(path)
}

fn run_as(user: Option<i64>, group: Option<i64>) -> RunAs {
    let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id < u32::MAX);
    RunAs { user: id(user), group: id(group) }
}

/// Whom a pod's volumes belong to, and those of the driver's that belong to others.
fn owners(spec: &core::PodSpec) -> (RunAs, BTreeMap<String, RunAs>) {
    let of_pod = spec.security_context.as_ref();
    let pod = of_pod.map(|set| run_as(set.run_as_user, set.run_as_group)).unwrap_or_default();
    let fs_group = of_pod.and_then(|set| run_as(None, set.fs_group).group);
    let whole = user::owner(pod, fs_group, &[]);
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let of_volume = |name: &str| {
        let mounts =
            |container: &&core::Container| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
        let runs = all().filter(mounts).map(|container| {
            let set = container.security_context.as_ref();
            set.map(|set| run_as(set.run_as_user, set.run_as_group)).unwrap_or_default()
        });
        user::owner(pod, fs_group, &runs.collect::<Vec<_>>())
    };
    let ours = |volume: &&core::Volume| volume.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER);
    let volumes = spec
        .volumes
        .iter()
        .flatten()
        .filter(ours)
        .take(VOLUMES_MAX)
        .filter(|volume| volume.name.len() <= NAME_BYTES_MAX);
    let volumes = volumes.map(|volume| (volume.name.clone(), of_volume(&volume.name)));
    (whole, volumes.filter(|(_, owner)| *owner != whole).collect())
}

/// Whether one of its volumes is a build's workspace: of the driver's, and of no other kind.
fn builds(spec: &core::PodSpec) -> bool {
    let ours =
        spec.volumes.iter().flatten().filter_map(|volume| volume.csi.as_ref().filter(|csi| csi.driver == DRIVER));
    let mut kinds = ours.map(|csi| csi.volume_attributes.as_ref().and_then(|all| all.get("kind")));
    kinds.any(|kind| kind.is_none_or(|kind| kind == "workspace"))
}

/// Nothing where it has no uid, as no object of an API server is.
pub(super) fn pod(pod: &core::Pod) -> Option<cluster::Pod> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let uid = meta.uid.clone().filter(|uid| !uid.is_empty() && uid.len() <= NAME_BYTES_MAX)?;
    let annotations = meta.annotations.as_ref();
    let annotation = |name: &str| annotations.and_then(|all| all.get(name));
    let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let lease = annotation(LEASE).filter(|lease| lease.len() <= NAME_BYTES_MAX);
    let (owner, volumes) = owners(spec);
    Some(cluster::Pod {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid,
        service_account: spec.service_account_name.clone().unwrap_or_default(),
        controller: controller.map(|owner| owner.uid.clone()).unwrap_or_default(),
        lease: lease.cloned().unwrap_or_default(),
        life: life(meta, pod.status.as_ref()),
        ending: meta.deletion_timestamp.is_some(),
        // What the kubelet shows of a pod of its own has the hash of its file; see the labels and annotations reference.
        own: annotation("kubernetes.io/config.mirror").map(|hash| Arc::new(own(spec, hash))),
        requests: effective(spec, pod.status.as_ref()),
        owner,
        volumes,
        builds: builds(spec),
        own_users: spec.host_users == Some(false),
    })
}

fn taint(taint: &core::Taint) -> Taint {
    let value = taint.value.clone().unwrap_or_default();
    Taint { key: taint.key.clone(), value, effect: taint.effect.clone() }
}

pub(super) fn node(node: &core::Node) -> cluster::Node {
    let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
    let allocatable = status.and_then(|status| status.allocatable.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|found| found.type_ == "Ready" && found.status == "True");
    let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    cluster::Node {
        uid: node.metadata.uid.clone().unwrap_or_default(),
        capacity: amounts(status.and_then(|status| status.capacity.as_ref())),
        allocatable: amounts(allocatable),
        pods_max: allocatable.and_then(|all| all.get("pods")).and_then(ones).unwrap_or(0),
        cordoned: spec.is_some_and(|spec| spec.unschedulable == Some(true)),
        ready,
        taints: taints.map(taint).collect(),
        labels: Arc::new(node.metadata.labels.clone().unwrap_or_default()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mirror(container: Value, volumes: Value) -> cluster::Pod {
        let object = json!({
            "metadata": {"name": "etcd-ghost", "uid": "of-the-mirror", "annotations": {"kubernetes.io/config.mirror": "a1"}},
            "spec": {"containers": [{"name": "sidecar"}, container], "volumes": volumes},
        });
        pod(&serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn a_mirror_is_a_static_pod_by_the_hash_of_its_file() {
        let container = json!({"name": "api", "resources": {"requests": {"cpu": "125m", "memory": "1Gi"}}});
        let own = mirror(container, json!([])).own.unwrap();
        let asks = Amounts { cpu_millis: 125, memory_bytes: 1 << 30, ..Amounts::default() };
        let containers = vec![("sidecar".to_owned(), Amounts::default()), ("api".to_owned(), asks)];
        assert_eq!(*own, StaticPod { hash: "a1".to_owned(), containers, etcd_data: String::new() });
    }

    #[test]
    fn a_volume_belongs_to_who_mounts_it() {
        let volume = |name: &str, driver: &str| json!({"name": name, "csi": {"driver": driver}});
        let container = |user: Value, mounts: &[&str]| {
            let mounts: Vec<Value> = mounts.iter().map(|name| json!({"name": name, "mountPath": "/x"})).collect();
            json!({"name": "c", "volumeMounts": mounts, "securityContext": {"runAsUser": user}})
        };
        let object = json!({
            "metadata": {"name": "build", "uid": "u"},
            "spec": {
                "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
                "hostUsers": false,
                "initContainers": [container(json!(5), &["both"])],
                "containers": [container(json!(null), &["pods", "both"]), container(json!(7), &["own", "others"])],
                "volumes": [volume("pods", "stoker.build"), volume("both", "stoker.build"), volume("own", "stoker.build"),
                            volume("others", "other.driver"), {"name": "empty", "emptyDir": {}}],
            },
        });
        let found = pod(&serde_json::from_value(object).unwrap()).unwrap();
        let owner = |user| RunAs { user: Some(user), group: Some(2000) };
        assert_eq!((found.owner, found.own_users), (owner(1000), true));
        assert_eq!(found.volumes, BTreeMap::from([("own".to_owned(), owner(7))]));
        assert_eq!((found.owner_of("own"), found.owner_of("both")), (owner(7), owner(1000)));
        let bare = json!({"metadata": {"uid": "u"}, "spec": {"containers": [], "securityContext": {"runAsUser": -1}}});
        let bare = pod(&serde_json::from_value(bare).unwrap()).unwrap();
        assert_eq!((bare.owner, bare.own_users), (RunAs::default(), false));
    }

    #[test]
    fn the_data_of_etcd_is_where_its_volume_is() {
        let volume = |path: &str| json!([{"name": "data", "hostPath": {"path": path}}]);
        let mounted = |path: &str| json!([{"name": "data", "mountPath": path}]);
        let script = "exec etcd --logger=zap --data-dir=/var/lib/etcd --listen=x";
        for (what, container, host, expected) in [
            ("kubeadm", json!({"command": ["etcd", "--data-dir=/var/lib/etcd"]}), "/var/lib/etcd", "/var/lib/etcd"),
            ("minikube", json!({"command": ["etcd"], "args": ["--data-dir", "/var/lib/etcd/a"]}), "/m", "/m/a"),
            ("OpenShift", json!({"command": ["/bin/sh", "-c", script]}), "/var/lib/etcd", "/var/lib/etcd"),
            ("by variable", json!({"env": [{"name": "ETCD_DATA_DIR", "value": "/var/lib/etcd/x"}]}), "/h", "/h/x"),
            ("elsewhere", json!({"command": ["etcd", "--data-dir=/nowhere"]}), "/var/lib/etcd", ""),
            ("no path", json!({}), "relative", ""),
        ] {
            let mut container = container;
            container["name"] = json!("etcd");
            container["volumeMounts"] = mounted("/var/lib/etcd");
            assert_eq!(mirror(container, volume(host)).own.unwrap().etcd_data, expected, "{what}");
        }
    }
}
