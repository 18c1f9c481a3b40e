//! Export: the newest snapshot as an archive, for `import` elsewhere and as a seed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::sync::{mpsc, watch};

use super::archive::Outgoing;
use super::local_reason;
use super::stream::{ChunkWriter, Chunks};
use crate::repository::disk::io_reason;
use crate::repository::fetch::blocking;
use crate::repository::git::Git;
use crate::repository::local::inspect;
use crate::repository::{Progress, Repositories, unknown};

/// How many chunks wait for a slow reader.
const CHUNKS_WAITING: usize = 4;
/// How long a local repository may take to be read.
const READ_WITHIN: Duration = Duration::from_secs(4 * 3600);

/// An archive that is on its way.
#[derive(Debug)]
pub struct Export {
    /// How many bytes come in all.
    pub total_bytes: u64,
    /// The archive, in order; an error ends it, and then it is not whole.
    pub chunks: Chunks,
}

impl Repositories {
    /// The newest snapshot as an archive. It is held until the last byte was taken, or nobody takes them any more.
    ///
    /// # Errors
    /// When there is no such repository, it never filled, or its files cannot be read.
    pub async fn export(&self, url: &RepositoryUrl) -> Result<Export, Reason> {
        self.shared.recovered().await?;
        let entry = self.shared.get(url).ok_or_else(|| unknown(url))?;
        let place = self.shared.transfers.place(url.key())?;
        let pin = entry.current().ok_or_else(|| {
            let message = format!("{url} has nothing to export yet: `stoker repo refresh` fills it");
            Reason::new(Code::RepositoryEmpty, url.key(), message)
        })?;
        let confirmed_at = entry.state().meta.confirmed_at;
        let (held, named) = (pin.clone(), entry.url.clone());
        let outgoing = blocking(url.key(), move || Outgoing::survey(held.path(), &named, confirmed_at)).await?;
        let outgoing = outgoing.map_err(|error| io_reason(url.key(), "reading a snapshot", &error))?;
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
        let total_bytes = outgoing.total();
        self.shared.tasks.spawn_blocking(move || {
            let _held = (pin, place);
            send(&outgoing, sender);
        });
        Ok(Export { total_bytes, chunks })
    }
}

fn send(outgoing: &Outgoing, chunks: mpsc::Sender<io::Result<Vec<u8>>>) {
    if let Err(error) = outgoing.write(ChunkWriter::new(chunks.clone())) {
        // A reader that went is nobody to tell.
        let _ = chunks.blocking_send(Err(error));
    }
}

/// An archive of any repository of this machine, as [`Repositories::export`] would make one of its mirror; for `import`
/// by somebody who has the repository before them. It is read through git's own transport into `scratch`, as an upstream
/// would be: nothing that a build wrote there is run or believed.
///
/// # Errors
/// When it is no repository, not whole, or of another user where git is too old to be safe with that.
pub async fn archive_of_path(
    git: &Git,
    path: &Path,
    url: &RepositoryUrl,
    scratch: &Path,
    progress: watch::Sender<Progress>,
) -> Result<Export, Reason> {
    let local: RepositoryUrl = format!("file://{}", path.display())
        .parse()
        .map_err(|error| Reason::new(Code::UpstreamNotFound, path.display().to_string(), format!("{error}")))?;
    let subject = local.key().to_owned();
    let (looked, own, dir) = (local.clone(), git.clone(), scratch.to_owned());
    let safe = blocking(&subject, move || inspect(&looked, &own, &dir)).await??;
    let copy = scratch.join("copy.git");
    let shown = copy.to_string_lossy().into_owned();
    let args = ["clone", "--bare", "--no-local", "--reject-shallow", "--template=", "--progress", "--"];
    let command = git.command(args).args([local.fetch_url(), &shown]).protocols(["file"]).progress(progress);
    let command = command.global_config(safe.as_ref().map(|safe| safe.path().to_owned())).time_limit(READ_WITHIN);
    command.run().await.map_err(|error| local_reason(&error, &subject, &format!("reading {local}")))?;
    archive(copy, url).await.map_err(|error| io_reason(&subject, "reading a repository", &error))
}

async fn archive(dir: PathBuf, url: &RepositoryUrl) -> io::Result<Export> {
    let url = url.clone();
    let outgoing = tokio::task::spawn_blocking(move || Outgoing::survey(&dir, &url, None));
    let outgoing = outgoing.await.map_err(io::Error::other)??;
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
    let total_bytes = outgoing.total();
    tokio::task::spawn_blocking(move || send(&outgoing, sender));
    Ok(Export { total_bytes, chunks })
}
