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

/// Each takes milliseconds, so that many tell more.
const WARM_ROUNDS: usize = 30;
/// Workspaces of one commit at once.
const COPIES: i32 = 100;

/// Workspaces of commits on a filled mirror, beside a clone that has a mirror to borrow from: of a commit like none that is
/// kept, of one that is kept, and of one that differs from a kept one in a twentieth of its files.
pub(crate) fn prepare(world: &World, report: &mut Report) {
    let rounds = world.options.rounds();
    let repo = world.line();
    let last = repo.commit("main");
    let (files, bytes) = size_of(repo);
    let near = world.twentieth_before();
    // Other attributes at the top may give every file another form, so that nothing that is kept helps.
    let unlike: Vec<String> = (0..=rounds)
        .map(|round| repo.commit_file("main", ".gitattributes", format!("# {round}\n").as_bytes()))
        .collect();
    let (_upstream, url) = Upstream::of(repo);
    let node = Node::start();
    node.fill(&url);
    let mirror = node.beside("mirror.git");
    git_out(node.agent.root(), &["clone", "--quiet", "--mirror", &url, mirror.to_str().unwrap()]);
    let mut number = 0;
    let mut clone = || {
        number += 1;
        let place = node.beside(&format!("peer-{number}"));
        rustix::fs::sync();
        let (reference, to) = (mirror.to_str().unwrap(), place.to_str().unwrap());
        let began = Instant::now();
        git_out(node.agent.root(), &["clone", "--quiet", "--reference", reference, &url, to]);
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        samples
    };
    let mut number = 0;
    let mut ours = |commit: &str| {
        number += 1;
        rustix::fs::sync();
        let began = Instant::now();
        let workspace = node.prepare(&url, commit, &format!("workspace-{number}"));
        let mut samples = Samples::default();
        samples.push_time(began.elapsed());
        // Older commits of a real line have fewer.
        let found = usize::try_from(workspace.files).unwrap();
        assert!(workspace.commit == commit && found > files / 2, "{} has {found}", workspace.commit);
        samples
    };
    let mut line = |what: &str, ours: Samples, peer: Samples, target: Target| {
        let what = format!("{what}, {files} files");
        report.line(Line { what, unit: Unit::Time, ours, peer: Some(("git clone --reference", peer)), target });
    };

    let mut commits = unlike.iter();
    let (first, peer) = alternate(rounds, || ours(commits.next().unwrap()), &mut clone);
    line("first workspace", first, peer.clone(), Target::RatioMax(1.0));
    let mut warm = || ours(&unlike[0]);
    let mut samples = Samples::default();
    for _ in 0..WARM_ROUNDS {
        samples.extend(warm());
    }
    line("warm workspace", samples.clone(), peer.clone(), Target::RatioMax(0.02));
    line("warm workspace", samples, peer, Target::Max(By::Median, 0.050));

    // A full one to stand on, and the commits before it, each with a twentieth of the files of the one after it changed.
    ours(&last);
    let mut round = 0;
    let near = || {
        round += 1;
        ours(&repo.commit(&format!("{last}~{}", near + round - 1)))
    };
    let (next, peer) = alternate(rounds.min(5), near, &mut clone);
    line("next commit, 5% changed", next, peer, Target::RatioMax(0.2));

    let held = |path: &str| {
        let path = node.agent.root().join("data/stoker").join(path);
        let output = std::process::Command::new("du").args(["-sx", "--block-size=1"]).arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split('\t').next().unwrap().parse::<f64>().unwrap()
    };
    // Of one commit, from here on: the others are not counted.
    let others = held("overlays") + held("workspaces");
    for copy in 0..COPIES {
        node.prepare(&url, &last, &format!("copy-{copy}"));
    }
    let (mut hundred, mut one) = (Samples::default(), Samples::default());
    let more = held("overlays") + held("workspaces") - others;
    one.push(bytes + more / f64::from(COPIES));
    hundred.push(bytes + more);
    let what = format!("disk of {COPIES} workspaces of one commit");
    report.line(Line {
        what,
        unit: Unit::Bytes,
        ours: hundred,
        peer: Some(("one", one)),
        target: Target::RatioMax(1.2),
    });
}

/// How many files the default branch has, and how many bytes are in them.
fn size_of(repo: &TestRepo) -> (usize, f64) {
    // Submodules have no size.
    let listed = git_out(&repo.path(), &["ls-tree", "-r", "--long", "main"]);
    let size = |line: &str| line.split_ascii_whitespace().nth(3)?.parse::<f64>().ok();
    let sizes = listed.lines().filter_map(size);
    (sizes.clone().count(), sizes.sum())
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
