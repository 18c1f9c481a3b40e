//! What the agent may not do in the cluster, for good and for a moment.

use super::*;

const ALL: [(&str, &str); 5] =
    [("GET", "nodes"), ("GET", "pods"), ("PATCH", "leases"), ("POST", "events"), ("PATCH", "nodes")];

/// With fewer rights it works as far as it can, and says what is lost; with more it says nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_fewer_rights_says_what_is_lost() {
    let world = World::new("");
    world.open().await;
    let now = || world.api.get("nodes", "", NODE).unwrap();
    wait::until(LIMIT, "all is written", || condition(&now())["status"] == "False" && mirrors(&now()) == 1);
    world.api.forbid(&ALL);
    world.api.cut_watches();
    world.api.forget_history();
    world.api.put("pods", pod("noise", "", "0", "0"));
    let lost = |now: &v1::Status| {
        let missing = now.alarms.iter().filter(|alarm| alarm.code() == v1::reason::Code::RightMissing);
        missing.map(|alarm| alarm.subject.clone()).collect::<Vec<_>>()
    };
    status_until(&world.agent, "what it may not see is told", |now| {
        ["nodes", "pods", "leases"].iter().all(|what| lost(now).iter().any(|lost| lost == what))
    })
    .await;
    world.open().await;
    let granted = world.granted("without", v1::Rebind::Never).await;
    release(&world.agent, &granted).await.unwrap();
    world.api.forbid(&[]);
    status_until(&world.agent, "what it may again", |now| !lost(now).iter().any(|what| what != "leases")).await;
    world.running("with", v1::Rebind::Never).await;
}

/// An API server that has just begun lets nobody in until it has read all roles.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_refuses_for_a_moment_has_taken_no_right() {
    let world = World::new("");
    world.open().await;
    let (held, group) = world.running("build", v1::Rebind::Never).await;
    let _group = made!(group);
    world.api.change("nodes", "", NODE, |node| node["spec"]["unschedulable"] = json!(true));
    world.shut_by(v1::reason::Code::NodeCordoned).await;
    let written = || world.api.get("leases", "stoker", NODE).unwrap()["spec"]["renewTime"].clone();
    world.api.forbid(&ALL);
    world.api.cut_watches();
    wait::until(LIMIT, "it is refused", || world.agent.log().contains("no heartbeat: the agent may not write it"));
    let now = status_until(&world.agent, "it answers", |_| true).await;
    assert!(codes(&now.gate.unwrap().reasons).contains(&v1::reason::Code::NodeCordoned), "what was known holds");
    let before = written();
    world.api.forbid(&[]);
    let again = Instant::now();
    wait::until(LIMIT, "it beats again", || written() != before);
    assert!(again.elapsed() < Duration::from_secs(15), "{:?}", again.elapsed());
    let well = |now: &v1::Status| !codes(&now.alarms).contains(&v1::reason::Code::RightMissing);
    status_until(&world.agent, "nothing is missing", well).await;
    assert_eq!(lease(&world.agent, &held).await.state(), v1::LeaseState::Bound);
    world.api.put("nodes", node());
    world.open().await;
}
