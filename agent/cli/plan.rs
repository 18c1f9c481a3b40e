//! `stoker plan`: what retention would remove, when, and why. Nothing is removed.

use stoker_proto::v1;

use super::ask::{self, Ended, Failure, within};
use super::client::Client;
use super::table::{self, Grid, Tone, View, cell};
use super::{Common, DONE, screen};

/// How many of each list people are shown.
const SHOWN_MAX: i32 = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// All of them, up to a thousand of each list
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(common: &Common, args: &Args) -> u8 {
    ask::exit(show(common, args).await)
}

async fn show(common: &Common, args: &Args) -> Ended {
    let table = matches!(common.output, super::Format::Table);
    let removals_max = if args.all || !table { 0 } else { SHOWN_MAX };
    let request = within(ask::LONG, v1::GetPlanRequest { removals_max });
    let answer = Client::of(common).await?.node().get_plan(request).await?.into_inner();
    ask::answer(common.output, &answer, render)?;
    Ok::<u8, Failure>(DONE)
}

fn render(plan: &v1::GetPlanResponse, view: &View) -> String {
    let mut out = section("Goes now", &plan.now, plan.now_count, view);
    out.push_str(&section("Goes next, if nothing changes", &plan.next, plan.next_count, view));
    for over in &plan.over {
        out.push_str(&format!("{}\n", view.paint.yellow(format!("! {}", table::reason_line(over)))));
    }
    if out.is_empty() {
        return format!("{}\n", view.paint.dim("nothing goes"));
    }
    out
}

fn section(title: &str, removals: &[v1::Removal], count: i64, view: &View) -> String {
    if removals.is_empty() {
        return String::new();
    }
    let mut out = format!("{} {}\n", view.paint.bold(title), view.paint.dim(format!("({count})")));
    let mut grid = Grid::new(&["KIND", "WHEN", "SIZE", "WHAT", "WHY"]).right(&[2]).wraps(&[3, 4]).indent(2);
    for removal in removals {
        let code = removal.reason.as_ref().map(table::reason_line).unwrap_or_default();
        let due = removal.at.as_ref().is_some_and(|at| table::millis(at) <= view.now);
        grid.row([
            cell(&removal.kind).tone(Tone::Bold),
            cell(if due { "now".to_owned() } else { view.when(removal.at.as_ref()) }),
            cell(screen::bytes(removal.bytes)),
            cell(&removal.path),
            cell(code).tone(Tone::Dim),
        ]);
    }
    out.push_str(&grid.render(view));
    let hidden = count.saturating_sub(i64::try_from(removals.len()).unwrap_or(i64::MAX));
    if hidden > 0 {
        out.push_str(&format!("{}\n", view.paint.dim(format!("  and {hidden} more: stoker plan --all"))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{VIEW, ago};
    use super::*;

    fn removal(kind: &str, path: &str, seconds_ago: i64, code: v1::reason::Code, why: &str) -> v1::Removal {
        v1::Removal {
            kind: kind.to_owned(),
            pool: "data".to_owned(),
            path: format!("/var/mnt/ghost-data/stoker/{path}"),
            bytes: 512 << 20,
            at: ago(seconds_ago),
            reason: Some(v1::Reason { code: code.into(), message: why.to_owned(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn a_plan_says_what_goes_when_and_why() {
        use v1::reason::Code;
        let plan = v1::GetPlanResponse {
            now: vec![removal(
                "output",
                "outputs/a",
                60,
                Code::RetentionOver,
                "kept as long as outputs.retention (14 d) says",
            )],
            now_count: 1,
            next: vec![removal("orphan", "x", -7_200, Code::Orphan, "no lease, output or rule knows it")],
            next_count: 3,
            ..Default::default()
        };
        insta::assert_snapshot!(render(&plan, &VIEW), @r"
        Goes now (1)
          KIND    WHEN     SIZE  WHAT                                  WHY
          output  now   512 MiB  /var/mnt/ghost-data/stoker/outputs/a  kept as long as outputs.retention (14
                                                                       d) says [RETENTION_OVER]
        Goes next, if nothing changes (3)
          KIND    WHEN       SIZE  WHAT                          WHY
          orphan  in 2 h  512 MiB  /var/mnt/ghost-data/stoker/x  no lease, output or rule knows it [ORPHAN]
          and 2 more: stoker plan --all
        ");
        assert_eq!(render(&v1::GetPlanResponse::default(), &VIEW), "nothing goes\n");
    }
}
