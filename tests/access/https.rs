//! Git over HTTPS with a token, as unmodified git sends it.

use std::time::Duration;

use stoker_proto::v1;

use crate::support::authority::{Authority, swap_secret};
use crate::support::repository::{TestRepo, git};
use crate::support::stoker::Agent;
use crate::support::token_review::{Cluster, of};
use crate::support::upstream::Upstream;
use crate::support::{free_port, wait};

#[tokio::test(flavor = "multi_thread")]
async fn git_clones_over_https_what_its_token_may_read() {
    let (cluster, authority, port) = (Cluster::start(), Authority::new("farm"), free_port());
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = Agent::prepare(&format!(
        "node: {{rootFloor: {{bytes: 0, inodes: 0}}}}\n\
         pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]\n\
         repositories: {{protocols: [http], allow: [127.0.0.1], mirrors: [{{url: \"{url}\", trust: secret}}]}}\n\
         listen:\n  socket: $ROOT/run/stoker.sock\n  http: {{address: \"127.0.0.1:{port}\", tls: {{certificate: \
         $ROOT/tls/tls.crt, key: $ROOT/tls/tls.key}}}}\n\
         access: {{rules: [{{role: viewer, namespaces: [green], trust: [secret]}}, {{role: viewer, namespaces: [red]}}]}}\n"
    ));
    let tls = agent.root().join("tls");
    std::fs::create_dir(&tls).unwrap();
    let signed = authority.server();
    swap_secret(&tls, "first", &[("tls.crt", &signed.certificate), ("tls.key", &signed.key)]);
    let (kubeconfig, ca) = (agent.root().join("kubeconfig"), agent.root().join("ca.pem"));
    std::fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
    std::fs::write(&ca, authority.pem()).unwrap();
    agent.env("KUBECONFIG", kubeconfig);
    agent.launch();
    agent.wait_ready();
    let request = v1::RefreshRepositoryRequest { url: url.clone(), only_if_empty: true };
    let mut events = agent.repository().await.refresh_repository(request).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}

    let served = format!("https://127.0.0.1:{port}/git/{}", url.strip_prefix("http://").unwrap());
    let clone = |namespace: &'static str, place: &str| {
        let header = format!("http.extraHeader=Authorization: Bearer {}", cluster.token(&of(namespace, "x")));
        let ca = format!("http.sslCAInfo={}", ca.display());
        let place = agent.root().join(place);
        let args = ["-c", &ca, "-c", &header, "clone", "--quiet", &served, place.to_str().unwrap()];
        git(agent.root()).args(args).output().unwrap()
    };
    let cloned = clone("green", "green");
    assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
    assert!(agent.root().join("green/README.md").is_file());
    let refused = clone("red", "red");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not found"), "{refused:?}");

    // Another authority, without a restart.
    let next = Authority::new("next");
    let signed = next.server();
    swap_secret(&tls, "second", &[("tls.crt", &signed.certificate), ("tls.key", &signed.key)]);
    std::fs::write(&ca, next.pem()).unwrap();
    let mut number = 0;
    wait::until(Duration::from_secs(60), "the new certificate", || {
        number += 1;
        clone("green", &format!("again-{number}")).status.success()
    });
}
