//! What is watched beside the pools.

use super::{pools, text};
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::sensing::{FilesystemSection, WatchedFilesystem, by_default};

/// The most filesystems that are watched.
const FILESYSTEMS_MAX: usize = 16;

/// The filesystems of the file, or those of every node where it says nothing.
pub(super) fn filesystems(
    sections: Option<&[FilesystemSection]>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<WatchedFilesystem> {
    let Some(sections) = sections else { return by_default() };
    if sections.len() > FILESYSTEMS_MAX {
        let message = format!("has {} filesystems", sections.len());
        problems.add(place, Fault::new(message, format!("declare at most {FILESYSTEMS_MAX}")));
        return Vec::new();
    }
    let mut watched: Vec<WatchedFilesystem> = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let path = problems.take(&here.field("path"), text::absolute(&section.path));
        if watched.iter().any(|other| other.path == path) {
            let message = format!("{} is there twice", shown(&section.path));
            problems.add(&here.field("path"), Fault::new(message, "keep one of them"));
        }
        let floor = pools::floor(&section.floor, &here.field("floor"), true, problems);
        watched.push(WatchedFilesystem { path, floor, by_default: false });
    }
    watched
}
