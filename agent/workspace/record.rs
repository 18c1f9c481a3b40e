//! One JSON file beside each whole workspace: `<pool>/stoker/workspaces/<id>.json`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Method, OVERLAYS, Workspace};

const RECORD_BYTES_MAX: u64 = 8 << 20;

fn path(root: &Path, id: &str) -> PathBuf {
    root.join("workspaces").join(format!("{id}.json"))
}

/// What a kill between writing and renaming leaves.
fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("json.new")
}

/// Written whole or not at all, and on the disk when this returns.
pub(super) fn write(root: &Path, workspace: &Workspace) -> io::Result<()> {
    let path = path(root, &workspace.id);
    let temporary = unfinished(&path);
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(workspace)?)?;
    if workspace.method == Method::Overlay {
        // It goes with the machine, so that nothing needs to outlast that.
        return fs::rename(&temporary, &path);
    }
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(root.join("workspaces"))?.sync_all()
}

pub(super) fn remove(root: &Path, id: &str) -> io::Result<()> {
    let path = path(root, id);
    for file in [unfinished(&path), path] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// All that can be read; a damaged one is as none, and its directory goes.
pub(super) fn read_all(root: &Path) -> Vec<Workspace> {
    let read = |id: &String| {
        let path = path(root, id);
        let small = fs::metadata(&path).is_ok_and(|file| file.len() <= RECORD_BYTES_MAX);
        let workspace: Workspace = serde_json::from_slice(&small.then(|| fs::read(&path).ok())??).ok()?;
        (workspace.id == *id).then_some(workspace)
    };
    names(root).iter().filter_map(read).collect()
}

/// The ids that have a directory, a record or both.
pub(super) fn names(root: &Path) -> BTreeSet<String> {
    let entries = ["workspaces", OVERLAYS].map(|place| fs::read_dir(root.join(place)).into_iter().flatten());
    let entries = entries.into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.map(|name| name.trim_end_matches(".new").trim_end_matches(".json").to_owned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_kill_left_of_a_record_is_found_and_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        let workspaces = root.path().join("workspaces");
        fs::create_dir(&workspaces).unwrap();
        for name in ["w-1.json.new", "w-2.json", "w-2.json.new"] {
            fs::write(workspaces.join(name), "{").unwrap();
        }
        assert_eq!(names(root.path()), ["w-1", "w-2"].map(str::to_owned).into());
        for id in ["w-1", "w-2", "w-3"] {
            remove(root.path(), id).unwrap();
        }
        assert_eq!(fs::read_dir(workspaces).unwrap().count(), 0);
    }
}
