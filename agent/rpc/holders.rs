//! Who holds a repository's snapshots, by name: what the ledger and the workspaces say. Clients of git over HTTP and reads
//! under way have no names; the repository's own count has them too.

use stoker_core::admission::Source;
use stoker_proto::v1;

use super::Rooms;
use crate::repository::View;

/// How many are named.
const NAMED_MAX: usize = 100;

impl Rooms {
    /// Leases, tickets and workspaces, by kind and id; last the pin of the repository.
    pub(super) fn holders(&self, view: &View) -> Vec<v1::SnapshotHolder> {
        let key = view.url.key();
        let holder = |kind: &str, id: &str, snapshot: &str| v1::SnapshotHolder {
            kind: kind.to_owned(),
            id: id.to_owned(),
            snapshot: snapshot.to_owned(),
        };
        let of = |kind: &str, id: &str, source: &Source| {
            (source.repository == key).then(|| holder(kind, id, &source.snapshot))
        };
        let mut all: Vec<_> = self.admission.read(|ledger| {
            let leases = ledger.live().filter_map(|lease| of("lease", lease.id.as_str(), &lease.source));
            let tickets = ledger.tickets();
            let tickets = tickets.filter_map(|ticket| of("ticket", ticket.id.as_str(), &ticket.request.source));
            leases.chain(tickets).take(NAMED_MAX).collect()
        });
        for workspace in self.workspaces.list() {
            all.extend(of("workspace", &workspace.id, &workspace.source));
            let below = workspace.submodules.iter().chain(&workspace.projects);
            let nested = below.filter(|one| one.url == view.url);
            all.extend(nested.map(|one| holder("workspace", &workspace.id, &one.snapshot)));
        }
        all.sort_by(|a, b| (&a.kind, &a.id, &a.snapshot).cmp(&(&b.kind, &b.id, &b.snapshot)));
        all.dedup();
        all.truncate(NAMED_MAX);
        // It keeps the repository from being evicted, and so its newest snapshot.
        all.extend(view.pinned.then(|| holder("pin", "", &view.snapshot)));
        all
    }
}
