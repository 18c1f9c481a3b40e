//! Import: what an operator brings becomes a mirror, or joins one.
//!
//! It is received into a directory beside the repository's snapshots, checked there by git as what comes from an upstream
//! is, and only then taken over into the store, under its turn, and published. So a stream that breaks, an archive that
//! is bad and a full disk leave what was there before, and a killed agent leaves a directory that recovery removes.
//! Seeds take the same way ([`super::seeds`]).
//!
//! An import is the operator's word that these objects are of this repository. What upstream says at the next fetch
//! counts for more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_core::identity::CommitId;
use stoker_core::quantity::{Resource, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::time::Instant;

use super::archive::{ArchiveError, Incoming, Manifest, Unpacking};
use super::stream::{ChunkReader, Chunks};
use super::takeover::{Names, become_store, join_store, read_refs};
use super::{Beside, guarded, local_reason};
use crate::repository::disk::{io_reason, names, remove_unfinished};
use crate::repository::entry::Entry;
use crate::repository::fetch::{Visit, blocking};
use crate::repository::git::{harmless, harmless_types};
use crate::repository::listing::{Head, Wanted};
use crate::repository::meta::Meta;
use crate::repository::network::TIPS_MAX;
use crate::repository::refs::{RefTable, is_followed};
use crate::repository::snapshot::CONFIG;
use crate::repository::space::Space;
use crate::repository::visit::{adopt, enter, prepare};
use crate::repository::{Progress, Repositories, Shared, View, disk};

/// Where an import goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportTarget {
    /// Unset: as the archive says.
    pub url: Option<RepositoryUrl>,
    /// Never evict it.
    pub pin: bool,
    /// Empty: the repository's, or the default where it is new.
    pub trust: String,
}

/// What was brought, checked.
struct Brought {
    /// Under the names that the repository gives them.
    refs: RefTable,
    head: Option<Head>,
    /// When upstream last confirmed all of it, where that is known.
    confirmed_at: Option<Timestamp>,
    tips: Vec<CommitId>,
}

impl Repositories {
    /// Takes an archive of [`Repositories::export`], or a git bundle, into the cache, and publishes it. Upstream is asked
    /// afterwards for what is newer; that it answers is not needed.
    ///
    /// # Errors
    /// When the repository may not be added, what comes is not whole or not good, or there is no room for it: then
    /// everything is as before.
    pub async fn import(&self, target: ImportTarget, chunks: Chunks) -> Result<View, Reason> {
        let shared = Arc::clone(&self.shared);
        // To its own end, also where the caller goes: nothing stays behind.
        let run = self.shared.tasks.spawn(async move { shared.import(target, chunks).await });
        let subject = "import";
        run.await.map_err(|error| io_reason(subject, "importing", &io::Error::other(error)))?
    }
}

impl Shared {
    async fn import(self: &Arc<Self>, target: ImportTarget, chunks: Chunks) -> Result<View, Reason> {
        self.recovered().await?;
        let named = target.url.as_ref().map_or("import", |url| url.key()).to_owned();
        if let Some(url) = target.url.as_ref().filter(|url| self.get(url).is_none()) {
            self.may_add(url)?;
        }
        let _place = self.transfers.place(&named)?;
        let incoming = blocking(&named, move || Incoming::open(Box::new(ChunkReader::new(chunks)))).await?;
        let incoming = incoming.map_err(|error| archive_reason(&named, &error))?;
        let url = target.url.or_else(|| incoming.manifest().map(|manifest| manifest.url.clone())).ok_or_else(|| {
            Reason::new(Code::ArchiveInvalid, "import", "a bundle does not say of which repository it is: name the URL")
        })?;
        let entry = match self.get(&url) {
            Some(entry) => entry,
            None => {
                self.may_add(&url)?;
                self.insert(Meta::new(url.clone(), target.trust.clone(), target.pin, false), true)?
            }
        };
        let trust = entry.state().meta.trust.clone();
        if !target.trust.is_empty() && target.trust != trust {
            let message = format!("{url} is of the trust class {trust}, not {}; leave the class out", target.trust);
            return Err(Reason::new(Code::RepositoryNotAllowed, url.key(), message));
        }
        let done = {
            let _beside = Beside::begin(self, &entry);
            self.bring_in(&entry, incoming, target.pin).await
        };
        if let Err(reason) = &done {
            tracing::warn!(repository = url.key(), reason = reason.code.word(), "an import failed: {}", reason.message);
            self.undo(&entry);
        }
        self.tick();
        done.map(|()| {
            // For what is newer than what was brought; whether it answers is another matter.
            let _ = entry.ask(Wanted::default());
            self.view(&entry)
        })
    }

