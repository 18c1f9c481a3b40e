//! The numbers of the contract: the real binary beside its peers, in turns, in one run on one machine.
//!
//! Each number is one line: ours, the peer, the ratio, the target, whether it was reached. `docs/numbers.md` says what is
//! measured and how it is run. A missed target ends with status 1 where `--check` is given; what could not be measured
//! at all ends with status 2.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "what cannot be measured says so by panicking, and shows what it saw; the lines are the output"
)]

#[path = "../tests/support/mod.rs"]
#[allow(unused_imports, unused_macros, reason = "made for the tests: not all of it is needed here")]
mod support;

/// The parts, in `benches/numbers/`.
mod numbers {
    pub(crate) mod admission;
    pub(crate) mod memory;
    pub(crate) mod node;
    pub(crate) mod options;
    pub(crate) mod pressure;
    pub(crate) mod refresh;
    pub(crate) mod report;
    pub(crate) mod rest;
    pub(crate) mod sampling;
    pub(crate) mod serve;
    pub(crate) mod slow_sync;
    pub(crate) mod sources;
    pub(crate) mod volumes;
    pub(crate) mod workspaces;
    pub(crate) mod world;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser as _;
use numbers::options::Options;
use numbers::report::Report;
use numbers::world::World;
use numbers::{admission, memory, pressure, refresh, rest, sampling, serve, sources, volumes, workspaces};

/// Something that is measured, and gives one line or more.
struct Bench {
    name: &'static str,
    what: &'static str,
    run: fn(&World, &mut Report),
}

/// All there are, the quick ones first: a machine that is too small shows it soon.
const BENCHES: [Bench; 14] = [
    Bench {
        name: "evaluate",
        what: "Evaluate with many live leases, and beside an empty call",
        run: admission::evaluate,
    },
    Bench {
        name: "admit",
        what: "Admit, durable: one caller beside fdatasync, and many callers",
        run: admission::admit,
    },
    Bench { name: "resolve", what: "ResolveSource of a commit, and of a ref within its age", run: sources::resolve },
    Bench { name: "refresh", what: "a refresh that finds nothing: round trips and CPU", run: refresh::refresh },
    Bench { name: "pressure", what: "from memory below its floor to a shut gate", run: pressure::gate },
    Bench { name: "sampling", what: "CPU for watching memory, disks and stalls", run: sampling::sampling },
    Bench {
        name: "rest",
        what: "memory and CPU at rest with mirrors and leases, start after SIGKILL",
        run: rest::rest,
    },
    Bench { name: "serve", what: "clones over HTTP, beside git http-backend, and many at once", run: serve::serve },
    Bench {
        name: "parallel",
        what: "many mirrors filled at once, beside one after the other, with latency",
        run: sources::parallel,
    },
    Bench { name: "memory", what: "the agent's memory during a fetch of very many objects", run: memory::fetch },
    Bench { name: "prefill", what: "a mirror filled and published, beside git clone --mirror", run: sources::prefill },
    Bench {
        name: "workspace",
        what: "workspaces: first, warm, of the next commit, beside git clone --reference; a hundred's disk",
        run: workspaces::prepare,
    },
    Bench {
        name: "volume",
        what: "a volume published for a pod, of a commit that is kept, beside git clone --depth 1 and --reference",
        run: volumes::publish,
    },
    Bench { name: "delete", what: "DeleteWorkspace of many files", run: workspaces::delete },
];

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for bench in BENCHES {
            println!("{:10} {}", bench.name, bench.what);
        }
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<_> = BENCHES.into_iter().filter(|bench| options.wants(bench.name)).collect();
    if chosen.is_empty() {
        eprintln!("nothing has {} in its name: see --list", options.filter.join(" or "));
        return ExitCode::from(64);
    }
    if let Some(micros) = options.sync_delay {
        numbers::slow_sync::ensure(micros);
    }
    let check = options.check;
    let world = World::new(options);
    let mut report = Report::default();
    report.header();
    for bench in chosen {
        // One that breaks, with its words on stderr, does not keep the others from being measured.
        if catch_unwind(AssertUnwindSafe(|| (bench.run)(&world, &mut report))).is_err() {
            report.broken(bench.name);
        }
    }
    report.end(check)
}
