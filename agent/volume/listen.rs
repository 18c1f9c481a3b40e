//! The sockets that the kubelet calls. It may clear them away where it starts anew, or somebody deletes one, or its folder:
//! then nobody could call, and nothing would say so. So each is looked at, and made again where it is gone.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};

/// How often a socket is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Whose folder a socket lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Folder {
    /// Ours: made with the socket.
    Own,
    /// The kubelet's: waited for.
    Kubelet,
}

/// Device and inode of a socket.
type Identity = (u64, u64);

struct Listening {
    socket: PathBuf,
    folder: Folder,
    /// Nothing where nobody can call now.
    bound: Option<(UnixListener, Identity)>,
    /// What was said of that.
    told: Option<String>,
}

/// Those who connect to a socket, now and when it was made again. What is under way goes on meanwhile. `first`: where it is
/// bound already.
pub(super) fn on(
    first: Option<UnixListener>,
    socket: &Path,
    folder: Folder,
) -> impl Stream<Item = io::Result<UnixStream>> + Send + 'static + use<> {
    let bound = first.and_then(|listener| Some((listener, identity(socket).ok()?)));
    let listening = Listening { socket: socket.to_owned(), folder, bound, told: None };
    stream::unfold(listening, |mut listening| async move {
        loop {
            listening.look();
            let accept = async {
                match &listening.bound {
                    Some((listener, _)) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            if let Ok(accepted) = tokio::time::timeout(LOOK_EVERY, accept).await {
                return Some((accepted.map(|(stream, _)| stream), listening));
            }
        }
    })
}

impl Listening {
    fn look(&mut self) {
        let there = identity(&self.socket).ok();
        if self.bound.as_ref().is_some_and(|(_, bound)| Some(*bound) == there) {
            return;
        }
        let (socket, before) = (self.socket.display(), self.bound.take());
        match bind(&self.socket, self.folder) {
            Ok(bound) => {
                match before {
                    Some(_) => tracing::info!(%socket, "the kubelet, or somebody else, cleared it away: made again"),
                    None => tracing::info!(%socket, "the kubelet may find the driver of volumes here"),
                }
                (self.bound, self.told) = (Some(bound), None);
            }
            Err(error) => {
                let error = error.to_string();
                if self.told.as_ref() != Some(&error) {
                    tracing::warn!(%socket, error, "the kubelet cannot find the driver of volumes; tried again");
                    self.told = Some(error);
                }
            }
        }
    }
}

/// Over what an agent left that was killed: the agent's socket is bound, so there is no other agent.
fn bind(socket: &Path, folder: Folder) -> io::Result<(UnixListener, Identity)> {
    if let (Folder::Own, Some(folder)) = (folder, socket.parent()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok((listener, identity(socket)?))
}

fn identity(socket: &Path) -> io::Result<Identity> {
    std::fs::symlink_metadata(socket).map(|meta| (meta.dev(), meta.ino()))
}
