//! How soon the gate is shut when memory runs out.

use std::time::{Duration, Instant};

use stoker_proto::v1;

use crate::numbers::node::{Host, Node, ROOMY_BYTES};
use crate::numbers::report::{By, Line, Report, Samples, Target, Unit};
use crate::numbers::world::World;
use crate::support::wait;

/// How fast memory fills: what the agent is built for (`stoker_core::pressure::FILL_BYTES_PER_SECOND`).
const FILL_BYTES_PER_SECOND: u64 = stoker_core::pressure::FILL_BYTES_PER_SECOND;
/// By how much each round begins later after a look: no part of 100 ms or 1 s, the times between two looks.
const SHIFT: Duration = Duration::from_millis(137);
/// Between two changes of the recorded memory.
const STEP: Duration = Duration::from_millis(5);
/// How long anything may take before it counts as broken.
const LIMIT: Duration = Duration::from_secs(30);

/// From the moment in which available memory lies below the floor, to the gate that is shut, and to the word of it that
/// a watcher gets. Memory falls as fast as is assumed; and at once, from nearly all to nearly none, which the slowest
/// look sees last.
pub(crate) fn gate(world: &World, report: &mut Report) {
    let node = Node::start();
    let total = u64::try_from(node.status().memory.unwrap().total_bytes).unwrap();
    // `pressure.memoryFloor` is 5% where nothing is said.
    let floor = total / 20;
    let above = if world.options.quick { 4 << 30 } else { 12 << 30 };
    let rounds = if world.options.quick { 2 } else { world.options.rounds() * 2 };
    for (what, from, at_once, target) in [
        ("memory falls", floor + above, false, Target::Max(By::Max, 0.250)),
        ("memory drops at once", ROOMY_BYTES, true, Target::Told("250 ms, where memory falls")),
    ] {
        let (mut shut, mut told) = (Samples::default(), Samples::default());
        for number in 0..rounds {
            // Each time at another moment between two looks.
            let delay = SHIFT * u32::try_from(number).unwrap();
            let (gate, watcher) =
                round(&node, from, floor, if at_once { Fall::AtOnce(delay) } else { Fall::Filling(delay) });
            shut.push_time(gate);
            told.push_time(watcher);
        }
        for (what, ours) in [(format!("{what}, shut"), shut), (format!("{what}, told"), told)] {
            report.line(Line { what, unit: Unit::Time, ours, peer: None, target });
        }
    }
}

/// Lets memory run out once. How long it took from the floor to the gate, and to the watcher.
fn round(node: &Node, from: u64, floor: u64, how: Fall) -> (Duration, Duration) {
    // The kernel counts in KiB.
    let from = from >> 10 << 10;
    node.host.set_available(from);
    wait::until(LIMIT, "the gate is open and memory is seen", || {
        let status = node.status();
        let available = status.memory.map(|memory| memory.available_bytes);
        let open = status.gate.is_some_and(|gate| gate.state() == v1::GateState::Open);
        open && available == i64::try_from(from).ok()
    });
    let (mut watcher, mut asker) = (node.status_client(), node.status_client());
    // The state comes first: from then on only changes are told.
    let mut changes = node.on(async move {
        let mut changes = watcher.watch_status(v1::WatchStatusRequest {}).await.unwrap().into_inner();
        let first = changes.message().await.unwrap().unwrap();
        assert!(!is_shut(first.status.as_ref()), "it is shut already");
        changes
    });
    let (crossed, shut, told) = std::thread::scope(|scope| {
        let fall = scope.spawn(|| fall(&node.host, from, floor, how));
        let (shut, told) = node.on(async move {
            let told = async {
                while !is_shut(changes.message().await.unwrap().unwrap().status.as_ref()) {}
                Instant::now()
            };
            let shut = async {
                while !is_shut(asker.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().status.as_ref()) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Instant::now()
            };
            let both = async { tokio::join!(shut, told) };
            tokio::time::timeout(LIMIT, both).await.expect("the gate shuts")
        });
        (fall.join().unwrap(), shut, told)
    });
    (shut.saturating_duration_since(crossed), told.saturating_duration_since(crossed))
}

/// How memory runs out, and how long after it was seen to be there.
#[derive(Clone, Copy)]
enum Fall {
    Filling(Duration),
    AtOnce(Duration),
}

/// Takes memory away until it lies below the floor; the moment in which it first did.
fn fall(host: &Host, from: u64, floor: u64, how: Fall) -> Instant {
    let (Fall::Filling(delay) | Fall::AtOnce(delay)) = how;
    std::thread::sleep(delay);
    let began = Instant::now();
    loop {
        let gone = FILL_BYTES_PER_SECOND / 1000 * u64::try_from(began.elapsed().as_millis()).unwrap();
        let available = match how {
            Fall::Filling(_) => from.saturating_sub(gone),
            Fall::AtOnce(_) => floor / 2,
        };
        let now = Instant::now();
        host.set_available(available);
        if available < floor {
            return now;
        }
        std::thread::sleep(STEP);
    }
}

fn is_shut(status: Option<&v1::Status>) -> bool {
    status.and_then(|status| status.gate.as_ref()).is_some_and(|gate| gate.state() == v1::GateState::Shut)
}
