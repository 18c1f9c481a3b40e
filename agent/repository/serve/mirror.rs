//! What serving needs of the repositories' room: who may read what, how fresh it is, which snapshot has what is wanted.
//! The only file here that knows how that room keeps its repositories.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use stoker_core::identity::CommitId;
use stoker_core::quantity::Span;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::{RepositoryUrl, Request, SourceRef};
use tokio::time::Instant;

use super::super::entry::Entry;
use super::super::fetch::blocking;
use super::super::for_a_while::ForAWhile;
use super::super::listing::Wanted;
use super::super::meta::Meta;
use super::super::read::Verdict;
use super::super::snapshot::SnapshotPin;
use super::super::{absent, lock, unknown};
use super::{Freshness, Refusal, Serve};
use crate::config::TRUST_DEFAULT;

/// After upstream could not be asked, it is not asked for so long again: clients get what is here at once.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(15);
/// How many wanted objects that we lack are looked for upstream in one request.
const LOOKED_FOR_MAX: usize = 8;
/// How many pull requests are looked for upstream in one request.
const PULLS_MAX: usize = 8;

/// Upstreams that could not be asked, by the repository's key, and why.
pub(super) type Failed = ForAWhile<String, Code>;

impl Serve {
    /// The repository of this URL, filled. One that is not here is added where the configuration allows; what the caller
    /// may not read looks as if it were not here.
    pub(super) async fn find(&self, url: &RepositoryUrl) -> Result<Arc<Entry>, Refusal> {
        let shared = &self.inner.repositories.shared;
        let unavailable = Refusal::of;
        shared.recovered().await.map_err(unavailable)?;
        (shared.pool.root)().map_err(unavailable)?;
        let entry = match shared.get(url) {
            Some(entry) if self.may_read(&entry.state().meta.trust) => entry,
            // The same for what is hidden and for what is not here.
            _ if !self.may_read("") => return Err(Refusal::Unknown(unknown(url))),
            Some(_) => return Err(Refusal::Unknown(self.inner.repositories.absent(url))),
            None => {
                shared.may_add(url).map_err(Refusal::Unknown)?;
                shared.insert(Meta::new(url.clone(), String::new(), false, false), true).map_err(unavailable)?
            }
        };
        if !entry.is_filled() {
            // Its client waits as long as it likes: without a first fill there is nothing to serve, and of a large one its
            // first part may be here, which would look like all refs that there are.
            let deadline = Instant::now() + shared.config().fetch_within;
            let filled = async { shared.ask(&entry, Wanted::default())?.wait(deadline).await?.result.clone() };
            filled.await.map_err(|reason| match reason.code.upstream_says_no() {
                true => Refusal::Unknown(absent(url)),
                false => Refusal::of(reason),
            })?;
        }
        Ok(entry)
    }

    /// Whether what is of a trust class may be read: by the caller that it is served for, or by clients without an
    /// identity.
    #[must_use]
    pub fn may_read(&self, trust: &str) -> bool {
        if let Some(reads) = &self.reads {
            return reads(trust);
        }
        let trust = if trust.is_empty() { TRUST_DEFAULT } else { trust };
        self.inner.repositories.shared.config().serve.trust.iter().any(|class| class == trust)
    }

    /// Refuses what upstream was asked for, and no longer has or no longer shows us.
    pub(super) fn still_shown(&self, entry: &Entry) -> Result<(), Refusal> {
        if entry.state().meta.denied { Err(Refusal::Unknown(absent(&entry.url))) } else { Ok(()) }
    }

    /// Asks upstream what it has, where nobody did within the configured time; together with all who ask meanwhile. What
    /// it no longer has, or no longer shows us, is refused: that is no upstream that is merely away.
    pub(super) async fn refresh(&self, entry: &Entry) -> Result<Freshness, Refusal> {
        let shared = &self.inner.repositories.shared;
        let config = shared.config();
        let age = || entry.state().meta.confirmed_at.map(|at| shared.now().since(at));
        let limit = Span(i64::try_from(config.refresh.as_millis()).unwrap_or(i64::MAX));
        if age().is_some_and(|age| age <= limit) && self.still_shown(entry).is_ok() {
            return Ok(self.told(entry, "hit", age(), None));
        }
        let key = entry.url.key();
        let known = lock(&self.inner.failed).get(key, Instant::now()).copied();
        if let Some(code) = known {
            self.still_shown(entry)?;
            return Ok(self.told(entry, "stale", age(), Some(code)));
        }
        let deadline = Instant::now() + config.serve.patience;
        let asked = async { shared.ask(entry, Wanted::default())?.wait(deadline).await?.result.clone() };
        match asked.await {
            Ok(()) => {
                lock(&self.inner.failed).remove(key);
                Ok(self.told(entry, "miss", age(), None))
            }
            Err(reason) => {
                lock(&self.inner.failed).insert(key.to_owned(), reason.code, Instant::now() + ASK_AGAIN_AFTER);
                self.still_shown(entry)?;
                Ok(self.told(entry, "stale", age(), Some(reason.code)))
            }
        }
    }

