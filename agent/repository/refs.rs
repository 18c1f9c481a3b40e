//! `packed-refs` (gitrepository-layout(5)): the one file that holds all refs of a snapshot, and of a store at rest.

use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};
use stoker_core::identity::CommitId;
use stoker_core::source::RefName;

/// The most bytes of a `packed-refs` that are read: about three million refs.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// One ref. Names are bytes: git does not ask for UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefLine<'a> {
    /// The full name.
    pub name: &'a [u8],
    /// What it names: a commit, or the object of an annotated tag.
    pub id: CommitId,
    /// What an annotated tag peels to in the end.
    pub peeled: Option<CommitId>,
}

impl RefLine<'_> {
    /// The commit that it stands for (where it stands for one).
    #[must_use]
    pub fn target(&self) -> CommitId {
        self.peeled.unwrap_or(self.id)
    }
}

/// The refs of one repository, sorted by name.
#[derive(Debug, Default)]
pub struct RefTable {
    bytes: Vec<u8>,
    /// Where the line of each ref begins.
    lines: Vec<u32>,
}

impl RefTable {
    /// Reads a `packed-refs`; one that is not there has no refs.
    ///
    /// # Errors
    /// When it cannot be read, or is larger than anything sensible.
    pub fn read(file: &Path) -> io::Result<Self> {
        match std::fs::metadata(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
            Ok(meta) if meta.len() > FILE_BYTES_MAX => {
                return Err(io::Error::other(format!("{} has {} bytes", file.display(), meta.len())));
            }
            Ok(_) => {}
        }
        Ok(Self::parse(std::fs::read(file)?))
    }

    fn parse(bytes: Vec<u8>) -> Self {
        let mut lines = Vec::new();
        let mut at = 0_usize;
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            if !matches!(line.first(), None | Some(b'#' | b'^' | b'\n')) {
                lines.push(u32::try_from(at).unwrap_or(u32::MAX));
            }
            at += line.len();
        }
        let mut table = Self { bytes, lines };
        if !table.lines.is_sorted_by(|a, b| table.name_at(*a) < table.name_at(*b)) {
            let mut lines = std::mem::take(&mut table.lines);
            lines.sort_by(|a, b| table.name_at(*a).cmp(table.name_at(*b)));
            lines.dedup_by(|a, b| table.name_at(*a) == table.name_at(*b));
            table.lines = lines;
        }
        table
    }

    /// These refs: name, what it names, what an annotated tag peels to.
    pub(super) fn of(refs: impl IntoIterator<Item = (Vec<u8>, CommitId, Option<CommitId>)>) -> Self {
        let mut bytes = Vec::new();
        for (name, id, peeled) in refs {
            push_line(&mut bytes, &name, id, peeled);
        }
        Self::parse(bytes)
    }

    fn name_at(&self, at: u32) -> &[u8] {
        // Behind the digits and a space.
        let begins = usize::try_from(at).unwrap_or(usize::MAX).saturating_add(41);
        let rest = self.bytes.get(begins..).unwrap_or_default();
        rest.split(|b| *b == b'\n').next().unwrap_or_default()
    }

    fn line_at(&self, at: u32) -> Option<RefLine<'_>> {
        let mut lines = self.bytes.get(usize::try_from(at).ok()?..)?.split(|b| *b == b'\n');
        let (id, name) = lines.next()?.split_at_checked(40)?;
        let peeled = lines.next().and_then(|line| line.strip_prefix(b"^")).and_then(parse_id);
        Some(RefLine { name: name.strip_prefix(b" ")?, id: parse_id(id)?, peeled })
    }

    /// How many refs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// All refs, by name.
    pub fn iter(&self) -> impl Iterator<Item = RefLine<'_>> {
        self.lines.iter().filter_map(|at| self.line_at(*at))
    }

    /// The ref of this full name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<RefLine<'_>> {
        let found = self.lines.binary_search_by(|at| self.name_at(*at).cmp(name)).ok()?;
        self.line_at(*self.lines.get(found)?)
    }

    /// The same refs under other names; those without one are left out.
    pub(super) fn rename<'a>(&'a self, name: impl Fn(&'a [u8]) -> Option<Vec<u8>>) -> Self {
        let mut bytes = Vec::with_capacity(self.bytes.len());
        let mut renamed: Vec<(Vec<u8>, RefLine<'_>)> =
            self.iter().filter_map(|line| Some((name(line.name)?, line))).collect();
        renamed.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, line) in renamed {
            push_line(&mut bytes, &name, line.id, line.peeled);
        }
        Self::parse(bytes)
    }

    /// These refs, and one more.
    pub(super) fn with(&self, name: &[u8], id: CommitId) -> Self {
        let mut bytes = self.bytes.clone();
        push_line(&mut bytes, name, id, None);
        Self::parse(bytes)
    }

    /// These refs, and others.
    pub(super) fn join(&self, others: &Self) -> Self {
        Self::parse([self.to_file(), others.to_file()].concat())
    }

    /// The file: sorted and fully peeled, as git then believes it to be.
    pub(super) fn to_file(&self) -> Vec<u8> {
        let mut bytes = b"# pack-refs with: peeled fully-peeled sorted \n".to_vec();
        for line in self.iter() {
            push_line(&mut bytes, line.name, line.id, line.peeled);
        }
        bytes
    }

    /// A digest of branches, tags and HEAD, to compare with what upstream lists.
    pub(super) fn digest(&self, head: &str) -> String {
        digest(head, self.iter().filter(|line| is_followed(line.name)).map(|line| (line.name, line.id)))
    }
}

