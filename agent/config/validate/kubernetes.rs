//! The cluster.

use std::time::Duration;

use super::within;
use crate::config::kubernetes::{Kubernetes, KubernetesSection, Taint, TaintSection};
use crate::config::problem::{Fault, Place, Problems};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const LABELS_MAX: usize = 256;
const TOLERATED_MAX: usize = 64;
/// A prefix, a slash, a name.
const KEY_BYTES_MAX: usize = 253 + 1 + 63;
const NAMESPACE_BYTES_MAX: usize = 63;

pub(super) fn validate(section: &KubernetesSection, place: &Place<'_>, problems: &mut Problems) -> Kubernetes {
    let at = place.field("tolerates");
    if section.tolerates.len() > TOLERATED_MAX {
        let message = format!("has {} keys", section.tolerates.len());
        problems.add(&at, Fault::new(message, format!("list at most {TOLERATED_MAX}")));
    }
    for (index, key) in section.tolerates.iter().take(TOLERATED_MAX).enumerate() {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(plain) {
            let fault = Fault::new(format!("{key:?} is no key of a taint"), "write it as in the node, as `dedicated`");
            problems.add(&at.entry(index), fault);
        }
    }
    if let Some(namespace) = &section.namespace {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if namespace.is_empty() || namespace.len() > NAMESPACE_BYTES_MAX || !namespace.bytes().all(plain) {
            let fault = Fault::new(format!("{namespace:?} is no namespace"), "write its name, as `stoker`");
            problems.add(&place.field("namespace"), fault);
        }
    }
    let labels = usize::try_from(section.labels).ok().filter(|labels| *labels <= LABELS_MAX);
    let labels = labels.ok_or_else(|| Fault::new(format!("is {}", section.labels), "write 0 to 256"));
    let away = within(&section.away_after, SECOND, HOUR, "1s to 1h");
    let heartbeat = within(&section.heartbeat, SECOND, HOUR / 6, "1s to 10m");
    let rebind = within(&section.rebind_within, Duration::ZERO, HOUR, "0s to 1h");
    Kubernetes {
        watch: section.watch,
        away_after: problems.take(&place.field("awayAfter"), away),
        heartbeat: problems.take(&place.field("heartbeat"), heartbeat),
        namespace: section.namespace.clone(),
        tolerates: section.tolerates.clone(),
        labels: problems.take(&place.field("labels"), labels),
        taint: section.taint.as_ref().map(|section| taint(section, &place.field("taint"), problems)),
        unlimited: section.unlimited,
        rebind_within: problems.take(&place.field("rebindWithin"), rebind),
    }
}

fn taint(section: &TaintSection, place: &Place<'_>, problems: &mut Problems) -> Taint {
    let part = |time| within(time, Duration::ZERO, HOUR, "0s to 1h");
    Taint {
        after: problems.take(&place.field("after"), part(&section.after)),
        until: problems.take(&place.field("until"), part(&section.until)),
    }
}