    fn told(&self, entry: &Entry, word: &'static str, age: Option<Span>, reason: Option<Code>) -> Freshness {
        self.inner.repositories.shared.count_answer(entry, word == "miss", word == "stale");
        Freshness { word, age_seconds: age.map(|age| age.0.max(0) / 1000), reason }
    }

    /// Brings pull requests that are asked for by name, which no refresh follows. One that cannot be had is not listed.
    pub(super) async fn bring_pulls(&self, entry: &Entry, numbers: &[u64]) {
        let config = self.inner.repositories.shared.config();
        let max_age = Span(i64::try_from(config.refresh.as_millis()).unwrap_or(i64::MAX));
        let bring = async |number: u64| {
            let request = Request {
                max_age: Some(max_age),
                allow_stale: true,
                ..Request::new(entry.url.clone(), SourceRef::PullRequest(number))
            };
            if let Err(reason) = self.inner.repositories.resolve(&request, config.serve.patience).await {
                tracing::debug!(repository = entry.url.key(), reason = reason.code.word(), "{}", reason.message);
            }
        };
        // At once: all of them join one visit.
        join_all(numbers.iter().take(PULLS_MAX).map(|number| bring(*number))).await;
    }

    /// The newest snapshot.
    pub(super) fn newest(&self, entry: &Entry) -> Result<SnapshotPin, Refusal> {
        entry.current().ok_or_else(|| Refusal::of(unknown(&entry.url)))
    }

    /// The newest snapshot whose refs reach all that is wanted: a client may have listed refs before the last
    /// publication. What none has is looked for upstream. The outer error is ours, the inner names an object that the
    /// client may not have.
    pub(super) async fn snapshot_with(
        &self,
        entry: &Entry,
        wants: BTreeSet<CommitId>,
    ) -> Result<Result<SnapshotPin, CommitId>, Refusal> {
        let wants = Arc::new(wants);
        let newest = self.newest(entry)?;
        let verdict = self.judge(&newest, &wants).await?;
        if verdict.is_clean() {
            return Ok(Ok(newest));
        }
        for pin in superseded(entry) {
            // One that was thrown away meanwhile, or cannot be read, has nothing.
            if self.judge(&pin, &wants).await.is_ok_and(|verdict| verdict.is_clean()) {
                return Ok(Ok(pin));
            }
        }
        let lacking: Vec<CommitId> = verdict.missing.iter().chain(&verdict.unreachable).copied().collect();
        let patience = self.inner.repositories.shared.config().serve.patience;
        for commit in &lacking {
            if lacking.len() > LOOKED_FOR_MAX {
                return Ok(Err(*commit));
            }
            let request = Request::new(entry.url.clone(), SourceRef::Commit(*commit));
            if let Err(reason) = self.inner.repositories.resolve(&request, patience).await {
                tracing::debug!(repository = entry.url.key(), reason = reason.code.word(), "{}", reason.message);
                return Ok(Err(*commit));
            }
        }
        let newest = self.newest(entry)?;
        let verdict = self.judge(&newest, &wants).await?;
        let refused = verdict.missing.first().or(verdict.unreachable.first()).copied();
        Ok(refused.map_or(Ok(newest), Err))
    }

    async fn judge(&self, pin: &SnapshotPin, wants: &Arc<BTreeSet<CommitId>>) -> Result<Verdict, Refusal> {
        let (reader, pin, wants) = (self.inner.repositories.reader(), pin.clone(), Arc::clone(wants));
        let key = pin.url().key().to_owned();
        // A walk through a long history goes on without its caller, and is remembered.
        let judged = blocking(&key, move || reader.judge(&pin, &wants)).await.map_err(Refusal::of)?;
        judged.map_err(|error| Refusal::of(Reason::new(Code::RepositoryCorrupt, key, error.to_string())))
    }
}

/// Snapshots that a newer one has replaced, the newest first.
fn superseded(entry: &Entry) -> Vec<SnapshotPin> {
    let mut pins: Vec<SnapshotPin> = {
        let state = entry.state();
        let of_class = |pin: &&SnapshotPin| pin.number() >= state.meta.first_snapshot && !pin.is_condemned();
        state.superseded.iter().map(|(pin, _)| pin).filter(of_class).cloned().collect()
    };
    pins.sort_by_key(|pin| std::cmp::Reverse(pin.number()));
    pins
}

/// About how many bytes an answer can have that brings all of a snapshot. Blocks.
pub(super) fn bytes_expected(snapshot: &Path) -> u64 {
    let packs = std::fs::read_dir(snapshot.join("objects/pack")).into_iter().flatten().flatten();
    let packed = packs.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack"));
    let bytes = packed.filter_map(|entry| Some(entry.metadata().ok()?.len())).fold(0, u64::saturating_add);
    // The packets around it, objects that lie loose, and deltas whose base is not sent.
    bytes.saturating_add(bytes / 8).saturating_add(1 << 20)
}
