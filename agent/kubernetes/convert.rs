//! Objects of the API as the core sees them: what does not matter here is dropped at once.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stoker_core::cluster::{self, Container, Ended, LEASE, PodLife, Resources, Taint};
use stoker_core::quantity::Amounts;
use stoker_core::sizing::PodEnd;

use super::quantity::{millis, ones};

/// A name in these objects is at most so long; an API server gives no longer ones.
const NAME_BYTES_MAX: usize = 253;

type Amount = std::collections::BTreeMap<String, Quantity>;

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

fn effective(spec: &core::PodSpec, status: Option<&core::PodStatus>) -> Amounts {
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

fn ended(status: &core::PodStatus, succeeded: bool) -> Ended {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let terminated: Vec<_> =
        lists.into_iter().flatten().flatten().filter_map(|status| status.state.as_ref()?.terminated.as_ref()).collect();
    let said = |reason: &str| terminated.iter().any(|end| end.reason.as_deref() == Some(reason));
    let end = match status.reason.as_deref() {
        Some("Evicted") if status.message.as_deref().is_some_and(|message| message.contains("memory")) => {
            PodEnd::EvictedForMemory
        }
        Some("Evicted" | "Preempting" | "NodeShutdown" | "Terminated") => PodEnd::Evicted,
        _ if said("OOMKilled") => PodEnd::OomKilled,
        _ => PodEnd::Other,
    };
    let exit_code = terminated.iter().map(|end| end.exit_code).find(|code| *code != 0);
    Ended { succeeded, exit_code: if succeeded { Some(0) } else { exit_code }, end }
}

fn life(status: Option<&core::PodStatus>) -> PodLife {
    let Some(status) = status else { return PodLife::Waiting };
    match status.phase.as_deref() {
        Some("Running") => PodLife::Running,
        Some("Succeeded") => PodLife::Ended(ended(status, true)),
        Some("Failed") => PodLife::Ended(ended(status, false)),
        _ => PodLife::Waiting,
    }
}

/// Nothing where it has no uid, as no object of an API server is.
pub(super) fn pod(pod: &core::Pod) -> Option<cluster::Pod> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let uid = meta.uid.clone().filter(|uid| !uid.is_empty() && uid.len() <= NAME_BYTES_MAX)?;
    let annotations = meta.annotations.as_ref();
    let annotation = |name: &str| annotations.and_then(|all| all.get(name));
    let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let lease = annotation(LEASE).filter(|lease| lease.len() <= NAME_BYTES_MAX);
    Some(cluster::Pod {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid,
        service_account: spec.service_account_name.clone().unwrap_or_default(),
        controller: controller.map(|owner| owner.uid.clone()).unwrap_or_default(),
        lease: lease.cloned().unwrap_or_default(),
        life: life(pod.status.as_ref()),
        ending: meta.deletion_timestamp.is_some(),
        // What the kubelet shows of a pod of its own has the hash of its file; see the labels and annotations reference.
        is_static: annotation("kubernetes.io/config.mirror").is_some(),
        requests: effective(spec, pod.status.as_ref()),
    })
}

pub(super) fn node(node: &core::Node) -> cluster::Node {
    let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
    let allocatable = status.and_then(|status| status.allocatable.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|found| found.type_ == "Ready" && found.status == "True");
    let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    cluster::Node {
        uid: node.metadata.uid.clone().unwrap_or_default(),
        allocatable: amounts(allocatable),
        pods_max: allocatable.and_then(|all| all.get("pods")).and_then(ones).unwrap_or(0),
        cordoned: spec.is_some_and(|spec| spec.unschedulable == Some(true)),
        ready,
        taints: taints.map(|taint| Taint { key: taint.key.clone(), effect: taint.effect.clone() }).collect(),
    }
}
