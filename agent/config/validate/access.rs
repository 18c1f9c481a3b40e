//! Who may ask what.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::retention::Glob;

use super::{count, text, within};
use crate::config::access::{
    Access, AccessRule, AccessRuleSection, AccessSection, Rate, RoleWord, TenantsOf, TokenRules, TokensSection,
};
use crate::config::problem::{Fault, Place, Problems, shown};

/// The most rules.
const RULES_MAX: usize = 256;
/// The most patterns of one list.
const PATTERNS_MAX: usize = 64;
const PER_SECOND_MAX: usize = 100_000;
const BURST_MAX: usize = 1_000_000;
/// The most bytes of an audience, and of an issuer.
const CLAIM_BYTES_MAX: usize = 512;

/// The section of the file.
pub(super) fn validate(section: &AccessSection, place: &Place<'_>, problems: &mut Problems) -> Access {
    let rate = place.field("rate");
    let mut amount = |name: &str, value: u64, max: usize| {
        let value = problems.take(&rate.field(name), count(value, max));
        u32::try_from(value).unwrap_or(u32::MAX)
    };
    let per_second = amount("perSecond", section.rate.per_second, PER_SECOND_MAX);
    let burst = amount("burst", section.rate.burst, BURST_MAX);
    Access {
        rules: Arc::new(rules(&section.rules, &place.field("rules"), problems)),
        tokens: tokens(&section.tokens, &place.field("tokens"), problems),
        rate: Rate { per_second, burst },
    }
}

fn rules(sections: &[AccessRuleSection], place: &Place<'_>, problems: &mut Problems) -> Vec<AccessRule> {
    if sections.len() > RULES_MAX {
        let message = format!("has {} rules", sections.len());
        problems.add(place, Fault::new(message, format!("declare at most {RULES_MAX}")));
        return Vec::new();
    }
    sections.iter().enumerate().map(|(index, section)| rule(section, &place.entry(index), problems)).collect()
}

fn rule(section: &AccessRuleSection, place: &Place<'_>, problems: &mut Problems) -> AccessRule {
    let names_somebody = [&section.users, &section.groups, &section.service_accounts, &section.namespaces]
        .into_iter()
        .any(|list| !list.is_empty());
    if !names_somebody && section.uids.is_empty() {
        let remedy = "write `users`, `groups`, `serviceAccounts`, `namespaces` or `uids`";
        problems.add(place, Fault::new("names nobody", remedy));
    }
    let named = &section.service_accounts;
    if let Some((index, wrong)) = named.iter().enumerate().find(|(_, name)| name.split('/').count() != 2) {
        let message = format!("{} is not a service account", shown(wrong));
        let at = place.field("serviceAccounts").entry(index);
        problems.add(&at, Fault::new(message, "write it as `namespace/name`; both may be patterns, as `ci-*/*`"));
    }
    if section.uids.len() > PATTERNS_MAX {
        let message = format!("has {} entries", section.uids.len());
        problems.add(&place.field("uids"), Fault::new(message, format!("write at most {PATTERNS_MAX}")));
    }
    let mut globs = |list: &[String], name: &str| patterns(list, &place.field(name), problems);
    AccessRule {
        role: section.role,
        users: globs(&section.users, "users"),
        groups: globs(&section.groups, "groups"),
        service_accounts: globs(&section.service_accounts, "serviceAccounts"),
        namespaces: globs(&section.namespaces, "namespaces"),
        uids: section.uids.clone(),
        tenants: match &section.tenants {
            None if section.role == RoleWord::Operator => TenantsOf::All,
            None => TenantsOf::Namespace,
            Some(all) if all.iter().any(|pattern| pattern == "*") => TenantsOf::All,
            Some(named) => TenantsOf::Named(globs(named, "tenants")),
        },
        trust: match &section.trust {
            None => AccessRuleSection::trust_default(section.role),
            Some(all) if all.iter().any(|class| class == "*") => None,
            Some(named) => Some(text::classes(named, &place.field("trust"), problems)),
        },
    }
}

fn patterns(list: &[String], place: &Place<'_>, problems: &mut Problems) -> Vec<Glob> {
    if list.len() > PATTERNS_MAX {
        let message = format!("has {} entries", list.len());
        problems.add(place, Fault::new(message, format!("write at most {PATTERNS_MAX}")));
        return Vec::new();
    }
    let read = list.iter().enumerate().filter_map(|(index, written)| match written.parse() {
        Ok(glob) => Some(glob),
        Err(why) => {
            let message = format!("{} {why}", shown(written));
            problems.add(&place.entry(index), Fault::new(message, "write a name, or a pattern as `ci-*`"));
            None
        }
    });
    read.collect()
}

fn tokens(section: &TokensSection, place: &Place<'_>, problems: &mut Problems) -> TokenRules {
    let claim = |text: &str| match text.len() {
        1..=CLAIM_BYTES_MAX if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => {
            let message = format!("{} is none", shown(text));
            Err(Fault::new(message, format!("write 1 to {CLAIM_BYTES_MAX} bytes of visible characters")))
        }
    };
    let cache = within(&section.cache, Duration::from_secs(1), Duration::from_secs(600), "1s to 10m");
    TokenRules {
        audience: problems.take(&place.field("audience"), claim(&section.audience)),
        issuer: section.issuer.as_deref().map(|issuer| problems.take(&place.field("issuer"), claim(issuer))),
        cache: problems.take(&place.field("cache"), cache),
    }
}
