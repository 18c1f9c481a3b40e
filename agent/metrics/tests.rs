#![allow(clippy::unwrap_used, clippy::expect_used)]

use stoker_core::admission::Waiting;
use stoker_core::quantity::{Size, Span};
use stoker_core::reason::{Code, Reason};
use stoker_core::sizing::Sizing;

use super::*;
use crate::http::tests::{repository, status};

const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn scraped(metrics: &Metrics, name: &str) -> String {
    let (status, repositories) = (status(name), [repository()]);
    let own = Own { resident_bytes: Some(1 << 25), open_fds: Some(20) };
    metrics
        .scrape(&Seen {
            status: &status,
            repositories: &repositories,
            labelled: &repositories.iter().map(|one| one.url.key().to_owned()).collect(),
            fetches: &BTreeMap::from([("fetched", 1)]),
            answers: &BTreeMap::from([("hit", 5), ("miss", 1)]),
            heals: &BTreeMap::from([("repair", 2)]),
            forges: &BTreeMap::from([("told", 4)]),
            lfs: LfsCounts {
                objects: 5,
                bytes: 6,
                failures: BTreeMap::from([("LFS_OBJECT_MISSING", 1)]),
                refused: BTreeMap::from([("LFS_LIMIT", 2)]),
            },
            repositories_bytes: Some(1 << 30),
            evictions: &BTreeMap::from([("DISK_FLOOR", 3)]),
            upkeep_gave_way: 2,
            over_limit: true,
            journal_failures: 1,
            serve: serve::Counts { outcomes: BTreeMap::from([("sent", 3)]), bytes_sent: 9, ..Default::default() },
            own,
            now: NOW,
        })
        .unwrap()
}

/// Series by name and labels, after the rules of OpenMetrics: each family once, its samples after its description,
/// names that begin with the family's, one value each, no series twice, `# EOF` last.
fn parse(text: &str) -> BTreeMap<&str, f64> {
    let (mut series, mut families, mut family) = (BTreeMap::new(), Vec::new(), "");
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["#", "EOF"] => assert!(lines.peek().is_none(), "something after the end"),
            ["#", "HELP", name, ..] => {
                assert!(!families.contains(&name), "{name} twice");
                assert!(line.ends_with('.') && name.starts_with("stoker_"), "{line}");
                families.push(name);
                family = name;
            }
            ["#", "TYPE", name, kind] => {
                assert!(name == family && ["gauge", "counter", "info"].contains(&kind), "{line}")
            }
            ["#", "UNIT", name, unit] => assert!(name == family && name.ends_with(unit), "{line}"),
            _ => {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(name.starts_with(family), "{line}");
                assert!(series.insert(name, value.parse().unwrap()).is_none(), "{name} twice");
            }
        }
    }
    assert!(text.ends_with("# EOF\n"));
    series
}

#[test]
fn what_is_seen_is_what_is_scraped() {
    let text = scraped(&Metrics::default(), "ghost");
    let series = parse(&text);
    for (name, value) in [
        ("stoker_build_info{version=\"0.1.0\",node=\"ghost\"}", 1.0),
        ("stoker_leases", 1.0),
        ("stoker_gate_state{state=\"narrow\"}", 1.0),
        ("stoker_gate_state{state=\"open\"}", 0.0),
        ("stoker_mode{mode=\"maintenance\"}", 1.0),
        ("stoker_pool_state{pool=\"exo0\",state=\"NotMounted\"}", 1.0),
        ("stoker_pool_state{pool=\"exo0\",state=\"Ready\"}", 0.0),
        ("stoker_pool_floor_bytes{pool=\"ghost\"}", 107_374_182_400.0),
        ("stoker_root_inodes_free", 40_000_000.0),
        ("stoker_cpu_used_cores", 15.9),
        ("stoker_pressure_ratio{resource=\"cpu\",kind=\"some\",window=\"10s\"}", 0.2753),
        ("stoker_ledger_memory_bytes{part=\"leased\"}", 42_949_672_960.0),
        ("stoker_ledger_cpu_cores{part=\"free\"}", 7.0),
        ("stoker_reasons{reason=\"MEMORY_NARROW\"}", 1.0),
        ("stoker_reasons{reason=\"POOL_NOT_READY\"}", 1.0),
        ("stoker_repositories{state=\"empty\"}", 1.0),
        ("stoker_mirrors_empty", 1.0),
        ("stoker_repository_evictions_total{reason=\"DISK_FLOOR\"}", 3.0),
        ("stoker_upkeep_gave_way_total", 2.0),
        ("stoker_repositories_over_limit", 1.0),
        ("stoker_mirror_age_seconds{repository=\"github.com/projectbluefin/dakota\"}", 61.0),
        ("stoker_process_open_fds", 20.0),
        ("stoker_outputs", 3.0),
        ("stoker_outputs_disk_bytes", 1024.0),
        ("stoker_orphans", 1.0),
        ("stoker_retention_last_removed_seconds", 1_799_992_700.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name} in\n{text}");
    }
    assert!(!text.contains("stoker_pool_free_bytes{pool=\"exo0\"}"), "nothing is known of a pool that is not there");
}

#[test]
fn what_happens_is_counted_under_its_first_reason() {
    let metrics = Metrics::default();
    let sizing = Sizing { size: Size::default(), basis: Vec::new(), clamped: false, provisional: false };
    let reasons = vec![Reason::new(Code::MemoryHeld, "node", ""), Reason::new(Code::QueueAhead, "queue", "")];
    let waiting = Waiting { ticket: None, position: 0, retry_after: Span(5000), reasons: reasons.clone(), sizing };
    metrics.answered(&Answer::Waiting(Box::new(waiting)));
    metrics.clone().answered(&Answer::Rejected(reasons, None));
    metrics.refused(Face::Http, &Denied::unknown("no token of ours"));
    let text = scraped(&metrics, "ghost");
    let series = parse(&text);
    for name in [
        "stoker_refused_calls_total{face=\"http\",reason=\"CREDENTIAL_INVALID\"}",
        "stoker_admissions_total{decision=\"wait\",reason=\"MEMORY_HELD\"}",
        "stoker_admissions_total{decision=\"rejected\",reason=\"MEMORY_HELD\"}",
        "stoker_fetches_total{outcome=\"fetched\"}",
        "stoker_journal_failures_total",
    ] {
        assert_eq!(series.get(name), Some(&1.0), "{name} in\n{text}");
    }
}

#[test]
fn a_name_with_quotes_and_line_feeds_breaks_no_line() {
    let text = scraped(&Metrics::default(), "a\"b\\c\nd");
    assert!(text.contains("node=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
    parse(&text);
}

#[test]
fn the_agent_knows_what_itself_takes() {
    let own = Own::read();
    assert!(own.resident_bytes.is_some_and(|bytes| bytes > 1 << 20) && own.open_fds.is_some_and(|count| count > 2));
}

#[test]
fn every_state_has_a_word() {
    for (state, word) in REPOSITORY_STATES {
        assert_eq!(repository_word(state), word);
    }
}
