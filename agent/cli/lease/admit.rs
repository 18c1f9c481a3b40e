//! `stoker lease admit`: asks for a lease, and with `--wait` until there is an answer other than "wait".

use std::collections::BTreeMap;

use stoker_proto::v1;
use tokio::signal::unix::{SignalKind, signal};

use super::super::ask::{self, Ended, Failure, within};
use super::super::client::Client;
use super::super::fleet::{self, Fleet};
use super::super::screen::{self, Steps};
use super::super::table::{self, View};
use super::super::{Common, DONE, Format, NO, amount, json};
use super::search::{self, Placed};
use super::{Build, show};

/// Ask again later, as `EX_TEMPFAIL` of sysexits(3).
const WAIT: u8 = 75;
/// Interrupted, as shells say it.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    build: Build,
    /// Ask all agents of this name, and take the best; with --wait, wait on the best three
    #[arg(long, value_name = "NAME:PORT", value_parser = fleet::name, conflicts_with = "retry_of")]
    pub(super) fleet: Option<fleet::Name>,
    /// What this request is called: the same id is the same request, and gets the same lease; default: a new one
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Wait in the queue until it is granted or rejected
    #[arg(long)]
    wait: bool,
    /// When it must wait, take a place in the queue; the same id asks for it again
    #[arg(long)]
    ticket: bool,
    /// How long the grant is kept for the pod to come; default: 5m, at most 30m
    #[arg(long, value_name = "DURATION", value_parser = amount::span)]
    bind_within: Option<prost_types::Duration>,
    /// Among those of one tenant, the higher is served first: -100 to 100
    #[arg(long, default_value_t = 0, hide_default_value = true, allow_negative_numbers = true)]
    priority: i32,
    /// A lease that ran out of memory: try it once more, where it stood, with the size that it is advised
    #[arg(long, value_name = "LEASE", default_value = "", hide_default_value = true)]
    retry_of: String,
    /// Whose pod may have it: the one that names the lease by the annotation stoker.build/lease; default: nobody's
    #[arg(long, value_name = "NAMESPACE/SERVICE_ACCOUNT", value_parser = owner)]
    owner: Option<v1::Owner>,
    /// Whether it lives on when its pod ends without success, for the next pod of the same Job or workflow
    #[arg(long, value_enum, default_value_t = Rebind::Never)]
    rebind: Rebind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rebind {
    Never,
    SameOwner,
}

impl Rebind {
    const fn message(self) -> v1::Rebind {
        match self {
            Self::Never => v1::Rebind::Never,
            Self::SameOwner => v1::Rebind::SameOwner,
        }
    }
}

/// A service account of a namespace. Whether they are names that Kubernetes gives is the agent's to say.
fn owner(text: &str) -> Result<v1::Owner, String> {
    match text.split_once('/') {
        Some((namespace, account)) if !namespace.is_empty() && !account.is_empty() => {
            Ok(v1::Owner { namespace: namespace.to_owned(), service_account: account.to_owned() })
        }
        _ => Err("write NAMESPACE/SERVICE_ACCOUNT, as `builds/default`".to_owned()),
    }
}

pub(super) async fn admit(common: &Common, args: &Args) -> Ended {
    let request = v1::AdmitRequest {
        request_id: args.request_id.clone().unwrap_or_else(|| format!("cli-{}", uuid::Uuid::now_v7())),
        build: Some(args.build.message()?),
        take_ticket: args.ticket || args.wait,
        priority: args.priority,
        retry_of: args.retry_of.clone(),
        bind_within: args.bind_within,
        owner: args.owner.clone(),
        rebind: args.rebind.message().into(),
    };
    if args.request_id.is_none() {
        screen::say(&format!("request {}", request.request_id));
    }
    if let Some(name) = &args.fleet {
        let fleet = Fleet::new(common, name, &request.request_id);
        return match search::admit(fleet, &request, args.wait).await? {
            Some(Placed { address, answer }) => {
                let server_name = common.speaks_tls().then(|| fleet.server_name());
                tell(common.output, &answer, Some(&Place { address: address.to_string(), server_name }))
            }
            None => Ok(INTERRUPTED),
        };
    }
    let client = Client::of(common).await?;
    let answer = if args.wait {
        match wait(&client, &request).await? {
            Some(answer) => answer,
            None => return Ok(INTERRUPTED),
        }
    } else {
        client.admission().admit(within(ask::UPSTREAM, request)).await?.into_inner()
    };
    tell(common.output, &answer, None)
}

