//! `stoker status`: the node on one screen, in the order in which somebody asks at night: does it take builds, what is
//! to be mended, is there room, what runs, what waits, and how are the disks and the mirrors.

use stoker_core::quantity::Resource;
use stoker_proto::v1;

use super::ask::{self, Ended, Failure, PAGE, within};
use super::client::Client;
use super::doctor::{gate_word, mode_word, remedy};
use super::table::{self, Fields, Grid, Tone, View, cell};
use super::{Common, DONE, Format, json, lease, pool, repo, screen, ticket, workspace};

/// More than these are on their own lists.
const SHOWN_MAX: usize = 8;
const BAR: usize = 24;
/// An end that is nearer is worth a look.
const SOON_MILLIS: i64 = 5 * 60_000;

/// All that is on the screen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Glance {
    pub(crate) status: v1::Status,
    pub(crate) leases: Vec<v1::Lease>,
    pub(crate) tickets: Vec<v1::Ticket>,
    pub(crate) repositories: Vec<v1::Repository>,
}

pub(super) async fn run(common: &Common) -> u8 {
    ask::exit(show(common).await)
}

async fn show(common: &Common) -> Ended {
    let client = Client::of(common).await?;
    let answer = client.node().get_status(within(ask::SOON, v1::GetStatusRequest {})).await?.into_inner();
    if common.output != Format::Table {
        json::answer(common.output, &answer, |_| String::new())?;
        return Ok(DONE);
    }
    let leases = lease::list(&client, v1::ListLeasesRequest { page_size: PAGE, ..Default::default() });
    let (leases, tickets, repositories) = tokio::join!(leases, ticket::list(&client, ""), repo::list(&client));
    let glance = Glance {
        status: ask::part(answer.status, "status")?,
        leases: told(leases, "leases").map(|list| list.leases).unwrap_or_default(),
        tickets: told(tickets, "the queue").map(|list| list.tickets).unwrap_or_default(),
        repositories: told(repositories, "repositories").map(|list| list.repositories).unwrap_or_default(),
    };
    screen::data(&render(&glance, &View::stdout()));
    Ok::<u8, Failure>(DONE)
}

/// What is left of the screen is worth more than none.
fn told<T>(list: Result<T, tonic::Status>, what: &str) -> Option<T> {
    list.map_err(|status| screen::error(&format!("{what} cannot be shown: {}", ask::refusal(&status)))).ok()
}

