//! The files of a workspace, by whichever method works on the pool.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_core::reason::Reason;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::checkouts::{Checkouts, Kept, Wanted, fill};
use super::copy;
use super::disk::{self, blocking, directory, give, hand_over, spread, unwritable};
use super::gitdir::{Objects, Shape, borrow_objects, own_objects, repository};
use super::method::{Chosen, Method};
use super::quota::{self, Projects};
use super::trees::{self, Tree};
use super::{OVERLAYS, Progress, Workspace, shared, submodules};
use crate::node::mount::{self, Overlay};
use crate::node::namespace::Namespaces;
use crate::repository::Nested;
use crate::repository::git::Git;

/// What the room has to make workspaces with.
pub(super) struct Means<'a> {
    pub(super) git: &'a Git,
    pub(super) checkouts: &'a Checkouts,
    pub(super) namespaces: &'a Namespaces,
    pub(super) chosen: &'a Chosen,
    pub(super) projects: &'a Arc<Projects>,
    /// The agent's directory of the pool.
    pub(super) root: &'a Path,
}

/// Makes the directories, `src/.git` and the files. What comes with it keeps the files that it stands on.
pub(super) async fn materialise(
    means: Means<'_>,
    wanted: Wanted<'_>,
    workspace: Workspace,
    steps: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<(Workspace, Option<Arc<Kept>>), Reason> {
    let home = workspace.home().to_owned();
    let is_limited = means.chosen.quota.works && workspace.lease.is_some();
    let projects = is_limited.then(|| Arc::clone(means.projects));
    let made = blocking(move || directories(workspace, projects.as_deref())).await;
    let workspace = made.map_err(|error| unwritable(&home, &error))?;
    let owner = workspace.owner;
    let own = |owner: Option<(u32, u32)>| Wanted { owner, ..wanted };
    match means.chosen.method {
        Method::Overlay => {
            // Where a mount cannot show files as the build's, they are kept as the build's.
            let kept_for = owner.filter(|_| !means.chosen.idmapped);
            let kept = means.checkouts.obtain(means.root, &own(kept_for), &steps, &cancel).await?;
            let (files, bytes) = kept.extent();
            let place = Place::new(means.root, &workspace, &own(owner), means.chosen.idmapped);
            let (layers, namespaces) = (kept.layers(), means.namespaces.clone());
            let mounted = blocking(move || place.mount(&layers, &namespaces)).await;
            mounted.map_err(|error| unwritable(&home, &error))?;
            let checkout = Some(kept.name());
            Ok((Workspace { files, bytes, checkout, also_mount: Vec::new(), ..workspace }, Some(kept)))
        }
        Method::Reflink => {
            let kept = means.checkouts.obtain(means.root, &own(None), &steps, &cancel).await?;
            let (files, bytes) = kept.extent();
            let (layers, src) = (kept.layers(), workspace.src.clone());
            let heads = Heads::new(&wanted);
            let copied = blocking(move || {
                copy::copy(&layers, &src, owner)?;
                heads.write(&src, Some(Objects::Reflink))?;
                give(&src, owner)?;
                heads.hand_over(&src, owner)
            });
            copied.await.map_err(|error| unwritable(&home, &error))?;
            Ok((Workspace { files, bytes, also_mount: Vec::new(), ..workspace }, None))
        }
        Method::Checkout => {
            let src = workspace.src.clone();
            let (git, checkouts, wanted) = (means.git, means.checkouts, own(owner));
            checkouts.find_room(means.root, &wanted, None, &steps).await?;
            let (to, told) = (&src, &steps);
            let fill = |cancel| async move { fill::full(git, to, &wanted, told, &cancel).await };
            let filled = checkouts.within_floor(means.root, &cancel, fill).await?;
            let objects = workspace.self_contained.then_some(Objects::Copy);
            let heads = Heads::new(&wanted);
            let written = blocking(move || {
                heads.write(&src, objects)?;
                heads.hand_over(&src, owner)
            });
            written.await.map_err(|error| unwritable(&home, &error))?;
            let also_mount = if objects.is_some() { Vec::new() } else { workspace.also_mount.clone() };
            Ok((Workspace { files: filled.files, bytes: filled.bytes, also_mount, ..workspace }, None))
        }
    }
}

fn directories(mut workspace: Workspace, projects: Option<&Projects>) -> io::Result<Workspace> {
    let home = workspace.home();
    let all = home.parent().unwrap_or(home);
    directory(all, 0o755)?;
    spread(all);
    // A directory that is there already is not ours to fill: a workspace begins empty. It stays the agent's: what it has
    // cannot be renamed by the build.
    fs::DirBuilder::new().mode(0o755).create(home)?;
    // Before anything is in it: all that comes is of its project.
    let project = projects.and_then(|projects| {
        let claimed = projects.claim(home);
        claimed.inspect_err(|error| tracing::warn!(%error, workspace = workspace.id, "its disk is not limited")).ok()
    });
    for path in [&workspace.src, &workspace.tmp, &workspace.out] {
        directory(path, 0o755)?;
    }
    for path in [&workspace.tmp, &workspace.out] {
        give(path, workspace.owner)?;
    }
    if let Some(bytes) = workspace.tmpfs_bytes {
        mount::seal(&workspace.tmp);
        let own = || (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        mount::memory(&workspace.tmp, bytes, workspace.owner.unwrap_or_else(own)).map_err(|error| {
            io::Error::new(error.kind(), format!("tmp in memory: {error}; the agent needs the right to mount"))
        })?;
    }
    shared::make(&workspace.cache, workspace.cache_slot, &workspace.cache_keys)?;
    workspace.project = project;
    Ok(workspace)
}

/// The git directories of a workspace: where each comes from, and what it says.
struct Heads {
    trees: Vec<Tree>,
    nested: Vec<Nested>,
}

impl Heads {
    fn new(wanted: &Wanted<'_>) -> Self {
        Self { trees: wanted.trees.to_vec(), nested: wanted.nested.to_vec() }
    }

    /// Writes all of them below `src`; without objects of their own they borrow the snapshots'.
    fn write(&self, src: &Path, objects: Option<Objects>) -> io::Result<()> {
        self.write_heads(src)?;
        self.each(src, &|git_dir, snapshot| match objects {
            Some(how) => own_objects(git_dir, snapshot, how),
            None => borrow_objects(git_dir, snapshot),
        })
    }

    /// All but the objects.
    fn write_heads(&self, src: &Path) -> io::Result<()> {
        let excludes = trees::excludes(&self.trees);
        for tree in &self.trees {
            let git_dir = src.join(tree.git_dir());
            disk::directories(src, &git_dir)?;
            let is_src = tree.path.as_os_str().is_empty();
            repository(&Shape {
                git_dir: &git_dir,
                snapshot: tree.pin.path(),
                commit: tree.commit,
                origin: &tree.origin,
                branch: tree.branch.as_deref(),
                default_branch: false,
                core: String::new(),
                rest: if is_src { submodules::config(&self.nested, None) } else { String::new() },
            })?;
            if let Some(text) = excludes.get(tree.path.as_path()).filter(|text| !text.is_empty()) {
                fs::write(git_dir.join("info/exclude"), text)?;
            }
        }
        submodules::write_heads(&src.join(".git"), &self.nested)
    }

    /// Does something for each git directory and the snapshot that it reads.
    fn each(&self, src: &Path, work: &dyn Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
        self.trees.iter().try_for_each(|tree| work(&src.join(tree.git_dir()), tree.pin.path()))?;
        let below = self.nested.iter().filter_map(|one| Some((one, one.resolved.as_ref()?)));
        below
            .into_iter()
            .try_for_each(|(one, resolved)| work(&src.join(submodules::below_git(one)), resolved.pin.path()))
    }

    /// Gives them to a user.
    fn hand_over(&self, src: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
        let Some((user, group)) = owner else { return Ok(()) };
        self.trees.iter().try_for_each(|tree| hand_over(&src.join(tree.git_dir()), user, group))
    }
}

/// What lies beside a workspace that is an overlay, where its build does not see it.
struct Place {
    place: PathBuf,
    src: PathBuf,
    owner: Option<(u32, u32)>,
    project: Option<u32>,
    /// Its layers are shown as the owner's.
    shown: bool,
    heads: Heads,
}

impl Place {
    fn new(root: &Path, workspace: &Workspace, wanted: &Wanted<'_>, idmapped: bool) -> Self {
        Self {
            place: root.join(OVERLAYS).join(&workspace.id),
            src: workspace.src.clone(),
            owner: workspace.owner,
            project: workspace.project,
            shown: idmapped && workspace.owner.is_some(),
            heads: Heads::new(wanted),
        }
    }

    fn mount(&self, layers: &[PathBuf], namespaces: &Namespaces) -> io::Result<()> {
        let [upper, work, objects, shown] = ["upper", "work", "git", "shown"].map(|name| self.place.join(name));
        directory(self.place.parent().unwrap_or(&self.place), 0o700)?;
        fs::DirBuilder::new().mode(0o700).create(&self.place)?;
        for path in [&upper, &work, &objects, &shown] {
            directory(path, 0o755)?;
        }
        for path in [&upper, &work] {
            quota::join(path, self.project)?;
        }
        // The objects of the snapshot, in a layer of their own below: a build that writes to one gets a copy.
        self.heads.each(&objects, &|git_dir, snapshot| {
            disk::directories(&objects, git_dir)?;
            own_objects(git_dir, snapshot, Objects::Link)
        })?;
        if !self.shown {
            only_directories(&objects, self.owner)?;
        }
        self.heads.write_heads(&upper)?;
        if let Some((user, group)) = self.owner {
            hand_over(&upper, user, group)?;
        }
        let lower: Vec<&Path> = layers.iter().map(PathBuf::as_path).chain([objects.as_path()]).collect();
        let shown_as = self.owner.filter(|_| self.shown).map(|(user, group)| (user, group, shown.as_path()));
        mount::seal(&self.src);
        mount::overlay(&self.src, &Overlay { lower: &lower, upper: &upper, work: &work, shown_as }, namespaces)
    }
}

/// Gives the directories of a tree to a user, but no file: those are the snapshot's too.
fn only_directories(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        std::os::unix::fs::lchown(&path, Some(user), Some(group))?;
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}
