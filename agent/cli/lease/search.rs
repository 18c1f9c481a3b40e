//! A place for a build on any node: the best that has room now, else waiting on the best three at once.
//!
//! One request id for all agents. Asked for again after a break, a request finds what it has where it is; and whatever it
//! has elsewhere when it ends (an answer, an error, a signal) is given back. Who is killed leaves tickets and grants
//! that nobody confirms, and those run out by themselves.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use stoker_proto::v1::admit_response::Decision;
use stoker_proto::v1::{self, AdmitResponse};
use tonic::Code;

use super::super::ask::{self, Failure, within};
use super::super::client::Client;
use super::super::fleet::{self, Answers, Fleet, Has, Heard};
use super::super::{screen, table};
use super::admit::{Notes, decided, interrupted};
use super::give_back;

/// On so many agents one request waits.
const PLACES: usize = 3;
/// On so many where others turned out to have room meanwhile.
const PLACES_MAX: usize = 6;
/// Agents that are asked for it one after the other before it waits.
const TRIES_MAX: usize = 8;
/// How often an agent may fail one that waits on it before it is left.
const FAILURES_MAX: u32 = 3;
/// Until an agent that failed is asked again, each time it did.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at all agents while it waits.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// An answer, and whose it is.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) address: SocketAddr,
    pub(super) answer: AdmitResponse,
}

impl Placed {
    /// Whether there is something that is to be kept: a lease, or a place in the queue.
    fn is_something(&self) -> bool {
        match &self.answer.decision {
            Some(Decision::Granted(_)) => true,
            Some(Decision::Waiting(waiting)) => waiting.ticket.is_some(),
            _ => false,
        }
    }
}

/// An agent that may be waited on.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    address: SocketAddr,
    failures: u32,
}

/// What happens to one that waits.
enum Event {
    Left(Candidate, Box<Result<AdmitResponse, Failure>>),
    Looked(Result<Answers, Failure>),
}

/// What was said but yes.
#[derive(Default)]
struct Noes {
    /// The one that is to be told: with a ticket, else with the least hint.
    waiting: Option<Placed>,
    waits: usize,
    rejected: Option<Placed>,
    failed: Option<Failure>,
    /// Not all agents answered at all.
    is_missing: bool,
}

/// One request at all agents.
struct Search<'a> {
    fleet: Fleet<'a>,
    request: &'a v1::AdmitRequest,
    /// Who was asked for it, and whether an answer came.
    asked: RefCell<BTreeMap<SocketAddr, bool>>,
    notes: RefCell<Notes>,
}

/// Asks the best, and with `wait` waits on the best three. None where somebody interrupted.
pub(super) async fn admit(fleet: Fleet<'_>, request: &v1::AdmitRequest, wait: bool) -> Result<Option<Placed>, Failure> {
    let (asked, notes) = (RefCell::default(), RefCell::new(Notes::default()));
    let search = Search { fleet, request, asked, notes };
    let ended = tokio::select! {
        () = interrupted() => None,
        ended = search.run(wait) => Some(ended),
    };
    // From here on nobody awaits a place any more.
    let Search { asked, .. } = search;
    let mut asked = asked.into_inner();
    if let Some(Ok(placed)) = ended.as_ref()
        && placed.is_something()
    {
        asked.remove(&placed.address);
    }
    give_back::everywhere(&fleet, &request.request_id, asked).await;
    if ended.is_none() {
        screen::say("interrupted: what the agents had of this request was given back");
    }
    ended.transpose()
}

