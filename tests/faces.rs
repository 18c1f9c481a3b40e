//! What every client may rely on: health, reflection, honest answers of what is not there yet, and configuration.

use std::time::Duration;

use stoker_proto::v1;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::disk::listing;
use crate::support::stoker::{Agent, Stoker};
use crate::support::wait;

const SERVICES: [&str; 4] = [
    "stoker.v1.AdmissionService",
    "stoker.v1.NodeService",
    "stoker.v1.RepositoryService",
    "stoker.v1.WorkspaceService",
];
const PLAIN: &str = "pools: [{name: data, path: $ROOT/pool, mount: optional}]\n";

#[tokio::test]
async fn every_service_says_that_it_serves() {
    let agent = Agent::start(PLAIN);
    let client = HealthClient::new(agent.channel().await);
    for service in SERVICES.into_iter().chain([""]) {
        let limit = Duration::from_secs(10);
        wait::until_async(limit, &format!("{service:?} serves"), || async {
            let request = HealthCheckRequest { service: service.to_owned() };
            client.clone().check(request).await.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
        })
        .await;
    }
    let unknown = HealthCheckRequest { service: "stoker.v1.Nothing".to_owned() };
    assert_eq!(client.clone().check(unknown).await.unwrap_err().code(), Code::NotFound);
}

async fn reflect(agent: &Agent, request: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut client = ServerReflectionClient::new(agent.channel().await);
    let requests = futures_util::stream::iter([request]);
    let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap().message_response.unwrap()
}

#[tokio::test]
async fn reflection_lists_the_services_and_describes_them() {
    let agent = Agent::start(PLAIN);
    let MessageResponse::ListServicesResponse(list) =
        reflect(&agent, MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(names.iter().any(|name| name == service), "{service} is not in {names:?}");
        let symbol = MessageRequest::FileContainingSymbol(service.to_owned());
        let MessageResponse::FileDescriptorResponse(files) = reflect(&agent, symbol).await else {
            panic!("{service} is not described")
        };
        assert!(!files.file_descriptor_proto.is_empty());
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let agent = Agent::start(PLAIN);
    let mut workspace = agent.workspace().await;
    let id = || "1".to_owned();
    for (method, status) in [
        ("GetWorkspace", workspace.get_workspace(v1::GetWorkspaceRequest { id: id() }).await.err()),
        ("GetOutput", workspace.get_output(v1::GetOutputRequest { id: id() }).await.err()),
        ("ReleaseOutput", workspace.release_output(v1::ReleaseOutputRequest { id: id() }).await.err()),
        ("DeleteOutput", workspace.delete_output(v1::DeleteOutputRequest { id: id() }).await.err()),
    ] {
        assert_eq!(status.map(|status| status.code()), Some(Code::NotFound), "{method}");
    }
    let outputs = workspace.list_outputs(v1::ListOutputsRequest::default()).await.unwrap().into_inner();
    assert_eq!(outputs, v1::ListOutputsResponse::default());
}

// The client's connection must be able to close while this thread waits for the agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_says_what_it_is_and_ends_when_told() {
    let mut agent = Agent::start(PLAIN);
    let status = agent.node().await.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.mode(), v1::Mode::Accepting);
    assert_eq!(status.node.unwrap().agent_version, env!("CARGO_PKG_VERSION"));
    let pool = &status.pools[0];
    assert_eq!((pool.name.as_str(), pool.state.as_str()), ("data", "Ready"), "{pool:?}");
    assert!(status.host.unwrap().git_version.starts_with('2'));
    assert_eq!(agent.terminate().code(), Some(0), "{}", agent.log());
    assert!(!agent.socket().exists(), "the socket is left");
}

#[test]
fn a_configuration_is_checked_printed_and_described_and_nothing_is_touched() {
    let stoker = Stoker::new();
    let right = stoker.home().join("right.yaml");
    let pool = stoker.home().join("pool");
    let text = format!(
        "apiVersion: stoker.build/v1\nkind: AgentConfig\nstate: {0}/agent\n\
         pools:\n  - {{name: data, path: {0}/pool, mount: optional, directories: [{{path: cache}}]}}\n\
         listen: {{socket: {0}/agent.sock}}\n",
        stoker.home().display()
    );
    std::fs::write(&right, &text).unwrap();
    let wrong = stoker.home().join("wrong.yaml");
    std::fs::write(&wrong, text.replace("mount: optional", "mount: perhaps").replace("state:", "stat:")).unwrap();
    let before = listing(stoker.home());
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());

    let checked = stoker.run(["config", "check", "--config", right]).expect_code(0);
    assert!(checked.stdout.contains("is valid") && checked.stdout.contains("1 pool (data)"), "{checked:?}");
    let refused = stoker.run(["config", "check", wrong]).expect_code(64);
    assert_eq!(refused.stdout, "");
    let told = |word: &str| assert!(refused.stderr.contains(word), "{word} is not in {}", refused.stderr);
    ["error", "stat", "wrong.yaml:3:"].into_iter().for_each(told);
    let refused = stoker.run(["agent", "--config", wrong]).expect_code(64);
    assert!(refused.stderr.contains("wrong.yaml:3:"), "{}", refused.stderr);
    let refused = stoker.run(["config", "check", "none.yaml"]).expect_code(64);
    assert!(refused.stderr.contains("none.yaml"), "{}", refused.stderr);
    stoker.run(["config", "check"]).expect_code(64);

    let printed = stoker.run(["config", "print", right]).expect_code(0);
    assert!(printed.stdout.contains("refresh: 5m") && printed.stdout.contains(pool.to_str().unwrap()), "{printed:?}");
    stoker.run(["config", "print", wrong]).expect_code(64);
    let schema = stoker.run(["config", "schema"]).expect_code(0).json();
    assert_eq!(schema["properties"]["pools"]["type"], "array");
    assert_eq!(listing(stoker.home()), before, "nothing is touched");

    // What is printed is a configuration again.
    let again = stoker.home().join("again.yaml");
    std::fs::write(&again, &printed.stdout).unwrap();
    let again = stoker.run(["config", "print", again.to_str().unwrap()]).expect_code(0);
    assert_eq!(again.stdout, printed.stdout);
}

#[test]
fn an_agent_without_its_disk_stays_up_and_says_so() {
    // The pool must be a mount, and is a plain folder: nothing is made there, and the rest is served.
    let agent = Agent::start("pools: [{name: data, path: $ROOT/pool}]\n");
    std::fs::create_dir(agent.root().join("pool")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let answer = agent.node().await.get_status(v1::GetStatusRequest {}).await;
        answer.unwrap().into_inner().status.unwrap()
    });
    assert_eq!(status.alarms.iter().map(v1::Reason::code).collect::<Vec<_>>(), [v1::reason::Code::PoolNotReady]);
    let run = agent.stoker().run(["run", "--repo", "https://example.org/a", "--", "true"]).expect_code(125);
    assert!(run.stderr.contains('['), "{}", run.stderr);
    assert_eq!(listing(&agent.root().join("pool")), std::collections::BTreeMap::new());
}
