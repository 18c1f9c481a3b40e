//! What a cluster with such a farm has in its API server.

use std::sync::Arc;

use serde_json::{Value, json};

use super::agent::Simulated;

/// The gate under which pods wait, and what is written on them.
pub(crate) const GATE: &str = "stoker.build/admission";
pub(crate) const LEASE: &str = "stoker.build/lease";
/// Endpoints of one slice, as the cluster's own controller makes them.
const SLICE: usize = 100;
pub(crate) const NAMESPACE: &str = "stoker";
pub(crate) const SERVICE: &str = "stoker-agents";

/// What one pod asks for.
#[derive(Debug, Clone)]
pub(crate) struct Asks {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) cpu: u64,
    pub(crate) gib: u64,
    pub(crate) repository: String,
}

/// A pod that waits under the gate, with a volume that says what it builds. Every other one has words of its own on where
/// it may go, which all nodes fulfil.
pub(crate) fn pod(asks: &Asks, number: usize) -> Value {
    let amounts = json!({"cpu": asks.cpu.to_string(), "memory": format!("{}Gi", asks.gib)});
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": asks.name, "namespace": asks.namespace, "creationTimestamp": jiff::Timestamp::now().to_string(),
                     "labels": {"app": "build"}},
        "spec": {
            "schedulingGates": [{"name": GATE}], "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "build", "resources": {"requests": amounts, "limits": amounts}}],
            "volumes": [{"name": "src", "csi": {"driver": "stoker.build", "volumeAttributes": {
                "repository": asks.repository, "ref": "branch:main", "disk": "1GiB"}}}],
        },
        "status": {"phase": "Pending"},
    });
    if number.is_multiple_of(2) {
        pod["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]}]}}});
    }
    pod
}

/// All agents behind one headless Service.
pub(crate) fn slices(agents: &[Arc<Simulated>]) -> Vec<Value> {
    let slice = |(number, agents): (usize, &[Arc<Simulated>])| {
        let endpoint = |agent: &Arc<Simulated>| {
            json!({"addresses": [agent.address.ip().to_string()], "nodeName": agent.name,
                   "conditions": {"ready": true, "serving": true, "terminating": false}})
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{SERVICE}-{number:04}"), "namespace": NAMESPACE,
                         "labels": {"kubernetes.io/service-name": SERVICE}},
            "endpoints": agents.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "grpc", "port": agents[0].address.port(), "protocol": "TCP"}],
        })
    };
    agents.chunks(SLICE).enumerate().map(slice).collect()
}

pub(crate) fn is_gated(pod: &Value) -> bool {
    let gates = pod["spec"]["schedulingGates"].as_array();
    gates.is_some_and(|gates| gates.iter().any(|gate| gate["name"] == GATE))
}

/// The node that every term of a pod's affinity names.
pub(crate) fn node_of(pod: &Value) -> Option<String> {
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let of_term = |term: &Value| -> Option<String> {
        let named = |one: &&Value| one["key"] == "metadata.name" && one["operator"] == "In";
        let found = term["matchFields"].as_array()?.iter().find(named)?;
        let [value] = found["values"].as_array()?.as_slice() else { return None };
        value.as_str().map(str::to_owned)
    };
    let all: Option<Vec<_>> = required["nodeSelectorTerms"].as_array()?.iter().map(of_term).collect();
    let all = all?;
    all.first().filter(|first| all.iter().all(|one| one == *first)).cloned()
}

pub(crate) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn lease_of(pod: &Value) -> &str {
    pod["metadata"]["annotations"][LEASE].as_str().unwrap_or_default()
}
