//! Lists that declare mirrors: manifests of the `repo` tool, and the submodules of what is mirrored with them.
//!
//! One task reads each list when it starts and whenever what it was read from has changed: a snapshot was published, a
//! file has another time. A list that turned bad says so and keeps what it said before; after a restart, what it said
//! before is what the mirrors remember of who declared them.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::submodules::Update;
use stoker_core::source::{RepositoryUrl, Request, SourceRef, allowed, listable, manifest};

use super::fetch::blocking;
use super::gitmodules::{self, too_many};
use super::projects;
use super::snapshot::SnapshotPin;
use super::{Cached, Repositories, Shared, View, lock, unknown};
use crate::config::{self, Add, ManifestFrom};

/// How often files of this machine are looked at, in which no change of a repository shows.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a list said when it was last right.
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    /// The repository that it lies in; none for a file of this machine.
    pub(super) home: Option<RepositoryUrl>,
    pub(super) urls: Vec<RepositoryUrl>,
    pub(super) pin: bool,
    pub(super) trust: String,
    /// Why it says nothing better now.
    fault: Option<Reason>,
    /// What it was read from.
    sources: Vec<Origin>,
    seen: Vec<Mark>,
    /// The bounds and permissions that it was read with.
    under: Option<(Question, Rules)>,
}

/// What a list is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    Manifest(config::Manifest),
    /// Of a repository; `declared`: by the operator, and not by a caller.
    Submodules {
        of: RepositoryUrl,
        pin: bool,
        trust: String,
        declared: bool,
    },
}

/// What of the configuration decides what a list may say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rules {
    on_demand: bool,
    allow: Vec<String>,
    protocols: Vec<String>,
    submodules: config::Submodules,
}

/// Something that a list was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Repository(RepositoryUrl),
    File(PathBuf),
}

/// How it was then.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mark {
    Missing,
    Snapshot(PathBuf),
    File(SystemTime, u64),
}

/// What reading a list came to.
struct Read {
    urls: Result<Vec<RepositoryUrl>, Reason>,
    sources: Vec<Origin>,
}

impl Question {
    /// Its name for people, by which lists are known.
    fn label(&self) -> String {
        match self {
            Self::Manifest(manifest) => manifest.to_string(),
            Self::Submodules { of, .. } => format!("submodule of {of}"),
        }
    }

    fn home(&self) -> Option<&RepositoryUrl> {
        match self {
            Self::Submodules { of, .. } => Some(of),
            Self::Manifest(manifest) => match &manifest.from {
                ManifestFrom::Repository { url, .. } => Some(url),
                ManifestFrom::File { .. } => None,
            },
        }
    }

    fn pin_and_trust(&self) -> (bool, String) {
        match self {
            Self::Manifest(manifest) => (manifest.pin, manifest.trust.clone()),
            Self::Submodules { pin, trust, .. } => (*pin, trust.clone()),
        }
    }

    /// What is looked at before anything was read.
    fn first_source(&self) -> Origin {
        match self {
            Self::Manifest(config::Manifest { from: ManifestFrom::File { path, .. }, .. }) => {
                Origin::File(path.clone())
            }
            Self::Manifest(config::Manifest { from: ManifestFrom::Repository { url, .. }, .. })
            | Self::Submodules { of: url, .. } => Origin::Repository(url.clone()),
        }
    }
}

impl Repositories {
    /// Mirrors the submodules of a repository's HEAD too, and theirs.
    ///
    /// # Errors
    /// When there is no such repository, or that cannot be written.
    pub async fn follow_submodules(&self, url: &RepositoryUrl) -> Result<View, Reason> {
        let entry = self.shared.get(url).ok_or_else(|| unknown(url))?;
        entry.state().meta.submodules = true;
        self.shared.save(&entry).await?;
        self.shared.tick();
        Ok(self.shared.view(&entry))
    }

