//! The oldest git that is supported, where the machine has one beside the newest.

use std::process::Command;

use stoker_proto::v1;

use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wire::source;

/// Where a distribution puts its own.
const SYSTEM: &str = "/usr/bin:/bin:/usr/sbin:/sbin";

fn version(path: &str) -> Option<String> {
    let output = Command::new("git").arg("version").env("PATH", path).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_systems_git_mirrors_serves_and_checks_out() {
    let (own, newest) = (version(SYSTEM), version(&std::env::var("PATH").unwrap()));
    if own.is_none() || own == newest {
        eprintln!("no other git than {newest:?}: nothing more to show");
        return;
    }
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = Agent::prepare(
        "listen: {socket: $ROOT/run/stoker.sock, http: {address: \"127.0.0.1:$PORT\"}}\n\
         pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 1}}]\n\
         repositories: {refresh: 1h, add: on-demand, allow: [127.0.0.1], protocols: [http], upkeep: {every: 1s}}\n",
    );
    agent.env("PATH", SYSTEM);
    agent.launch();
    agent.wait_ready();
    let status = agent.node().await.get_status(v1::GetStatusRequest::default()).await.unwrap().into_inner();
    let git = status.status.unwrap().host.unwrap_or_default().git_version;
    assert!(own.as_ref().is_some_and(|own| own.contains(&git)), "{git} is {own:?}");
    for round in 0..3 {
        let new = repo.commit_file("main", &format!("new-{round}.txt"), b"new\n");
        let request = v1::ResolveSourceRequest { source: Some(source(&url, "branch:main")) };
        let resolved = agent.repository().await.resolve_source(request).await.unwrap().into_inner().resolved.unwrap();
        assert_eq!(resolved.commit, new);
        let from = format!("http://127.0.0.1:{}/git/{}", agent.http_port(), url.strip_prefix("http://").unwrap());
        let place = agent.root().join(format!("clone-{round}"));
        git_out(agent.root(), &["clone", "--quiet", &from, place.to_str().unwrap()]);
        assert_eq!(git_out(&place, &["rev-parse", "HEAD"]), new);
        git_out(&place, &["fsck", "--no-dangling", "--no-progress"]);
    }
    let socket = agent.socket();
    let socket = ["--socket", socket.to_str().unwrap()];
    let made = agent
        .stoker()
        .run([&["workspace", "prepare", "--repo", &url, "--for", "5m", "-o", "json"], &socket[..]].concat());
    let made = made.expect_code(0).json();
    let src = std::path::PathBuf::from(made["workspace"]["src"].as_str().unwrap());
    assert_eq!(git_out(&src, &["status", "--porcelain"]), "");
    assert_eq!(git_out(&src, &["rev-parse", "HEAD"]), repo.commit("main"));
    agent.stoker().run([&["repo", "verify", "--full", &url], &socket[..]].concat()).expect_code(0);
}
