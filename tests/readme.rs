//! What the README says comes first, in a fresh clone of this project.

use std::path::Path;

use crate::run::assert_steps;
use crate::support::repository::{git, git_out};
use crate::support::stoker::Stoker;

/// The arguments of the README's first command, behind `cargo run --`.
fn first_command() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let line = readme.lines().find_map(|line| line.strip_prefix("$ cargo run -- ")).expect("`$ cargo run -- ...`");
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn the_first_command_builds_a_fresh_clone_of_this_project() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shallow = git(project).args(["rev-parse", "--is-shallow-repository"]).output().unwrap();
    assert!(shallow.status.success(), "{} is not a git repository, which this test clones", project.display());
    let shallow = String::from_utf8_lossy(&shallow.stdout).trim() == "true";
    assert!(!shallow, "{} is a shallow clone: fetch its whole history (`git fetch --unshallow`)", project.display());

    let stoker = Stoker::new();
    let clone = stoker.home().join("clone");
    let status = git(project).args(["clone", "--quiet", "--no-hardlinks", "."]).arg(&clone).status().unwrap();
    assert!(status.success());
    let expected = stoker.program("git", ["log", "-1"]).current_dir(&clone).run().expect_code(0).stdout;
    assert!(expected.contains(&git_out(project, &["rev-parse", "HEAD"])), "{expected}");

    let args = first_command();
    assert_eq!(args, ["run", "--repo", ".", "--", "git", "log", "-1"]);
    for _ in ["first", "again"] {
        let output = stoker.command(&args).current_dir(&clone).run().expect_code(0);
        assert_eq!(output.stdout, expected);
        assert_steps(&output);
    }
}
