//! Outputs that commits of one line share: what is built is what runs, whichever commit was built before.

use super::*;
use crate::support::stoker::Stoker;

const SPEC: &str = r#"{"schema_version": 1, "cpu": 0.25, "memory_gb": 0.25, "disk_gb": 0.05, "time_budget_min": 10,
                       "cache_keys": ["target"]}"#;

/// A cargo workspace of two crates and a Makefile; each commit says its own name.
fn project() -> (TestRepo, Vec<String>) {
    let repo = TestRepo::empty();
    let place = crate::support::place("project-");
    let at = place.path();
    git_out(at, &["init", "--quiet", "--initial-branch=main", "."]);
    let write = |path: &str, text: &str| {
        fs::create_dir_all(at.join(path).parent().unwrap()).unwrap();
        fs::write(at.join(path), text).unwrap();
    };
    write(".build-spec.json", SPEC);
    write("Cargo.toml", "[workspace]\nmembers = [\"app\", \"steady\"]\nresolver = \"2\"\n");
    let package = |name: &str| format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n");
    write("app/Cargo.toml", &format!("{}[dependencies]\nsteady = {{path = \"../steady\"}}\n", package("app")));
    write("steady/Cargo.toml", &package("steady"));
    write("steady/src/lib.rs", "pub fn steady() -> &'static str { \"steady\" }\n");
    write("Makefile", "$(OUT)/said: word\n\tcp word $@; echo made\n");
    let mut commits = Vec::new();
    for name in ["A", "B", "C"] {
        write("app/src/main.rs", &format!("fn main() {{ println!(\"{name} {{}}\", steady::steady()); }}\n"));
        write("word", name);
        if name == "C" {
            write("app/src/other.rs", "// not built yet\n");
        }
        git_out(at, &["add", "--all"]);
        git_out(at, &["commit", "--quiet", "--message", name]);
        commits.push(git_out(at, &["rev-parse", "HEAD"]));
    }
    git_out(at, &["push", "--quiet", repo.path().to_str().unwrap(), "HEAD:refs/heads/main"]);
    (repo, commits)
}

const BUILD: &str = "export CARGO_TARGET_DIR=$STOKER_CACHE/target CARGO_NET_OFFLINE=1; cargo run --color never 2>&1; \
                     mkdir -p $STOKER_CACHE/target/make; make --silent OUT=$STOKER_CACHE/target/make; cat \
                     $STOKER_CACHE/target/make/said; test -z \"$(git status --porcelain --untracked-files=no)\"";

#[test]
fn an_older_commit_on_a_shared_target_runs_as_itself_and_builds_only_what_differs() {
    let (repo, commits) = project();
    let (_upstream, url) = Upstream::of(&repo);
    let stoker = Stoker::new();
    let cargo_home = std::env::var_os("CARGO_HOME").unwrap_or_else(|| "/root/.cargo".into());
    let run = |commit: &str, script: &str| {
        let reference = format!("sha:{commit}");
        let command = ["run", "--repo", &url, "--ref", &reference, "--", "sh", "-euc", script];
        let command = stoker.command(command).deadline(LIMIT).env("CARGO_HOME", &cargo_home);
        let rustup = std::env::var_os("RUSTUP_HOME").unwrap_or_else(|| "/root/.rustup".into());
        command.env("RUSTUP_HOME", rustup).run().expect_code(0).stdout
    };
    let said = |name: usize, expect_compiled: &[&str]| {
        let output = run(&commits[name], BUILD);
        let name = ["A", "B", "C"][name];
        assert!(output.contains(&format!("{name} steady\n")) && output.ends_with(name), "{name}: {output}");
        let compiled: Vec<&str> =
            output.lines().filter_map(|line| line.trim().strip_prefix("Compiling ")?.split(' ').next()).collect();
        assert_eq!(compiled, expect_compiled, "{name}: {output}");
        assert_eq!(output.contains("made"), expect_compiled.contains(&"app"), "{name}: {output}");
    };
    said(1, &["steady", "app"]);
    said(0, &["app"]);
    // The same commit once more: nothing is built.
    said(0, &[]);
    // A build of B that never came to its sources: what A left must not be taken for B's.
    run(&commits[1], "true");
    said(1, &["app"]);
    said(2, &["app"]);
    said(0, &["app"]);
    said(2, &["app"]);
    said(2, &[]);
}
