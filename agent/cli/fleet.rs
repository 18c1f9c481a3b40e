//! All agents behind one name, as the headless Service `stoker-agents` has them: what each says of a build, the best
//! first.
//!
//! To ask changes nothing. Who is silent costs its own deadline, and the others' answers nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::stream::{self, StreamExt as _};
use stoker_proto::v1;
use tonic::{Code, Status};

use super::ask::{self, Failure, within};
use super::client::Client;
use super::{Common, screen};

/// Agents that are asked at most.
const AGENTS_MAX: usize = 1024;
/// Agents that are asked at the same time.
const AT_ONCE_MAX: usize = 256;
/// What a resolver may take.
const RESOLVED_WITHIN: Duration = Duration::from_secs(5);
/// What one agent may take: it answers from memory.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// Agents without an answer that are named, of all that there are.
const NAMED_MAX: usize = 8;

/// `NAME:PORT`, where the name has an address for each agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    host: String,
    port: u16,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A name as people write it; of an address of IPv6 with brackets.
pub(crate) fn name(text: &str) -> Result<Name, String> {
    let wrong = || "write NAME:PORT, as `stoker-agents.stoker.svc:9417`".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_one = bare.map_or(!host.contains([':', '/', '[', ']', '@']), |bare| bare.contains(':'));
    let host = bare.unwrap_or(host);
    if host.is_empty() || !is_one {
        return Err(wrong());
    }
    Ok(Name { host: host.to_owned(), port })
}

/// What an agent has already of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Has {
    Nothing,
    /// By its id.
    Ticket(String),
    Lease(Box<v1::Lease>),
}

/// What an agent said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Heard {
    pub(crate) address: SocketAddr,
    pub(crate) node: v1::Node,
    pub(crate) evaluation: v1::Evaluation,
    pub(crate) has: Has,
}

/// Why an agent said nothing.
#[derive(Debug)]
pub(crate) enum Why {
    Refused(Box<Status>),
    Away(String),
}

impl From<Status> for Why {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Self::Away(ask::refusal(&status))
            }
            _ => Self::Refused(Box::new(status)),
        }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(status) => f.write_str(&ask::refusal(status)),
            Self::Away(why) => f.write_str(why),
        }
    }
}

/// What all said.
#[derive(Debug)]
pub(crate) struct Answers {
    /// The best first.
    pub(crate) heard: Vec<Heard>,
    /// Who gave no answer, in the order of their addresses.
    pub(crate) missing: BTreeMap<SocketAddr, Why>,
}

/// All agents of a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fleet<'a> {
    common: &'a Common,
    name: &'a Name,
    /// Of agents that are equally good, each seed has another order.
    seed: &'a str,
}

impl<'a> Fleet<'a> {
    pub(crate) const fn new(common: &'a Common, name: &'a Name, seed: &'a str) -> Self {
        Self { common, name, seed }
    }

    /// Whom certificates name: what was said, else the name by which the agents were found.
    pub(crate) fn server_name(&self) -> &str {
        // A name that no search list changes may end with a dot; certificates have none.
        self.common.server_name().unwrap_or_else(|| self.name.host.trim_end_matches('.'))
    }

    /// One of them. What says who asks is read each time: tokens are written anew while somebody waits.
    pub(crate) async fn client(&self, address: SocketAddr) -> anyhow::Result<Client> {
        Client::at_address(self.common, &address.to_string(), Some(self.server_name())).await
    }

    /// What each says of a build, and what it has of a request, where that has a name.
    ///
    /// # Errors
    ///
    /// Where the name has no address, or none of them an answer.
    pub(crate) async fn ask(&self, build: &v1::Build, request_id: &str) -> Result<Answers, Failure> {
        let addresses = self.addresses().await?;
        let asked = stream::iter(addresses).map(|address| async move {
            let heard = tokio::time::timeout(ANSWERED_WITHIN, self.ask_one(address, build, request_id)).await;
            let silent = || Why::Away(format!("no answer within {} s", ANSWERED_WITHIN.as_secs()));
            (address, heard.unwrap_or_else(|_| Err(silent())))
        });
        let mut answers = Answers { heard: Vec::new(), missing: BTreeMap::new() };
        let mut asked = asked.buffer_unordered(AT_ONCE_MAX);
        while let Some((address, said)) = asked.next().await {
            match said {
                Ok(heard) => answers.heard.push(heard),
                Err(why) => drop(answers.missing.insert(address, why)),
            }
        }
        if answers.heard.is_empty() {
            return Err(self.nobody(answers.missing));
        }
        rank(&mut answers.heard, self.seed);
        Ok(answers)
    }

