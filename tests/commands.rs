//! The commands as scripts use them: JSON on standard output that parses and keeps its names, and exit codes.

use serde_json::Value;

use crate::resolve::LOOPBACK;
use crate::support::repository::TestRepo;
use crate::support::stoker::{Agent, Output, Stoker};
use crate::support::upstream::Upstream;

/// `stoker ARGS -o json` at this agent.
#[track_caller]
fn asked(agent: &Agent, args: &[&str], code: i32) -> Value {
    agent.stoker().run(args.iter().chain(&["-o", "json"])).expect_code(code).json()
}

#[test]
fn a_build_goes_through_its_life_in_json() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(LOOPBACK);
    let main = repo.commit("main");

    let resolved = asked(&agent, &["resolve", &url, "pr:152"], 0);
    assert_eq!(resolved["resolved"]["commit"], repo.commit("refs/pull/152/head"));
    assert_eq!(resolved["resolved"]["cloneUrl"], url);
    assert_eq!(resolved["resolved"]["cloneRef"], "refs/pull/152/head");
    let listed = asked(&agent, &["repo", "list"], 0);
    assert_eq!(listed["repositories"][0]["url"], url);
    let shown = asked(&agent, &["repo", "show", &url], 0);
    assert_eq!((&shown["repository"]["head"], &shown["repository"]["pinned"]), (&"main".into(), &false.into()));
    assert_eq!(asked(&agent, &["repo", "pin", &url], 0)["repository"]["pinned"], true);

    let small = ["--repo", &url, "--cpu", "10m", "--memory", "32MiB", "--disk", "32MiB"];
    let admitted = asked(&agent, &[&["lease", "admit"][..], &small].concat(), 0);
    let lease = admitted["granted"]["id"].as_str().unwrap_or_else(|| panic!("{admitted}"));
    assert_eq!(admitted["granted"]["source"]["commit"], main);
    // Defaults are printed.
    assert_eq!(admitted["granted"]["outcome"], "OUTCOME_UNSPECIFIED");
    let leases = asked(&agent, &["lease", "list"], 0);
    assert_eq!((&leases["leases"][0]["id"], leases["leases"].as_array().unwrap().len()), (&lease.into(), 1));
    assert_eq!(asked(&agent, &["lease", "show", lease], 0)["lease"]["state"], "LEASE_STATE_RESERVED");

    let workspace = asked(&agent, &["workspace", "prepare", "--lease", lease], 0);
    let workspace = &workspace["workspace"];
    assert_eq!((&workspace["id"], &workspace["commit"]), (&lease.into(), &main.into()));
    for part in ["src", "tmp", "out"] {
        assert!(std::path::Path::new(workspace[part].as_str().unwrap()).is_dir(), "{workspace}");
    }
    assert_eq!(asked(&agent, &["workspace", "list"], 0)["workspaces"][0]["id"], lease);
    let status = asked(&agent, &["status"], 0);
    assert_eq!(status["status"]["counts"]["leases"], 1);

    let released = asked(&agent, &["lease", "release", lease, "--outcome", "succeeded"], 0);
    assert_eq!(released["lease"]["state"], "LEASE_STATE_RELEASED");
    assert_eq!(asked(&agent, &["lease", "list"], 0)["leases"], Value::Array(Vec::new()), "an empty list is a list");
    assert_eq!(asked(&agent, &["ticket", "list"], 0)["tickets"], Value::Array(Vec::new()));

    let huge = [&["lease", "admit"][..], &["--repo", &url, "--memory", "100TiB"]].concat();
    let rejected = asked(&agent, &huge, 1);
    assert_eq!(rejected["rejected"]["reasons"][0]["code"], "MEMORY_BUDGET");
    assert_eq!(asked(&agent, &["mode", "maintenance"], 0)["status"]["mode"], "MODE_MAINTENANCE");
    let waiting = asked(&agent, &[&["lease", "admit"][..], &small].concat(), 75);
    assert_eq!(waiting["waiting"]["reasons"][0]["code"], "MODE_MAINTENANCE");
}

#[test]
fn wrong_words_and_absent_agents_have_their_codes() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(LOOPBACK);
    let run = |args: &[&str]| agent.stoker().run(args);
    let told = |output: Output, word: &str| assert!(output.stderr.contains(word), "{word}: {output:?}");
    told(run(&["resolve", &url, "main"]).expect_code(64), "branch:NAME");
    told(run(&["resolve", "ext::sh", "head"]).expect_code(64), "transport helper");
    told(run(&["resolve", &url, "branch:none"]).expect_code(2), "REF_NOT_FOUND");
    told(run(&["lease", "show", "none"]).expect_code(2), "none");
    told(run(&["lease", "show", "a b"]).expect_code(64), "lease_id");
    let nobody = Stoker::new();
    told(nobody.run(["status"]).expect_code(2), "no agent answers");
}
