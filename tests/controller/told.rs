//! Why a pod waits is told, however many others do.

use super::*;
use crate::support::loopdev::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_behind_many_of_other_repositories_is_told_as_well() {
    needs_root!();
    let world = World::start();
    let controller = world.leader("one");
    let huge = |name: &str| {
        world.gated_like(name, |pod| {
            let attributes = &mut pod["spec"]["volumes"][0]["csi"]["volumeAttributes"];
            attributes["repository"] = json!(format!("https://git.example.org/{name}"));
            pod["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!("900Gi");
        });
    };
    let many: Vec<String> = (0..80).map(|number| format!("huge-{number:02}")).collect();
    many.iter().for_each(|name| huge(name));
    many.iter().for_each(|name| drop(world.wait_told(name, "NeverFits")));
    // All of them may be told anew by now: whoever was told the same is not in the way.
    huge("late");
    world.wait_told("late", "NeverFits");
    assert!(controller.leads());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_says_too_much_of_where_it_may_go_is_told_so() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    let values: Vec<String> = (0..600).map(|number| format!("zone-{number}")).collect();
    let term = json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": values}]});
    let affinity =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
    world.gated_as("build", &json!({"affinity": affinity}));
    let why = world.wait_told("build", "BuildInvalid");
    assert!(why.contains("have 602 parts: write at most 512"), "{why}");
    assert!(world.is_gated("build"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_not_be_written_on_is_told_so() {
    needs_root!();
    let world = World::start();
    let _controller = world.leader("one");
    world.api.forbid(&[("PATCH", "pods")]);
    world.gated("build");
    world.gated_like("skipped", |pod| pod["metadata"]["annotations"] = json!({"stoker.build/admission": "skip"}));
    for name in ["build", "skipped"] {
        let told = world.wait_told(name, "NotWritten");
        assert!(told.contains("`patch` on pods"), "{told}");
        assert!(world.is_gated(name));
    }
    assert!(world.live().await.is_empty());
    world.api.forbid(&[]);
    world.wait_placed("build");
    wait::until(LIMIT, "it goes", || !world.is_gated("skipped"));
    assert_eq!(world.live().await.len(), 1);
}
