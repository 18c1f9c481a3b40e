//! Git in a helper: as in a pod's second container, in another mount and pid namespace, as another user.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use stoker_proto::v1::reason::Code as Why;

use super::*;
use crate::support::cgroup::{MemoryGroup, made};
use crate::support::disk::leftovers;
use crate::support::git_helper::{CONTAINER, GitHelper};
use crate::support::loopdev::needs_root;
use crate::support::processes::workers;
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::{Fault, Upstream};

/// Starts git's container for an agent that was prepared for one.
fn container(agent: &Agent) -> GitHelper {
    GitHelper::start(agent.root(), &[], &CONTAINER)
}

/// An agent whose git is to run in a helper, with that.
fn with_container(mirrors: &[&str]) -> (Agent, GitHelper) {
    let mut agent = prepared(&GitHelper::configured(&configuration(PLAIN, mirrors)));
    let helper = container(&agent);
    agent.launch();
    agent.wait_ready();
    (agent, helper)
}

/// The git that clones, once it waits for its upstream.
fn cloning(agent: &Agent) -> u32 {
    let mut found = None;
    wait::until(LIMIT, "git waits for its upstream", || {
        let all = workers(agent.root());
        found = all.iter().find(|(_, command)| command.starts_with("git clone ")).map(|(pid, _)| *pid);
        found.is_some() && all.iter().any(|(_, command)| command.contains("remote-http"))
    });
    found.unwrap()
}

