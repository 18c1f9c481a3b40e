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

#[test]
fn a_journal_whose_rows_are_by_id_is_taken_over() {
    let state = tempfile::tempdir().unwrap();
    let record = |number: usize| serde_json::to_string(&lease(number)).unwrap();
    let old = Connection::open(state.path().join("journal.sqlite")).unwrap();
    old.execute_batch(
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE lease (id TEXT PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
             repository TEXT NOT NULL, commit_id TEXT NOT NULL, created_ms INTEGER NOT NULL, ended_ms INTEGER,
             record TEXT NOT NULL) STRICT;
         CREATE TABLE ticket (id TEXT PRIMARY KEY, place INTEGER NOT NULL, record TEXT NOT NULL) STRICT;
         CREATE TABLE history (number INTEGER PRIMARY KEY, key TEXT NOT NULL, record TEXT NOT NULL) STRICT;
         INSERT INTO meta VALUES ('boot_id', 'b'); PRAGMA user_version = 1;",
    )
    .unwrap();
    let insert = "INSERT INTO lease VALUES (?1, ?2, 'released', '', '', 0, 0, ?3)";
    for number in [2, 1] {
        old.execute(insert, params![lease(number).id.as_str(), format!("r{number}"), record(number)]).unwrap();
    }
    // As much as one may have: while rows are taken over they are there twice.
    old.execute_batch("BEGIN;").unwrap();
    let text = record(3);
    let ended = 36 * (1 << 20) / text.len();
    for number in 10..10 + ended {
        old.execute(insert, params![format!("old{number}"), format!("r{number}"), &text]).unwrap();
    }
    old.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE);").unwrap();
    drop(old);
    Journal::open(state.path()).unwrap();
    let old = Connection::open(state.path().join("journal.sqlite")).unwrap();
    old.execute("DELETE FROM lease WHERE id LIKE 'old%'", []).unwrap();
    drop(old);
    let mut journal = Journal::open(state.path()).unwrap();
    assert_eq!(journal.meta("boot_id").unwrap().as_deref(), Some("b"));
    assert_eq!(journal.ledger().unwrap().ended_count(), 2);
    let changed = Lease { exit_code: Some(7), ..lease(1) };
    let entries = [Event::Lease(Arc::new(changed)), Event::Lease(Arc::new(lease(3))), Event::Forgotten(lease(2).id)];
    journal.commit(&entries.map(Entry::Ledger)).unwrap();
    let ledger = Journal::open(state.path()).unwrap().ledger().unwrap();
    let codes: Vec<_> = ledger.ended().map(|lease| (lease.id.clone(), lease.exit_code)).collect();
    assert_eq!(codes, [(lease(1).id, Some(7)), (lease(3).id, lease(3).exit_code)]);
}
