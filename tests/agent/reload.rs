//! A configuration that changes under way.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stoker_proto::v1;

use super::*;
use crate::support::free_port;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

fn rewrite(agent: &Agent, change: impl Fn(String) -> String) {
    let path = agent.root().join("agent.yaml");
    std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
}

fn alarms(status: &v1::Status) -> Vec<v1::reason::Code> {
    codes(&status.alarms)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_is_taken_over_without_a_restart() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[]));
    let before = admit(&agent, order("before", branch(&url, "main"), small())).await.unwrap().granted();
    let reserved = |now: &v1::Status| now.ledger.unwrap_or_default().reserve.unwrap_or_default().cpu_millis;
    assert_eq!(reserved(&status(&agent).await), Some(500));

    // A larger reserve, another pool, a mirror; on a signal.
    let more = agent.root().join("more");
    let pool = format!(
        "  - {{name: more, path: {}, mount: optional, floor: {{bytes: 1MiB, inodes: 1}}, directories: [{{path: cache}}]}}\n",
        more.display()
    );
    rewrite(&agent, |text| {
        let text = text.replace("node: {hostRoot", "node: {reserve: {cpu: 8, memory: 16GiB}, hostRoot");
        let text = text.replace("repositories:\n", &format!("{pool}repositories:\n  pool: data\n"));
        format!("{text}  mirrors:\n    - {{url: \"{url}\"}}\n")
    });
    kill(Pid::from_raw(agent.pid().cast_signed()), Signal::SIGHUP).unwrap();
    let ready = |now: &v1::Status| now.pools.len() == 2 && now.pools[1].state == "Ready";
    let now = status_until(&agent, "the new pool is ready", ready).await;
    assert_eq!(reserved(&now), Some(8000));
    assert!(more.join("cache").is_dir());
    assert!(mirror_ready(&agent, &url).await.declared);
    assert_eq!(lease(&agent, &before.id).await.state(), v1::LeaseState::Reserved, "what there was goes on");

    // Without a signal, as a mounted ConfigMap changes.
    rewrite(&agent, |text| text.replace(&pool, ""));
    status_until(&agent, "the pool is no longer declared", |now| now.pools.len() == 1).await;
    assert!(more.join("cache").is_dir(), "nothing of it is removed");

    // What is not right leaves all as it was, and says so.
    rewrite(&agent, |text| format!("{}nonsense: 1\n", text.replace("cpu: 8", "cpu: 9")));
    let now = status_until(&agent, "the alarm", |now| !now.alarms.is_empty()).await;
    assert_eq!(alarms(&now), [v1::reason::Code::ConfigInvalid]);
    assert!(now.alarms[0].message.contains("nonsense"), "{}", now.alarms[0].message);
    assert_eq!(reserved(&now), Some(8000));
    rewrite(&agent, |text| text.replace("nonsense: 1\n", ""));
    let now = status_until(&agent, "the alarm is over", |now| now.alarms.is_empty()).await;
    assert_eq!(reserved(&now), Some(9000));

    // What needs a restart is named, and holds only after it.
    rewrite(&agent, |text| text.replace("/state\n", "/elsewhere\n"));
    wait::until(LIMIT, "the log names it", || agent.log().contains("hold only after a restart"));
    assert!(!agent.root().join("elsewhere").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_over_tcp_is_served_on_loopback_where_the_configuration_says_so() {
    let port = free_port();
    let listen = format!(
        "listen: {{socket: $ROOT/run/stoker.sock, grpc: {{address: \"127.0.0.1:{port}\", insecure: loopback}}}}\n"
    );
    let agent = start(&format!("{listen}{}", configuration(PLAIN, &[])));
    let told = agent.stoker().run(["--address", &format!("127.0.0.1:{port}"), "status", "-o", "json"]).expect_code(0);
    assert_eq!(told.json()["status"]["mode"], "MODE_ACCEPTING");
    // Elsewhere it is refused before anything is bound.
    let open = listen.replace("127.0.0.1", "0.0.0.0");
    let mut refused = prepared(&format!("{open}{}", configuration(PLAIN, &[])));
    refused.launch();
    wait::until(LIMIT, "it ends", || refused.ended().is_some());
    assert_eq!(refused.ended().unwrap().code(), Some(64), "{}", refused.log());
    assert!(refused.log().contains("listen.grpc.address"), "{}", refused.log());
}