fn namespace(pid: u32, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// Waits until nobody works for this agent.
fn nothing_runs(agent: &Agent) {
    wait::until(LIMIT, "no git is left", || workers(agent.root()).is_empty());
}

fn is_away(status: &v1::Status) -> bool {
    codes(&status.alarms).contains(&Why::GitHelperAway)
}

async fn waits_for_it(agent: &Agent, url: &str) {
    let waits = async || codes(&repository(agent, url).await.reasons).contains(&Why::GitHelperAway);
    wait::until_async(LIMIT, "the repository says why it is not filled", waits).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn git_runs_in_another_container_and_what_it_makes_is_the_agents() {
    needs_root!();
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::HangFetch);
    let (agent, _helper) = with_container(&[&url]);
    let git = cloning(&agent);
    for kind in ["mnt", "pid"] {
        assert_ne!(namespace(git, kind), namespace(agent.pid(), kind), "{kind}");
    }
    let line = |begins: &str| {
        let text = std::fs::read_to_string(format!("/proc/{git}/status")).unwrap();
        text.lines().find_map(|line| line.strip_prefix(begins)).unwrap().trim().replace('\t', " ")
    };
    assert_eq!((line("Uid:").as_str(), line("Groups:").as_str()), ("65532 65532 65532 65532", ""));
    assert_eq!((line("CapBnd:").is_empty(), line("CapPrm:").as_str()), (false, "0000000000000000"));
    assert_eq!(line("NoNewPrivs:"), "1");
    let limits = std::fs::read_to_string(format!("/proc/{git}/limits")).unwrap();
    assert!(limits.contains("2147483648") && limits.contains("4096                 processes"), "{limits}");
    upstream.fault(Fault::None);
    mirror_ready(&agent, &url).await;

    let new = repo.commit_file("main", "new", b"new\n");
    refresh(&agent, &url).await.unwrap();
    let resolved = resolve(&agent, branch(&url, "main"), LIMIT).await.unwrap().resolved.unwrap();
    assert_eq!(resolved.commit, new);
    let repositories = agent.root().join("pool/stoker/repositories");
    let published = listing(&repositories);
    assert!(published.keys().any(|name| name.ends_with(".pack")), "{published:?}");
    for name in published.keys() {
        let (mode, uid, gid) = mode_of(&repositories.join(name));
        assert_eq!((uid, gid, mode & 0o022), (0, 0, 0), "{name}");
    }
    let granted = admit(&agent, order("a", branch(&url, "main"), small())).await.unwrap().granted();
    let workspace = prepare(&agent, &granted.id).await.unwrap();
    assert_eq!(git_out(Path::new(&workspace.src), &["rev-parse", "HEAD"]).trim(), new);
    assert!(!is_away(&status(&agent).await));
    nothing_runs(&agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_is_killed_fails_what_runs_and_the_next_one_goes_on() {
    needs_root!();
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::HangFetch);
    let (mut agent, mut helper) = with_container(&[&url]);
    let pid = agent.pid();
    cloning(&agent);
    helper.kill9();
    waits_for_it(&agent, &url).await;
    let told = status_until(&agent, "the helper's end is an alarm", is_away).await;
    let alarm = told.alarms.iter().find(|alarm| alarm.code() == Why::GitHelperAway).unwrap();
    assert!(alarm.message.contains("git.sock") && alarm.subject == "repositories.git.helper", "{alarm:?}");
    let refused = refresh(&agent, &url).await.unwrap_err();
    assert_eq!((refused.code(), word(&refused).as_str()), (Code::Unavailable, "GIT_HELPER_AWAY"), "{refused:?}");
    assert!(refused.get_details_retry_info().is_some(), "{refused:?}");
    nothing_runs(&agent);
    let doctor = agent.stoker().run(["doctor"]).expect_code(1);
    assert!(doctor.stdout.contains("GIT_HELPER_AWAY"), "{}", doctor.stdout);

    upstream.fault(Fault::None);
    helper = container(&agent);
    // By itself.
    let mirror = mirror_ready(&agent, &url).await;
    status_until(&agent, "the alarm ends", |now| !is_away(now)).await;
    assert!((agent.ended().is_none(), agent.pid()) == (true, pid), "the agent lives on");
    for part in ["repositories", "stores"] {
        assert_eq!(leftovers(&agent.root().join("pool/stoker").join(part)), Vec::<PathBuf>::new());
    }
    assert_eq!(mirror.state(), v1::RepositoryState::Ready);
    drop(helper);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_git_outlives_its_agent_and_the_next_one_goes_on() {
    needs_root!();
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::HangFetch);
    let (mut agent, helper) = with_container(&[&url]);
    cloning(&agent);
    agent.kill9();
    nothing_runs(&agent);
    assert!(helper.listens(), "{}", helper.log());
    upstream.fault(Fault::None);
    agent.launch();
    agent.wait_ready();
    mirror_ready(&agent, &url).await;
}

/// On a machine without containers nothing but the next helper ends what one that was killed had started.
#[tokio::test(flavor = "multi_thread")]
async fn git_of_a_killed_helper_ends_before_the_next_one_listens() {
    needs_root!();
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::HangFetch);
    let mut agent = prepared(&GitHelper::configured(&configuration(PLAIN, &[&url])));
    let mut helper = GitHelper::start(agent.root(), &[], &[] as &[&str]);
    agent.launch();
    agent.wait_ready();
    cloning(&agent);
    let before = workers(agent.root());
    helper.kill9();
    waits_for_it(&agent, &url).await;
    let _helper = GitHelper::start(agent.root(), &[], &[] as &[&str]);
    let left: Vec<_> = workers(agent.root()).into_iter().filter(|worker| before.contains(worker)).collect();
    assert_eq!(left, []);
    upstream.fault(Fault::None);
    mirror_ready(&agent, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_comes_late_is_waited_for() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&GitHelper::configured(&configuration(PLAIN, &[&url])));
    status_until(&agent, "its absence is an alarm", is_away).await;
    waits_for_it(&agent, &url).await;
    let _helper = container(&agent);
    mirror_ready(&agent, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_of_another_user_is_none() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let text = GitHelper::configured(&configuration(PLAIN, &[&url]));
    let mut agent = prepared(&text.replace("  git: {", "  git: {user: \"12345:12345\", "));
    let helper = container(&agent);
    let written = std::fs::read_to_string(agent.root().join("agent.yaml")).unwrap();
    agent.configure(&written.replace("12345:12345", "12346:12346"));
    agent.launch();
    agent.wait_ready();
    let told = |now: &v1::Status| now.alarms.iter().any(|alarm| alarm.message.contains("user 12345, and not 12346"));
    status_until(&agent, "who it is is an alarm", told).await;
    drop(helper);
    let _helper = container(&agent);
    mirror_ready(&agent, &url).await;
}

/// A git that was taken over is the helper's user; it reaches the socket, and gets nothing there but that it is one.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_agent_is_started_anything_for() {
    needs_root!();
    let (_agent, helper) = with_container(&[]);
    let ask = "import socket, sys\n\
               s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
               s.connect(sys.argv[1])\ns.send(sys.argv[2].encode().replace(b'|', b'\\0'))\n\
               print(s.recv(1000).decode().replace('\\0', '|'))";
    let asked = |user: u32, request: &str| {
        let mut command = Command::new("python3");
        let output = command.args(["-c", ask]).arg(helper.socket()).arg(request).uid(user).gid(user).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    assert!(asked(65532, "ping|").starts_with("ready|"), "a probe is answered");
    for request in ["begin|mine|", "look|mine|/|", "run|mine|1|-|n|/|0|0|1|version|0|"] {
        let said = asked(65532, request);
        assert!(said.starts_with("refused|user 65532 is no agent"), "{request}: {said}");
    }
    assert!(asked(12345, "ping|").contains("Permission denied"), "the socket is its user's");
    // Nor does root get what another agent began, or what is no request.
    assert!(asked(0, "look|mine|/|").starts_with("refused|the agent that asks has not begun"));
    assert!(asked(0, "run|").starts_with("refused|this is no request"));
    assert!(helper.listens());
}

/// Git that needs more than its container has ends alone or with that; the agent, outside of it, sees nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn memory_that_git_takes_is_its_containers() {
    needs_root!();
    let group = made!(MemoryGroup::new(96 << 20));
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::EndlessProtocol0);
    let mut agent = prepared(&GitHelper::configured(&configuration(PLAIN, &[&url])));
    let enter = format!("{}; exec \"$@\"", group.enter());
    let below: Vec<&str> = ["sh", "-c", &enter, "sh"].into_iter().chain(CONTAINER).collect();
    let mut helper = GitHelper::start(agent.root(), &[], &below);
    agent.launch();
    agent.wait_ready();
    let pid = agent.pid();
    let ended = async || {
        let codes = codes(&repository(&agent, &url).await.reasons);
        codes.contains(&Why::GitKilled) || codes.contains(&Why::GitHelperAway)
    };
    wait::until_async(LIMIT, "git is killed", ended).await;
    assert!(agent.ended().is_none() && agent.pid() == pid, "the agent lives on");
    upstream.fault(Fault::None);
    if !helper.listens() {
        helper.kill9();
        helper = GitHelper::start(agent.root(), &[], &below);
    }
    refresh(&agent, &url).await.unwrap();
    mirror_ready(&agent, &url).await;
    drop(helper);
}

