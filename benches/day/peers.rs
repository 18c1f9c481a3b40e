//! What others do.

use std::collections::VecDeque;

use crate::day::machine::{End, Now, Policy, Start};
use crate::day::workload::{GIB, Job};

/// What a build is taken to need where its author wrote nothing, as a namespace's default has it.
const DEFAULT: (u64, u64) = (2_000, 4 * GIB);

/// Whatever comes starts.
#[derive(Default)]
pub(crate) struct Everything {
    waiting: Vec<usize>,
}

impl Policy for Everything {
    fn arrives(&mut self, number: usize, _: &Job, _: &Now<'_>) {
        self.waiting.push(number);
    }

    fn start(&mut self, _: &[Job], _: &Now<'_>) -> Vec<Start> {
        self.waiting.drain(..).map(unlimited).collect()
    }

    fn ended(&mut self, _: usize, _: &Job, _: End, _: u64, _: u32, _: &Now<'_>) -> bool {
        true
    }
}

/// So many at a time, first come, first served.
pub(crate) struct Slots {
    free: usize,
    waiting: VecDeque<usize>,
}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self { free: count, waiting: VecDeque::new() }
    }
}

impl Policy for Slots {
    fn arrives(&mut self, number: usize, _: &Job, _: &Now<'_>) {
        self.waiting.push_back(number);
    }

    fn start(&mut self, _: &[Job], _: &Now<'_>) -> Vec<Start> {
        let count = self.free.min(self.waiting.len());
        self.free -= count;
        self.waiting.drain(..count).map(unlimited).collect()
    }

    fn ended(&mut self, _: usize, _: &Job, _: End, _: u64, _: u32, _: &Now<'_>) -> bool {
        self.free += 1;
        true
    }
}

/// What is declared, or a default, is added up against what is allocatable, as `kube-scheduler` does; whoever fits starts.
#[derive(Default)]
pub(crate) struct Requests {
    waiting: VecDeque<usize>,
    cpu_millis: u64,
    bytes: u64,
}

fn requested(job: &Job) -> (u64, u64) {
    job.declared.unwrap_or(DEFAULT)
}

impl Policy for Requests {
    fn arrives(&mut self, number: usize, _: &Job, _: &Now<'_>) {
        self.waiting.push_back(number);
    }

    fn start(&mut self, jobs: &[Job], now: &Now<'_>) -> Vec<Start> {
        let mut starts = Vec::new();
        self.waiting.retain(|number| {
            let (cpu, bytes) = requested(&jobs[*number]);
            let fits = self.cpu_millis + cpu <= now.machine.budget_cpu_millis()
                && self.bytes + bytes <= now.machine.budget_bytes();
            if fits {
                self.cpu_millis += cpu;
                self.bytes += bytes;
                starts.push(unlimited(*number));
            }
            !fits
        });
        starts
    }

    fn ended(&mut self, _: usize, job: &Job, _: End, _: u64, _: u32, _: &Now<'_>) -> bool {
        let (cpu, bytes) = requested(job);
        self.cpu_millis -= cpu;
        self.bytes -= bytes;
        true
    }
}

const fn unlimited(job: usize) -> Start {
    Start { job, cpu_millis_max: u64::MAX, bytes_max: u64::MAX }
}
