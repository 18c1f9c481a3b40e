//! The facts by which the ledger decides, put together from what the rooms publish.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use stoker_core::admission::Facts as LedgerFacts;
use stoker_core::cluster::Cluster;
use stoker_core::quantity::{Amounts, Span};
use tokio::sync::watch;

use crate::admission::{FactsSource, Measured};
use crate::config::TimeBudget;
use crate::config::kubernetes::Unlimited;
use crate::node::Pools;
use crate::node::facts::Facts;
use crate::pressure::{Configured, Pressure};

/// Inodes of a filesystem that makes them as it needs them (btrfs).
const INODES_WITHOUT_BOUND: u64 = 1 << 50;

fn span_of(duration: Duration) -> Span {
    Span(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

/// The facts of the moment, from what the rooms publish: nothing is read from the machine here.
pub(super) fn facts_source(
    config: Configured,
    machine: &Facts,
    pools: &Pools,
    pressure: &Pressure,
    measured: Measured,
    cluster: watch::Receiver<Arc<Cluster>>,
) -> FactsSource {
    let (views, pressure) = (pools.subscribe(), pressure.subscribe());
    let turn = AtomicU32::new(0);
    let (cpu_millis, memory_bytes) = (machine.cpu_millis, machine.memory_bytes);
    Arc::new(move || {
        let config = Arc::clone(&config.borrow());
        let (views, now) = (Arc::clone(&views.borrow()), Arc::clone(&pressure.borrow()));
        let memory = now.readings.memory;
        let pool = views.iter().find(|view| view.name == config.workspaces.pool);
        let disk = pool.and_then(|view| view.filesystem.as_ref());
        let (total, free) = disk.map_or((Amounts::default(), Amounts::default()), |disk| {
            let inodes = |value: u64| match disk.total_inodes {
                0 => INODES_WITHOUT_BOUND,
                _ => value.saturating_sub(disk.floor_inodes),
            };
            let part = |bytes: u64, count: u64| Amounts {
                disk_bytes: bytes.saturating_sub(disk.floor_bytes),
                disk_inodes: inodes(count),
                ..Amounts::default()
            };
            (part(disk.total_bytes, disk.total_inodes), part(disk.free_bytes, disk.free_inodes))
        });
        let (in_use, others) = measured.in_use();
        // As long as no lease was looked at, all that is used is others'.
        let used = Amounts {
            cpu_millis: now.readings.cpu.map_or(0, |cpu| cpu.used_millis),
            memory_bytes: memory.map_or(0, |m| m.total_bytes.saturating_sub(m.available_bytes)),
            ..Amounts::default()
        };
        let cluster = Arc::clone(&cluster.borrow());
        let machine =
            Amounts { cpu_millis, memory_bytes: memory.map_or(memory_bytes, |m| m.total_bytes), ..Amounts::default() };
        let (machine, scheduler) = cluster.room(machine, config.node.reserve, measured.pods_limit());
        LedgerFacts {
            capacity: Amounts { cpu_millis: machine.cpu_millis, memory_bytes: machine.memory_bytes, ..total },
            reserve: config.node.reserve,
            others: Amounts {
                cpu_millis: match config.node.others_cpu_counts {
                    true => others.and_then(|others| others.cpu_millis).unwrap_or(used.cpu_millis),
                    false => 0,
                },
                memory_bytes: others.map_or(used.memory_bytes, |others| others.memory_bytes),
                ..Amounts::default()
            },
            other_pods: others.map(|others| others.pods).unwrap_or_default(),
            in_use,
            disk_free: free,
            scheduler,
            pods: cluster.pods.clone(),
            unlimited_is_node: config.kubernetes.unlimited == Unlimited::Node,
            gate: now.gate.clone(),
            leases_max: config.admission.leases_max,
            tickets_max: config.admission.tickets_max,
            tenants: Arc::clone(&config.admission.tenants),
            pass_for: span_of(config.admission.pass_for),
            age_after: span_of(config.admission.age_after),
            end_at_budget: config.admission.time_budget == TimeBudget::End,
            // Steps of the golden ratio: each far from the ones before.
            jitter: u16::try_from(((turn.fetch_add(0x9e37_79b9, Relaxed) >> 16) * 1000) >> 16).unwrap_or(0),
            sizing: Arc::clone(&config.sizing.policy),
        }
    })
}
