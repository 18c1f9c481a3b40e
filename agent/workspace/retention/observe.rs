//! What lies on the pools, as far as retention has a say in it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_core::quantity::{Span, Timestamp};
use stoker_core::retention::{Facts, Limits, Thing, What};

use super::journal::Journal;
use super::{DirectoryUse, Known};
use crate::config::{Config, Directory, Pool, Retention as Word};
use crate::node::files::owner;
use crate::node::{Found, Identity, Measure, Pools, State, TRASH};
use crate::repository::SHELVES;
use crate::repository::serve::SPOOL;
use crate::sizing::is_cache_key;
use crate::workspace::outputs::{FOLDER, Output, name};
use crate::workspace::record::FOLDER as WORKSPACES;
use crate::workspace::{CACHES, OVERLAYS, caches, checkouts};

/// What the agent itself keeps in its directory of a pool: no orphans, and looked at by those who keep it.
const KEPT: [&str; 9] =
    [TRASH, "repositories", "stores", "lfs", SHELVES, SPOOL, checkouts::DIRECTORY, OVERLAYS, caches::TIMES];
/// The most names of one directory that are looked at.
const NAMES_MAX: usize = 10_000;
/// The most entries that are counted for one look at all.
const BUDGET: u64 = 1_000_000;
/// How long a count holds where a limit depends on it, and where it is only shown.
const FRESH: Span = Span::minutes(15);
const SHOWN: Span = Span::hours(6);

/// What kind of thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a build left.
    Output,
    /// A cache of a tenant.
    Cache,
    /// In a declared directory with retention `output`.
    Directory,
    /// In a declared directory with retention `scratch`.
    Scratch,
    /// In the agent's own directory, and nobody knows it.
    Orphan,
}

impl Kind {
    /// The word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Cache => "cache",
            Self::Directory => "directory",
            Self::Scratch => "scratch",
            Self::Orphan => "orphan",
        }
    }
}

/// Where a thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) pool: String,
    pub(super) path: PathBuf,
    /// The output's or workspace's id, or the folder of a cache's tenant.
    pub(super) id: String,
    /// The rule of an output.
    pub(super) rule: String,
    /// Which thing was there; unset where its room knows that.
    pub(super) identity: Option<Identity>,
}

/// Counts that still hold.
pub(super) type Sizes = HashMap<String, (Identity, Measure, Timestamp)>;

/// What was seen.
pub(super) struct Observed {
    pub(super) facts: Facts,
    /// Of each of the facts' things.
    pub(super) places: Vec<Place>,
    pub(super) directories: Vec<DirectoryUse>,
}

/// One look.
pub(super) struct Look<'a> {
    pub(super) pools: &'a Pools,
    pub(super) config: &'a Config,
    pub(super) known: &'a Known,
    pub(super) journal: &'a mut Journal,
    pub(super) sizes: &'a mut Sizes,
    pub(super) now: Timestamp,
    /// Entries that may still be counted, and that all might be.
    budget: u64,
    budget_max: u64,
    things: Vec<Thing>,
    places: Vec<Place>,
    directories: Vec<DirectoryUse>,
    limits: Limits,
    /// Listings that came to their end, and what was in them.
    looked: BTreeSet<String>,
    there: BTreeSet<String>,
}

impl<'a> Look<'a> {
    /// As [`Look::new`], where a look may cost less.
    #[cfg(test)]
    pub(super) fn with_budget(self, entries: u64) -> Self {
        Self { budget: entries, budget_max: entries, ..self }
    }

    pub(super) fn new(
        pools: &'a Pools,
        config: &'a Config,
        known: &'a Known,
        journal: &'a mut Journal,
        sizes: &'a mut Sizes,
        now: Timestamp,
    ) -> Self {
        let keeping = &config.keeping;
        let limits = Limits {
            keep: keeping.outputs.keep,
            grace: keeping.orphan_grace,
            caches: keeping.caches_limit,
            tenant: keeping.tenant_limit,
            directories: Vec::new(),
        };
        let (things, places, directories) = (Vec::new(), Vec::new(), Vec::new());
        let (looked, there) = (BTreeSet::new(), BTreeSet::new());
        Self {
            pools,
            config,
            known,
            journal,
            sizes,
            now,
            budget: BUDGET,
            budget_max: BUDGET,
            things,
            places,
            directories,
            limits,
            looked,
            there,
        }
    }

    /// Looks at all pools that are there.
    pub(super) fn run(mut self, outputs: &[Arc<Output>]) -> Observed {
        let ready: Vec<String> =
            self.pools.view().iter().filter(|pool| pool.state == State::Ready).map(|pool| pool.name.clone()).collect();
        for pool in self.pools.declared().into_iter().filter(|pool| ready.contains(&pool.name)) {
            if let Err(error) = self.pool(&pool, outputs) {
                tracing::warn!(%error, pool = pool.name, "not all of the pool was looked at; tried again");
            }
        }
        self.journal.forget(&self.looked, &self.there);
        self.sizes.retain(|key, _| self.there.contains(key));
        let leases = self.known.leases.clone();
        let facts = Facts { things: self.things, leases, limits: self.limits, now: self.now };
        Observed { facts, places: self.places, directories: self.directories }
    }

