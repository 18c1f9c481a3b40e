//! The steps of `daemonset/examples`, run as their pods run them: beside an agent, and without one. Whether the
//! manifests around them are valid is for `tests/manifests/check.py`.

mod cluster;
mod fleet;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::free_port;
use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::{Agent, BINARY, Invocation, Output, Stoker};
use crate::support::upstream::Upstream;
use crate::support::wait;

/// Longer than a probe and what comes after it, shorter than a connection that nobody answers.
const SOON: Duration = Duration::from_secs(30);
const COMMIT: [(&str, &str); 2] = [("REF_TYPE", "branch"), ("REF_VALUE", "main")];

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/examples")
}

/// An agent that takes any repository of this machine.
const CONFIGURATION: &str = "listen: {socket: $ROOT/run/stoker.sock, http: {address: \"127.0.0.1:$PORT\"}}\n\
     node: {name: ghost, reserve: {cpu: 100m, memory: 64MiB}, rootFloor: {bytes: 1MiB, inodes: 1}}\n\
     pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 1}}]\n\
     repositories: {refresh: 1h, add: on-demand, allow: [127.0.0.1], protocols: [http]}\n";

fn node() -> Agent {
    Agent::start(CONFIGURATION)
}

/// `sh SCRIPT` in a home, where `stoker` is the binary under test.
fn sh<const N: usize>(stoker: &Stoker, args: [&str; N], more: &[(&str, &str)]) -> Invocation {
    program(stoker, "sh", args, more)
}

/// `PROGRAM ARGS`, and the rest the same.
fn program<const N: usize>(stoker: &Stoker, name: &str, args: [&str; N], more: &[(&str, &str)]) -> Invocation {
    let path = std::env::var("PATH").unwrap();
    let folder = Path::new(BINARY).parent().unwrap().display();
    let mut invocation = stoker.program(name, args).env("PATH", format!("{folder}:{path}"));
    for (name, value) in more {
        invocation = invocation.env(name, value);
    }
    invocation
}

/// A script of `steps`, run to its end.
fn step(stoker: &Stoker, name: &str, more: &[(&str, &str)]) -> Output {
    let script = examples().join("steps").join(name);
    sh(stoker, [script.to_str().unwrap()], more).deadline(SOON).run()
}

/// Where the agent's HTTP is.
fn http(agent: &Agent) -> String {
    format!("http://127.0.0.1:{}", agent.http_port())
}

/// A file that `admit.sh` left in the folder `result`.
fn result(stoker: &Stoker, name: &str) -> String {
    std::fs::read_to_string(stoker.home().join("result").join(name)).unwrap()
}

/// `admit.sh` for `main` of a repository, with more in its environment.
fn admit(stoker: &Stoker, repo: &str, more: &[(&str, &str)]) -> Output {
    admit_by(step, stoker, repo, more)
}

/// How a step is run.
type Way = fn(&Stoker, &str, &[(&str, &str)]) -> Output;

fn admit_by(step: Way, stoker: &Stoker, repo: &str, more: &[(&str, &str)]) -> Output {
    let place = stoker.home().join("result");
    let mut environment = vec![("REPO", repo), ("REQUEST_ID", "a-build"), ("RESULT", place.to_str().unwrap())];
    environment.extend([("CPU", "100m"), ("MEMORY", "64MiB"), ("DISK", "16MiB"), ("TIME", "10m")]);
    environment.extend(COMMIT);
    environment.extend(more);
    step(stoker, "admit.sh", &environment)
}

fn state(agent: &Agent, lease: &str) -> Value {
    agent.stoker().run(["lease", "show", lease, "-o", "json"]).expect_code(0).json()["lease"]["state"].clone()
}

#[test]
fn admission_gives_a_workspace_and_a_release_ends_it() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = node();
    let stoker = agent.stoker();
    let more = [("WORKSPACE", "yes"), ("TENANT", "red")];
    admit(stoker, &url, &more).expect_code(0);
    let lease = result(stoker, "lease");
    assert_eq!(result(stoker, "commit"), repo.commit("main"));
    assert!(!result(stoker, "node").is_empty());
    let workspace = PathBuf::from(result(stoker, "workspace"));
    assert_eq!(std::fs::read_to_string(workspace.join("src/README.md")).unwrap(), "# Project\n\nMore.\n");
    // What the build's container begins with.
    let begin = ". \"$WORKSPACE/environment\"; cd \"$STOKER_SRC\"; exec sh -c \"$COMMAND\"";
    let built = sh(
        stoker,
        ["-euc", begin],
        &[("WORKSPACE", workspace.to_str().unwrap()), ("COMMAND", "cat README.md; echo \"$STOKER_LEASE\"")],
    )
    .run()
    .expect_code(0);
    assert_eq!(built.stdout, format!("# Project\n\nMore.\n{lease}\n"));
    // The step, tried again.
    admit(stoker, &url, &more).expect_code(0);
    assert_eq!(result(stoker, "lease"), lease);

    step(stoker, "release.sh", &[("LEASE", &lease), ("EXIT_CODE", "0")]).expect_code(0);
    assert_eq!(state(&agent, &lease), "LEASE_STATE_RELEASED");
    wait::until(SOON, "the workspace ends with its lease", || !workspace.exists());
    let again = step(stoker, "release.sh", &[("LEASE", "06h000000000none"), ("OUTCOME", "failed")]).expect_code(0);
    assert!(again.stderr.contains("was not released: it ends with its pod"), "{}", again.stderr);
}

