//! What the cluster is told of this node, put together from what the rooms publish.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::admission::Mode;
use stoker_core::quantity::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, now};
use crate::config::TRUST_DEFAULT;
use crate::kubernetes::{Face, Kubernetes, Told};
use crate::pressure::Pressure;
use crate::repository::Repositories;

/// Nobody reads a node object sooner.
const PAUSE: Duration = Duration::from_secs(1);

/// The rooms of which it is told.
pub(super) struct Rooms {
    pub(super) admission: Admission,
    pub(super) repositories: Repositories,
    pub(super) pressure: Arc<Pressure>,
    pub(super) kubernetes: Kubernetes,
}

/// Tells until `cancel`, where there is a cluster to tell.
pub(super) async fn follow(rooms: Rooms, face: watch::Sender<Face>, cancel: CancellationToken) {
    if !rooms.kubernetes.view().asked {
        return;
    }
    let mut told_until = now();
    let mut repositories = rooms.repositories.watch();
    let (mut pressure, mut ledger) = (rooms.pressure.subscribe(), rooms.admission.watch());
    loop {
        super::views::tell(&face, rooms.face());
        told_until = rooms.tell_of_evictions(told_until);
        if cancel.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return;
        }
        let changed = tokio::select! {
            () = cancel.cancelled() => return,
            changed = repositories.changed() => changed.is_ok(),
            changed = pressure.changed() => changed.is_ok(),
            changed = ledger.changed() => changed.is_ok(),
        };
        if !changed {
            return;
        }
    }
}

impl Rooms {
    fn face(&self) -> Face {
        let mode = match self.admission.read(|ledger| ledger.mode_at(now()).mode) {
            Mode::Accepting => "accepting",
            Mode::Maintenance => "maintenance",
            Mode::Drain => "drain",
        };
        let filled = self.repositories.list().into_iter().filter(|view| view.trust == TRUST_DEFAULT && view.filled);
        Face {
            gate: self.pressure.view().gate.clone(),
            mode: mode.to_owned(),
            cached: filled.map(|view| view.url.key().to_owned()).collect(),
        }
    }

    /// Those after a time; gives that of the last.
    fn tell_of_evictions(&self, after: Timestamp) -> Timestamp {
        let mut last = after;
        for eviction in self.repositories.last_evictions().into_iter().filter(|eviction| eviction.at > after) {
            last = last.max(eviction.at);
            let note = format!("{}: {} ({})", eviction.repository, eviction.what, eviction.code.word());
            self.kubernetes.tell(Told { pod: None, reason: "RepositoryEvicted".to_owned(), note, bad: false });
        }
        last
    }
}
