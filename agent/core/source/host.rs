//! Hosts in URLs, and which of them are this machine.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::url::{UrlError, brief};

/// A host and its port.
pub(super) struct Host {
    /// In lower case, addresses in their usual form and without brackets.
    pub(super) name: String,
    pub(super) port: Option<u16>,
}

impl Host {
    pub(super) fn parse(text: &str) -> Result<Self, UrlError> {
        let wrong = || UrlError::Host(brief(text));
        if let Some(inner) = text.strip_prefix('[') {
            let (address, port) = inner.split_once(']').ok_or_else(wrong)?;
            let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
            let port = match port {
                "" => None,
                port => Some(parse_port(port.strip_prefix(':').ok_or_else(wrong)?)?),
            };
            return Ok(Self { name: address.to_string(), port });
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(parse_port(port)?)),
            None => (text, None),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if let Some(address) = numeric(&name) {
            return Ok(Self { name: address.to_string(), port });
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(wrong());
        }
        Ok(Self { name, port })
    }
}

fn parse_port(text: &str) -> Result<u16, UrlError> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(UrlError::Port(brief(text))),
    }
}

/// An IPv4 address in any spelling of inet_aton(3), for that is what resolvers take: `127.1`, `0x7f000001`,
/// `2130706433`, `0177.0.0.1`.
fn numeric(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u64> = text
        .split('.')
        .map(|part| match part.strip_prefix("0x") {
            Some("") => Some(0),
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None if part.len() > 1 && part.starts_with('0') => u64::from_str_radix(part, 8).ok(),
            None => part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten(),
        })
        .collect::<Option<_>>()?;
    let (last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|part| *part > 255) {
        return None;
    }
    let high = first.iter().enumerate().fold(0, |sum: u64, (i, part)| {
        sum | part.checked_shl(24_u32.saturating_sub(u32::try_from(i).unwrap_or(3).saturating_mul(8))).unwrap_or(0)
    });
    let room = u64::MAX >> 32 >> u32::try_from(first.len()).unwrap_or(3).saturating_mul(8);
    if *last > room {
        return None;
    }
    u32::try_from(high | last).ok().map(Ipv4Addr::from)
}

const fn is_local_v4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    address.is_loopback() || address.is_link_local() || first == 0
}

/// Whether the host, as it is written, is this machine or one that only this link reaches: a name in lower case, or an
/// address in its usual form and without brackets.
#[must_use]
pub fn is_local(host: &str) -> bool {
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match host.parse() {
        Ok(IpAddr::V4(v4)) => is_local_v4(v4),
        Ok(IpAddr::V6(v6)) => {
            let [.., high, low] = v6.segments();
            let embedded = v6.segments().iter().take(5).all(|part| *part == 0)
                && matches!(v6.segments().get(5), Some(0 | 0xffff))
                && is_local_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
            v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local() || embedded
        }
        Err(_) => false,
    }
}
