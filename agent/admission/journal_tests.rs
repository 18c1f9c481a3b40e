//! The journal's bound, on a real file.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use stoker_core::admission::{Event, Lease};

use super::*;

/// A lease as an agent writes it, ended, with an id of its own.
fn lease(number: usize) -> Lease {
    let record = include_str!("../../tests/fixtures/journal/lease.json");
    let mut lease: Lease = serde_json::from_str(record).unwrap();
    lease.id = format!("{number:016}").try_into().unwrap();
    lease.request_id = format!("request-{number:08}").try_into().unwrap();
    lease
}

#[test]
fn ten_thousand_ended_leases_stay_within_the_bound() {
    let state = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(state.path()).unwrap();
    for batch in 0..20 {
        let entries = (batch * 500..(batch + 1) * 500).map(|n| Entry::Ledger(Event::Lease(Arc::new(lease(n)))));
        journal.commit(&entries.collect::<Vec<_>>()).unwrap();
    }
    assert!(!journal.is_long().unwrap(), "what a day of a busy node leaves must not be forgotten early");
    assert_eq!(journal.ledger().unwrap().ended_count(), 10_000);
    let bytes: u64 = std::fs::read_dir(state.path()).unwrap().flatten().map(|f| f.metadata().unwrap().len()).sum();
    assert!(bytes < 64 << 20, "{bytes} bytes with the ballast");
}

#[test]
fn a_journal_near_its_bound_says_so_and_gives_room_when_leases_are_forgotten() {
    let state = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(state.path()).unwrap();
    let mut written = 0;
    while !journal.is_long().unwrap() {
        let entries = (written..written + 500).map(|n| Entry::Ledger(Event::Lease(Arc::new(lease(n)))));
        journal.commit(&entries.collect::<Vec<_>>()).unwrap();
        written += 500;
        assert!(written < 100_000);
    }
    let oldest = (0..2000).map(|n| Entry::Ledger(Event::Forgotten(lease(n).id)));
    journal.commit(&oldest.collect::<Vec<_>>()).unwrap();
    assert!(!journal.is_long().unwrap());
    assert_eq!(journal.ledger().unwrap().ended_count(), written - 2000);
}
