//! What time and the machine do to leases: reservations run out, holders go, budgets end.
//!
//! A lease that is bound to a process ends when that process is gone *and* nothing of its build runs any more: what a
//! killed `stoker run` leaves behind is found by `STOKER_LEASE` in its environment, asked to end, then ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use stoker_core::admission::{Command, Holder, Lease};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Span;
use stoker_core::reason::Code;
use tokio_util::sync::CancellationToken;

use super::{Admission, now};
use crate::config::TimeBudget;
use crate::node::process::{self, ProcessId};
use crate::pressure::Configured;

const EVERY: Duration = Duration::from_millis(500);
/// After its budget the holder ends itself; then it is asked, then it is not asked any more.
const ASK_AFTER: Span = Span::seconds(5);
const KILL_AFTER: Span = Span::seconds(15);
/// What a holder left behind gets between being asked and being killed.
const LEFT_OVER_GRACE: Duration = Duration::from_secs(5);
/// After this the lease ends even where something cannot be killed (it waits for a dead disk, say).
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// Looks twice a second, until cancelled.
pub(super) async fn run(admission: Admission, host_root: PathBuf, config: Configured, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut orphaned: BTreeMap<LeaseId, Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        admission.take_pins();
        let (bound, idle) = admission.read(|ledger| {
            let bound: Vec<Arc<Lease>> = ledger.live().filter(|lease| lease.holder.is_some()).cloned().collect();
            (bound, ledger.live_count() + ledger.queued() + ledger.ended_count() == 0)
        });
        // A journal that had no room is tried again, whether anybody asks for something or not.
        let idle = idle && admission.journal_error().is_none();
        let end_overdue_now = config.borrow().admission.time_budget == TimeBudget::End;
        let (root, mut waiting) = (host_root.clone(), std::mem::take(&mut orphaned));
        let looked = tokio::task::spawn_blocking(move || {
            if end_overdue_now {
                bound.iter().for_each(|lease| end_overdue(&root, lease));
            }
            let gone = gone(&root, &bound, &mut waiting);
            (gone, waiting)
        });
        let Ok((gone, waiting)) = looked.await else { return };
        orphaned = waiting;
        if !gone.is_empty() {
            admission.gone(gone).await;
        }
        if !idle {
            admission.tell(Command::Advance).await;
        }
    }
}

fn process_of(lease: &Lease) -> Option<ProcessId> {
    match &lease.holder {
        Some(Holder::Process { pid, start_ticks }) => {
            Some(ProcessId { pid: i32::try_from(*pid).ok()?, start_ticks: u64::try_from(*start_ticks).ok()? })
        }
        _ => None,
    }
}

pub(super) fn holder_gone(host_root: &Path, lease: &Lease) -> bool {
    process_of(lease).is_some_and(|holder| !process::alive(host_root, holder))
}

/// The leases whose holder is gone with all that it started; `waiting` are those of which something still runs.
fn gone(host_root: &Path, bound: &[Arc<Lease>], waiting: &mut BTreeMap<LeaseId, Instant>) -> Vec<LeaseId> {
    let lost: Vec<&Arc<Lease>> = bound.iter().filter(|lease| holder_gone(host_root, lease)).collect();
    waiting.retain(|id, _| lost.iter().any(|lease| lease.id == *id));
    let over = lost.into_iter().filter(|lease| {
        let left = process::with_variable(host_root, "STOKER_LEASE", lease.id.as_str());
        let asked = waiting.get(&lease.id).copied();
        let signal = match asked {
            _ if left.is_empty() => return true,
            Some(since) if since.elapsed() > GIVE_UP_AFTER => return true,
            Some(since) if since.elapsed() > LEFT_OVER_GRACE => Signal::SIGKILL,
            Some(_) => return false,
            None => Signal::SIGTERM,
        };
        waiting.entry(lease.id.clone()).or_insert_with(Instant::now);
        let (reason, processes) = (Code::HolderGone.word(), left.len());
        tracing::warn!(lease = %lease.id, processes, %signal, reason, "ending what its holder left behind");
        for process in left {
            process::send(process, signal);
        }
        false
    });
    over.map(|lease| lease.id.clone()).collect()
}

fn end_overdue(host_root: &Path, lease: &Lease) {
    let (Some(ends_at), Some(holder)) = (lease.ends_at, process_of(lease)) else { return };
    let signal = match now() {
        now if ends_at.plus(KILL_AFTER) < now => Signal::SIGKILL,
        now if ends_at.plus(ASK_AFTER) < now => Signal::SIGTERM,
        _ => return,
    };
    if process::alive(host_root, holder) {
        let drained = lease.was_told(Code::ModeDrain);
        let code = if drained { Code::ModeDrain } else { Code::TimeBudgetExceeded };
        tracing::warn!(lease = %lease.id, pid = holder.pid, %signal, reason = code.word(), "ending");
        process::send(holder, signal);
    }
}
