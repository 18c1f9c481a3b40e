#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::repository::tests::world::{until, write_program};

#[test]
fn versions_are_read() {
    assert_eq!(Version::parse("git version 2.47.3\n"), Some(Version(2, 47, 3)));
    assert_eq!(Version::parse("git version 2.39.5 (Apple Git-154)"), Some(Version(2, 39, 5)));
    assert_eq!(Version::parse("git version 2.50-rc1"), Some(Version(2, 50, 0)));
    assert_eq!(Version::parse("hello"), None);
    assert!(Version(2, 38, 9) < VERSION_MIN);
}

/// A program in git's place that ignores SIGTERM or not, with a child of its own.
fn stand_in(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("git");
    write_program(&path, &format!("[ \"$1\" = version ] && echo git version 2.47.3 && exit\n{script}\n"));
    path
}

fn alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_child_that_takes_too_long_ends_with_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("sleep 300 & echo $! $$ > {0}.new; mv {0}.new {0}; wait", pids.display());
    let git = Git::at(stand_in(dir.path(), &script)).await.unwrap();
    let error = git.command(["fetch"]).time_limit(Duration::from_secs(3)).run().await.unwrap_err();
    assert!(matches!(error, GitError::TimedOut(_)), "{error}");
    let pids = std::fs::read_to_string(pids).unwrap();
    until("the end of the group", || !pids.split_whitespace().any(alive)).await;
}

#[tokio::test]
async fn a_dropped_caller_ends_its_child() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("sleep 300 & echo $! $$ > {0}.new; mv {0}.new {0}; wait", pids.display());
    let git = Git::at(stand_in(dir.path(), &script)).await.unwrap();
    let run = tokio::spawn(git.command(["fetch"]).run());
    until("the start", || pids.exists()).await;
    run.abort();
    let text = std::fs::read_to_string(&pids).unwrap();
    until("the end of the group", || !text.split_whitespace().any(alive)).await;
    git.idle().await;
}

#[tokio::test]
async fn nothing_of_the_environment_reaches_git() {
    let dir = tempfile::tempdir().unwrap();
    let git = Git::at(stand_in(dir.path(), "env; cat")).await.unwrap();
    let command = git.command(["x"]).protocols(["https", "ssh"]).config("a.b", "c=d").stdin(b"read".to_vec());
    let output = command.run().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in ["GIT_TERMINAL_PROMPT=0", "GIT_ALLOW_PROTOCOL=https:ssh", "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C"] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    assert!(text.contains("=a.b\n") && text.contains("=c=d\n") && text.ends_with("read"), "{text}");
    assert!(!text.contains("CARGO") && !text.contains("HOME="), "{text}");
}

#[tokio::test]
async fn output_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let git = Git::at(stand_in(dir.path(), "yes")).await.unwrap();
    let error = git.command(["x"]).stdout_bytes_max(1000).run().await.unwrap_err();
    assert!(matches!(error, GitError::TooMuch(1000)), "{error}");
}

#[tokio::test]
async fn an_old_git_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("git");
    write_program(&path, "echo git version 2.30.1\n");
    let error = Git::at(path).await.unwrap_err();
    assert!(error.to_string().contains("2.39 or newer"), "{error}");
    assert!(Git::at("/does/not/exist".into()).await.is_err());
}
