//! `stoker run`: one build, from a repository's URL to its released lease.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::disk::{assert_no_workspace, leases};
use crate::support::gate::Gate;
use crate::support::loopdev::needs_root;
use crate::support::process_ended;
use crate::support::repository::{TestRepo, git, git_out};
use crate::support::stoker::{Invocation, Output, Stoker};
use crate::support::upstream::{Counts, Upstream};

/// Everything about a work tree that could differ from a plain clone's.
const PORTRAIT: &str = r#"
set -eu
say() { printf '\n== %s\n' "$*"; "$@"; }
say git log --all --format='%H %P|%an <%ae> %aI|%cn %cI|%D|%B'
say git describe
say git describe --all --always
say git status --porcelain --branch
say git rev-parse HEAD 'HEAD^{tree}' --abbrev-ref HEAD
say git rev-list --count HEAD
say git config --local --get-regexp '^remote[.].*url$'
say git for-each-ref refs/remotes refs/tags
say git submodule status
say git diff --stat HEAD
say git fsck --no-progress --connectivity-only --no-dangling
git ls-files -z --stage | od -An -c
find . -path ./.git -prune -o -printf '%P %y %m %l\n' | LC_ALL=C sort
find . -path ./.git -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
"#;

/// `stoker run` of a shell script.
fn run(stoker: &Stoker, repo: &str, reference: Option<&str>, script: &str) -> Invocation {
    let mut args = vec!["run", "--repo", repo];
    args.extend(reference.iter().flat_map(|reference| ["--ref", reference]));
    args.extend(["--", "sh", "-c", script]);
    stoker.command(args)
}

/// The portrait of a plain clone at the same ref.
fn plain(stoker: &Stoker, url: &str, reference: Option<&str>, place: &str) -> String {
    let place = stoker.home().join(place);
    let git = |args: &[&str]| stoker.program("git", args).run().expect_code(0);
    let at = place.to_str().unwrap();
    match reference.map_or(("head", ""), |reference| reference.split_once(':').unwrap()) {
        ("branch" | "tag", name) => drop(git(&["clone", "--quiet", "--branch", name, url, at])),
        ("pr", number) => {
            git(&["clone", "--quiet", "--no-checkout", url, at]);
            git(&["-C", at, "fetch", "--quiet", "origin", &format!("refs/pull/{number}/head")]);
            git(&["-C", at, "checkout", "--quiet", "--detach", "FETCH_HEAD"]);
        }
        ("sha", commit) => {
            git(&["clone", "--quiet", "--no-checkout", url, at]);
            git(&["-C", at, "checkout", "--quiet", "--detach", commit]);
        }
        _ => drop(git(&["clone", "--quiet", url, at])),
    }
    portrait_of_a_clone(stoker, &place, reference)
}

fn portrait_of_a_clone(stoker: &Stoker, place: &Path, reference: Option<&str>) -> String {
    // A clone that is told to check out something else keeps the default branch beside it; a workspace has no use for it.
    if reference.is_some_and(|reference| reference.starts_with("pr:") || reference.starts_with("sha:")) {
        git_out(place, &["branch", "--quiet", "-D", "main"]);
    }
    stoker.program("sh", ["-c", PORTRAIT]).current_dir(place).run().expect_code(0).stdout
}

/// Every kind of ref.
fn kinds(repo: &TestRepo) -> Vec<Option<String>> {
    let commit = format!("sha:{}", repo.commit("develop~1"));
    let refs =
        ["branch:main", "branch:develop", "branch:feature/with-slash", "tag:v1.0", "tag:v1.1-rc1", "pr:152", &commit];
    [None].into_iter().chain(refs.map(|text| Some(text.to_owned()))).collect()
}

