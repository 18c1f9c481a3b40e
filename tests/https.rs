//! Upstreams that are reached by `https`, by the agent's own HTTP and by git.

use stoker_proto::v1;

use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::Agent;
use crate::support::tls::Tls;
use crate::support::upstream::Upstream;
use crate::support::wire::{reason, source};

const CONFIGURATION: &str = "listen: {socket: $ROOT/run/stoker.sock, http: {address: \"127.0.0.1:$PORT\"}}\n\
                             pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 1}}]\n\
                             repositories: {refresh: 1h, add: on-demand, allow: [127.0.0.1], protocols: [https]}\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_behind_tls_is_mirrored_once_its_certificate_is_trusted() {
    let repo = TestRepo::standard();
    let (upstream, plain) = Upstream::of(&repo);
    let tls = Tls::before(&plain).await;
    let url = tls.url(&plain);
    let ask = async |agent: &Agent| {
        let request = v1::ResolveSourceRequest { source: Some(source(&url, "branch:main")) };
        agent.repository().await.resolve_source(request).await
    };

    let stranger = Agent::start(CONFIGURATION);
    let refused = ask(&stranger).await.unwrap_err();
    assert_eq!(reason(&refused), "UPSTREAM_UNTRUSTED", "{refused:?}");
    assert_eq!(upstream.requests().total(), 0);
    drop(stranger);

    let mut agent = Agent::prepare(CONFIGURATION);
    agent.env("SSL_CERT_FILE", tls.certificate());
    agent.launch();
    agent.wait_ready();
    let resolved = ask(&agent).await.unwrap().into_inner().resolved.unwrap();
    assert_eq!(resolved.commit, repo.commit("main"));
    let new = repo.commit_file("main", "new.txt", b"new\n");
    upstream.reset();
    assert_eq!(ask(&agent).await.unwrap().into_inner().resolved.unwrap().commit, new);
    assert_eq!(upstream.requests().fetches, 1);
    upstream.reset();
    ask(&agent).await.unwrap();
    assert_eq!((upstream.requests().ls_refs, upstream.requests().total()), (1, 1), "the agent's own question");
    let from = format!("http://127.0.0.1:{}/git/{}", agent.http_port(), url.strip_prefix("https://").unwrap());
    let place = agent.root().join("clone");
    git_out(agent.root(), &["clone", "--quiet", &from, place.to_str().unwrap()]);
    assert_eq!(git_out(&place, &["rev-parse", "HEAD"]), new);
}
