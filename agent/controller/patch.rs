//! What is written on a pod that may go.

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};
use stoker_core::cluster::LEASE;
use stoker_proto::v1;

use super::GATE;

/// The gates of others.
pub(super) fn other_gates(pod: &core::Pod) -> Value {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
    let others: Vec<Value> =
        gates.into_iter().flatten().filter(|gate| gate.name != GATE).map(|gate| json!({"name": gate.name})).collect();
    json!(others)
}

/// The pod without the gate, with its lease, and on the lease's node in each of the terms that it has. The node is demanded by
/// its name, as the controller of daemon sets does: labels are what people make of them.
pub(super) fn freed(pod: &core::Pod, lease: &v1::Lease, node: &str) -> Value {
    let mut patch = json!({
        "metadata": {"resourceVersion": pod.metadata.resource_version, "annotations": {LEASE: lease.id}},
    });
    let spec = pod.spec.as_ref();
    let gated = spec.is_some_and(|spec| spec.scheduling_gates.iter().flatten().any(|gate| gate.name == GATE));
    // Without the gate the API server lets nobody change where it may go: that stands from the first time.
    if !gated {
        return patch;
    }
    let here = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let required = spec.and_then(|spec| spec.affinity.as_ref()).and_then(|affinity| affinity.node_affinity.as_ref());
    let required = required.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    let mut terms: Vec<Value> =
        required.iter().flat_map(|required| &required.node_selector_terms).map(|term| json!(term)).collect();
    for term in &mut terms {
        let is_met = ["matchExpressions", "matchFields"]
            .iter()
            .any(|part| term[*part].as_array().is_some_and(|all| !all.is_empty()));
        // One without any requirement is met nowhere: with one it would be met there.
        if is_met {
            let mut all = term["matchFields"].as_array().cloned().unwrap_or_default();
            all.push(here.clone());
            term["matchFields"] = json!(all);
        }
    }
    if terms.is_empty() {
        terms.push(json!({"matchFields": [here]}));
    }
    patch["spec"] = json!({
        "schedulingGates": other_gates(pod),
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}},
    });
    patch
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_demanded_beside_all_that_was() {
        let zone = json!({"key": "zone", "operator": "In", "values": ["a"]});
        let field = json!({"key": "metadata.name", "operator": "In", "values": ["n"]});
        let of = |terms: Value| -> core::Pod {
            let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
            let spec = json!({"containers": [], "affinity": {"nodeAffinity": required},
                "schedulingGates": [{"name": GATE}, {"name": "another"}]});
            serde_json::from_value(json!({"metadata": {"resourceVersion": "7"}, "spec": spec})).unwrap()
        };
        let lease = v1::Lease { id: "l1".into(), ..v1::Lease::default() };
        let here = json!({"key": "metadata.name", "operator": "In", "values": ["ghost"]});
        let terms = |patch: &Value| {
            let affinity = &patch["spec"]["affinity"]["nodeAffinity"];
            affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"].clone()
        };
        let none = freed(&of(json!([])), &lease, "ghost");
        assert_eq!(terms(&none), json!([{"matchFields": [here]}]));
        assert_eq!(none["spec"]["schedulingGates"], json!([{"name": "another"}]));
        assert_eq!(none["metadata"], json!({"resourceVersion": "7", "annotations": {LEASE: "l1"}}));
        let three = freed(&of(json!([{"matchExpressions": [zone]}, {"matchFields": [field]}, {}])), &lease, "ghost");
        let expected = json!([
            {"matchExpressions": [zone], "matchFields": [here]},
            {"matchFields": [field, here]},
            {},
        ]);
        assert_eq!(terms(&three), expected);
    }
}
