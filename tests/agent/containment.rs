//! Git children: as whom they run, what they may, and what becomes of what they wrote.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use stoker_proto::v1::reason::Code as Why;

use super::*;
use crate::support::loopdev::needs_root;
use crate::support::repository::TestRepo;
use crate::support::upstream::{Fault, Upstream};

/// As whom git runs where nothing else is said.
const GIT_USER: u32 = 65532;

/// A process below the agent.
pub(super) struct Child {
    pub(super) pid: u32,
    pub(super) command: String,
}

/// The agent's children and theirs, and those of its helper where it has one.
pub(super) fn git_children(agent: u32) -> Vec<Child> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let below =
        |pid: u32| std::iter::successors(Some(pid), |pid| parents.get(pid).copied()).skip(1).any(|up| up == agent);
    let of = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let helped = helped_by(&of(agent));
    let all = parents.keys().copied().filter(|pid| below(*pid) || helped(*pid));
    all.map(|pid| Child { pid, command: String::from_utf8_lossy(&of(pid)).into_owned() }).collect()
}

/// Whether a process is the helper's of the agent with this command line: by the mark that git has there.
fn helped_by(agent: &[u8]) -> impl Fn(u32) -> bool + use<> {
    let place =
        agent.split(|byte| *byte == 0).find_map(|word| std::str::from_utf8(word).ok()?.strip_suffix("/agent.yaml"));
    let mark = place.map(|root| format!("STOKER_GIT_OF={root}/git/git.sock\0"));
    move |pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        mark.as_ref().is_some_and(|mark| String::from_utf8_lossy(&environment).contains(mark))
    }
}

/// The pool's part that is the agent's, where it is there.
pub(super) fn ours(agent: &Agent) -> Option<PathBuf> {
    Some(agent.root().join("pool/stoker/repositories")).filter(|path| path.is_dir())
}

/// The folders of repositories, by a word in their names.
fn folder(agent: &Agent, word: &str) -> PathBuf {
    let entries = std::fs::read_dir(ours(agent).unwrap()).unwrap().flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().contains(word);
    entries.into_iter().find(named).unwrap_or_else(|| panic!("no folder {word}"))
}

/// One line of a file of `/proc/PID`.
fn line(pid: u32, file: &str, begins: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("no {begins} in {text}"));
    line.trim_start_matches(begins).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The git that fetches from a silent upstream, once it is git.
fn waiting_git(agent: u32) -> u32 {
    let mut found = None;
    wait::until(LIMIT, "git waits for its upstream", || {
        let children = git_children(agent);
        found = children.iter().find(|child| child.command.starts_with("git\0clone\0")).map(|child| child.pid);
        found.is_some() && children.iter().any(|child| child.command.contains("remote-http"))
    });
    found.unwrap()
}

/// Limits, and where the kernel begins.
fn assert_bounded(pid: u32, processes: Option<&str>) {
    assert_eq!(line(pid, "limits", "Max core file size"), "0 0 bytes");
    assert_eq!(line(pid, "limits", "Max data size"), "1073741824 1073741824 bytes");
    assert_eq!(line(pid, "limits", "Max open files"), "4096 4096 files");
    if let Some(processes) = processes {
        assert_eq!(line(pid, "limits", "Max processes"), processes);
    }
    assert_eq!(line(pid, "status", "NoNewPrivs:"), "1");
    assert_eq!(line(pid, "oom_score_adj", ""), "500");
}

