//! Upkeep and the read-only path of the repositories.

use std::path::Path;
use std::time::Duration;

use super::{count, pools, text, within};
use crate::config::problem::{Fault, Place, Problems};
use crate::config::upkeep::{Paths, PathsSection, Upkeep, UpkeepSection};

const SECOND: Duration = Duration::from_secs(1);
const WEEK: Duration = Duration::from_secs(168 * 3600);
const YEAR: Duration = Duration::from_secs(8760 * 3600);
/// Less than git's own window for one large file.
const MEMORY_MIN: u64 = 64 << 20;
const MEMORY_MAX: u64 = 1 << 40;
/// The most trust classes.
const CLASSES_MAX: usize = 64;

pub(super) fn upkeep(section: &UpkeepSection, place: &Place<'_>, problems: &mut Problems) -> Upkeep {
    let memory = section.memory.bytes().and_then(|bytes| match bytes {
        MEMORY_MIN..=MEMORY_MAX => Ok(bytes),
        _ => Err(Fault::new(format!("is {}", section.memory.0), "write from 64MiB to 1TiB")),
    });
    Upkeep {
        every: problems.take(&place.field("every"), within(&section.every, SECOND, WEEK, "1s to 168h")),
        full_every: problems.take(&place.field("fullEvery"), within(&section.full_every, SECOND, YEAR, "1s to 8760h")),
        grace: problems.take(&place.field("grace"), within(&section.grace, Duration::ZERO, YEAR, "0s to 8760h")),
        memory_bytes: problems.take(&place.field("memory"), memory),
        threads: problems.take(&place.field("threads"), count(section.threads, 64)),
    }
}

pub(super) fn paths(section: &PathsSection, place: &Place<'_>, problems: &mut Problems) -> Paths {
    let at = place.field("directory");
    let directory = problems.take(&at, text::relative(&section.directory));
    if directory.starts_with(Path::new(pools::OWN_DIRECTORY)) {
        let message = format!("{} is the agent's own", section.directory);
        problems.add(&at, Fault::new(message, "name another folder, as `mirrors`"));
    }
    let at = place.field("trust");
    if section.trust.is_empty() || section.trust.len() > CLASSES_MAX {
        let message = format!("has {} classes", section.trust.len());
        problems.add(&at, Fault::new(message, format!("name 1 to {CLASSES_MAX}, as `[default]`")));
    }
    let classes = section.trust.iter().take(CLASSES_MAX).enumerate();
    let grace = within(&section.grace, Duration::ZERO, YEAR, "0s to 8760h");
    Paths {
        directory,
        grace: problems.take(&place.field("grace"), grace),
        trust: classes.map(|(index, class)| problems.take(&at.entry(index), text::name(class))).collect(),
    }
}