    fn pool(&mut self, pool: &Pool, outputs: &[Arc<Output>]) -> io::Result<()> {
        let own = pool.path.join("stoker");
        let is_home = pool.name == self.config.workspaces.pool;
        if is_home {
            self.outputs(pool, &own, outputs);
            self.own_outputs(pool, &own, outputs)?;
            self.own_workspaces(pool, &own)?;
            self.caches(pool, &own)?;
        }
        for found in self.names(pool, &own)? {
            let of_home = [WORKSPACES, CACHES, FOLDER].iter().any(|folder| found.name == *folder);
            let kept = found.name.to_str().is_some_and(|name| KEPT.contains(&name) || name.starts_with("paths-gone"));
            // On a pool that once was the home, such a folder is an orphan as a whole.
            let looked_at = kept || (of_home && is_home);
            if !looked_at {
                self.orphan(pool, &own, &found, String::new());
            }
        }
        for declared in &pool.directories {
            self.declared(pool, declared)?;
        }
        Ok(())
    }

    /// The names in a directory, each marked as there.
    fn names(&mut self, pool: &Pool, directory: &Path) -> io::Result<Vec<Found>> {
        let (found, all) = self.pools.names(directory, NAMES_MAX)?;
        if all {
            self.looked.insert(key(pool, directory));
        }
        for one in &found {
            self.there.insert(key(pool, &directory.join(&one.name)));
        }
        Ok(found)
    }

    fn put(&mut self, what: What, bytes: u64, place: Place) {
        self.things.push(Thing { what, bytes });
        self.places.push(place);
    }

    fn outputs(&mut self, pool: &Pool, own: &Path, outputs: &[Arc<Output>]) {
        for output in outputs {
            let what = What::Output { expires_at: output.expires_at, released: output.released_at.is_some() };
            let bytes = output.size.map_or(0, |size| size.disk_bytes);
            let (id, rule) = (output.id.clone(), output.rule.clone());
            let path = output.place(own);
            self.put(
                what,
                bytes,
                Place { kind: Kind::Output, pool: pool.name.clone(), path, id, rule, identity: None },
            );
        }
    }

    fn own_outputs(&mut self, pool: &Pool, own: &Path, outputs: &[Arc<Output>]) -> io::Result<()> {
        let ids: BTreeSet<&str> = outputs.iter().map(|output| output.id.as_str()).collect();
        let folder = own.join(FOLDER);
        for found in self.names(pool, &folder)? {
            let known = found.name.to_str().is_some_and(|name| {
                let id = owner(name);
                // Of a workspace that is still there the record may come first.
                ids.contains(id) || self.known.workspaces.contains(id)
            });
            match known {
                true => self.is_known(pool, &folder, &found),
                false => self.orphan(pool, &folder, &found, String::new()),
            }
        }
        Ok(())
    }

    fn own_workspaces(&mut self, pool: &Pool, own: &Path) -> io::Result<()> {
        let folder = own.join(WORKSPACES);
        let names = self.names(pool, &folder)?;
        let here: BTreeSet<&str> = names.iter().filter_map(|found| found.name.to_str()).collect();
        for found in &names {
            let name = found.name.to_str();
            let id = name.map(owner);
            if id.is_some_and(|id| self.known.has_workspace(id)) {
                self.is_known(pool, &folder, found);
            } else if name == id {
                // What it left may still have to be kept: its record says so.
                self.orphan(pool, &folder, found, id.unwrap_or_default().to_owned());
            } else if !id.is_some_and(|id| here.contains(id)) {
                self.orphan(pool, &folder, found, String::new());
            }
        }
        Ok(())
    }

    fn caches(&mut self, pool: &Pool, own: &Path) -> io::Result<()> {
        let folder = own.join(CACHES);
        for tenant in self.names(pool, &folder)? {
            let place = folder.join(&tenant.name);
            let Some(owner) = tenant.name.to_str().filter(|_| tenant.is_directory).map(str::to_owned) else {
                self.orphan(pool, &folder, &tenant, String::new());
                continue;
            };
            for found in self.names(pool, &place)? {
                let slot = place.join(&found.name);
                if found.is_directory && found.name.to_str().is_some_and(caches::is_slot) {
                    for found in self.names(pool, &slot)? {
                        self.cache(pool, &owner, &slot, &found);
                    }
                } else {
                    self.cache(pool, &owner, &place, &found);
                }
            }
        }
        Ok(())
    }

    fn cache(&mut self, pool: &Pool, tenant: &str, directory: &Path, found: &Found) {
        if !(found.is_directory && found.name.to_str().is_some_and(is_cache_key)) {
            self.orphan(pool, directory, found, String::new());
            return;
        }
        let path = directory.join(&found.name);
        let key = key(pool, &path);
        let seen_at = self.journal.first_seen(&key, found.identity, self.now).unwrap_or(self.now);
        let used_at = self.journal.used_at(&key).map_or(seen_at, |used| used.max(seen_at));
        let limited = self.limits.caches.is_some() || self.limits.tenant.is_some();
        let bytes = self.size(&key, found, &path, limited).disk_bytes;
        let held = self.known.caches.contains(tenant) || self.known.shown.contains(&path);
        let what = What::Cache { tenant: tenant.to_owned(), used_at, held };
        let (id, rule) = (tenant.to_owned(), String::new());
        self.put(what, bytes, Place { kind: Kind::Cache, pool: pool.name.clone(), path, id, rule, identity: None });
    }

