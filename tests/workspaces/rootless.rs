//! Builds where nothing is root: no mounts, no other users, and still what a clone is.

use super::*;
use crate::support::stoker::{BINARY, Stoker};

const SAYS: &str = "grep -o 'METHOD_[A-Z]*' ../workspace.json; git status --porcelain --ignored; git describe --tags; \
                    git rev-parse HEAD; git fsck --no-progress --no-dangling 2>&1; id -u; stat -c %u:%g .git plain";
const FILES: &str = "find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 sha256sum; \
                     find . -path ./.git -prune -o -printf '%y %m %p %l\\n' | sort";

fn as_a_clone_for_nobody(kind: Kind, method: &str) {
    let filesystem = LoopFs::new(kind, 4 << 30);
    let (repo, commits) = wild();
    let (_upstream, url) = Upstream::of(&repo);
    let stoker = Stoker::new();
    // Where that user can reach it.
    let programs = crate::support::place("programs-");
    for name in ["stoker", "stoker-git"] {
        fs::copy(Path::new(BINARY).with_file_name(name), programs.path().join(name)).unwrap();
    }
    let state = filesystem.path().join("state");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(USER), Some(GROUP)).unwrap();
    let program = programs.path().join("stoker");
    let place = crate::support::place("plain-");
    for (number, commit) in commits.iter().enumerate() {
        let run = |script: &str| {
            let (user, group, reference) = (USER.to_string(), GROUP.to_string(), format!("sha:{commit}"));
            let words = ["--reuid", &user, "--regid", &group, "--clear-groups", program.to_str().unwrap(), "run"];
            let more = ["--state", state.to_str().unwrap(), "--repo", &url, "--ref", &reference, "--cpu", "100m"];
            let rest = ["--memory", "64MiB", "--disk", "50MiB", "--", "sh", "-euc", script];
            let words = words.into_iter().chain(more).chain(rest);
            let command = stoker.program("setpriv", words).deadline(LIMIT).env("HOME", &state);
            command.env("XDG_RUNTIME_DIR", &state).run().expect_code(0).stdout
        };
        let plain = place.path().join(format!("plain-{number}"));
        git_out(place.path(), &["clone", "--quiet", "--no-checkout", &url, plain.to_str().unwrap()]);
        git_out(&plain, &["checkout", "--quiet", "--detach", commit]);
        let described = git_out(&plain, &["describe", "--tags"]);
        let who = format!("{USER}\n{USER}:{GROUP}\n{USER}:{GROUP}\n");
        assert_eq!(run(SAYS), format!("METHOD_{method}\n{described}\n{commit}\n{who}"), "{kind:?} {number}");
        assert_eq!(run(FILES), as_owner(&plain, None, FILES), "{kind:?} {number}");
        run("git mv many moved; rm -r moved/0; echo x >> plain; chmod 700 moved; git add --all; \
             git -c user.name=x -c user.email=x@y commit -qm x; git gc --quiet --prune=now; git fsck --no-progress");
    }
}

#[test]
fn a_reflinked_copy_on_xfs_needs_no_root() {
    needs_root!();
    as_a_clone_for_nobody(Kind::Xfs, "REFLINK");
}

#[test]
fn a_reflinked_copy_on_btrfs_needs_no_root() {
    needs_root!();
    as_a_clone_for_nobody(Kind::Btrfs, "REFLINK");
}

#[test]
fn a_checkout_on_ext4_needs_no_root() {
    needs_root!();
    as_a_clone_for_nobody(Kind::Ext4, "CHECKOUT");
}