#[test]
fn a_build_sees_what_a_plain_clone_has_and_a_second_run_fetches_nothing() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let stoker = Stoker::new();
    for (number, reference) in kinds(&repo).iter().enumerate() {
        let reference = reference.as_deref();
        let expected = plain(&stoker, &url, reference, &format!("clone{number}"));
        assert!(expected.contains("caf") && expected.contains("file with spaces") && expected.contains("run.bat"));
        upstream.reset();
        let first = run(&stoker, &url, reference, PORTRAIT).run().expect_code(0);
        assert_eq!(first.stdout, expected, "{reference:?}");
        let fetches = upstream.requests().fetches;
        let fetches_expected = match reference {
            None | Some("pr:152") => 1, // the fill; the one ref that no refresh follows
            _ => 0,
        };
        assert_eq!(fetches, fetches_expected, "{reference:?}");

        upstream.reset();
        let second = run(&stoker, &url, reference, PORTRAIT).run().expect_code(0);
        assert_eq!(second.stdout, expected, "{reference:?}, again");
        // Upstream is asked once what the ref is now; for a commit it is not asked.
        let asked = match reference {
            Some(commit) if commit.starts_with("sha:") => Counts::default(),
            _ => Counts { ls_refs: 1, ..Counts::default() },
        };
        assert_eq!(upstream.requests(), asked, "{reference:?}, again");
    }
    let state = stoker.state().join("stoker");
    assert_no_workspace(&state.join("pool"));
    let leases = leases(&state);
    assert_eq!(leases.len(), 2 * kinds(&repo).len());
    for lease in leases {
        assert_eq!(lease.state, "released", "{lease:?}");
        assert!(lease.memory_peak().is_some_and(|bytes| bytes > 0), "{lease:?}");
    }
}

#[test]
fn the_steps_are_told_on_stderr_and_the_environment_is_set() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let stoker = Stoker::new();
    let state = stoker.home().join("elsewhere");
    let script = r#"
        echo "$PWD"; echo "$STOKER_SRC"; echo "$TMPDIR"; echo "$STOKER_OUT"; echo "$STOKER_CACHE"; echo "$STOKER_LEASE"
        echo "$STOKER_COMMIT"; for at in "$STOKER_SRC" "$TMPDIR" "$STOKER_OUT" "$STOKER_CACHE"; do
        test -d "$at" && test -w "$at"; done; ls -A "$TMPDIR" "$STOKER_OUT"; echo "mine" >&2"#;
    let args = ["run", "--repo", &url, "--state", state.to_str().unwrap(), "--", "sh", "-ec", script];
    let output = stoker.run(args).expect_code(0);
    let lines: Vec<_> = output.stdout.lines().collect();
    let [cwd, src, tmp, out, cache, lease, commit, ..] = lines[..] else { panic!("{output:?}") };
    assert_eq!(cwd, src);
    let home = state.join("pool/stoker/workspaces").join(lease);
    assert_eq!(
        (Path::new(src), Path::new(tmp), Path::new(out)),
        (&*home.join("src"), &*home.join("tmp"), &*home.join("out"))
    );
    assert!(Path::new(cache).starts_with(state.join("pool/stoker")), "{cache}");
    assert_eq!(commit, repo.commit("main"));
    assert_eq!(lines[7..].join("\n"), format!("{out}:\n\n{tmp}:"), "both empty");
    assert_steps(&output);
    assert!(output.stderr.lines().any(|line| line == "mine"), "{}", output.stderr);
    assert!(!stoker.state().join("stoker").exists(), "the default state was not used");
    assert_no_workspace(&state.join("pool"));
}

/// One line a step, in their order.
#[track_caller]
pub(crate) fn assert_steps(output: &Output) {
    let words: Vec<_> = output.stderr.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    assert_eq!(words, ["mirror", "source", "size", "admitted", "workspace", "done"], "{}", output.stderr);
}