impl Search<'_> {
    async fn run(&self, wait: bool) -> Result<Placed, Failure> {
        let build = self.request.build.clone().unwrap_or_default();
        let answers = self.fleet.ask(&build, &self.request.request_id).await?;
        if !answers.missing.is_empty() {
            screen::say(&format!("without an answer:\n{}", fleet::told(&answers.missing)));
        }
        if let Some(held) = self.found(&answers.heard) {
            return self.again(held).await;
        }
        let mut noes = Noes { is_missing: !answers.missing.is_empty(), ..Noes::default() };
        let mut candidates: Vec<&Heard> = answers.heard.iter().filter(|heard| !is_spent(heard)).collect();
        // Where it has a place already it has waited longest.
        candidates.sort_by_key(|heard| !matches!(heard.has, Has::Ticket(_)));
        if let Some(granted) = self.try_now(&candidates, wait, &mut noes).await? {
            return Ok(granted);
        }
        if wait {
            let candidates = candidates.into_iter().filter(may_take);
            let candidates = candidates.map(|heard| Candidate { address: heard.address, failures: 0 }).collect();
            return self.wait(candidates, noes).await;
        }
        self.take_ticket(noes).await
    }

    /// The lease that this request has already: one that lives, else one that has ended. All else of it is superfluous.
    fn found<'h>(&self, heard: &'h [Heard]) -> Option<&'h Heard> {
        let has_lease = |heard: &&Heard| matches!(heard.has, Has::Lease(_)) && !is_spent(heard);
        let order = |heard: &&Heard| match &heard.has {
            Has::Lease(lease) => (lease.ended_at.is_some(), lease.bound_at.is_none(), lease.id.clone()),
            _ => (true, true, String::new()),
        };
        let found = heard.iter().filter(has_lease).min_by_key(order);
        let others = heard.iter().filter(|one| one.has != Has::Nothing && !is_spent(one));
        let others = others.filter(|one| found.is_none_or(|found| found.address != one.address));
        self.asked.borrow_mut().extend(others.map(|one| (one.address, true)));
        found
    }

    /// It is asked for where it is, and nowhere else: nobody is to have two. What was there before is not given back.
    async fn again(&self, held: &Heard) -> Result<Placed, Failure> {
        let client = self.fleet.client(held.address).await?;
        let answer = client.admission().admit(within(ask::UPSTREAM, self.request.clone())).await?.into_inner();
        Ok(Placed { address: held.address, answer })
    }

    /// Asks for a lease, one agent after the other. Before it waits only those are asked that have room, or all say no.
    async fn try_now(
        &self,
        candidates: &[&Heard],
        will_wait: bool,
        noes: &mut Noes,
    ) -> Result<Option<Placed>, Failure> {
        let is_never = |heard: &&Heard| heard.evaluation.verdict() == v1::Verdict::Never;
        let all_say_no = candidates.iter().all(is_never);
        let worth = |heard: &&&Heard| match heard.evaluation.verdict() {
            v1::Verdict::Fits => true,
            v1::Verdict::Never => all_say_no,
            _ => !will_wait,
        };
        for heard in candidates.iter().filter(worth).take(TRIES_MAX) {
            // What all say no to is asked for once, for the words.
            if noes.waits >= PLACES || (all_say_no && noes.rejected.is_some()) {
                break;
            }
            match self.ask_for(heard.address, false).await {
                Ok(answer) if matches!(answer.decision, Some(Decision::Granted(_))) => {
                    return Ok(Some(Placed { address: heard.address, answer }));
                }
                said => self.no(heard.address, said, noes)?,
            }
        }
        Ok(None)
    }

    /// A place in the queue where it waits least, where one is wanted; and what there is to tell.
    async fn take_ticket(&self, noes: Noes) -> Result<Placed, Failure> {
        if self.request.take_ticket
            && let Some(address) = noes.waiting.as_ref().filter(|placed| !placed.is_something()).map(|no| no.address)
        {
            let answer = self.ask_for(address, true).await?;
            return Ok(Placed { address, answer });
        }
        noes.told()
    }

    /// Waits on the best three, and looks around for others that have room by now.
    async fn wait(&self, mut candidates: VecDeque<Candidate>, noes: Noes) -> Result<Placed, Failure> {
        // What was a hint is over when nobody is left to wait on.
        let mut noes = Noes { waiting: None, ..noes };
        let mut events: FuturesUnordered<LocalBoxFuture<'_, Event>> = FuturesUnordered::new();
        let (mut at, mut refused) = (BTreeSet::new(), BTreeSet::new());
        events.push(Box::pin(self.look_around()));
        loop {
            while at.len() < PLACES
                && let Some(next) = candidates.pop_front()
            {
                at.insert(next.address);
                events.push(Box::pin(self.wait_at(next)));
            }
            if at.is_empty() {
                return noes.told();
            }
            match events.next().await {
                Some(Event::Left(left, said)) => {
                    at.remove(&left.address);
                    let failures = left.failures + 1;
                    match *said {
                        Ok(answer) if matches!(answer.decision, Some(Decision::Granted(_))) => {
                            return Ok(Placed { address: left.address, answer });
                        }
                        Ok(_) => drop(refused.insert(left.address)),
                        Err(_) if failures < FAILURES_MAX => candidates.push_back(Candidate { failures, ..left }),
                        Err(_) => {}
                    }
                    self.no(left.address, *said, &mut noes)?;
                }
                Some(Event::Looked(answers)) => {
                    events.push(Box::pin(self.look_around()));
                    // Nobody there: those that it waits on say it themselves.
                    let Ok(answers) = answers else { continue };
                    let is_new = |one: &&Heard| !at.contains(&one.address) && !refused.contains(&one.address);
                    let others: Vec<&Heard> = answers.heard.iter().filter(is_new).filter(may_take).collect();
                    candidates = others.iter().map(|one| Candidate { address: one.address, failures: 0 }).collect();
                    let has_room = others.first().is_some_and(|one| one.evaluation.verdict() == v1::Verdict::Fits);
                    if has_room
                        && at.len() < PLACES_MAX
                        && let Some(room) = candidates.pop_front()
                    {
                        at.insert(room.address);
                        events.push(Box::pin(self.wait_at(room)));
                    }
                }
                None => return noes.told(),
            }
        }
    }

    async fn look_around(&self) -> Event {
        tokio::time::sleep(LOOK_EVERY).await;
        let build = self.request.build.clone().unwrap_or_default();
        Event::Looked(self.fleet.ask(&build, &self.request.request_id).await)
    }

    async fn wait_at(&self, candidate: Candidate) -> Event {
        tokio::time::sleep(PAUSE * candidate.failures).await;
        let followed = async {
            let client = self.reach(candidate.address).await?;
            let waits = |node: &str, waiting: &v1::Waiting| {
                self.asked.borrow_mut().insert(candidate.address, true);
                self.notes.borrow_mut().waits(Some(node), waiting);
            };
            decided(&client, self.request, waits).await
        };
        Event::Left(candidate, Box::new(followed.await))
    }

    async fn ask_for(&self, address: SocketAddr, take_ticket: bool) -> Result<AdmitResponse, Failure> {
        let client = self.reach(address).await?;
        let request = v1::AdmitRequest { take_ticket, ..self.request.clone() };
        let answer = client.admission().admit(within(ask::UPSTREAM, request)).await?.into_inner();
        self.asked.borrow_mut().insert(address, true);
        Ok(answer)
    }

    /// An agent that is about to be asked for it: from now on it may have something of it.
    async fn reach(&self, address: SocketAddr) -> Result<Client, Failure> {
        let client = self.fleet.client(address).await?;
        self.asked.borrow_mut().entry(address).or_insert(false);
        Ok(client)
    }

    /// Remembers what was said. What is wrong with the request itself is wrong everywhere.
    fn no(&self, address: SocketAddr, said: Result<AdmitResponse, Failure>, noes: &mut Noes) -> Result<(), Failure> {
        match said {
            Ok(answer) => noes.add(Placed { address, answer }),
            Err(Failure::Refused(status)) if matches!(status.code(), Code::InvalidArgument | Code::AlreadyExists) => {
                return Err(Failure::Refused(status));
            }
            Err(failure) => {
                self.notes.borrow_mut().say(&format!("{address}: {}", ask::words(&failure)));
                noes.failed = Some(failure);
            }
        }
        Ok(())
    }
}

