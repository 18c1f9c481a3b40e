//! What the agent asks the cluster: an API server over HTTP that answers for one node.

use std::time::Duration;

use serde_json::json;

use crate::support::api_server::{ApiServer, Health};
use crate::support::stoker::Agent;
use crate::support::wait;

/// An API server that knows the node `ghost`.
fn api_server(health: Health) -> ApiServer {
    let api = ApiServer::start();
    let labels = json!({"example.org/disk": "large"});
    api.put("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost", "labels": labels}}));
    api.set_health(health);
    api
}

const POOLS: &str = "
node: {name: ghost}
pools:
  - {name: plain, path: $ROOT/plain, mount: optional, floor: {bytes: 1MiB, inodes: 0}}
  - name: labelled
    path: $ROOT/labelled
    mount: optional
    floor: {bytes: 1MiB, inodes: 0}
    nodes: {labels: {example.org/disk: large}}
  - name: elsewhere
    path: $ROOT/elsewhere
    mount: optional
    floor: {bytes: 1MiB, inodes: 0}
    nodes: {labels: {example.org/disk: small}}
repositories: {pool: plain}
";

fn agent(api: &ApiServer) -> Agent {
    let mut agent = Agent::prepare(POOLS);
    let kubeconfig = agent.root().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
    agent.env("KUBECONFIG", kubeconfig);
    agent.launch();
    agent.wait_ready();
    agent
}

fn pools(agent: &Agent) -> Vec<String> {
    let list = agent.stoker().run(["pool", "list", "-o", "json"]).expect_code(0).json();
    list["pools"].as_array().unwrap().iter().map(|pool| pool["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pools_are_where_the_labels_of_the_node_say() {
    let api = api_server(Health::Well);
    let agent = agent(&api);
    assert_eq!(pools(&agent), ["plain", "labelled"]);
    assert!(agent.root().join("labelled/stoker").is_dir() && !agent.root().join("elsewhere").exists());
}

#[test]
fn an_api_server_that_is_away_holds_nothing_back_and_is_asked_again() {
    let api = api_server(Health::Status(503));
    let agent = agent(&api);
    assert_eq!(pools(&agent), ["plain"]);
    assert!(agent.log().contains("the node's labels are not known"), "{}", agent.log());
    api.set_health(Health::Well);
    wait::until(Duration::from_secs(30), "the labelled pool", || pools(&agent) == ["plain", "labelled"]);
}
