//! The journal: the ledger's records in SQLite, and the history of what builds used.
//!
//! SQLite because operators can look into it and because its crash safety is proven: WAL with `synchronous=FULL`, one
//! transaction a batch. Its size is bounded by `max_page_count`; a ballast file beside it is given up when the disk is
//! full, so that the end of a lease can always be recorded.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::Hash;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use stoker_core::admission::{Event, Lease, LeaseState, Ledger, ModeState, Ticket};
use stoker_core::identity::{LeaseId, TicketId};
use stoker_core::sizing::history::{SAMPLES_MAX, Sample};

use super::history::RUNS_MAX;

const SCHEMA: i64 = 2;
/// Leases and tickets are rows by number, so that a new one is written at the end of its table and nowhere else; which
/// number each has is known as long as the journal is open.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE lease (number INTEGER PRIMARY KEY, id TEXT NOT NULL, request_id TEXT NOT NULL, state TEXT NOT NULL,
        repository TEXT NOT NULL, commit_id TEXT NOT NULL, created_ms INTEGER NOT NULL, ended_ms INTEGER,
        record TEXT NOT NULL) STRICT;
    CREATE TABLE ticket (number INTEGER PRIMARY KEY, id TEXT NOT NULL, place INTEGER NOT NULL, record TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS history (number INTEGER PRIMARY KEY, key TEXT NOT NULL, record TEXT NOT NULL) STRICT;
    CREATE INDEX IF NOT EXISTS history_key ON history (key, number);";
/// Schema 1 had rows by id.
const FROM_1_AWAY: &str = "ALTER TABLE lease RENAME TO lease_1; ALTER TABLE ticket RENAME TO ticket_1;";
const FROM_1: &str = "
    INSERT INTO lease (id, request_id, state, repository, commit_id, created_ms, ended_ms, record)
        SELECT id, request_id, state, repository, commit_id, created_ms, ended_ms, record FROM lease_1 ORDER BY id;
    INSERT INTO ticket (id, place, record) SELECT id, place, record FROM ticket_1 ORDER BY place;
    DROP TABLE lease_1; DROP TABLE ticket_1;";
/// 48 MiB of pages of 4 KiB: with the write-ahead log (at most 8 MiB here) the journal stays under 64 MiB.
const PAGES_MAX: u32 = 12 * 1024;
const LOG_BYTES_MAX: u32 = 8 << 20;
const BALLAST_BYTES: u64 = 16 << 20;
/// From three quarters of its bound on, the journal forgets ended leases before their time.
const PAGES_PLENTY: u32 = PAGES_MAX / 4 * 3;

/// What a record could not be written or read for.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite's own words.
    #[error("journal {path}: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The directory or the ballast.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record that this version cannot read.
    #[error("journal {path}: record {id} of {table} is damaged: {why}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Of which table.
        table: &'static str,
        /// Which.
        id: String,
        /// The parser's words.
        why: String,
    },
    /// Written by a newer version.
    #[error("journal {path} has schema {found}, this version reads {SCHEMA}: install the version that wrote it")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
}

impl JournalError {
    /// Whether the disk, or the journal's bound, is full.
    #[must_use]
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Sqlite { source: rusqlite::Error::SqliteFailure(error, _), .. } => {
                matches!(error.code, ErrorCode::DiskFull | ErrorCode::SystemIoFailure)
            }
            Self::Io { source, .. } => source.raw_os_error() == Some(nix::libc::ENOSPC),
            _ => false,
        }
    }
}

/// One thing to write.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// A change of the ledger.
    Ledger(Event),
    /// What a build of this key used.
    Sample(String, Sample),
}

impl Entry {
    /// The key of which more is known now.
    pub(super) fn taught(&self) -> Option<&str> {
        match self {
            Self::Sample(key, _) => Some(key),
            Self::Ledger(_) => None,
        }
    }
}

/// The open journal; one at a time, the state's lock sees to that.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    ballast: PathBuf,
    connection: Connection,
    numbers: Numbers,
}

/// The rows of leases and tickets.
#[derive(Debug, Default)]
struct Numbers {
    leases: HashMap<LeaseId, i64>,
    tickets: HashMap<TicketId, i64>,
    last: i64,
}

impl Numbers {
    fn of<Id: Eq + Hash + Clone>(known: &mut HashMap<Id, i64>, last: &mut i64, id: &Id) -> i64 {
        *known.entry(id.clone()).or_insert_with(|| {
            *last += 1;
            *last
        })
    }
}

