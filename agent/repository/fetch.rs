//! What one serial task does to one store: ask upstream, fetch, publish. The first fill is in [`super::fill`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::{Fetched, Protocol, RepositoryUrl};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::check::packs;
use super::credentials::Credentials;
use super::disk::{Paths, StorePaths, io_reason, repositories};
use super::git::{Command, Git, GitError};
use super::listing::{Head, Listing, Wanted};
use super::local::{SafeDirectory, inspect};
use super::ls_refs::{LsRefs, Question};
use super::progress::Progress;
use super::refs::RefTable;
use super::snapshot::{Publication, SnapshotPin};

/// Of a list of refs: about 800,000.
const LISTING_BYTES_MAX: usize = 64 << 20;
/// How long upstream may take to list its refs, however long a fetch may take.
const LISTING_WITHIN: Duration = Duration::from_secs(120);

/// Everything that one visit to upstream needs.
pub(super) struct Visit {
    pub(super) git: Git,
    pub(super) credentials: Credentials,
    pub(super) ls_refs: LsRefs,
    pub(super) url: RepositoryUrl,
    /// The trust class that it was begun for: its secrets are used, and its stores alone may have what comes.
    pub(super) trust: String,
    pub(super) folder: String,
    /// `<pool>/stoker`, checked just now.
    pub(super) root: PathBuf,
    pub(super) paths: Paths,
    pub(super) store: StorePaths,
    /// What the configuration allows.
    pub(super) protocols: Vec<String>,
    /// Follow redirects: only where the operator named the upstream, for one can lead anywhere.
    pub(super) redirects: bool,
    /// The addresses of its host, where git may take no others; see [`super::reached`].
    pub(super) bound: Option<String>,
    pub(super) deadline: Instant,
    pub(super) cancel: CancellationToken,
    pub(super) progress: watch::Sender<Progress>,
}

impl Visit {
    /// The namespace of this repository's refs in the store, which forks may share.
    pub(super) fn followed(&self, kind: &str) -> String {
        format!("refs/namespaces/{}/refs/{kind}/", self.folder)
    }

    /// The beginning of all of them.
    pub(super) fn namespace(&self) -> Vec<u8> {
        format!("refs/namespaces/{}/", self.folder).into_bytes()
    }

    /// Where refs lie that no refspec follows and no client sees.
    pub(super) fn pins(&self) -> String {
        format!("refs/pins/{}/", self.folder)
    }

    fn subject(&self) -> &str {
        self.url.key()
    }

    /// Checks what a local upstream is; see [`inspect`].
    pub(super) async fn inspect(&self) -> Result<Option<Arc<SafeDirectory>>, Reason> {
        let word = self.url.protocol().word();
        if !self.protocols.iter().any(|allowed| allowed == word) {
            let message =
                format!("{word} is not allowed here; add it to `repositories.protocols` to serve {}", self.url);
            return Err(Reason::new(Code::RepositoryNotAllowed, self.subject(), message));
        }
        if self.url.protocol() != Protocol::File {
            return Ok(None);
        }
        let (url, git, dir) = (self.url.clone(), self.git.clone(), repositories(&self.root));
        let found = blocking(self.subject(), move || inspect(&url, &git, &dir)).await??;
        Ok(found.map(Arc::new))
    }

    /// A command that speaks with upstream.
    pub(super) fn remote<const N: usize>(&self, args: [&str; N], safe: Option<&SafeDirectory>) -> Command {
        let mut protocols = vec![self.url.protocol().word()];
        // An upgrade is the one redirect between protocols that git would follow and that is harmless.
        if self.url.protocol() == Protocol::Http && self.protocols.iter().any(|word| word == "https") {
            protocols.push("https");
        }
        let command = match &self.bound {
            Some(bound) => self.git.command(args).config("http.curloptResolve", bound),
            None => self.git.command(args),
        };
        command
            .protocols(protocols)
            .config("http.followRedirects", if self.redirects { "initial" } else { "false" })
            .upstream(&self.url, &self.credentials)
            .global_config(safe.map(|safe| safe.path().to_owned()))
            .cancel(self.cancel.clone())
            .time_limit(self.remaining())
    }

    pub(super) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    fn reason(&self, doing: &str, error: &GitError) -> Reason {
        error.reason(self.subject(), &format!("{doing} {}", self.url))
    }

