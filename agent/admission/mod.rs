//! Admission: the ledger of this node, its single writer and its journal.
//!
//! Comes in: requests with their build, binds, renewals, releases; the views of pools and pressure. Goes out: leases,
//! places in the queue, reasons; a version that ticks with each change, for all who watch. Before the writer stands the
//! `survey`, where the effects are: it resolves the source and sizes the build, and the writer then reads nothing but
//! its facts. `upkeep` tells the writer what time and the machine did to leases.

mod changes;
mod history;
mod journal;
mod measured;
mod pods;
mod resize;
mod sums;
pub(crate) mod survey;
mod upkeep;
mod waiters;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use stoker_core::admission::{
    Answer, Command, Event, Explanation, Facts, Holder, Lease, Ledger, ModeState, Refused, Reply, Request, Source,
    Terms, Ticket, Totals, Usage, View, Wanted,
};
use stoker_core::identity::{LeaseId, NameError, RequestId, TicketId};
use stoker_core::quantity::{Amounts, Span};
use stoker_core::reason::{Code, Reason};
use stoker_core::sizing::{Outcome, PodEnd, Sample, Sizing};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use changes::TokenError;
pub use journal::JournalError;
pub use measured::{Measured, OnDisk};
use survey::SurveyError;
pub use survey::{Build, CacheKeys, Caches, Evaluated, SourceState, Survey};
pub use waiters::Waiter;
pub use writer::{FactsSource, WriterError};

use crate::kubernetes::Kubernetes;
pub(crate) use crate::node::now;
use crate::pressure::Configured;
use crate::repository::SnapshotPin;
use changes::Changes;
use history::History;
use journal::Journal;
use measured::Told;
use sums::LastTotals;
use writer::{Published, WriterHandle};

/// How long tickets that were read back wait for their callers to come again.
const TICKETS_KEPT: Span = Span::seconds(60);

/// How long a grant may stay unbound where nothing is said.
pub const BIND_WITHIN: Span = Span::minutes(5);

/// Why admission gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AdmissionError {
    /// The source cannot be resolved, or cannot be built here.
    #[error("{}", .0.message)]
    Source(Reason),
    /// From the writer.
    #[error(transparent)]
    Writer(#[from] WriterError),
}

/// What a caller asks of [`Admission::admit`].
#[derive(Debug, Clone)]
pub struct Order {
    /// The caller's id.
    pub request_id: RequestId,
    /// Over the request's content; see [`digest`].
    pub digest: String,
    /// What is built; a retry builds what its first attempt did.
    pub build: Option<Build>,
    /// A lease that ran out of memory: this is its retry.
    pub retry_of: Option<LeaseId>,
    /// Higher goes first among its tenant's.
    pub priority: i32,
    /// Take a place in the queue where it must wait.
    pub take_ticket: bool,
    /// The caller stays and is told of a grant.
    pub awaited: bool,
    /// How long a grant may stay unbound.
    pub bind_within: Span,
    /// Whose pod may have the lease.
    pub terms: Terms,
}

