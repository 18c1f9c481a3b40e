//! How many files it may open: a connection for each agent is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Takes as many as it may have. Container runtimes start a process with 1,024 of them, whatever it may ask for.
pub(super) fn take_all() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most));
    match raised {
        Ok(most) => tracing::debug!(most, "files that may be open"),
        Err(error) => tracing::warn!(%error, "no more files may be open than at first: some agents may not be heard"),
    }
}
