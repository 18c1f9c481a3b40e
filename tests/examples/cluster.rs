//! The steps in a cluster: as processes of other pods, that show a token or none; and whose pod has the lease.

use serde_json::{Value, json};

use super::*;
use crate::support::api_server::ApiServer;
use crate::support::authority::{Authority, swap_secret};
use crate::support::front::Front;
use crate::support::token_review::{Claims, Cluster, of};
use crate::support::wait;

/// The rule by which all overlays let the examples in.
fn rule_of_the_overlays() -> String {
    let mut rules = ["minikube", "single-node", "farm", "openshift"].map(|overlay| {
        let path = format!("daemonset/overlays/{overlay}/settings/agent.yaml");
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let configuration: Value = serde_saphyr::from_str(&text).unwrap();
        configuration["access"].to_string()
    });
    rules.sort_unstable();
    assert_eq!(rules.first(), rules.last());
    format!("access: {}\n", rules[0])
}

/// An agent that asks an API server, with more in its configuration.
fn asks(kubeconfig: String, more: &str) -> Agent {
    let mut agent = Agent::prepare(&format!("{CONFIGURATION}{more}"));
    let path = agent.root().join("kubeconfig");
    std::fs::write(&path, kubeconfig).unwrap();
    agent.env("KUBECONFIG", path);
    agent.launch();
    agent.wait_ready();
    agent
}

/// A script of `steps`, as a process of a pod: the agent does not see who it is.
fn step_of_a_pod(stoker: &Stoker, name: &str, more: &[(&str, &str)]) -> Output {
    let script = examples().join("steps").join(name);
    let args = ["--pid", "--fork", "sh", script.to_str().unwrap()];
    program(stoker, "unshare", args, more).deadline(SOON).run()
}

#[test]
fn a_pod_is_let_in_by_its_token_and_told_why_without() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not shown: only root makes pid namespaces");
        return;
    }
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let cluster = Cluster::start();
    let agent = asks(cluster.kubeconfig(), &rule_of_the_overlays());
    let stoker = agent.stoker();
    let token = |namespace, account| {
        let path = agent.root().join(format!("token-{namespace}-{account}"));
        std::fs::write(&path, cluster.token(&of(namespace, account))).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (mine, anothers) = (token("builds", "default"), token("red", "default"));
    let mine = ("STOKER_TOKEN_FILE", mine.as_str());
    let goes_on = |more: &[(&str, &str)], told: [&str; 2]| {
        let output = admit_by(step_of_a_pod, stoker, &url, more).expect_code(0);
        assert!(told.iter().all(|part| output.stderr.contains(part)), "{}", output.stderr);
        assert!(!output.stderr.contains("no agent answers"), "{}", output.stderr);
        assert_eq!(result(stoker, "commit"), repo.commit("main"));
        assert_eq!(result(stoker, "lease") + &result(stoker, "node") + &result(stoker, "workspace"), "");
    };
    goes_on(&[], ["CREDENTIAL_INVALID", "the agent refuses this pod"]);
    goes_on(&[("STOKER_TOKEN_FILE", &anothers)], ["ACCESS_DENIED", "the agent refuses this pod"]);
    goes_on(&[("STOKER_TOKEN_FILE", "/nowhere")], ["--token-file /nowhere", "this pod cannot ask the agent"]);
    goes_on(&[mine, ("TENANT", "red")], ["ACCESS_DENIED", "the agent gave no answer about this build"]);
    let leases = || stoker.run(["lease", "list", "-o", "json"]).expect_code(0).json()["leases"].clone();
    assert_eq!(leases(), json!([]));

    let more = [mine, ("WORKSPACE", "yes"), ("NAMESPACE", "builds"), ("SERVICE_ACCOUNT", "default")];
    admit_by(step_of_a_pod, stoker, &url, &more).expect_code(0);
    let lease = result(stoker, "lease");
    assert_eq!(leases()[0]["scope"]["tenant"], "builds", "that of its namespace, which it did not name");
    assert!(Path::new(&result(stoker, "workspace")).join("src/README.md").is_file());
    let released = [("LEASE", lease.as_str()), ("EXIT_CODE", "0")];
    let refused = step_of_a_pod(stoker, "release.sh", &released).expect_code(0);
    assert!(refused.stderr.contains("CREDENTIAL_INVALID"), "{}", refused.stderr);
    assert_eq!(state(&agent, &lease), "LEASE_STATE_RESERVED");
    step_of_a_pod(stoker, "release.sh", &[released[0], released[1], mine]).expect_code(0);
    assert_eq!(state(&agent, &lease), "LEASE_STATE_RELEASED");
}