    async fn ask_one(&self, address: SocketAddr, build: &v1::Build, request_id: &str) -> Result<Heard, Why> {
        let client = self.client(address).await.map_err(|error| Why::Away(format!("{error:#}")))?;
        let evaluated = async {
            let request = v1::EvaluateRequest { builds: vec![build.clone()] };
            client.admission().evaluate(within(ask::SOON, request)).await
        };
        let (evaluated, has) = tokio::try_join!(evaluated, has(&client, request_id))?;
        let v1::EvaluateResponse { node, evaluations } = evaluated.into_inner();
        match (node, evaluations.into_iter().next()) {
            (Some(node), Some(evaluation)) => Ok(Heard { address, node, evaluation, has }),
            _ => Err(Why::Away("its answer is not whole; is it of another version?".to_owned())),
        }
    }

    /// All addresses of the name, once each.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let found = tokio::net::lookup_host((self.name.host.as_str(), self.name.port));
        let found = tokio::time::timeout(RESOLVED_WITHIN, found).await;
        let found = found.with_context(|| {
            format!("no agent answers: --fleet {} was not resolved within {} s", self.name, RESOLVED_WITHIN.as_secs())
        })?;
        let found =
            found.map_err(|error| anyhow!("no agent answers: --fleet {} has no address: {error}", self.name))?;
        let found: BTreeSet<SocketAddr> = found.collect();
        if found.len() > AGENTS_MAX {
            screen::say(&format!("{} has {} addresses: {AGENTS_MAX} are asked", self.name, found.len()));
        }
        Ok(bounded(found, self.seed))
    }

    /// A refusal says more than a silence.
    fn nobody(&self, missing: BTreeMap<SocketAddr, Why>) -> Failure {
        let text = format!("no agent answers: {} asked at {}\n{}", missing.len(), self.name, told(&missing));
        let refused = missing.into_values().find_map(|why| match why {
            Why::Refused(status) => Some(status),
            Why::Away(_) => None,
        });
        refused.map_or_else(|| Failure::Failed(anyhow!(text)), Failure::Refused)
    }
}

/// What an agent has of a request.
pub(crate) async fn has(client: &Client, request_id: &str) -> Result<Has, Status> {
    if request_id.is_empty() {
        return Ok(Has::Nothing);
    }
    let what = v1::explain_request::What::RequestId(request_id.to_owned());
    let request = within(ask::SOON, v1::ExplainRequest { what: Some(what) });
    match client.admission().explain(request).await.map(|answer| answer.into_inner().explanation) {
        Ok(Some(v1::Explanation { lease: Some(lease), .. })) => Ok(Has::Lease(Box::new(lease))),
        Ok(Some(v1::Explanation { ticket: Some(ticket), .. })) => Ok(Has::Ticket(ticket.id)),
        Ok(_) => Ok(Has::Nothing),
        Err(status) if status.code() == Code::NotFound => Ok(Has::Nothing),
        Err(status) => Err(status),
    }
}

/// Who gave no answer and why, a line each.
pub(crate) fn told(missing: &BTreeMap<SocketAddr, Why>) -> String {
    let named = missing.iter().take(NAMED_MAX).map(|(address, why)| {
        let why = why.to_string();
        // A connection that was not made says already where.
        let why = why.strip_prefix(&format!("no agent answers at {address}: ")).unwrap_or(&why);
        format!("  {address}: {why}")
    });
    let more = missing.len().saturating_sub(NAMED_MAX);
    let more = (more > 0).then(|| format!("  and {more} more"));
    named.chain(more).collect::<Vec<_>>().join("\n")
}

fn dice(seed: &str, of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, of).hash(&mut hasher);
    hasher.finish()
}

/// As many as are asked; of too many, those that the seed chooses, and the same ones each time.
fn bounded(found: BTreeSet<SocketAddr>, seed: &str) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = found.into_iter().collect();
    if addresses.len() > AGENTS_MAX {
        addresses.sort_by_key(|address| dice(seed, address));
        addresses.truncate(AGENTS_MAX);
    }
    addresses
}