/// Where what follows is asked for, where that was searched for.
struct Place<'a> {
    address: String,
    /// Whom the certificate names, where there is one.
    server_name: Option<&'a str>,
}

/// Writes the answer, and gives the exit code that stands for it.
fn tell(format: Format, answer: &v1::AdmitResponse, place: Option<&Place<'_>>) -> Ended {
    use v1::admit_response::Decision;
    let code = match &answer.decision {
        Some(Decision::Granted(lease)) if lease.ended_at.is_some() => NO,
        Some(Decision::Granted(_)) => DONE,
        Some(Decision::Waiting(_)) => WAIT,
        Some(Decision::Rejected(_)) => NO,
        None => return Err(anyhow::anyhow!("the agent's answer has no decision; is it of another version?").into()),
    };
    let address = place.map(|place| place.address.as_str()).unwrap_or_default();
    match (format, &answer.decision) {
        (Format::Env, Some(Decision::Granted(lease))) if code == DONE => {
            screen::data(&environment(lease, answer.node.as_ref(), place))
        }
        // What a shell sources has nothing but assignments.
        (Format::Env, _) => screen::say(show::decision(answer, address, &View::stdout()).trim_end()),
        (Format::Json | Format::Yaml, _) if place.is_some() => {
            let mut value = json::value(answer)?;
            value["address"] = address.into();
            ask::value(format, &value, |_| String::new())?;
        }
        (format, _) => json::answer(format, answer, |answer| show::decision(answer, address, &View::stdout()))?,
    }
    if let Some(Decision::Granted(lease)) = &answer.decision
        && code == NO
    {
        screen::say(&format!("lease {} has ended already: ask again under a new request id", screen::safe(&lease.id)));
    }
    Ok::<u8, Failure>(code)
}

/// Why it waits, told once for each node and each change.
pub(super) struct Notes {
    steps: Steps,
    told: BTreeMap<String, Vec<i32>>,
}

impl Default for Notes {
    fn default() -> Self {
        Self { steps: Steps::new(), told: BTreeMap::new() }
    }
}

impl Notes {
    /// `node`: where it waits on several.
    pub(super) fn waits(&mut self, node: Option<&str>, waiting: &v1::Waiting) {
        let codes: Vec<i32> = waiting.reasons.iter().map(|reason| reason.code).collect();
        let told = self.told.entry(node.unwrap_or_default().to_owned()).or_default();
        let place = node.map(|node| format!(" on {}", screen::safe(node))).unwrap_or_default();
        if codes != *told {
            for reason in &waiting.reasons {
                self.steps.note(&format!("waits{place}: {}", table::reason_line(reason)));
            }
            *told = codes;
        }
        let position = waiting.ticket.as_ref().map_or(0, |ticket| ticket.position);
        self.steps.under_way("waiting", &format!("at place {position} of the queue{place}"), 0, 0);
    }

    pub(super) fn say(&mut self, what: &str) {
        self.steps.note(what);
    }
}

/// Waits in the queue. None where somebody interrupted: then the place is given up.
async fn wait(client: &Client, request: &v1::AdmitRequest) -> Result<Option<v1::AdmitResponse>, Failure> {
    let mut notes = Notes::default();
    let mut ticket: Option<String> = None;
    let waits = |_: &str, waiting: &v1::Waiting| {
        notes.waits(None, waiting);
        ticket = waiting.ticket.as_ref().map(|ticket| ticket.id.clone());
    };
    let answer = tokio::select! {
        () = interrupted() => None,
        answer = decided(client, request, waits) => Some(answer?),
    };
    match answer {
        Some(answer) => Ok(Some(answer)),
        // Nobody awaits the place any more, so it can be left.
        None => leave(client, ticket).await,
    }
}

/// Awaits the decision in one agent's queue; `waits` hears its node's name, and why not yet.
pub(super) async fn decided(
    client: &Client,
    request: &v1::AdmitRequest,
    mut waits: impl FnMut(&str, &v1::Waiting),
) -> Result<v1::AdmitResponse, Failure> {
    use v1::await_admission_response::Decision;
    let request = v1::AwaitAdmissionRequest { admit: Some(request.clone()) };
    let mut answers = client.admission().await_admission(request.clone()).await?.into_inner();
    loop {
        let Some(v1::AwaitAdmissionResponse { node, decision: Some(decision) }) = answers.message().await? else {
            let id = request.admit.map(|admit| admit.request_id).unwrap_or_default();
            let text = format!("the agent ended the stream before it decided; ask again with --request-id {id}");
            return Err(anyhow::anyhow!(text).into());
        };
        let decision = match decision {
            Decision::Granted(lease) => v1::admit_response::Decision::Granted(lease),
            Decision::Rejected(rejection) => v1::admit_response::Decision::Rejected(rejection),
            Decision::Waiting(waiting) => {
                waits(node.as_ref().map(|node| node.name.as_str()).unwrap_or_default(), &waiting);
                continue;
            }
        };
        return Ok(v1::AdmitResponse { node, decision: Some(decision) });
    }
}

