#![allow(clippy::unwrap_used)]

use super::*;
use alloc::string::ToString;
use proptest::prelude::*;

const NOW: Timestamp = Timestamp(1_000_000);

fn commit(digit: char) -> CommitId {
    core::iter::repeat_n(digit, 40).collect::<String>().parse().unwrap()
}

fn request(reference: &str) -> Request {
    Request::new("https://example.org/a".parse().unwrap(), reference.parse().unwrap())
}

fn found(age_ms: i64) -> Option<Found> {
    Some(Found { commit: commit('a'), confirmed_at: Timestamp(NOW.0.saturating_sub(age_ms)) })
}

fn failed() -> Option<Asked> {
    Some(Asked::Failed(Reason::new(Code::UpstreamUnreachable, "x", "down")))
}

/// The step in one word, for tables.
fn word(step: &Step) -> String {
    match step {
        Step::Answer { origin, .. } => format!("{origin:?}"),
        Step::Ask(refs) => format!("ask {}", refs.join(" ")).trim_end().to_string(),
        Step::Probe(_) => "probe".to_string(),
        Step::Fetch(_) => "fetch".to_string(),
        Step::Wait(pause) => format!("wait {}", pause.0),
        Step::Refuse(reason) => reason.code.word().to_string(),
    }
}

#[test]
fn a_ref_is_answered_within_the_callers_bounds() {
    let minute = Some(Span::minutes(1));
    let view = |found, asked| View { found, asked, ..View::default() };
    let table = [
        (view(found(59_000), None), minute, false, "Cache"),
        (view(found(60_001), None), minute, false, "ask refs/heads/main"),
        (view(found(0), None), None, true, "ask refs/heads/main"),
        (view(None, None), minute, true, "ask refs/heads/main"),
        (view(found(0), Some(Asked::Answered)), None, false, "Upstream"),
        (view(None, Some(Asked::Answered)), None, true, "REF_NOT_FOUND"),
        (view(found(60_001), failed()), minute, true, "Stale"),
        (view(found(60_001), failed()), minute, false, "UPSTREAM_UNREACHABLE"),
        (view(None, failed()), minute, true, "UPSTREAM_UNREACHABLE"),
    ];
    for (view, max_age, allow_stale, step) in table {
        let request = Request { max_age, allow_stale, ..request("branch:main") };
        assert_eq!(word(&decide(&view, &request, NOW)), step, "{view:?}");
    }
}

#[test]
fn a_repository_that_is_gone_is_not_served_stale() {
    let gone = Some(Asked::Failed(Reason::new(Code::UpstreamNotFound, "x", "gone")));
    let view = View { found: found(99), asked: gone, ..View::default() };
    let request = Request { allow_stale: true, ..request("head") };
    assert_eq!(word(&decide(&view, &request, NOW)), "UPSTREAM_NOT_FOUND");
}

#[test]
fn an_unexpected_commit_is_refused_only_after_upstream_was_asked() {
    let request =
        Request { expected_commit: Some(commit('b')), max_age: Some(Span::hours(1)), ..request("branch:main") };
    let mut view = View { found: found(0), ..View::default() };
    assert_eq!(word(&decide(&view, &request, NOW)), "ask refs/heads/main");
    view.asked = Some(Asked::Answered);
    assert_eq!(word(&decide(&view, &request, NOW)), "COMMIT_UNEXPECTED");
}

#[test]
fn a_pull_request_is_asked_for_under_both_names() {
    let step = decide(&View::default(), &request("pr:7"), NOW);
    assert_eq!(word(&step), "ask refs/pull/7/head refs/merge-requests/7/head");
}

