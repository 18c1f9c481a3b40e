//! What must be known before the writer decides: which commit, and how big.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use stoker_core::admission::{Fit, Lease, Ledger, Source, Totals};
use stoker_core::identity::{Component, RequestId, Scope};
use stoker_core::quantity::{Amounts, Resource, Span};
use stoker_core::reason::{Code, Reason};
use stoker_core::sizing::{Asked, Declared, Outcome, Policy, Sample, Sizing, beyond_cap, size, summary};
use stoker_core::source::{Origin, Request, SourceRef};
use tokio::sync::watch;

use super::writer::WriterError;
use crate::pressure::Configured;
use crate::repository::{Cached, Repositories, Resolved, SnapshotPin};
use crate::sizing::{Facts, FactsCache};

/// One build, as a scheduler describes it.
#[derive(Debug, Clone)]
pub struct Build {
    /// Where from.
    pub source: Request,
    /// Who for.
    pub scope: Scope,
    /// Which of several things in the repository.
    pub target: String,
    /// As Kubernetes writes it; empty: the node's own.
    pub architecture: String,
    /// What the caller says of its size.
    pub declared: Declared,
    /// The directories of the tenant that it asks for.
    pub cache_keys: Vec<String>,
}

impl Build {
    /// What its runs are remembered under: repository, target, architecture.
    #[must_use]
    pub fn history_key(&self) -> String {
        let architecture = if self.architecture.is_empty() { here() } else { &self.architecture };
        history_key(self.source.url.key(), &self.target, architecture)
    }
}

fn here() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A tab parts them: it is in none of them.
fn history_key(repository: &str, target: &str, architecture: &str) -> String {
    format!("{repository}\t{target}\t{architecture}")
}

/// The key of a lease that runs on this node.
pub(super) fn history_key_of(lease: &Lease) -> String {
    history_key(&lease.source.repository, &lease.target, here())
}

/// How warm the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// Nothing is here.
    None,
    /// The repository is here.
    Mirror,
}

/// The caches that are there: the folder of a tenant and trust class, and the key.
pub type Caches = Arc<BTreeSet<(String, String)>>;

/// How many of a build's cache keys have a directory here.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CacheKeys {
    /// Those of the request and the build spec.
    pub wanted: usize,
    /// As far as they are there.
    pub here: usize,
}

/// What [`super::Admission::evaluate`] says of one build.
#[derive(Debug, Clone)]
pub struct Evaluated {
    /// How big it would be.
    pub sizing: Sizing,
    /// How warm its source is.
    pub source: SourceState,
    /// How warm its caches are.
    pub caches: CacheKeys,
    /// It can never fit here.
    pub never: bool,
    /// Why it cannot start now; empty where it can.
    pub reasons: Vec<Reason>,
    /// 0 to 100.
    pub score: u8,
    /// When it might start.
    pub predicted_wait: Option<Span>,
}

impl Evaluated {
    /// With the ledger's word, and a score: 60 for what is here already (10 of them for the caches), 40 for headroom.
    pub(super) fn judged(self, fit: Fit, totals: &Totals) -> Self {
        let source: u64 = match (self.source, self.sizing.provisional) {
            (SourceState::None, _) => 0,
            (SourceState::Mirror, true) => 30,
            (SourceState::Mirror, false) => 50,
        };
        // Who wants none lacks none.
        let CacheKeys { wanted, here } = self.caches;
        let caches = here.saturating_mul(10).checked_div(wanted).unwrap_or(10);
        let warmth = source.saturating_add(u64::try_from(caches).unwrap_or(0));
        let headroom = |r| (totals.free.get(r).saturating_mul(40)).checked_div(totals.budget.get(r)).unwrap_or(0);
        let score = warmth + headroom(Resource::Cpu).min(headroom(Resource::Memory)).min(40);
        let (never, reasons, predicted_wait) = match fit {
            _ if !self.reasons.is_empty() => (true, self.reasons.clone(), None), // its size is refused
            Fit::Now => (false, Vec::new(), None),
            Fit::Later { reasons, retry_after } => (false, reasons, Some(retry_after)),
            Fit::Never(reasons) => (true, reasons, None),
        };
        let score = if never { 0 } else { u8::try_from(score).unwrap_or(100) };
        Self { never, reasons, predicted_wait, score, ..self }
    }
}

