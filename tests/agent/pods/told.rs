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
    let has = |words: &str| notes().iter().filter(|note| note.contains(words)).count();
    let change = |change: fn(&mut Value)| world.api.change("nodes", "", NODE, change);
    change(|node| node["spec"]["unschedulable"] = json!(true));
    world.shut_by(v1::reason::Code::NodeCordoned).await;
    wait::until(LIMIT, "the cordon is told", || has("cordoned") == 1);
    // Whatever else turns it on a busy machine: what ends has begun, and nothing is said of the start.
    let ends = || notes().iter().filter(|note| *note == "builds start again").count();
    let ended = ends();
    assert!(notes().len() > 2 * ended, "{:?}", notes());
    change(|node| node["spec"]["unschedulable"] = json!(false));
    world.open().await;
    wait::until(LIMIT, "its end is told", || ends() > ended);
    change(|node| node["status"]["conditions"][0]["status"] = json!("Unknown"));
    world.shut_by(v1::reason::Code::NodeNotReady).await;
    wait::until(LIMIT, "the other one is told", || has("not ready") == 1);
    assert_eq!(has("cordoned"), 1, "{:?}", notes());
}

/// The newest version would be read from the disk of etcd, with all pods of the cluster, for each node.
#[tokio::test(flavor = "multi_thread")]
async fn lists_take_what_the_api_server_has_at_hand() {
    let world = World::new("");
    world.open().await;
    assert_eq!(world.api.lists(), ["0", "0"], "its pods and its node");
}
