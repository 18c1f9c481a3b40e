//! The socket that the kubelet calls. Somebody may delete it, or its directory: then nobody could call, and nothing would
//! say so. So it is looked at, and made again where it is gone.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use futures_util::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};

use super::registration::{Identity, LOOK_EVERY, bind, identity};

struct Listening {
    listener: UnixListener,
    socket: PathBuf,
    /// Nothing where it is gone.
    bound: Option<Identity>,
    told: Option<String>,
}

/// Those who connect, now and when it was made again. What is under way goes on meanwhile.
pub(super) fn on(
    listener: UnixListener,
    socket: &Path,
) -> impl Stream<Item = io::Result<UnixStream>> + Send + 'static + use<> {
    let (bound, socket) = (identity(socket).ok(), socket.to_owned());
    stream::unfold(Listening { listener, socket, bound, told: None }, |mut listening| async move {
        loop {
            tokio::select! {
                accepted = listening.listener.accept() => return Some((accepted.map(|(stream, _)| stream), listening)),
                () = tokio::time::sleep(LOOK_EVERY) => listening.look(),
            }
        }
    })
}

impl Listening {
    fn look(&mut self) {
        if self.bound.is_some() && identity(&self.socket).ok() == self.bound {
            return;
        }
        let socket = self.socket.display();
        match anew(&self.socket) {
            Ok((listener, bound)) => {
                tracing::warn!(%socket, "the socket of the driver of volumes was deleted: made again");
                (self.listener, self.bound, self.told) = (listener, Some(bound), None);
            }
            Err(error) => {
                let error = error.to_string();
                if self.told.as_ref() != Some(&error) {
                    tracing::error!(%socket, error, "the kubelet cannot call the driver of volumes; tried again");
                }
                (self.bound, self.told) = (None, Some(error));
            }
        }
    }
}

fn anew(socket: &Path) -> io::Result<(UnixListener, Identity)> {
    if let Some(folder) = socket.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    bind(socket)
}