/// What `daemonset/network` adds to a configuration, with files and port of this machine.
#[test]
fn a_pod_asks_over_the_network_as_the_component_opens_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/network/listen.yaml");
    let opened = std::fs::read_to_string(path).unwrap();
    let (cluster, authority, port) = (Cluster::start(), Authority::new("farm"), free_port());
    let mine = opened.replace("/etc/stoker-tls", "$ROOT/tls").replace("0.0.0.0:9417", &format!("127.0.0.1:{port}"));
    let socket = "listen:\n  socket: $ROOT/run/stoker.sock\n";
    let mut agent = Agent::prepare(&format!(
        "{}{}{}",
        mine.replace("listen:\n", socket),
        CONFIGURATION.split_once('\n').unwrap().1,
        rule_of_the_overlays()
    ));
    let file = |name: &str, content: &str| {
        let path = agent.root().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let signed = authority.server();
    swap_secret(&agent.root().join("tls"), "first", &[("tls.crt", &signed.certificate), ("tls.key", &signed.key)]);
    let (kubeconfig, ca) = (file("kubeconfig", &cluster.kubeconfig()), file("ca.crt", authority.pem()));
    let token = file("token", &cluster.token(&of("builds", "default")));
    let anothers = file("anothers", &cluster.token(&of("red", "default")));
    agent.env("KUBECONFIG", kubeconfig);
    agent.launch();
    agent.wait_ready();

    let address = format!("127.0.0.1:{port}");
    let asks = |token: &str| {
        let invocation = agent.stoker().command(["--address", &address, "--ca-file", &ca, "lease", "list"]);
        invocation.env("STOKER_TOKEN_FILE", token).run()
    };
    asks(&token).expect_code(0);
    for (shown, told) in [(anothers.as_str(), "ACCESS_DENIED"), ("", "CREDENTIAL_INVALID")] {
        let refused = asks(shown).expect_code(2);
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    let plain = agent.stoker().run(["--address", &address, "status"]).expect_code(2);
    assert!(!plain.stderr.contains("CREDENTIAL_INVALID"), "it was asked without TLS: {}", plain.stderr);
}

/// So that the agent asks the API server about its node and its pods.
const WATCHES: &str = "kubernetes: {watch: on, namespace: stoker, unlimited: size}\n";

fn api_of_the_node() -> ApiServer {
    let api = ApiServer::start();
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"}, "spec": {},
        "status": {"allocatable": {"cpu": "30", "memory": "60Gi", "pods": "110"},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    });
    api.put("nodes", node);
    api
}

/// A pod of one workflow, which names the lease as Argo's does.
fn pod(name: &str, account: &str, lease: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "builds", "uid": format!("uid-{name}"),
            "annotations": {"stoker.build/lease": lease},
            "ownerReferences": [{
                "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "build", "uid": "workflow", "controller": true,
            }],
        },
        "spec": {"nodeName": "ghost", "serviceAccountName": account, "containers": [{"name": "main", "image": "build"}]},
        "status": {"phase": "Running"},
    })
}

