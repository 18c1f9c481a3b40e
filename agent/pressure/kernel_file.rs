//! Files of the kernel that are read again and again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use rustix::fs::fstatfs;

/// No file that is read here is longer; what is beyond is not looked at.
const BYTES_MAX: usize = 64 << 10;
/// `PROC_SUPER_MAGIC` of the kernel's `include/uapi/linux/magic.h`.
const PROC_MAGIC: u64 = 0x9fa0;

/// Whether a file is one of procfs, and so the kernel's own.
pub(super) fn is_procfs(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| u64::try_from(found.f_type) == Ok(PROC_MAGIC))
}

/// One file. In procfs it stays open and each read makes the text anew, which saves the walk of its path; elsewhere (a
/// recorded tree) the file may be replaced, so that it is opened each time.
#[derive(Debug)]
pub(super) struct KernelFile {
    path: PathBuf,
    kept: Option<File>,
    buffer: Vec<u8>,
}

impl KernelFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, kept: None, buffer: Vec::new() }
    }

    /// Its text now.
    ///
    /// # Errors
    /// Those of `open(2)` and `pread(2)`, or what is there is not text.
    pub(super) fn read(&mut self) -> io::Result<&str> {
        if let Some(file) = self.kept.take()
            && self.fill(&file).is_ok()
        {
            self.kept = Some(file);
        } else {
            let file = File::open(&self.path)?;
            self.fill(&file)?;
            self.kept = is_procfs(&file).then_some(file);
        }
        std::str::from_utf8(&self.buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn fill(&mut self, file: &File) -> io::Result<()> {
        self.buffer.resize(BYTES_MAX.min(self.buffer.capacity().max(4096)), 0);
        let mut read = 0;
        loop {
            let rest = self.buffer.get_mut(read..).unwrap_or_default();
            if rest.is_empty() {
                if read >= BYTES_MAX {
                    break;
                }
                self.buffer.resize((read * 2).clamp(4096, BYTES_MAX), 0);
                continue;
            }
            match file.read_at(rest, u64::try_from(read).unwrap_or(u64::MAX)) {
                Ok(0) => break,
                Ok(some) => read += some,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.buffer.truncate(read);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_kernel_stays_open_and_one_of_a_tree_does_not() {
        let mut own = KernelFile::new(PathBuf::from("/proc/self/stat"));
        let mut uptime = KernelFile::new(PathBuf::from("/proc/uptime"));
        let (pid, first) = (std::process::id().to_string(), uptime.read().unwrap().to_owned());
        assert!(own.read().unwrap().starts_with(&pid) && own.read().unwrap().starts_with(&pid));
        assert!(own.kept.is_some());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while uptime.read().unwrap() == first {
            assert!(std::time::Instant::now() < end, "the same text for ever");
            std::thread::yield_now();
        }
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("meminfo");
        let mut replaced = KernelFile::new(path.clone());
        assert!(replaced.read().is_err());
        std::fs::write(&path, "one").unwrap();
        assert_eq!(replaced.read().unwrap(), "one");
        std::fs::write(place.path().join("new"), "x".repeat(BYTES_MAX + 5)).unwrap();
        std::fs::rename(place.path().join("new"), &path).unwrap();
        assert_eq!(replaced.read().unwrap().len(), BYTES_MAX);
    }
}