/// The room's face. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    writer: WriterHandle,
    survey: Survey,
    facts: FactsSource,
    measured: Measured,
    totals: LastTotals,
    thread: Arc<std::sync::Mutex<Option<std::thread::JoinHandle<()>>>>,
    upkeep: Arc<tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Admission {
    /// Reads the journal back and starts the writer. Leases of another boot are lost; those of this one stand.
    ///
    /// # Errors
    /// When the journal cannot be opened, or cannot be read.
    pub fn open(
        state: &Path,
        boot_id: &str,
        survey: Survey,
        facts: FactsSource,
        measured: Measured,
    ) -> Result<Self, JournalError> {
        let mut journal = Journal::open(state)?;
        let mut ledger = journal.ledger()?;
        if journal.meta("boot_id")?.is_some_and(|earlier| earlier != boot_id) {
            let lost = ledger.live().map(|lease| lease.id.clone()).collect();
            let (_, events) = ledger.decide(&Command::Gone(lost, Code::NodeRebooted), &facts(), now());
            let entries: Vec<_> = events.iter().cloned().map(journal::Entry::Ledger).collect();
            journal.commit(&entries)?;
            events.into_iter().for_each(|event| ledger.apply(event));
        }
        // Whoever awaited a ticket could not say so while nobody listened: each gets its time anew.
        let fresh: Vec<_> = ledger.tickets().map(|ticket| Ticket::clone(ticket)).collect();
        for ticket in fresh {
            let ticket = Ticket { expires_at: now().plus(TICKETS_KEPT), ..ticket };
            ledger.apply(Event::Ticket(Arc::new(ticket)));
        }
        if journal.meta("boot_id")?.as_deref() != Some(boot_id) {
            journal.set_meta("boot_id", boot_id)?;
        }
        let mut history = History::default();
        journal.history()?.into_iter().for_each(|(key, sample)| history.push(&key, sample));
        let pins = survey.pins(survey::held(&ledger));
        let changes = Changes::new(new_id::<LeaseId>().to_string());
        let published =
            Published { ledger, revision: 0, changes, pins, history, journal_error: None, journal_failures: 0 };
        let (writer, thread) = writer::start(journal, published, Arc::clone(&facts), state)
            .map_err(|source| JournalError::Io { path: state.to_owned(), source })?;
        let thread = Arc::new(std::sync::Mutex::new(Some(thread)));
        Ok(Self { writer, survey, facts, measured, totals: LastTotals::default(), thread, upkeep: Arc::default() })
    }

    /// Starts watching time and holders, until `cancel`.
    pub async fn start_upkeep(
        &self,
        host_root: &Path,
        config: Configured,
        kubernetes: Kubernetes,
        cancel: CancellationToken,
    ) {
        let of_pods = pods::run(self.clone(), host_root.to_owned(), config.clone(), kubernetes, cancel.clone());
        let of_processes = upkeep::run(self.clone(), host_root.to_owned(), config, cancel);
        *self.upkeep.lock().await = Some(tokio::spawn(async move {
            tokio::join!(of_processes, of_pods);
        }));
    }

    /// Ends the writer after what was asked before, and waits for it.
    pub async fn shutdown(&self) {
        if let Some(task) = self.upkeep.lock().await.take() {
            let _ = task.await;
        }
        self.writer.stop().await;
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    /// Granted, wait or rejected. The same request id with the same content gives the same lease.
    ///
    /// # Errors
    /// When the source cannot be resolved within `patience`, on a conflict, or when nothing can be recorded.
    pub async fn admit(&self, order: Order, patience: Duration) -> Result<Answer, AdmissionError> {
        let known = self.writer.read(|published| {
            let lease = published.ledger.lease_of(&order.request_id).map(|lease| known_request(lease));
            lease.or_else(|| published.ledger.ticket_of(&order.request_id).map(|held| held.request.clone()))
        });
        let (take_ticket, awaited, digest) = (order.take_ticket, order.awaited, order.digest.clone());
        // What a request was resolved and sized to stands: asked again, it is never resolved again.
        let (request, pin) = match known {
            Some(known) => (Request { digest, ..known }, None),
            None => match self.surveyed(order, patience).await {
                Err(SurveyError::Size(reasons)) => return Ok(Answer::Rejected(reasons, None)),
                Err(SurveyError::Source(reason)) => return Err(AdmissionError::Source(reason)),
                Err(SurveyError::Retry(error)) => return Err(error.into()),
                Ok((request, pin)) => (request, Some(pin)),
            },
        };
        let ticket = take_ticket.then(new_id::<TicketId>);
        let command = Command::Admit { request: Box::new(request), lease: new_id(), ticket, awaited };
        match self.writer.ask(command, pin).await? {
            Reply::Answer(answer) => Ok(answer),
            _ => Err(WriterError::Stopping.into()),
        }
    }

    /// The request, resolved and sized; a retry as its first attempt was.
    async fn surveyed(&self, order: Order, patience: Duration) -> Result<(Request, SnapshotPin), SurveyError> {
        let Order { request_id, digest, build, retry_of, priority, bind_within, terms, .. } = order;
        if let Some(first) = retry_of {
            let lease = self.writer.read(|published| published.ledger.lease(&first).cloned());
            let lease = lease.ok_or_else(|| WriterError::Refused(Refused::NoLease(first.clone())))?;
            let repository = &lease.source.repository;
            if build.is_some_and(|build| build.source.url.key() != repository) {
                return Err(WriterError::Refused(Refused::OtherRepository(first, repository.clone())).into());
            }
            let (source, pin) = self.survey.again(lease.source.clone(), patience).await?;
            let known = known_request(&lease);
            let retry_of = Some(first);
            // Another pod: the one of the first attempt has ended.
            let terms = if terms.names_a_pod() { terms } else { Terms { pod: String::new(), ..known.terms.clone() } };
            let retry = Request { id: request_id, digest, source, priority, bind_within, retry_of, terms, ..known };
            return Ok((retry, pin));
        }
        let missing = || Reason::new(Code::SpecInvalid, "build", "a request that is no retry names its build");
        let build = build.ok_or_else(missing)?;
        let room = || {
            let facts = (self.facts)();
            room_of(&self.writer.read(|published| self.totals.of(published, &facts)), &facts, &build.scope.tenant)
        };
        let found = self.survey.whole(&build, room, |key| self.samples(key), patience).await?;
        let request = Request {
            id: request_id,
            digest,
            source: found.source,
            sizing: found.sizing,
            scope: build.scope,
            target: build.target,
            cache_keys: found.cache_keys,
            attempt: 1,
            bind_within,
            priority,
            expected: found.expected,
            retry_of: None,
            no_retry: found.no_retry,
            terms,
            asked: Some(Box::new(found.asked)),
        };
        Ok((request, found.pin))
    }

    /// Many builds against one view, without any network.
    #[must_use]
    pub fn evaluate(&self, builds: &[Build]) -> Vec<Evaluated> {
        let facts = (self.facts)();
        let totals = self.writer.read(|published| self.totals.of(published, &facts));
        // What reads files stands before the lock.
        let survey = |build: &Build| {
            let room = room_of(&totals, &facts, &build.scope.tenant);
            self.survey.cached(build, &room, self.samples(&build.history_key()))
        };
        let seen: Vec<Evaluated> = builds.iter().map(survey).collect();
        self.writer.read(|published| {
            let view = published.ledger.view_with(self.totals.of(published, &facts), &facts, now());
            let judge = |(build, seen): (&Build, Evaluated)| {
                let fit = view.would_be(&wanted(build, &seen.sizing));
                seen.judged(fit, view.totals())
            };
            builds.iter().zip(seen).map(judge).collect()
        })
    }

    /// Reads the ledger as it stands at this moment, with whose turn it is. Keep `read` short: the writer waits.
    pub fn look<R>(&self, read: impl FnOnce(&View<'_>, &Ledger) -> R) -> R {
        let (facts, now) = ((self.facts)(), now());
        self.writer.read(|published| {
            let totals = self.totals.of(published, &facts);
            read(&published.ledger.view_with(totals, &facts, now), &published.ledger)
        })
    }

    /// Why a build that asked now would be told so, with its size; without any network.
    #[must_use]
    pub fn explain(&self, build: &Build) -> (Explanation, Evaluated) {
        let seen = self.evaluate(std::slice::from_ref(build)).swap_remove(0);
        (self.look(|view, _| view.explain(&wanted(build, &seen.sizing))), seen)
    }

    /// From now on nothing that happens to the request is missed.
    #[must_use]
    pub fn wait_for(&self, request: RequestId) -> Waiter {
        self.writer.waiters.join(request)
    }

    /// Leases by `read`, and the token from which a watch goes on from them.
    pub fn list<R>(&self, read: impl FnOnce(&Ledger) -> R) -> (R, String) {
        self.writer.read(|published| (read(&published.ledger), published.changes.token()))
    }

    /// The live leases, and the token from which a watch goes on from them.
    #[must_use]
    pub fn leases(&self) -> (Vec<Arc<Lease>>, String) {
        self.writer.read(|published| published.changes.state(&published.ledger))
    }

    /// The changes of leases since `token`, each with its own.
    ///
    /// # Errors
    /// Where the token is too old, or none of ours.
    pub fn changes(&self, token: &str) -> Result<Vec<(Arc<Lease>, String)>, TokenError> {
        self.writer.read(|published| published.changes.since(token))
    }

    /// A caller who waits is still there: how it stands now. `None`: neither lease nor ticket of this request is known.
    ///
    /// # Errors
    /// When the writer is away.
    pub async fn still_waiting(&self, request: RequestId) -> Result<Option<Answer>, WriterError> {
        match self.writer.ask(Command::Await(request), None).await? {
            Reply::Answer(answer) => Ok(Some(answer)),
            _ => Ok(None),
        }
    }

    /// Ties a lease to its holder, and remembers what controls that where it is a pod.
    ///
    /// # Errors
    /// When there is no such live lease, or another holds it.
    pub async fn bind(&self, lease: LeaseId, holder: Holder, controller: String) -> Result<Lease, WriterError> {
        self.lease_reply(Command::Bind { lease, holder, controller }).await
    }

    /// Keeps a reservation for `span` from now.
    ///
    /// # Errors
    /// When there is no such live lease.
    pub async fn renew(&self, lease: LeaseId, span: Span) -> Result<Lease, WriterError> {
        self.lease_reply(Command::Renew(lease, span)).await
    }

    /// Ends a lease; again is the same as once. What its caller did not measure is what was seen of it, and a build that
    /// failed because its memory ran out is told from one that failed.
    ///
    /// # Errors
    /// When there is no such lease.
    pub async fn release(
        &self,
        id: LeaseId,
        outcome: Outcome,
        exit_code: Option<i32>,
        usage: Option<Usage>,
    ) -> Result<Lease, WriterError> {
        let outcome = self.outcome(&id, &Told { outcome, exit_code, usage, pod: PodEnd::Other }).await;
        self.lease_reply(Command::Release { lease: id, outcome, exit_code, usage }).await
    }

    async fn outcome(&self, id: &LeaseId, told: &Told) -> Outcome {
        let short = (self.facts)().gate.reasons.iter().any(|reason| reason.code == Code::MemoryFloor);
        self.measured.outcome(id, told, short).await
    }

    /// Ends the leases whose holders went without a word: those of which it was seen that memory ended them as that.
    async fn gone(&self, gone: Vec<LeaseId>) {
        let told = Told { outcome: Outcome::Lost, exit_code: None, usage: None, pod: PodEnd::Other };
        let mut outcomes = Vec::with_capacity(gone.len());
        for id in gone {
            outcomes.push((self.outcome(&id, &told).await, id));
        }
        let (killed, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(outcome, _)| *outcome != Outcome::Lost);
        for (outcome, id) in killed {
            if let Err(error) = self.release(id, outcome, None, None).await {
                tracing::warn!(%error, "the ledger did not take the end of a build; tried again soon");
            }
        }
        if !lost.is_empty() {
            let lost = lost.into_iter().map(|(_, id)| id).collect();
            self.tell(Command::Gone(lost, Code::HolderGone)).await;
        }
    }

    /// Gives up a place in the queue.
    ///
    /// # Errors
    /// When there is no such ticket.
    pub async fn cancel(&self, ticket: TicketId) -> Result<(), WriterError> {
        self.writer.ask(Command::Cancel(ticket), None).await.map(|_| ())
    }

    /// Sets what the operator wants.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub async fn set_mode(&self, mode: ModeState) -> Result<(), WriterError> {
        self.writer.ask(Command::SetMode(mode), None).await.map(|_| ())
    }

    /// Reads the ledger after the last commit. Keep `read` short: the writer waits.
    pub fn read<R>(&self, read: impl FnOnce(&Ledger) -> R) -> R {
        self.writer.read(|published| read(&published.ledger))
    }

    /// The same with the totals of the moment.
    pub fn totals<R>(&self, read: impl FnOnce(&Ledger, &Totals) -> R) -> R {
        let facts = (self.facts)();
        self.writer.read(|published| read(&published.ledger, &self.totals.of(published, &facts)))
    }

    /// Why the journal cannot be written, where it cannot.
    #[must_use]
    pub fn journal_error(&self) -> Option<String> {
        self.writer.read(|published| published.journal_error.clone())
    }

    /// What keeps build specs from being read, on this node.
    #[must_use]
    pub fn sizing_fault(&self) -> Option<Reason> {
        self.survey.fault()
    }

    /// Batches that could not be written since the start.
    #[must_use]
    pub fn journal_failures(&self) -> u64 {
        self.writer.read(|published| published.journal_failures)
    }

    /// What keeps the commit of a live lease or ticket.
    #[must_use]
    pub fn pin_of(&self, request: &RequestId) -> Option<SnapshotPin> {
        let pin = || self.writer.read(|published| published.pins.get(request.as_str()).cloned());
        pin().or_else(|| {
            self.take_pins();
            pin()
        })
    }

    /// Takes the pins of leases and tickets that have none: those that were read back while the pool was not there.
    pub fn take_pins(&self) {
        let missing = self.writer.read(|published| {
            let held = published.ledger.live_count().saturating_add(published.ledger.queued());
            let without = |request: &RequestId| !published.pins.contains_key(request.as_str());
            let all = survey::held(&published.ledger).filter(|(request, _)| without(request));
            match held > published.pins.len() {
                true => all.map(|(request, source)| (request.clone(), source.clone())).collect(),
                false => Vec::new(),
            }
        });
        if !missing.is_empty() {
            self.writer.keep(self.survey.pins(missing.iter().map(|(request, source)| (request, source))));
        }
    }

    /// What keeps a commit that was resolved before, by its snapshot's name.
    #[must_use]
    pub fn pin_named(&self, source: &Source) -> Option<SnapshotPin> {
        self.survey.pin_named(source)
    }

    /// Ticks with each change of the ledger.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.writer.version.clone()
    }

    /// Whether a live lease is bound to a process that is gone: its end is near, but takes what it left behind first.
    #[must_use]
    pub fn has_orphans(&self, host_root: &Path) -> bool {
        self.read(|ledger| ledger.live().any(|lease| upkeep::holder_gone(host_root, lease)))
    }

    /// Time passed, or holders went.
    async fn tell(&self, command: Command) {
        if let Err(error) = self.writer.ask(command, None).await {
            tracing::warn!(%error, "the ledger did not take what time did to it; tried again soon");
        }
    }

    async fn lease_reply(&self, command: Command) -> Result<Lease, WriterError> {
        match self.writer.ask(command, None).await? {
            Reply::Lease(lease) => Ok(*lease),
            _ => Err(WriterError::Stopping),
        }
    }

    fn samples(&self, key: &str) -> Vec<Sample> {
        self.writer.read(|published| published.history.of(key).collect())
    }
}

