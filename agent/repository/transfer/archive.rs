//! The archive that `export` writes and `import` reads: a tar of a bare repository, a manifest first.
//!
//! It is ustar, so that any `tar` unpacks it, and what is unpacked is a repository that git reads and nothing ever needs
//! to write to. An archive comes from outside: its entries are held against its manifest and a short list of names, and
//! everything else is refused; what is in the packs is for git to check ([`super::import`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stoker_core::quantity::Timestamp;
use stoker_core::source::RepositoryUrl;
use tar::{EntryType, Header};

use crate::repository::check::pack_checksum;
use crate::repository::refs::RefTable;

/// The version that this agent writes and reads.
pub(super) const FORMAT: u32 = 1;
/// The first entry.
pub(super) const MANIFEST: &str = "stoker-export.json";
/// The largest manifest that is read: some 100,000 files.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// How many files an archive may have.
const FILES_MAX: usize = 60_000;
/// The largest `HEAD`.
const HEAD_BYTES_MAX: u64 = 4096;
/// The largest `packed-refs`: about three million refs.
const REFS_BYTES_MAX: u64 = 256 << 20;
/// Directories without which git takes the whole for no repository.
const DIRECTORIES: [&str; 4] = ["refs/", "refs/heads/", "objects/", "objects/pack/"];
/// Of a tar.
const BLOCK: u64 = 512;
/// What may follow the last entry: tar pads to its own block size.
const TRAILING_BYTES_MAX: u64 = 1 << 20;
/// How much is copied at once.
const COPY_BYTES: usize = 256 << 10;

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// [`FORMAT`].
    pub(super) format: u32,
    /// Which repository it is.
    pub(super) url: RepositoryUrl,
    /// As in the file `HEAD`.
    pub(super) head: String,
    /// How many refs it has.
    pub(super) refs: u64,
    /// When upstream last listed its refs and all of them were here.
    #[serde(default)]
    pub(super) confirmed_at: Option<Timestamp>,
    /// All that follows but directories, in its order.
    pub(super) files: Vec<Listed>,
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listed {
    /// Relative, with `/`.
    pub(super) name: String,
    /// In bytes.
    pub(super) size: u64,
    /// In lower-case hexadecimal.
    pub(super) sha256: String,
}

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// It does not arrive, or cannot be written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is none.
    #[error("it is neither an archive of `stoker repo export` nor a git bundle: {0}")]
    Unknown(String),
    /// Something in it does not belong there.
    #[error("{name:?} in the archive {why}")]
    Refused {
        /// The entry.
        name: String,
        /// A predicate.
        why: String,
    },
    /// It would fill the disk.
    #[error("it needs {needed} bytes, and the pool has {free} above its floor")]
    Room {
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
}

fn refused(name: impl Into<String>, why: impl Into<String>) -> ArchiveError {
    ArchiveError::Refused { name: name.into(), why: why.into() }
}

/// What a file of this name is, where one may be in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    Refs,
    Pack,
    /// Made anew from its pack: one that comes from outside is not trusted.
    Index,
}

impl Part {
    /// The closed list of names: no `..`, nothing absolute, no hooks, no configuration, no alternates.
    fn of(name: &str) -> Option<Self> {
        match name {
            "HEAD" => return Some(Self::Head),
            "packed-refs" => return Some(Self::Refs),
            _ => {}
        }
        let (hash, kind) = name.strip_prefix("objects/pack/pack-")?.split_once('.')?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let part = match kind {
            "pack" => Self::Pack,
            "idx" => Self::Index,
            _ => return None,
        };
        (hash.len() == 40 && hash.bytes().all(hex)).then_some(part)
    }

    const fn bytes_max(self) -> u64 {
        match self {
            Self::Head => HEAD_BYTES_MAX,
            Self::Refs => REFS_BYTES_MAX,
            Self::Pack | Self::Index => u64::MAX >> 8,
        }
    }
}

/// What a bare repository has to be put into an archive.
#[derive(Debug)]
pub(super) struct Outgoing {
    dir: PathBuf,
    manifest: Vec<u8>,
    files: Vec<Listed>,
}

