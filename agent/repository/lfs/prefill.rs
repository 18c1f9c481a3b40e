//! Mirrors that are declared with `lfs`: the large files of their HEAD are here before a build asks for them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use stoker_core::identity::CommitId;
use stoker_core::reason::Reason;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{fetch_within, lock};
use crate::config::Mirror;
use crate::repository::Shared;
use crate::repository::listing::Head;
use crate::repository::progress::Progress;
use crate::repository::snapshot::SnapshotPin;

/// How often mirrors are looked at where no change woke this task.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The pause after a failure.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What is known of mirrors with large files, by key.
#[derive(Default)]
struct Known {
    /// The commit whose files are here.
    done: HashMap<String, CommitId>,
    /// When a failed one is tried again.
    pauses: HashMap<String, Instant>,
    /// Under way.
    busy: BTreeSet<String>,
}

/// Looks until the agent stops. As many mirrors fetch at once as may visit upstreams, in total and of one host; the
/// places are their own, for large files take long, and a build that waits for a commit must not wait for them.
pub(in crate::repository) async fn prefill_always(shared: Arc<Shared>) {
    let mut ticks = shared.ticks.subscribe();
    let mut known = Known::default();
    let mut running = FuturesUnordered::new();
    loop {
        let config = shared.config();
        for mirror in config.mirrors.iter().filter(|mirror| mirror.lfs) {
            let key = mirror.url.key();
            let waits = known.pauses.get(key).is_some_and(|until| *until > Instant::now());
            if waits || known.busy.contains(key) {
                continue;
            }
            let Some((_, head)) = head(&shared, mirror) else { continue };
            if known.done.get(key) != Some(&head) {
                known.busy.insert(key.to_owned());
                running.push(bring(Arc::clone(&shared), mirror.clone()));
            }
        }
        let wanted = |key: &String| config.mirrors.iter().any(|mirror| mirror.lfs && mirror.url.key() == key);
        known.done.retain(|key, _| wanted(key));
        known.pauses.retain(|key, _| wanted(key));
        lock(&shared.lfs.faults).retain(|key, _| wanted(key));
        drop(config);
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            Some((key, brought)) = running.next(), if !running.is_empty() => {
                known.busy.remove(&key);
                note(&shared, &mut known, key, brought);
            }
            changed = ticks.changed() => if changed.is_err() { return },
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

/// The large files of one mirror's HEAD, when there is a place. Gives the commit; nothing where there is none any more.
async fn bring(shared: Arc<Shared>, mirror: Mirror) -> (String, Result<Option<CommitId>, Reason>) {
    let key = mirror.url.key().to_owned();
    let Some(_place) = shared.lfs.places.take(&mirror.url).await else { return (key, Ok(None)) };
    // The newest now: it may have moved while there was no place.
    let Some((pin, head)) = head(&shared, &mirror) else { return (key, Ok(None)) };
    let fetched = fetch(&shared, &mirror, &pin, head).await;
    (key, fetched.map(|()| Some(head)))
}

fn note(shared: &Shared, known: &mut Known, key: String, brought: Result<Option<CommitId>, Reason>) {
    match brought {
        Ok(Some(head)) => {
            known.pauses.remove(&key);
            lock(&shared.lfs.faults).remove(&key);
            known.done.insert(key, head);
        }
        Ok(None) => {}
        Err(_) if shared.cancel.is_cancelled() => {}
        Err(reason) => {
            tracing::warn!(repository = key, reason = reason.code.word(), "{}", reason.message);
            known.pauses.insert(key.clone(), Instant::now() + AGAIN_AFTER);
            lock(&shared.lfs.faults).insert(key, reason);
        }
    }
    shared.tick();
}

/// The newest snapshot and what its HEAD names.
fn head(shared: &Shared, mirror: &Mirror) -> Option<(SnapshotPin, CommitId)> {
    let pin = shared.get(&mirror.url)?.current()?;
    let head = match pin.head()? {
        Head::Detached(commit) => commit,
        Head::Branch(name) => {
            let refs = shared.reader.refs(&pin).ok()?;
            refs.get(format!("refs/heads/{name}").as_bytes())?.target()
        }
    };
    Some((pin, head))
}

async fn fetch(shared: &Shared, mirror: &Mirror, pin: &SnapshotPin, head: CommitId) -> Result<(), Reason> {
    let steps = watch::Sender::new(Progress::default());
    let cancel = shared.cancel.child_token();
    fetch_within(shared, pin, head, &mirror.trust, &steps, &cancel).await.map(drop)
}
