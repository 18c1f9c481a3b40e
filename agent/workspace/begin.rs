//! How a preparation begins, and for whom.

use std::io;
use std::path::Path;

use stoker_core::reason::{Code, Reason};
use tokio::sync::watch;

use super::disk::unwritable;
use super::{Entry, Order, Preparing, Progress, WORKSPACES_MAX, Workspaces, caches};

/// Why a preparation does not begin.
#[derive(Debug)]
pub enum NotBegun {
    /// The id is of a workspace of another tenant, or of another trust class.
    Anothers,
    /// All else.
    Because(Reason),
}

impl From<Reason> for NotBegun {
    fn from(reason: Reason) -> Self {
        Self::Because(reason)
    }
}

impl Workspaces {
    /// Begins to prepare, or attaches to what is under way or there already.
    ///
    /// # Errors
    /// When the id is another's, the pool is not ready, there are too many, it is not known what volumes show of caches, or
    /// one of the tenant's is being removed.
    pub async fn prepare(&self, order: Order) -> Result<watch::Receiver<Preparing>, NotBegun> {
        self.known_shown().await?;
        self.caches_stay(&self.line_of(&order).tenant).await;
        let (room, id) = (self.clone(), order.id.clone());
        // It looks at the disk, which may not answer.
        let begun = tokio::task::spawn_blocking(move || room.begin(order)).await;
        begun.unwrap_or_else(|error| Err(unwritable(Path::new(&id), &io::Error::other(error)).into()))
    }

    fn begin(&self, order: Order) -> Result<watch::Receiver<Preparing>, NotBegun> {
        self.take_up_once()?;
        self.forget_lost(&order.id)?;
        let mut line = self.line_of(&order);
        let mut entries = self.entries();
        self.refuse_ending(&order.id)?;
        if let Some(entry) = entries.get(&order.id)
            && !matches!(*entry.stage.borrow(), Preparing::Failed(_))
        {
            // Asked with the entries locked: two that come at once with one id see each other, ready or not.
            let same = entry.lease == order.lease && (order.lease.is_some() || entry.line.tenant == line.tenant);
            return if same { Ok(entry.stage.clone()) } else { Err(NotBegun::Anothers) };
        }
        if entries.len() >= WORKSPACES_MAX {
            let message = format!("{} workspaces are there, at most {WORKSPACES_MAX} may be", entries.len());
            return Err(Reason::new(Code::LeasesFull, "workspaces", message).into());
        }
        self.refuse_removing(&line.tenant)?;
        let shown = self.shown_beside(&order, &mut line, &entries);
        line.slot = caches::slot(entries.values().map(|entry| &entry.line).chain(&shown), &line);
        let (stage, stages) = watch::channel(Preparing::Under(Progress::phase("preparing")));
        let cancel = self.inner.cancel.child_token();
        let entry = Entry {
            lease: order.lease.clone(),
            expires_at: order.expires_at,
            stage: stages.clone(),
            cancel: cancel.clone(),
            pins: vec![order.pin.clone()],
            kept: None,
            line: line.clone(),
        };
        entries.insert(order.id.clone(), entry);
        drop(entries);
        self.inner.tasks.spawn(self.clone().prepare_now(order, line, stage, cancel));
        Ok(stages)
    }
}
