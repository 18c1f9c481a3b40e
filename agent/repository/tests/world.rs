//! Real upstreams, real git, a pool in a temporary directory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::{RepositoryUrl, Request};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::repository::git::Git;
use crate::repository::{Discard, Measure, NeededCommits, Pool, Repositories, Resolved, Root, Space};

/// What must stay free of the pool.
pub(super) const FLOOR: u64 = 1 << 20;
pub(in crate::repository) const PATIENCE: Duration = Duration::from_secs(60);

/// An upstream with a worktree, made by the git of this machine.
pub(in crate::repository) struct Upstream {
    pub(in crate::repository) path: PathBuf,
}

impl Upstream {
    /// `main` with two commits.
    pub(in crate::repository) fn new(path: PathBuf) -> Self {
        let upstream = Self { path };
        std::fs::create_dir_all(&upstream.path).unwrap();
        upstream.git(["init", "-q", "-b", "main"]);
        upstream.commit("first");
        upstream.commit("second");
        upstream
    }

    pub(in crate::repository) fn git<I, S>(&self, args: I) -> String
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        git_in(&self.path, args)
    }

    pub(in crate::repository) fn commit(&self, message: &str) -> CommitId {
        std::fs::write(self.path.join("file.txt"), message).unwrap();
        self.git(["add", "."]);
        self.git(["commit", "-q", "--allow-empty", "-m", message]);
        self.rev("HEAD")
    }

    pub(in crate::repository) fn rev(&self, name: &str) -> CommitId {
        self.git(["rev-parse", name]).parse().unwrap()
    }

    /// A commit on `main` that no ref names.
    pub(in crate::repository) fn loose_commit(&self, message: &str) -> CommitId {
        self.git(["commit-tree", "-p", "main", "-m", message, "main^{tree}"]).parse().unwrap()
    }

    pub(in crate::repository) fn url(&self) -> RepositoryUrl {
        format!("file://{}", self.path.display()).parse().unwrap()
    }

    pub(in crate::repository) fn request(&self, reference: &str) -> Request {
        Request::new(self.url(), reference.parse().unwrap())
    }
}

