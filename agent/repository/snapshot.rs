//! Snapshots: immutable, hardlinked states of a store's objects with one mirror's refs.
//!
//! All readers use these, never the store, so whatever happens in the store breaks no build. A snapshot is whole or not
//! there: it is made under a temporary name, synced, and renamed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use stoker_core::identity::CommitId;
use stoker_core::source::RepositoryUrl;

use super::disk::{
    Paths, is_leftover, make_directory, names, remove_unfinished, replace, snapshot_number, sync_directory,
};
use super::listing::Head;
use super::refs::RefTable;

/// The configuration of every snapshot and store: nothing of upstream's, no secret, no upkeep.
pub(super) const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n\
                                 \tlogallrefupdates = false\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n";

/// A snapshot that stays on disk while any clone of this value lives.
#[derive(Debug, Clone)]
pub struct SnapshotPin {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    url: RepositoryUrl,
    number: u64,
    name: String,
    path: PathBuf,
    /// Of HEAD, branches and tags; they never change.
    digest: OnceLock<String>,
    /// It was seen to be damaged: who holds it keeps it, and nobody new gets it.
    condemned: AtomicBool,
}

impl SnapshotPin {
    pub(super) fn new(url: RepositoryUrl, paths: &Paths, number: u64) -> Self {
        let name = number.to_string();
        let path = paths.snapshots().join(&name);
        Self {
            inner: Arc::new(Inner {
                url,
                number,
                name,
                path,
                digest: OnceLock::new(),
                condemned: AtomicBool::new(false),
            }),
        }
    }

    /// The bare repository.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Its name among the snapshots of its repository; later ones have larger numbers.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whose state it is.
    #[must_use]
    pub fn url(&self) -> &RepositoryUrl {
        &self.inner.url
    }

    pub(super) fn number(&self) -> u64 {
        self.inner.number
    }

    /// The digest of its HEAD, branches and tags, where it was computed before.
    pub(super) fn known_digest(&self) -> Option<&str> {
        self.inner.digest.get().map(String::as_str)
    }

    pub(super) fn remember_digest(&self, digest: String) -> &str {
        self.inner.digest.get_or_init(|| digest)
    }

    pub(super) fn condemn(&self) {
        self.inner.condemned.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_condemned(&self) -> bool {
        self.inner.condemned.load(Ordering::SeqCst)
    }

    /// How many hold it beside the caller.
    pub(super) fn others(&self) -> usize {
        Arc::strong_count(&self.inner).saturating_sub(1)
    }

    /// Whether nobody but the caller holds it.
    pub(super) fn is_unpinned(&self) -> bool {
        Arc::strong_count(&self.inner) == 1
    }

    /// All its refs, read from disk.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn refs(&self) -> io::Result<RefTable> {
        RefTable::read(&self.path().join("packed-refs"))
    }

    /// What the ref of this full name stands for; tags are peeled.
    ///
    /// # Errors
    /// When the refs cannot be read.
    pub fn reference(&self, name: &str) -> io::Result<Option<CommitId>> {
        Ok(self.refs()?.get(name.as_bytes()).map(|line| line.target()))
    }

    /// What HEAD names, where it names something that is there.
    pub(super) fn head(&self) -> Option<Head> {
        fs::read_to_string(self.path().join("HEAD")).ok().and_then(|text| Head::from_file(&text))
    }
}

/// What of a store belongs into a snapshot.
pub(super) struct Publication<'a> {
    pub(super) url: &'a RepositoryUrl,
    pub(super) paths: &'a Paths,
    /// The bare repository that the objects are in.
    pub(super) store: &'a Path,
    pub(super) head: Option<&'a Head>,
    pub(super) refs: &'a RefTable,
    /// Files that it has are synced already.
    pub(super) previous: Option<&'a Path>,
    /// The least number that it may have.
    pub(super) first: u64,
}

impl Publication<'_> {
    /// Makes the snapshot. Blocks on the disk.
    pub(super) fn publish(&self) -> io::Result<SnapshotPin> {
        let snapshots = self.paths.snapshots();
        self.paths.make_folder()?;
        make_directory(&snapshots)?;
        let last = names(&snapshots)?.iter().filter_map(|name| snapshot_number(name)).max();
        let number = last.map_or(1, |last| last.saturating_add(1)).max(self.first);
        let temporary = snapshots.join(format!(".tmp-{number}"));
        remove_unfinished(&temporary)?;
        let made = self.fill(&temporary);
        let pin = SnapshotPin::new(self.url.clone(), self.paths, number);
        let made = made.and_then(|()| fs::rename(&temporary, pin.path()));
        if let Err(error) = made {
            let _ = remove_unfinished(&temporary);
            return Err(error);
        }
        sync_directory(&snapshots)?;
        if last.is_none() {
            sync_directory(&self.paths.folder)?;
            self.paths.folder.parent().map_or(Ok(()), sync_directory)?;
        }
        Ok(pin)
    }

    fn fill(&self, temporary: &Path) -> io::Result<()> {
        fs::create_dir(temporary)?;
        let store = self.store.join("objects");
        let previous = self.previous.map(|path| path.join("objects"));
        link_objects(&store, &temporary.join("objects"), previous.as_deref())?;
        // A branch of a name that cannot be keeps HEAD valid where upstream's names nothing.
        let head = self.head.map_or_else(|| "ref: refs/heads/.invalid".to_owned(), Head::to_file);
        fs::create_dir(temporary.join("refs"))?;
        fs::create_dir(temporary.join("refs/heads"))?;
        replace(&temporary.join("packed-refs"), &self.refs.to_file(), true)?;
        replace(&temporary.join("config"), CONFIG.as_bytes(), true)?;
        replace(&temporary.join("HEAD"), format!("{head}\n").as_bytes(), true)?;
        sync_directory(&temporary.join("refs"))
    }
}

/// Links the files of an object store, never locks or temporary files; syncs what is new, then its directory.
fn link_objects(from: &Path, to: &Path, previous: Option<&Path>) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(text) = name.to_str().filter(|text| !is_leftover(text)) else { continue };
        let (source, target) = (entry.path(), to.join(&name));
        let previous = previous.map(|dir| dir.join(&name));
        if entry.file_type()?.is_dir() {
            link_objects(&source, &target, previous.as_deref())?;
        } else if text != "alternates" {
            fs::hard_link(&source, &target)?;
            let inode = |path: &Path| fs::metadata(path).ok().map(|meta| meta.ino());
            let synced = previous.as_deref().and_then(inode);
            if synced.is_none() || synced != inode(&source) {
                File::open(&target)?.sync_all()?;
            }
        }
    }
    sync_directory(to)
}
