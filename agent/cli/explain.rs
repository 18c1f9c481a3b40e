//! `stoker explain`: why a ticket, a lease, a request or a build stands as it does.

use stoker_proto::v1;
use stoker_proto::v1::explain_request::What;
use tonic::Code;

use super::ask::{self, Ended, Failure, within};
use super::client::Client;
use super::screen::counted;
use super::table::{self, Fields, Grid, Tone, View, cell};
use super::{Common, DONE, amount};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A ticket, a lease or a request
    #[arg(value_name = "ID", required_unless_present = "repo", conflicts_with = "repo")]
    id: Option<String>,
    /// A build that would be asked for now, of this repository: a URL or a path
    #[arg(long, value_name = "URL")]
    repo: Option<String>,
    /// As `lease evaluate` has it
    #[arg(long = "ref", value_name = "REF", requires = "repo")]
    reference: Option<String>,
    /// Its cores, as 2 or 500m
    #[arg(long, value_name = "AMOUNT", value_parser = amount::cpu_millis, requires = "repo")]
    cpu: Option<i64>,
    /// Its memory, as 8GiB
    #[arg(long, value_name = "AMOUNT", value_parser = amount::bytes, requires = "repo")]
    memory: Option<i64>,
    /// Its disk, as 20GiB
    #[arg(long, value_name = "AMOUNT", value_parser = amount::bytes, requires = "repo")]
    disk: Option<i64>,
    /// Its time budget, as 1h30m
    #[arg(long, value_name = "DURATION", value_parser = amount::span, requires = "repo")]
    time: Option<prost_types::Duration>,
    /// Who it is for
    #[arg(long, requires = "repo")]
    tenant: Option<String>,
}

pub(super) async fn run(common: &Common, args: &Args) -> u8 {
    ask::exit(obey(common, args).await)
}

async fn obey(common: &Common, args: &Args) -> Ended {
    let client = Client::of(common).await?;
    let mut last = None;
    for what in asked(args)? {
        let request = within(ask::SOON, v1::ExplainRequest { what: Some(what) });
        match client.admission().explain(request).await {
            Ok(answer) => {
                ask::answer(common.output, &answer.into_inner(), render)?;
                return Ok::<u8, Failure>(DONE);
            }
            // An id does not say what it is of.
            Err(status) if status.code() == Code::NotFound => last = Some(status),
            Err(status) => return Err(status.into()),
        }
    }
    match (last, &args.id) {
        (Some(_), Some(id)) => {
            Err(anyhow::anyhow!("{id:?} is no ticket, no lease and no request that is known").into())
        }
        (Some(status), None) => Err(status.into()),
        (None, _) => Ok(DONE),
    }
}

fn asked(args: &Args) -> Result<Vec<What>, Failure> {
    let Some(repo) = &args.repo else {
        let id = args.id.clone().unwrap_or_default();
        return Ok(vec![What::TicketId(id.clone()), What::LeaseId(id.clone()), What::RequestId(id)]);
    };
    let build = v1::Build {
        source: Some(amount::source(repo, args.reference.as_deref()).map_err(Failure::Usage)?),
        scope: Some(v1::Scope { tenant: args.tenant.clone().unwrap_or_default(), ..Default::default() }),
        declared: Some(v1::Size {
            cpu_millis: args.cpu,
            memory_bytes: args.memory,
            disk_bytes: args.disk,
            disk_inodes: None,
            time_budget: args.time,
        }),
        ..Default::default()
    };
    Ok(vec![What::Build(build)])
}

fn render(answer: &v1::ExplainResponse, view: &View) -> String {
    let Some(told) = &answer.explanation else { return String::new() };
    let mut text = summary(told, view);
    if let Some(ledger) = &told.ledger {
        text.push_str(&format!("\n{}", sides(told, ledger, view)));
    }
    if !told.holders.is_empty() {
        text.push_str(&format!("\n{}", holders(told, view)));
    }
    text
}

fn summary(told: &v1::Explanation, view: &View) -> String {
    let mut fields = Fields::new();
    let (word, tone) = match (&told.lease, told.verdict()) {
        (Some(lease), _) if lease.ended_at.is_some() => ("has ended", Tone::Plain),
        (Some(_), _) => ("holds its room", Tone::Good),
        (None, v1::Verdict::Fits) => ("fits now", Tone::Good),
        (None, v1::Verdict::Waits) => ("must wait", Tone::Warn),
        (None, v1::Verdict::Never) => ("never fits", Tone::Bad),
        (None, v1::Verdict::Unspecified) => ("unknown", Tone::Warn),
    };
    let what = match (&told.lease, &told.ticket) {
        (Some(lease), _) => format!("lease {}", lease.id),
        (None, Some(ticket)) => format!("ticket {}", ticket.id),
        (None, None) => "such a build".to_owned(),
    };
    fields.put(&what, cell(word).tone(tone));
    fields.add("size", table::size(told.sizing.as_ref().and_then(|sizing| sizing.size.as_ref())));
    fields.reasons("why", &told.reasons);
    if told.lease.is_none() {
        if told.ahead > 0 {
            let of = told.ahead_of.iter().map(|of| match of.tenant.as_str() {
                "" => format!("{} without a tenant", of.builds),
                tenant => format!("{} of {tenant}", of.builds),
            });
            let ahead = counted(i64::from(told.ahead), "build", "builds");
            fields.add("before it", format!("{ahead}: {}", of.collect::<Vec<_>>().join(", ")));
            fields.add("head", format!("{} {}", told.head_request_id, view.when(told.head_starts.as_ref())));
        }
        fields.add("room", view.when(told.room_at.as_ref()));
    }
    if let Some(tenant) = &told.tenant {
        let held = table::size(tenant.held.as_ref());
        let leases = counted(i64::from(tenant.leases), "lease", "leases");
        fields.add("tenant", format!("{} (weight {}): {leases}, {held}", tenant.name, tenant.weight));
    }
    fields.render(view)
}

