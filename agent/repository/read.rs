//! Reading commits: git2 on snapshots. Everything here blocks on the disk, briefly; the long ones are bounded.
//!
//! Opening a repository costs 25 times a lookup, so handles are kept: a reader takes one out, works, and puts it back.
//! Whether a commit is reachable is remembered by snapshot and commit: snapshots never change.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use git2::{ErrorCode, ObjectType, Oid, Repository, RepositoryOpenFlags, TreeWalkMode, TreeWalkResult};
use stoker_core::identity::CommitId;
use stoker_core::source::Probed;

use super::listing::Head;
use super::refs::RefTable;
use super::snapshot::SnapshotPin;

#[path = "reach.rs"]
mod reach;

pub use reach::Verdict;

/// How many open repositories are kept.
const HANDLES_MAX: usize = 16;
/// How many ref tables are kept.
const TABLES_MAX: usize = 16;
/// How many answers about reachability are kept.
const MEMO_MAX: usize = 10_000;
/// The most bytes of a subject line that are given.
const SUBJECT_BYTES_MAX: usize = 200;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The objects cannot be read, or are not what they should be.
    #[error("reading {path}: {error}")]
    Git {
        /// The snapshot.
        path: PathBuf,
        /// What libgit2 says.
        error: git2::Error,
    },
    /// The refs cannot be read.
    #[error("reading the refs of {path}: {error}")]
    Refs {
        /// The snapshot.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file is larger than the caller takes.
    #[error("{path} has {bytes} bytes, at most {max} are read")]
    TooLarge {
        /// The file in the commit.
        path: String,
        /// How large it is.
        bytes: u64,
        /// How large it may be.
        max: u64,
    },
}

/// Files of one extension.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a commit's tree holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeSummary {
    /// All regular files.
    pub total: Extent,
    /// By extension in lower case, without the dot (`rs`); files without one are in `total` only.
    pub by_extension: BTreeMap<String, Extent>,
    /// There are more files than were looked at.
    pub truncated: bool,
}

/// Reads snapshots. Cheap to clone.
#[derive(Clone, Default)]
pub struct Reader {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The one used last is at the back.
    handles: Mutex<VecDeque<(PathBuf, Repository)>>,
    /// As `handles`.
    tables: Mutex<VecDeque<(PathBuf, Arc<RefTable>)>>,
    heads: Mutex<HashMap<PathBuf, Head>>,
    /// What the refs of a snapshot name.
    tips: Mutex<VecDeque<(PathBuf, Arc<HashSet<CommitId>>)>>,
    memo: Mutex<HashMap<(PathBuf, CommitId), Probed>>,
    subjects: Mutex<HashMap<(PathBuf, CommitId), String>>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Whether the snapshot has the commit.
    ///
    /// # Errors
    /// When the objects cannot be read.
    pub fn exists(&self, pin: &SnapshotPin, commit: CommitId) -> Result<bool, ReadError> {
        self.with(pin, |repository| Ok(commit_of(repository, commit)?.is_some()))
    }

    /// Whether the snapshot has the commit, and a branch, tag or pull request of it reaches it. The first answer for a
    /// commit may walk the history; later ones are remembered.
    ///
    /// # Errors
    /// When objects or refs cannot be read.
    pub fn probe(&self, pin: &SnapshotPin, commit: CommitId) -> Result<Probed, ReadError> {
        if let Some(known) = self.known_probe(pin, commit) {
            return Ok(known);
        }
        let key = (pin.path().to_owned(), commit);
        let probed = self.probe_objects(pin, commit)?;
        let mut memo = lock(&self.inner.memo);
        if memo.len() >= MEMO_MAX {
            memo.clear();
        }
        memo.insert(key, probed);
        Ok(probed)
    }

    /// What [`Self::probe`] answered before.
    pub(super) fn known_probe(&self, pin: &SnapshotPin, commit: CommitId) -> Option<Probed> {
        lock(&self.inner.memo).get(&(pin.path().to_owned(), commit)).copied()
    }

    /// Whether [`Self::refs`] reads nothing.
    pub(super) fn has_refs(&self, pin: &SnapshotPin) -> bool {
        lock(&self.inner.tables).iter().rev().any(|(of, _)| same(of, pin.path()))
    }

    /// Whether [`Self::subject`] reads nothing.
    pub(super) fn has_subject(&self, pin: &SnapshotPin, commit: CommitId) -> bool {
        lock(&self.inner.subjects).contains_key(&(pin.path().to_owned(), commit))
    }