    /// What is wrong with lists: manifests, submodules.
    #[must_use]
    pub fn list_faults(&self) -> Vec<Reason> {
        lock(&self.shared.lists).values().filter_map(|list| list.fault.clone()).collect()
    }
}

/// Keeps all lists up to date, until the agent stops.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut ticks = shared.ticks.subscribe();
    loop {
        ticks.borrow_and_update();
        if shared.recovered().await.is_ok() {
            update(&shared).await;
        }
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            changed = ticks.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Reads what has changed, and declares what came of it.
async fn update(shared: &Arc<Shared>) {
    let questions = questions(shared);
    let labels: BTreeSet<String> = questions.iter().map(Question::label).collect();
    let mut changed = {
        let mut lists = lock(&shared.lists);
        let before = lists.len();
        lists.retain(|label, _| labels.contains(label));
        lists.len() != before
    };
    let rules = rules(&shared.config());
    for question in questions {
        let label = question.label();
        let held = lock(&shared.lists).get(&label).cloned();
        let mut list = held.unwrap_or_else(|| {
            let list = remembered(shared, &question, &label);
            // Who asks what is declared before it could be read is told what was.
            lock(&shared.lists).insert(label.clone(), list.clone());
            list
        });
        let under = Some((question.clone(), rules.clone()));
        let sources = if list.sources.is_empty() { vec![question.first_source()] } else { list.sources.clone() };
        let seen = marks(shared, &sources);
        if list.under == under && list.seen == seen {
            continue;
        }
        let Some(read) = read(shared, &question, &rules).await else { continue };
        // What changes while it is read is seen the next time: the marks are those from before.
        list.seen = if read.sources == sources { seen } else { marks(shared, &read.sources) };
        list.sources = read.sources;
        (list.pin, list.trust) = question.pin_and_trust();
        list.under = under;
        list.fault = match read.urls {
            Ok(urls) => {
                list.urls = urls;
                shared.conflict(&list)
            }
            Err(reason) => Some(reason),
        };
        if let Some(fault) = &list.fault {
            tracing::warn!(list = label, reason = fault.code.word(), "{}", fault.message);
        }
        lock(&shared.lists).insert(label, list);
        changed = true;
    }
    if changed {
        if let Err(reason) = shared.declare(false).await {
            tracing::error!(reason = reason.code.word(), "{}", reason.message);
        }
        show_faults(shared);
        shared.tick();
    }
}

/// All lists that there should be now.
fn questions(shared: &Shared) -> Vec<Question> {
    let manifests = shared.config().manifests.clone().into_iter().map(Question::Manifest);
    let with_submodules = shared.all().into_iter().filter_map(|entry| {
        let state = entry.state();
        let meta = &state.meta;
        (meta.submodules && !meta.removed).then(|| Question::Submodules {
            of: entry.url.clone(),
            pin: meta.pinned,
            trust: meta.trust.clone(),
            declared: meta.declared,
        })
    });
    manifests.chain(with_submodules).collect()
}

fn rules(config: &config::Repositories) -> Rules {
    Rules {
        on_demand: config.add == Add::OnDemand,
        allow: config.allow.clone(),
        protocols: config.protocols.clone(),
        submodules: config.submodules,
    }
}

/// A list of before the start, as far as the mirrors know who declared them.
fn remembered(shared: &Shared, question: &Question, label: &str) -> List {
    let by = |url: &RepositoryUrl| shared.get(url).is_some_and(|entry| entry.state().meta.declared_by == label);
    let urls = shared.all().iter().map(|entry| entry.url.clone()).filter(by).collect();
    let (pin, trust) = question.pin_and_trust();
    List { home: question.home().cloned(), urls, pin, trust, ..List::default() }
}

fn marks(shared: &Shared, sources: &[Origin]) -> Vec<Mark> {
    let mark = |source: &Origin| match source {
        Origin::Repository(url) => {
            let pin = shared.get(url).and_then(|entry| entry.current());
            pin.map_or(Mark::Missing, |pin| Mark::Snapshot(pin.path().to_owned()))
        }
        Origin::File(path) => match std::fs::metadata(path).and_then(|meta| Ok((meta.modified()?, meta.len()))) {
            Ok((modified, bytes)) => Mark::File(modified, bytes),
            Err(_) => Mark::Missing,
        },
    };
    sources.iter().map(mark).collect()
}

/// A repository says on its view what is wrong with the lists that lie in it.
fn show_faults(shared: &Shared) {
    let faults: Vec<(RepositoryUrl, Reason)> =
        lock(&shared.lists).values().filter_map(|list| Some((list.home.clone()?, list.fault.clone()?))).collect();
    for entry in shared.all() {
        let own = faults.iter().filter(|(home, _)| *home == entry.url).map(|(_, fault)| fault.clone()).collect();
        entry.state().faults = own;
    }
}

/// None: there is nothing to read yet; that the repository is empty is told elsewhere.
async fn read(shared: &Arc<Shared>, question: &Question, rules: &Rules) -> Option<Read> {
    match question {
        Question::Manifest(manifest) => match &manifest.from {
            ManifestFrom::Repository { url, reference, file } => {
                let found = resolved(shared, url, reference).await?;
                let urls = match found {
                    Ok((pin, commit)) => in_repository(shared, manifest, url, file, pin, commit, rules).await,
                    Err(reason) => Err(reason),
                };
                Some(Read { urls, sources: vec![Origin::Repository(url.clone())] })
            }
            ManifestFrom::File { path, base } => Some(on_this_machine(manifest, path, base, rules).await),
        },
        Question::Submodules { of, declared, .. } => submodules(shared, of, *declared, rules).await,
    }
}

/// The commit that a mirror has under a ref; none where the mirror is empty.
async fn resolved(
    shared: &Arc<Shared>,
    url: &RepositoryUrl,
    reference: &SourceRef,
) -> Option<Result<(SnapshotPin, CommitId), Reason>> {
    let room = Repositories { shared: Arc::clone(shared) };
    let request = Request { allow_other_fork: true, ..Request::new(url.clone(), reference.clone()) };
    let cached = blocking(url.key(), move || room.resolve_cached(&request)).await;
    match cached {
        Ok(Cached::Commit(pin, commit)) => Some(Ok((pin, commit))),
        Ok(Cached::None) => None,
        Ok(Cached::Mirror) => {
            let message = format!("{reference} is not in {url}; name a ref that its mirror has");
            Some(Err(Reason::new(Code::RefNotFound, url.key(), message)))
        }
        Err(reason) => Some(Err(reason)),
    }
}

async fn in_repository(
    shared: &Shared,
    manifest: &config::Manifest,
    url: &RepositoryUrl,
    file: &str,
    pin: SnapshotPin,
    commit: CommitId,
    rules: &Rules,
) -> Result<Vec<RepositoryUrl>, Reason> {
    let read = projects::read(&shared.reader, url, &pin, commit, file, &manifest.groups);
    urls(manifest, url.key(), read.await?, rules)
}

async fn on_this_machine(manifest: &config::Manifest, path: &Path, base: &RepositoryUrl, rules: &Rules) -> Read {
    let subject = path.display().to_string();
    let (folder, name) = match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Some(folder), Some(name)) => (folder.to_owned(), name.to_owned()),
        _ => (PathBuf::from("/"), String::new()),
    };
    let (base, groups) = (base.clone(), manifest.groups.clone());
    let read = blocking(&subject, move || {
        let mut sources = Vec::new();
        let read = manifest::read(&name, &base, &groups, &mut |name, max| {
            let path = folder.join(name);
            sources.push(Origin::File(path.clone()));
            read_bounded(&path, max).map_err(|error| format!("{}: {error}", path.display()))
        });
        (read, sources)
    });
    match read.await {
        Ok((read, sources)) => Read { urls: urls(manifest, &subject, read, rules), sources },
        Err(reason) => Read { urls: Err(reason), sources: vec![Origin::File(path.to_owned())] },
    }
}