/// The screen.
pub(crate) fn render(glance: &Glance, view: &View) -> String {
    let status = &glance.status;
    let sections = [
        head(status, view),
        alarms(glance, view),
        room(status, view),
        leases(glance, view),
        unlimited(status, view),
        queue(glance, view),
        pools(status, view),
        repositories(glance, view),
        kept(status, view),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n")
}

/// One sentence that says whether builds start here, and why not.
fn head(status: &v1::Status, view: &View) -> String {
    let node = status.node.clone().unwrap_or_default();
    let gate = status.gate.clone().unwrap_or_default();
    let paint = view.paint;
    let sentence = match (status.mode(), gate.state()) {
        (v1::Mode::Drain, _) => paint.yellow("takes no builds: it is being drained"),
        (v1::Mode::Maintenance, _) => paint.yellow("takes no builds: it is in maintenance"),
        (_, v1::GateState::Shut) => paint.red("takes no builds: the gate is shut"),
        (_, v1::GateState::Narrow) => paint.yellow("takes small builds only"),
        (_, v1::GateState::Open) => paint.green("takes builds"),
        (_, v1::GateState::Unspecified) => paint.yellow("has not been measured yet"),
    };
    let name = if node.name.is_empty() { "this node".to_owned() } else { screen::safe(&node.name) };
    let mut out = format!("{} {sentence}\n", paint.bold(name));
    let gated = match &gate.since {
        Some(since) => format!("gate {} for {}", gate_word(gate.state()), view.lasting(Some(since))),
        None => format!("gate {}", gate_word(gate.state())),
    };
    let mut facts = Grid::new(&[]).wraps(&[0]);
    facts.row([cell(format!("{gated} · {}", mode_fact(status, view)))]);
    facts.row([cell(software(status, view)).tone(Tone::Dim)]);
    out.push_str(&facts.render(view));
    let mut why = Fields::new();
    for reason in &gate.reasons {
        let until = reason.expected_until.as_ref().map(|at| format!(", over {}", view.when(Some(at))));
        let text = format!("{}{}", table::reason_line(reason), until.unwrap_or_default());
        why.mark("  !", cell(text).tone(Tone::Warn));
    }
    out + &why.render(view)
}

fn software(status: &v1::Status, view: &View) -> String {
    let version = status.node.as_ref().map_or("", |node| &node.agent_version);
    let mut facts = vec![format!("stoker {version}").trim_end().to_owned()];
    if let Some(started) = &status.started_at {
        facts.push(format!("up {}", view.lasting(Some(started))));
    }
    if let Some(host) = &status.host {
        facts.push(format!("{} {}", if host.system.is_empty() { "Linux" } else { &host.system }, host.architecture));
        facts.push(if host.git_version.is_empty() { "no git".to_owned() } else { format!("git {}", host.git_version) });
    }
    facts.join(" · ")
}

fn mode_fact(status: &v1::Status, view: &View) -> String {
    let mut text = format!("mode {}", mode_word(status.mode()));
    if let Some(until) = &status.mode_until {
        text.push_str(&format!(", ends {}", view.when(Some(until))));
    }
    if !status.mode_note.is_empty() {
        text.push_str(&format!(" “{}”", status.mode_note));
    }
    text
}

/// What is to be mended comes before all that is only interesting.
fn alarms(glance: &Glance, view: &View) -> String {
    let status = &glance.status;
    if status.alarms.is_empty() {
        return String::new();
    }
    let count = i64::try_from(status.alarms.len()).unwrap_or(i64::MAX);
    let mut out = format!("{}\n", view.paint.red(screen::counted(count, "ALARM", "ALARMS")));
    let mut rows = Fields::new();
    for alarm in status.alarms.iter().take(SHOWN_MAX) {
        rows.mark("  ✗", cell(table::reason_line(alarm)).tone(Tone::Bad));
        let remedy = remedy(alarm, &glance.repositories);
        if !remedy.is_empty() {
            rows.put("", cell(format!("→ {remedy}")));
        }
    }
    rows.put("", more(status.alarms.len(), "stoker doctor"));
    out.push_str(&rows.render(view));
    out
}

/// What the ledger has, then what the machine feels.
fn room(status: &v1::Status, view: &View) -> String {
    let Some(ledger) = &status.ledger else { return String::new() };
    let legend = format!("{:<BAR$}", "█ leased  ▒ others  · free");
    let header = ["ROOM", &legend, "FREE", "LEASED", "OTHERS", "BUDGET", "RESERVE"];
    let mut grid = Grid::new(&header).right(&[2, 3, 4, 5, 6]);
    let all = [Resource::Memory, Resource::Cpu, Resource::DiskBytes];
    for resource in all {
        let of = |size: &Option<v1::Size>| amount(size.as_ref(), resource);
        let (leased, others, free) = (of(&ledger.leased), of(&ledger.others), of(&ledger.free));
        let (budget, reserve) = (of(&ledger.budget), of(&ledger.reserve));
        let show = |value: u64| resource.show(value).to_string();
        let used_up = budget > 0 && free == 0;
        grid.row([
            cell(resource.word()),
            cell(bar(leased, others, budget)),
            cell(show(free)).tone(if used_up { Tone::Warn } else { Tone::Bold }),
            cell(show(leased)),
            cell(show(others)),
            cell(show(budget)),
            cell(show(reserve)),
        ]);
    }
    let mut out = grid.render(view);
    let mut machine = Fields::new();
    machine.add("now", felt(status).join(" · "));
    machine.add("stalled", stalled(status));
    out.push_str(&machine.render(view));
    out
}

fn amount(size: Option<&v1::Size>, resource: Resource) -> u64 {
    let value = size.and_then(|size| match resource {
        Resource::Cpu => size.cpu_millis,
        Resource::Memory => size.memory_bytes,
        Resource::DiskBytes => size.disk_bytes,
        Resource::DiskInodes => size.disk_inodes,
        Resource::Time => None,
    });
    table::positive(value.unwrap_or(0))
}

/// A part that is there is seen: at least one cell for anything that is not zero.
fn bar(leased: u64, others: u64, budget: u64) -> String {
    let width = u64::try_from(BAR).unwrap_or(24);
    let cells = |value: u64| match budget {
        0 => 0,
        _ if value == 0 => 0,
        budget => {
            let exact = (u128::from(value) * u128::from(width) + u128::from(budget) / 2) / u128::from(budget);
            usize::try_from(exact).unwrap_or(BAR).clamp(1, BAR)
        }
    };
    let leased = cells(leased);
    let others = cells(others).min(BAR - leased);
    format!("{}{}{}", "█".repeat(leased), "▒".repeat(others), "·".repeat(BAR - leased - others))
}

/// What the machine feels, whatever the ledger says.
fn felt(status: &v1::Status) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(memory) = &status.memory {
        parts.push(format!(
            "memory {} available of {}",
            screen::bytes(memory.available_bytes),
            screen::bytes(memory.total_bytes)
        ));
    }
    if let Some(cpu) = &status.cpu {
        let (used, total) = (table::positive(cpu.used_millis), table::positive(cpu.total_millis));
        parts.push(format!("{} of {} busy", tenths(used, 1000), Resource::Cpu.show(total)));
        if let Some(load) = cpu.load {
            let of = |hundredths: i32| tenths(table::positive(i64::from(hundredths)), 100);
            parts.push(format!("load {} {} {}", of(load.avg_1m), of(load.avg_5m), of(load.avg_15m)));
        }
    }
    if let Some(latency) = status.control_plane.as_ref().and_then(|plane| plane.latency) {
        let millis = latency.seconds.saturating_mul(1000).saturating_add(i64::from(latency.nanos) / 1_000_000);
        parts.push(format!("control plane answers in {}", Resource::Time.show(table::positive(millis))));
    }
    parts
}

