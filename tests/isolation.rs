//! Builds do not see each other: not at once, not one after another, and not when one dies.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::disk::{assert_no_workspace, leases, names, rows};
use crate::support::gate::Gate;
use crate::support::repository::TestRepo;
use crate::support::stoker::{Invocation, Running, Stoker};
use crate::support::{process_ended, wait};

/// Everything in a new workspace that a former build could have left; paths of the workspace itself are told apart.
const CONTENT: &str = r#"
git status --porcelain --ignored; git stash list; git branch --all; git tag; git log --all --format=%H; git reflog --all
git config --local --list; git ls-files --stage; find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 cat
find .git -printf '%P %y %m %l\n' | sort; find "$TMPDIR" "$STOKER_OUT" -mindepth 1
"#;

/// Whatever a build can do to its workspace.
const SPOIL: &str = r#"
echo spoilt > README.md; echo new > 'new file'; mkdir -p .git/hooks; printf '#!/bin/sh\nexit 1\n' > .git/hooks/pre-commit
git add --all; git -c user.name=A -c user.email=a@example.org -c core.hooksPath=/dev/null commit --quiet -m Spoil
git branch extra; git tag -m Mine mine 2> /dev/null || git tag mine; git config user.name Spoiler; echo staged > staged
git add staged; git update-ref refs/heads/main HEAD~1; git gc --quiet; rm -rf docs
echo tmp > "$TMPDIR/file"; echo out > "$STOKER_OUT/file"; mkdir -m 000 "$TMPDIR/closed"; touch "$TMPDIR/.hidden"
"#;

/// `stoker run` of a script, small enough that several fit anywhere.
fn build(stoker: &Stoker, repo: &TestRepo, script: &str) -> Invocation {
    let path = repo.path();
    let mut args = vec!["run", "--repo", path.to_str().unwrap(), "--cpu", "10m", "--memory", "32MiB"];
    args.extend(["--disk", "32MiB", "--", "sh", "-c", script]);
    stoker.command(args)
}

fn state(stoker: &Stoker) -> PathBuf {
    stoker.state().join("stoker")
}

/// The workspace's folder that a build printed first, and the rest of its output.
fn split(output: &str) -> (PathBuf, &str) {
    let (src, rest) = output.split_once('\n').unwrap();
    (Path::new(src).parent().unwrap().to_owned(), rest)
}

#[track_caller]
fn assert_all_released(state: &Path, expected: usize) {
    let leases = leases(state);
    assert_eq!(leases.len(), expected, "{leases:?}");
    for lease in leases {
        assert_eq!(lease.state, "released", "{lease:?}");
        assert!(lease.memory_peak().is_some_and(|bytes| bytes > 0), "no peak: {lease:?}");
    }
    assert_eq!(rows(state, "ticket"), 0);
    assert_no_workspace(&state.join("pool"));
}

#[test]
fn builds_at_once_and_after_each_other_share_nothing() {
    let repo = TestRepo::standard();
    let stoker = Stoker::new();
    let (first_gate, second_gate) = (Gate::new(), Gate::new());
    let script = |gate: &Gate| format!("echo \"$STOKER_SRC\"; {CONTENT}\n{SPOIL}\n{}", gate.stop());
    let first = build(&stoker, &repo, &script(&first_gate)).spawn();
    first_gate.reached();
    // The first one has done its worst, and lives.
    let second = build(&stoker, &repo, &script(&second_gate)).spawn();
    second_gate.reached();
    let workspaces = state(&stoker).join("pool/stoker/workspaces");
    let there = names(&workspaces).into_iter().filter(|name| workspaces.join(name).is_dir()).count();
    assert_eq!(there, 2, "{:?}", names(&workspaces));
    let live: Vec<_> = leases(&state(&stoker)).into_iter().map(|lease| lease.state).collect();
    assert_eq!(live, ["bound", "bound"]);
    second_gate.open();
    let second = second.wait().expect_code(0);
    first_gate.open();
    let first = first.wait().expect_code(0);
    let third = build(&stoker, &repo, &format!("echo \"$STOKER_SRC\"; {CONTENT}")).run().expect_code(0);

    let outputs = [&first, &second, &third].map(|output| split(&output.stdout));
    let [(one, content), (two, ..), (three, ..)] = &outputs;
    assert!(one != two && two != three && one != three, "{one:?} {two:?} {three:?}");
    assert!(content.contains("remotes/origin/develop") && content.contains("# Project"), "{content}");
    for (_, other) in &outputs[1..] {
        assert_eq!(other, content);
    }
    for folder in [one, two, three] {
        assert!(!folder.exists(), "{} is left", folder.display());
    }
    assert_all_released(&state(&stoker), 3);
}

#[test]
fn a_build_outlives_the_run_that_brought_the_agent() {
    let repo = TestRepo::standard();
    let stoker = Stoker::new();
    let (first_gate, second_gate) = (Gate::new(), Gate::new());
    let first = build(&stoker, &repo, &first_gate.stop()).spawn();
    first_gate.reached();
    let script = format!("{}; git rev-parse HEAD; git status --porcelain; cat README.md", second_gate.stop());
    let second = build(&stoker, &repo, &script).spawn();
    second_gate.reached();
    first_gate.open();
    first.wait().expect_code(0);
    // Its agent is gone, the other build goes on with what it was given.
    second_gate.open();
    let second = second.wait().expect_code(0);
    assert_eq!(second.stdout, format!("{}\n# Project\n\nMore.\n", repo.commit("main")));
    assert!(second.stderr.contains("all removed"), "{}", second.stderr);
    assert_all_released(&state(&stoker), 2);
}

#[test]
fn the_next_run_clears_up_after_one_that_was_killed() {
    let repo = TestRepo::standard();
    let stoker = Stoker::new();
    let gate = Gate::new();
    let killed = build(&stoker, &repo, &format!("{SPOIL}\n{}", gate.stop())).spawn();
    gate.reached();
    kill(&killed);
    let live = leases(&state(&stoker));
    assert_eq!(live.iter().map(|lease| lease.state.as_str()).collect::<Vec<_>>(), ["bound"]);
    let left = state(&stoker).join("pool/stoker/workspaces").join(&live[0].id);
    assert!(left.join("src").is_dir(), "the workspace of the killed run is there until somebody comes");

    let next = build(&stoker, &repo, "git status --porcelain; git branch; ls -A \"$TMPDIR\"").run().expect_code(0);
    assert_eq!(next.stdout, "* main\n");
    let rows = leases(&state(&stoker));
    let states: Vec<_> = rows.iter().map(|lease| lease.state.as_str()).collect();
    assert_eq!(states, ["orphaned", "released"], "{rows:?}");
    assert_eq!(rows[0].record["outcome"], "lost");
    assert_eq!(rows[0].record["reasons"][0]["code"], "HOLDER_GONE", "{:?}", rows[0]);
    assert_no_workspace(&state(&stoker).join("pool"));
    drop(gate);
    assert_eq!(killed.wait().signal(), Some(9));
}

/// Kills `stoker run` alone, as the kernel does when memory is short, and waits until it is dead.
#[track_caller]
fn kill(running: &Running) {
    running.signal(Signal::SIGKILL);
    wait::until(Duration::from_secs(10), "the run is dead", || process_ended(running.pid()));
}