impl Journal {
    /// Opens or makes `STATE/journal.sqlite` and its ballast.
    ///
    /// # Errors
    /// When the directory cannot be written or the file is not a journal of this version.
    pub(super) fn open(state: &Path) -> Result<Self, JournalError> {
        let path = state.join("journal.sqlite");
        let sqlite = |source| JournalError::Sqlite { path: path.clone(), source };
        let connection = Connection::open(&path).map_err(sqlite)?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(sqlite)?;
        let pragmas = format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = {LOG_BYTES_MAX};
             PRAGMA wal_autocheckpoint = 1000; PRAGMA max_page_count = {PAGES_MAX}; PRAGMA cache_size = -2048;"
        );
        connection.execute_batch(&pragmas).map_err(sqlite)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite)?;
        if found > SCHEMA {
            return Err(JournalError::Newer { path, found });
        }
        if found < SCHEMA {
            let upgrade =
                ["BEGIN;", if found == 1 { FROM_1_AWAY } else { "" }, TABLES, if found == 1 { FROM_1 } else { "" }];
            // While rows are taken over they are there twice.
            let upgrade = format!(
                "PRAGMA max_page_count = {}; {} PRAGMA user_version = {SCHEMA}; COMMIT; \
                 PRAGMA max_page_count = {PAGES_MAX}; PRAGMA wal_checkpoint(TRUNCATE);",
                PAGES_MAX * 3,
                upgrade.concat()
            );
            connection.execute_batch(&upgrade).map_err(sqlite)?;
        }
        let journal = Self { ballast: state.join("ballast"), path, connection, numbers: Numbers::default() };
        // A disk without room for it now is no reason not to start: releases must work, and it is made later.
        let _ = journal.make_ballast();
        Ok(journal)
    }

    fn sqlite(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Sqlite { path: self.path.clone(), source }
    }

    /// Writes all of `entries`, or none, and returns when they are on the disk.
    ///
    /// # Errors
    /// When they could not be written; then the journal is as before.
    pub(super) fn commit(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let Self { connection, numbers, .. } = self;
        let result = (|| {
            let transaction = connection.transaction()?;
            entries.iter().try_for_each(|entry| write(&transaction, numbers, entry))?;
            transaction.commit()?;
            // Not before: what could not be written is forgotten once more.
            for entry in entries {
                match entry {
                    Entry::Ledger(Event::Forgotten(id)) => drop(numbers.leases.remove(id)),
                    Entry::Ledger(Event::TicketGone(id)) => drop(numbers.tickets.remove(id)),
                    _ => {}
                }
            }
            Ok(())
        })();
        result.map_err(|source| self.sqlite(source))
    }

    /// Brings what the write-ahead log has into the file, as far as nobody is in the way: when nothing else is to do, so
    /// that no commit has to.
    ///
    /// # Errors
    /// When it cannot be written; nothing is lost by that.
    pub(super) fn checkpoint(&self) -> Result<(), JournalError> {
        let done = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        done.map_err(|source| self.sqlite(source))
    }

    /// The ledger as the journal has it.
    ///
    /// # Errors
    /// When it cannot be read or a record is damaged.
    pub(super) fn ledger(&mut self) -> Result<Ledger, JournalError> {
        let (mut ledger, mut numbers) = (Ledger::default(), Numbers::default());
        for (number, lease) in self.records::<Lease>("lease", "SELECT number, id, record FROM lease")? {
            numbers.leases.insert(lease.id.clone(), number);
            numbers.last = numbers.last.max(number);
            ledger.apply(Event::Lease(Arc::new(lease)));
        }
        for (number, ticket) in self.records::<Ticket>("ticket", "SELECT number, id, record FROM ticket")? {
            numbers.tickets.insert(ticket.id.clone(), number);
            numbers.last = numbers.last.max(number);
            ledger.apply(Event::Ticket(Arc::new(ticket)));
        }
        self.numbers = numbers;
        if let Some(mode) = self.meta("mode")? {
            ledger.apply(Event::Mode(self.parse::<ModeState>("meta", "mode", &mode)?));
        }
        Ok(ledger)
    }

    /// The last runs of one key, oldest first.
    ///
    /// # Errors
    /// As [`Journal::ledger`].
    pub(super) fn history(&self) -> Result<Vec<(String, Sample)>, JournalError> {
        let rows = (|| {
            let mut select = self.connection.prepare("SELECT key, record FROM history ORDER BY number")?;
            let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            rows.collect::<Result<Vec<_>, _>>()
        })();
        let rows = rows.map_err(|source| self.sqlite(source))?;
        rows.into_iter().map(|(key, text)| Ok((key.clone(), self.parse("history", &key, &text)?))).collect()
    }

    /// A value by name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn meta(&self, key: &str) -> Result<Option<String>, JournalError> {
        let row = self.connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0));
        row.optional().map_err(|source| self.sqlite(source))
    }

    /// Sets a value by name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn set_meta(&self, key: &str, value: &str) -> Result<(), JournalError> {
        let upsert = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
        self.connection.execute(upsert, [key, value]).map(|_| ()).map_err(|source| self.sqlite(source))
    }

    /// Whether the journal comes near its bound: then the oldest of what has ended must go.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn is_long(&self) -> Result<bool, JournalError> {
        let used = (|| {
            let pages: u32 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let free: u32 = self.connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
            Ok(pages.saturating_sub(free))
        })();
        used.map(|used| used > PAGES_PLENTY).map_err(|source| self.sqlite(source))
    }

    /// Gives the ballast's room to whatever must be written now. True where there was one.
    #[must_use]
    pub(super) fn free_ballast(&self) -> bool {
        std::fs::remove_file(&self.ballast).is_ok()
    }

    /// Whether the ballast is there.
    #[must_use]
    pub(super) fn has_ballast(&self) -> bool {
        self.ballast.exists()
    }

    /// Makes the ballast where it is missing. It takes real blocks, so that its removal gives real room.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn make_ballast(&self) -> Result<(), JournalError> {
        let io = |source| JournalError::Io { path: self.ballast.clone(), source };
        if self.has_ballast() {
            return Ok(());
        }
        let temporary = self.ballast.with_extension("new");
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary).and_then(
            |file: File| {
                nix::fcntl::posix_fallocate(&file, 0, i64::try_from(BALLAST_BYTES).unwrap_or(i64::MAX))?;
                file.sync_all()?;
                std::fs::rename(&temporary, &self.ballast)
            },
        );
        if made.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        made.map_err(io)
    }

    fn records<T: serde::de::DeserializeOwned>(
        &self,
        table: &'static str,
        sql: &str,
    ) -> Result<Vec<(i64, T)>, JournalError> {
        let rows = (|| {
            let mut select = self.connection.prepare(sql)?;
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
            select.query_map([], row)?.collect::<Result<Vec<_>, _>>()
        })();
        let rows = rows.map_err(|source| self.sqlite(source))?;
        rows.into_iter().map(|(number, id, text)| Ok((number, self.parse(table, &id, &text)?))).collect()
    }

    fn parse<T: serde::de::DeserializeOwned>(
        &self,
        table: &'static str,
        id: &str,
        text: &str,
    ) -> Result<T, JournalError> {
        serde_json::from_str(text).map_err(|why| JournalError::Record {
            path: self.path.clone(),
            table,
            id: id.to_owned(),
            why: why.to_string(),
        })
    }
}