#[test]
fn a_lease_goes_to_the_pod_that_its_request_named_and_to_the_next_of_its_workflow() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let api = api_of_the_node();
    let agent = asks(api.kubeconfig(), WATCHES);
    let stoker = agent.stoker();
    let owner = [("NAMESPACE", "builds"), ("SERVICE_ACCOUNT", "builder"), ("REBIND", "same-owner")];
    admit(stoker, &url, &owner).expect_code(0);
    let lease = result(stoker, "lease");
    let show = || stoker.run(["lease", "show", &lease, "-o", "json"]).expect_code(0).json()["lease"].clone();
    let comes = |name: &str| {
        let has = || show()["pod"]["name"] == name;
        wait::until(SOON, &format!("{name} has the lease"), has);
    };

    // Anyone can copy an annotation, or call `bind`.
    api.put("pods", pod("thief", "default", &lease));
    wait::until(SOON, "the thief is refused", || agent.log().contains("builds/thief"));
    let as_thief =
        [("LEASE", lease.as_str()), ("NAMESPACE", "builds"), ("POD_NAME", "thief"), ("POD_UID", "uid-thief")];
    let refused = step(stoker, "bind.sh", &as_thief).expect_code(0);
    assert!(refused.stderr.contains("another service account"), "{}", refused.stderr);
    assert!(refused.stderr.contains("is not tied to this pod"), "{}", refused.stderr);
    assert_eq!(state(&agent, &lease), "LEASE_STATE_RESERVED");

    api.put("pods", pod("first", "builder", &lease));
    comes("first");
    api.change("pods", "builds", "first", |pod| pod["status"] = json!({"phase": "Failed", "reason": "Evicted"}));
    api.put("pods", pod("second", "builder", &lease));
    comes("second");
    assert_eq!(state(&agent, &lease), "LEASE_STATE_BOUND");

    for (flags, told) in [
        (["--owner", "builds", "--rebind", "never"], "write NAMESPACE/SERVICE_ACCOUNT"),
        (["--owner", "builds/", "--rebind", "never"], "write NAMESPACE/SERVICE_ACCOUNT"),
        (["--owner", "builds/Builder", "--rebind", "never"], "no name that Kubernetes gives"),
        (["--owner", "builds/builder", "--rebind", "always"], "same-owner"),
    ] {
        let arguments = ["lease", "admit", "--repo", &url, "--ref", "branch:main"];
        let wrong = stoker.run(arguments.into_iter().chain(flags)).expect_code(64);
        assert!(wrong.stderr.contains(told), "{flags:?}: {}", wrong.stderr);
    }
}

/// Tekton's and Jenkins' way: the pod is there before its lease, and its steps have nothing but its token.
#[test]
fn a_pod_ties_a_lease_to_itself_with_its_token() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not shown: only root makes pid namespaces");
        return;
    }
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let (tokens, api) = (Cluster::start(), api_of_the_node());
    let front = Front::of(&tokens, &api);
    // Before the agent: its first look has them.
    for (name, account) in [("task", "default"), ("other", "other")] {
        let mut pod = pod(name, account, "");
        pod["metadata"].as_object_mut().unwrap().remove("annotations");
        api.put("pods", pod);
    }
    let agent = asks(front.kubeconfig.clone(), &format!("{WATCHES}{}", rule_of_the_overlays()));
    let stoker = agent.stoker();
    let token = agent.root().join("token");
    let claims = Claims { pod_uid: Some("uid-task"), ..of("builds", "default") };
    std::fs::write(&token, tokens.token(&claims)).unwrap();
    let mine =
        [("STOKER_TOKEN_FILE", token.to_str().unwrap()), ("NAMESPACE", "builds"), ("SERVICE_ACCOUNT", "default")];
    admit_by(step_of_a_pod, stoker, &url, &mine).expect_code(0);
    let lease = result(stoker, "lease");
    let bind = |name: &str| {
        let uid = format!("uid-{name}");
        let its = [("LEASE", lease.as_str()), ("POD_NAME", name), ("POD_UID", &uid)];
        step_of_a_pod(stoker, "bind.sh", &[mine[0], mine[1], its[0], its[1], its[2]]).expect_code(0).stderr
    };
    assert!(bind("other").contains("another service account"));
    assert_eq!(state(&agent, &lease), "LEASE_STATE_RESERVED");
    assert_eq!(bind("task"), "");
    assert_eq!(state(&agent, &lease), "LEASE_STATE_BOUND");
    step_of_a_pod(stoker, "release.sh", &[mine[0], ("LEASE", &lease), ("EXIT_CODE", "0")]).expect_code(0);
    assert_eq!(state(&agent, &lease), "LEASE_STATE_RELEASED");
    assert!(tokens.reviews() > 0);
}