/// With lines of its own under `repositories`.
fn with(mirrors: &[&str], repositories: &str) -> String {
    configuration(PLAIN, mirrors).replace("  refresh: 24h\n", &format!("  refresh: 24h\n{repositories}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_has_a_user_of_its_own_and_bounds() {
    needs_root!();
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::HangFetch);
    let agent = start(&with(&[&url], "  git: {memory: 1GiB, processes: 777}\n"));
    let pid = waiting_git(agent.pid());
    for field in ["Uid:", "Gid:"] {
        assert_eq!(line(pid, "status", field), [GIT_USER.to_string().as_str(); 4].join(" "));
    }
    assert_eq!(line(pid, "status", "Groups:"), "");
    assert_eq!(line(pid, "status", "CapPrm:"), "0000000000000000");
    assert_bounded(pid, Some("777 777 processes"));
    upstream.fault(Fault::None);
    mirror_ready(&agent, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_own_command_has_the_bounds_and_no_other_user() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::HangFetch);
    let stoker = crate::support::stoker::Stoker::new();
    let running = stoker.command(["run", "--repo", &url, "--", "true"]).spawn();
    let pid = waiting_git(running.pid());
    assert_eq!(line(pid, "status", "Uid:"), [nix::unistd::getuid().to_string().as_str(); 4].join(" "));
    assert_eq!(line(pid, "limits", "Max data size"), "2147483648 2147483648 bytes");
    assert_eq!(line(pid, "oom_score_adj", ""), "500");
    upstream.fault(Fault::None);
    running.wait().expect_code(0);
}

/// Whether git's user can do this.
fn as_git_user(script: &str, path: &Path) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(path).uid(GIT_USER).gid(GIT_USER).stderr(Stdio::null()).current_dir("/");
    command.status().unwrap().success()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_the_agents_and_other_stores_are_closed() {
    needs_root!();
    let (one, two) = (TestRepo::standard(), TestRepo::standard());
    let upstream = Upstream::start();
    let (url, other) = (upstream.host("team/one.git", &one), upstream.host("team/two.git", &two));
    let agent = start(&configuration(PLAIN, &[&url, &other]));
    mirror_ready(&agent, &url).await;
    mirror_ready(&agent, &other).await;
    // A fetch, not only a clone.
    one.commit_file("main", "new", b"new\n");
    refresh(&agent, &url).await.unwrap();
    let folder = folder(&agent, "one");
    let snapshots = folder.join("snapshots");
    let mut packs = 0;
    for (name, kind) in listing(&snapshots) {
        let path = snapshots.join(&name);
        let (mode, uid, gid) = mode_of(&path);
        assert_eq!((uid, gid), (0, 0), "{name}");
        assert_eq!(mode & 0o022, 0, "{name} is {mode:o}");
        if kind == "file" && name.contains("objects/") {
            assert_eq!(mode, 0o444, "{name}");
            packs += usize::from(name.ends_with(".pack"));
        }
    }
    assert!(packs >= 3, "{packs} packs in two snapshots");
    // Git's user can read what it shall serve, and nothing more.
    let newest = snapshots.join("2");
    assert!(as_git_user("cat \"$1\" > /dev/null", &newest.join("packed-refs")));
    assert!(as_git_user("cat \"$1\"/objects/pack/*.pack > /dev/null", &newest));
    for (script, path) in [
        ("echo x > \"$1\"/objects/pack/x", newest.clone()),
        ("ls \"$1\"", folder.join("store.git")),
        ("echo x > \"$1\"/objects/pack/x", folder.join("store.git")),
        ("rm -r \"$1\"/objects", folder.join("store.git")),
        ("mkdir \"$1\"/x", folder.clone()),
        ("mv \"$1\"/store.git \"$1\"/x", folder.clone()),
    ] {
        assert!(!as_git_user(script, &path), "{script} {}", path.display());
    }
}

/// A git in the real one's place that answers `ls-remote` by this script.
fn stand_in(agent: &mut Agent, script: &str) {
    let dir = agent.root().join("programs");
    std::fs::create_dir(&dir).unwrap();
    let real = String::from_utf8(Command::new("sh").args(["-c", "command -v git"]).output().unwrap().stdout).unwrap();
    let text = format!("#!/bin/sh\nif [ \"$1\" = ls-remote ]; then\n{script}\nfi\nexec {} \"$@\"\n", real.trim());
    std::fs::write(dir.join("git"), text).unwrap();
    std::fs::set_permissions(dir.join("git"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    agent.env("PATH", format!("{}:{path}", dir.display()));
}

#[tokio::test(flavor = "multi_thread")]
async fn landlock_keeps_a_child_to_its_own_files() {
    needs_root!();
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    // So that git is asked to list its refs.
    upstream.fault(Fault::Protocol0);
    let mut agent = prepared(&configuration(PLAIN, &[&url]));
    let (open, theirs) = (agent.root().join("open"), agent.root().join("theirs"));
    std::fs::write(&open, "readable by all\n").unwrap();
    std::fs::create_dir(&theirs).unwrap();
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o777)).unwrap();
    // A process of the same user, which it could end and read without landlock.
    let mut sibling = Command::new("sleep").arg("300").uid(GIT_USER).gid(GIT_USER).current_dir("/").spawn().unwrap();
    let script = format!(
        "r() {{ if \"$@\" > /dev/null 2>&1; then echo did; else echo not; fi; }}\n\
         echo \"fatal: read $(r cat '{}') write $(r mkdir '{}/x') kill $(r kill -0 {pid}) \
         peek $(r cat /proc/{pid}/environ) null $(r dd if=/dev/null of=/dev/null) hosts $(r cat /etc/hosts)\" >&2\nexit 1",
        open.display(),
        theirs.display(),
        pid = sibling.id()
    );
    stand_in(&mut agent, &script);
    agent.launch();
    agent.wait_ready();
    let tried =
        async || repository(&agent, &url).await.reasons.iter().any(|reason| reason.message.contains("fatal: read"));
    wait::until_async(LIMIT, "the child tried", tried).await;
    let said = repository(&agent, &url).await.reasons[0].message.clone();
    let log = agent.log();
    sibling.kill().unwrap();
    sibling.wait().unwrap();
    if log.contains("landlock keeps its files, TCP and signals") {
        assert!(said.contains("read not write not kill not peek not null did hosts did"), "{said}");
    } else {
        // The line that says what this kernel has is there in every case.
        assert!(log.contains("landlock"), "{log}");
        assert!(said.contains("null did hosts did"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_upstream_of_root_is_read_by_gits_user() {
    needs_root!();
    let repo = TestRepo::standard();
    let url = format!("file://{}", repo.path().display());
    let text = configuration(PLAIN, &[&url]).replace("protocols: [http]", "protocols: [file]");
    let agent = start(&text);
    mirror_ready(&agent, &url).await;
    let new = repo.commit_file("main", "new", b"new\n");
    refresh(&agent, &url).await.unwrap();
    assert_eq!(resolve(&agent, branch(&url, "main"), LIMIT).await.unwrap().resolved.unwrap().commit, new);
    // One that git's user may not read is told as that.
    std::fs::set_permissions(repo.path().parent().unwrap(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let status = refresh(&agent, &url).await.unwrap_err();
    assert_eq!(word(&status), "REPOSITORY_FOREIGN_OWNER", "{status:?}");
    assert!(status.message().contains("chmod -R o+rX"), "{}", status.message());
}

/// A pool below a directory that nobody but root enters.
fn closed(agent: &Agent) -> PathBuf {
    let closed = agent.root().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::create_dir(closed.join("pool")).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    closed
}

const CLOSED_POOL: &str = "path: $ROOT/closed/pool, mount: optional";

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_gits_user_does_not_reach_is_an_alarm() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = prepared(&configuration(CLOSED_POOL, &[&url]));
    let closed = closed(&agent);
    agent.launch();
    agent.wait_ready();
    mirror_ready(&agent, &url).await;
    let told = |now: &v1::Status| now.alarms.iter().any(|alarm| alarm.code() == Why::ContainmentReduced);
    let now = status_until(&agent, "reduced containment is an alarm", told).await;
    let alarm = now.alarms.iter().find(|alarm| alarm.code() == Why::ContainmentReduced).unwrap();
    assert!(alarm.message.contains(&closed.display().to_string()) && alarm.message.contains("chmod o+x"), "{alarm:?}");
    let doctor = agent.stoker().run(["doctor"]).expect_code(1);
    assert!(doctor.stdout.contains("CONTAINMENT_REDUCED"), "{}", doctor.stdout);
    // Mended, it is contained from the next visit on, over the store that root filled.
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o711)).unwrap();
    repo.commit_file("main", "new", b"new\n");
    refresh(&agent, &url).await.unwrap();
    status_until(&agent, "the alarm ends", |now| !told(now)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_is_named_is_the_only_one() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let text = configuration(CLOSED_POOL, &[&url]);
    let mut agent = prepared(&text.replace("  refresh: 24h\n", "  refresh: 24h\n  git: {user: \"12345:12345\"}\n"));
    let closed = closed(&agent);
    agent.launch();
    agent.wait_ready();
    let failed = async || {
        let reasons = repository(&agent, &url).await.reasons;
        codes(&reasons).contains(&Why::ContainmentReduced)
    };
    wait::until_async(LIMIT, "nothing is fetched as another", failed).await;
    assert_eq!(repository(&agent, &url).await.state(), v1::RepositoryState::Empty);
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o711)).unwrap();
    refresh(&agent, &url).await.unwrap();
    mirror_ready(&agent, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_takes_too_much_memory_ends_and_says_so() {
    let (upstream, url) = Upstream::of(&TestRepo::standard());
    // Its refs are listed by git.
    upstream.fault(Fault::EndlessProtocol0);
    let agent = start(&with(&[&url], "  git: {memory: 256MiB}\n"));
    let ended = async || codes(&repository(&agent, &url).await.reasons).contains(&Why::GitMemoryLimit);
    wait::until_async(LIMIT, "the child is ended", ended).await;
    let mirror = repository(&agent, &url).await;
    let reason = mirror.reasons.iter().find(|reason| reason.code() == Why::GitMemoryLimit).unwrap();
    assert!(reason.message.contains("repositories.git.memory"), "{reason:?}");
}
