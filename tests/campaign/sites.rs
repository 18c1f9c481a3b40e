//! Upstreams, and who writes to them.

use crate::support::chance::Chance;
use crate::support::repository::{TestRepo, git};
use crate::support::upstream::Upstream;
use crate::support::wait;

use std::time::Duration;

use super::{Campaign, OverWhenPanicking};

/// Less than all mirrors take, more than any two.
pub(super) const LIMIT_MIB: u64 = 8;
/// Branches that come and go.
const TOPICS: u64 = 4;
/// What a push to them brings.
const TOPIC_BYTES: usize = 48 << 10;
/// The longest pause of the writer.
const PAUSE_MILLIS_MAX: u64 = 250;
/// The default branch begins anew after so many pushes, so that a long campaign stays as large as a short one.
const MAIN_PUSHES_MAX: u64 = 30;

/// One upstream repository.
pub(super) struct Site {
    pub(super) repo: TestRepo,
    pub(super) url: String,
    /// Its first commit: what branches begin with that are pushed by force.
    base: String,
}

impl Site {
    /// Whether it ever had this commit. Nothing is ever pruned here.
    pub(super) fn had(&self, commit: &str) -> bool {
        let asked = git(&self.repo.path()).args(["cat-file", "-e", &format!("{commit}^{{commit}}")]).output();
        asked.unwrap().status.success()
    }

    /// Whether a branch or tag reaches this object now.
    pub(super) fn reaches(&self, id: &str) -> bool {
        let listed = git(&self.repo.path()).args(["rev-list", "--objects", "--all"]).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).lines().any(|line| line.starts_with(id))
    }

    /// The branches that are there now.
    pub(super) fn branches(&self) -> Vec<String> {
        let refs = self.repo.refs().into_keys();
        refs.filter_map(|name| name.strip_prefix("refs/heads/").map(str::to_owned)).collect()
    }
}

/// All of them: the first two are a repository and its fork, in one store.
pub(super) fn all(upstream: &Upstream) -> Vec<Site> {
    let project = TestRepo::generated(120, 2 << 20, 3);
    let fork = project.fork();
    fork.commit_file("main", "fork.txt", b"a fork\n");
    let hosted = [
        ("team/project.git", project),
        ("friends/project.git", fork),
        ("team/tools.git", TestRepo::generated(60, 5 << 20, 1)),
        ("team/bulk.git", TestRepo::generated(20, 9 << 20, 1)),
    ];
    let site =
        |(path, repo): (&str, TestRepo)| Site { url: upstream.host(path, &repo), base: repo.commit("main"), repo };
    hosted.into_iter().map(site).collect()
}

/// Pushes, force-pushes, deletes and re-creates, until it is over.
pub(super) fn write(campaign: &Campaign, mut chance: Chance) {
    let _guard = OverWhenPanicking(campaign);
    let mut number = 0;
    while !campaign.over() {
        number += 1;
        let site = chance.pick(&campaign.sites);
        let done = change(site, number, &mut chance);
        campaign.ledger.count(format!("upstream: {done}"));
        let pause = Duration::from_millis(chance.below(PAUSE_MILLIS_MAX));
        wait::holds_within(pause, || campaign.over());
    }
}

/// One change; gives its word. No commit comes twice: `number` is in each.
fn change(site: &Site, number: u64, chance: &mut Chance) -> &'static str {
    let own = format!("change {number}\n");
    if number.is_multiple_of(MAIN_PUSHES_MAX) {
        site.repo.force_push("main", &site.base, "main.txt", own.as_bytes());
        return "force-push";
    }
    if chance.below(3) == 0 {
        site.repo.commit_file("main", "main.txt", own.as_bytes());
        return "push";
    }
    // One topic is now a branch, now a folder of branches: git must forget one before it can have the other.
    let (topic, other) = match (chance.below(TOPICS), chance.below(2)) {
        (0, 0) => ("topic/0".to_owned(), "topic/0/deep".to_owned()),
        (0, _) => ("topic/0/deep".to_owned(), "topic/0".to_owned()),
        (topic, _) => (format!("topic/{topic}"), String::new()),
    };
    let branches = site.branches();
    if branches.contains(&other) {
        site.repo.delete_branch(&other);
    }
    let there = branches.contains(&topic);
    if there && chance.below(3) == 0 {
        site.repo.delete_branch(&topic);
        return "deletion";
    }
    let content = [own.into_bytes(), chance.noise(TOPIC_BYTES)].concat();
    if there {
        site.repo.force_push(&topic, &site.base, "topic.txt", &content);
        "force-push"
    } else {
        site.repo.commit_file(&topic, "topic.txt", &content);
        "re-creation"
    }
}
