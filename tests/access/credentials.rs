//! Every method with every kind of credentials.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::{Caller, LIMIT, Node};
use crate::support::authority::Authority;
use crate::support::token_review::{Claims, of};
use crate::support::wait;
use crate::support::wire::reason;

const ACCESS: &str = "
access:
  rate: {perSecond: 10000, burst: 100000}
  rules:
    - {role: viewer, serviceAccounts: [red/watcher]}
    - {role: scheduler, serviceAccounts: [red/builder]}
    - {role: operator, users: [admin]}
    - {role: viewer, groups: [auditors], tenants: [\"*\"]}
";
/// What only operators may, by the last part of its path.
const OPERATE: [&str; 7] = [
    "SetMode",
    "SetPool",
    "RemoveRepository",
    "PinRepository",
    "VerifyRepository",
    "ImportRepository",
    "ExportRepository",
];
/// What needs a role for all tenants.
const WHOLE_NODE: [&str; 2] = ["GetPlan", "Examine"];

fn methods() -> Vec<String> {
    let set = FileDescriptorSet::decode(stoker_proto::DESCRIPTOR).unwrap();
    let mut all = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let names = service.method.iter().map(|method| method.name().to_owned());
            all.extend(names.map(|name| format!("/{}.{}/{name}", file.package(), service.name())));
        }
    }
    all.push("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned());
    assert!(all.len() > 30, "{all:?}");
    all
}

/// What sees, and changes nothing.
fn sees(name: &str) -> bool {
    name.starts_with("Get")
        || name.starts_with("List")
        || name.starts_with("Watch")
        || name == "Explain"
        || name == "Examine"
        || name.starts_with("ServerRef")
}

/// Calls a method with an empty message: its first answer.
async fn call(caller: &Caller, path: &str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(caller.0.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let mut request = Request::new(());
    request.set_timeout(Duration::from_secs(30));
    let mut answers = grpc.server_streaming(request, path.parse::<PathAndQuery>().unwrap(), codec).await?.into_inner();
    answers.message().await.map(|_| ())
}

fn is_refused(answer: &Result<(), Status>) -> bool {
    matches!(answer, Err(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied))
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_through_any_method_with_credentials_that_do_not_count() {
    let node = Node::start(ACCESS);
    let good = of("red", "builder");
    let token = |claims: &Claims| node.cluster.token(claims);
    let other_audience = token(&Claims { audience: "https://kubernetes.default.svc", ..good.clone() });
    let expired = token(&Claims { ends_in_seconds: -1, ..good.clone() });
    let forged = node.cluster.forged(&good);
    let (body, _) = forged.rsplit_once('.').unwrap();
    let unsigned = format!("{body}.");
    let cases = [
        ("nothing", None),
        ("no token", Some("secret")),
        ("another audience", Some(other_audience.as_str())),
        ("expired", Some(expired.as_str())),
        ("forged", Some(forged.as_str())),
        ("unsigned", Some(unsigned.as_str())),
    ];
    for (what, shown) in cases {
        let caller = node.shows(shown).await;
        for path in methods() {
            let status = call(&caller, &path).await.expect_err(what);
            assert_eq!(status.code(), Code::Unauthenticated, "{what} at {path}: {status:?}");
            assert_eq!(reason(&status), "CREDENTIAL_INVALID", "{what} at {path}");
        }
    }
    assert_eq!(node.cluster.reviews(), 0, "what fails by itself is not asked about");
    // Its health, and that there is no more, is for everybody.
    call(&node.stranger().await, "/grpc.health.v1.Health/Check").await.unwrap();
    let unknown = call(&node.stranger().await, "/stoker.v1.NodeService/Reboot").await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    let mut caller = node.stranger().await;
    caller.0 = tonic::service::interceptor::InterceptedService::new(
        node.connect(node.authority.tls(None)).await.unwrap(),
        super::Bearer(Some("Basic YTpi".parse().unwrap())),
    );
    assert_eq!(node.status(&caller).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_or_time_opens_no_connection() {
    let node = Node::start(ACCESS);
    let other = Authority::new("elsewhere");
    for signed in [other.client("admin", "ops"), node.authority.expired_client("admin")] {
        // With TLS 1.3 a client hears of it at its first call.
        let refused = match node.connect(node.authority.tls(Some(&signed))).await {
            Err(_) => true,
            Ok(channel) => {
                let caller = Caller(tonic::service::interceptor::InterceptedService::new(channel, super::Bearer(None)));
                node.status(&caller).await.is_err_and(|status| status.code() != Code::Ok)
            }
        };
        assert!(refused);
    }
    node.connect(other.tls(None)).await.expect_err("the agent is not of that authority");
    let admin = node.certified(&node.authority.client("admin", "ops")).await;
    assert_eq!(node.status(&admin).await.unwrap().node.unwrap().name, "ghost");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_reaches_its_methods_and_no_others() {
    let node = Node::start(ACCESS);
    let callers = [
        ("no role", node.account(&of("red", "nobody")).await),
        ("viewer", node.account(&of("red", "watcher")).await),
        ("viewer of all", node.certified(&node.authority.client("eve", "auditors")).await),
        ("scheduler", node.account(&of("red", "builder")).await),
        ("operator", node.certified(&node.authority.client("admin", "ops")).await),
    ];
    for (role, caller) in &callers {
        let mut reached = BTreeSet::new();
        for path in methods() {
            let answer = call(caller, &path).await;
            if !is_refused(&answer) {
                reached.insert(path.rsplit('/').next().unwrap().to_owned());
            } else if let Err(status) = answer {
                assert_eq!(status.code(), Code::PermissionDenied, "{role} at {path}: {status:?}");
                assert_eq!(reason(&status), "ACCESS_DENIED", "{role} at {path}");
                assert!(status.message().contains("access.rules"), "{}", status.message());
            }
        }
        let names = methods().into_iter().map(|path| path.rsplit('/').next().unwrap().to_owned());
        let expected: BTreeSet<String> = names
            .filter(|name| {
                let (all, operate) = (WHOLE_NODE.contains(&name.as_str()), OPERATE.contains(&name.as_str()));
                match *role {
                    "no role" => false,
                    "viewer" => sees(name) && !all,
                    "viewer of all" => sees(name),
                    "scheduler" => !operate && !all,
                    _ => true,
                }
            })
            .collect();
        assert_eq!(reached, expected, "{role}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_change_hold_from_the_next_call_on() {
    let node = Node::start(ACCESS);
    let nobody = node.account(&of("red", "nobody")).await;
    assert_eq!(node.status(&nobody).await.unwrap_err().code(), Code::PermissionDenied);
    let path = node.agent.root().join("agent.yaml");
    let before = std::fs::read_to_string(&path).unwrap();
    node.agent.configure(&before.replace("red/watcher", "red/nobody"));
    kill(Pid::from_raw(node.agent.pid().cast_signed()), Signal::SIGHUP).unwrap();
    wait::until_async(LIMIT, "the new rule", || async { node.status(&nobody).await.is_ok() }).await;
    let watcher = node.account(&of("red", "watcher")).await;
    assert_eq!(node.status(&watcher).await.unwrap_err().code(), Code::PermissionDenied, "and the old one no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_asks_too_often_is_told_when_to_come_again() {
    let rate = ACCESS.replace("perSecond: 10000, burst: 100000", "perSecond: 1, burst: 3");
    let node = Node::start(&rate);
    let busy = node.account(&of("red", "watcher")).await;
    let mut refused = None;
    for _ in 0..20 {
        if let Err(status) = node.status(&busy).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("20 calls at once are too many");
    assert_eq!((refused.code(), reason(&refused)), (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));
    let after = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(after > Duration::ZERO && after <= Duration::from_secs(1), "{after:?}");
    // Others are not held back by it, and root of this machine is not counted.
    let admin = node.certified(&node.authority.client("admin", "ops")).await;
    assert!(node.status(&admin).await.is_ok());
    let mut root = node.agent.node().await;
    for _ in 0..20 {
        root.get_status(stoker_proto::v1::GetStatusRequest {}).await.unwrap();
    }
    wait::until_async(LIMIT, "a call is left again", || async { node.status(&busy).await.is_ok() }).await;
}