/// A build with its commit and its size.
pub(super) struct Surveyed {
    pub(super) source: Source,
    pub(super) pin: SnapshotPin,
    pub(super) sizing: Sizing,
    pub(super) cache_keys: Vec<String>,
    pub(super) expected: Option<Span>,
    pub(super) no_retry: bool,
    pub(super) asked: Asked,
}

/// Why a build was not surveyed to its end.
pub(super) enum SurveyError {
    /// Its source cannot be resolved or read.
    Source(Reason),
    /// Its size is refused: the build spec is not valid, or too much is declared.
    Size(Vec<Reason>),
    /// It is no retry of what it says.
    Retry(WriterError),
}

impl From<WriterError> for SurveyError {
    fn from(error: WriterError) -> Self {
        Self::Retry(error)
    }
}

impl From<Reason> for SurveyError {
    fn from(reason: Reason) -> Self {
        Self::Source(reason)
    }
}

/// Runs that must have succeeded before their usual time is told.
const RUNS_MIN: usize = 3;

/// How long such builds usually take: the median of those that succeeded.
fn expected(history: &[Sample]) -> Option<Span> {
    let succeeded = history.iter().filter(|run| run.outcome == Outcome::Succeeded && run.elapsed > Span(0));
    let mut times: Vec<Span> = succeeded.map(|run| run.elapsed).collect();
    times.sort_unstable();
    (times.len() >= RUNS_MIN).then(|| times[times.len() / 2])
}

/// Resolves and sizes. Cheap to clone.
#[derive(Clone)]
pub struct Survey {
    repositories: Repositories,
    facts: FactsCache,
    config: Configured,
    caches: watch::Receiver<Caches>,
}

impl Survey {
    /// Over the node's repositories, with sizes as the configuration wants them.
    #[must_use]
    pub fn new(
        repositories: Repositories,
        facts: FactsCache,
        config: Configured,
        caches: watch::Receiver<Caches>,
    ) -> Self {
        Self { repositories, facts, config, caches }
    }

    /// Those of the request, then those of the spec that it does not name.
    fn cache_keys(build: &Build, facts: &Facts) -> Vec<String> {
        let of_spec = facts.spec().unwrap_or_default().map(|spec| spec.cache_keys.as_slice()).unwrap_or_default();
        let more = of_spec.iter().filter(|key| !build.cache_keys.contains(key));
        build.cache_keys.iter().chain(more).cloned().collect()
    }

    /// Which of them are there for this tenant, in the repository's trust class.
    fn caches_of(&self, build: &Build, keys: Vec<String>) -> CacheKeys {
        if keys.is_empty() {
            return CacheKeys::default();
        }
        let trust = self.repositories.trust_of(&build.source.url).unwrap_or_default();
        let (caches, owner) = (self.caches.borrow(), Component::of(&[&build.scope.tenant, &trust]).to_string());
        let wanted = keys.len();
        CacheKeys {
            wanted,
            here: keys.into_iter().filter(|key| caches.contains(&(owner.clone(), key.clone()))).count(),
        }
    }