/// The share of the last ten seconds in which work stood still for want of something.
fn stalled(status: &v1::Status) -> String {
    let stalls = [
        ("memory", status.memory.as_ref().and_then(|memory| memory.stall.as_ref())),
        ("I/O", status.io.as_ref().and_then(|io| io.stall.as_ref())),
        ("CPU", status.cpu.as_ref().and_then(|cpu| cpu.stall.as_ref())),
    ];
    let known = stalls.into_iter().filter_map(|(word, stall)| stall.filter(|stall| stall.known).map(|s| (word, s)));
    let known: Vec<String> = known
        .map(|(word, stall)| format!("{word} {} %", tenths(table::positive(i64::from(stall.some_avg10)), 100)))
        .collect();
    let source = status.memory.as_ref().map_or("", |memory| memory.stall_source.as_str());
    let source = if source.is_empty() || known.is_empty() { String::new() } else { format!(" (memory by {source})") };
    known.join(" · ") + &source
}

fn tenths(value: u64, unit: u64) -> String {
    let scaled = value.saturating_mul(10).saturating_add(unit / 2) / unit.max(1);
    if scaled.is_multiple_of(10) { (scaled / 10).to_string() } else { format!("{}.{}", scaled / 10, scaled % 10) }
}

/// Those that end next come first; a reservation that nobody binds ends too.
fn leases(glance: &Glance, view: &View) -> String {
    let total = glance.leases.len();
    if total == 0 {
        return format!("{}\n", view.paint.dim("no leases"));
    }
    let title = format!("LEASES ({total})");
    let mut grid = Grid::new(&[&title, "STATE", "BUILDS", "FOR", "CPU", "MEMORY", "SINCE", "ENDS"]);
    grid = grid.right(&[4, 5]).wraps(&[2, 3]);
    let mut sorted: Vec<&v1::Lease> = glance.leases.iter().collect();
    let end = |lease: &v1::Lease| lease.ends_at.as_ref().or(lease.bind_by.as_ref()).map_or(i64::MAX, table::millis);
    sorted.sort_by_key(|lease| end(lease));
    for held in sorted.iter().take(SHOWN_MAX) {
        let bound = held.state() == v1::LeaseState::Bound;
        let (cpu, memory) = table::brief_size(held.sizing.as_ref().and_then(|sizing| sizing.size.as_ref()));
        let since = if bound { held.bound_at.as_ref() } else { held.created_at.as_ref() };
        let near = end(held).saturating_sub(view.now) < SOON_MILLIS;
        grid.row([
            cell(&held.id).tone(Tone::Bold),
            cell(lease::state_word(held.state())).tone(if bound { Tone::Plain } else { Tone::Dim }),
            cell(table::source(held.source.as_ref())),
            cell(table::scope(held.scope.as_ref())),
            cell(cpu),
            cell(memory),
            cell(view.lasting(since)),
            cell(view.when(held.ends_at.as_ref().or(held.bind_by.as_ref()))).tone(if near && bound {
                Tone::Warn
            } else {
                Tone::Plain
            }),
        ]);
    }
    grid.render(view) + &rest(total, "stoker lease list", view)
}

