//! Bounds, the queue, and what tenants may have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stoker_core::admission::{Tenant, Tenants};
use stoker_core::identity::check_name;

use super::{count, within};
use crate::config::file::{AdmissionSection, ShareSection, TimeBudgetWord};
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::{Admission, TimeBudget};

/// The most tenants that are named.
const TENANTS_MAX: usize = 1024;
/// The most live leases.
const LEASES_MAX: usize = 4096;
/// The most tickets.
const TICKETS_MAX: usize = 65_536;
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn validate(section: &AdmissionSection, place: &Place<'_>, problems: &mut Problems) -> Admission {
    let pass_for = within(&section.pass_for, Duration::ZERO, DAY, "0s to 24h");
    let age_after = within(&section.age_after, Duration::from_secs(60), DAY, "1m to 24h");
    Admission {
        leases_max: problems.take(&place.field("leasesMax"), count(section.leases_max, LEASES_MAX)),
        tickets_max: problems.take(&place.field("ticketsMax"), count(section.tickets_max, TICKETS_MAX)),
        time_budget: match section.time_budget {
            TimeBudgetWord::End => TimeBudget::End,
            TimeBudgetWord::Report => TimeBudget::Report,
        },
        pass_for: problems.take(&place.field("passFor"), pass_for),
        age_after: problems.take(&place.field("ageAfter"), age_after),
        tenants: Arc::new(Tenants {
            named: named(section, &place.field("tenants"), problems),
            other: tenant(&section.other_tenants, &place.field("otherTenants"), problems),
        }),
    }
}

fn named(section: &AdmissionSection, place: &Place<'_>, problems: &mut Problems) -> BTreeMap<String, Tenant> {
    let mut all = BTreeMap::new();
    if section.tenants.len() > TENANTS_MAX {
        let message = format!("has {} tenants", section.tenants.len());
        problems.add(place, Fault::new(message, format!("name at most {TENANTS_MAX}, and the rest in otherTenants")));
        return all;
    }
    for (index, one) in section.tenants.iter().enumerate() {
        let here = place.entry(index);
        if let Err(why) = check_name(&one.name) {
            problems
                .add(&here.field("name"), Fault::new(why.to_string(), "write the tenant's name as its requests do"));
        }
        let known = all.insert(one.name.clone(), tenant(&one.share(), &here, problems));
        if known.is_some() {
            let message = format!("{} is named twice", shown(&one.name));
            problems.add(&here.field("name"), Fault::new(message, "name each tenant once"));
        }
    }
    all
}

fn tenant(share: &ShareSection, place: &Place<'_>, problems: &mut Problems) -> Tenant {
    let mut bound = |name: &str, value: Option<u64>, max: usize| {
        value.map(|value| problems.take(&place.field(name), count(value, max)))
    };
    let (leases_max, tickets_max) =
        (bound("leasesMax", share.leases_max, LEASES_MAX), bound("ticketsMax", share.tickets_max, TICKETS_MAX));
    let weight = bound("weight", Some(share.weight), 1000).unwrap_or(1);
    let cpu = share.cpu_max.as_ref().map(|cores| cores.millis().and_then(some));
    let memory = share.memory_max.as_ref().map(|bytes| bytes.bytes().and_then(some));
    Tenant {
        weight: u32::try_from(weight).unwrap_or(1),
        leases_max,
        cpu_millis_max: cpu.map(|cpu| problems.take(&place.field("cpuMax"), cpu)),
        memory_bytes_max: memory.map(|memory| problems.take(&place.field("memoryMax"), memory)),
        tickets_max,
    }
}

/// A cap of nothing would let nothing start.
fn some(amount: u64) -> Result<u64, Fault> {
    match amount {
        0 => Err(Fault::new("is 0, so none of its builds could start", "write more than 0, or leave it out")),
        amount => Ok(amount),
    }
}