    /// Nothing stays of a repository that is known for an import alone, which failed.
    fn undo(&self, entry: &Arc<Entry>) {
        let alone = {
            let state = entry.state();
            state.ephemeral && state.current.is_none() && !state.busy && state.beside == 0
        };
        if alone {
            self.forget(entry, |_| true);
        }
        if let Ok(root) = (self.pool.root)() {
            // Where something is in it, it stays.
            let _ = fs::remove_dir(disk::Paths::new(&root, &entry.folder).folder);
        }
    }

    pub(super) async fn bring_in(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        incoming: Incoming,
        pin: bool,
    ) -> Result<(), Reason> {
        let cancel = entry.stop.child_token();
        let mut visit = prepare(self, entry, (self.pool.root)()?, &cancel).await?;
        let staging = visit.paths.folder.join(format!(".tmp-import-{}", self.transfers.number()));
        let work = Import { shared: self, entry, staging: staging.clone(), pin };
        let done = guarded(self, entry, &cancel, work.run(&mut visit, incoming)).await;
        let removed = blocking(entry.url.key(), move || remove_unfinished(&staging)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(repository = entry.url.key(), %error, "what an import left could not be removed");
        }
        done
    }
}

struct Import<'a> {
    shared: &'a Arc<Shared>,
    entry: &'a Arc<Entry>,
    staging: PathBuf,
    pin: bool,
}

