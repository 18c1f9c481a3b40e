//! The ledger's single writer: it decides, journals, then replies. Many requests share one fsync.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use stoker_core::admission::{Answer, Command, Event, Facts, Lease, Ledger, Refused, Reply, Ticket, Waiting};
use stoker_core::identity::{LeaseId, RequestId, TicketId};
use stoker_core::invariants;
use stoker_core::quantity::{Span, Timestamp};
use stoker_core::reason::{Code, Reason};
use tokio::sync::{mpsc, oneshot, watch};

use super::changes::Changes;
use super::history::History;
use super::journal::{Entry, Journal, JournalError};
use super::resize::Resizing;
use super::survey::history_key_of;
use super::waiters::{Waiters, Word};
use super::{new_id, now};
use crate::repository::SnapshotPin;

/// Commands that wait for the writer; beyond it callers are told that the agent is busy.
const QUEUE_MAX: usize = 4096;
/// Commands that share one commit.
const BATCH_MAX: usize = 512;
/// Entries after which the journal's length is asked for, and after which it is tidied when nothing else is to do.
const LOOK_AFTER: usize = 256;
/// Ended leases that are forgotten with one batch, where the journal is near its bound.
const FORGET_AT_ONCE: usize = 512;
/// Grants out of the queue with one batch; the next batch goes on.
const GRANTS_AT_ONCE: usize = 64;
/// Free room on the state's filesystem at which the ballast is made again: twice its size.
const ROOM_BYTES: u64 = 32 << 20;
/// What people are told meanwhile.
const STARVED: &str = "the state's filesystem is full";

/// Tells the facts of the moment. Called by the writer before each batch; must not block.
pub type FactsSource = Arc<dyn Fn() -> Facts + Send + Sync>;

/// Why the writer gave no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriterError {
    /// The command makes no sense.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It could not be recorded, so it did not happen.
    #[error("the journal cannot be written, nothing was changed: {0}")]
    Journal(String),
    /// More commands than the writer takes.
    #[error("the agent is busy: {QUEUE_MAX} commands wait already; try again")]
    Busy,
    /// The agent is going down.
    #[error("the agent is stopping")]
    Stopping,
}

/// What the writer takes.
enum Message {
    Ask(Box<Ask>),
    Stop,
}

/// A command on its way, with what is kept beside the ledger.
pub(super) struct Ask {
    pub(super) command: Command,
    pub(super) pin: Option<SnapshotPin>,
    pub(super) reply: oneshot::Sender<Result<Reply, WriterError>>,
}

/// What everyone reads: the ledger after the last commit, the pins that its leases and tickets hold, and the history.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) ledger: Ledger,
    /// Another with each batch that changed the ledger.
    pub(super) revision: u64,
    pub(super) changes: Changes,
    pub(super) pins: BTreeMap<String, SnapshotPin>,
    pub(super) history: History,
    pub(super) journal_error: Option<String>,
    pub(super) journal_failures: u64,
}

/// The way to the writer.
#[derive(Clone)]
pub(super) struct WriterHandle {
    messages: mpsc::Sender<Message>,
    pub(super) published: Arc<RwLock<Published>>,
    pub(super) version: watch::Receiver<u64>,
    pub(super) waiters: Waiters,
}