#[test]
fn a_local_repository_is_built_in_whatever_shape_it_is() {
    let repo = TestRepo::standard();
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("work tree");
    repo.clone_to(&tree);
    git_out(&tree, &["worktree", "add", "--quiet", "-b", "linked", "../linked", "origin/develop"]);
    let detached = place.path().join("detached");
    repo.clone_to(&detached);
    git_out(&detached, &["checkout", "--quiet", "--detach", "v1.0"]);
    let stoker = Stoker::new();
    let print = "git rev-parse HEAD; git symbolic-ref --quiet --short HEAD || echo detached; git status --porcelain";
    for (path, commit, branch) in [
        (repo.path(), "main", "main"),
        (tree.clone(), "main", "main"),
        (tree.join("src/deep"), "main", "main"),
        (tree.join(".git"), "main", "main"),
        (place.path().join("linked"), "develop", "linked"),
        (detached, "v1.0", "detached"),
    ] {
        let output = run(&stoker, path.to_str().unwrap(), None, print).run().expect_code(0);
        assert_eq!(output.stdout, format!("{}\n{branch}\n", repo.commit(commit)), "{}", path.display());
        assert!(!output.stderr.contains("uncommitted"), "{}", output.stderr);
    }
    let relative = run(&stoker, ".", None, print).current_dir(&tree.join("docs")).run().expect_code(0);
    assert!(relative.stdout.starts_with(&repo.commit("main")), "{relative:?}");
}

#[test]
fn uncommitted_changes_are_told_and_not_built() {
    let repo = TestRepo::standard();
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    repo.clone_to(&tree);
    std::fs::write(tree.join("README.md"), "changed\n").unwrap();
    std::fs::write(tree.join("new file"), "new\n").unwrap();
    let before = git_out(&tree, &["status", "--porcelain"]);
    let stoker = Stoker::new();
    let output = run(&stoker, tree.to_str().unwrap(), None, "git status --porcelain; cat README.md; ls").run();
    let output = output.expect_code(0);
    assert!(output.stderr.contains("2 uncommitted changes"), "{}", output.stderr);
    assert!(output.stdout.starts_with("# Project\n") && !output.stdout.contains("new file"), "{}", output.stdout);
    assert_eq!(git_out(&tree, &["status", "--porcelain"]), before, "the repository is as it was");
}

#[test]
fn a_shallow_local_repository_is_refused_with_the_remedy() {
    let repo = TestRepo::standard();
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    let from = format!("file://{}", repo.path().display());
    let status = git(place.path()).args(["clone", "--quiet", "--depth=1", &from]).arg(&tree).status().unwrap();
    assert!(status.success());
    let stoker = Stoker::new();
    let output = run(&stoker, tree.to_str().unwrap(), None, "echo built").run().expect_code(125);
    assert!(output.stderr.contains("[REPOSITORY_SHALLOW]") && output.stderr.contains("--unshallow"), "{output:?}");
    assert_eq!(output.stdout, "");
}

#[test]
fn a_local_repository_of_another_user_is_built_where_git_is_safe_with_it() {
    needs_root!();
    let repo = TestRepo::standard();
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    repo.clone_to(&tree);
    let status = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(&tree).status().unwrap();
    assert!(status.success());
    let stoker = Stoker::new();
    let output = run(&stoker, tree.to_str().unwrap(), None, "git rev-parse HEAD").run();
    let version = git_out(place.path(), &["version"]);
    let numbers: Vec<u32> =
        version.split(['.', ' ']).filter_map(|part| part.parse().ok()).chain([0, 0, 0]).take(3).collect();
    if numbers >= vec![2, 45, 1] {
        assert_eq!(output.expect_code(0).stdout.trim_end(), repo.commit("main"));
    } else {
        let output = output.expect_code(125);
        assert!(output.stderr.contains("[REPOSITORY_FOREIGN_OWNER]") && output.stderr.contains("chown"), "{output:?}");
    }
}