impl Import<'_> {
    async fn run(&self, visit: &mut Visit, incoming: Incoming) -> Result<(), Reason> {
        let subject = self.entry.url.key();
        self.entry.progress.send_replace(Progress::phase("receiving"));
        let manifest = self.receive(visit, incoming).await?;
        visit.deadline = std::time::Instant::now() + self.shared.config().fetch_within;
        let begun = Instant::now();
        let brought = match manifest {
            Some(manifest) => self.check_packs(visit, &manifest).await?,
            None => self.check_bundle(visit).await?,
        };
        self.entry.progress.send_replace(Progress::phase("publishing"));
        let (store, turn, claim) = enter(self.shared, self.entry, visit, &brought.tips).await?;
        let new = !visit.has_store();
        let (from, to) = (self.staging.clone(), visit.store.clone());
        let names = Names { heads: visit.followed("heads"), tags: visit.followed("tags"), pins: visit.pins() };
        if !new {
            let packed = visit.local(["pack-refs", "--all", "--prune"]).run_in_store(&visit.store.git()).await;
            packed.map_err(|error| local_reason(&error, subject, "packing the refs of the store"))?;
        }
        let confirmed = self.entry.state().meta.confirmed_at.is_some();
        let refs = brought.refs;
        let taken = blocking(subject, move || match new {
            true => become_store(&from, &to, &refs, &names),
            false => join_store(&from, &to, &refs, &names, confirmed),
        });
        taken.await?.map_err(|error| io_reason(subject, "taking over what was brought", &error))?;
        let head = {
            let mut state = self.entry.state();
            state.meta.generation = visit.store.generation();
            if state.meta.confirmed_at.is_none() || state.meta.head.is_none() {
                state.meta.head = brought.head.or(state.meta.head.take());
            }
            state.meta.head.clone()
        };
        let first = self.entry.state().meta.first_snapshot;
        let published = visit.publish(head, self.entry.current(), true, first).await?;
        adopt(self.entry, published, begun, self.shared.now());
        let recorded = self.record(visit, brought.confirmed_at.filter(|_| new)).await;
        drop((store, turn, claim));
        recorded
    }

    /// Receives it into the staging directory, a repository without refs. Gives an archive's manifest; none of a bundle.
    async fn receive(&self, visit: &Visit, incoming: Incoming) -> Result<Option<Manifest>, Reason> {
        let (shared, staging, paths) = (Arc::clone(self.shared), self.staging.clone(), visit.paths.clone());
        let (subject, progress) = (self.entry.url.key().to_owned(), self.entry.progress.clone());
        let total = incoming.manifest().map_or(0, Manifest::bytes);
        let cancel = visit.cancel.clone();
        let received = blocking(self.entry.url.key(), move || -> Result<_, ArchiveError> {
            paths.make_folder()?;
            skeleton(&staging)?;
            let free = || match cancel.is_cancelled() {
                true => Err(io::Error::other("it was ended")),
                false => (shared.pool.measure)().map(Space::spare).map_err(|reason| io::Error::other(reason.message)),
            };
            let came = |bytes: u64| {
                progress.send_replace(Progress {
                    phase: "receiving",
                    done: bytes,
                    total,
                    bytes,
                    ..Progress::default()
                });
            };
            let unpacking = Unpacking { into: &staging, free: &free, came: &came };
            match incoming {
                Incoming::Archive(manifest, source) => {
                    unpacking.unpack(&manifest, source)?;
                    Ok(Some(manifest))
                }
                Incoming::Unpacked(manifest, dir) => {
                    unpacking.copy(&manifest, &dir)?;
                    Ok(Some(manifest))
                }
                Incoming::Bundle(source) => {
                    unpacking.spool(source, &staging.join(BUNDLE))?;
                    Ok(None)
                }
            }
        });
        received.await?.map_err(|error| archive_reason(&subject, &error))
    }

    /// Makes the indexes, which reads every object, and looks whether all is there that the refs reach.
    async fn check_packs(&self, visit: &Visit, manifest: &Manifest) -> Result<Brought, Reason> {
        let subject = self.entry.url.key();
        let packs = names(&self.staging.join("objects/pack"))
            .map_err(|error| io_reason(subject, "looking at what was brought", &error))?;
        let packs: Vec<String> = packs.into_iter().filter(|name| name.ends_with(".pack")).collect();
        if packs.is_empty() {
            return Err(Reason::new(
                Code::ArchiveInvalid,
                subject,
                format!("the archive of {} has no objects", visit.url),
            ));
        }
        // One pack is checked while it is indexed, as a clone is. Several may need each other: they are checked together.
        let alone = packs.len() == 1;
        for pack in &packs {
            let strict = format!("--strict={}", harmless_types());
            let mut args = vec!["index-pack".to_owned(), "-v".to_owned()];
            if alone {
                args.extend([strict, "--check-self-contained-and-connected".to_owned()]);
            }
            args.push(format!("objects/pack/{pack}"));
            self.git(visit, &args, "checking what was brought for").await?;
        }
        if !alone {
            // What no ref reaches may lack anything to git: it looks from where the refs lead.
            let (from, to) = (self.staging.join("incoming-refs"), self.staging.join("packed-refs"));
            fs::copy(from, to).map_err(|error| io_reason(subject, "looking at what was brought", &error))?;
            self.check_all(visit).await?;
        }
        let head = Head::from_file(&manifest.head);
        let now = self.shared.now();
        let confirmed_at = manifest.confirmed_at.map(|at| at.min(now));
        self.brought(visit, "incoming-refs", head, confirmed_at).await
    }

    /// Lets git take the bundle apart.
    async fn check_bundle(&self, visit: &Visit) -> Result<Brought, Reason> {
        let bundle = self.staging.join(BUNDLE).to_string_lossy().into_owned();
        let args = ["fetch", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--progress", "--"];
        let mut args: Vec<String> = args.map(str::to_owned).to_vec();
        args.extend([bundle.clone(), "+refs/heads/*:refs/heads/*".to_owned(), "+refs/tags/*:refs/tags/*".to_owned()]);
        self.git(visit, &args, "taking a bundle apart for").await?;
        let listed = self.git(visit, &["ls-remote".to_owned(), "--".to_owned(), bundle], "reading a bundle of").await?;
        let _ = fs::remove_file(self.staging.join(BUNDLE));
        self.check_all(visit).await?;
        self.git(visit, &["pack-refs", "--all", "--prune"].map(str::to_owned), "packing the refs of").await?;
        let head = head_of_listing(&String::from_utf8_lossy(&listed));
        self.brought(visit, "packed-refs", head, None).await
    }

    async fn check_all(&self, visit: &Visit) -> Result<(), Reason> {
        let args = ["fsck", "--full", "--strict", "--no-dangling", "--no-reflogs", "--progress"];
        self.git(visit, &args.map(str::to_owned), "checking what was brought for").await.map(drop)
    }

    /// In the staging directory, with no network.
    async fn git(&self, visit: &Visit, args: &[String], doing: &str) -> Result<Vec<u8>, Reason> {
        let command = visit.git.command(args).git_dir(".").work_dir(&self.staging).protocols(["file"]);
        let command = harmless(command, "fsck").cancel(visit.cancel.clone()).time_limit(visit.remaining());
        let command = command.stdout_bytes_max(LISTED_BYTES_MAX).progress(visit.progress.clone());
        let done = command.run_in_store(&self.staging).await;
        let subject = self.entry.url.key();
        done.map(|output| output.stdout)
            .map_err(|error| local_reason(&error, subject, &format!("{doing} {}", visit.url)))
    }

    /// The refs, whose names and objects are looked at.
    async fn brought(
        &self,
        visit: &Visit,
        file: &'static str,
        head: Option<Head>,
        confirmed_at: Option<Timestamp>,
    ) -> Result<Brought, Reason> {
        let (staging, subject) = (self.staging.clone(), self.entry.url.key());
        let refs = blocking(subject, move || read_refs(&staging, file)).await?;
        let refs = refs.map_err(|why| {
            Reason::new(Code::ArchiveInvalid, subject, format!("{} was brought, and {why}", visit.url))
        })?;
        let head = head.filter(|head| match head {
            Head::Branch(name) => refs.get(format!("refs/heads/{name}").as_bytes()).is_some(),
            Head::Detached(commit) => refs.iter().any(|line| line.target() == *commit),
        });
        let step = refs.len().div_ceil(TIPS_MAX).max(1);
        let mut tips: Vec<CommitId> =
            refs.iter().filter(|line| is_followed(line.name)).step_by(step).map(|line| line.id).collect();
        tips.sort_unstable();
        tips.dedup();
        Ok(Brought { refs, head, confirmed_at, tips })
    }

    /// What is known is written, so that a restart knows it too.
    async fn record(&self, visit: &Visit, confirmed_at: Option<Timestamp>) -> Result<(), Reason> {
        {
            let mut state = self.entry.state();
            state.ephemeral = false;
            state.meta.pinned |= self.pin;
            state.meta.last_fetch_at = Some(self.shared.now());
            state.meta.confirmed_at = state.meta.confirmed_at.or(confirmed_at);
        }
        self.shared.save(self.entry).await?;
        let (measured, root) = (Arc::clone(self.entry), visit.root.clone());
        blocking(self.entry.url.key(), move || measured.measure(&root)).await
    }
}