/// A resource: its name, its part of a size, and how people read it.
type Row = (&'static str, fn(&v1::Size) -> Option<i64>, fn(i64) -> String);

/// Both sides of the inequality, a line a resource.
fn sides(told: &v1::Explanation, ledger: &v1::Ledger, view: &View) -> String {
    let wanted = told.sizing.as_ref().and_then(|sizing| sizing.size.as_ref());
    let mut grid = Grid::new(&["", "CAPACITY", "RESERVE", "OTHERS", "LEASES", "FREE", "WANTED"]);
    grid = grid.right(&[1, 2, 3, 4, 5, 6]);
    let rows: [Row; 3] = [
        ("memory", |size| size.memory_bytes, super::screen::bytes),
        ("CPU", |size| size.cpu_millis, cores),
        ("disk", |size| size.disk_bytes, super::screen::bytes),
    ];
    for (name, part, show) in rows {
        let shown = |size: Option<&v1::Size>| cell(size.and_then(part).map(show).unwrap_or_default());
        grid.row([
            cell(name),
            shown(ledger.capacity.as_ref()),
            shown(ledger.reserve.as_ref()),
            shown(ledger.others.as_ref()),
            shown(ledger.leased.as_ref()),
            shown(ledger.free.as_ref()),
            shown(wanted),
        ]);
    }
    grid.render(view)
}

fn cores(millis: i64) -> String {
    stoker_core::quantity::Resource::Cpu.show(table::positive(millis)).to_string()
}

fn holders(told: &v1::Explanation, view: &View) -> String {
    let mut grid = Grid::new(&["HELD BY", "FOR", "CPU", "MEMORY", "LIKELY ENDS"]).right(&[2, 3]);
    for holding in &told.holders {
        let (cpu, memory) = table::brief_size(holding.held.as_ref());
        grid.row([
            cell(&holding.lease_id).tone(Tone::Bold),
            cell(&holding.tenant),
            cell(cpu),
            cell(memory),
            cell(view.when(holding.likely_end.as_ref())),
        ]);
    }
    let more = match told.holders_more {
        0 => String::new(),
        more => format!("and {}\n", counted(i64::from(more), "lease more", "leases more")),
    };
    format!("{}{more}", grid.render(view))
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::VIEW;
    use super::*;

    const GIB: i64 = 1 << 30;

    fn size(cpu_millis: i64, memory: i64) -> Option<v1::Size> {
        Some(v1::Size {
            cpu_millis: Some(cpu_millis),
            memory_bytes: Some(memory * GIB),
            disk_bytes: Some(20 * GIB),
            ..Default::default()
        })
    }

    #[test]
    fn a_wait_is_told_with_both_sides_and_who_holds_what() {
        let reason = v1::Reason {
            code: v1::reason::Code::MemoryHeld.into(),
            message: "16 GiB of memory wanted, 14.5 GiB free".to_owned(),
            ..Default::default()
        };
        let told = v1::Explanation {
            ticket: Some(v1::Ticket { id: "01k2f9s5v2w8y6zr".to_owned(), ..Default::default() }),
            verdict: v1::Verdict::Waits.into(),
            reasons: vec![reason],
            sizing: Some(v1::Sizing { size: size(8000, 16), ..Default::default() }),
            ledger: Some(v1::Ledger {
                capacity: size(32_000, 62),
                reserve: size(4000, 8),
                others: size(0, 0),
                leased: size(20_000, 40),
                free: size(8000, 14),
                ..Default::default()
            }),
            holders: vec![v1::Holding {
                lease_id: "01k2f9r7c4m8x0aq".to_owned(),
                tenant: "red\u{1b}[31m".to_owned(),
                held: size(20_000, 40),
                likely_end: None,
            }],
            holders_more: 3,
            ahead: 3,
            ahead_of: vec![
                v1::TenantCount { tenant: "red".to_owned(), builds: 2 },
                v1::TenantCount { tenant: String::new(), builds: 1 },
            ],
            head_request_id: "large".to_owned(),
            tenant: Some(v1::TenantShare {
                name: "blue".to_owned(),
                weight: 2,
                leases: 1,
                held: size(4000, 8),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = v1::ExplainResponse { explanation: Some(told), ..Default::default() };
        insta::assert_snapshot!(render(&answer, &VIEW), @r"
        ticket 01k2f9s5v2w8y6zr  must wait
        size                     8 CPU · 16 GiB memory · 20 GiB disk
        why                      16 GiB of memory wanted, 14.5 GiB free [MEMORY_HELD]
        before it                3 builds: 2 of red, 1 without a tenant
        head                     large -
        tenant                   blue (weight 2): 1 lease, 4 CPU · 8 GiB memory · 20 GiB disk

                CAPACITY  RESERVE  OTHERS  LEASES    FREE  WANTED
        memory    62 GiB    8 GiB     0 B  40 GiB  14 GiB  16 GiB
        CPU       32 CPU    4 CPU   0 CPU  20 CPU   8 CPU   8 CPU
        disk      20 GiB   20 GiB  20 GiB  20 GiB  20 GiB  20 GiB

        HELD BY           FOR          CPU  MEMORY  LIKELY ENDS
        01k2f9r7c4m8x0aq  red�[31m  20 CPU  40 GiB  -
        and 3 leases more
        ");
    }
}
