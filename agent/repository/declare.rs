//! Who declares mirrors: the configuration, the manifests that it names, the submodules of what is mirrored with them.
//!
//! All of them together say which mirrors there must be; the first who names one says its trust class. What stands in a
//! list was written by whoever can push there, so a list never takes a mirror over from another trust class.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use stoker_core::reason::{Code, Reason};

use super::entry::Entry;
use super::meta::Meta;
use super::{Shared, lock};
use crate::config::{Mirror, TRUST_DEFAULT};

/// How mirrors are called that stand in the configuration.
pub(super) const CONFIGURATION: &str = "configuration";

/// A mirror that must be there.
struct Declared {
    mirror: Mirror,
    by: String,
    /// It is kept fresh: all but the submodules of what somebody added.
    kept_fresh: bool,
}

impl Shared {
    /// Takes over what is declared now. Mirrors that are new are filled; those that no longer are declared stay, and are
    /// not refreshed any more. `again`: all are asked for soon, as after a change of the configuration.
    pub(super) async fn declare(self: &Arc<Self>, again: bool) -> Result<(), Reason> {
        let declared = self.declared();
        for entry in self.all() {
            let mut state = entry.state();
            match declared.get(entry.url.key()) {
                Some(declared) => state.meta.declared = declared.kept_fresh,
                None => {
                    state.meta.declared = false;
                    state.meta.declared_by.clear();
                }
            }
        }
        // As many as there may be are taken over; the first that is too many is told.
        let mut failed = None;
        for declared in declared.values() {
            if let Err(reason) = self.take_in(declared, again).await {
                failed.get_or_insert(reason);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn take_in(self: &Arc<Self>, declared: &Declared, again: bool) -> Result<(), Reason> {
        let Declared { mirror, by, kept_fresh } = declared;
        let known = self.get(&mirror.url);
        let new = known.is_none();
        let entry = match known {
            Some(entry) => entry,
            None => {
                let meta = Meta::declared(mirror);
                self.insert(Meta { declared: *kept_fresh, declared_by: by.clone(), ..meta }, false)?
            }
        };
        self.change_trust(&entry, &mirror.trust).await;
        let changed = {
            let mut state = entry.state();
            let meta = &mut state.meta;
            let changed = meta.declared_by != *by;
            meta.declared_by.clone_from(by);
            meta.fork_of.clone_from(&mirror.fork_of);
            meta.pinned |= mirror.pin;
            // What somebody asked for on top stays until the configuration is read anew.
            meta.submodules = mirror.submodules || (meta.submodules && !(again && by == CONFIGURATION));
            state.ephemeral = false;
            changed
        };
        if new || changed || again {
            self.ask_soon(&entry, *kept_fresh);
        }
        Ok(())
    }

    fn ask_soon(&self, entry: &Entry, kept_fresh: bool) {
        // What was evicted is filled when somebody asks for it.
        if entry.state().meta.evicted.is_some() {
            return;
        }
        match entry.is_filled() {
            false => entry.refresh_in(Duration::ZERO, self.now()),
            // Spread over a part of the period: many mirrors must not ask at once.
            true if kept_fresh => entry.refresh_in(self.config().refresh / 10, self.now()),
            true => {}
        }
    }

    /// By key; the configuration first, then the lists in the order of their names.
    fn declared(&self) -> BTreeMap<String, Declared> {
        let mut all: BTreeMap<String, Declared> = BTreeMap::new();
        for mirror in self.config().declared() {
            let declared = Declared { mirror, by: CONFIGURATION.to_owned(), kept_fresh: true };
            all.insert(declared.mirror.url.key().to_owned(), declared);
        }
        let classes: BTreeMap<String, String> = self.all().iter().map(class).collect();
        for (by, list) in lock(&self.lists).iter() {
            for url in &list.urls {
                let foreign = classes.get(url.key()).is_some_and(|trust| !same_class(trust, &list.trust));
                if foreign || all.contains_key(url.key()) {
                    continue;
                }
                let (pin, trust) = (list.pin, list.trust.clone());
                let mirror = Mirror { url: url.clone(), pin, trust, fork_of: None, submodules: false, lfs: false };
                let kept_fresh = list.home.as_ref().is_none_or(|home| is_declared(&all, home.key()));
                all.insert(url.key().to_owned(), Declared { mirror, by: by.clone(), kept_fresh });
            }
        }
        all
    }

    /// Those of a list that another trust class has, as a reason.
    pub(super) fn conflict(&self, list: &super::lists::List) -> Option<Reason> {
        let known: BTreeMap<String, String> = self.all().iter().map(class).collect();
        let foreign: BTreeSet<&str> = list
            .urls
            .iter()
            .map(|url| url.key())
            .filter(|key| known.get(*key).is_some_and(|trust| !same_class(trust, &list.trust)))
            .collect();
        let first = foreign.first()?;
        let message = format!(
            "{first} is a mirror of another trust class than {:?}, which this list has, and so are {} more; declare it \
             under `repositories.mirrors` with the class that is meant",
            list.trust,
            foreign.len().saturating_sub(1)
        );
        Some(Reason::new(Code::RepositoryNotAllowed, *first, message))
    }
}

/// A repository's key and the trust class that it has already; none where nobody has said one.
fn class(entry: &Arc<Entry>) -> (String, String) {
    (entry.url.key().to_owned(), entry.state().meta.trust.clone())
}

fn is_declared(all: &BTreeMap<String, Declared>, key: &str) -> bool {
    all.get(key).is_some_and(|declared| declared.kept_fresh)
}

fn same_class(has: &str, wants: &str) -> bool {
    trust_class(has) == trust_class(wants)
}

/// The class by its name, also where none is named.
pub(super) fn trust_class(trust: &str) -> &str {
    if trust.is_empty() { TRUST_DEFAULT } else { trust }
}
