//! What time and the machine do to leases: reservations run out, holders go, budgets end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stoker_core::admission::{Command, Holder, Lease};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Span;
use stoker_core::reason::Code;
use tokio_util::sync::CancellationToken;

use super::{Admission, now};
use crate::node::process::{self, ProcessId};

const EVERY: Duration = Duration::from_millis(500);
/// After its budget the holder ends itself; then it is asked, then it is not asked any more.
const ASK_AFTER: Span = Span::seconds(5);
const KILL_AFTER: Span = Span::seconds(15);

/// Looks twice a second, until cancelled.
pub(super) async fn run(admission: Admission, host_root: PathBuf, end_at_budget: bool, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        admission.take_pins();
        let (gone, idle) = admission.read(|ledger, _| {
            let gone: Vec<LeaseId> =
                ledger.live().filter(|lease| holder_gone(&host_root, lease)).map(|lease| lease.id.clone()).collect();
            if end_at_budget {
                ledger.live().for_each(|lease| end_overdue(&host_root, lease));
            }
            (gone, ledger.live_count() + ledger.queued() + ledger.ended_count() == 0)
        });
        // A journal that had no room is tried again, whether anybody asks for something or not.
        let idle = idle && admission.journal_error().is_none();
        if !gone.is_empty() {
            admission.tell(Command::Gone(gone, Code::HolderGone)).await;
        }
        if !idle {
            admission.tell(Command::Advance { leases: Vec::new() }).await;
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

fn holder_gone(host_root: &Path, lease: &Lease) -> bool {
    process_of(lease).is_some_and(|holder| !process::alive(host_root, holder))
}

fn end_overdue(host_root: &Path, lease: &Lease) {
    let (Some(ends_at), Some(holder)) = (lease.ends_at, process_of(lease)) else { return };
    let signal = match now() {
        now if ends_at.plus(KILL_AFTER) < now => Signal::SIGKILL,
        now if ends_at.plus(ASK_AFTER) < now => Signal::SIGTERM,
        _ => return,
    };
    if process::alive(host_root, holder) {
        tracing::warn!(lease = %lease.id, pid = holder.pid, %signal, reason = Code::TimeBudgetExceeded.word(), "ending");
        let _ = kill(Pid::from_raw(holder.pid), signal);
    }
}