#[test]
fn a_pull_request_that_comes_late_is_asked_for_again() {
    let all: i64 = LATE_REF_PAUSES.iter().map(|pause| pause.0).sum();
    assert!(LATE_REF_PAUSES.is_sorted() && all <= 10_000, "{all}");
    // How many pauses fit into the caller's patience.
    for (patience, pauses) in [(0, 0), (900, 0), (1000, 1), (3000, 2), (60_000, LATE_REF_PAUSES.len())] {
        let mut view = View { patience: Span(patience), ..View::default() };
        let mut waited = 0;
        loop {
            match decide(&view, &request("pr:7"), NOW) {
                Step::Ask(_) => view.asked = Some(Asked::Answered),
                Step::Wait(pause) => {
                    waited += 1;
                    view.patience = Span(view.patience.0.saturating_sub(pause.0));
                    (view.asked, view.asked_again) = (None, view.asked_again.saturating_add(1));
                }
                step => break assert_eq!(word(&step), "REF_NOT_FOUND"),
            }
        }
        assert_eq!(waited, pauses, "{patience}");
    }
    // One that was here is gone, and a branch does not come late.
    let gone = View { asked: Some(Asked::Answered), patience: Span::hours(1), ..View::default() };
    assert_eq!(word(&decide(&View { known: true, ..gone.clone() }, &request("pr:7"), NOW)), "REF_NOT_FOUND");
    assert_eq!(word(&decide(&gone, &request("branch:main"), NOW)), "REF_NOT_FOUND");
    assert!(matches!(decide(&gone, &request("pr:7"), NOW), Step::Wait(_)));
}

#[test]
fn a_commit_that_is_reachable_needs_no_network() {
    use Probed::{Missing, Reachable, Unreachable};
    let answered = || Some(Asked::Answered);
    let table = [
        (None, None, None, false, "probe"),
        (Some(Reachable), None, None, false, "Cache"),
        (Some(Unreachable), None, None, true, "Cache"),
        (Some(Unreachable), None, None, false, "ask"),
        (Some(Missing), None, None, true, "ask"),
        (None, answered(), None, false, "probe"),
        (Some(Reachable), answered(), None, false, "Upstream"),
        (Some(Unreachable), answered(), None, false, "COMMIT_UNREACHABLE"),
        (Some(Missing), answered(), None, false, "fetch"),
        (Some(Missing), answered(), Some(Fetched::Nowhere), true, "COMMIT_NOT_FOUND"),
        (Some(Missing), answered(), Some(Fetched::Here), false, "COMMIT_UNREACHABLE"),
        (Some(Missing), answered(), Some(Fetched::Here), true, "Upstream"),
        (Some(Missing), failed(), None, true, "UPSTREAM_UNREACHABLE"),
    ];
    for (probed, asked, fetched, allow_other_fork, step) in table {
        let view = View { probed, asked, fetched, confirmed_at: Some(NOW), ..View::default() };
        let request = Request { allow_other_fork, ..request("sha:cccccccccccccccccccccccccccccccccccccccc") };
        assert_eq!(word(&decide(&view, &request, NOW)), step, "{view:?}");
    }
}

proptest! {
    /// Whatever the world answers, a resolution ends, and asks upstream at most once.
    #[test]
    fn every_resolution_ends(
        by_commit: bool, allow_stale: bool, allow_other_fork: bool, up: bool, has: bool,
        probes in proptest::collection::vec(0..3_u8, 4), max_age in proptest::option::of(0..100_000_i64),
    ) {
        let text = if by_commit { "sha:cccccccccccccccccccccccccccccccccccccccc" } else { "branch:main" };
        let request = Request { allow_stale, allow_other_fork, max_age: max_age.map(Span), ..request(text) };
        let mut view = View::default();
        let mut probes = probes.into_iter();
        let (mut asks, mut ended) = (0_u8, false);
        for _ in 0..5 {
            match decide(&view, &request, NOW) {
                Step::Answer { .. } | Step::Refuse(_) => { ended = true; break }
                Step::Probe(_) => view.probed = Some(match probes.next().unwrap() {
                    0 => Probed::Reachable,
                    1 => Probed::Unreachable,
                    _ => Probed::Missing,
                }),
                Step::Ask(_) => {
                    asks = asks.saturating_add(1);
                    view.asked = if up { Some(Asked::Answered) } else { failed() };
                    if up { view.probed = None }
                    view.found = if has { found(0) } else { None };
                }
                Step::Fetch(_) => view.fetched = Some(if has { Fetched::Here } else { Fetched::Nowhere }),
                Step::Wait(_) => prop_assert!(false, "no pull request was asked for"),
            }
        }
        prop_assert!(ended && asks <= 1, "{view:?}");
    }
}