/// Whether git accepts it as the full name of a ref; its bytes beyond ASCII are all the same to it.
pub(super) fn is_ref_name(name: &[u8]) -> bool {
    let ascii: String = name.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { 'x' }).collect();
    let begins = name.starts_with(b"refs/") && name.get(5..).is_some_and(|rest| rest.contains(&b'/'));
    begins && name.len() <= 1024 && ascii.parse::<RefName>().is_ok()
}

/// Whether every refresh follows a ref of this name.
pub(super) fn is_followed(name: &[u8]) -> bool {
    name.starts_with(b"refs/heads/") || name.starts_with(b"refs/tags/")
}

/// A digest of HEAD and of refs that are sorted by name.
pub(super) fn digest<'a>(head: &str, refs: impl Iterator<Item = (&'a [u8], CommitId)>) -> String {
    let mut hash = Sha256::new();
    hash.update(head.as_bytes());
    for (name, id) in refs {
        hash.update(b"\n");
        hash.update(id.bytes());
        hash.update(name);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn push_line(bytes: &mut Vec<u8>, name: &[u8], id: CommitId, peeled: Option<CommitId>) {
    bytes.extend_from_slice(id.to_string().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(name);
    bytes.push(b'\n');
    if let Some(peeled) = peeled {
        bytes.push(b'^');
        bytes.extend_from_slice(peeled.to_string().as_bytes());
        bytes.push(b'\n');
    }
}

pub(super) fn parse_id(hex: &[u8]) -> Option<CommitId> {
    std::str::from_utf8(hex).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_table_reads_what_it_writes() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let text = format!("# pack-refs with: x\n{a} refs/tags/v1\n^{b}\n{a} refs/heads/\u{fc}\n{b} refs/heads/a b\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(format!("{b} refs/heads/").as_bytes());
        bytes.extend_from_slice(b"\xff\n");
        let table = RefTable::parse(bytes);
        assert_eq!(table.len(), 4);
        assert_eq!(table.get(b"refs/tags/v1").unwrap().target().to_string(), b);
        assert_eq!(table.get(b"refs/heads/\xff").unwrap().id.to_string(), b);
        assert_eq!(table.get(b"refs/heads/none"), None);
        let again = RefTable::parse(table.to_file());
        assert!(again.iter().eq(table.iter()));
        let names: Vec<_> = again.iter().map(|line| line.name.to_vec()).collect();
        assert!(names.is_sorted());
        assert_ne!(table.digest("main"), table.digest("other"));
    }

    #[test]
    fn damage_is_no_panic() {
        for bytes in [&b"x"[..], b"\n\n", b"^\n", b"0123 refs/heads/a\n", b"#"] {
            let table = RefTable::parse(bytes.to_vec());
            assert_eq!(table.iter().count(), 0);
            assert_eq!(table.get(b"refs/heads/a"), None);
        }
    }
}
