//! What a large fetch takes of memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use procfs::process::Process;

use crate::numbers::node::Node;
use crate::numbers::report::{By, Line, Report, Samples, Target, Unit};
use crate::numbers::world::World;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// `repositories.git.memory` as it is by default: the limit of each child.
const CHILD_MAX: f64 = 2_147_483_648.0;

/// The agent's own memory, at its highest, after a fetch of very many objects; and what its children took at most.
pub(crate) fn fetch(world: &World, report: &mut Report) {
    // Each file is an object, and the folders are some more.
    let repo = TestRepo::generated(world.options.objects(), world.options.objects() * 40, 1);
    let (_upstream, url) = Upstream::of(&repo);
    let node = Node::start();
    let agent = Process::new(node.agent.pid().cast_signed()).unwrap();
    let done = AtomicBool::new(false);
    let children = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut highest = 0;
            while !done.load(Ordering::SeqCst) {
                highest = highest.max(children_rss(agent.pid()));
                std::thread::sleep(Duration::from_millis(50));
            }
            highest
        });
        node.fill(&url);
        done.store(true, Ordering::SeqCst);
        watch.join().unwrap()
    });
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    ours.push(agent.status().unwrap().vmhwm.unwrap() as f64 * 1024.0);
    theirs.push(children as f64);
    let objects = world.options.objects();
    let what = format!("memory, fetch of {objects} objects");
    report.line(Line { what, unit: Unit::Bytes, ours, peer: None, target: Target::Max(By::Max, f64::from(60 << 20)) });
    let what = "memory of all git children then".to_owned();
    report.line(Line { what, unit: Unit::Bytes, ours: theirs, peer: None, target: Target::Max(By::Max, CHILD_MAX) });
}

/// Resident bytes of all processes below this one.
fn children_rss(parent: i32) -> u64 {
    let all: Vec<_> = procfs::process::all_processes().unwrap().flatten().filter_map(|p| p.stat().ok()).collect();
    let below = |of: i32| all.iter().filter(move |stat| stat.ppid == of);
    let mut todo: Vec<_> = below(parent).collect();
    let mut pages = 0;
    while let Some(stat) = todo.pop() {
        pages += stat.rss;
        todo.extend(below(stat.pid));
    }
    pages * procfs::page_size()
}
