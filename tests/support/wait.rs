//! Conditions with a limit.

use std::future::Future;
use std::time::{Duration, Instant};

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
///
/// # Panics
///
/// Where it does not within `limit`; `what` names it in the message.
#[track_caller]
pub(crate) fn until(limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(limit, condition), "not within {limit:?}: {what}");
}

/// Whether `condition` comes to hold within `limit`.
pub(crate) fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// As [`until`], for a condition that awaits.
///
/// # Panics
///
/// Where it does not hold within `limit`, also while one look at it is under way.
pub(crate) async fn until_async<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let looks = async {
        while !condition().await {
            tokio::time::sleep(PAUSE).await;
        }
    };
    assert!(tokio::time::timeout(limit, looks).await.is_ok(), "not within {limit:?}: {what}");
}
