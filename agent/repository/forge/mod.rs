//! Where a pull request comes from: its fork's own URL and branch, asked of the forge's API, where one is configured.
//!
//! In comes the resolution of a pull request; the API is asked beside the fetch of its ref, by one question for all
//! callers at once, and what it says is told only where it is of the very commit that was resolved. Nothing here delays
//! a resolution by more than [`WITHIN`] or fails it: where the API is slow or wrong, nothing is told.

mod api;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared as Joined, WeakShared};
use stoker_core::identity::CommitId;
use stoker_core::reason::Reason;
use stoker_core::source::{Fork, PullHead, Request, SourceRef, Told, judge};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::credentials::Credentials;
use super::entry::Entry;
use super::for_a_while::ForAWhile;
use super::resolve::{pull_commit, resolve_in};
use super::upstream_http::{Http, has_proxy};
use super::{Repositories, Resolved, Shared, lock};
use crate::config;
use api::{Failure, Question};

/// What an API may take for one pull request, all its answers together; and so what a resolution may be delayed.
const WITHIN: Duration = Duration::from_secs(2);
/// How long an API is left alone that was in trouble.
const LEFT_ALONE: Duration = Duration::from_secs(30);
/// How long what a forge told of a commit is believed. A fork can be deleted or renamed.
const BELIEVED: Duration = Duration::from_secs(3600);
/// How long a forge is not asked again that told nothing of a commit.
const ASKED_AGAIN: Duration = Duration::from_secs(60);
/// How many questions run at once, to all forges.
const AT_ONCE: usize = 16;

/// A pull request, by its repository's key and its number.
type Pull = (String, u64);
/// What an API told of the pull request; nothing where it does not know it.
type Answer = Result<Option<PullHead>, Failure>;
type Asking = Joined<BoxFuture<'static, Answer>>;

/// What the room remembers of forges.
pub(super) struct Forges {
    http: Http,
    proxy: bool,
    places: Semaphore,
    running: Mutex<HashMap<Pull, WeakShared<BoxFuture<'static, Answer>>>>,
    /// What was told of a commit, and until when that holds.
    known: Mutex<ForAWhile<(Pull, CommitId), Option<Fork>>>,
    /// APIs that were in trouble, until when.
    troubled: Mutex<ForAWhile<String, ()>>,
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
}

impl Forges {
    pub(super) fn new(http: Http) -> Self {
        Self {
            http,
            proxy: has_proxy(),
            places: Semaphore::new(AT_ONCE),
            running: Mutex::default(),
            known: Mutex::default(),
            troubled: Mutex::default(),
            outcomes: Mutex::default(),
        }
    }

    fn count(&self, word: &'static str) {
        *lock(&self.outcomes).entry(word).or_default() += 1;
    }

    /// What is known of the commit; nothing where the API is to be asked.
    fn known(&self, pull: &Pull, commit: CommitId) -> Option<Option<Fork>> {
        lock(&self.known).get(&(pull.clone(), commit), Instant::now()).cloned()
    }

    fn remember(&self, pull: &Pull, commit: CommitId, fork: Option<Fork>) {
        let until = Instant::now() + if fork.is_some() { BELIEVED } else { ASKED_AGAIN };
        lock(&self.known).insert((pull.clone(), commit), fork, until);
    }

    /// The question that runs for the pull request, or a new one. It ends with the last who waits for it.
    fn ask(self: &Arc<Self>, question: Question) -> Asking {
        let mut running = lock(&self.running);
        if let Some(asking) = running.get(&question.pull).and_then(WeakShared::upgrade) {
            return asking;
        }
        running.retain(|_, asking| asking.upgrade().is_some());
        let (forges, pull) = (Arc::clone(self), question.pull.clone());
        let asking = async move { forges.answer(question).await }.boxed().shared();
        if let Some(weak) = asking.downgrade() {
            running.insert(pull, weak);
        }
        asking
    }