pub(in crate::repository) fn git_in<I, S>(dir: &Path, args: I) -> String
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(args).stdin(Stdio::null());
    for (key, value) in [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_AUTHOR_NAME", "A"),
        ("GIT_AUTHOR_EMAIL", "a@example.org"),
        ("GIT_COMMITTER_NAME", "A"),
        ("GIT_COMMITTER_EMAIL", "a@example.org"),
    ] {
        command.env(key, value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Writes a shell program, by a child: while this process has it open for writing, a test beside may fork, and its child
/// then keeps it from being started (ETXTBSY).
pub(in crate::repository) fn write_program(path: &Path, script: &str) {
    let write = "printf '#!/bin/sh\n%s' \"$2\" > \"$1\" && chmod 755 \"$1\"";
    let status = Command::new("sh").args(["-c", write, "sh"]).arg(path).arg(script).status().unwrap();
    assert!(status.success());
}

/// A git in the real one's place that counts what it is started for.
pub(in crate::repository) async fn counting_git(dir: &Path) -> (Git, PathBuf) {
    let (program, log) = (dir.join("counting-git"), dir.join("git.log"));
    // While a file `hold` is there, no fetch of all branches begins.
    let hold = format!(
        "case \"$*\" in *'+refs/heads/*'*|*'fetch '*'--stdin'*) while [ -e '{}/hold' ]; do sleep 0.02; done;; esac",
        dir.display()
    );
    // Where a file says so, repacks take long.
    let slow = format!("if [ \"$1\" = repack ] && [ -e '{}/slow' ]; then sleep 60; fi", dir.display());
    write_program(&program, &format!("echo \"$1\" >> '{}'\n{hold}\n{slow}\nexec git \"$@\"\n", log.display()));
    (Git::at(program).await.unwrap(), log)
}

/// A node: a pool, and the room over it.
pub(in crate::repository) struct World {
    pub(in crate::repository) dir: tempfile::TempDir,
    pub(super) repositories: Repositories,
    pub(super) mounted: Arc<AtomicBool>,
    pub(super) free: Arc<AtomicU64>,
    /// How often the room looked how full its pool is.
    pub(super) measured: Arc<AtomicU64>,
    /// What leases hold of the pool, and have not written.
    pub(super) reserved: Arc<AtomicU64>,
    /// The commits that later rooms have.
    pub(super) needed: watch::Sender<Option<NeededCommits>>,
    pub(super) git_log: PathBuf,
    pub(super) config: config::Repositories,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    /// `change` gets the configuration and the directory for upstreams.
    pub(super) async fn with(change: impl FnOnce(&mut config::Repositories, &Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config::Repositories {
            pool: "data".into(),
            limit: None,
            refresh: Duration::from_secs(300),
            parallel: 2,
            parallel_per_host: 2,
            fetch_within: Duration::from_secs(60),
            check: Duration::from_secs(24 * 3600),
            seeds: Vec::new(),
            add: config::Add::OnDemand,
            allow: vec!["*".into()],
            protocols: vec!["file".into()],
            git: config::git::GitChild {
                user: None,
                memory_bytes: 1 << 31,
                processes: 4096,
                helper: None,
                personal: false,
            },
            credentials: Vec::new(),
            forges: Vec::new(),
            upkeep: config::Upkeep::default(),
            min_age: Duration::from_secs(3600),
            paths: None,
            mirrors: Vec::new(),
            manifests: Vec::new(),
            submodules: config::Submodules { depth: 5, repositories: 200 },
            lfs: config::Lfs { object_limit: 1 << 30, limit: None },
            serve: config::Serve::default(),
        };
        change(&mut config, dir.path());
        Self::over(dir, config).await
    }

    async fn over(dir: tempfile::TempDir, config: config::Repositories) -> Self {
        let mounted = Arc::new(AtomicBool::new(true));
        let (git, git_log) = counting_git(dir.path()).await;
        let stoker = dir.path().join("pool/stoker");
        std::fs::create_dir_all(stoker.join("trash")).unwrap();
        let root: Root = {
            let (stoker, mounted) = (stoker.clone(), Arc::clone(&mounted));
            Arc::new(move || match mounted.load(Ordering::SeqCst) {
                true => Ok(stoker.clone()),
                false => Err(Reason::new(Code::PoolNotReady, "data", "not mounted")),
            })
        };
        let discard: Discard = {
            let (trash, next) = (stoker.join("trash"), AtomicU64::new(0));
            Arc::new(move |path| {
                let number = next.fetch_add(1, Ordering::SeqCst);
                std::fs::rename(path, trash.join(format!("{}-{number}", std::process::id())))
            })
        };
        let free = Arc::new(AtomicU64::new(1 << 40));
        let (reserved, measured) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let measure: Measure = {
            let (free, reserved, looks) = (Arc::clone(&free), Arc::clone(&reserved), Arc::clone(&measured));
            Arc::new(move || {
                looks.fetch_add(1, Ordering::SeqCst);
                let reserved_bytes = reserved.load(Ordering::SeqCst);
                Ok(Space { free_bytes: free.load(Ordering::SeqCst), floor_bytes: FLOOR, reserved_bytes })
            })
        };
        let pool = Pool { root, discard, measure };
        let grace = Duration::from_millis(200);
        let repositories = Repositories::open_with(&config, git, pool, CancellationToken::new(), grace).await.unwrap();
        Self { dir, repositories, mounted, free, measured, reserved, needed: watch::Sender::default(), git_log, config }
    }

    /// The agent ends and starts again.
    pub(super) async fn restart(self, between: impl FnOnce(&Path)) -> Self {
        self.repositories.shutdown().await;
        let trash = self.dir.path().join("pool/stoker/trash");
        #[expect(clippy::disallowed_methods, reason = "nothing but this test writes there")]
        std::fs::remove_dir_all(trash).unwrap();
        between(&self.folder());
        Self::over(self.dir, self.config).await
    }

    /// Begins upkeep; gives the pool's free bytes, of which [`FLOOR`] is the floor.
    pub(super) fn keep_up(&self) -> Arc<AtomicU64> {
        self.repositories.start_upkeep(std::future::ready(()), self.needed.subscribe());
        Arc::clone(&self.free)
    }

    pub(super) fn upstream(&self, name: &str) -> Upstream {
        Upstream::new(self.dir.path().join("upstreams").join(name))
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.dir.path().join("pool/stoker/repositories")
    }

    /// The bare repository that fetches of `url` write to.
    pub(super) fn store(&self, url: &RepositoryUrl) -> PathBuf {
        let view = self.repositories.get(url).unwrap();
        assert!(!view.store.is_empty(), "{url} has no store yet");
        self.folder().with_file_name("stores").join(view.store).join("store.git")
    }

    pub(super) async fn resolve(&self, request: &Request) -> Result<Resolved, Reason> {
        self.repositories.resolve(request, PATIENCE).await
    }

    /// The commit, or the word of the reason.
    pub(super) async fn commit(&self, request: &Request) -> Result<CommitId, &'static str> {
        self.resolve(request).await.map(|resolved| resolved.commit).map_err(|reason| reason.code.word())
    }

    /// How often git was started for `what`.
    pub(super) fn count(&self, what: &str) -> usize {
        std::fs::read_to_string(&self.git_log).unwrap().lines().filter(|line| *line == what).count()
    }
}

/// Waits for a condition, with a limit.
pub(in crate::repository) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < limit, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A branch's name that is no UTF-8.
pub(super) fn odd_ref() -> &'static OsStr {
    OsStr::from_bytes(b"refs/heads/caf\xe9")
}

/// A declared mirror of this trust class.
pub(super) fn mirror(upstream: &Upstream, trust: &str) -> config::Mirror {
    config::Mirror {
        url: upstream.url(),
        pin: false,
        trust: trust.into(),
        fork_of: None,
        submodules: false,
        lfs: false,
    }
}
