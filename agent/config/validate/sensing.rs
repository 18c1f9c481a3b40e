//! What is watched beside the pools.

use std::net::IpAddr;
use std::time::Duration;

use hyper::Uri;

use super::{pools, text, within};
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::sensing::{
    ControlPlane, ControlPlaneSection, FilesystemSection, Readyz, WatchedFilesystem, by_default,
};

/// The most filesystems that are watched.
const FILESYSTEMS_MAX: usize = 16;
/// The most patterns of control groups.
const CGROUPS_MAX: usize = 16;

/// The filesystems of the file, or those of every node where it says nothing.
pub(super) fn filesystems(
    sections: Option<&[FilesystemSection]>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<WatchedFilesystem> {
    let Some(sections) = sections else { return by_default() };
    if sections.len() > FILESYSTEMS_MAX {
        let message = format!("has {} filesystems", sections.len());
        problems.add(place, Fault::new(message, format!("declare at most {FILESYSTEMS_MAX}")));
        return Vec::new();
    }
    let mut watched: Vec<WatchedFilesystem> = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let path = problems.take(&here.field("path"), text::absolute(&section.path));
        if watched.iter().any(|other| other.path == path) {
            let message = format!("{} is there twice", shown(&section.path));
            problems.add(&here.field("path"), Fault::new(message, "keep one of them"));
        }
        let floor = pools::floor(&section.floor, &here.field("floor"), true, problems);
        watched.push(WatchedFilesystem { path, floor, by_default: false });
    }
    watched
}

/// The control plane's section.
pub(super) fn control_plane(section: &ControlPlaneSection, place: &Place<'_>, problems: &mut Problems) -> ControlPlane {
    let cgroups = place.field("cgroups");
    if section.cgroups.len() > CGROUPS_MAX {
        let message = format!("has {} control groups", section.cgroups.len());
        problems.add(&cgroups, Fault::new(message, format!("name at most {CGROUPS_MAX}")));
    }
    let paths = section.cgroups.iter().take(CGROUPS_MAX).enumerate();
    let latency = within(&section.latency, Duration::from_millis(10), Duration::from_secs(60), "10ms to 1m");
    ControlPlane {
        readyz: readyz(section, place, problems),
        cgroups: paths.map(|(index, path)| problems.take(&cgroups.entry(index), text::absolute(path))).collect(),
        latency: problems.take(&place.field("latency"), latency),
    }
}

fn readyz(section: &ControlPlaneSection, place: &Place<'_>, problems: &mut Problems) -> Option<Readyz> {
    let written = section.readyz.as_deref()?;
    let ca = section.ca.as_deref().map(|path| problems.take(&place.field("ca"), text::absolute(path)));
    let fault = match written.parse::<Uri>() {
        Ok(url) if url.scheme_str() == Some("https") && url.host().is_some() => {
            if ca.is_none() {
                let remedy = "name its certificates, as `/etc/kubernetes/pki/ca.crt`";
                problems.add(&place.field("ca"), Fault::new("is not set, and `readyz` is https", remedy));
            }
            return Some(Readyz { url, ca });
        }
        Ok(url) if url.scheme_str() == Some("http") && url.host().is_some_and(is_loopback) => {
            return Some(Readyz { url, ca: None });
        }
        Ok(url) if url.scheme_str() == Some("http") => Fault::new(
            format!("{} goes over a network in the clear", shown(written)),
            "write https, or a loopback address",
        ),
        _ => Fault::new(format!("{} is not a URL", shown(written)), "write it as `https://127.0.0.1:6443/readyz`"),
    };
    problems.add(&place.field("readyz"), fault);
    None
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