    async fn answer(&self, question: Question) -> Answer {
        let api = question.api.clone();
        let troubled = lock(&self.troubled).get(&api, Instant::now()).is_some();
        if self.proxy || troubled {
            self.count(if troubled { "left_alone" } else { "proxy" });
            return Ok(None);
        }
        // That all places are taken is no trouble of this API.
        let Ok(_place) = timeout(WITHIN, self.places.acquire()).await else {
            self.count("busy");
            return Ok(None);
        };
        let answer = timeout(WITHIN, question.ask(&self.http)).await.unwrap_or(Err(Failure::TimedOut));
        match &answer {
            Ok(Some(_)) => {}
            Ok(None) => self.count("unknown"),
            Err(failure) => {
                self.count(failure.word());
                let (repository, number) = &question.pull;
                tracing::warn!(
                    repository,
                    api,
                    "where pull request {number} comes from was not found out: {failure}; its own ref is told alone"
                );
                if failure.is_trouble() {
                    lock(&self.troubled).insert(api, (), Instant::now() + LEFT_ALONE);
                }
            }
        }
        answer
    }

    /// What of the answer holds for the commit that was resolved; remembered.
    fn tell(&self, pull: &Pull, commit: CommitId, answer: &Answer, config: &config::Repositories) -> Option<Fork> {
        let Ok(Some(head)) = answer else {
            self.remember(pull, commit, None);
            return None;
        };
        let (word, fork) = match judge(head, pull.1, commit, &config.allow, &config.protocols) {
            Told::Fork(fork) => ("told", Some(fork)),
            Told::Gone => ("gone", None),
            Told::Moved => ("moved", None),
            Told::Refused(why) => {
                tracing::warn!(repository = pull.0, "where pull request {} comes from is not told: {why}", pull.1);
                ("refused", None)
            }
        };
        self.count(word);
        self.remember(pull, commit, fork.clone());
        fork
    }
}

impl Repositories {
    /// As [`resolve`](Self::resolve); with it where a pull request comes from, where a forge's API tells that in time.
    ///
    /// # Errors
    /// Those of [`resolve`](Self::resolve), and no others.
    pub async fn resolve_with_fork(
        &self,
        request: &Request,
        patience: Duration,
    ) -> Result<(Resolved, Option<Fork>), Reason> {
        let deadline = Instant::now() + patience;
        let entry = self.entry(&request.url, "").await?;
        let resolving = resolve_in(&self.shared, &entry, request, deadline);
        let Some(question) = question(&self.shared, &entry, request) else { return Ok((resolving.await?, None)) };
        let forges = &self.shared.forges;
        let pull = question.pull.clone();
        // Where the pull request stands most likely: what was told of it is not asked again.
        let here = pull_commit(&self.shared, &entry, request).await;
        let told = here.and_then(|commit| forges.known(&pull, commit)).is_some();
        let early = (!told).then(|| forges.ask(question.clone()));
        let resolved = match early.clone() {
            None => resolving.await?,
            Some(asking) => {
                tokio::pin!(resolving);
                tokio::select! {
                    resolved = &mut resolving => resolved?,
                    _ = asking => resolving.await?,
                }
            }
        };
        if let Some(known) = forges.known(&pull, resolved.commit) {
            return Ok((resolved, known));
        }
        let asking = early.unwrap_or_else(|| forges.ask(question));
        // Who has no time left gets the commit without; the next caller asks again.
        let Ok(answer) = timeout_at(deadline, asking).await else { return Ok((resolved, None)) };
        let fork = forges.tell(&pull, resolved.commit, &answer, &self.shared.config());
        Ok((resolved, fork))
    }

    /// What came of questions to forges since the start: `told`, or why nothing was.
    #[must_use]
    pub fn forge_answers(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.shared.forges.outcomes).clone()
    }
}

/// What is asked, and of whom; nothing where no forge is configured for the repository, or no pull request is meant.
fn question(shared: &Shared, entry: &Entry, request: &Request) -> Option<Question> {
    let SourceRef::PullRequest(number) = request.reference else { return None };
    let config = shared.config();
    let fits = |forge: &&config::git::Forge| forge.serves(&request.url);
    // The one that names the port is meant before the one that does not.
    let forge = config.forges.iter().filter(fits).max_by_key(|forge| forge.host.len())?;
    let path = forge.kind.question(&request.url, number)?;
    let credentials = Credentials::of(&config, &entry.state().meta.trust);
    Some(Question {
        pull: (request.url.key().to_owned(), number),
        kind: forge.kind,
        api: forge.api.clone(),
        path,
        credentials,
    })
}
