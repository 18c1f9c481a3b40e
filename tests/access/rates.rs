//! Who asks too often, and what the audit log says of it.

use std::time::{Duration, Instant};

use stoker_proto::v1;
use tonic::{Code, Request};

use super::tenants::get;
use super::{LIMIT, Node};
use crate::support::token_review::{Claims, Mood, of};
use crate::support::wait;
use crate::support::wire::reason;

const ACCESS: &str = "access: {rate: {perSecond: 1, burst: 3}, rules: [{role: viewer, serviceAccounts: [red/watcher]}, {role: scheduler, \
                      serviceAccounts: [red/builder]}]}";

fn lines(node: &Node, parts: &[&str]) -> usize {
    let log = node.agent.log();
    log.lines().filter(|line| line.contains("audit") && parts.iter().all(|part| line.contains(part))).count()
}

#[test]
fn whoever_shows_nothing_over_http_is_counted_by_address_and_a_build_goes_upstream() {
    let node = Node::start(ACCESS);
    let answers: Vec<u16> = (0..20).map(|_| get(&node, "/metrics", "").0).collect();
    assert!(answers[0] == 200 && answers.contains(&429), "{answers:?}");
    let upstream = "/git/or-upstream:/example.org/a/info/refs?service=git-upload-pack";
    let sent: Vec<u16> = (0..20).map(|_| get(&node, upstream, "").0).collect();
    assert!(sent.iter().all(|code| *code == 302), "{sent:?}");
    let probed: Vec<u16> = (0..20).map(|_| get(&node, "/livez", "").0).collect();
    assert!(probed.iter().all(|code| *code == 200), "a kubelet would end the agent: {probed:?}");
    let token = format!("Authorization: Bearer {}\r\n", node.cluster.token(&of("red", "watcher")));
    assert_eq!(get(&node, "/metrics", &token).0, 200, "who says who it is is counted apart");
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_over_the_socket_locks_out_no_token_of_another_process() {
    let node = Node::start(ACCESS);
    let token = node.agent.root().join("token");
    std::fs::write(&token, node.cluster.token(&of("red", "watcher"))).unwrap();
    let mut client = node.agent.node().await;
    let mut codes = Vec::new();
    while !codes.contains(&Code::ResourceExhausted) {
        assert!(codes.len() < 50, "{codes:?}");
        let mut request = Request::new(v1::GetStatusRequest {});
        request.metadata_mut().insert("authorization", "Bearer junk".parse().unwrap());
        codes.push(client.get_status(request).await.unwrap_err().code());
    }
    let ended = node.agent.stoker().run(["--token-file", token.to_str().unwrap(), "status"]);
    ended.expect_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_checked_is_no_failure_of_who_asks() {
    let node = Node::start(ACCESS);
    let shown = |number: i64| Claims { ends_in_seconds: 3600 + number, ..of("red", "watcher") };
    node.status(&node.account(&shown(0)).await).await.unwrap();
    node.cluster.is(Mood::Nonsense);
    let caller = node.account(&shown(1)).await;
    for _ in 0..10 {
        assert_eq!(reason(&node.status(&caller).await.unwrap_err()), "CREDENTIAL_UNCHECKED");
    }
    node.cluster.is(Mood::Well);
    node.cluster.end_pod("7");
    let ended = node.account(&Claims { pod_uid: Some("7"), ..shown(2) }).await;
    for _ in 0..10 {
        assert_eq!(reason(&node.status(&ended).await.unwrap_err()), "CREDENTIAL_INVALID", "the cluster signed it once");
    }
    node.status(&node.account(&shown(3)).await).await.expect("nothing of it counts against the address");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_by_rate_has_its_line_and_not_one_for_each_call() {
    let node = Node::start(ACCESS);
    let began = Instant::now();
    let watcher = node.account(&of("red", "watcher")).await;
    let mut refused = 0;
    for _ in 0..60 {
        let wanted = v1::SetModeRequest { mode: v1::Mode::Drain.into(), ..Default::default() };
        let code = watcher.node().set_mode(wanted).await.unwrap_err().code();
        refused += usize::from(code == Code::ResourceExhausted);
    }
    assert!(refused > 20, "{refused}");
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    let told = || lines(&node, &["SetMode", "system:serviceaccount:red:watcher", "RESOURCE_EXHAUSTED"]);
    wait::until(Duration::from_secs(10), "the line", || told() > 0);
    assert!(told() <= seconds + 1, "{} lines for {refused} calls in {seconds} s", told());
    assert_eq!(get(&node, "/outputs/x", "Authorization: Bearer secret\r\n").0, 401);
    wait::until(LIMIT, "the line of credentials that failed over HTTP", || {
        lines(&node, &["127.0.0.1", "GET", "/outputs/x", "CREDENTIAL_INVALID"]) == 1
    });
    // All of them are counted.
    let claims =
        v1::Build { scope: Some(v1::Scope { tenant: "blue".into(), ..Default::default() }), ..Default::default() };
    let red = node.account(&of("red", "builder")).await;
    let evaluate = v1::EvaluateRequest { builds: vec![claims] };
    assert_eq!(red.admission().evaluate(evaluate).await.unwrap_err().code(), Code::PermissionDenied);
    let metrics = get(&node, "/metrics", "").1;
    let count = |face: &str, reason: &str| {
        let name = format!("stoker_refused_calls_total{{face=\"{face}\",reason=\"{reason}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<usize>().ok()).unwrap_or_default()
    };
    assert_eq!((count("grpc", "RATE_LIMITED"), count("http", "CREDENTIAL_INVALID")), (refused, 1), "{metrics}");
    assert_eq!(count("grpc", "ACCESS_DENIED"), 60 - refused + 1, "{metrics}");
}