/// Gives the place up, so that others need not wait for nobody.
async fn leave(client: &Client, ticket: Option<String>) -> Result<Option<v1::AdmitResponse>, Failure> {
    if let Some(ticket_id) = ticket {
        let cancel = within(ask::SOON, v1::CancelTicketRequest { ticket_id: ticket_id.clone() });
        match client.admission().cancel_ticket(cancel).await {
            Ok(_) => screen::say(&format!("left the queue: ticket {} is cancelled", screen::safe(&ticket_id))),
            Err(status) => screen::say(&format!(
                "left the queue; ticket {} runs out by itself: {}",
                screen::safe(&ticket_id),
                ask::refusal(&status)
            )),
        }
    }
    Ok(None)
}

/// Until somebody wants it to end.
pub(super) async fn interrupted() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Assignments for `sh`. Everything is quoted: no value can run anything.
fn environment(lease: &v1::Lease, node: Option<&v1::Node>, place: Option<&Place<'_>>) -> String {
    let source = lease.source.clone().unwrap_or_default();
    let size = lease.sizing.as_ref().and_then(|sizing| sizing.size).unwrap_or_default();
    let number = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
    let affinity = lease.affinity.clone().unwrap_or_default();
    let mut values = vec![
        ("STOKER_LEASE", lease.id.clone()),
        ("STOKER_REQUEST_ID", lease.request_id.clone()),
        ("STOKER_NODE", node.map(|node| node.name.clone()).unwrap_or_default()),
        ("STOKER_COMMIT", source.commit),
        ("STOKER_CLONE_URL", source.clone_url),
        ("STOKER_CLONE_REF", source.clone_ref),
        ("STOKER_CPU_MILLIS", number(size.cpu_millis)),
        ("STOKER_MEMORY_BYTES", number(size.memory_bytes)),
        ("STOKER_DISK_BYTES", number(size.disk_bytes)),
        ("STOKER_AFFINITY_KEY", affinity.key),
        ("STOKER_AFFINITY_VALUES", affinity.values.join(",")),
    ];
    // Where one agent was named, it is for whoever named it to name it again.
    if let Some(place) = place {
        values.push(("STOKER_ADDRESS", place.address.clone()));
        values.push(("STOKER_SERVER_NAME", place.server_name.unwrap_or_default().to_owned()));
    }
    values.into_iter().map(|(name, value)| format!("{name}={}\n", quoted(&value))).collect()
}

/// For `sh`: in single quotes nothing is special but the quote itself.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\0', "").replace('\'', "'\\''"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::status::tests::lease;
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_written() {
        let mut granted = lease("01k2f9r7c4m8x0aq", 4, 8, None);
        let nasty = "refs/heads/it's $(touch x) `id` \"q\" \\ \n two";
        granted.source.as_mut().unwrap().clone_ref = nasty.to_owned();
        granted.affinity =
            Some(v1::NodeAffinity { key: "kubernetes.io/hostname".to_owned(), values: vec!["ghost".to_owned()] });
        let script = format!("{}printf %s \"$STOKER_CLONE_REF\"", environment(&granted, None, None));
        let read = std::process::Command::new("sh").arg("-c").arg(&script).output().unwrap();
        assert_eq!(String::from_utf8(read.stdout).unwrap(), nasty);
        assert!(script.starts_with("STOKER_LEASE='01k2f9r7c4m8x0aq'\n"), "{script}");
        assert!(script.contains("\nSTOKER_AFFINITY_KEY='kubernetes.io/hostname'\nSTOKER_AFFINITY_VALUES='ghost'\n"));
        assert!(!script.contains("STOKER_ADDRESS"), "who named it can name it again: {script}");
        assert!(script.contains("STOKER_COMMIT='0123456789abcdef0123456789abcdef01234567'\n"), "{script}");
    }
}
