//! Seeds: exports that stand unpacked on the node, a golden image's, say.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use stoker_core::source::RepositoryUrl;
use tokio_util::sync::CancellationToken;

use super::archive::{Incoming, MANIFEST, Manifest};
use crate::repository::Shared;
use crate::repository::entry::Entry;
use crate::repository::fetch::blocking;

/// How many entries of a directory of seeds are looked at.
const SEEDS_MAX: usize = 4096;
/// The largest manifest of a seed.
const SEED_MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// Imports the seed of a repository that was never filled, where there is one. One that is not good is left alone.
pub(in crate::repository) async fn plant(shared: &Arc<Shared>, entry: &Arc<Entry>, cancel: &CancellationToken) {
    let seeds = shared.config().seeds.clone();
    let empty = {
        let state = entry.state();
        state.current.is_none() && state.meta.store.is_none()
    };
    if seeds.is_empty() || !empty || cancel.is_cancelled() {
        return;
    }
    let url = entry.url.clone();
    let Ok(Some((manifest, dir))) = blocking(entry.url.key(), move || find_seed(&seeds, &url)).await else { return };
    tracing::info!(repository = entry.url.key(), seed = %dir.display(), "a seed is there: it is imported first");
    let shown = dir.display().to_string();
    if let Err(reason) = shared.bring_in(entry, Incoming::Unpacked(manifest, dir), false).await {
        tracing::warn!(
            repository = entry.url.key(),
            seed = shown,
            reason = reason.code.word(),
            "the seed is not used: {}",
            reason.message
        );
    }
    shared.tick();
}

/// The first seed that says it is of this repository.
fn find_seed(dirs: &[PathBuf], url: &RepositoryUrl) -> Option<(Manifest, PathBuf)> {
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten().take(SEEDS_MAX));
    let mut places: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    places.sort();
    places.into_iter().find_map(|place| {
        let file = place.join(MANIFEST);
        let sensible = |meta: &fs::Metadata| meta.is_file() && meta.len() <= SEED_MANIFEST_BYTES_MAX;
        fs::metadata(&file).ok().filter(sensible)?;
        let manifest = Manifest::parse(&fs::read(file).ok()?).ok()?;
        (manifest.url == *url).then_some((manifest, place))
    })
}