/// What defaults and margins of a tenant's builds are clamped to: the budget, without what others' files take of the pool,
/// and what the tenant may hold.
fn room_of(totals: &Totals, facts: &Facts, tenant: &str) -> Amounts {
    let room = facts.tenants.of(tenant).at_most(totals.derivable());
    // A pool that is away says nothing of what it has: nothing is lowered to that.
    let known = |part: u64| if part == 0 { u64::MAX } else { part };
    Amounts { disk_bytes: known(room.disk_bytes), disk_inodes: known(room.disk_inodes), ..room }
}

/// A digest of a request's content, so that an id is not used for two.
#[must_use]
pub fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new id: 80 bits of time and chance, 16 characters that sort by time and read aloud well (Crockford's base 32).
pub(crate) fn new_id<T: TryFrom<String, Error = NameError>>() -> T {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    loop {
        let bits = uuid::Uuid::now_v7().as_u128();
        // 48 bits of milliseconds, then 32 of the random tail.
        let bits = (bits >> 80) << 32 | (bits & 0xffff_ffff);
        let digit = |place: u32| DIGITS[usize::try_from(bits >> (place * 5) & 31).unwrap_or_default()];
        let text: String = (0..16).rev().map(|place| char::from(digit(place))).collect();
        if let Ok(id) = T::try_from(text) {
            return id; // always: 16 visible characters
        }
    }
}

fn known_request(lease: &Lease) -> Request {
    Request {
        id: lease.request_id.clone(),
        digest: lease.digest.clone(),
        source: lease.source.clone(),
        sizing: lease.sizing.clone(),
        scope: lease.scope.clone(),
        target: lease.target.clone(),
        cache_keys: lease.cache_keys.clone(),
        attempt: lease.attempt,
        bind_within: Span(0),
        priority: 0,
        expected: lease.expected,
        retry_of: lease.retry_of.clone(),
        no_retry: lease.no_retry,
        terms: lease.terms.clone(),
        asked: None,
    }
}

fn wanted<'a>(build: &'a Build, sizing: &'a Sizing) -> Wanted<'a> {
    Wanted { tenant: &build.scope.tenant, size: &sizing.size, priority: 0, bind_within: BIND_WITHIN }
}