#[test]
fn what_never_fits_stops_the_build_and_says_why() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = node();
    let refused = admit(agent.stoker(), &url, &[("CPU", "1000")]).expect_code(1);
    assert!(refused.stderr.contains("CPU_BUDGET"), "{}", refused.stderr);
    assert_eq!(result(agent.stoker(), "lease"), "");
    let wrong = admit(agent.stoker(), &url, &[("REF_TYPE", "brunch")]).expect_code(64);
    assert!(wrong.stderr.contains("REF_TYPE is 'brunch': it must be branch"), "{}", wrong.stderr);
}

#[test]
fn without_an_agent_the_build_goes_on_with_upstreams_commit() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let stoker = Stoker::new();
    for (kind, name, commit) in [
        ("branch", "feature/with-slash", repo.commit("feature/with-slash")),
        ("pr", "152", repo.commit("refs/pull/152/head")),
        ("sha", repo.unreferenced(), repo.unreferenced().to_owned()),
    ] {
        let told = admit(&stoker, &url, &[("REF_TYPE", kind), ("REF_VALUE", name), ("WORKSPACE", "yes")]);
        assert!(told.expect_code(0).stderr.contains("no agent answers on this node"));
        assert_eq!(result(&stoker, "commit"), commit);
        for empty in ["lease", "node", "workspace"] {
            assert_eq!(result(&stoker, empty), "", "{empty}");
        }
    }
    step(&stoker, "bind.sh", &[("LEASE", "")]).expect_code(0);
    step(&stoker, "release.sh", &[("LEASE", "")]).expect_code(0);
    // One that was granted before the agent went.
    step(&stoker, "release.sh", &[("LEASE", "06h000000000gone"), ("EXIT_CODE", "0")]).expect_code(0);
    admit(&stoker, &url, &[("REF_VALUE", "absent")]).expect_code(2);
}

/// Runs something that fetches `main` from wherever `STOKER_HTTP` leads, and gives what it said, how often upstream was
/// asked for objects, and what was checked out.
fn fetched(upstream: &Upstream, run: impl FnOnce(&Path) -> Output) -> (String, usize, String) {
    let place = tempfile::tempdir().unwrap();
    upstream.reset();
    let began = Instant::now();
    let output = run(place.path()).expect_code(0);
    assert!(began.elapsed() < SOON);
    let head = git_out(place.path(), &["rev-parse", "HEAD"]);
    assert!(place.path().join("src/deep/er/nested.rs").is_file());
    (output.stdout + &output.stderr, upstream.requests().fetches, head)
}

/// Both ways to fetch: the step, and the lines that stand in Woodpecker's file.
fn fetches(stoker: &Stoker, url: &str, base: &str, folder: &Path, woodpecker: bool) -> Output {
    if !woodpecker {
        let src = folder.to_str().unwrap();
        let mut environment = vec![("REPO", url), ("SRC", src), ("STOKER_HTTP", base)];
        environment.extend(COMMIT);
        return step(stoker, "sources.sh", &environment);
    }
    let text = std::fs::read_to_string(examples().join("woodpecker.yaml")).unwrap();
    let pipeline: Value = serde_saphyr::from_str(&text).unwrap();
    // Woodpecker takes `$$` for a dollar.
    let lines = pipeline["clone"]["sources"]["commands"][0].as_str().unwrap().replace("$$", "$");
    let commit = git_out(folder, &["ls-remote", url, "refs/heads/main"]);
    let environment = [
        ("CI_REPO_CLONE_URL", url),
        ("CI_COMMIT_SHA", commit.split_whitespace().next().unwrap()),
        ("STOKER_HTTP", base),
    ];
    sh(stoker, ["-c", &lines], &environment).current_dir(folder).deadline(SOON).run()
}