impl Outgoing {
    /// Reads everything once: the manifest comes first, and has the sums. Blocks.
    pub(super) fn survey(dir: &Path, url: &RepositoryUrl, confirmed_at: Option<Timestamp>) -> io::Result<Self> {
        let mut names = vec!["HEAD".to_owned(), "packed-refs".to_owned()];
        names.extend(packed(&dir.join("objects"))?);
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = dir.join(&name);
            let mut file = BufReader::with_capacity(COPY_BYTES, File::open(&path)?);
            let (size, sha256) = copy_hashed(&mut file, &mut io::sink(), |_| Ok(()))?;
            files.push(Listed { name, size, sha256 });
        }
        let manifest = Manifest {
            format: FORMAT,
            url: url.clone(),
            head: fs::read_to_string(dir.join("HEAD"))?.trim_end().to_owned(),
            refs: u64::try_from(RefTable::read(&dir.join("packed-refs"))?.len()).unwrap_or(u64::MAX),
            confirmed_at,
            files: files.clone(),
        };
        let manifest = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
        Ok(Self { dir: dir.to_owned(), manifest, files })
    }

    /// How many bytes [`Outgoing::write`] writes.
    pub(super) fn total(&self) -> u64 {
        let entry = |size: u64| BLOCK + size.div_ceil(BLOCK) * BLOCK;
        let manifest = entry(u64::try_from(self.manifest.len()).unwrap_or(0));
        let directories = BLOCK * 4;
        let files: u64 = self.files.iter().map(|file| entry(file.size)).sum();
        // Two empty blocks end it.
        manifest + directories + files + 2 * BLOCK
    }

    /// Writes the archive. Blocks.
    pub(super) fn write(&self, out: impl Write) -> io::Result<()> {
        let mut builder = tar::Builder::new(out);
        let size = u64::try_from(self.manifest.len()).map_err(io::Error::other)?;
        builder.append(&header(MANIFEST, EntryType::Regular, size)?, self.manifest.as_slice())?;
        for name in DIRECTORIES {
            builder.append(&header(name, EntryType::Directory, 0)?, io::empty())?;
        }
        for file in &self.files {
            let content = File::open(self.dir.join(&file.name))?.take(file.size);
            let content = BufReader::with_capacity(COPY_BYTES, content);
            builder.append(&header(&file.name, EntryType::Regular, file.size)?, content)?;
        }
        builder.into_inner()?.flush()
    }
}

fn header(name: &str, kind: EntryType, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o444 });
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

/// The packs with their indexes, by name: `objects/pack/...`.
fn packed(objects: &Path) -> io::Result<Vec<String>> {
    for entry in fs::read_dir(objects)? {
        let entry = entry?;
        // Loose objects lie in folders of two digits.
        if entry.file_name().len() == 2 && fs::read_dir(entry.path())?.next().is_some() {
            let message = format!("{} has loose objects, which an archive cannot carry", objects.display());
            return Err(io::Error::other(message));
        }
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(objects.join("pack"))? {
        let name = format!("objects/pack/{}", entry?.file_name().to_string_lossy());
        if Part::of(&name).is_some() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Copies to the end, and gives size and SHA-256. `before` is asked before each piece is written.
fn copy_hashed(
    from: &mut impl Read,
    to: &mut impl Write,
    mut before: impl FnMut(u64) -> Result<(), ArchiveError>,
) -> io::Result<(u64, String)> {
    let (mut hash, mut size, mut piece) = (Sha256::new(), 0_u64, vec![0; COPY_BYTES]);
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = piece.get(..read).unwrap_or_default();
        size = size.saturating_add(u64::try_from(read).unwrap_or(0));
        before(size).map_err(io::Error::other)?;
        hash.update(bytes);
        to.write_all(bytes)?;
    }
    let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((size, hex))
}

/// Bytes that come from outside.
pub(super) type Source = Box<dyn Read + Send>;

/// What came: its first bytes were read.
pub(super) enum Incoming {
    /// Of `export`; the rest follows its manifest.
    Archive(Manifest, Source),
    /// Of `git bundle`, from its beginning.
    Bundle(Source),
    /// An archive that was unpacked.
    Unpacked(Manifest, PathBuf),
}

/// How `git bundle` files begin (gitformat-bundle(5)).
const BUNDLE_SIGNS: [&[u8]; 2] = [b"# v2 git bundle\n", b"# v3 git bundle\n"];

impl Incoming {
    /// Reads until it is known what comes. Blocks.
    pub(super) fn open(mut source: Source) -> Result<Self, ArchiveError> {
        let mut begin = Vec::new();
        (&mut source).take(BLOCK).read_to_end(&mut begin)?;
        if BUNDLE_SIGNS.iter().any(|sign| begin.starts_with(sign)) {
            return Ok(Self::Bundle(Box::new(io::Cursor::new(begin).chain(source))));
        }
        if begin.len() < 512 {
            return Err(ArchiveError::Unknown(format!("it has {} bytes", begin.len())));
        }
        let header = Header::from_byte_slice(&begin);
        if header.as_ustar().is_none() || header.path_bytes() != MANIFEST.as_bytes() {
            return Err(ArchiveError::Unknown(format!("it does not begin with {MANIFEST}")));
        }
        let size = header.size()?;
        if header.entry_type() != EntryType::Regular || size > MANIFEST_BYTES_MAX {
            return Err(refused(MANIFEST, "is no plain file of a sensible size"));
        }
        let mut text = Vec::new();
        (&mut source).take(size.div_ceil(BLOCK) * BLOCK).read_to_end(&mut text)?;
        text.truncate(usize::try_from(size).unwrap_or(0));
        if u64::try_from(text.len()).unwrap_or(0) != size {
            return Err(refused(MANIFEST, "is cut off"));
        }
        Ok(Self::Archive(Manifest::parse(&text)?, source))
    }

    /// What its manifest says.
    pub(super) const fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Archive(manifest, _) | Self::Unpacked(manifest, _) => Some(manifest),
            Self::Bundle(_) => None,
        }
    }
}