#[test]
fn the_exit_code_is_the_commands_or_says_why_there_was_none() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let none = upstream.url("team/none.git");
    let stoker = Stoker::new();
    let with = |args: &[&str], command: &[&str]| {
        let args = [&["run"], args, &["--"], command].concat();
        stoker.run(args)
    };
    let here: &[&str] = &["--repo", &url];
    let done = |output: Output| assert!(output.stderr.contains("all removed"), "{}", output.stderr);
    done(with(here, &["true"]).expect_code(0));
    done(with(here, &["sh", "-c", "exit 7"]).expect_code(7));
    done(with(here, &["sh", "-c", "kill -TERM $$"]).expect_code(143));
    done(with(here, &["sh", "-c", "kill -KILL $$"]).expect_code(137));
    done(with(here, &["no-such-command"]).expect_code(127));
    done(with(here, &["./no-such-file"]).expect_code(127));
    done(with(here, &["./README.md"]).expect_code(126));
    done(with(here, &["./src"]).expect_code(126));
    assert_eq!(with(here, &["./build.sh"]).expect_code(0).stdout, "built\n");
    let absent = with(&["--repo", &none], &["true"]).expect_code(125);
    assert!(absent.stderr.contains("[UPSTREAM_NOT_FOUND]"), "{}", absent.stderr);
    let huge = with(&["--repo", &url, "--memory", "100TiB"], &["true"]).expect_code(125);
    assert!(huge.stderr.contains("[MEMORY_BUDGET]") && huge.stderr.contains("100"), "{}", huge.stderr);
    let branch = with(&["--repo", &url, "--ref", "branch:none"], &["true"]).expect_code(125);
    assert!(branch.stderr.contains("[REF_NOT_FOUND]"), "{}", branch.stderr);
    for wrong in
        [&["run"][..], &["run", "--repo", &url], &["run", "--", "true"], &["walk"], &["run", "--repos", "x"], &[]]
    {
        let output = stoker.run(wrong).expect_code(64);
        assert!(output.stderr.contains("Usage"), "{wrong:?}: {}", output.stderr);
    }
    for right in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let output = stoker.run(right).expect_code(0);
        assert!(output.stdout.contains("stoker") && output.stderr.is_empty(), "{right:?}: {output:?}");
    }
    assert_no_workspace(&stoker.state().join("stoker/pool"));
}

#[test]
fn a_signal_reaches_the_command_and_its_code_comes_back() {
    let repo = TestRepo::standard();
    let stoker = Stoker::new();
    let gate = Gate::new();
    let script = format!(
        "trap 'kill $!; echo told; exit 3' TERM; sleep 60 & : > '{}'; wait $!; echo not told",
        gate.mark().display()
    );
    let running = run(&stoker, repo.path().to_str().unwrap(), None, &script).spawn();
    gate.reached();
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let output = running.wait().expect_code(3);
    assert_eq!(output.stdout, "told\n");
    assert_no_workspace(&stoker.state().join("stoker/pool"));
}

#[test]
fn a_build_past_its_time_budget_is_ended() {
    let repo = TestRepo::standard();
    let stoker = Stoker::new();
    let path = repo.path();
    let begun = Instant::now();
    let args = ["run", "--repo", path.to_str().unwrap(), "--time", "1s", "--", "sh", "-c", "sleep 60; echo slept"];
    let output = stoker.command(args).deadline(Duration::from_secs(40)).run().expect_code(143);
    assert!(output.stderr.contains("TIME_BUDGET_EXCEEDED"), "{}", output.stderr);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(output.stdout, "");
    let rows = leases(&stoker.state().join("stoker"));
    assert_eq!(
        (rows[0].state.as_str(), rows[0].record["outcome"].as_str()),
        ("released", Some("time_budget_exceeded"))
    );
    assert_no_workspace(&stoker.state().join("stoker/pool"));
}

#[test]
fn what_the_command_leaves_running_is_ended_before_its_workspace_goes() {
    let repo = TestRepo::standard();
    let stoker = Stoker::new();
    let script = "sleep 300 > /dev/null 2>&1 & echo $!";
    let output = run(&stoker, repo.path().to_str().unwrap(), None, script).run().expect_code(0);
    assert!(output.stderr.contains("1 process left running"), "{}", output.stderr);
    let left = output.stdout.trim().parse().unwrap();
    assert!(process_ended(left), "{left} still runs");
    assert_no_workspace(&stoker.state().join("stoker/pool"));
}