    /// Should nobody know it one day, its grace begins then.
    fn is_known(&mut self, pool: &Pool, directory: &Path, found: &Found) {
        self.there.remove(&key(pool, &directory.join(&found.name)));
    }

    fn orphan(&mut self, pool: &Pool, directory: &Path, found: &Found, id: String) {
        let path = directory.join(&found.name);
        let key = key(pool, &path);
        // Without room to remember it, it does not age.
        let Some(seen_at) = self.journal.first_seen(&key, found.identity, self.now) else { return };
        let bytes = self.size(&key, found, &path, false).disk_bytes;
        let identity = Some(found.identity);
        let place = Place { kind: Kind::Orphan, pool: pool.name.clone(), path, id, rule: String::new(), identity };
        self.put(What::Own { seen_at, known: false }, bytes, place);
    }

    fn declared(&mut self, pool: &Pool, declared: &Directory) -> io::Result<()> {
        let (directory, at) = (self.limits.directories.len(), pool.path.join(&declared.path));
        let mut used = DirectoryUse {
            pool: pool.name.clone(),
            path: declared.path.clone(),
            retention: declared.retention,
            entries: 0,
            bytes: 0,
            partial: false,
            limit: declared.limit,
        };
        match declared.retention {
            // Nobody told the agent to look at it.
            Word::Mirror => {}
            Word::Cache => {
                let whole = key(pool, &at);
                let found = Found {
                    name: at.clone().into_os_string(),
                    identity: Identity { inode: 0, born: (0, 0) },
                    is_directory: true,
                };
                self.there.insert(whole.clone());
                let size = self.size(&whole, &found, &at, declared.limit.is_some());
                (used.bytes, used.partial) = (size.disk_bytes, size.partial);
            }
            Word::Output | Word::Scratch => {
                for found in self.names(pool, &at)? {
                    let path = at.join(&found.name);
                    let key = key(pool, &path);
                    let Some(seen_at) = self.journal.first_seen(&key, found.identity, self.now) else { continue };
                    let size = self.size(&key, &found, &path, declared.limit.is_some());
                    used.bytes = used.bytes.saturating_add(size.disk_bytes);
                    used.partial |= size.partial;
                    used.entries = used.entries.saturating_add(1);
                    let (what, kind) = match declared.retention {
                        Word::Scratch => (What::Scratch { directory, seen_at }, Kind::Scratch),
                        _ => (What::Aged { directory, seen_at }, Kind::Directory),
                    };
                    let (id, rule, identity) = (String::new(), String::new(), Some(found.identity));
                    let place = Place { kind, pool: pool.name.clone(), path, id, rule, identity };
                    self.put(what, size.disk_bytes, place);
                }
            }
        }
        self.limits.directories.push(declared.limit);
        self.directories.push(used);
        Ok(())
    }

    /// What a tree takes. Counted again only when the last count is too old, and not beyond what one look may cost: then
    /// what was counted last stands.
    fn size(&mut self, key: &str, found: &Found, path: &Path, limited: bool) -> Measure {
        let holds = if limited { FRESH } else { SHOWN };
        let before = self.sizes.get(key).filter(|(identity, ..)| *identity == found.identity).copied();
        if let Some((_, measure, at)) = before
            && (self.now.since(at) < holds || self.budget == 0)
        {
            return measure;
        }
        let last = before.map_or(Measure { partial: true, ..Measure::default() }, |(_, measure, _)| measure);
        if self.budget == 0 {
            return last;
        }
        let is_spent = self.budget < self.budget_max;
        match self.pools.measure_tree(path, self.budget) {
            Ok(measure) => {
                let is_cut = measure.partial && measure.entries > self.budget;
                self.budget = self.budget.saturating_sub(measure.entries.max(1));
                let is_less = is_cut && !last.partial && last.disk_bytes > measure.disk_bytes;
                let measure = if is_less { last } else { measure };
                // What others left no room for is counted with the next look.
                let at = if is_cut && is_spent { Timestamp(0) } else { self.now };
                self.sizes.insert(key.to_owned(), (found.identity, measure, at));
                measure
            }
            Err(_) => last,
        }
    }
}

/// What the journal calls a path: the pool's name, then the path below it.
fn key(pool: &Pool, path: &Path) -> String {
    let within = path.strip_prefix(&pool.path).unwrap_or(path);
    format!("{}/{}", pool.name, name::escape(within.as_os_str()))
}

/// The same of a cache, wherever the pool of the workspaces is.
pub(super) fn cache_key(config: &Config, path: &Path) -> String {
    let home = config.pools.iter().find(|pool| pool.name == config.workspaces.pool);
    home.map_or_else(String::new, |pool| key(pool, path))
}
