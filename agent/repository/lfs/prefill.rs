//! Mirrors that are declared with `lfs`: the large files of their HEAD are here before a build asks for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

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

/// Looks until the agent stops.
pub(in crate::repository) async fn prefill_always(shared: Arc<Shared>) {
    let mut ticks = shared.ticks.subscribe();
    // The commit whose files are here, and when a failed one is tried again.
    let mut done: HashMap<String, CommitId> = HashMap::new();
    let mut pauses: HashMap<String, Instant> = HashMap::new();
    loop {
        let config = shared.config();
        for mirror in config.mirrors.iter().filter(|mirror| mirror.lfs) {
            let key = mirror.url.key();
            let Some((pin, head)) = head(&shared, mirror) else { continue };
            let waits = pauses.get(key).is_some_and(|until| *until > Instant::now());
            if waits || done.get(key) == Some(&head) {
                continue;
            }
            match fetch(&shared, mirror, &pin, head).await {
                Ok(()) => {
                    done.insert(key.to_owned(), head);
                    pauses.remove(key);
                    lock(&shared.lfs.faults).remove(key);
                }
                Err(_) if shared.cancel.is_cancelled() => return,
                Err(reason) => {
                    tracing::warn!(repository = key, reason = reason.code.word(), "{}", reason.message);
                    pauses.insert(key.to_owned(), Instant::now() + AGAIN_AFTER);
                    lock(&shared.lfs.faults).insert(key.to_owned(), reason);
                }
            }
            shared.tick();
        }
        let wanted = |key: &String| config.mirrors.iter().any(|mirror| mirror.lfs && mirror.url.key() == key);
        done.retain(|key, _| wanted(key));
        lock(&shared.lfs.faults).retain(|key, _| wanted(key));
        drop(config);
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            changed = ticks.changed() => if changed.is_err() { return },
            () = sleep(LOOK_EVERY) => {}
        }
    }
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