impl WriterHandle {
    pub(super) async fn ask(&self, command: Command, pin: Option<SnapshotPin>) -> Result<Reply, WriterError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Ask(Box::new(Ask { command, pin, reply }));
        self.messages.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriterError::Busy,
            mpsc::error::TrySendError::Closed(_) => WriterError::Stopping,
        })?;
        match answer.await.map_err(|_| WriterError::Stopping)?? {
            Reply::Refused(why) => Err(why.into()),
            reply => Ok(reply),
        }
    }

    /// Adds pins of what is live or waits, where there are none.
    pub(super) fn keep(&self, pins: BTreeMap<String, SnapshotPin>) {
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        let Published { ledger, pins: kept, .. } = &mut *published;
        for (request, pin) in pins {
            let Ok(id) = request.clone().try_into() else { continue };
            if is_held(ledger, &id) {
                kept.entry(request).or_insert(pin);
            }
        }
    }

    /// Ends the writer after what was asked before.
    pub(super) async fn stop(&self) {
        let _ = self.messages.send(Message::Stop).await;
    }

    /// Reads what is published. The closure must be short: the writer waits for it.
    pub(super) fn read<R>(&self, read: impl FnOnce(&Published) -> R) -> R {
        read(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Owns the journal and the working ledger; lives in a thread of its own, because it waits for the disk.
pub(super) struct Writer {
    journal: Journal,
    pub(super) working: Ledger,
    facts: FactsSource,
    pub(super) published: Arc<RwLock<Published>>,
    version: watch::Sender<u64>,
    waiters: Waiters,
    state: std::path::PathBuf,
    starved: bool,
    /// Entries since the journal's length was asked for, and since it was tidied.
    unasked: usize,
    untidied: usize,
    pub(super) resizing: Resizing,
}

/// Starts the writer's thread. It ends when the last handle is gone.
pub(super) fn start(
    journal: Journal,
    published: Published,
    facts: FactsSource,
    state: &Path,
) -> std::io::Result<(WriterHandle, JoinHandle<()>)> {
    let (messages, queue) = mpsc::channel(QUEUE_MAX);
    let (version, seen) = watch::channel(0);
    let waiters = Waiters::default();
    let working = published.ledger.clone();
    // Without its ballast the end of a lease could not be recorded once the disk is full: that comes first.
    let starved = !journal.has_ballast();
    let published = Published { journal_error: starved.then(|| STARVED.to_owned()), ..published };
    let published = Arc::new(RwLock::new(published));
    let writer = Writer {
        journal,
        working,
        facts,
        published: Arc::clone(&published),
        version,
        waiters: waiters.clone(),
        state: state.to_owned(),
        starved,
        unasked: LOOK_AFTER,
        untidied: 0,
        resizing: Resizing::default(),
    };
    let thread = std::thread::Builder::new().name("ledger".into()).spawn(move || writer.run(queue))?;
    Ok((WriterHandle { messages, published, version: seen, waiters }, thread))
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let (mut messages, mut stopping) = (Vec::new(), false);
        while !stopping {
            // Without room in the journal nothing is sized anew: the next message looks whether there is some.
            match self.resizing.is_done() || self.starved {
                true if queue.blocking_recv_many(&mut messages, BATCH_MAX) == 0 => return,
                true => {}
                // There is work: nobody is waited for.
                false => messages.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(BATCH_MAX)),
            }
            let asks = messages.drain(..).filter_map(|message| match message {
                Message::Ask(ask) => Some(*ask),
                Message::Stop => {
                    stopping = true;
                    None
                }
            });
            let asks = asks.collect();
            self.batch(asks);
        }
    }

    /// Decides all of the batch, commits once, then replies.
    fn batch(&mut self, asks: Vec<Ask>) {
        let (facts, now) = ((self.facts)(), now());
        self.recover_room();
        let mut entries = Vec::new();
        let mut decided = Vec::with_capacity(asks.len());
        for ask in asks {
            // Without room in the journal only what ends or keeps a lease may still be written. Who has a lease gets it.
            if self.starved
                && let Command::Admit { request, .. } = &ask.command
                && self.working.lease_of(&request.id).is_none()
            {
                decided.push((Ok(starved_reply(&ask.command)), ask, false));
                continue;
            }
            let begin = entries.len();
            if !self.starved {
                self.resize_for(&ask.command, &facts, now, &mut entries);
            }
            let (reply, events) = self.working.decide(&ask.command, &facts, now);
            self.take(events, &mut entries);
            let must_last = entries.iter().skip(begin).any(|entry| self.must_last(entry));
            decided.push((Ok(reply), ask, must_last));
        }
        // Nor does anyone come out of the queue: what the ballast left is for ends.
        if !self.starved {
            self.resize(&facts, now, &mut entries);
            // Nobody is granted a size of before.
            if self.resizing.is_done() {
                self.next(&facts, now, &mut entries);
            }
        }
        self.shorten(&facts, now, &mut entries);
        debug_assert!(invariants::one_place_a_request(&self.working));
        debug_assert!(invariants::lives_are_whole(&self.working));
        debug_assert!(invariants::sizes_add_up(&self.working));
        if let Err(error) = self.commit(&entries) {
            tracing::error!(%error, reason = Code::JournalUnavailable.word(), "nothing of this batch was recorded");
            entries.retain(|entry| !self.must_last(entry));
            self.rebuild(&entries);
            self.resizing = Resizing::default(); // what was sized anew may be gone with the batch
            for (outcome, ask, must_last) in &mut decided {
                if *must_last {
                    *outcome = match ask.command {
                        // The first to find the disk full is told what all later ones are.
                        Command::Admit { .. } if self.starved => Ok(starved_reply(&ask.command)),
                        _ => Err(WriterError::Journal(error.to_string())),
                    };
                }
            }
            self.publish(entries, &mut decided, Some(error.to_string()), true);
        } else {
            let error = self.starved.then(|| STARVED.to_owned());
            self.publish(entries, &mut decided, error, false);
        }
        for (outcome, ask, _) in decided {
            let _ = ask.reply.send(outcome); // a caller who went away learns it by asking again
        }
    }

    /// Makes it so. What a build used is remembered once, when its lease has both ended and a peak.
    fn take(&mut self, events: Vec<Event>, entries: &mut Vec<Entry>) {
        for event in events {
            if let Event::Lease(lease) = &event
                && !lease.live()
                && self.working.lease(&lease.id).is_some_and(|before| before.live() || before.peak.is_none())
                && let Some(sample) = lease.sample()
            {
                entries.push(Entry::Sample(history_key_of(lease), sample));
            }
            entries.push(Entry::Ledger(event.clone()));
            self.working.apply(event);
        }
    }

    /// Grants to those who are next, as long as there is room, and some at once.
    fn next(&mut self, facts: &Facts, now: Timestamp, entries: &mut Vec<Entry>) {
        for _ in 0..GRANTS_AT_ONCE {
            if self.working.queued() == 0 {
                return;
            }
            let (_, events) = self.working.decide(&Command::Next { lease: new_id::<LeaseId>() }, facts, now);
            let granted = events.iter().any(|event| matches!(event, Event::Lease(_)));
            self.take(events, entries);
            if !granted {
                return;
            }
        }
    }

    /// Keeps the journal within its bound: a node that ends more leases a day than it can hold forgets the oldest early.
    fn shorten(&mut self, facts: &Facts, now: Timestamp, entries: &mut Vec<Entry>) {
        self.unasked += entries.len();
        if self.unasked < LOOK_AFTER || self.working.ended_count() == 0 {
            return;
        }
        if !self.journal.is_long().unwrap_or(false) {
            self.unasked = 0;
            return;
        }
        let (_, events) = self.working.decide(&Command::Forget(FORGET_AT_ONCE), facts, now);
        tracing::debug!(leases = events.len(), "ended leases are forgotten early: the journal is near its bound");
        self.take(events, entries);
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let durable: Vec<Entry> = entries.iter().filter(|entry| self.must_last(entry)).cloned().collect();
        if durable.is_empty() {
            self.tidy();
            return Ok(());
        }
        self.untidied += durable.len();
        match self.journal.commit(&durable) {
            Err(error) if error.is_full() => {
                self.starved = true;
                if !self.journal.free_ballast() {
                    return Err(error);
                }
                tracing::warn!(%error, "the journal's ballast is given up: new builds wait until there is room");
                let ends: bool = durable.iter().all(|entry| !begins(entry));
                if ends { self.journal.commit(&durable) } else { Err(error) }
            }
            done => done,
        }
    }

    /// Nothing is to be written: time for what a commit would otherwise have to do on its way.
    fn tidy(&mut self) {
        if self.untidied >= LOOK_AFTER && !self.starved {
            self.untidied = 0;
            if let Err(error) = self.journal.checkpoint() {
                tracing::debug!(%error, "the journal's log stays as it is");
            }
        }
    }

    /// A ticket's expiry moves each time that it is awaited: that alone is not worth an fsync.
    fn must_last(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Ledger(Event::Ticket(ticket)) => {
                let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
                let same = |known: &Ticket| {
                    known.head_since == ticket.head_since && known.request.sizing.size == ticket.request.sizing.size
                };
                !published.ledger.ticket(&ticket.id).is_some_and(|known| same(known))
            }
            _ => true,
        }
    }

    /// After a failed commit the journal is what is true, but for how long tickets live: that is not written there.
    fn rebuild(&mut self, unwritten: &[Entry]) {
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
        self.working = self.journal.ledger().unwrap_or_else(|error| {
            tracing::error!(%error, "the journal cannot be read back; the last published ledger stands");
            published.ledger.clone()
        });
        let known: Vec<_> = self.working.tickets().filter_map(|held| published.ledger.ticket(&held.id)).collect();
        known.into_iter().cloned().for_each(|ticket| self.working.apply(Event::Ticket(ticket)));
        for entry in unwritten {
            if let Entry::Ledger(event) = entry {
                self.working.apply(event.clone());
            }
        }
    }

    /// When there is room again the ballast is made first, then builds are admitted.
    fn recover_room(&mut self) {
        if !self.starved {
            return;
        }
        let free = nix::sys::statvfs::statvfs(&self.state).map(|fs| fs.blocks_available() * fs.fragment_size());
        if free.is_ok_and(|free| free >= ROOM_BYTES) && self.journal.make_ballast().is_ok() {
            self.starved = false;
            // What runs taught meanwhile was not used.
            self.resizing = Resizing::default();
            tracing::info!("the journal has room again");
        }
    }

    fn publish(
        &mut self,
        entries: Vec<Entry>,
        decided: &mut [(Result<Reply, WriterError>, Ask, bool)],
        error: Option<String>,
        failed: bool,
    ) {
        let lasting = entries.iter().any(|entry| self.must_last(entry));
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        published.revision = published.revision.wrapping_add(u64::from(!entries.is_empty()));
        let told = published.journal_error != error;
        published.journal_failures += u64::from(failed);
        published.journal_error = error;
        for (_, ask, _) in decided.iter_mut() {
            if let (Command::Admit { request, .. }, Some(pin)) = (&ask.command, ask.pin.take()) {
                published.pins.entry(request.id.to_string()).or_insert(pin);
            }
        }
        let asked = decided.iter().filter_map(|(_, ask, _)| match &ask.command {
            Command::Admit { request, .. } => Some(request.id.clone()),
            _ => None,
        });
        let mut touched: BTreeSet<RequestId> = asked.collect();
        let cancelled = decided.iter().filter_map(|(_, ask, _)| match &ask.command {
            Command::Cancel(ticket) => Some(ticket.clone()),
            _ => None,
        });
        let cancelled: BTreeSet<TicketId> = cancelled.collect();
        let mut woken = BTreeMap::new();
        for entry in entries {
            match entry {
                Entry::Ledger(event) => published.take(event, &cancelled, &mut touched, &mut woken),
                Entry::Sample(key, sample) => published.history.push(&key, sample),
            }
        }
        // Only what was touched can have lost its right to its pin.
        let Published { ledger, pins, .. } = &mut *published;
        touched.iter().filter(|request| !is_held(ledger, request)).for_each(|request| {
            pins.remove(request.as_str());
        });
        drop(published);
        self.waiters.wake(woken.iter().map(|(request, word)| (request, *word)));
        if lasting || told {
            self.version.send_modify(|version| *version += 1);
        }
    }
}

