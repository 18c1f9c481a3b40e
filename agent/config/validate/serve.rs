//! Git over HTTP: who is served, and the bounds.

use std::time::Duration;

use super::{count, text, within};
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::serve::{AnonymousWord, Serve, ServeSection};

/// The most requests at a time.
const CLIENTS_MAX: usize = 4096;
/// The most bytes of the URL that builds get.
const URL_BYTES_MAX: usize = 512;

/// The section of the file.
pub(super) fn validate(section: &ServeSection, place: &Place<'_>, problems: &mut Problems) -> Serve {
    let patience = within(&section.patience, Duration::from_secs(1), Duration::from_secs(3600), "1s to 1h");
    Serve {
        trust: text::classes(&section.trust, &place.field("trust"), problems),
        loopback_only: section.anonymous == AnonymousWord::Loopback,
        clients: problems.take(&place.field("clients"), count(section.clients, CLIENTS_MAX)),
        patience: problems.take(&place.field("patience"), patience),
        spool: problems.take(&place.field("spool"), section.spool.bytes()),
        url: section.url.as_deref().map(|written| problems.take(&place.field("url"), url(written))),
    }
}

/// It goes into the configuration of every build's git: a plain prefix that nothing can be hidden in.
fn url(written: &str) -> Result<String, Fault> {
    let remedy = "write it as `http://stoker.builds:9418/git/`: no credentials, no query";
    let rest = written.strip_prefix("http://").or_else(|| written.strip_prefix("https://"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:[]".contains(&byte);
    match rest {
        Some(rest) if !rest.starts_with('/') && !rest.is_empty() && rest.bytes().all(plain) => {}
        _ => return Err(Fault::new(format!("{} is not a plain http or https URL", shown(written)), remedy)),
    }
    if written.len() > URL_BYTES_MAX {
        return Err(Fault::new(format!("has {} bytes", written.len()), format!("write at most {URL_BYTES_MAX}")));
    }
    Ok(format!("{}/", written.trim_end_matches('/')))
}
