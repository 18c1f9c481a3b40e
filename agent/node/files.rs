//! Small files, written whole or not at all; and records: JSON files that say what lies beside them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What an unfinished file's name begins with.
const UNFINISHED: &str = ".tmp-";
const EXTENSION: &str = ".json";

/// Writes the whole file or leaves the old one. `durable`: it survives a loss of power. Where it need not, power that is
/// lost can take the old one along: XFS keeps the new name without its content.
pub(crate) fn replace(file: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let temporary = unfinished(file);
    let written = File::create(&temporary).and_then(|mut writer| {
        writer.write_all(content)?;
        if durable { writer.sync_all() } else { Ok(()) }
    });
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, file)) {
        // On a full disk it would stand in the way.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    match file.parent() {
        Some(parent) if durable => sync_directory(parent),
        _ => Ok(()),
    }
}

pub(crate) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn unfinished(file: &Path) -> PathBuf {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    file.with_file_name(format!("{UNFINISHED}{name}"))
}

/// A whole file, of at most so many bytes.
pub(crate) fn read_whole(file: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(file)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    match u64::try_from(read).is_ok_and(|read| read <= bytes_max) {
        true => Ok(bytes),
        false => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes"))),
    }
}

/// The record of what is called `name` in a folder.
pub(crate) fn record(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{EXTENSION}"))
}

/// Writes a record as [`replace`] does.
pub(crate) fn write_record<T: Serialize>(file: &Path, value: &T, durable: bool) -> io::Result<()> {
    replace(file, &serde_json::to_vec_pretty(value)?, durable)
}

/// A record of at most so many bytes. A damaged one is as none; a link is none.
pub(crate) fn read_record<T: DeserializeOwned>(file: &Path, bytes_max: u64) -> Option<T> {
    let small = fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file() && meta.len() <= bytes_max);
    serde_json::from_slice(&small.then(|| fs::read(file).ok())??).ok()
}

/// Removes a record, and what a kill left of it. What is not there is gone.
pub(crate) fn remove_record(file: &Path) -> io::Result<()> {
    for file in [&unfinished(file), file] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// What a name in a folder belongs to: a thing itself, its record, or what a kill left of that.
pub(crate) fn owner(name: &str) -> &str {
    let name = name.strip_prefix(UNFINISHED).unwrap_or(name);
    name.strip_suffix(EXTENSION).unwrap_or(name)
}

/// All that has a thing, a record or both in a folder; nothing where it is not there.
pub(crate) fn owners(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(owner(&entry.ok()?.file_name().into_string().ok()?).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_said_to_be_too_large() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "1234").unwrap();
        assert_eq!(read_whole(file.path(), 4).unwrap(), b"1234");
        assert_eq!(read_whole(file.path(), 3).unwrap_err().to_string(), "it has more than 3 bytes");
        assert_eq!(read_whole(Path::new("/dev/zero"), 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn what_a_kill_left_of_a_record_is_found_and_goes_with_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path();
        for name in [".tmp-w-1.json", "w-2.json", ".tmp-w-2.json", "w.3"] {
            fs::write(folder.join(name), "{").unwrap();
        }
        assert_eq!(owners(folder), ["w-1", "w-2", "w.3"].map(str::to_owned).into());
        assert_eq!(read_record::<u8>(&record(folder, "w-2"), 100), None, "damaged");
        for name in ["w-1", "w-2", "w-3"] {
            remove_record(&record(folder, name)).unwrap();
        }
        assert_eq!(owners(folder), ["w.3"].map(str::to_owned).into());
        write_record(&record(folder, "w.3"), &7_u8, true).unwrap();
        assert_eq!(read_record(&record(folder, "w.3"), 100), Some(7_u8));
        assert_eq!(read_record::<u8>(&record(folder, "w.3"), 0), None, "too large");
        fs::remove_file(folder.join("w.3")).unwrap();
        assert_eq!(owners(folder), ["w.3"].map(str::to_owned).into());
    }
}
