//! From a source to one commit: what to do next.
//!
//! The resolver gathers facts into a [`View`] and asks [`decide`]; the [`Step`] says which fact is missing, or ends it.
//! Each step adds one fact, so it ends after at most five: probe, ask, probe, fetch, answer. A pull request that upstream
//! does not show yet is asked for again, as often as [`LATE_REF_PAUSES`] has pauses.
//!
//! | request | known | step |
//! |---|---|---|
//! | ref | confirmed within `max_age` | answer from the cache |
//! | ref | older, never asked | ask upstream |
//! | ref | upstream answered | answer, or `REF_NOT_FOUND` |
//! | pull request | upstream answered without it, it was never here | wait and ask again, within the caller's patience |
//! | ref | upstream failed | the stale answer where that is allowed, else the failure |
//! | commit | not looked for | probe |
//! | commit | reachable | answer: a commit never changes, so its age does not matter |
//! | commit | not reachable, never asked | ask upstream: a new state may reach it |
//! | commit | here, still not reachable | answer where other forks are allowed, else `COMMIT_UNREACHABLE` |
//! | commit | not here | fetch it by its name; then as above, or `COMMIT_NOT_FOUND` |

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::identity::CommitId;
use crate::quantity::{Span, Timestamp};
use crate::reason::{Code, Reason};
use crate::source::{RepositoryUrl, SourceRef};

/// Forges make a pull request's ref a moment after they tell of it: the pauses before it is asked for again. Together less
/// than ten seconds, for a number that is none makes its caller wait in vain.
pub const LATE_REF_PAUSES: [Span; 4] = [Span(500), Span(1000), Span(2000), Span(4000)];
/// What of the caller's patience a question after a pause needs.
const LATE_REF_ANSWER: Span = Span(500);

/// A caller's wish for one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where.
    pub url: RepositoryUrl,
    /// Which state of it.
    pub reference: SourceRef,
    /// How old an answer may be; unset: upstream is asked.
    pub max_age: Option<Span>,
    /// When upstream cannot be asked, an answer of any age is good.
    pub allow_stale: bool,
    /// Any other commit is refused.
    pub expected_commit: Option<CommitId>,
    /// A commit that only another fork of the network reaches is accepted.
    pub allow_other_fork: bool,
}

impl Request {
    /// The plainest request: ask upstream, take nothing stale.
    #[must_use]
    pub const fn new(url: RepositoryUrl, reference: SourceRef) -> Self {
        Self { url, reference, max_age: None, allow_stale: false, expected_commit: None, allow_other_fork: false }
    }
}

/// What is known while a request is resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// What the newest snapshot has under the request's ref; never set for a commit.
    pub found: Option<Found>,
    /// When upstream last listed its refs.
    pub confirmed_at: Option<Timestamp>,
    /// What became of asking upstream during this request.
    pub asked: Option<Asked>,
    /// Where the commit stands in the newest snapshot; unset again after upstream answered.
    pub probed: Option<Probed>,
    /// What became of fetching the commit by its name.
    pub fetched: Option<Fetched>,
    /// The ref was here when the request came, whatever became of it.
    pub known: bool,
    /// How often upstream was asked again, after a pause, for a ref that it did not have.
    pub asked_again: usize,
    /// How long the caller still waits.
    pub patience: Span,
}

/// A ref's commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Tags are peeled.
    pub commit: CommitId,
    /// When upstream last said so.
    pub confirmed_at: Timestamp,
}

/// What became of asking upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It answered; the view is of after that.
    Answered,
    /// It did not, or what it has could not be fetched.
    Failed(Reason),
}

/// Where a commit stands in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// A branch, tag or fetched pull request reaches it.
    Reachable,
    /// It is there, but nothing reaches it.
    Unreachable,
    /// It is not there.
    Missing,
}

/// What became of fetching a commit by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// It is here now.
    Here,
    /// Upstream does not have it, or does not give it.
    Nowhere,
    /// Upstream could not be asked.
    Failed(Reason),
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Upstream was asked for it.
    Upstream,
    /// It was there, and within the caller's bound.
    Cache,
    /// It was there, older than the caller's bound, and allowed to be.
    Stale,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// This commit.
    Answer {
        /// The commit.
        commit: CommitId,
        /// Where it came from.
        origin: Origin,
        /// When upstream last confirmed it.
        as_of: Timestamp,
        /// No ref of this repository reaches it: the request allowed what only another fork has.
        other_fork: bool,
    },
    /// Ask upstream for its refs, fetch what changed, and of these refs, which no refresh follows, those that it has.
    /// For a commit: fetch the pull request whose tip it is, too.
    Ask(Vec<String>),
    /// Upstream does not have the ref yet: wait so long, forget that it was asked, and count that it is asked again.
    Wait(Span),
    /// Look for the commit in the newest snapshot.
    Probe(CommitId),
    /// Fetch the commit by its name.
    Fetch(CommitId),
    /// It cannot be.
    Refuse(Reason),
}