    /// Asks upstream what it has.
    pub(super) async fn list(&self, wanted: &Wanted, safe: Option<&SafeDirectory>) -> Result<Listing, Reason> {
        self.progress.send_replace(Progress::phase("connecting"));
        let listing = match self.ls_refs.list(self.question(wanted).await?).await? {
            Some(listing) => listing,
            None => self.list_by_git(wanted, safe).await?,
        };
        if listing.is_empty() {
            // Git takes a page for people for the list of an empty repository.
            let message = format!(
                "{} lists no branches and no tags: push a commit there first, or look whether what answers is not a git \
                 server but a page to sign in",
                self.url
            );
            return Err(Reason::new(Code::RepositoryEmpty, self.subject(), message));
        }
        Ok(listing)
    }

    async fn question<'a>(&'a self, wanted: &'a Wanted) -> Result<Question<'a>, Reason> {
        let authorization = self.credentials.header_for(&self.url).await?;
        let within = self.remaining().min(LISTING_WITHIN);
        let (url, git, cancel) = (&self.url, self.git.version(), &self.cancel);
        Ok(Question { url, wanted, authorization, git, within, cancel })
    }

    async fn list_by_git(&self, wanted: &Wanted, safe: Option<&SafeDirectory>) -> Result<Listing, Reason> {
        let command = self.remote(["ls-remote", "--symref", "--", self.url.fetch_url()], safe);
        let command = command.stdout_bytes_max(LISTING_BYTES_MAX).time_limit(self.remaining().min(LISTING_WITHIN));
        let output = command.run().await.map_err(|error| self.reason("asking for the refs of", &error))?;
        let (wanted, subject) = (wanted.clone(), self.subject().to_owned());
        blocking(self.subject(), move || Listing::parse(&output.stdout, &wanted, &subject)).await?
    }

    /// Whether there is a store to fetch into.
    pub(super) fn has_store(&self) -> bool {
        self.store.has_store()
    }

    /// Fetches what somebody waits for: these refs, and with them what is needed to read them.
    pub(super) async fn fetch_first(&self, listing: &Listing, safe: Option<&SafeDirectory>) -> Result<(), GitError> {
        let followed = listing.first.iter().map(|name| format!("+{name}:refs/namespaces/{}/{name}", self.folder));
        let extra = listing.extra.keys().map(|name| format!("+{name}:{}{name}", self.pins()));
        self.run_fetch(&[], followed.chain(extra).collect(), safe).await
    }

    /// A later fetch: branches and tags follow upstream, and these further refs are pinned.
    pub(super) async fn fetch(&self, listing: &Listing, safe: Option<&SafeDirectory>) -> Result<(), GitError> {
        self.run_fetch(&["--prune"], self.refspecs(listing), safe).await
    }

    fn refspecs(&self, listing: &Listing) -> Vec<String> {
        let mut refspecs = vec![
            format!("+refs/heads/*:{}*", self.followed("heads")),
            format!("+refs/tags/*:{}*", self.followed("tags")),
        ];
        refspecs.extend(listing.extra.keys().map(|name| format!("+{name}:{}{name}", self.pins())));
        if matches!(listing.head, Some(Head::Detached(_))) {
            refspecs.push(format!("+HEAD:{}detached", self.pins()));
        }
        refspecs
    }

    /// As [`Visit::fetch`], but all objects come, whatever is here.
    pub(super) async fn fetch_again(&self, listing: &Listing, safe: Option<&SafeDirectory>) -> Result<(), GitError> {
        self.run_fetch(&["--prune", "--refetch"], self.refspecs(listing), safe).await
    }

    /// Fetches refs that no refresh follows, and nothing else.
    pub(super) async fn fetch_extra(&self, listing: &Listing, safe: Option<&SafeDirectory>) -> Result<(), GitError> {
        let refspecs = listing.extra.keys().map(|name| format!("+{name}:{}{name}", self.pins())).collect();
        self.run_fetch(&[], refspecs, safe).await
    }

    /// Fetches one commit by its name, with its history.
    pub(super) async fn fetch_commit(&self, commit: CommitId, safe: Option<&SafeDirectory>) -> Fetched {
        let refspec = format!("+{commit}:{}commits/{commit}", self.pins());
        match self.run_fetch(&[], vec![refspec], safe).await {
            Ok(()) => Fetched::Here,
            Err(GitError::Failed { code: Code::CommitNotFound | Code::RefNotFound, .. }) => Fetched::Nowhere,
            Err(error) => Fetched::Failed(self.reason("fetching a commit from", &error)),
        }
    }

