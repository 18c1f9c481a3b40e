//! Upstreams that are paths of this machine: what git would do wrong or say badly is found out before it starts.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;

use super::contain::Containment;
use super::contain::lend::open_way;
use super::disk::{io_reason, make_directory};
use super::git::{Git, Version};

/// From here on `upload-pack` in a repository of another user runs nothing that the repository names
/// (git 2.45.1, CVE-2024-32004 and -32465).
const SAFE_WITH_STRANGERS: Version = Version(2, 45, 1);

/// A configuration file for git that names a foreign repository as safe; removed when it is dropped.
#[derive(Debug)]
pub(super) struct SafeDirectory(PathBuf);

impl SafeDirectory {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SafeDirectory {
    fn drop(&mut self) {
        // One that stays is removed at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// Looks at a local upstream. Gives a configuration file where another user owns it, written below `dir`.
///
/// # Errors
/// Not a repository, without its whole history, or of another user where this git is too old to be safe with it.
pub(super) fn inspect(url: &RepositoryUrl, git: &Git, dir: &Path) -> Result<Option<SafeDirectory>, Reason> {
    let Some(path) = url.local_path().map(PathBuf::from) else { return Ok(None) };
    let subject = url.key();
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let message = format!("{} may not be read by the agent's user: {error}", path.display());
            Reason::new(Code::RepositoryForeignOwner, subject, message)
        }
        _ => Reason::new(Code::UpstreamNotFound, subject, format!("{}: {error}", path.display())),
    };
    let found = find(&path).map_err(unreadable)?;
    let Some(found) = found else {
        let message = format!("{} is not a git repository; run `git init` there, or name another path", path.display());
        return Err(Reason::new(Code::UpstreamNotFound, subject, message));
    };
    if fs::metadata(found.common.join("shallow")).is_ok_and(|meta| meta.len() > 0) {
        let message = format!("{} has not its whole history; run `git fetch --unshallow` there", path.display());
        return Err(Reason::new(Code::RepositoryShallow, subject, message));
    }
    let agent = nix::unistd::geteuid().as_raw();
    let user = git.containment().and_then(Containment::user);
    if let (Some(user), Some(containment)) = (user, git.containment()) {
        containment.may_enter(user, &found.common.join("objects")).map_err(|why| {
            let message = format!(
                "{} may not be read by git's user, {user}: {why}; run `chmod -R o+rX` there, or set \
                 `repositories.git.user` to a user who may",
                path.display()
            );
            Reason::new(Code::RepositoryForeignOwner, subject, message)
        })?;
    }
    let own = user.map_or(agent, |user| user.uid);
    let (mut foreign, mut stranger) = (false, None);
    for part in [&found.top, &found.git, &found.common] {
        let owner = fs::metadata(part).map_err(unreadable)?.uid();
        foreign |= owner != own;
        // What the agent's own user made is as good as the agent.
        if owner != own && owner != agent {
            stranger = Some(owner);
        }
    }
    if !foreign {
        return Ok(None);
    }
    if let Some(owner) = stranger
        && git.version() < SAFE_WITH_STRANGERS
    {
        let message = format!(
            "{} belongs to user {owner}, not to the agent's ({agent}), and git before 2.45.1 is not safe with it; \
             update git or run `chown -R {agent}` on a copy",
            path.display()
        );
        return Err(Reason::new(Code::RepositoryForeignOwner, subject, message));
    }
    let file = dir.join(format!(".tmp-safe-{}", url.folder()));
    let written = make_directory(dir).and_then(|()| open_way(dir)).and_then(|()| {
        fs::write(&file, found.as_config())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))
    });
    written.map_err(|error| io_reason(subject, "writing git's configuration", &error))?;
    Ok(Some(SafeDirectory(file)))
}

/// Where a repository's parts lie.
struct Found {
    /// What was named.
    top: PathBuf,
    /// Its git directory: `top` itself, `top/.git`, or where a file of that name points.
    git: PathBuf,
    /// The git directory of the main worktree, where the objects are.
    common: PathBuf,
}

impl Found {
    /// `safe.directory` for exactly these paths, as they are named and as they really are.
    fn as_config(&self) -> String {
        let mut paths = vec![self.top.clone(), self.top.join(".git"), self.git.clone(), self.common.clone()];
        paths.extend(paths.clone().iter().filter_map(|path| path.canonicalize().ok()));
        paths.sort();
        paths.dedup();
        let mut text = String::from("[safe]\n");
        for path in paths.iter().filter_map(|path| path.to_str()) {
            let quoted = path.replace('\\', "\\\\").replace('"', "\\\"");
            text.push_str(&format!("\tdirectory = \"{quoted}\"\n"));
        }
        text
    }
}

/// As git looks for it: `/a/b`, `/a/b/.git`, `/a/b.git`.
fn find(path: &Path) -> io::Result<Option<Found>> {
    let with_suffix = PathBuf::from(format!("{}.git", path.display()));
    for top in [path.to_owned(), with_suffix] {
        let dot_git = top.join(".git");
        let git = match fs::metadata(&dot_git) {
            Ok(meta) if meta.is_dir() => dot_git,
            Ok(_) => match read_pointer(&dot_git, "gitdir: ")? {
                Some(target) => top.join(target),
                None => continue,
            },
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(_) if top.join("HEAD").is_file() && top.join("objects").is_dir() => top.clone(),
            Err(_) => continue,
        };
        let common = match read_pointer(&git.join("commondir"), "")? {
            Some(target) => git.join(target),
            None => git.clone(),
        };
        if common.join("objects").is_dir() {
            return Ok(Some(Found { top, git, common }));
        }
    }
    Ok(None)
}

/// The path in a file of one line; none where there is no such file.
fn read_pointer(file: &Path, prefix: &str) -> io::Result<Option<PathBuf>> {
    match fs::metadata(file) {
        Ok(meta) if meta.is_file() && meta.len() <= 8192 => {}
        _ => return Ok(None),
    }
    let text = fs::read_to_string(file)?;
    Ok(text.trim_end_matches(['\n', '\r']).strip_prefix(prefix).map(PathBuf::from))
}