    /// What keeps sizes from being found, on this node.
    pub(super) fn fault(&self) -> Option<Reason> {
        self.facts.fault()
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.config.borrow().sizing.policy)
    }

    /// With the network, where the source asks for it. `room` is asked for after that: what was fetched lies on the pool.
    pub(super) async fn whole(
        &self,
        build: &Build,
        room: impl FnOnce() -> Amounts,
        history: impl FnOnce(&str) -> Vec<Sample>,
        patience: Duration,
    ) -> Result<Surveyed, SurveyError> {
        let resolved = self.repositories.resolve(&build.source, patience).await?;
        let facts = self.facts.of(&resolved.pin, resolved.commit).await?;
        let history = history(&build.history_key());
        let (sizing, refused) = self.sized(build, &facts, &history, &room());
        if !refused.is_empty() {
            return Err(SurveyError::Size(refused));
        }
        let spec = facts.spec().unwrap_or_default();
        let no_retry = spec.is_some_and(|spec| spec.oom_retry == Some(false));
        let cache_keys = Self::cache_keys(build, &facts);
        let (source, expected) = (source(&build.source, &resolved), expected(&history));
        let (declared, language, history_key) = (build.declared.clone(), facts.language, build.history_key());
        let asked = Asked { declared, spec: spec.cloned(), language, history_key };
        Ok(Surveyed { source, pin: resolved.pin, sizing, cache_keys, expected, no_retry, asked })
    }

    /// The same commit once more, for a retry: from the snapshot that it was in, or from where it is now.
    pub(super) async fn again(&self, known: Source, patience: Duration) -> Result<(Source, SnapshotPin), Reason> {
        if let Some(pin) = self.pin_named(&known) {
            return Ok((known, pin));
        }
        let url = known.clone_url.parse().map_err(|why| {
            Reason::new(Code::RepositoryEmpty, known.repository.clone(), format!("{}: {why}", known.clone_url))
        })?;
        let request = Request {
            url,
            reference: SourceRef::Commit(known.commit),
            max_age: None,
            allow_stale: true,
            expected_commit: None,
            allow_other_fork: known.other_fork,
        };
        let resolved = self.repositories.resolve(&request, patience).await?;
        let snapshot = resolved.pin.name().to_owned();
        Ok((Source { snapshot, ..known }, resolved.pin))
    }

    /// From what is here: never a network.
    pub(super) fn cached(&self, build: &Build, room: &Amounts, history: Vec<Sample>) -> Evaluated {
        let (state, resolved) = match self.repositories.resolve_cached(&build.source) {
            Cached::None => (SourceState::None, None),
            Cached::Mirror => (SourceState::Mirror, None),
            Cached::Commit(pin, commit) => (SourceState::Mirror, Some((pin, commit))),
        };
        let facts = resolved.and_then(|(pin, commit)| self.facts.known_or_ask(&pin, commit));
        let known = facts.is_some();
        let facts = facts.unwrap_or_default();
        let (mut sizing, reasons) = self.sized(build, &facts, &history, room);
        let caches = self.caches_of(build, Self::cache_keys(build, &facts));
        sizing.provisional = !known;
        Evaluated { sizing, source: state, caches, never: false, reasons, score: 0, predicted_wait: None }
    }

    /// How big it is, and why that is refused, where it is.
    fn sized(&self, build: &Build, facts: &Facts, history: &[Sample], room: &Amounts) -> (Sizing, Vec<Reason>) {
        let known = (!history.is_empty()).then(|| summary(history));
        let (declared, policy) = (&build.declared, self.policy());
        let (spec, refused) = match facts.spec() {
            Ok(spec) => (spec, beyond_cap(declared, spec, &policy.cap)),
            Err(reason) => (None, vec![reason]),
        };
        (size(declared, spec, known.as_ref(), facts.language, &policy, room), refused)
    }

    /// The snapshot that a source was resolved in.
    pub(super) fn pin_named(&self, source: &Source) -> Option<SnapshotPin> {
        self.repositories.pin_named(&source.clone_url.parse().ok()?, &source.snapshot)
    }

    /// The pins of those that hold their commits, so that their snapshots stay.
    pub(super) fn pins<'a>(
        &self,
        held: impl Iterator<Item = (&'a RequestId, &'a Source)>,
    ) -> BTreeMap<String, SnapshotPin> {
        held.filter_map(|(request, source)| Some((request.to_string(), self.pin_named(source)?))).collect()
    }
}

/// The requests that are live or wait, and what they build.
pub(super) fn held(ledger: &Ledger) -> impl Iterator<Item = (&RequestId, &Source)> {
    let leases = ledger.live().map(|lease| (&lease.request_id, &lease.source));
    leases.chain(ledger.tickets().map(|ticket| (&ticket.request.id, &ticket.request.source)))
}

/// What a lease or a caller is told of a resolved source.
pub(crate) fn source(request: &Request, resolved: &Resolved) -> Source {
    Source {
        repository: request.url.key().to_owned(),
        reference: request.reference.to_string(),
        commit: resolved.commit,
        clone_url: resolved.clone_url.clone(),
        clone_ref: resolved.clone_ref.clone(),
        as_of: resolved.as_of,
        origin: origin_word(resolved.origin).to_owned(),
        snapshot: resolved.pin.name().to_owned(),
        subject: resolved.subject.clone(),
        other_fork: resolved.other_fork,
    }
}

const fn origin_word(origin: Origin) -> &'static str {
    match origin {
        Origin::Upstream => "upstream",
        Origin::Cache => "cache",
        Origin::Stale => "stale",
    }
}
