//! Start and stop.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stoker_proto::v1;

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::{Fault, Upstream};

fn send(agent: &Agent, signal: Signal) {
    kill(Pid::from_raw(agent.pid().cast_signed()), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_streams_and_the_agent() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let mut agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let mode = v1::SetModeRequest { mode: v1::Mode::Maintenance.into(), ..Default::default() };
    agent.node().await.set_mode(mode).await.unwrap();
    let mut awaiting = Awaiting::begin(&agent, order("waits", branch(&url, "main"), small())).await;
    awaiting.next().await.waiting();
    let watched = agent.node().await.watch_status(v1::WatchStatusRequest {}).await.unwrap();
    let mut watched = watched.into_inner();
    watched.message().await.unwrap().unwrap();
    // And a fetch that hangs.
    upstream.fault(Fault::Hang);
    let request = v1::RefreshRepositoryRequest { url, only_if_empty: false };
    let mut refreshed = agent.repository().await.refresh_repository(request).await.unwrap().into_inner();
    refreshed.message().await.unwrap().unwrap();

    let begin = Instant::now();
    send(&agent, Signal::SIGTERM);
    let ended = tokio::time::timeout(LIMIT, awaiting.0.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    let ends = async { while let Ok(Some(_)) = watched.message().await {} };
    tokio::time::timeout(LIMIT, ends).await.unwrap();
    let ends = async { while let Ok(Some(_)) = refreshed.message().await {} };
    tokio::time::timeout(LIMIT, ends).await.unwrap();
    wait::until(LIMIT, "the agent ended", || agent.ended().is_some());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(agent.ended().unwrap().code(), Some(0), "{}", agent.log());
    assert!(!agent.socket().exists());
    drop(upstream);
}

/// A client that holds a stream open and never reads it keeps the agent no longer than the limit; a second signal ends it
/// before.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_agent_at_once() {
    let mut agent = start(&configuration(PLAIN, &[]));
    // A connection that sends half a request keeps the servers open.
    let mut open = std::os::unix::net::UnixStream::connect(agent.socket()).unwrap();
    std::io::Write::write_all(&mut open, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    status(&agent).await;
    send(&agent, Signal::SIGTERM);
    wait::until(LIMIT, "it is told", || {
        agent.log().contains("a second signal ends at once") || agent.ended().is_some()
    });
    let begin = Instant::now();
    if agent.ended().is_none() {
        send(&agent, Signal::SIGTERM);
    }
    wait::until(LIMIT, "the agent ended", || agent.ended().is_some());
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    let status = agent.ended().unwrap();
    assert!(status.signal().is_none(), "{status}");
    drop(open);
}

#[test]
fn configuration_errors_touch_nothing() {
    for (text, named) in [
        ("pools: []\nstate: $ROOT/fresh/state\n", "pools"),
        ("pools: [{name: data, path: relative, mount: optional}]\nstate: $ROOT/fresh/state\n", "path"),
        ("pools: [{name: data, path: $ROOT/fresh/pool, mount: optional, flor: 1}]\nstate: $ROOT/fresh/state\n", "flor"),
        ("pools: [{name: data, path: $ROOT/fresh/pool, mount: optional}\nstate: $ROOT/fresh/state\n", "agent.yaml:5"),
    ] {
        let agent = Agent::prepare(text);
        let before = listing(agent.root());
        let path = agent.root().join("agent.yaml");
        let output = agent.stoker().run(["agent".as_ref(), "--config".as_ref(), path.as_os_str()]).expect_code(64);
        assert!(output.stderr.contains(named), "{}", output.stderr);
        assert_eq!(output.stdout, "");
        assert_eq!(listing(agent.root()), before, "{text}");
    }
    let agent = prepared(&configuration(PLAIN, &[]));
    agent.stoker().run(["agent", "--config", "/nonexistent/agent.yaml"]).expect_code(64);
    assert!(!Path::new("/nonexistent").exists());
}

/// What the number is on a debug build is printed, and is no promise; that it does not wait for upstream is.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_mirrors_are_there_soon_after_a_kill() {
    let repo = TestRepo::standard();
    let upstream = Upstream::start();
    let urls: Vec<_> = (0..20).map(|number| upstream.host(&format!("team/project{number}.git"), &repo)).collect();
    let names: Vec<_> = urls.iter().map(String::as_str).collect();
    let mut agent = start(&configuration(PLAIN, &names));
    for url in &urls {
        mirror_ready(&agent, url).await;
    }
    upstream.fault(Fault::Hang);
    agent.kill9();
    let begin = Instant::now();
    agent.launch();
    agent.wait_ready();
    let listening = begin.elapsed();
    let found = resolve(&agent, commit(&urls[19], &repo.commit("main")), LIMIT).await.unwrap();
    assert_eq!(found.resolved.unwrap().origin(), v1::Origin::Cache);
    eprintln!("20 mirrors: listening {listening:?} after the start, a source resolved after {:?}", begin.elapsed());
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
}
