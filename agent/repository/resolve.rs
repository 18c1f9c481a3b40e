//! From a source to a commit: gathers the facts, asks the core what to do, does it.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::identity::CommitId;
use stoker_core::quantity::{Span, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_core::source::{
    Asked, Fetched, Found, LATE_REF_PAUSES, Origin, Probed, RepositoryUrl, Request, SourceRef, Step, View as Facts,
    decide,
};
use tokio::time::Instant;

use super::disk::io_reason;
use super::entry::Entry;
use super::fetch::blocking;
use super::listing::{Head, Wanted};
use super::meta::Meta;
use super::read::{ReadError, Reader};
use super::snapshot::SnapshotPin;
use super::{Cached, Repositories, Resolved, Shared};

/// More than any resolution has; see [`decide`].
const STEPS_MAX: usize = 8 + 2 * LATE_REF_PAUSES.len();

impl Repositories {
    /// The commit that `request` stands for, and its snapshot. Waits at most `patience`; a fetch that takes longer goes
    /// on for those who ask later. A repository that is not here yet is added where the configuration allows.
    ///
    /// # Errors
    /// The reason why there is no such commit, or none now.
    pub async fn resolve(&self, request: &Request, patience: Duration) -> Result<Resolved, Reason> {
        let deadline = Instant::now() + patience;
        let entry = self.entry(&request.url, "").await?;
        resolve_in(&self.shared, &entry, request, deadline).await
    }

    /// The repository; one that is not here yet is added where the configuration allows, for `trust`.
    pub(super) async fn entry(&self, url: &RepositoryUrl, trust: &str) -> Result<Arc<Entry>, Reason> {
        let shared = &self.shared;
        shared.recovered().await?;
        // Asked on every use: what is not there now cannot be handed to a build.
        (shared.pool.root)()?;
        if let Some(entry) = shared.get(url) {
            return Ok(entry);
        }
        shared.may_add(url)?;
        shared.insert(Meta::new(url.clone(), trust.to_owned(), false, false), true)
    }

    /// What is here of `request`'s source, whatever its age; asks nobody and writes nothing. May read a file or two.
    #[must_use]
    pub fn resolve_cached(&self, request: &Request) -> Cached {
        let Some(entry) = self.shared.get(&request.url) else { return Cached::None };
        let Some(pin) = entry.current() else { return Cached::None };
        let reader = &self.shared.reader;
        let found = match request.reference {
            SourceRef::Commit(commit) => reader.subject(&pin, commit).ok().flatten().map(|_| commit),
            _ => named(reader, &pin, &request.reference).ok().flatten().map(|(commit, _)| commit),
        };
        let expected = |found: &CommitId| request.expected_commit.is_none_or(|expected| expected == *found);
        found.filter(expected).map_or(Cached::Mirror, |commit| Cached::Commit(pin, commit))
    }
}

/// What an answer needs of what is remembered of a repository: all of it may be a thousand commits and as many pull
/// requests, and is not copied for each answer.
#[derive(Clone)]
struct Known {
    clone_url: String,
    /// When upstream last listed its refs and we had them all.
    confirmed_at: Option<Timestamp>,
    /// When upstream listed the refs that are here.
    mirror_at: Timestamp,
    /// The pull request that is asked for, under each of its names, and when upstream last said so.
    pulls: Vec<(String, Timestamp)>,
}

impl Known {
    fn of(meta: &Meta, reference: &SourceRef) -> Self {
        let names = if matches!(reference, SourceRef::PullRequest(_)) { reference.full_names() } else { Vec::new() };
        let pulls = names.into_iter().filter_map(|name| {
            let at = meta.pin(&name)?.confirmed_at;
            Some((name, at))
        });
        Self {
            clone_url: meta.url.fetch_url().to_owned(),
            confirmed_at: meta.confirmed_at,
            mirror_at: meta.confirmed_at.or(meta.partial_at).unwrap_or_default(),
            pulls: pulls.collect(),
        }
    }
}

pub(super) async fn resolve_in(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    request: &Request,
    deadline: Instant,
) -> Result<Resolved, Reason> {
    let mut facts = Facts::default();
    for _ in 0..STEPS_MAX {
        let pin = entry.current();
        let known = Known::of(&entry.state().meta, &request.reference);
        facts.confirmed_at = known.confirmed_at;
        facts.found = find(shared, pin.as_ref(), &known, request).await?;
        facts.known |= facts.found.is_some();
        let patience = deadline.saturating_duration_since(Instant::now()).as_millis();
        facts.patience = Span(i64::try_from(patience).unwrap_or(i64::MAX));
        match decide(&facts, request, shared.now()) {
            Step::Answer { commit, origin, as_of, other_fork } => {
                let Some(pin) = pin else { break };
                shared.count_answer(entry, facts.asked.is_some(), origin == Origin::Stale);
                entry.state().meta.use_commit(commit, shared.now());
                if other_fork {
                    tracing::info!(repository = entry.url.key(), %commit, "a commit that only another fork has, as allowed");
                }
                let resolved = answer(shared, pin, known, request, commit, origin, as_of).await?;
                return Ok(Resolved { other_fork, ..resolved });
            }
            Step::Probe(commit) => facts.probed = Some(probe(shared, pin.as_ref(), commit, deadline).await?),
            Step::Ask(refs) => {
                let tips = match request.reference {
                    SourceRef::Commit(commit) => [commit].into(),
                    _ => Default::default(),
                };
                let head = request.reference == SourceRef::Head;
                let wanted = Wanted { refs: refs.into_iter().collect(), tips, head, ..Wanted::default() };
                facts.asked = Some(match ask(shared, entry, wanted, deadline).await {
                    Ok(()) => Asked::Answered,
                    Err(reason) => Asked::Failed(reason),
                });
                if facts.asked == Some(Asked::Answered) {
                    facts.probed = None;
                }
            }
            Step::Wait(pause) => {
                let pause = Duration::from_millis(u64::try_from(pause.0).unwrap_or(0));
                // Where the agent stops, the question that follows says so.
                shared.cancel.run_until_cancelled(tokio::time::sleep(pause)).await;
                (facts.asked, facts.asked_again) = (None, facts.asked_again + 1);
            }
            Step::Fetch(commit) => {
                let wanted = Wanted { commits: [commit].into(), ..Wanted::default() };
                facts.fetched = Some(fetch(shared, entry, wanted, commit, deadline).await);
            }
            Step::Refuse(reason) => {
                shared.count_answer(entry, facts.asked.is_some(), false);
                return Err(reason);
            }
        }
    }
    let message = format!("{} changed while {} was resolved; ask again", request.url, request.reference);
    Err(Reason::new(Code::UpstreamTimeout, request.url.key(), message))
}

/// Where a ref stands here, whatever its age.
pub(super) async fn pull_commit(shared: &Shared, entry: &Entry, request: &Request) -> Option<CommitId> {
    let (pin, known) = (entry.current()?, Known::of(&entry.state().meta, &request.reference));
    find(shared, Some(&pin), &known, request).await.ok()?.map(|found| found.commit)
}

async fn ask(shared: &Shared, entry: &Entry, wanted: Wanted, deadline: Instant) -> Result<(), Reason> {
    // Whether a history reaches a commit can be said only when all of it is here.
    let needs_all = !wanted.tips.is_empty();
    let ask = shared.ask(entry, wanted)?;
    if needs_all { ask.wait(deadline).await?.result.clone() } else { ask.wait_for_refs(deadline).await }
}

async fn fetch(shared: &Shared, entry: &Entry, wanted: Wanted, commit: CommitId, deadline: Instant) -> Fetched {
    let asked = async { shared.ask(entry, wanted)?.wait(deadline).await };
    match asked.await {
        Err(reason) => Fetched::Failed(reason),
        Ok(outcome) => match (outcome.commits.get(&commit), &outcome.result) {
            (Some(fetched), _) => fetched.clone(),
            (None, Err(reason)) => Fetched::Failed(reason.clone()),
            (None, Ok(())) => Fetched::Nowhere,
        },
    }
}

async fn probe(
    shared: &Shared,
    pin: Option<&SnapshotPin>,
    commit: CommitId,
    deadline: Instant,
) -> Result<Probed, Reason> {
    let Some(pin) = pin.cloned() else { return Ok(Probed::Missing) };
    if let Some(known) = shared.reader.known_probe(&pin, commit) {
        return Ok(known);
    }
    let (reader, key) = (shared.reader.clone(), pin.url().key().to_owned());
    // A walk through a long history goes on without its caller, and is remembered.
    let probing = blocking(&key, move || reader.probe(&pin, commit));
    match tokio::time::timeout_at(deadline, probing).await {
        Ok(probed) => probed?.map_err(|error| unreadable(&key, &error)),
        Err(_) => {
            let message = format!("whether {key} reaches {commit} was not found out in time; ask again");
            Err(Reason::new(Code::UpstreamTimeout, key, message))
        }
    }
}

async fn find(
    shared: &Shared,
    pin: Option<&SnapshotPin>,
    known: &Known,
    request: &Request,
) -> Result<Option<Found>, Reason> {
    let Some(pin) = pin.cloned() else { return Ok(None) };
    if matches!(request.reference, SourceRef::Commit(_)) {
        return Ok(None);
    }
    let key = request.url.key();
    let found = match shared.reader.has_refs(&pin) {
        true => look_up(&shared.reader, &pin, known, &request.reference),
        false => {
            let (reader, known, reference) = (shared.reader.clone(), known.clone(), request.reference.clone());
            blocking(key, move || look_up(&reader, &pin, &known, &reference)).await?
        }
    };
    Ok(found.map_err(|error| unreadable(key, &error))?.map(|(found, _)| found))
}

/// What the snapshot has under a ref, and the ref's full name there.
fn named(reader: &Reader, pin: &SnapshotPin, reference: &SourceRef) -> Result<Option<(CommitId, String)>, ReadError> {
    // Only who asks for HEAD needs it, and it is a file.
    let head = if *reference == SourceRef::Head { reader.head(pin) } else { None };
    let names = match head {
        Some(Head::Detached(commit)) => return Ok(Some((commit, "HEAD".to_owned()))),
        Some(Head::Branch(name)) => vec![format!("refs/heads/{name}")],
        None => reference.full_names(),
    };
    let refs = reader.refs(pin)?;
    Ok(names.into_iter().find_map(|name| Some((refs.get(name.as_bytes())?.target(), name))))
}

/// The same with its age.
fn look_up(
    reader: &Reader,
    pin: &SnapshotPin,
    known: &Known,
    reference: &SourceRef,
) -> Result<Option<(Found, String)>, ReadError> {
    Ok(named(reader, pin, reference)?.map(|(commit, name)| {
        // A pull request is as old as the last question for it, not as the last refresh.
        let confirmed_at = match reference {
            SourceRef::PullRequest(_) => {
                known.pulls.iter().find(|(of, _)| *of == name).map_or(Timestamp(0), |(_, at)| *at)
            }
            _ => known.mirror_at,
        };
        (Found { commit, confirmed_at }, name)
    }))
}

async fn answer(
    shared: &Shared,
    pin: SnapshotPin,
    known: Known,
    request: &Request,
    commit: CommitId,
    origin: Origin,
    as_of: Timestamp,
) -> Result<Resolved, Reason> {
    if shared.reader.has_subject(&pin, commit) && shared.reader.has_refs(&pin) {
        return describe(&shared.reader, pin, &known, request, commit, origin, as_of);
    }
    let (reader, request) = (shared.reader.clone(), request.clone());
    let key = request.url.key().to_owned();
    blocking(&key, move || describe(&reader, pin, &known, &request, commit, origin, as_of)).await?
}

fn describe(
    reader: &Reader,
    pin: SnapshotPin,
    known: &Known,
    request: &Request,
    commit: CommitId,
    origin: Origin,
    as_of: Timestamp,
) -> Result<Resolved, Reason> {
    let key = request.url.key();
    let Some(subject) = reader.subject(&pin, commit).map_err(|error| unreadable(key, &error))? else {
        let message = format!("{} of {} names no commit", request.reference, request.url);
        return Err(Reason::new(Code::RefNotFound, request.reference.to_string(), message));
    };
    let named = look_up(reader, &pin, known, &request.reference).map_err(|error| unreadable(key, &error))?;
    let clone_ref = match named {
        Some((_, name)) if name != "HEAD" => name,
        _ => commit.to_string(),
    };
    let clone_url = known.clone_url.clone();
    Ok(Resolved { commit, pin, clone_url, clone_ref, as_of, origin, subject, other_fork: false })
}

impl Shared {
    /// Counts an answer, and that the repository was used. `asked`: upstream, for this answer.
    pub(super) fn count_answer(&self, entry: &Entry, asked: bool, stale: bool) {
        let word = match (stale, asked) {
            (true, _) => "stale",
            (false, true) => "miss",
            (false, false) => "hit",
        };
        {
            let mut state = entry.state();
            let meta = &mut state.meta;
            meta.last_used_at = Some(self.now());
            meta.stale = meta.stale.saturating_add(u64::from(stale));
            let counter = if asked { &mut meta.misses } else { &mut meta.hits };
            *counter = counter.saturating_add(1);
        }
        let mut answers = super::lock(&self.answers);
        let count = answers.entry(word).or_default();
        *count = count.saturating_add(1);
    }
}

fn unreadable(subject: &str, error: &ReadError) -> Reason {
    match error {
        ReadError::Refs { error, .. } => io_reason(subject, "reading refs", error),
        _ => Reason::new(Code::RepositoryCorrupt, subject, error.to_string()),
    }
}