impl Manifest {
    /// Reads and judges one.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ArchiveError> {
        let manifest: Self = serde_json::from_slice(text).map_err(|error| refused(MANIFEST, error.to_string()))?;
        if manifest.format != FORMAT {
            let why = format!("is of format {}, and this agent reads {FORMAT}: use an agent as new", manifest.format);
            return Err(refused(MANIFEST, why));
        }
        if manifest.files.len() > FILES_MAX {
            return Err(refused(MANIFEST, format!("lists more than {FILES_MAX} files")));
        }
        let mut parts = Vec::with_capacity(manifest.files.len());
        for file in &manifest.files {
            let part = Part::of(&file.name);
            let part = part.ok_or_else(|| refused(&file.name, "is nothing that an archive may have"))?;
            if file.size > part.bytes_max() {
                return Err(refused(&file.name, format!("has {} bytes", file.size)));
            }
            parts.push(part);
        }
        let mut names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
        names.sort_unstable();
        if let Some([twice, _]) = names.array_windows().find(|[a, b]| a == b) {
            return Err(refused(*twice, "is listed twice"));
        }
        for (part, name) in [(Part::Head, "HEAD"), (Part::Refs, "packed-refs")] {
            if !parts.contains(&part) {
                return Err(refused(name, "is missing"));
            }
        }
        Ok(manifest)
    }

    /// What it takes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }
}

/// Where an archive is unpacked, and how much room there is.
pub(super) struct Unpacking<'a> {
    /// A bare repository's skeleton.
    pub(super) into: &'a Path,
    /// The pool's free bytes above its floor.
    pub(super) free: &'a dyn Fn() -> io::Result<u64>,
    /// Told how many bytes came so far.
    pub(super) came: &'a dyn Fn(u64),
}

/// Between two looks at the free bytes.
const LOOK_EVERY_BYTES: u64 = 32 << 20;