impl Published {
    /// Applies an event; notes whose request it touches, and who is to be woken: those whose wait is over.
    fn take(
        &mut self,
        event: Event,
        cancelled: &BTreeSet<TicketId>,
        touched: &mut BTreeSet<RequestId>,
        woken: &mut BTreeMap<RequestId, Word>,
    ) {
        match &event {
            Event::Lease(lease) => {
                touched.insert(lease.request_id.clone());
                self.warn(lease);
                if self.ledger.lease(&lease.id).is_none() {
                    woken.insert(lease.request_id.clone(), Word::Changed);
                }
                self.changes.push(Arc::clone(lease));
            }
            Event::TicketGone(id) => {
                let request = self.ledger.ticket(id).map(|ticket| ticket.request.id.clone());
                let word = if cancelled.contains(id) { Word::Cancelled } else { Word::Changed };
                touched.extend(request.clone());
                woken.extend(request.map(|request| (request, word)));
            }
            Event::Forgotten(_) | Event::Ticket(_) | Event::Mode(_) => {}
        }
        self.ledger.apply(event);
    }
}

impl Published {
    /// Says once what people may want to do something about: its time is nearly over, or over by a drain.
    fn warn(&self, lease: &Lease) {
        let Some(before) = self.ledger.lease(&lease.id).filter(|_| lease.live()) else { return };
        for reason in lease.reasons.iter().filter(|reason| !before.was_told(reason.code)) {
            tracing::warn!(lease = %lease.id, reason = reason.code.word(), "{}", reason.message);
        }
    }
}

/// Whether a request holds its commit: it has a live lease, or waits.
fn is_held(ledger: &Ledger, request: &RequestId) -> bool {
    ledger.lease_of(request).is_some_and(|lease| lease.live()) || ledger.ticket_of(request).is_some()
}

/// Whether an entry begins something that would need room later.
fn begins(entry: &Entry) -> bool {
    match entry {
        Entry::Ledger(Event::Lease(lease)) => lease.live() && lease.bound_at.is_none(),
        Entry::Ledger(Event::Ticket(_)) => true,
        _ => false,
    }
}

fn starved_reply(command: &Command) -> Reply {
    let Command::Admit { request, .. } = command else { return Reply::Done };
    let message = "the journal's filesystem is full: free room on it; running builds and releases go on";
    Reply::Answer(Answer::Waiting(Box::new(Waiting {
        ticket: None,
        position: 0,
        retry_after: Span::seconds(30),
        reasons: vec![Reason::new(Code::JournalUnavailable, "journal", message)],
        sizing: request.sizing.clone(),
    })))
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
