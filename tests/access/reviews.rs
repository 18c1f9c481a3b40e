//! The cluster's word on tokens: remembered, and missed.

use futures_util::FutureExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stoker_proto::v1::{WatchLeasesRequest, WatchLeasesResponse};
use tonic::Code;

use super::{LIMIT, Node};
use crate::support::token_review::{Claims, Mood, of};
use crate::support::wait;
use crate::support::wire::reason;

const RULES: &str = "rules: [{role: viewer, namespaces: [red]}, {role: viewer, groups: [builders], tenants: [shared]}]";

/// A token that was not shown before.
fn fresh(number: i64) -> Claims {
    Claims { ends_in_seconds: 3600 + number, ..of("red", "watcher") }
}

async fn ask(node: &Node, number: i64) -> Result<(), tonic::Status> {
    node.status(&node.account(&fresh(number)).await).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_said_is_remembered_for_its_time() {
    let node = Node::start(&format!("access: {{tokens: {{cache: 10m}}, {RULES}}}"));
    let watcher = node.account(&of("red", "watcher")).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut client = watcher.node();
        calls.spawn(async move { client.get_status(stoker_proto::v1::GetStatusRequest {}).await.map(|_| ()) });
    }
    while let Some(called) = calls.join_next().await {
        called.unwrap().unwrap();
    }
    let reviews = node.cluster.reviews();
    assert!((1..=8).contains(&reviews), "{reviews} reviews for 50 calls at once with one token");
    node.status(&watcher).await.unwrap();
    assert_eq!(node.cluster.reviews(), reviews, "and none after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_token_does_not_outlive_it_by_more_than_the_time_of_the_cache() {
    let node = Node::start(&format!("access: {{tokens: {{cache: 1s}}, {RULES}}}"));
    let pod = node.account(&Claims { pod_uid: Some("7"), ..of("red", "watcher") }).await;
    node.status(&pod).await.unwrap();
    node.cluster.end_pod("7");
    let refused = || async { node.status(&pod).await.is_err_and(|status| reason(&status) == "CREDENTIAL_INVALID") };
    wait::until_async(LIMIT, "the token of a pod that ended is refused", refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_decide_where_the_cluster_does_not_answer_and_nonsense_lets_nobody_in() {
    let node = Node::start(&format!("access: {{tokens: {{cache: 1s}}, {RULES}}}"));
    ask(&node, 0).await.unwrap();
    let strange = [Mood::Nonsense, Mood::Deaf, Mood::Confused, Mood::Says(401), Mood::Says(404), Mood::Says(204)];
    for (number, mood) in (100..).zip(strange) {
        node.cluster.is(mood);
        let status = ask(&node, number).await.expect_err("nonsense");
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::Unavailable, "CREDENTIAL_UNCHECKED".to_owned()),
            "{mood:?}"
        );
    }
    let forged = node.shows(Some(&node.cluster.forged(&fresh(4)))).await;
    let mut number = 10;
    for mood in [Mood::Throttling, Mood::Says(403), Mood::Away, Mood::Slow] {
        node.cluster.is(mood);
        // After one that was not answered it is left alone for a while.
        let before = node.cluster.reviews();
        while node.cluster.reviews() == before {
            number += 1;
            ask(&node, number).await.unwrap_or_else(|status| panic!("{mood:?}: {status:?}"));
        }
        let refused = node.status(&forged).await.expect_err("the keys are known");
        assert_eq!(refused.code(), Code::Unauthenticated, "{mood:?}");
    }
    assert!(node.agent.log().contains("the cluster's keys decide alone"), "{}", node.agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_and_without_an_answer_nobody_is_let_in() {
    let mut node = Node::prepare(&format!("access: {{{RULES}}}"));
    node.cluster.is(Mood::Away);
    node.launch();
    let status = ask(&node, 0).await.expect_err("nobody can tell");
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "CREDENTIAL_UNCHECKED".to_owned()));
    node.cluster.is(Mood::Well);
    wait::until_async(LIMIT, "it answers again", || async { ask(&node, 1).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_refused_is_not_good_again_when_it_is_away() {
    let node = Node::start(&format!("access: {{tokens: {{cache: 1s}}, {RULES}}}"));
    let pod = node.account(&Claims { pod_uid: Some("7"), ..of("red", "watcher") }).await;
    node.status(&pod).await.unwrap();
    node.cluster.end_pod("7");
    let refused = || async { node.status(&pod).await.is_err_and(|status| reason(&status) == "CREDENTIAL_INVALID") };
    wait::until_async(LIMIT, "the token of a pod that ended is refused", refused).await;
    node.cluster.is(Mood::Away);
    let before = node.cluster.reviews();
    let asked_again = || async {
        assert!(refused().await, "its keys alone would take it");
        node.cluster.reviews() > before
    };
    wait::until_async(LIMIT, "what was remembered is over, and the cluster is asked in vain", asked_again).await;
    assert!(refused().await);
    ask(&node, 1).await.expect("another one is good by the keys alone");
}

/// A watch ends when its caller may no longer have it: its pod ended, or the rules say otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_lasts_ends_with_its_callers_right_to_it() {
    let node = Node::start(&format!("access: {{tokens: {{cache: 1s}}, {RULES}}}"));
    let pod = node.account(&Claims { pod_uid: Some("7"), ..of("red", "watcher") }).await;
    let other = node.account(&fresh(1)).await;
    let request = WatchLeasesRequest::default;
    let mut of_pod = pod.admission().watch_leases(request()).await.unwrap().into_inner();
    let mut of_other = other.admission().watch_leases(request()).await.unwrap().into_inner();
    let mut of_root = node.agent.admission().await.watch_leases(request()).await.unwrap().into_inner();
    for watch in [&mut of_pod, &mut of_other, &mut of_root] {
        watch.message().await.unwrap().expect("what there is");
    }
    let end = async |watch: &mut tonic::Streaming<WatchLeasesResponse>| {
        tokio::time::timeout(LIMIT, watch.message()).await.expect("it ends").expect_err("with its reason")
    };
    node.cluster.end_pod("7");
    assert_eq!(reason(&end(&mut of_pod).await), "CREDENTIAL_INVALID");
    let before = std::fs::read_to_string(node.agent.root().join("agent.yaml")).unwrap();
    node.agent.configure(&before.replace("namespaces: [red]", "namespaces: [blue]"));
    kill(Pid::from_raw(node.agent.pid().cast_signed()), Signal::SIGHUP).unwrap();
    assert_eq!(reason(&end(&mut of_other).await), "ACCESS_DENIED");
    let silent = of_root.message().now_or_never();
    assert!(silent.is_none(), "others' watches go on");
}
