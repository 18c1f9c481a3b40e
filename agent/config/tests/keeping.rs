//! How long things are kept.

use super::refused::{HEAD, POOL, Row, refused};
use super::*;

#[test]
fn times_and_rules_that_cannot_be() {
    refused(
        &format!("{HEAD}{POOL}"),
        &[
            Row("outputs: {retention: 0s}", "outputs.retention", 4, "is 0s", "1s to 3650d"),
            Row("outputs: {retention: forever}", "outputs.retention", 4, "not a length of time", "`14d`"),
            Row("outputs: {retention: 4000d}", "outputs.retention", 4, "is 4000d", "1s to 3650d"),
            Row("outputs: {retention: 99999999999999999d}", "outputs.retention", 4, "not a length of time", "`14d`"),
            Row("outputs: {retention: 1h2d}", "outputs.retention", 4, "not a length of time", "`14d`"),
            Row("outputs: {rules: [{keep: 1d}]}", "outputs.rules[0]", 4, "names no line of builds", "`tenant`"),
            Row("outputs: {rules: [{tenant: a}]}", "outputs.rules[0].keep", 4, "is missing", ""),
            Row("outputs: {rules: [{branch: '', keep: 1d}]}", "outputs.rules[0].branch", 4, "is empty", "`release/*`"),
            Row("caches: {limit: 0}", "caches.limit", 4, "is 0", "no limit"),
            Row("caches: {tenantLimit: lots}", "caches.tenantLimit", 4, "not a number of bytes", "`8GiB`"),
            Row("orphans: {grace: -1h}", "orphans.grace", 4, "is negative", "`14d`"),
        ],
    );
}

#[test]
fn a_file_that_says_nothing_of_it_gets_the_defaults() {
    assert_eq!(config(MINIMAL, &NodeIdentity::default()).keeping, Keeping::default());
    assert_eq!(config(MINIMAL, &NodeIdentity::default()).access, Access::default());
}
