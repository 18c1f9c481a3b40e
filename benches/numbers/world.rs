//! What several benches need: the sizes, and repositories that take a while to make.

use std::cell::OnceCell;
use std::io::Write as _;
use std::process::Stdio;

use crate::numbers::options::Options;
use crate::support::repository::{TestRepo, git, git_out};

pub(crate) struct World {
    pub(crate) options: Options,
    large: OnceCell<TestRepo>,
    history: OnceCell<TestRepo>,
}

impl World {
    pub(crate) const fn new(options: Options) -> Self {
        Self { options, large: OnceCell::new(), history: OnceCell::new() }
    }

    /// One commit of many files.
    pub(crate) fn large(&self) -> &TestRepo {
        self.large.get_or_init(|| TestRepo::generated(self.options.files(), self.options.bytes(), 1))
    }

    /// Many commits, some fifteen objects each, and a ref for each of them: branches and tags, which every refresh
    /// follows.
    pub(crate) fn history(&self) -> &TestRepo {
        self.history.get_or_init(|| {
            let repo = TestRepo::generated(200, 400_000, self.options.commits());
            let commits = git_out(&repo.path(), &["rev-list", "main~1"]);
            let mut commands = String::new();
            for (number, commit) in commits.lines().enumerate() {
                let kind = if number % 2 == 0 { "heads/topic/" } else { "tags/v0." };
                commands.push_str(&format!("create refs/{kind}{number} {commit}\n"));
            }
            let mut child = git(&repo.path()).args(["update-ref", "--stdin"]).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "git update-ref");
            git_out(&repo.path(), &["pack-refs", "--all"]);
            repo
        })
    }
}
