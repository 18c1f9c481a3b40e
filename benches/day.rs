//! A day of builds on one node, four times over: without admission control, with a fixed number of slots, by requests
//! alone, and by Stoker's own ledger and sizing.
//!
//! Everything that decides is the product's (`stoker-core`); what is made up is the machine and the builds, which
//! [`workload`] makes from published shapes and a seed that is printed. Status 1 where a promise is broken and `--check`
//! is given. `docs/admission.md` says how to read it.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::float_arithmetic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a simulation of a closed world: what goes wrong in it is a fault of its own, and its lines are the output"
)]

/// The parts, in `benches/day/`.
mod day {
    pub(crate) mod machine;
    pub(crate) mod peers;
    pub(crate) mod plot;
    pub(crate) mod report;
    pub(crate) mod stoker;
    pub(crate) mod workload;
}

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use day::machine::{Machine, Run, run};
use day::peers::{Everything, Requests, Slots};
use day::report::{Row, fair_waits, promises, table, tenants};
use day::stoker::Stoker;
use day::workload::{TENANTS, Workload};

/// A day of builds on one node, under four kinds of admission.
#[derive(Debug, clap::Parser)]
#[command(name = "day")]
struct Options {
    /// What the day is made from
    #[arg(long, default_value_t = 20_261_121)]
    seed: u64,
    /// Hours in which builds arrive
    #[arg(long, default_value_t = 24)]
    hours: u32,
    /// End with status 1 when a promise is broken
    #[arg(long)]
    check: bool,
    /// Draw the memory of the four days into this file, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let machine = Machine::SINGLE_NODE;
    let workload = Workload::of(options.seed, options.hours);
    println!("seed {}, {} builds in {} h, {machine}", options.seed, workload.jobs.len(), options.hours);

    let everything = run(&machine, &workload, &mut Everything::default());
    let slots = best_slots(&machine, &workload);
    let requests = run(&machine, &workload, &mut Requests::default());
    let ours = run(&machine, &workload, &mut Stoker::new(&machine));
    let rows = [
        Row { name: "no admission control".to_owned(), run: &everything },
        Row { name: format!("{} slots, the most that is safe", slots.0), run: &slots.1 },
        Row { name: "requests only".to_owned(), run: &requests },
        Row { name: "Stoker".to_owned(), run: &ours },
    ];
    println!("\n{}", table(&rows, &machine));
    let fair = fair_waits(&machine, &workload);
    println!("{}", tenants(&ours, &fair));
    if let Some(file) = &options.plot {
        std::fs::write(file, day::plot::svg(&rows, &machine)).expect("the plot is written");
    }
    let broken = promises(&ours, &slots.1, &fair);
    broken.iter().for_each(|promise| println!("broken: {promise}"));
    if broken.is_empty() {
        println!("kept: nothing killed that need not be, 1.2 times the work of the slots, no tenant behind its share");
    }
    if options.check && !broken.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The largest number of slots that never touches the reserve and never runs the node out of memory.
fn best_slots(machine: &Machine, workload: &Workload) -> (usize, Run) {
    let mut best = (1, run(machine, workload, &mut Slots::new(1)));
    for count in 2..=32 {
        let tried = run(machine, workload, &mut Slots::new(count));
        if tried.killed_by_node > 0 || tried.invaded_seconds > 0 {
            break;
        }
        best = (count, tried);
    }
    assert!(TENANTS.len() > 1, "shares need several tenants");
    best
}