    async fn run_fetch(
        &self,
        options: &[&str],
        refspecs: Vec<String>,
        safe: Option<&SafeDirectory>,
    ) -> Result<(), GitError> {
        // Never `--atomic`: git then gives up where a branch became a directory of branches.
        let fixed = ["fetch", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules"];
        let command = self.inside(self.remote(fixed, safe)).args(options);
        let command = command.args(["--no-show-forced-updates", "--progress", "--", self.url.fetch_url()]);
        command.args(refspecs).progress(self.progress.clone()).run_in_store(&self.store.git()).await.map(drop)
    }

    /// Fetches these objects and what they lead to, and names none of them.
    pub(super) async fn fetch_objects(&self, ids: &[CommitId], safe: Option<&SafeDirectory>) -> Result<(), GitError> {
        let fixed = ["fetch", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules"];
        let command = self.inside(self.remote(fixed, safe)).args(["--progress", "--stdin", "--", self.url.fetch_url()]);
        let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
        let command = command.stdin(lines.into_bytes()).progress(self.progress.clone());
        command.run_in_store(&self.store.git()).await.map(drop)
    }

    pub(super) async fn pack_refs(&self) -> Result<(), GitError> {
        self.local(["pack-refs", "--all", "--prune"]).run_in_store(&self.store.git()).await.map(drop)
    }

    /// Forgets refs that were pinned.
    pub(super) async fn unpin(&self, names: &[String]) -> Result<(), GitError> {
        let lines: String = names.iter().map(|name| format!("delete {}{name}\n", self.pins())).collect();
        let command = self.local(["update-ref", "--stdin"]).stdin(lines.into_bytes());
        command.run_in_store(&self.store.git()).await.map(drop)
    }

    pub(super) fn local<const N: usize>(&self, args: [&str; N]) -> Command {
        self.inside(self.git.command(args)).cancel(self.cancel.clone()).time_limit(self.remaining())
    }

    /// In the store, and by no path: where the pool is unmounted under way, git goes on writing to the filesystem that it
    /// began on, and never to the disk below the mount point (it makes directories that its paths miss).
    fn inside(&self, command: Command) -> Command {
        command.git_dir(".").work_dir(self.store.git())
    }

    /// Nothing is published of a store that is seen to be damaged.
    async fn has_good_packs(&self) -> Result<(), Reason> {
        let objects = self.store.git().join("objects");
        let found = blocking(self.subject(), move || packs(&objects)).await?;
        let found = found.map_err(|error| io_reason(self.subject(), "looking through the store", &error))?;
        match found.first() {
            Some(first) => Err(Reason::new(Code::RepositoryCorrupt, self.subject(), first.to_string())),
            None => Ok(()),
        }
    }

    /// Publishes a snapshot of what the store holds now, unless `previous` has the same refs and no new objects came.
    pub(super) async fn publish(
        &self,
        head: Option<Head>,
        previous: Option<SnapshotPin>,
        objects_came: bool,
        first: u64,
    ) -> Result<Option<(SnapshotPin, usize)>, Reason> {
        self.progress.send_replace(Progress::phase("publishing"));
        self.has_good_packs().await?;
        self.pack_refs().await.map_err(|error| self.reason("packing the refs of", &error))?;
        let namespace = self.namespace();
        let pins = self.pins().into_bytes();
        let (url, paths, store) = (self.url.clone(), self.paths.clone(), self.store.git());
        let published = blocking(self.subject(), move || {
            let refs = RefTable::read(&store.join("packed-refs"))?.rename(|name| {
                let name = name.strip_prefix(&*namespace).or_else(|| name.strip_prefix(&*pins))?;
                name.starts_with(b"refs/").then(|| name.to_vec())
            });
            if let Some(previous) = &previous
                && !objects_came
                && previous.head() == head
                && previous.refs()?.iter().eq(refs.iter())
            {
                return Ok(None);
            }
            let previous = previous.as_ref().map(SnapshotPin::path);
            let publication = Publication {
                url: &url,
                paths: &paths,
                store: &store,
                head: head.as_ref(),
                refs: &refs,
                previous,
                first,
            };
            publication.publish().map(|pin| Some((pin, refs.len())))
        });
        published.await?.map_err(|error| io_reason(self.subject(), "publishing a snapshot", &error))
    }
}

/// File work off the async threads, within a git step.
pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, GitError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(GitError::Disk),
        Err(error) => Err(GitError::Disk(std::io::Error::other(error))),
    }
}

/// File work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    subject: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Reason> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| io_reason(subject, "working on the disk", &std::io::Error::other(error)))
}
