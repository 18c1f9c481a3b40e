//! What one build gets, and its removal.
//!
//! Nothing is deleted while checkouts are measured: ext4 passes over every inode that was deleted in the last minutes
//! (`recently_deleted` in the kernel's `fs/ext4/ialloc.c`), which makes new files next to them ten times slower.

use std::time::Instant;

use crate::numbers::node::Node;
use crate::numbers::report::{By, Line, Report, Samples, Target, Unit, alternate};
use crate::numbers::world::World;
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::Upstream;

/// The first workspace of a commit on a filled mirror, beside a clone that has a mirror to borrow from. Nothing is kept
/// from one round to the next but the mirrors.
pub(crate) fn first(world: &World, report: &mut Report) {
    let repo = world.large();
    let (_upstream, url) = Upstream::of(repo);
    let node = Node::start();
    node.fill(&url);
    let commit = repo.commit("main");
    let mirror = node.beside("mirror.git");
    git_out(node.agent.root(), &["clone", "--quiet", "--mirror", &url, mirror.to_str().unwrap()]);
    let mut round = 0;
    let ours = || {
        round += 1;
        rustix::fs::sync();
        let began = Instant::now();
        let workspace = node.prepare(&url, &commit, &format!("first-{round}"));
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        assert_eq!(
            (workspace.commit.as_str(), usize::try_from(workspace.files)),
            (commit.as_str(), Ok(world.options.files()))
        );
        samples
    };
    let mut clones = 0;
    let peer = || {
        clones += 1;
        let place = node.beside(&format!("peer-{clones}"));
        rustix::fs::sync();
        let (reference, to) = (mirror.to_str().unwrap(), place.to_str().unwrap());
        let began = Instant::now();
        git_out(node.agent.root(), &["clone", "--quiet", "--reference", reference, &url, to]);
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        assert_eq!(git_out(&place, &["rev-parse", "HEAD"]), commit);
        samples
    };
    let (ours, peer) = alternate(world.options.rounds(), ours, peer);
    report.line(Line {
        what: format!("workspace, {} files", world.options.files()),
        unit: Unit::Time,
        ours,
        peer: Some(("git clone --reference", peer)),
        target: Target::RatioMax(1.0),
    });
}

/// The call that deletes a workspace, beside `rm -r` of the same files.
pub(crate) fn delete(world: &World, report: &mut Report) {
    let files = world.options.delete_files();
    let repo = TestRepo::generated(files, files * 100, 1);
    let (_upstream, url) = Upstream::of(&repo);
    let node = Node::start();
    node.fill(&url);
    let commit = repo.commit("main");
    let rounds = if world.options.quick { 1 } else { world.options.rounds().min(3) };
    let mut workspaces: Vec<_> =
        (0..=rounds).map(|round| node.prepare(&url, &commit, &format!("delete-{round}"))).collect();
    let mut clones: Vec<_> = (0..=rounds).map(|round| node.beside(&format!("peer-{round}"))).collect();
    clones.iter().for_each(|place| repo.clone_to(place));
    rustix::fs::sync();
    let ours = || {
        let workspace = workspaces.pop().unwrap();
        let mut samples = Samples::default();
        samples.push_time(node.delete(&workspace.id));
        assert!(!std::path::Path::new(&workspace.src).exists(), "it has left its place");
        node.wait_for_trash();
        samples
    };
    let peer = || {
        let began = Instant::now();
        std::fs::remove_dir_all(clones.pop().unwrap()).unwrap();
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        samples
    };
    let (ours, peer) = alternate(rounds, ours, peer);
    report.line(Line {
        what: format!("delete, {files} files"),
        unit: Unit::Time,
        ours,
        peer: Some(("rm -r", peer)),
        target: Target::Max(By::Max, 0.010),
    });
}
