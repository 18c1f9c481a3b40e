//! The ledger at one moment: what it adds up to, whose turn it is, and what each build is told.
//!
//! Leases are added up and sorted once a view, however many builds are judged against it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{OnceCell, RefCell};

use crate::pressure::GateState;
use crate::quantity::{Amounts, Size, Span, Timestamp};
use crate::reason::{Code, Reason};

use super::fit;
use super::order::{Key, Standing, cost, rank, was_passed};
use super::reserve::{Passes, Reservation};
use super::{Facts, Holds, Lease, Ledger, Request, Ticket, Totals};

/// How many that wait behind the head are looked at for one that may pass it.
const LOOKED_AT: usize = 1000;
/// More than any small build has.
const ALL: Amounts =
    Amounts { cpu_millis: u64::MAX, memory_bytes: u64::MAX, disk_bytes: u64::MAX, disk_inodes: u64::MAX };

/// What a size is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It may start.
    Now,
    /// Not now.
    Later {
        /// Why.
        reasons: Vec<Reason>,
        /// When to ask again.
        retry_after: Span,
    },
    /// Not on this node, ever.
    Never(Vec<Reason>),
}

/// A build that asks what it would be told.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Who for.
    pub tenant: &'a str,
    /// How big.
    pub size: &'a Size,
    /// As in [`Request::priority`].
    pub priority: i32,
    /// How long a grant may stay unbound.
    pub bind_within: Span,
}

/// A ticket at its place in the queue of one moment.
#[derive(Debug, Clone, Copy)]
pub struct Queued<'a> {
    /// Which.
    pub ticket: &'a Arc<Ticket>,
    /// How many are before it.
    pub ahead: usize,
    key: Key,
}

/// The ledger and the facts of one moment.
#[derive(Debug)]
pub struct View<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) facts: &'a Facts,
    pub(super) now: Timestamp,
    pub(super) totals: Totals,
    head: OnceCell<Option<Head>>,
    rival: OnceCell<Option<Key>>,
    next: OnceCell<Option<Next>>,
    hint: OnceCell<Span>,
    ends: OnceCell<Vec<Ending>>,
    holds: RefCell<BTreeMap<&'a str, Holds>>,
}

/// Who may start now, and whether it is the head.
type Next = (Arc<Ticket>, Key, bool);

/// A live lease that is likely to end then, and what it holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) at: Timestamp,
    pub(super) order: u64,
    pub(super) held: Amounts,
}

/// Who is next, and what is kept for it.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) key: Key,
    pub(super) ticket: Arc<Ticket>,
    pub(super) reservation: Option<Reservation>,
    /// Builds whose pods are here already may pass it.
    pub(super) placed_pass: bool,
}

/// One that is judged: what it wants, and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contender<'a> {
    pub(super) standing: Standing<'a>,
    pub(super) key: Key,
    pub(super) amounts: Amounts,
    /// At most, from now.
    pub(super) lasts: Span,
    /// Its pod is on the node already.
    pub(super) placed: bool,
}

impl Ledger {
    /// The ledger at this moment.
    #[must_use]
    pub fn view<'a>(&'a self, facts: &'a Facts, now: Timestamp) -> View<'a> {
        self.view_with(self.totals(facts), facts, now)
    }

    /// The same with totals that were made before, of this very ledger by the same facts.
    #[must_use]
    pub fn view_with<'a>(&'a self, totals: Totals, facts: &'a Facts, now: Timestamp) -> View<'a> {
        View {
            ledger: self,
            facts,
            now,
            totals,
            head: OnceCell::new(),
            rival: OnceCell::new(),
            next: OnceCell::new(),
            hint: OnceCell::new(),
            ends: OnceCell::new(),
            holds: RefCell::default(),
        }
    }
}

impl<'a> View<'a> {
    /// What is held, what is left.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Why nothing may start now, whatever its size: the mode, a shut gate, the bounds.
    #[must_use]
    pub fn closed(&self) -> Vec<Reason> {
        if self.nobody_starts() { self.held_back(Amounts::default(), false) } else { Vec::new() }
    }