/// Holders that nothing keeps to their size: what they take is missing to others.
fn unlimited(status: &v1::Status, view: &View) -> String {
    let told: Vec<(&str, &v1::Reason)> =
        status.lease_use.iter().flat_map(|seen| seen.reasons.iter().map(|why| (&*seen.lease_id, why))).collect();
    let mut rows = Fields::new();
    for (lease, why) in told.iter().take(SHOWN_MAX) {
        let text = format!("{lease}: {}", table::reason_line(why));
        rows.mark("  !", cell(text).tone(Tone::Warn));
    }
    rows.put("", more(told.len(), "stoker explain LEASE"));
    rows.render(view)
}

fn queue(glance: &Glance, view: &View) -> String {
    let total = glance.tickets.len();
    if total == 0 {
        return String::new();
    }
    let shown: Vec<v1::Ticket> = glance.tickets.iter().take(SHOWN_MAX).cloned().collect();
    let title = format!("QUEUE ({total})");
    ticket::table(&title, &shown, view) + &rest(total, "stoker ticket list", view)
}

fn pools(status: &v1::Status, view: &View) -> String {
    pool::table(&status.pools, status.root.as_ref(), &status.filesystems, view)
}

/// The count, and those that are not simply ready and have no alarm.
fn repositories(glance: &Glance, view: &View) -> String {
    let counts = glance.status.counts.unwrap_or_default();
    let mut parts = vec![screen::counted(i64::from(counts.repositories), "repository", "repositories")];
    for (count, word) in [(counts.repositories_empty, "empty"), (counts.fetching, "fetching")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    let workspaces = screen::counted(i64::from(counts.workspaces), "workspace", "workspaces");
    match &glance.status.workspaces {
        None => parts.push(workspaces),
        Some(made) => {
            parts.push(format!("{workspaces} by {}", workspace::method_word(made.method())));
            if made.checkouts > 0 {
                let kept = screen::counted(made.checkouts.into(), "kept checkout", "kept checkouts");
                parts.push(format!("{kept}, {}", screen::bytes(made.checkout_bytes)));
            }
        }
    }
    let mut out = format!("{}\n", view.paint.dim(parts.join(" · ")));
    let told = |repository: &v1::Repository| {
        glance.status.alarms.iter().any(|alarm| repo::is_about(&alarm.subject, repository))
    };
    let odd = glance.repositories.iter().filter(|repository| {
        // What an alarm tells is not told twice, unless something is done about it.
        repository.progress.is_some() || repository.state() != v1::RepositoryState::Ready && !told(repository)
    });
    let odd: Vec<&v1::Repository> = odd.collect();
    let mut grid = Grid::new(&[]).wraps(&[1, 2]).indent(2);
    for repository in odd.iter().take(SHOWN_MAX) {
        grid.row([
            cell(repo::state_word(repository.state())).tone(repo::tone(repository.state())),
            cell(repo::address(&repository.url)),
            cell(repo::doing(repository, view)),
        ]);
    }
    out.push_str(&grid.render(view));
    out + &rest(odd.len(), "stoker repo list", view)
}

/// What is kept for a time, and when something of it last really went.
fn kept(status: &v1::Status, view: &View) -> String {
    let Some(kept) = &status.retention else { return String::new() };
    let mut parts = Vec::new();
    for (count, held, one, many) in [
        (kept.outputs, kept.outputs_bytes, "output", "outputs"),
        (kept.caches, kept.caches_bytes, "cache", "caches"),
        (kept.orphans, kept.orphans_bytes, "orphan", "orphans"),
    ] {
        if count > 0 {
            parts.push(format!("{}, {}", screen::counted(count, one, many), screen::bytes(held)));
        }
    }
    parts.push(match &kept.last_removed_at {
        None => "retention removed nothing yet".to_owned(),
        Some(at) => {
            let things = screen::counted(kept.last_removed, "thing", "things");
            format!("retention removed {things}, {}, {}", screen::bytes(kept.last_removed_bytes), view.when(Some(at)))
        }
    });
    if let Some(next) = &kept.next_at {
        parts.push(format!("next {}", view.when(Some(next))));
    }
    format!("{}\n", view.paint.dim(parts.join(" · ")))
}

fn more(total: usize, command: &str) -> table::Cell {
    cell(match total.checked_sub(SHOWN_MAX) {
        None | Some(0) => String::new(),
        Some(hidden) => format!("and {hidden} more: {command}"),
    })
}

fn rest(total: usize, command: &str, view: &View) -> String {
    match total.checked_sub(SHOWN_MAX) {
        None | Some(0) => String::new(),
        Some(hidden) => format!("{}\n", view.paint.dim(format!("  and {hidden} more: {command}"))),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
pub(crate) mod tests;
