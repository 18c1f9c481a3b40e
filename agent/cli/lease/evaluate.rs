//! `stoker lease evaluate`: may this build start, and where best.

use serde_json::json;
use stoker_proto::v1;

use super::super::ask::{self, Ended, Failure, within};
use super::super::client::Client;
use super::super::fleet::{self, Answers, Fleet};
use super::super::table::{self, Grid, Tone, View, cell, lines};
use super::super::{Common, DONE, NO, json};
use super::{Build, show};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    build: Build,
    /// Ask all agents of this name; the best comes first
    #[arg(long, value_name = "NAME:PORT", value_parser = fleet::name)]
    pub(super) fleet: Option<fleet::Name>,
}

pub(super) async fn evaluate(common: &Common, args: &Args) -> Ended {
    let build = args.build.message()?;
    let Some(name) = &args.fleet else { return here(common, build).await };
    let seed = uuid::Uuid::now_v7().to_string();
    let answers = Fleet::new(common, name, &seed).ask(&build, "").await?;
    let fits = answers.heard.iter().any(|heard| heard.evaluation.verdict() == v1::Verdict::Fits);
    ask::value(common.output, &value(&answers)?, |view| render(&answers, view))?;
    Ok::<u8, Failure>(if fits { DONE } else { NO })
}

async fn here(common: &Common, build: v1::Build) -> Ended {
    let client = Client::of(common).await?;
    let request = v1::EvaluateRequest { builds: vec![build] };
    let answer = client.admission().evaluate(within(ask::SOON, request)).await?.into_inner();
    let fits = answer.evaluations.iter().any(|found| found.verdict() == v1::Verdict::Fits);
    ask::answer(common.output, &answer, show::evaluations)?;
    Ok::<u8, Failure>(if fits { DONE } else { NO })
}

/// What each agent said, and why others said nothing.
fn value(answers: &Answers) -> Result<serde_json::Value, Failure> {
    let mut agents = Vec::new();
    for heard in &answers.heard {
        let (node, evaluation) = (json::value(&heard.node)?, json::value(&heard.evaluation)?);
        agents.push(json!({"address": heard.address.to_string(), "node": node, "evaluation": evaluation}));
    }
    let missing = answers.missing.iter();
    let missing = missing.map(|(address, why)| json!({"address": address.to_string(), "error": why.to_string()}));
    Ok(json!({"agents": agents, "missing": missing.collect::<Vec<_>>()}))
}

fn render(answers: &Answers, view: &View) -> String {
    let mut grid = Grid::new(&["NODE", "ADDRESS", "VERDICT", "SCORE", "WAIT", "SOURCE", "WHY"]);
    grid = grid.right(&[3]).wraps(&[6]);
    for heard in &answers.heard {
        let found = &heard.evaluation;
        grid.row([
            cell(&heard.node.name).tone(Tone::Bold),
            cell(heard.address.to_string()),
            show::verdict(found.verdict()),
            cell(found.score.to_string()),
            cell(table::span(found.predicted_wait.as_ref())),
            cell(show::source_word(found.source())),
            lines(found.reasons.iter().map(table::reason_line)),
        ]);
    }
    let shown = grid.render(view);
    match answers.missing.is_empty() {
        true => shown,
        false => format!("{shown}\n{}\n{}\n", view.paint.yellow("without an answer:"), fleet::told(&answers.missing)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::fleet::{Has, Heard, Why};
    use super::super::super::status::tests::reason;
    use super::super::super::table::tests::VIEW;
    use super::*;

    #[test]
    fn all_agents_are_a_line_each_and_those_without_an_answer_are_named() {
        let heard = |name: &str, address: &str, verdict: v1::Verdict, score: i32, why: Vec<v1::Reason>| {
            let mut evaluation = v1::Evaluation { score, reasons: why, ..v1::Evaluation::default() };
            evaluation.set_verdict(verdict);
            evaluation.set_source(v1::SourceState::Mirror);
            if verdict == v1::Verdict::Waits {
                evaluation.predicted_wait = Some(prost_types::Duration { seconds: 90, nanos: 0 });
            }
            let node = v1::Node { name: name.to_owned(), ..v1::Node::default() };
            Heard { address: address.parse().unwrap(), node, evaluation, has: Has::Nothing }
        };
        let held =
            reason(v1::reason::Code::MemoryHeld, "memory", "leases hold 48 GiB of the 54.5 GiB that builds may have");
        let answers = Answers {
            heard: vec![
                heard("ghost", "10.0.0.7:9417", v1::Verdict::Fits, 80, Vec::new()),
                heard("exo0", "[fd00::7]:9417", v1::Verdict::Waits, 60, vec![held]),
            ],
            missing: [("10.0.0.9:9417".parse().unwrap(), Why::Away("no answer within 3 s".to_owned()))].into(),
        };
        insta::assert_snapshot!(render(&answers, &VIEW), @r"
        NODE   ADDRESS         VERDICT    SCORE  WAIT        SOURCE    WHY
        ghost  10.0.0.7:9417   fits now      80  -           mirrored
        exo0   [fd00::7]:9417  must wait     60  1 min 30 s  mirrored  leases hold 48 GiB of the 54.5 GiB
                                                                       that builds may have [MEMORY_HELD]

        without an answer:
          10.0.0.9:9417: no answer within 3 s
        ");
    }
}