    /// The facts of the moment.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        self.facts
    }

    /// CPU and memory that a build has at most while only small ones may start; unset: larger ones may.
    #[must_use]
    pub fn small_only(&self) -> Option<Amounts> {
        let narrow = self.facts.gate.state == GateState::Narrow && self.gate_holds(ALL);
        narrow.then(|| self.facts.sizing.ladder.small().unwrap_or_default())
    }

    /// The queue in the order of its turns, head first.
    pub fn queue(&self) -> impl Iterator<Item = &'a Arc<Ticket>> {
        self.ledger.in_turn(self.facts, self.now).map(|(_, ticket)| ticket)
    }

    /// What a build would be told that asked now, and when such a size would fit by what is known of the leases.
    #[must_use]
    pub fn would_be(&self, wanted: &Wanted<'_>) -> Fit {
        let standing = Standing {
            tenant: wanted.tenant,
            rank: core::cmp::Reverse(wanted.priority),
            order: self.ledger.next_order(),
            cost: cost(wanted.size, &self.totals.budget),
        };
        let lasts = lasts(wanted.size, wanted.bind_within);
        self.newcomer(&standing, wanted.size.amounts, lasts, false).1
    }

    /// What a ticket is told.
    #[must_use]
    pub fn waits(&self, ticket: &Ticket) -> Fit {
        let (contender, ahead) = self.of_ticket(ticket);
        self.judge(&contender, ahead)
    }

    /// The queue with all places, head first.
    pub fn places(&self) -> impl Iterator<Item = Queued<'a>> {
        let queue = self.ledger.in_turn(self.facts, self.now).enumerate();
        queue.map(|(ahead, (key, ticket))| Queued { ticket, ahead, key })
    }

    /// What a ticket is told at its place.
    #[must_use]
    pub fn waits_at(&self, queued: &Queued<'_>) -> Fit {
        self.judge(&contender(queued.ticket, queued.key), queued.ahead)
    }

    /// What one without a ticket is told, and how many are before it. It starts only where nobody who waits could.
    pub(super) fn newcomer(
        &self,
        standing: &Standing<'_>,
        amounts: Amounts,
        lasts: Span,
        placed: bool,
    ) -> (usize, Fit) {
        let (key, ahead) = self.stands(standing);
        let contender = Contender { standing: *standing, key, amounts, lasts, placed };
        let fit = self.judge(&contender, ahead);
        if fit != Fit::Now || self.next().is_none_or(|(_, before, _)| key < *before) {
            return (ahead, fit);
        }
        (ahead, Fit::Later { reasons: Vec::from([self.queue_ahead(ahead, None)]), retry_after: self.hint() })
    }

    pub(super) fn of_ticket<'t>(&self, ticket: &'t Ticket) -> (Contender<'t>, usize) {
        let standing = Standing::of(ticket);
        let (key, ahead) = self.stands(&standing);
        (contender(ticket, key), ahead)
    }

    fn stands(&self, standing: &Standing<'_>) -> (Key, usize) {
        self.ledger.stands(standing, self.facts, self.now)
    }

    /// The first that could ever start here and that its tenant may have: nothing may make it wait longer.
    pub(super) fn head(&self) -> Option<&Head> {
        let find = || {
            let (key, ticket) = self.with_a_turn().next()?;
            let reservation = self.kept_for(ticket);
            Some(Head { key, ticket: Arc::clone(ticket), reservation, placed_pass: self.placed_pass(ticket) })
        };
        self.head.get_or_init(find).as_ref()
    }

    /// The first of another tenant than the head's.
    pub(super) fn rival(&self, head: &Head) -> Option<Key> {
        let of = |ticket: &Ticket| ticket.request.scope.tenant != head.ticket.request.scope.tenant;
        *self.rival.get_or_init(|| self.with_a_turn().find(|(_, ticket)| of(ticket)).map(|(key, _)| key))
    }

    /// The queue without those in nobody's way: one that fits no more (the node became smaller) is told so when it asks,
    /// and where a tenant is at its cap, its builds wait for its own.
    fn with_a_turn(&self) -> impl Iterator<Item = (Key, &'a Arc<Ticket>)> {
        let mut at_cap: BTreeSet<&'a str> = BTreeSet::new();
        self.ledger.in_turn(self.facts, self.now).filter(move |(_, ticket)| {
            let (tenant, amounts) = (ticket.request.scope.tenant.as_str(), ticket.request.sizing.size.amounts);
            if self.never_fits(tenant, amounts) || at_cap.contains(tenant) {
                return false;
            }
            let crossed = self.quota(tenant, amounts).next().is_some();
            if crossed {
                at_cap.insert(tenant);
            }
            !crossed
        })
    }

    /// Whether one before it in its tenant's own line waits for the tenant's cap: that one is not passed.
    fn behind_a_cap(&self, standing: &Standing<'_>) -> bool {
        let of = |ticket: &Arc<Ticket>| ticket.request.sizing.size.amounts;
        let tenant = standing.tenant;
        let mut before = self.ledger.own_before(standing, self.facts, self.now);
        self.facts.tenants.of(tenant).is_limited()
            && before
                .any(|ticket| !self.never_fits(tenant, of(ticket)) && self.quota(tenant, of(ticket)).next().is_some())
    }

    /// What a tenant's live leases hold.
    pub(super) fn held_by(&self, tenant: &str) -> Holds {
        if let Some(holds) = self.holds.borrow().get(tenant) {
            return *holds;
        }
        let Some((name, line)) = self.ledger.named_line(tenant) else { return Holds::default() };
        *self.holds.borrow_mut().entry(name).or_insert_with(|| line.holds(self.facts))
    }

    /// The live leases by their likely ends.
    pub(super) fn ends(&self) -> &[Ending] {
        self.ends.get_or_init(|| self.by_end(|lease| lease.likely_end(self.now)))
    }

    /// The live leases by the ends that `end` tells.
    pub(super) fn by_end(&self, end: impl Fn(&Lease) -> Timestamp) -> Vec<Ending> {
        let ending =
            |lease: &Arc<Lease>| Ending { at: end(lease), order: lease.place.order, held: self.facts.held(lease) };
        let mut ends: Vec<_> = self.ledger.live().map(ending).collect();
        ends.sort_by_key(|ending| (ending.at, ending.order));
        ends
    }

    /// Who may start now, where anybody may.
    pub(super) fn next(&self) -> Option<&Next> {
        self.next.get_or_init(|| self.find_next()).as_ref()
    }

    fn find_next(&self) -> Option<Next> {
        if self.ledger.queued() == 0 || self.nobody_starts() {
            return None;
        }
        let head = self.head()?;
        let starts = |ticket: &Ticket, key: Key| self.starts(&contender(ticket, key));
        if starts(&head.ticket, head.key) {
            return Some((Arc::clone(&head.ticket), head.key, true));
        }
        if was_passed(&head.ticket, self.facts, self.now) && !head.placed_pass {
            return None;
        }
        let behind = self.with_a_turn().skip(1).take(LOOKED_AT);
        let (key, ticket) = { behind }.find(|(key, ticket)| starts(ticket, *key))?;
        Some((Arc::clone(ticket), key, false))
    }

    /// As [`Self::judge`] says, in fewer words.
    fn starts(&self, one: &Contender<'_>) -> bool {
        self.is_let_in(one.amounts, one.placed)
            && self.has_room(one.amounts, one.placed)
            && self.quota(one.standing.tenant, one.amounts).next().is_none()
            && self.passes(one) == Passes::Yes
    }

    /// Whether it stands before all that have a turn, or may pass the first of them.
    pub(super) fn passes(&self, one: &Contender<'_>) -> Passes {
        match self.head() {
            Some(head) if head.key < one.key => self.passes_head(one, head),
            _ => Passes::Yes,
        }
    }

    /// All that stands between it and its start, in the order in which people are told.
    pub(super) fn judge(&self, one: &Contender<'_>, ahead: usize) -> Fit {
        let never = self.never(one.standing.tenant, one.amounts);
        if !never.is_empty() {
            return Fit::Never(never);
        }
        let mut reasons = self.held_back(one.amounts, one.placed);
        let first_alone = self.ledger.live_count() == 0 && reasons.is_empty();
        reasons.extend(self.no_room(one.amounts, first_alone, one.placed));
        reasons.extend(self.quota_reasons(one.standing.tenant, one.amounts));
        match self.passes(one) {
            Passes::Yes if self.behind_a_cap(&one.standing) => {
                reasons.push(self.queue_ahead(ahead, Some("one of its own tenant's waits for the tenant's quota")));
            }
            Passes::Yes => {}
            Passes::No(why) => reasons.push(self.queue_ahead(ahead, Some(why))),
        }
        if reasons.is_empty() { Fit::Now } else { Fit::Later { retry_after: self.hint(), reasons } }
    }

    pub(super) fn queue_ahead(&self, ahead: usize, why: Option<&'static str>) -> Reason {
        let why = why.map(|why| alloc::format!("; {why}")).unwrap_or_default();
        let message = match ahead {
            0 => alloc::format!("another build is before it{why}"),
            1 => alloc::format!("1 build waits before it{why}"),
            _ => alloc::format!("{ahead} builds wait before it{why}"),
        };
        let until = self.head().and_then(|head| head.reservation).map(|kept| kept.at);
        Reason { expected_until: until, ..Reason::new(Code::QueueAhead, "queue", message) }
    }

    /// When to ask again: at the first predicted release, within 5 to 120 s, and not all at once.
    pub(super) fn hint(&self) -> Span {
        *self.hint.get_or_init(|| {
            fit::hint(self.ledger.live().map(|lease| lease.next_end(self.now)).min(), self.facts.jitter, self.now)
        })
    }
}

/// A ticket, as one that is judged.
pub(super) fn contender(ticket: &Ticket, key: Key) -> Contender<'_> {
    let (request, standing) = (&ticket.request, Standing::of(ticket));
    let size = &request.sizing.size;
    let placed = !request.terms.pod.is_empty();
    Contender { standing, key, amounts: size.amounts, lasts: lasts(size, request.bind_within), placed }
}

/// A request that has no ticket, at the place of `order`.
pub(super) fn standing_of<'r>(request: &'r Request, order: u64, budget: &Amounts) -> Standing<'r> {
    let cost = cost(&request.sizing.size, budget);
    Standing { tenant: &request.scope.tenant, rank: rank(request), order, cost }
}

/// The longest that a build of this size can hold its room, from now.
pub(super) const fn lasts(size: &Size, bind_within: Span) -> Span {
    let bound = bind_within.0.saturating_add(size.time_budget.0);
    Span(bound.saturating_add(super::time::END_GRACE.0))
}
