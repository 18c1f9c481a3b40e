//! What becomes of a lease when its pod ends, by itself or by others.

use super::*;

/// What its status says of its end is what the lease says.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ends_ends_its_lease_as_it_did() {
    let world = World::new("");
    world.open().await;
    for (name, phase, reason, code, outcome) in [
        ("well", "Succeeded", "Completed", 0, v1::Outcome::Succeeded),
        ("badly", "Failed", "Error", 3, v1::Outcome::Failed),
        ("killed", "Failed", "OOMKilled", 137, v1::Outcome::OutOfMemoryLimit),
    ] {
        let (lease, group) = world.running(name, v1::Rebind::Never).await;
        made!(group).end();
        world.api.change("pods", "builds", name, |pod| ended(pod, phase, reason, code));
        let over = world.ended(&lease).await;
        assert_eq!((over.state(), over.outcome()), (v1::LeaseState::Released, outcome), "{name}");
        assert_eq!(over.exit_code, Some(code), "{name}");
    }
    let (lease, group) = world.running("sent-away", v1::Rebind::Never).await;
    made!(group).end();
    world.api.change("pods", "builds", "sent-away", |pod| {
        pod["status"] = json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."});
    });
    assert_eq!(world.ended(&lease).await.outcome(), v1::Outcome::Evicted);
}

/// A kubelet tells how a pod's processes ended before the pod goes, also where they ended because it was deleted: they get
/// SIGTERM, and some answer it with success.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_has_not_ended_by_itself() {
    let world = World::new("");
    world.open().await;
    for (name, phase, code, condition, outcome) in [
        ("gives-up", "Succeeded", 0, "Ready", v1::Outcome::Lost),
        ("traps", "Failed", 143, "Ready", v1::Outcome::Lost),
        ("killed", "Failed", 137, "Ready", v1::Outcome::Lost),
        ("drained", "Failed", 137, "DisruptionTarget", v1::Outcome::Evicted),
        ("drained-well", "Succeeded", 0, "DisruptionTarget", v1::Outcome::Evicted),
    ] {
        let (lease, group) = world.running(name, v1::Rebind::Never).await;
        world.api.change("pods", "builds", name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        });
        made!(group).end();
        world.api.change("pods", "builds", name, |pod| {
            ended(pod, phase, "Error", code);
            pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = json!("2026-01-01T00:00:00Z");
            pod["status"]["conditions"] = json!([{"type": condition, "status": "True"}]);
        });
        let over = world.ended(&lease).await;
        assert_eq!(over.outcome(), outcome, "{name}");
        world.api.delete("pods", "builds", name);
    }

    // It had ended when somebody cleared it away.
    let (lease, group) = world.running("done", v1::Rebind::Never).await;
    let group = made!(group);
    world.api.change("pods", "builds", "done", |pod| {
        ended(pod, "Succeeded", "Completed", 0);
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = json!("2025-12-31T23:59:59Z");
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    });
    group.end();
    assert_eq!(world.ended(&lease).await.outcome(), v1::Outcome::Succeeded);
}
