//! Sizes of builds.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::quantity::Span;
use stoker_core::sizing::{Cap, Defaults, Ladder, LanguageDefault, OverDeclared, Policy, Step};

use super::{text, within};
use crate::config::problem::{Fault, Place, Problems};
use crate::config::sizing::{
    CapSection, LadderSection, LanguageSection, NickelLimits, NickelSection, OverDeclaredSection, Sizing, SizingSection,
};
use crate::config::units::{Bytes, Cores, Time};

/// The most CPU that a build spec can declare.
const CPU_MILLIS_MAX: u64 = 256_000;
const STEPS_MAX: usize = 16;
/// What Nickel's own library takes before a line of a spec is looked at, and some room.
const NICKEL_BYTES_MIN: u64 = 128 << 20;
const NICKEL_BYTES_MAX: u64 = 16 << 30;
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn validate(section: &SizingSection, place: &Place<'_>, problems: &mut Problems) -> Sizing {
    let languages = place.field("languages");
    let mut line = |name: &str, section: &LanguageSection| language(section, &languages.field(name), problems);
    let all = &section.languages;
    let (rust, go, java) = (line("rust", &all.rust), line("go", &all.go), line("java", &all.java));
    let (kotlin, scala) = (line("kotlin", &all.kotlin), line("scala", &all.scala));
    let (node, other) = (line("node", &all.node), line("other", &all.other));
    let disk = place.field("disk");
    let inodes = match section.disk.inodes {
        0 => Err(Fault::new("is 0", "write more than 0")),
        inodes => Ok(inodes),
    };
    let defaults = Defaults {
        rust,
        go,
        java,
        kotlin,
        scala,
        node,
        other,
        disk_bytes: problems.take(&disk.field("bytes"), bytes(&section.disk.bytes)),
        disk_inodes: problems.take(&disk.field("inodes"), inodes),
    };
    let policy = Policy {
        defaults,
        ladder: ladder(&section.ladder, &place.field("ladder"), problems),
        cap: cap(&section.cap, &place.field("cap"), problems),
        over_declared: over_declared(&section.over_declared, &place.field("overDeclared"), problems),
    };
    Sizing { policy: Arc::new(policy), nickel: nickel(&section.nickel, &place.field("nickel"), problems) }
}

fn language(section: &LanguageSection, place: &Place<'_>, problems: &mut Problems) -> LanguageDefault {
    LanguageDefault {
        cpu_millis: problems.take(&place.field("cpu"), cores(&section.cpu)),
        memory_bytes: problems.take(&place.field("memory"), bytes(&section.memory)),
        time_budget: problems.take(&place.field("time"), budget(&section.time)),
    }
}

fn ladder(section: &LadderSection, place: &Place<'_>, problems: &mut Problems) -> Ladder {
    let LadderSection(sections) = section;
    if sections.is_empty() || sections.len() > STEPS_MAX {
        let message = format!("has {} steps", sections.len());
        problems.add(place, Fault::new(message, format!("write 1 to {STEPS_MAX} steps, from the smallest")));
        return Ladder::default();
    }
    let mut steps: Vec<Step> = Vec::new();
    for (index, step) in sections.iter().enumerate() {
        let here = place.entry(index);
        let memory_bytes = problems.take(&here.field("memory"), bytes(&step.memory));
        if steps.last().is_some_and(|below| memory_bytes <= below.memory_bytes) {
            let message = format!("{} is no more than the step before has", step.memory.0);
            problems.add(&here.field("memory"), Fault::new(message, "order the steps by memory, the smallest first"));
        }
        steps.push(Step { cpu_millis: problems.take(&here.field("cpu"), cores(&step.cpu)), memory_bytes });
    }
    Ladder(steps)
}

fn cap(section: &CapSection, place: &Place<'_>, problems: &mut Problems) -> Cap {
    let mut take =
        |name: &str, value: Option<Result<u64, Fault>>| value.map(|value| problems.take(&place.field(name), value));
    Cap {
        cpu_millis: take("cpu", section.cpu.as_ref().map(cores)),
        memory_bytes: take("memory", section.memory.as_ref().map(bytes)),
        disk_bytes: take("disk", section.disk.as_ref().map(bytes)),
        time: section.time.as_ref().map(|time| problems.take(&place.field("time"), budget(time))),
    }
}

fn over_declared(section: &OverDeclaredSection, place: &Place<'_>, problems: &mut Problems) -> OverDeclared {
    let mut take = |name: &str, value: u64, allowed: bool, remedy: &str| {
        let fault = || Fault::new(format!("is {value}"), remedy);
        let value = if allowed { u32::try_from(value).map_err(|_| fault()) } else { Err(fault()) };
        problems.take(&place.field(name), value)
    };
    let (times, runs) = (section.times, section.runs);
    OverDeclared {
        times: take("times", times, times == 0 || (2..=100).contains(&times), "write 2 to 100, or 0 to tell nobody"),
        runs: take("runs", runs, (1..=32).contains(&runs), "write a number from 1 to 32"),
    }
}

fn nickel(section: &NickelSection, place: &Place<'_>, problems: &mut Problems) -> NickelLimits {
    let memory = section.memory.bytes().and_then(|bytes| match bytes {
        NICKEL_BYTES_MIN..=NICKEL_BYTES_MAX => Ok(bytes),
        _ => Err(Fault::new(format!("is {}", section.memory.0), "write from 128MiB to 16GiB")),
    });
    let cpu_time = within(&section.cpu_time, Duration::from_secs(1), 5 * MINUTE, "1s to 5m");
    let program = section.program.as_deref();
    NickelLimits {
        program: program.map(|path| problems.take(&place.field("program"), text::absolute(path))),
        memory_bytes: problems.take(&place.field("memory"), memory),
        cpu_time: problems.take(&place.field("cpuTime"), cpu_time),
    }
}

fn cores(cores: &Cores) -> Result<u64, Fault> {
    match cores.millis()? {
        0 => Err(Fault::new("is 0", "write more than 0")),
        millis if millis > CPU_MILLIS_MAX => Err(Fault::new(format!("is {}", cores.0), "write at most 256 cores")),
        millis => Ok(millis),
    }
}

fn bytes(bytes: &Bytes) -> Result<u64, Fault> {
    match bytes.bytes()? {
        0 => Err(Fault::new("is 0", "write more than 0")),
        bytes => Ok(bytes),
    }
}

fn budget(time: &Time) -> Result<Span, Fault> {
    let time = within(time, MINUTE, DAY, "1m to 24h")?;
    Ok(Span(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)))
}
