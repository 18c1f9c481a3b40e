//! What a controller looks at, and what not.

use super::*;
use crate::support::loopdev::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_namespaces_that_are_not_named_are_left_alone() {
    needs_root!();
    let world = World::start();
    let controller = world.controller_with("one", &["--namespaces", "builds,more"]);
    let of = |name: &str, namespace: &'static str| {
        world.gated_like(name, |pod| pod["metadata"]["namespace"] = json!(namespace))
    };
    of("before", "others");
    controller.wait_leads();
    of("after", "others");
    of("too", "more");
    world.gated("build");
    world.wait_placed("build");
    let gates = |name, namespace| world.api.get("pods", namespace, name).unwrap()["spec"]["schedulingGates"].clone();
    wait::until(LIMIT, "it is placed too", || gates("too", "more") == json!([]));
    for name in ["before", "after"] {
        let pod = world.api.get("pods", "others", name).unwrap();
        assert_eq!(gates(name, "others"), json!([{"name": GATE}]));
        assert_eq!(pod["metadata"]["annotations"], Value::Null);
        assert!(world.reasons_of(pod["metadata"]["uid"].as_str().unwrap()).is_empty());
    }
    let requests = world.api.requests();
    let of_others = requests.iter().find(|(_, path)| path.starts_with("/api/v1/namespaces/others"));
    assert_eq!(of_others, None, "it needs no right there");
}

/// Others gates are others' business.
#[tokio::test(flavor = "multi_thread")]
async fn pods_without_the_gate_are_left_alone() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    world.gated_as("another", &json!({"schedulingGates": [{"name": "another"}]}));
    world.gated_as("free", &json!({"schedulingGates": []}));
    let as_they_are = ["another", "free"].map(|name| world.pod(name));
    world.gated("build");
    world.wait_placed("build");
    assert_eq!(["another", "free"].map(|name| world.pod(name)), as_they_are);
    assert!(["another", "free"].iter().all(|name| world.reasons(name).is_empty()));
    assert_eq!(world.live().await.len(), 1);
}

/// A copy that does not lead costs neither the API server nor the agents anything.
#[tokio::test(flavor = "multi_thread")]
async fn who_stands_by_keeps_no_stream_and_no_watch() {
    needs_root!();
    let world = World::start();
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let spec = json!({"holderIdentity": "another", "leaseDurationSeconds": 15, "renewTime": now, "acquireTime": now});
    world.api.put("leases", json!({"metadata": {"name": "stoker-controller", "namespace": "stoker"}, "spec": spec}));
    let begun = world.api.requests().len();
    let controller = world.controller("one");
    wait::until(LIMIT, "it stands by", || controller.stands_by());
    world.gated("build");
    let asked = |what: &str| world.api.requests()[begun..].iter().filter(|(_, path)| path.contains(what)).count();
    wait::until(LIMIT, "it asked again who leads", || asked("/leases/stoker-controller") > 3);
    assert_eq!(asked("endpointslices"), 0, "nor, so, an agent");
    assert!(world.is_gated("build"));
    // Nobody writes the other's hold any more: it leads, and looks.
    controller.wait_leads();
    world.wait_placed("build");
    assert!(asked("endpointslices") > 0);
}
