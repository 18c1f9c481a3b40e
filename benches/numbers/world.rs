//! What several benches need: the sizes, and repositories that take a while to make.

use std::cell::OnceCell;

use crate::numbers::options::Options;
use crate::support::repository::{TestRepo, git_out};

/// Commits of a line that change a twentieth of its files.
const LARGE_COMMITS: usize = 10;

pub(crate) struct World {
    pub(crate) options: Options,
    large: OnceCell<TestRepo>,
    history: OnceCell<TestRepo>,
    line: OnceCell<TestRepo>,
}

impl World {
    pub(crate) const fn new(options: Options) -> Self {
        Self { options, large: OnceCell::new(), history: OnceCell::new(), line: OnceCell::new() }
    }

    /// One commit of many files, or the repository that was named.
    pub(crate) fn large(&self) -> &TestRepo {
        if self.options.repository.is_some() {
            return self.line();
        }
        self.large.get_or_init(|| TestRepo::generated(self.options.files(), self.options.bytes(), 1))
    }

    /// Many files, with a line of commits that each change a twentieth of them, and after those many that change one.
    pub(crate) fn line(&self) -> &TestRepo {
        self.line.get_or_init(|| {
            if let Some(path) = &self.options.repository {
                return TestRepo::mirror_of(path);
            }
            let repo = TestRepo::generated(self.options.files(), self.options.bytes(), LARGE_COMMITS);
            for number in 0..self.small_commits() {
                repo.commit_file("main", "small/change", format!("{number}\n").as_bytes());
            }
            repo
        })
    }

    /// How many of the line's last commits change one file.
    const fn small_commits(&self) -> usize {
        if self.options.quick { 10 } else { 290 }
    }

    /// Of the line's commits, how many steps before the last one they begin that differ from it in a twentieth of its files
    /// or more.
    pub(crate) fn twentieth_before(&self) -> usize {
        if self.options.repository.is_none() {
            return self.small_commits() + 1;
        }
        let repo = self.line().path();
        let twentieth = git_out(&repo, &["ls-tree", "-r", "--name-only", "main"]).lines().count() / 20;
        let steps = git_out(&repo, &["rev-list", "--first-parent", "main"]);
        let steps: Vec<&str> = steps.lines().collect();
        steps.partition_point(|commit| {
            git_out(&repo, &["diff-tree", "-r", "--name-only", commit, "main"]).lines().count() < twentieth
        })
    }

    /// Many commits, some fifteen objects each, and a ref for each of them: branches and tags, which every refresh
    /// follows.
    pub(crate) fn history(&self) -> &TestRepo {
        self.history.get_or_init(|| {
            let repo = TestRepo::generated(200, 400_000, self.options.commits());
            let commits = git_out(&repo.path(), &["rev-list", "main~1"]);
            repo.name_often(commits.lines());
            repo
        })
    }
}
