//! Names, paths and host patterns: what they may be made of.

use std::path::PathBuf;

use crate::config::problem::{Fault, Place, Problems, shown};

/// The most bytes of a path. Below the kernel's PATH_MAX (4096), so that what is made below a pool has room.
const PATH_BYTES_MAX: usize = 1024;
/// The most bytes of one component of a path: NAME_MAX.
const COMPONENT_BYTES_MAX: usize = 255;

/// The most trust classes in one list.
const CLASSES_MAX: usize = 64;

/// Is there a digit, and nothing but digits?
pub(crate) fn only_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Names of pools and trust classes.
pub(super) fn name(text: &str) -> Result<String, Fault> {
    let remedy = "write at most 63 of a-z, 0-9 and the hyphen";
    let character = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match text {
        "" => Err(Fault::new("is empty", remedy)),
        _ if text.len() > 63 => Err(Fault::new(format!("has {} characters", text.len()), remedy)),
        _ if !text.bytes().all(character) => Err(Fault::new(format!("{} is not a name", shown(text)), remedy)),
        _ => Ok(text.to_owned()),
    }
}

/// Trust classes, so many that a list of them is still read by somebody.
pub(super) fn classes(names: &[String], place: &Place<'_>, problems: &mut Problems) -> Vec<String> {
    if names.len() > CLASSES_MAX {
        let message = format!("has {} classes", names.len());
        problems.add(place, Fault::new(message, format!("write at most {CLASSES_MAX}")));
        return Vec::new();
    }
    names.iter().enumerate().map(|(index, class)| problems.take(&place.entry(index), name(class))).collect()
}

/// Names of nodes: host names.
pub(super) fn node_name(text: &str) -> Result<String, Fault> {
    let character = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if (1..=253).contains(&text.len()) && text.bytes().all(character) {
        return Ok(text.to_owned());
    }
    let remedy = "write a host name: at most 253 letters, digits, hyphens and dots";
    Err(Fault::new(format!("{} is not a node's name", shown(text)), remedy))
}

/// A label's key and value, as far as it can be told without a cluster.
pub(super) fn label(key: &str, value: &str) -> Result<(), Fault> {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte));
    if (1..=317).contains(&key.len()) && plain(key) && value.len() <= 63 && plain(value) && !value.contains('/') {
        return Ok(());
    }
    let message = format!("{} with the value {} is not a label", shown(key), shown(value));
    Err(Fault::new(message, "write a key as `example.org/disk` and a value of at most 63 letters, digits, -, _ and ."))
}

/// An absolute path without `.`, `..` and doubled slashes.
pub(super) fn absolute(text: &str) -> Result<PathBuf, Fault> {
    let Some(rest) = text.strip_prefix('/') else {
        let message = format!("{} is not an absolute path", shown(text));
        return Err(Fault::new(message, "write a path that begins with /"));
    };
    Ok(PathBuf::from("/").join(components(rest, text)?.join("/")))
}

/// A path below another, without `.`, `..` and doubled slashes.
pub(super) fn relative(text: &str) -> Result<PathBuf, Fault> {
    if text.starts_with('/') {
        let message = format!("{} is an absolute path", shown(text));
        return Err(Fault::new(message, "write a path relative to the pool, without the first /"));
    }
    let components = components(text, text)?;
    if components.is_empty() {
        return Err(Fault::new(format!("{} is the pool itself", shown(text)), "name a directory in the pool"));
    }
    Ok(PathBuf::from(components.join("/")))
}

fn components<'a>(text: &'a str, written: &str) -> Result<Vec<&'a str>, Fault> {
    let wrong = |why: &str, remedy: &str| Err(Fault::new(format!("{} {why}", shown(written)), remedy));
    if written.len() > PATH_BYTES_MAX {
        return wrong("is too long", "write a path of at most 1024 bytes");
    }
    if written.chars().any(char::is_control) {
        return wrong("has control characters", "write a path of visible characters");
    }
    let components: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if components.contains(&"..") {
        return wrong("has a `..`", "write the path that is meant, without `..`");
    }
    if components.iter().any(|part| part.len() > COMPONENT_BYTES_MAX) {
        return wrong("has a name of more than 255 bytes", "write shorter names");
    }
    Ok(components)
}

/// A host pattern: a name, `*.` and a name, an address, or `*`. Gives it in lower case.
pub(super) fn host_pattern(text: &str) -> Result<String, Fault> {
    let wrong = |remedy: &str| Err(Fault::new(format!("{} is not a host pattern", shown(text)), remedy));
    if text.contains("://") || (text.contains('/') && !text.starts_with('/')) {
        return wrong("write the host alone, without scheme and path, as `github.com`");
    }
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if text == "*" || address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Ok(text.to_ascii_lowercase());
    }
    if text.rsplit_once(':').is_some_and(|(host, port)| !host.contains(':') && only_digits(port)) {
        return wrong("write the host without its port: a pattern is for all ports");
    }
    let host = text.strip_prefix("*.").unwrap_or(text);
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    if text.len() > 253 || !host.split('.').all(label) {
        return wrong("write a host as `github.com`, all below a name as `*.example.org`, an address, or `*`");
    }
    Ok(text.to_ascii_lowercase())
}