#[test]
fn sources_come_from_the_node_and_from_upstream_where_it_does_not_answer() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = node();
    agent.stoker().run(["repo", "add", &url]).expect_code(0);
    agent.stoker().run(["repo", "refresh", &url]).expect_code(0);
    // It takes connections, as a node does whose agent hangs, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let bases = [
        (http(&agent), "from this node's cache", 0),
        (format!("http://127.0.0.1:{}", free_port()), "from upstream", 1),
        (format!("http://{}", silent.local_addr().unwrap()), "from upstream", 1),
    ];
    for (base, said, asked) in &bases {
        for woodpecker in [false, true] {
            let run = |folder: &Path| fetches(agent.stoker(), &url, base, folder, woodpecker);
            let (told, requests, head) = fetched(&upstream, run);
            assert!(told.contains(said), "{told}");
            assert_eq!(requests, *asked, "{told}");
            assert_eq!(head, repo.commit("main"));
        }
    }
    // What the node does not keep, and may not, it sends to upstream.
    let elsewhere = Upstream::start();
    let other = elsewhere.host("other.git", &repo).replace("127.0.0.1", "localhost");
    let run = |folder: &Path| fetches(agent.stoker(), &other, &http(&agent), folder, false);
    let (_, requests, _) = fetched(&elsewhere, run);
    assert_eq!(requests, 1);
}

#[test]
fn tools_that_know_no_rewriting_are_told_where_the_cache_is() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = node();
    let stoker = agent.stoker();
    let host = url.strip_prefix("http://").unwrap().split_once('/').unwrap().0;
    let (there, away) = (http(&agent), format!("http://127.0.0.1:{}", free_port()));
    let file = stoker.home().join("told");
    let name = file.to_str().unwrap();
    let told = |script: &str, more: &[(&str, &str)]| {
        step(stoker, script, more).expect_code(0);
        std::fs::read_to_string(&file).unwrap()
    };

    let commit = repo.commit("main");
    let context =
        |base| told("context.sh", &[("REPO", &url), ("COMMIT", &commit), ("CONTEXT", name), ("STOKER_HTTP", base)]);
    let (cached, id) =
        context(&there).split_once('#').map(|(left, right)| (left.to_owned(), right.to_owned())).unwrap();
    assert!(cached.starts_with(&there) && cached.ends_with(".git") && id == commit, "{cached}");
    assert!(git_out(stoker.home(), &["ls-remote", &cached]).contains(&commit));
    assert_eq!(context(&away), format!("{url}#{commit}"));

    let alias = format!("here=http:/{host}/");
    let configuration = |base| -> Value {
        let more = [("CONFIGURATION", name), ("PROJECT_NAME", "p"), ("ALIASES", &alias), ("STOKER_HTTP", base)];
        serde_saphyr::from_str(&told("buildstream.sh", &more)).unwrap()
    };
    let mirrors = &configuration(&there)["projects"]["p"]["mirrors"];
    assert_eq!(mirrors[0]["name"], "stoker");
    let mirror = mirrors[0]["aliases"]["here"][0].as_str().unwrap();
    assert!(git_out(stoker.home(), &["ls-remote", &format!("{mirror}team/project.git")]).contains(&commit));
    assert!(configuration(&away)["projects"].is_null());
}

#[test]
fn an_environment_of_a_user_finds_the_cache_or_upstream() {
    let text = std::fs::read_to_string(examples().join("starlingx-user.yaml")).unwrap();
    let pod: Value = serde_saphyr::from_str(&text).unwrap();
    let script = pod["spec"]["template"]["spec"]["containers"][0]["command"][2].as_str().unwrap();
    let steps = examples().join("steps");
    // Its home is the user's disk; a test does not stay.
    let script = script.replace("/steps/", &format!("{}/", steps.display())).replace("exec sleep infinity", ":");
    let agent = node();
    let stoker = agent.stoker();
    let rewrites = |base: &str| {
        sh(stoker, ["-euc", &script], &[("STOKER_HTTP", base)]).deadline(SOON).run().expect_code(0);
        let list = stoker.program("git", ["config", "--global", "--get-regexp", "insteadof"]).run();
        list.stdout.lines().count()
    };
    assert_eq!(rewrites(&http(&agent)), 1);
    // A restart adds none.
    assert_eq!(rewrites(&http(&agent)), 1);
    let base = http(&agent);
    drop(agent);
    let stoker = Stoker::new();
    sh(&stoker, ["-euc", &script], &[("STOKER_HTTP", &base)]).deadline(SOON).run().expect_code(0);
    assert!(!stoker.home().join(".gitconfig").exists());
}