const fn state_word(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Reserved => "reserved",
        LeaseState::Bound => "bound",
        LeaseState::Released => "released",
        LeaseState::Expired => "expired",
        LeaseState::Orphaned => "orphaned",
    }
}

fn write(transaction: &Transaction<'_>, numbers: &mut Numbers, entry: &Entry) -> rusqlite::Result<()> {
    let Numbers { leases, tickets, last } = numbers;
    match entry {
        Entry::Ledger(Event::Lease(lease)) => transaction
            .prepare_cached(
                "INSERT INTO lease VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (number) DO UPDATE SET state = ?4, ended_ms = ?8, record = ?9",
            )?
            .execute(params![
                Numbers::of(leases, last, &lease.id),
                lease.id.as_str(),
                lease.request_id.as_str(),
                state_word(lease.state),
                lease.source.repository,
                lease.source.commit.to_string(),
                lease.created_at.0,
                lease.ended_at.map(|at| at.0),
                json(lease.as_ref())?,
            ]),
        Entry::Ledger(Event::Forgotten(id)) => {
            transaction.prepare_cached("DELETE FROM lease WHERE number = ?1")?.execute([leases.get(id)])
        }
        Entry::Ledger(Event::Ticket(ticket)) => transaction
            .prepare_cached(
                "INSERT INTO ticket VALUES (?1, ?2, ?3, ?4) ON CONFLICT (number) DO UPDATE SET record = ?4",
            )?
            .execute(params![
                Numbers::of(tickets, last, &ticket.id),
                ticket.id.as_str(),
                i64::try_from(ticket.order).unwrap_or(i64::MAX),
                json(ticket.as_ref())?
            ]),
        Entry::Ledger(Event::TicketGone(id)) => {
            transaction.prepare_cached("DELETE FROM ticket WHERE number = ?1")?.execute([tickets.get(id)])
        }
        Entry::Ledger(Event::Mode(mode)) => transaction
            .prepare_cached("INSERT INTO meta VALUES ('mode', ?1) ON CONFLICT (key) DO UPDATE SET value = ?1")?
            .execute([json(mode)?]),
        Entry::Sample(key, sample) => {
            let insert = "INSERT INTO history (key, record) VALUES (?1, ?2)";
            transaction.prepare_cached(insert)?.execute([key, &json(sample)?])?;
            let surplus = "DELETE FROM history WHERE key = ?1 AND number <= (SELECT number FROM history WHERE key = ?1
                           ORDER BY number DESC LIMIT 1 OFFSET ?2)";
            transaction.prepare_cached(surplus)?.execute(params![key, i64::try_from(SAMPLES_MAX).unwrap_or(32)])?;
            let oldest = "DELETE FROM history WHERE number <= (SELECT max(number) FROM history) - ?1";
            transaction.prepare_cached(oldest)?.execute([i64::try_from(RUNS_MAX).unwrap_or(i64::MAX)])
        }
    }
    .map(|_| ())
}

fn json<T: serde::Serialize>(record: &T) -> rusqlite::Result<String> {
    serde_json::to_string(record).map_err(|why| rusqlite::Error::ToSqlConversionFailure(Box::new(why)))
}

#[cfg(test)]
impl Journal {
    /// As on a disk without a free block.
    pub(super) fn refuse_more(&self) {
        let pages: u32 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap_or(1);
        self.connection.execute_batch(&format!("PRAGMA max_page_count = {pages}")).unwrap_or_default();
        let _ = std::fs::remove_file(&self.ballast);
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