impl Noes {
    fn add(&mut self, placed: Placed) {
        let order = |placed: &Placed| match &placed.answer.decision {
            Some(Decision::Waiting(waiting)) => {
                let hint = waiting.retry_after.as_ref().map(|hint| (hint.seconds, hint.nanos));
                (waiting.ticket.is_none(), hint)
            }
            _ => (true, None),
        };
        match &placed.answer.decision {
            Some(Decision::Waiting(_)) => {
                self.waits += 1;
                if self.waiting.as_ref().is_none_or(|best| order(&placed) < order(best)) {
                    self.waiting = Some(placed);
                }
            }
            _ => self.rejected = Some(placed),
        }
    }

    /// What the fleet says. No is its answer where nobody is missing who might say otherwise.
    fn told(self) -> Result<Placed, Failure> {
        if let Some(waiting) = self.waiting {
            return Ok(waiting);
        }
        let is_partial = self.is_missing || self.failed.is_some(); // somebody might say something else
        if let Some(rejected) = self.rejected {
            let why = match &rejected.answer.decision {
                Some(Decision::Rejected(rejection)) if is_partial && !rejection.final_everywhere => rejection,
                _ => return Ok(rejected),
            };
            let why = why.reasons.iter().map(table::reason_line).collect::<Vec<_>>().join("; ");
            let text = format!("who answers says no ({why}), and not all agents answer: ask again");
            return Err(anyhow!(text).into());
        }
        Err(self.failed.unwrap_or_else(|| anyhow!("what the agents had of this request is over: use a new id").into()))
    }
}

/// Whether it may be granted there, now or later.
fn may_take(heard: &&Heard) -> bool {
    heard.evaluation.verdict() != v1::Verdict::Never && !is_spent(heard)
}

/// Whether it was granted there for nothing: given back, or run out before a build came. By this id that agent says
/// nothing else for a day; others may have room.
fn is_spent(heard: &Heard) -> bool {
    let Has::Lease(lease) = &heard.has else { return false };
    let is_given_back = lease.state() == v1::LeaseState::Released && lease.outcome() == v1::Outcome::Lost;
    lease.bound_at.is_none() && (is_given_back || lease.state() == v1::LeaseState::Expired)
}
