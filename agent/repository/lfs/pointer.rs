//! Pointers: the small files that stand in a commit for large ones (git-lfs, docs/spec.md).

use std::fmt;
use std::path::{Path, PathBuf};

use git2::{IndexEntry, IndexTime, ObjectType, Oid as GitOid, Repository, RepositoryOpenFlags};
use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;

/// A pointer is smaller than this.
pub(super) const POINTER_BYTES_MAX: usize = 1024;
/// How many large files one commit may have.
pub(super) const FILES_MAX: usize = 100_000;
/// How many entries of trees are looked at: trees can be built that name billions of paths in a few bytes.
const ENTRIES_MAX: usize = 10_000_000;
/// How deep trees may lie in each other.
const DEPTH_MAX: usize = 4096;
/// The first line.
const VERSION: &str = "version https://git-lfs.github.com/spec/v1";

/// The name of a large file's content: its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LfsOid([u8; 32]);

impl LfsOid {
    pub(super) const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// From 64 lower-case hexadecimal digits, and from nothing else.
    pub(super) fn parse(hex: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != 64 || !hex.bytes().all(plain) {
            return None;
        }
        let mut digest = [0; 32];
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(digest))
    }

    /// `aa/bb/aabb...`, as git-lfs itself has it below its `objects`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let hex = self.to_string();
        let (first, second) = (hex.get(..2).unwrap_or_default(), hex.get(2..4).unwrap_or_default());
        Path::new(first).join(second).join(&hex)
    }
}

impl fmt::Display for LfsOid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<String> for LfsOid {
    type Error = String;

    fn try_from(hex: String) -> Result<Self, String> {
        Self::parse(&hex).ok_or_else(|| "is not 64 lower-case hexadecimal digits".to_owned())
    }
}

impl From<LfsOid> for String {
    fn from(oid: LfsOid) -> Self {
        oid.to_string()
    }
}

/// What a pointer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pointer {
    pub(super) oid: LfsOid,
    pub(super) bytes: u64,
}

impl Pointer {
    /// Exactly what git-lfs writes: version, oid, size, each on its line. Anything else is a file like any other, as are
    /// pointers with extensions, which only the program that they name could turn into content.
    pub(super) fn parse(content: &[u8]) -> Option<Self> {
        if content.len() >= POINTER_BYTES_MAX {
            return None;
        }
        let text = std::str::from_utf8(content).ok()?;
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let version = lines.next()?;
        let oid = lines.next()?.strip_prefix("oid sha256:")?;
        let size = lines.next()?.strip_prefix("size ")?;
        let digits = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
        if version != VERSION || !digits || lines.next().is_some() {
            return None;
        }
        let bytes = size.parse().ok().filter(|bytes| i64::try_from(*bytes).is_ok())?;
        Some(Self { oid: LfsOid::parse(oid)?, bytes })
    }
}

/// A large file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// Names are bytes: git does not ask for UTF-8.
    pub(super) path: Vec<u8>,
    pub(super) pointer: Pointer,
}

/// What a commit says of large files.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) files: Vec<Named>,
    /// Every `.gitattributes` of the commit.
    pub(super) attributes: Vec<IndexEntry>,
    /// A `.lfsconfig` stands at its root.
    pub(super) configured: bool,
}

/// Why a commit could not be looked through.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    #[error("{0}")]
    Git(#[from] git2::Error),
    #[error("it has more than {0}")]
    TooMany(String),
}

/// The pointers of a commit, and what is needed to know which of them stand for large files. Blocks on the disk.
pub(super) fn scan(repository: &Path, commit: CommitId) -> Result<Scan, ScanError> {
    let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE | RepositoryOpenFlags::NO_DOTGIT;
    let repository = Repository::open_ext(repository, flags, std::iter::empty::<&Path>())?;
    let mut walk = Walk { repository: &repository, seen: 0, scan: Scan::default() };
    let root = repository.find_commit(GitOid::from_bytes(commit.bytes())?)?.tree_id();
    walk.all(root)?;
    Ok(walk.scan)
}

pub(super) fn as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

struct Walk<'a> {
    repository: &'a Repository,
    seen: usize,
    scan: Scan,
}

impl Walk<'_> {
    fn all(&mut self, root: GitOid) -> Result<(), ScanError> {
        let mut pending = vec![(Vec::new(), root, 0_usize)];
        while let Some((prefix, id, depth)) = pending.pop() {
            if depth > DEPTH_MAX {
                return Err(ScanError::TooMany(format!("{DEPTH_MAX} directories in each other")));
            }
            let tree = self.repository.find_tree(id)?;
            for entry in &tree {
                self.seen += 1;
                if self.seen > ENTRIES_MAX {
                    return Err(ScanError::TooMany(format!("{ENTRIES_MAX} entries")));
                }
                let path = [&prefix, entry.name_bytes()].concat();
                match (entry.kind(), entry.filemode()) {
                    (Some(ObjectType::Tree), _) => pending.push(([&path[..], b"/"].concat(), entry.id(), depth + 1)),
                    (Some(ObjectType::Blob), 0o100_644 | 0o100_755 | 0o100_664) => self.file(path, entry.id())?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, path: Vec<u8>, id: GitOid) -> Result<(), ScanError> {
        self.scan.configured |= path == b".lfsconfig";
        if path.rsplit(|byte| *byte == b'/').next() == Some(b".gitattributes") {
            self.scan.attributes.push(entry(path, id));
            return Ok(());
        }
        let (bytes, _) = self.repository.odb()?.read_header(id)?;
        if bytes >= POINTER_BYTES_MAX {
            return Ok(());
        }
        if let Some(pointer) = Pointer::parse(self.repository.find_blob(id)?.content()) {
            if self.scan.files.len() >= FILES_MAX {
                return Err(ScanError::TooMany(format!("{FILES_MAX} large files")));
            }
            self.scan.files.push(Named { path, pointer });
        }
        Ok(())
    }
}

fn entry(path: Vec<u8>, id: GitOid) -> IndexEntry {
    let never = IndexTime::new(0, 0);
    IndexEntry {
        ctime: never,
        mtime: never,
        dev: 0,
        ino: 0,
        mode: 0o100_644,
        uid: 0,
        gid: 0,
        file_size: 0,
        id,
        flags: 0,
        flags_extended: 0,
        path,
    }
}

#[cfg(test)]
#[path = "pointer_tests.rs"]
mod tests;