impl Unpacking<'_> {
    /// Writes packs, `HEAD` and `packed-refs` below the directory. Blocks.
    pub(super) fn unpack(&self, manifest: &Manifest, source: Source) -> Result<(), ArchiveError> {
        self.has_room(manifest.bytes())?;
        let mut waited: BTreeMap<&str, &Listed> =
            manifest.files.iter().map(|file| (file.name.as_str(), file)).collect();
        let mut archive = tar::Archive::new(source);
        let mut before = 0;
        // Raw: long names and other extensions would be read into memory whole; here they are refused like any entry.
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            match entry.header().entry_type() {
                EntryType::Directory
                    if DIRECTORIES.iter().any(|dir| dir.trim_end_matches('/') == name.trim_end_matches('/')) =>
                {
                    continue;
                }
                EntryType::Regular => {}
                kind => return Err(refused(name, format!("is no plain file ({kind:?})"))),
            }
            let Some(listed) = waited.remove(name.as_str()) else {
                let why = if Part::of(&name).is_some() {
                    "is there twice, or not in the manifest"
                } else {
                    "is nothing that an archive may have"
                };
                return Err(refused(name, why));
            };
            if entry.size() != listed.size {
                return Err(refused(
                    name,
                    format!("has {} bytes, not {} as the manifest says", entry.size(), listed.size),
                ));
            }
            self.take(listed, &mut entry, before)?;
            before = before.saturating_add(listed.size);
        }
        if let Some(missing) = waited.keys().next() {
            return Err(refused(*missing, "is missing: the archive is cut off"));
        }
        let rest = io::copy(&mut archive.into_inner().take(TRAILING_BYTES_MAX + 1), &mut io::sink())?;
        if rest > TRAILING_BYTES_MAX {
            return Err(refused("", "has more after its end"));
        }
        Ok(())
    }

    /// The same, from a directory that one was unpacked into.
    pub(super) fn copy(&self, manifest: &Manifest, dir: &Path) -> Result<(), ArchiveError> {
        self.has_room(manifest.bytes())?;
        let mut before = 0;
        for listed in &manifest.files {
            let path = dir.join(&listed.name);
            let meta = fs::symlink_metadata(&path)?;
            if !meta.is_file() || meta.len() != listed.size {
                return Err(refused(&listed.name, "is no plain file of the size that the manifest says"));
            }
            self.take(listed, &mut File::open(path)?.take(listed.size), before)?;
            before = before.saturating_add(listed.size);
        }
        Ok(())
    }

    /// A bundle, into one file.
    pub(super) fn spool(&self, mut source: Source, file: &Path) -> Result<u64, ArchiveError> {
        self.has_room(0)?;
        let mut out = File::create_new(file)?;
        let copied = copy_hashed(&mut source, &mut out, |size| self.step(size, size));
        Ok(copied.map_err(unwrap)?.0)
    }

    fn take(&self, listed: &Listed, content: &mut impl Read, before: u64) -> Result<(), ArchiveError> {
        let step = |size: u64| self.step(size, before.saturating_add(size));
        let part =
            Part::of(&listed.name).ok_or_else(|| refused(&listed.name, "is nothing that an archive may have"))?;
        let target = match part {
            Part::Head => None,
            Part::Index => None,
            Part::Refs => Some(self.into.join("incoming-refs")),
            Part::Pack => Some(self.into.join("objects/pack/incoming")),
        };
        let copied = match &target {
            Some(path) => copy_hashed(content, &mut File::create_new(path)?, step),
            None => copy_hashed(content, &mut io::sink(), step),
        };
        let (size, sha256) = copied.map_err(unwrap)?;
        if size != listed.size {
            return Err(refused(&listed.name, "is cut off"));
        }
        if sha256 != listed.sha256 {
            return Err(refused(&listed.name, "has not the sum that the manifest says: it was changed or damaged"));
        }
        if let (Part::Pack, Some(path)) = (part, target) {
            // By its own checksum, which git verifies: no name from outside stands for a pack of ours.
            let sum = pack_checksum(&path).map_err(|why| refused(&listed.name, why.to_string()))?;
            fs::rename(path, self.into.join(format!("objects/pack/pack-{sum}.pack")))?;
        }
        Ok(())
    }

    fn step(&self, _size: u64, total: u64) -> Result<(), ArchiveError> {
        (self.came)(total);
        if total % LOOK_EVERY_BYTES < u64::try_from(COPY_BYTES).unwrap_or(0) { self.has_room(0) } else { Ok(()) }
    }

    /// Never down to the last byte: a pool at its floor holds back builds.
    fn has_room(&self, needed: u64) -> Result<(), ArchiveError> {
        let free = (self.free)()?;
        if free == 0 || free < needed { Err(ArchiveError::Room { needed, free }) } else { Ok(()) }
    }
}

/// Takes out the archive's own error where one stands inside of an I/O error.
fn unwrap(error: io::Error) -> ArchiveError {
    match error.downcast::<ArchiveError>() {
        Ok(own) => own,
        Err(error) => ArchiveError::Io(error),
    }
}
