//! `stoker mode`: what the operator wants of the node.

use stoker_proto::v1;

use super::ask::{self, Ended, Failure, within};
use super::client::Client;
use super::doctor::{gate_word, mode_word};
use super::table::{self, Fields, Tone, View, cell};
use super::{Common, DONE, amount};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What the node shall do; without it, what it does is shown
    mode: Option<Mode>,
    /// When it goes back to accepting by itself, as 2030-01-31T06:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time, requires = "mode", conflicts_with = "lasting")]
    until: Option<prost_types::Timestamp>,
    /// After what time it goes back to accepting by itself, as 2h
    #[arg(long = "for", value_name = "DURATION", value_parser = amount::span, requires = "mode")]
    lasting: Option<prost_types::Duration>,
    /// Of a drain: after what time what still runs is ended as at its time budget, as 2h; the node stays drained. Where
    /// `admission.timeBudget` is `report`, it is told by name
    #[arg(long, value_name = "DURATION", value_parser = amount::span, requires = "mode")]
    deadline: Option<prost_types::Duration>,
    /// Why, for those who look
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, requires = "mode")]
    note: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Builds start.
    Accepting,
    /// No new builds; what waits goes on waiting.
    Maintenance,
    /// No new builds; the node is being emptied.
    Drain,
}

/// A time with its offset: what is 06:00 here is another time there.
fn time(text: &str) -> Result<prost_types::Timestamp, String> {
    let remedy = "write it with its offset, as `2030-01-31T06:00:00Z`, or say `--for 2h`";
    let at: jiff::Timestamp = text.parse().map_err(|_| format!("{text:?} is not a time; {remedy}"))?;
    Ok(prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() })
}

pub(super) async fn run(common: &Common, args: &Args) -> u8 {
    ask::exit(obey(common, args).await)
}

async fn obey(common: &Common, args: &Args) -> Ended {
    let client = Client::of(common).await?;
    let Some(mode) = args.mode else {
        let answer = client.node().get_status(within(ask::SOON, v1::GetStatusRequest {})).await?.into_inner();
        ask::answer(common.output, &answer, |answer, view| render(answer.status.as_ref(), view))?;
        return Ok(DONE);
    };
    let from_now = |span: prost_types::Duration| prost_types::Timestamp {
        seconds: (table::now() / 1000).saturating_add(span.seconds),
        nanos: 0,
    };
    let until = args.until.or(args.lasting.map(from_now));
    let deadline = args.deadline.map(from_now);
    let mut request = v1::SetModeRequest { until, deadline, note: args.note.clone(), ..Default::default() };
    request.set_mode(match mode {
        Mode::Accepting => v1::Mode::Accepting,
        Mode::Maintenance => v1::Mode::Maintenance,
        Mode::Drain => v1::Mode::Drain,
    });
    let answer = client.node().set_mode(within(ask::SOON, request)).await?.into_inner();
    ask::answer(common.output, &answer, |answer, view| render(answer.status.as_ref(), view))?;
    Ok::<u8, Failure>(DONE)
}

fn render(status: Option<&v1::Status>, view: &View) -> String {
    let Some(status) = status else { return String::new() };
    let mut fields = Fields::new();
    let tone = if status.mode() == v1::Mode::Accepting { Tone::Good } else { Tone::Warn };
    fields.put("mode", cell(mode_word(status.mode())).tone(tone));
    fields.add("ends", view.when(status.mode_until.as_ref()));
    if let Some(deadline) = &status.mode_deadline {
        fields.add("deadline", view.when(Some(deadline)));
    }
    fields.add("note", &status.mode_note);
    fields.add("gate", status.gate.as_ref().map_or("-", |gate| gate_word(gate.state())));
    let counts = status.counts.unwrap_or_default();
    fields.add("leases", counts.leases.to_string());
    fields.add("waiting", counts.tickets.to_string());
    fields.render(view)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::status::tests::troubled;
    use super::super::table::tests::VIEW;
    use super::*;

    #[test]
    fn a_drained_node_says_until_when_and_why() {
        insta::assert_snapshot!(render(Some(&troubled().status), &VIEW), @r"
        mode     drain
        ends     in 1 h 30 min
        note     new disk
        gate     shut
        leases   2
        waiting  1
        ");
    }

    #[test]
    fn a_time_needs_its_offset() {
        assert_eq!(time("2030-01-31T06:00:00+01:00").unwrap().seconds, 1_896_066_000);
        for wrong in ["06:00", "2030-01-31T06:00:00", "tomorrow", ""] {
            assert!(time(wrong).unwrap_err().contains("--for 2h"), "{wrong}");
        }
    }
}
