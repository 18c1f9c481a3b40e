//! What the agent asks the cluster: an API server over HTTP that answers for one node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};

use crate::support::stoker::Agent;
use crate::support::wait;

/// An API server that knows the node `ghost`, while it answers.
struct ApiServer {
    address: SocketAddr,
    answers: Arc<AtomicBool>,
    _runtime: tokio::runtime::Runtime,
}

impl ApiServer {
    fn start(answers: bool) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let answers = Arc::new(AtomicBool::new(answers));
        let up = Arc::clone(&answers);
        let node = move |Path(name): Path<String>| async move {
            if name != "ghost" || !up.load(Ordering::SeqCst) {
                return Err(StatusCode::SERVICE_UNAVAILABLE);
            }
            let metadata: Value = json!({"name": name, "labels": {"example.org/disk": "large"}});
            let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
            Ok(([("content-type", "application/json")], object.to_string()))
        };
        let routes = axum::Router::new().route("/api/v1/nodes/{name}", get(node));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Self { address, answers, _runtime: runtime }
    }

    /// A kubeconfig that leads here.
    fn kubeconfig(&self) -> String {
        let server = format!("http://{}", self.address);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
        .to_string()
    }
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
    let api = ApiServer::start(true);
    let agent = agent(&api);
    assert_eq!(pools(&agent), ["plain", "labelled"]);
    assert!(agent.root().join("labelled/stoker").is_dir() && !agent.root().join("elsewhere").exists());
}

#[test]
fn an_api_server_that_is_away_holds_nothing_back_and_is_asked_again() {
    let api = ApiServer::start(false);
    let agent = agent(&api);
    assert_eq!(pools(&agent), ["plain"]);
    assert!(agent.log().contains("the node's labels are not known"), "{}", agent.log());
    api.answers.store(true, Ordering::SeqCst);
    wait::until(Duration::from_secs(30), "the labelled pool", || pools(&agent) == ["plain", "labelled"]);
}