/// The best first: what it was told, its score, the shorter wait. Equals stand in an order of the seed's own, so that
/// many who ask at once do not all begin with the same one. An agent with two addresses counts once.
fn rank(heard: &mut Vec<Heard>, seed: &str) {
    let verdict = |heard: &Heard| match heard.evaluation.verdict() {
        v1::Verdict::Fits => 0,
        v1::Verdict::Waits | v1::Verdict::Unspecified => 1,
        v1::Verdict::Never => 2,
    };
    let wait = |heard: &Heard| {
        let wait = heard.evaluation.predicted_wait.as_ref();
        wait.map_or((0, 0), |wait| (wait.seconds, wait.nanos))
    };
    heard.sort_by_key(|one| {
        (verdict(one), Reverse(one.evaluation.score), wait(one), dice(seed, &one.node.name), one.address)
    });
    let mut seen = BTreeSet::new();
    heard.retain(|one| one.node.incarnation.is_empty() || seen.insert(one.node.incarnation.clone()));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn heard(name: &str, verdict: v1::Verdict, score: i32, wait: i64) -> Heard {
        let mut evaluation = v1::Evaluation { score, ..v1::Evaluation::default() };
        evaluation.set_verdict(verdict);
        evaluation.predicted_wait = (wait > 0).then_some(prost_types::Duration { seconds: wait, nanos: 0 });
        let node = v1::Node { name: name.to_owned(), incarnation: name.to_owned(), ..v1::Node::default() };
        Heard { address: "127.0.0.1:9417".parse().unwrap(), node, evaluation, has: Has::Nothing }
    }

    fn names(heard: &[Heard]) -> Vec<&str> {
        heard.iter().map(|one| one.node.name.as_str()).collect()
    }

    #[test]
    fn the_verdict_comes_before_the_score_and_the_score_before_the_wait() {
        let mut all = vec![
            heard("never", v1::Verdict::Never, 100, 0),
            heard("later", v1::Verdict::Waits, 50, 90),
            heard("soon", v1::Verdict::Waits, 50, 10),
            heard("warm", v1::Verdict::Waits, 60, 300),
            heard("cold", v1::Verdict::Fits, 0, 0),
            heard("ready", v1::Verdict::Fits, 10, 0),
        ];
        rank(&mut all, "a");
        assert_eq!(names(&all), ["ready", "cold", "warm", "soon", "later", "never"]);
    }

    #[test]
    fn equals_are_spread_and_one_with_two_addresses_is_one() {
        let equals = || ["a", "b", "c", "d"].map(|name| heard(name, v1::Verdict::Fits, 70, 0));
        let first = |seed: &str| {
            let mut all = equals().to_vec();
            rank(&mut all, seed);
            let mut again = equals().to_vec();
            again.reverse();
            rank(&mut again, seed);
            assert_eq!(names(&all), names(&again), "whoever answered first");
            all[0].node.name.clone()
        };
        let firsts: BTreeSet<String> = (0..64).map(|seed| first(&format!("build-{seed}"))).collect();
        assert_eq!(firsts.len(), 4, "{firsts:?}");

        let other = Heard { address: "[::1]:9417".parse().unwrap(), ..heard("a", v1::Verdict::Fits, 70, 0) };
        let mut both = vec![heard("a", v1::Verdict::Fits, 70, 0), other];
        rank(&mut both, "x");
        assert_eq!(both.len(), 1);
    }

    #[test]
    fn of_too_many_a_request_asks_the_same_ones_each_time() {
        let all = |count: u16| (0..count).map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect::<BTreeSet<_>>();
        let (first, other) = (bounded(all(3000), "a"), bounded(all(3000), "b"));
        assert_eq!((first.len(), &first), (AGENTS_MAX, &bounded(all(3000), "a")));
        assert!(other.iter().any(|address| !first.contains(address)));
        assert_eq!(bounded(all(9), "a").len(), 9);
    }

    #[test]
    fn a_name_has_a_port_and_an_address_of_ipv6_brackets() {
        for good in ["stoker-agents.stoker.svc:9417", "127.0.0.1:1", "[::1]:9417", "localhost:65535"] {
            assert_eq!(name(good).unwrap().to_string(), good);
        }
        for wrong in ["", "agents", "agents:", ":9417", "agents:0", "agents:70000", "::1:9417", "[agents]:1", "a/b:1"] {
            assert!(name(wrong).unwrap_err().contains("NAME:PORT"), "{wrong}");
        }
    }

    #[test]
    fn who_is_missing_is_named_up_to_a_bound() {
        let why = |port: u16| {
            let address = SocketAddr::from(([10, 0, 0, 1], port));
            (address, Why::Away(format!("no agent answers at {address}: refused")))
        };
        let some: BTreeMap<SocketAddr, Why> = (1..=10).map(why).collect();
        let told = told(&some);
        assert!(told.starts_with("  10.0.0.1:1: refused\n  10.0.0.1:2: refused\n"), "{told}");
        assert!(told.ends_with("10.0.0.1:8: refused\n  and 2 more"), "{told}");
    }
}