/// Of the list of a bundle's refs.
const LISTED_BYTES_MAX: usize = 64 << 20;
/// Where a bundle is received.
const BUNDLE: &str = "incoming.bundle";

/// A bundle has HEAD's commit and not its branch: it is the one of that commit, and of several one of the usual names.
fn head_of_listing(listing: &str) -> Option<Head> {
    let lines = || listing.lines().filter_map(|line| line.split_once('\t'));
    let (head, _) = lines().find(|(_, name)| *name == "HEAD")?;
    let mut branches: Vec<&str> =
        lines().filter(|(id, _)| *id == head).filter_map(|(_, name)| name.strip_prefix("refs/heads/")).collect();
    branches.sort_by_key(|name| (!["main", "master"].contains(name), *name));
    match branches.first() {
        Some(name) => Some(Head::Branch((*name).to_owned())),
        None => head.parse().ok().map(Head::Detached),
    }
}

/// A bare repository without refs.
fn skeleton(dir: &Path) -> io::Result<()> {
    remove_unfinished(dir)?;
    fs::create_dir(dir)?;
    for part in ["objects", "objects/pack", "refs", "refs/heads"] {
        fs::create_dir(dir.join(part))?;
    }
    fs::write(dir.join("config"), CONFIG)?;
    // Of a store it would be `.invalid`, which `git fsck` takes for damage.
    fs::write(dir.join("HEAD"), "ref: refs/heads/main\n")
}

fn archive_reason(subject: &str, error: &ArchiveError) -> Reason {
    match error {
        ArchiveError::Room { needed, free } => {
            let message = format!("{error}; make room, or import on another node");
            Reason::new(Code::DiskFloor, subject, message).about(Resource::DiskBytes, *needed, *free)
        }
        ArchiveError::Io(error)
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
        {
            io_reason(subject, "receiving an import", error)
        }
        _ => Reason::new(Code::ArchiveInvalid, subject, format!("nothing was imported: {error}")),
    }
}
