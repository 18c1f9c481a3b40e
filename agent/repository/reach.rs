//! Which objects a client may have of a snapshot. Under protocol version 2 `git upload-pack` gives out any object that it
//! finds, so this is decided before it is asked.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use git2::{ErrorCode, ObjectType, Repository};
use stoker_core::identity::CommitId;
use stoker_core::source::Probed;

use super::{Inner, MEMO_MAX, ReadError, Reader, TABLES_MAX, lock, oid};
use crate::repository::snapshot::SnapshotPin;

/// What may not be had.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Not in the snapshot.
    pub missing: Vec<CommitId>,
    /// There, but no ref of this repository reaches it.
    pub unreachable: Vec<CommitId>,
}

impl Verdict {
    /// Whether all may be had.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unreachable.is_empty()
    }
}

impl Reader {
    /// Judges what a client wants: a commit or an annotated tag must be reachable from the snapshot's refs. A file or a
    /// directory must be there: partial clones ask for those one by one, and whoever may read the repository may read
    /// what its trust class keeps.
    ///
    /// # Errors
    /// When objects or refs cannot be read.
    pub fn judge(&self, pin: &SnapshotPin, wants: &BTreeSet<CommitId>) -> Result<Verdict, ReadError> {
        let tips = self.tips(pin)?;
        let others: Vec<CommitId> = wants.iter().filter(|want| !tips.contains(want)).copied().collect();
        let mut verdict = Verdict::default();
        if others.is_empty() {
            return Ok(verdict);
        }
        let (mut commits, mut tags) = (Vec::new(), Vec::new());
        let kinds = self.with(pin, |repository| {
            let odb = repository.odb()?;
            let kind = |id: &CommitId| match odb.read_header(oid(*id)) {
                Ok((_, kind)) => Ok(Some(kind)),
                Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
                Err(error) => Err(error),
            };
            others.iter().map(kind).collect::<Result<Vec<_>, _>>()
        })?;
        for (id, kind) in others.into_iter().zip(kinds) {
            match kind {
                None => verdict.missing.push(id),
                Some(ObjectType::Commit) => commits.push(id),
                Some(ObjectType::Tag) => tags.push(id),
                Some(_) => {}
            }
        }
        verdict.unreachable.extend(self.unreached(pin, commits, |repository, asked| walk(repository, &tips, asked))?);
        let refs = self.refs(pin)?;
        let annotated = || refs.iter().filter(|line| line.peeled.is_some()).map(|line| line.id);
        verdict
            .unreachable
            .extend(self.unreached(pin, tags, |repository, asked| follow(repository, annotated(), asked))?);
        Ok(verdict)
    }

    /// Those of `asked` that `find`, given what is not remembered, does not find.
    fn unreached(
        &self,
        pin: &SnapshotPin,
        asked: Vec<CommitId>,
        find: impl FnOnce(&Repository, &HashSet<CommitId>) -> Result<HashSet<CommitId>, git2::Error>,
    ) -> Result<Vec<CommitId>, ReadError> {
        let key = |id: &CommitId| (pin.path().to_owned(), *id);
        let (mut unreached, mut unknown) = (Vec::new(), HashSet::new());
        {
            let memo = lock(&self.inner.memo);
            for id in asked {
                match memo.get(&key(&id)) {
                    Some(Probed::Reachable) => {}
                    Some(_) => unreached.push(id),
                    None => drop(unknown.insert(id)),
                }
            }
        }
        if unknown.is_empty() {
            return Ok(unreached);
        }
        let found = self.with(pin, |repository| find(repository, &unknown))?;
        let mut memo = lock(&self.inner.memo);
        for id in unknown {
            if memo.len() >= MEMO_MAX {
                memo.clear();
            }
            let reached = found.contains(&id);
            memo.insert(key(&id), if reached { Probed::Reachable } else { Probed::Unreachable });
            if !reached {
                unreached.push(id);
            }
        }
        Ok(unreached)
    }

    /// What the snapshot's refs and its HEAD name, tags also peeled.
    fn tips(&self, pin: &SnapshotPin) -> Result<Arc<HashSet<CommitId>>, ReadError> {
        let Inner { tips, .. } = &*self.inner;
        if let Some((_, known)) = lock(tips).iter().find(|(of, _)| of == pin.path()) {
            return Ok(Arc::clone(known));
        }
        let mut named: HashSet<CommitId> = HashSet::new();
        for line in self.refs(pin)?.iter() {
            named.insert(line.id);
            named.extend(line.peeled);
        }
        let head = std::fs::read_to_string(pin.path().join("HEAD")).unwrap_or_default();
        named.extend(head.trim().parse::<CommitId>());
        let named = Arc::new(named);
        let mut tips = lock(tips);
        tips.push_back((pin.path().to_owned(), Arc::clone(&named)));
        if tips.len() > TABLES_MAX {
            tips.pop_front();
        }
        Ok(named)
    }
}

/// Which of `asked` the histories of `tips` hold: one walk for all of them.
fn walk(
    repository: &Repository,
    tips: &HashSet<CommitId>,
    asked: &HashSet<CommitId>,
) -> Result<HashSet<CommitId>, git2::Error> {
    let mut walk = repository.revwalk()?;
    for tip in tips {
        // A tag may name a tree or a file: those reach no commit.
        if repository.find_commit(oid(*tip)).is_ok() {
            walk.push(oid(*tip))?;
        }
    }
    let mut found = HashSet::new();
    for reached in walk {
        let bytes = reached?.as_bytes().try_into().map_err(|_| git2::Error::from_str("a name that is no SHA-1"))?;
        let id = CommitId::new(bytes);
        if asked.contains(&id) && found.insert(id) && found.len() == asked.len() {
            break;
        }
    }
    Ok(found)
}

/// Which of `asked` are tags that one of `annotated` names, or a tag that it names.
fn follow(
    repository: &Repository,
    annotated: impl Iterator<Item = CommitId>,
    asked: &HashSet<CommitId>,
) -> Result<HashSet<CommitId>, git2::Error> {
    let mut found = HashSet::new();
    for tag in annotated {
        let mut next = repository.find_tag(oid(tag)).ok();
        while let Some(tag) = next {
            if let Ok(bytes) = tag.id().as_bytes().try_into() {
                let id = CommitId::new(bytes);
                if asked.contains(&id) {
                    found.insert(id);
                }
            }
            next = (tag.target_type() == Some(ObjectType::Tag))
                .then(|| repository.find_tag(tag.target_id()))
                .transpose()?;
        }
    }
    Ok(found)
}
