//! Outputs, caches of tenants, orphans.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::quantity::Span;
use stoker_core::retention::{Glob, Rule, Rules};

use super::{limit, within};
use crate::config::Keeping;
use crate::config::file::File;
use crate::config::keeping::OutputRuleSection;
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::units::Time;

const SECOND: Duration = Duration::from_secs(1);
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 3600);
/// The most rules.
const RULES_MAX: usize = 256;

pub(super) fn validate(file: &File, root: &Place<'_>, problems: &mut Problems) -> Keeping {
    let (outputs, caches) = (root.field("outputs"), root.field("caches"));
    let keep = span(&file.outputs.retention, &outputs.field("retention"), problems);
    let rules = rules(&file.outputs.rules, &outputs.field("rules"), problems);
    let mut bytes = |name: &str, given: &Option<crate::config::units::Bytes>| {
        let given = given.as_ref()?;
        Some(problems.take(&caches.field(name), limit(given.bytes())))
    };
    let caches_limit = bytes("limit", &file.caches.limit);
    let tenant_limit = bytes("tenantLimit", &file.caches.tenant_limit);
    let orphan_grace = span(&file.orphans.grace, &root.field("orphans").field("grace"), problems);
    Keeping { outputs: Arc::new(Rules { keep, rules }), caches_limit, tenant_limit, orphan_grace }
}

fn span(time: &Time, place: &Place<'_>, problems: &mut Problems) -> Span {
    let duration = problems.take(place, within(time, SECOND, TEN_YEARS, "1s to 3650d"));
    Span(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

fn rules(sections: &[OutputRuleSection], place: &Place<'_>, problems: &mut Problems) -> Vec<Rule> {
    if sections.len() > RULES_MAX {
        let message = format!("has {} rules", sections.len());
        problems.add(place, Fault::new(message, format!("declare at most {RULES_MAX}")));
        return Vec::new();
    }
    let rules = sections.iter().enumerate().map(|(index, section)| {
        let here = place.entry(index);
        let mut glob = |name: &str, given: &Option<String>| -> Option<Glob> {
            let written = given.as_ref()?;
            match written.parse() {
                Ok(glob) => Some(glob),
                Err(why) => {
                    let remedy = "write a pattern, as `release/*`, or remove it for any";
                    problems.add(&here.field(name), Fault::new(format!("{} {why}", shown(written)), remedy));
                    None
                }
            }
        };
        let (tenant, project) = (glob("tenant", &section.tenant), glob("project", &section.project));
        let branch = glob("branch", &section.branch);
        if [&section.tenant, &section.project, &section.branch].into_iter().all(Option::is_none) {
            let remedy = "write `tenant`, `project` or `branch`, or set `outputs.retention`, which holds for all";
            problems.add(&here, Fault::new("names no line of builds", remedy));
        }
        Rule { tenant, project, branch, keep: span(&section.keep, &here.field("keep"), problems) }
    });
    rules.collect()
}
