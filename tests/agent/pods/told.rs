//! What the cluster is told and asked, in so many words.

use super::*;

/// Two things with one reason are two events: the library that writes them would tell the first one's words again.
#[tokio::test(flavor = "multi_thread")]
async fn each_turn_of_the_gate_is_told_in_its_own_words() {
    let world = World::new("");
    world.open().await;
    let notes = || -> Vec<String> {
        let events = world.api.all("events");
        events.iter().map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let change = |change: fn(&mut Value)| world.api.change("nodes", "", NODE, change);
    change(|node| node["spec"]["unschedulable"] = json!(true));
    world.shut_by(v1::reason::Code::NodeCordoned).await;
    wait::until(LIMIT, "the cordon is told", || notes().iter().any(|note| note.contains("cordoned")));
    assert_eq!(notes().len(), 1, "nothing was said of the start: {:?}", notes());
    change(|node| node["spec"]["unschedulable"] = json!(false));
    world.open().await;
    wait::until(LIMIT, "its end is told", || notes().len() == 2);
    change(|node| node["status"]["conditions"][0]["status"] = json!("Unknown"));
    world.shut_by(v1::reason::Code::NodeNotReady).await;
    wait::until(LIMIT, "the other one is told", || notes().len() == 3);
    assert!(notes().iter().any(|note| note.contains("not ready")), "{:?}", notes());
}

/// The newest version would be read from the disk of etcd, with all pods of the cluster, for each node.
#[tokio::test(flavor = "multi_thread")]
async fn lists_take_what_the_api_server_has_at_hand() {
    let world = World::new("");
    world.open().await;
    assert_eq!(world.api.lists(), ["0", "0"], "its pods and its node");
}