/// The next step towards `request`'s commit.
#[must_use]
pub fn decide(view: &View, request: &Request, now: Timestamp) -> Step {
    match request.reference {
        SourceRef::Commit(commit) => decide_commit(view, request, commit, now),
        _ => decide_ref(view, request, now),
    }
}

fn decide_ref(view: &View, request: &Request, now: Timestamp) -> Step {
    let answer = |found: Found, origin| Step::Answer {
        commit: found.commit,
        origin,
        as_of: found.confirmed_at,
        other_fork: false,
    };
    let expected = |found: &Found| request.expected_commit.is_none_or(|expected| expected == found.commit);
    let fresh = |found: &Found| request.max_age.is_some_and(|bound| now.since(found.confirmed_at) <= bound);
    match (view.found, &view.asked) {
        // Where the caller expects another commit, ours may be the one that is behind: ask first.
        (Some(found), None) if fresh(&found) && expected(&found) => answer(found, Origin::Cache),
        (_, None) => Step::Ask(request.reference.full_names()),
        (Some(found), Some(_)) if !expected(&found) => Step::Refuse(unexpected(request, found.commit)),
        (Some(found), Some(Asked::Answered)) => answer(found, Origin::Upstream),
        (None, Some(Asked::Answered)) => match late_ref_pause(view, request) {
            Some(pause) => Step::Wait(pause),
            None => Step::Refuse(ref_not_found(request)),
        },
        (Some(found), Some(Asked::Failed(_))) if fresh(&found) => answer(found, Origin::Cache),
        // A repository that is gone, or was made private, is no more served as if upstream were merely away.
        (Some(found), Some(Asked::Failed(why))) if request.allow_stale && !why.code.upstream_says_no() => {
            answer(found, Origin::Stale)
        }
        (_, Some(Asked::Failed(why))) => Step::Refuse(why.clone()),
    }
}

/// How long to wait for a pull request's ref that may come late. One that was here and is gone does not come back.
fn late_ref_pause(view: &View, request: &Request) -> Option<Span> {
    if view.known || !matches!(request.reference, SourceRef::PullRequest(_)) {
        return None;
    }
    let pause = *LATE_REF_PAUSES.get(view.asked_again)?;
    (view.patience.0 >= pause.0.saturating_add(LATE_REF_ANSWER.0)).then_some(pause)
}

fn decide_commit(view: &View, request: &Request, commit: CommitId, now: Timestamp) -> Step {
    if request.expected_commit.is_some_and(|expected| expected != commit) {
        return Step::Refuse(unexpected(request, commit));
    }
    let origin = if view.asked == Some(Asked::Answered) { Origin::Upstream } else { Origin::Cache };
    let answer = |other_fork| {
        let as_of = view.confirmed_at.unwrap_or(now);
        Step::Answer { commit, origin, as_of, other_fork }
    };
    let here = match (view.probed, &view.fetched) {
        (None, None) => return Step::Probe(commit),
        (Some(Probed::Reachable), _) => return answer(false),
        (Some(Probed::Unreachable), _) | (_, Some(Fetched::Here)) => true,
        (Some(Probed::Missing) | None, _) => false,
    };
    if here && request.allow_other_fork {
        return answer(true);
    }
    match (&view.asked, &view.fetched) {
        (None, _) => Step::Ask(Vec::new()),
        (Some(Asked::Failed(why)), _) => Step::Refuse(why.clone()),
        (Some(Asked::Answered), _) if here => Step::Refuse(commit_unreachable(request, commit)),
        (Some(Asked::Answered), None) => Step::Fetch(commit),
        (Some(Asked::Answered), Some(Fetched::Failed(why))) => Step::Refuse(why.clone()),
        (Some(Asked::Answered), Some(_)) => Step::Refuse(commit_not_found(request, commit)),
    }
}

fn unexpected(request: &Request, commit: CommitId) -> Reason {
    let expected = request.expected_commit.unwrap_or(commit);
    Reason::new(
        Code::CommitUnexpected,
        format!("{}", request.reference),
        format!("{} of {} is {commit}, not {expected} as expected", request.reference, request.url),
    )
}

fn ref_not_found(request: &Request) -> Reason {
    let remedy = match request.reference {
        SourceRef::Head => "its HEAD names no branch that exists: name a branch",
        SourceRef::PullRequest(_) => "upstream shows no such pull or merge request: one just opened can take a moment",
        _ => "look at `git ls-remote` for what it has",
    };
    Reason::new(
        Code::RefNotFound,
        format!("{}", request.reference),
        format!("{} is not in {}; {remedy}", request.reference, request.url),
    )
}

fn commit_unreachable(request: &Request, commit: CommitId) -> Reason {
    Reason::new(
        Code::CommitUnreachable,
        format!("{commit}"),
        format!(
            "no branch, tag or pull request's tip of {} reaches {commit}: it may come from another fork; allow that in \
             the request if it is what you mean",
            request.url
        ),
    )
}

fn commit_not_found(request: &Request, commit: CommitId) -> Reason {
    Reason::new(
        Code::CommitNotFound,
        format!("{commit}"),
        format!("neither this node nor {} has the commit {commit}", request.url),
    )
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