/// As one that was taken over might: what it leaves lives in a session of its own, and holds a directory of the store open.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_git_leaves_outside_of_its_group_ends_with_it() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = prepared(&GitHelper::configured(&configuration(PLAIN, &[&url])));
    let path = std::env::var("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|dir| dir.join("git")).find(|git| git.is_file()).unwrap();
    let bin = agent.root().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let seconds = format!("9{}", agent.root().file_name().unwrap().len() + std::process::id() as usize);
    let script = format!(
        "#!/bin/sh\nsetsid sh -c 'sleep {seconds} & sleep {seconds}' >/dev/null 2>&1 </dev/null &\nexec {} \"$@\"\n",
        real.display()
    );
    std::fs::write(bin.join("git"), script).unwrap();
    for part in [&bin, &bin.join("git")] {
        std::fs::set_permissions(part, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let found = ("PATH".into(), format!("{}:{path}", bin.display()).into());
    let helper = GitHelper::start(agent.root(), &[found], &CONTAINER);
    agent.launch();
    agent.wait_ready();
    mirror_ready(&agent, &url).await;
    for commit in 0..3 {
        repo.commit_file("main", "file", format!("{commit}\n").as_bytes());
        refresh(&agent, &url).await.unwrap();
    }
    nothing_runs(&agent);
    let left = workers(Path::new(&seconds));
    assert!(left.is_empty(), "{left:?}");
    assert!(helper.log().contains("processes that a git left"), "they were there: {}", helper.log());
}
