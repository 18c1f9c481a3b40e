//! A folder of an output as a tar stream, made while it is sent.
//!
//! Each name is opened in the folder that it was read from, one component at a time. Links go in as links; what is no
//! file, folder or link stays out. A file that is cut while it is read is filled up with zeros, for its length was said.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use rustix::fs::{Dir, FileType, Statx};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Asked, Face};
use crate::node::Opened;
use crate::node::tree::{kind, open_at, stat};
use crate::workspace::outputs::{Output, name};

/// How many folders of one tree are open at once: what is deeper cannot be sent.
const DEPTH_MAX: usize = 100;
/// How much is sent at a time.
const PART_BYTES: usize = 128 << 10;

pub(super) fn response(
    face: &Face,
    asked: &Asked,
    output: &Output,
    folder: OwnedFd,
    place: OwnedSemaphorePermit,
) -> Response {
    let body = match asked.head {
        true => Body::empty(),
        false => Body::from_stream(ReceiverStream::new(stream(face, folder, place))),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    let told = format!("attachment; filename=\"{}.tar\"", name::escape(output.id.as_ref()));
    if let Ok(told) = HeaderValue::from_str(&told) {
        headers.insert(header::CONTENT_DISPOSITION, told);
    }
    response
}

fn stream(face: &Face, folder: OwnedFd, place: OwnedSemaphorePermit) -> mpsc::Receiver<io::Result<Bytes>> {
    let (parts, stream) = mpsc::channel(2);
    let (is_ready, cancel) = (face.rooms.workspaces.outputs().is_ready(), face.rooms.cancel.clone());
    face.rooms.tasks.spawn_blocking(move || {
        let _place = place;
        let goes_on = || !cancel.is_cancelled() && is_ready();
        let mut sender = Sender { parts, part: Vec::with_capacity(PART_BYTES), goes_on: &goes_on };
        let sent = write(folder, &mut sender).and_then(|()| sender.flush());
        if let Err(error) = sent
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::warn!(%error, "an output could not be sent whole");
            // An answer that breaks is better than an archive that looks whole.
            let _ = sender.parts.blocking_send(Err(error));
        }
    });
    stream
}

/// Sends what is written, in parts.
struct Sender<'a> {
    parts: mpsc::Sender<io::Result<Bytes>>,
    part: Vec<u8>,
    /// Asked before each part, so also within a large file: what is open on a pool keeps it from being unmounted.
    goes_on: &'a dyn Fn() -> bool,
}

impl Sender<'_> {
    fn check(&self) -> io::Result<()> {
        if (self.goes_on)() { Ok(()) } else { Err(io::Error::other("the pool is being let go of")) }
    }
}

impl Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check()?;
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        let sent = part.is_empty() || self.parts.blocking_send(Ok(part.into())).is_ok();
        if sent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }
}

fn write(top: OwnedFd, to: &mut Sender<'_>) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    let mut open = vec![(Dir::new(top)?, PathBuf::new())];
    while let Some((folder, path)) = open.last_mut() {
        archive.get_ref().check()?;
        let Some(entry) = folder.read().transpose()? else {
            open.pop();
            continue;
        };
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let path = path.join(name);
        let here = folder.fd()?;
        let seen = match stat(here, name) {
            Err(rustix::io::Errno::NOENT) => continue, // it went meanwhile
            seen => seen?,
        };
        // A pipe is not even looked at closer.
        if !matches!(kind(&seen), FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            continue;
        }
        match open_at(here, Path::new(name)) {
            Ok(Opened::File(file, bytes)) => {
                let content = file.take(bytes).chain(io::repeat(0)).take(bytes);
                archive.append_data(&mut head(&seen, tar::EntryType::Regular, bytes), &path, content)?;
            }
            Ok(Opened::Link(target)) => {
                archive.append_link(&mut head(&seen, tar::EntryType::Symlink, 0), &path, &target)?;
            }
            Ok(Opened::Directory(below)) => {
                archive.append_data(&mut head(&seen, tar::EntryType::Directory, 0), &path, io::empty())?;
                if open.len() >= DEPTH_MAX {
                    return Err(io::Error::other(format!("it is nested more than {DEPTH_MAX} deep")));
                }
                open.push((Dir::new(below)?, path));
            }
            Ok(Opened::Other) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    archive.finish()
}

fn head(seen: &Statx, kind: tar::EntryType, bytes: u64) -> tar::Header {
    let mut head = tar::Header::new_gnu();
    head.set_entry_type(kind);
    head.set_size(bytes);
    // Nobody gets a set-id program by unpacking.
    head.set_mode(u32::from(seen.stx_mode) & 0o777);
    head.set_uid(seen.stx_uid.into());
    head.set_gid(seen.stx_gid.into());
    head.set_mtime(u64::try_from(seen.stx_mtime.tv_sec).unwrap_or(0));
    head
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;
    use std::fs::File;

    use super::*;

    #[test]
    fn a_large_file_is_let_go_of_within() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("large")).unwrap().set_len(100 << 20).unwrap();
        let (parts, mut sent) = mpsc::channel(100);
        let asked = Cell::new(0);
        let goes_on = || asked.replace(asked.get() + 1) < 10;
        let mut sender = Sender { parts, part: Vec::new(), goes_on: &goes_on };
        let error = write(File::open(dir.path()).unwrap().into(), &mut sender).unwrap_err();
        assert!(error.to_string().contains("let go of"), "{error}");
        assert!(sent.try_recv().is_ok() && sent.len() < 10, "{}", sent.len());
    }
}
