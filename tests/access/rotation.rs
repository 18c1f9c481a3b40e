//! Certificates change while calls run.

use std::time::Duration;

use stoker_proto::v1;
use tonic::Code;

use super::{LIMIT, Node};
use crate::support::authority::{Authority, Signed, swap_secret};
use crate::support::stoker::Stoker;
use crate::support::wait;

const ACCESS: &str = "access: {rules: [{role: operator, users: [admin]}]}";

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_authorities_change_under_way_and_calls_go_on() {
    let node = Node::start(ACCESS);
    let old = node.certified(&node.authority.client("admin", "ops")).await;
    let mut stream = old.node().watch_status(v1::WatchStatusRequest {}).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();

    // Another authority beside the first: new connections get its certificate, the open one does not notice.
    let next = Authority::new("next");
    let signed = next.server();
    node.present("second", &signed, &format!("{}{}", node.authority.pem(), next.pem()));
    let admin = next.client("admin", "ops");
    wait::until_async(LIMIT, "the new certificate", || async { node.connect(next.tls(Some(&admin))).await.is_ok() })
        .await;
    let new = next.tls(Some(&admin));
    let new = super::Caller(tonic::service::interceptor::InterceptedService::new(
        node.connect(new).await.unwrap(),
        super::Bearer(None),
    ));
    assert!(node.status(&new).await.is_ok());
    assert!(node.status(&old).await.is_ok(), "the same connection, the same certificate, still of an authority");
    node.connect(node.authority.tls(None)).await.expect_err("new connections do not get the old certificate");

    // A key that does not go with its certificate: nothing changes, and it is told.
    let half = Signed { certificate: signed.certificate.clone(), key: node.authority.server().key };
    node.present("third", &half, next.pem());
    let alarms = async || node.status(&new).await.unwrap().alarms;
    wait::until_async(LIMIT, "the alarm", || async { !alarms().await.is_empty() }).await;
    let told = alarms().await;
    assert_eq!(told[0].code(), v1::reason::Code::CertificateInvalid);
    assert!(told[0].message.contains("listen.grpc.tls.key") && told[0].message.contains("go on"), "{told:?}");
    assert!(node.connect(next.tls(Some(&admin))).await.is_ok() && node.status(&old).await.is_ok());

    // Whole again, and without the first authority: its clients lose their rights on connections that are open.
    node.present("fourth", &signed, next.pem());
    wait::until_async(LIMIT, "the alarm is over", || async { alarms().await.is_empty() }).await;
    let refused = node.status(&old).await.expect_err("its authority has gone");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(node.status(&new).await.is_ok());
    // What was begun goes on.
    node.agent
        .node()
        .await
        .set_mode(v1::SetModeRequest { mode: v1::Mode::Maintenance.into(), ..Default::default() })
        .await
        .unwrap();
    let seen =
        async { while stream.message().await.unwrap().unwrap().status.unwrap().mode() != v1::Mode::Maintenance {} };
    tokio::time::timeout(Duration::from_secs(20), seen).await.expect("the stream goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_listeners_authority_does_not_vouch_on_the_other() {
    let mut node = Node::prepare(ACCESS);
    // HTTP goes on to take clients of the first authority.
    let (old, folder) = (node.authority.server(), node.agent.root().join("http-tls"));
    std::fs::create_dir(&folder).unwrap();
    let files = [("tls.crt", &*old.certificate), ("tls.key", &*old.key), ("ca.crt", node.authority.pem())];
    swap_secret(&folder, "first", &files);
    let written = std::fs::read_to_string(node.agent.root().join("agent.yaml")).unwrap();
    let plain = format!("http: {{address: \"127.0.0.1:{}\"}}", node.agent.http_port());
    assert!(written.contains(&plain), "{written}");
    let place = folder.display();
    let tls = format!("tls: {{certificate: {place}/tls.crt, key: {place}/tls.key, clientCa: {place}/ca.crt}}");
    node.agent.configure(&written.replace(&plain, &plain.replace('}', &format!(", {tls}}}"))));
    node.begin();
    wait::until(LIMIT, "the agent", || std::os::unix::net::UnixStream::connect(node.agent.socket()).is_ok());
    let admin = node.certified(&node.authority.client("admin", "ops")).await;
    node.status(&admin).await.unwrap();
    let next = Authority::new("next");
    node.present("second", &next.server(), next.pem());
    let refused = || async { node.status(&admin).await.is_err_and(|status| status.code() == Code::Unauthenticated) };
    wait::until_async(LIMIT, "its authority has gone from gRPC", refused).await;
}

#[test]
fn files_that_make_no_whole_at_the_start_are_named_with_their_field() {
    let authority = Authority::new("farm");
    let (signed, other) = (authority.server(), authority.server());
    let cases = [
        ("key: other", &signed.certificate, other.key.as_str(), authority.pem(), "listen.grpc.tls.key: "),
        ("key: none", &signed.certificate, "", authority.pem(), "listen.grpc.tls.key: "),
        ("authority: none", &signed.certificate, &signed.key, "nonsense", "listen.grpc.tls.clientCa: "),
    ];
    for (what, certificate, key, ca, told) in cases {
        let stoker = Stoker::new();
        let home = stoker.home().to_str().unwrap().to_owned();
        for (name, content) in [("tls.crt", certificate.as_str()), ("tls.key", key), ("ca.crt", ca)] {
            std::fs::write(stoker.home().join(name), content).unwrap();
        }
        let text = format!(
            "apiVersion: stoker.build/v1\nkind: AgentConfig\nstate: {home}/state/s\n\
             pools: [{{name: data, path: {home}/pool, mount: optional}}]\nlisten:\n  socket: {home}/run/stoker.sock\n  \
             grpc:\n    address: 127.0.0.1:0\n    tls: {{certificate: {home}/tls.crt, key: {home}/tls.key, clientCa: \
             {home}/ca.crt}}\n"
        );
        std::fs::write(stoker.home().join("agent.yaml"), text).unwrap();
        let ended = stoker.run(["agent", "--config", "agent.yaml"]).expect_code(2);
        assert!(ended.stderr.contains(told), "{what}: {}", ended.stderr);
    }
}