/// One byte more than `max` where the file is larger, so that it shows.
fn read_bounded(path: &Path, max: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The repositories of a manifest, each once, where all of them may be declared.
fn urls(
    manifest: &config::Manifest,
    subject: &str,
    read: Result<manifest::Manifest, manifest::ManifestError>,
    rules: &Rules,
) -> Result<Vec<RepositoryUrl>, Reason> {
    let invalid = |what: String| {
        Reason::new(Code::ManifestInvalid, subject, format!("{manifest}: {what}; the list before goes on"))
    };
    let read = read.map_err(|error| invalid(error.to_string()))?;
    for note in &read.notes {
        tracing::info!(list = manifest.to_string(), "{note}");
    }
    let mut urls: BTreeSet<RepositoryUrl> = BTreeSet::new();
    for project in read.projects {
        listable(&project.url, &rules.allow, &rules.protocols)
            .map_err(|reason| invalid(format!("project {:?}: {}", project.name, reason.message)))?;
        urls.insert(project.url);
    }
    Ok(urls.into_iter().collect())
}

/// The submodules of a mirror's HEAD, and theirs as far as those are mirrored already: each fill brings the next.
async fn submodules(shared: &Arc<Shared>, of: &RepositoryUrl, declared: bool, rules: &Rules) -> Option<Read> {
    let (pin, commit) = match resolved(shared, of, &SourceRef::Head).await? {
        Ok(found) => found,
        Err(reason) => return Some(Read { urls: Err(reason), sources: vec![Origin::Repository(of.clone())] }),
    };
    let mut sources = vec![Origin::Repository(of.clone())];
    let urls = walk(shared, of, (pin, commit), declared, rules, &mut sources).await;
    Some(Read { urls, sources })
}

async fn walk(
    shared: &Arc<Shared>,
    of: &RepositoryUrl,
    (pin, commit): (SnapshotPin, CommitId),
    declared: bool,
    rules: &Rules,
    sources: &mut Vec<Origin>,
) -> Result<Vec<RepositoryUrl>, Reason> {
    let bounds = rules.submodules;
    let mut todo = VecDeque::from([(of.clone(), pin, commit, 1)]);
    let (mut found, mut looked_at) = (BTreeSet::new(), BTreeSet::from([(of.clone(), commit)]));
    while let Some((url, pin, commit, depth)) = todo.pop_front() {
        for one in gitmodules::read(&shared.git, &shared.reader, &pin, commit, &url).await? {
            if one.update == Update::None || !looked_at.insert((one.url.clone(), one.commit)) {
                continue;
            }
            if depth > bounds.depth {
                return Err(too_many(of, "submodules nested deeper", bounds.depth, "depth"));
            }
            match declared {
                true => listable(&one.url, &rules.allow, &rules.protocols)?,
                false if shared.get(&one.url).is_some() => {}
                false => allowed(&one.url, rules.on_demand, &rules.allow, &rules.protocols)?,
            }
            if one.url != *of && found.insert(one.url.clone()) {
                sources.push(Origin::Repository(one.url.clone()));
            }
            if found.len() > bounds.repositories {
                return Err(too_many(of, "more submodules", bounds.repositories, "repositories"));
            }
            if let Some(pin) = shared.get(&one.url).and_then(|entry| entry.current()) {
                let (reader, held, commit) = (shared.reader.clone(), pin.clone(), one.commit);
                let here = blocking(of.key(), move || reader.exists(&held, commit)).await?.unwrap_or(false);
                if here {
                    todo.push_back((one.url, pin, one.commit, depth + 1));
                }
            }
        }
    }
    Ok(found.into_iter().collect())
}