    fn probe_objects(&self, pin: &SnapshotPin, commit: CommitId) -> Result<Probed, ReadError> {
        if !self.exists(pin, commit)? {
            return Ok(Probed::Missing);
        }
        let refs = self.refs(pin)?;
        let detached = std::fs::read_to_string(pin.path().join("HEAD")).ok().and_then(|text| text.trim().parse().ok());
        let tips = || refs.iter().map(|line| line.target()).chain(detached);
        if tips().any(|tip| tip == commit) {
            return Ok(Probed::Reachable);
        }
        self.with(pin, |repository| {
            let mut walk = repository.revwalk()?;
            for tip in tips() {
                // A tag may name a tree or a file: those reach no commit.
                if repository.find_commit(oid(tip)).is_ok() {
                    walk.push(oid(tip))?;
                }
            }
            for reached in walk {
                if reached? == oid(commit) {
                    return Ok(Probed::Reachable);
                }
            }
            Ok(Probed::Unreachable)
        })
    }

    /// The snapshot's refs.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn refs(&self, pin: &SnapshotPin) -> Result<Arc<RefTable>, ReadError> {
        let path = pin.path();
        {
            let mut tables = lock(&self.inner.tables);
            let last = tables.len().saturating_sub(1);
            if let Some(at) = tables.iter().rposition(|(of, _)| same(of, path)) {
                if at < last
                    && let Some(used) = tables.remove(at)
                {
                    tables.push_back(used);
                }
                if let Some((_, table)) = tables.back() {
                    return Ok(Arc::clone(table));
                }
            }
        }
        let table = pin.refs().map_err(|error| ReadError::Refs { path: path.to_owned(), error })?;
        let table = Arc::new(table);
        let mut tables = lock(&self.inner.tables);
        tables.push_back((path.to_owned(), Arc::clone(&table)));
        if tables.len() > TABLES_MAX {
            tables.pop_front();
        }
        Ok(table)
    }

    /// What the snapshot's HEAD names, where it names something that is there.
    pub(super) fn head(&self, pin: &SnapshotPin) -> Option<Head> {
        if let Some(known) = lock(&self.inner.heads).get(pin.path()) {
            return Some(known.clone());
        }
        // One that cannot be read now may be read later.
        let head = pin.head()?;
        let mut heads = lock(&self.inner.heads);
        if heads.len() >= MEMO_MAX {
            heads.clear();
        }
        heads.insert(pin.path().to_owned(), head.clone());
        Some(head)
    }

    /// How many of these objects the snapshot has.
    ///
    /// # Errors
    /// When the objects cannot be read.
    pub(super) fn count(&self, pin: &SnapshotPin, objects: &[CommitId]) -> Result<usize, ReadError> {
        self.with(pin, |repository| {
            let odb = repository.odb()?;
            Ok(objects.iter().filter(|object| odb.exists(oid(**object))).count())
        })
    }

    /// The first line of the commit's message, shortened; none where the snapshot has no such commit.
    ///
    /// # Errors
    /// When the objects cannot be read.
    pub fn subject(&self, pin: &SnapshotPin, commit: CommitId) -> Result<Option<String>, ReadError> {
        let key = (pin.path().to_owned(), commit);
        if let Some(known) = lock(&self.inner.subjects).get(&key) {
            return Ok(Some(known.clone()));
        }
        let read = self.with(pin, |repository| Ok(commit_of(repository, commit)?.map(|commit| first_line(&commit))))?;
        if let Some(subject) = &read {
            let mut subjects = lock(&self.inner.subjects);
            if subjects.len() >= MEMO_MAX {
                subjects.clear();
            }
            subjects.insert(key, subject.clone());
        }
        Ok(read)
    }

    /// A regular file of the commit; none where there is none at `path`.
    ///
    /// # Errors
    /// When it has more than `bytes_max` bytes, or there is no such commit.
    pub fn blob(
        &self,
        pin: &SnapshotPin,
        commit: CommitId,
        path: &str,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, ReadError> {
        let found = self.with(pin, |repository| {
            let tree = repository.find_commit(oid(commit))?.tree()?;
            let entry = match tree.get_path(Path::new(path)) {
                Ok(entry) => entry,
                Err(error) if error.code() == ErrorCode::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            if !is_file(entry.filemode()) {
                return Ok(None);
            }
            let (bytes, _) = repository.odb()?.read_header(entry.id())?;
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            if bytes > bytes_max {
                return Ok(Some(Err(bytes)));
            }
            Ok(Some(Ok(repository.find_blob(entry.id())?.content().to_vec())))
        })?;
        match found {
            Some(Err(bytes)) => Err(ReadError::TooLarge { path: path.to_owned(), bytes, max: bytes_max }),
            Some(Ok(content)) => Ok(Some(content)),
            None => Ok(None),
        }
    }

    /// When the commit was made, in seconds since 1970, as its committer's clock had it.
    ///
    /// # Errors
    /// When there is no such commit, or it cannot be read.
    pub fn committed_at(&self, pin: &SnapshotPin, commit: CommitId) -> Result<i64, ReadError> {
        self.with(pin, |repository| Ok(repository.find_commit(oid(commit))?.committer().when().seconds()))
    }

    /// The commits that the commit's tree has at those of the paths where it has one: its submodules.
    ///
    /// # Errors
    /// When there is no such commit, or its trees cannot be read.
    pub fn gitlinks(
        &self,
        pin: &SnapshotPin,
        commit: CommitId,
        paths: &[String],
    ) -> Result<BTreeMap<String, CommitId>, ReadError> {
        self.with(pin, |repository| {
            let tree = repository.find_commit(oid(commit))?.tree()?;
            let mut found = BTreeMap::new();
            for path in paths.iter().filter(|path| !path.contains('\0')) {
                match tree.get_path(Path::new(path)) {
                    Ok(entry) if entry.kind() == Some(ObjectType::Commit) => {
                        found.extend(entry.id().as_bytes().try_into().ok().map(|id| (path.clone(), CommitId::new(id))));
                    }
                    Ok(_) => {}
                    Err(error) if is_no_path(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(found)
        })
    }

    /// The names of the regular files at the commit's root; those that are not UTF-8 are left out.
    ///
    /// # Errors
    /// When there is no such commit, or its tree cannot be read.
    pub fn root_files(&self, pin: &SnapshotPin, commit: CommitId) -> Result<Vec<String>, ReadError> {
        self.with(pin, |repository| {
            let tree = repository.find_commit(oid(commit))?.tree()?;
            let files = tree.iter().filter(|entry| is_file(entry.filemode()));
            Ok(files.filter_map(|entry| entry.name().ok().map(str::to_owned)).collect())
        })
    }

    /// Counts the commit's files, at most `files_max` of them.
    ///
    /// # Errors
    /// When there is no such commit, or its trees cannot be read.
    pub fn summarise(&self, pin: &SnapshotPin, commit: CommitId, files_max: u64) -> Result<TreeSummary, ReadError> {
        self.with(pin, |repository| {
            let tree = repository.find_commit(oid(commit))?.tree()?;
            let odb = repository.odb()?;
            let mut summary = TreeSummary::default();
            let walked = tree.walk(TreeWalkMode::PreOrder, |_, entry| {
                if entry.kind() != Some(ObjectType::Blob) || !is_file(entry.filemode()) {
                    return TreeWalkResult::Ok;
                }
                if summary.total.files >= files_max {
                    summary.truncated = true;
                    return TreeWalkResult::Abort;
                }
                let bytes = odb.read_header(entry.id()).map_or(0, |(bytes, _)| u64::try_from(bytes).unwrap_or(0));
                add(&mut summary.total, bytes);
                if let Some(extension) = extension(entry.name_bytes()) {
                    add(summary.by_extension.entry(extension).or_default(), bytes);
                }
                TreeWalkResult::Ok
            });
            match walked {
                Err(error) if !summary.truncated => Err(error),
                _ => Ok(summary),
            }
        })
    }

    /// Forgets everything about a snapshot that is about to go.
    pub(super) fn forget(&self, path: &Path) {
        lock(&self.inner.handles).retain(|(of, _)| of != path);
        lock(&self.inner.tables).retain(|(of, _)| of != path);
        lock(&self.inner.heads).remove(path);
        lock(&self.inner.subjects).retain(|(of, _), _| of != path);
        lock(&self.inner.tips).retain(|(of, _)| of != path);
        lock(&self.inner.memo).retain(|(of, _), _| of != path);
    }

    /// Closes everything that is open. What is in use stays open until it is put back.
    pub(super) fn forget_all(&self) {
        lock(&self.inner.handles).clear();
        lock(&self.inner.tables).clear();
        lock(&self.inner.heads).clear();
        lock(&self.inner.subjects).clear();
        // Paths may come back with other content, on another disk.
        lock(&self.inner.tips).clear();
        lock(&self.inner.memo).clear();
    }

    pub(super) fn with<T>(
        &self,
        pin: &SnapshotPin,
        read: impl FnOnce(&Repository) -> Result<T, git2::Error>,
    ) -> Result<T, ReadError> {
        let path = pin.path();
        let wrong = |error| ReadError::Git { path: path.to_owned(), error };
        let kept = {
            let mut handles = lock(&self.inner.handles);
            let at = handles.iter().rposition(|(of, _)| same(of, path));
            at.and_then(|at| handles.remove(at)).map(|(_, repository)| repository)
        };
        let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE | RepositoryOpenFlags::NO_DOTGIT;
        let repository = match kept {
            Some(repository) => repository,
            None => Repository::open_ext(path, flags, std::iter::empty::<&Path>()).map_err(wrong)?,
        };
        let done = read(&repository).map_err(wrong);
        let mut handles = lock(&self.inner.handles);
        handles.push_back((path.to_owned(), repository));
        if handles.len() > HANDLES_MAX {
            handles.pop_front();
        }
        done
    }
}

/// How many objects a repository's packs hold, by their indexes (gitformat-pack(5)), and how many lie loose. An object
/// in two packs counts twice.
pub(super) fn count_objects(repository: &Path) -> u64 {
    let objects = repository.join("objects");
    let children = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut count = 0_u64;
    for entry in children(&objects.join("pack")) {
        if entry.path().extension().is_some_and(|extension| extension == "idx") {
            count = count.saturating_add(count_index(&entry.path()).unwrap_or(0).into());
        }
    }
    for entry in children(&objects) {
        if entry.file_name().len() == 2 {
            count = count.saturating_add(u64::try_from(children(&entry.path()).count()).unwrap_or(0));
        }
    }
    count
}

/// How many packs a repository has.
pub(super) fn count_packs(repository: &Path) -> usize {
    let entries = std::fs::read_dir(repository.join("objects/pack")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack")).count()
}

/// The last entry of a version 2 index's fan-out table is the number of its objects.
pub(super) fn count_index(file: &Path) -> std::io::Result<u32> {
    use std::os::unix::fs::FileExt as _;
    let mut number = [0; 4];
    std::fs::File::open(file)?.read_exact_at(&mut number, 8 + 255 * 4)?;
    Ok(u32::from_be_bytes(number))
}

pub(super) fn oid(commit: CommitId) -> Oid {
    // Twenty bytes are always a name.
    Oid::from_bytes(commit.bytes()).unwrap_or(Oid::ZERO_SHA1)
}

/// A path that the tree does not have, or that goes through a file, or that is none.
fn is_no_path(error: &git2::Error) -> bool {
    matches!(error.code(), ErrorCode::NotFound | ErrorCode::InvalidSpec)
}

/// None where an object of that name is not there, or is no commit.
fn commit_of(repository: &Repository, commit: CommitId) -> Result<Option<git2::Commit<'_>>, git2::Error> {
    match repository.find_commit(oid(commit)) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::InvalidSpec) => Ok(None),
        Err(error) if matches!(error.class(), git2::ErrorClass::Invalid | git2::ErrorClass::Object) => Ok(None),
        Err(error) => Err(error),
    }
}

fn first_line(commit: &git2::Commit<'_>) -> String {
    let bytes = commit.message_bytes();
    let start = bytes.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(bytes.len());
    let line = bytes.get(start..).unwrap_or_default().split(|b| *b == b'\n').next().unwrap_or_default();
    let line = line.get(..SUBJECT_BYTES_MAX).unwrap_or(line);
    String::from_utf8_lossy(line).trim_end().chars().filter(|c| !c.is_control()).collect()
}

fn is_file(mode: i32) -> bool {
    matches!(mode, 0o100_644 | 0o100_755 | 0o100_664)
}

fn extension(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let (stem, extension) = name.rsplit_once('.')?;
    let plain = !stem.is_empty() && (1..=16).contains(&extension.len());
    plain.then(|| extension.to_ascii_lowercase())
}

fn add(extent: &mut Extent, bytes: u64) {
    extent.files = extent.files.saturating_add(1);
    extent.bytes = extent.bytes.saturating_add(bytes);
}

/// Whether both are spelled alike. A path's own comparison takes it apart, which is twenty times as long; ours are made in
/// one place, so that one snapshot has one spelling.
fn same(a: &Path, b: &Path) -> bool {
    a.as_os_str() == b.as_os_str()
}

/// A poisoned lock guards a cache that is still whole: every change to it is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
