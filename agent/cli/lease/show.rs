//! Leases and answers to admission, as people read them.

use stoker_proto::v1::{self, LeaseState};

use super::super::screen::{self, counted};
use super::super::table::{self, Cell, Fields, Grid, Tone, View, cell, lines};

pub(crate) const fn state_word(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Reserved => "reserved",
        LeaseState::Bound => "bound",
        LeaseState::Released => "released",
        LeaseState::Expired => "expired",
        LeaseState::Orphaned => "orphaned",
        LeaseState::Unspecified => "unknown",
    }
}

fn state(state: LeaseState) -> Cell {
    cell(state_word(state)).tone(match state {
        LeaseState::Bound => Tone::Good,
        LeaseState::Expired | LeaseState::Orphaned => Tone::Warn,
        _ => Tone::Plain,
    })
}

const fn outcome_word(outcome: v1::Outcome) -> &'static str {
    match outcome {
        v1::Outcome::Unspecified => "",
        v1::Outcome::Succeeded => "succeeded",
        v1::Outcome::Failed => "failed",
        v1::Outcome::OutOfMemoryLimit => "out of memory at its own limit",
        v1::Outcome::OutOfMemoryNode => "killed: the node ran out of memory",
        v1::Outcome::TimeBudgetExceeded => "time budget exceeded",
        v1::Outcome::Evicted => "evicted",
        v1::Outcome::Lost => "lost",
    }
}

/// Live and ended ones under each other.
pub(super) fn list(leases: &[v1::Lease], view: &View) -> String {
    if leases.is_empty() {
        return format!("{}\n", view.paint.dim("no leases"));
    }
    let mut grid = Grid::new(&["LEASE", "STATE", "BUILDS", "FOR", "CPU", "MEMORY", "SINCE", "ENDS"]);
    grid = grid.right(&[4, 5]).wraps(&[3, 7]);
    for held in leases {
        let (cpu, memory) = table::brief_size(held.sizing.as_ref().and_then(|sizing| sizing.size.as_ref()));
        let since = held.ended_at.as_ref().or(held.bound_at.as_ref()).or(held.created_at.as_ref());
        let end = match outcome_word(held.outcome()) {
            "" if held.ended_at.is_some() => "-".to_owned(),
            "" => view.when(held.ends_at.as_ref().or(held.bind_by.as_ref())),
            outcome => outcome.to_owned(),
        };
        grid.row([
            cell(&held.id).tone(Tone::Bold),
            state(held.state()),
            cell(table::source(held.source.as_ref())),
            cell(table::scope(held.scope.as_ref())),
            cell(cpu),
            cell(memory),
            cell(view.lasting(since)),
            cell(end),
        ]);
    }
    grid.render(view)
}

pub(super) fn lease(lease: Option<&v1::Lease>, view: &View) -> String {
    let mut fields = Fields::new();
    if let Some(lease) = lease {
        tell(&mut fields, lease, view);
    }
    fields.render(view)
}

/// The same with what its group read from and wrote to disks, while that is known: traffic, whatever of it is left.
pub(super) fn used_lease(lease: Option<&v1::Lease>, used: Option<&v1::LeaseUse>, view: &View) -> String {
    let mut fields = Fields::new();
    if let Some(lease) = lease {
        tell(&mut fields, lease, view);
        // Of processes only what is theirs now could be told.
        if let Some(used) = used.filter(|used| used.source == "cgroup") {
            let (read, wrote) = (screen::bytes(used.io_read_bytes), screen::bytes(used.io_written_bytes));
            fields.add("disk I/O", format!("{read} read, {wrote} written"));
        }
    }
    fields.render(view)
}

fn tell(fields: &mut Fields, lease: &v1::Lease, view: &View) {
    fields.put("lease", cell(&lease.id).tone(Tone::Bold));
    fields.put("state", state(lease.state()));
    source(fields, lease.source.as_ref());
    fields.add("target", &lease.target);
    fields.add("for", table::scope(lease.scope.as_ref()));
    sizing(fields, lease.sizing.as_ref());
    fields.add(
        "held by",
        match &lease.holder {
            Some(v1::lease::Holder::Pod(pod)) => format!("pod {}/{} ({})", pod.namespace, pod.name, pod.uid),
            Some(v1::lease::Holder::Process(process)) => format!("process {}", process.pid),
            None => String::new(),
        },
    );
    fields.add("request", &lease.request_id);
    if lease.attempt > 1 {
        fields.add("attempt", format!("{}, after {}", lease.attempt, lease.retry_of));
    }
    fields.add("made", view.when(lease.created_at.as_ref()));
    fields.add("bound", view.when(lease.bound_at.as_ref()));
    let live = lease.ended_at.is_none();
    if live && lease.bound_at.is_none() {
        fields.add("confirm", view.when(lease.confirm_by.as_ref()));
        fields.add("bind", view.when(lease.bind_by.as_ref()));
    }
    if live {
        fields.add("ends", view.when(lease.ends_at.as_ref()));
        affinity(fields, lease.affinity.as_ref());
    }
    fields.add("ended", view.when(lease.ended_at.as_ref()));
    let good = matches!(lease.outcome(), v1::Outcome::Succeeded);
    fields.put("outcome", cell(outcome_word(lease.outcome())).tone(if good { Tone::Good } else { Tone::Bad }));
    fields.add("exit code", lease.exit_code.map(|code| code.to_string()).unwrap_or_default());
    fields.reasons("why", &lease.reasons);
    fields.add("peak", lease.peak.as_ref().map(usage).unwrap_or_default());
    retry(fields, lease.retry.as_ref());
}

fn source(fields: &mut Fields, resolved: Option<&v1::Resolved>) {
    let Some(resolved) = resolved else { return };
    fields.add("repository", &resolved.clone_url);
    fields.add("ref", &resolved.clone_ref);
    fields.add("commit", format!("{} {}", resolved.commit, resolved.subject).trim_end());
}

/// The size, and where each number came from.
fn sizing(fields: &mut Fields, sizing: Option<&v1::Sizing>) {
    let Some(sizing) = sizing else { return };
    fields.put("size", cell(table::size(sizing.size.as_ref())).tone(Tone::Bold));
    let mut sources: Vec<(String, Vec<&str>)> = Vec::new();
    for basis in &sizing.basis {
        let from = origin(basis);
        match sources.iter_mut().find(|(known, _)| *known == from) {
            Some((_, of)) => of.push(resource_word(basis.resource())),
            None => sources.push((from, vec![resource_word(basis.resource())])),
        }
    }
    let seen = sizing.basis.iter().filter_map(|basis| Some((basis, basis.compared?)));
    let seen = seen.map(|(basis, seen)| {
        let show = |value| table::amount(basis.resource(), value);
        let runs = counted(i64::from(seen.runs), "run", "runs");
        format!(
            "{}: p95 {} of {runs}, leads to {}",
            resource_word(basis.resource()),
            show(seen.p95),
            show(seen.leads_to)
        )
    });
    let seen: Vec<String> = seen.collect();
    fields.put("from", lines(sources.into_iter().map(|(from, of)| format!("{}: {from}", of.join(", ")))));
    if !seen.is_empty() {
        fields.put("earlier", lines(seen));
    }
    for (capped, to) in [(false, "what this node has"), (true, "what this node allows one build")] {
        let lowered = sizing.basis.iter().filter(|basis| basis.clamped && basis.capped == capped);
        let lowered: Vec<&str> = lowered.map(|basis| resource_word(basis.resource())).collect();
        if !lowered.is_empty() {
            fields.put("note", cell(format!("{} lowered to {to}", lowered.join(", "))).tone(Tone::Warn));
        }
    }
    fields.reasons("advice", &sizing.advice);
    if sizing.provisional {
        fields.put("note", cell("provisional: the commit's build spec is not cached yet").tone(Tone::Warn));
    }
}

fn origin(basis: &v1::Basis) -> String {
    match basis.tier() {
        v1::Tier::Request => "declared in the request".to_owned(),
        v1::Tier::Spec if basis.line > 0 => format!("declared in {}:{}", basis.file, basis.line),
        v1::Tier::Spec => format!("declared in {}", basis.file),
        v1::Tier::History => match counted(i64::from(basis.runs), "run", "runs") {
            // Under 20 runs the 95th percentile is the maximum.
            runs if basis.runs < 20 => format!("the most of {runs} (low confidence)"),
            runs => format!("95th percentile of {runs}"),
        },
        v1::Tier::LanguageDefault if matches!(basis.language.as_str(), "" | "other") => "default".to_owned(),
        v1::Tier::LanguageDefault => format!("default for {}", basis.language),
        v1::Tier::Ladder => "one step up after it ran out of memory".to_owned(),
        v1::Tier::Unspecified => "unknown".to_owned(),
    }
}

pub(crate) const fn resource_word(resource: v1::Resource) -> &'static str {
    match resource {
        v1::Resource::Cpu => "CPU",
        v1::Resource::Memory => "memory",
        v1::Resource::DiskBytes => "disk",
        v1::Resource::DiskInodes => "inodes",
        v1::Resource::Time => "time",
        v1::Resource::Unspecified => "?",
    }
}

fn affinity(fields: &mut Fields, affinity: Option<&v1::NodeAffinity>) {
    if let Some(affinity) = affinity {
        fields.add("affinity", format!("{} in ({})", affinity.key, affinity.values.join(", ")));
    }
}

fn usage(usage: &v1::Usage) -> String {
    let mut parts = vec![format!("{} memory", screen::bytes(usage.memory_bytes_peak))];
    let cpu = table::positive(usage.cpu_millis_peak);
    parts.push(stoker_core::quantity::Resource::Cpu.show(cpu).to_string());
    if usage.disk_bytes > 0 {
        parts.push(format!("{} disk", screen::bytes(usage.disk_bytes)));
    }
    if usage.elapsed.is_some() {
        parts.push(format!("{} long", table::span(usage.elapsed.as_ref())));
    }
    parts.join(" · ")
}

fn retry(fields: &mut Fields, retry: Option<&v1::RetryAdvice>) {
    let Some(retry) = retry else { return };
    let text = if retry.allowed { format!("yes, with {}", table::size(retry.size.as_ref())) } else { "no".to_owned() };
    fields.add("retry", text);
    fields.reasons("", &retry.reasons);
}

/// What was decided: the lease, or why there is none and what to do; and where that agent is, if it was searched for.
pub(super) fn decision(answer: &v1::AdmitResponse, address: &str, view: &View) -> String {
    use v1::admit_response::Decision;
    let node = answer.node.as_ref().map(|node| node.name.as_str()).unwrap_or_default();
    let mut fields = Fields::new();
    match &answer.decision {
        Some(Decision::Granted(granted)) => {
            fields.put("granted", cell(format!("by {node}")).tone(Tone::Good));
            fields.add("address", address);
            tell(&mut fields, granted, view);
        }
        Some(Decision::Waiting(waiting)) => {
            fields.put("wait", cell(format!("told by {node}")).tone(Tone::Warn));
            fields.add("address", address);
            fields.reasons("why", &waiting.reasons);
            if let Some(ticket) = &waiting.ticket {
                fields.add("ticket", format!("{}, place {} of the queue", ticket.id, ticket.position));
                fields.add("request", &ticket.request_id);
            }
            fields.add("ask again", format!("in {}", table::span(waiting.retry_after.as_ref())));
            sizing(&mut fields, waiting.sizing.as_ref());
        }
        Some(Decision::Rejected(rejection)) => {
            fields.put("rejected", cell(format!("by {node}")).tone(Tone::Bad));
            fields.reasons("why", &rejection.reasons);
            fields.add(
                "elsewhere",
                if rejection.final_everywhere { "no node takes it as it is" } else { "other nodes may fit" },
            );
            sizing(&mut fields, rejection.sizing.as_ref());
        }
        None => {}
    }
    fields.render(view)
}

pub(super) fn verdict(verdict: v1::Verdict) -> Cell {
    let (word, tone) = match verdict {
        v1::Verdict::Fits => ("fits now", Tone::Good),
        v1::Verdict::Waits => ("must wait", Tone::Warn),
        v1::Verdict::Never => ("never fits", Tone::Bad),
        v1::Verdict::Unspecified => ("unknown", Tone::Warn),
    };
    cell(word).tone(tone)
}

pub(super) const fn source_word(source: v1::SourceState) -> &'static str {
    match source {
        v1::SourceState::Checkout => "checked out already",
        v1::SourceState::Mirror => "mirrored",
        v1::SourceState::None => "not here",
        v1::SourceState::Unspecified => "",
    }
}

/// What would become of each build.
pub(super) fn evaluations(answer: &v1::EvaluateResponse, view: &View) -> String {
    let node = answer.node.as_ref().map(|node| node.name.as_str()).unwrap_or_default();
    let blocks = answer.evaluations.iter().map(|found| {
        let cached = source_word(found.source());
        let mut fields = Fields::new();
        fields.put(node, verdict(found.verdict()));
        fields.reasons("why", &found.reasons);
        if found.predicted_wait.is_some() {
            fields.add("wait", table::span(found.predicted_wait.as_ref()));
        }
        fields.add("score", format!("{} of 100", found.score));
        fields.add("source", cached);
        if found.cache_keys > 0 {
            fields.add("caches", format!("{} of {} are here", found.cache_keys_here, found.cache_keys));
        }
        sizing(&mut fields, found.sizing.as_ref());
        fields.render(view)
    });
    blocks.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::super::status::tests::{lease as made, reason};
    use super::super::super::table::tests::{VIEW, ago};
    use super::*;

    fn sized(lease: &v1::Lease) -> Option<v1::Sizing> {
        let basis = |resource: v1::Resource, tier: v1::Tier| {
            let mut basis = v1::Basis {
                runs: 12,
                file: ".build-spec.yaml".into(),
                line: 3,
                language: "rust".into(),
                ..Default::default()
            };
            basis.set_resource(resource);
            basis.set_tier(tier);
            basis
        };
        let mut sizing = lease.sizing.clone()?;
        sizing.basis = vec![
            basis(v1::Resource::Cpu, v1::Tier::Request),
            basis(v1::Resource::Memory, v1::Tier::History),
            basis(v1::Resource::DiskBytes, v1::Tier::LanguageDefault),
            basis(v1::Resource::Time, v1::Tier::Spec),
        ];
        sizing.basis[2].clamped = true;
        Some(sizing)
    }

    #[test]
    fn a_list_of_live_and_ended_leases() {
        let mut ended = made("01k2f9aaaaaaaaaa", 2, 4, Some(9_000));
        ended.ended_at = ago(600);
        ended.set_state(LeaseState::Released);
        ended.set_outcome(v1::Outcome::OutOfMemoryLimit);
        let leases = [made("01k2f9r7c4m8x0aq", 4, 8, None), made("01k2f9q1h6t3b5dn", 16, 32, Some(3_420)), ended];
        insta::assert_snapshot!(list(&leases, &VIEW), @r"
        LEASE             STATE     BUILDS                FOR                 CPU  MEMORY  SINCE   ENDS
        01k2f9r7c4m8x0aq  reserved  dakota main 01234567  bluefin/dakota    4 CPU   8 GiB  1 min   in 4 min
        01k2f9q1h6t3b5dn  bound     dakota main 01234567  bluefin/dakota   16 CPU  32 GiB  57 min  in 3 min
        01k2f9aaaaaaaaaa  released  dakota main 01234567  bluefin/dakota    2 CPU   4 GiB  10 min  out of
                                                                                                   memory at
                                                                                                   its own
                                                                                                   limit
        ");
    }

    #[test]
    fn a_grant_tells_all_that_the_caller_needs() {
        let mut granted = made("01k2f9r7c4m8x0aq", 4, 8, None);
        granted.sizing = sized(&granted);
        granted.request_id = "ci-4711".to_owned();
        granted.affinity =
            Some(v1::NodeAffinity { key: "kubernetes.io/hostname".into(), values: vec!["ghost".into()] });
        let node = Some(v1::Node { name: "ghost".to_owned(), ..Default::default() });
        let answer = v1::AdmitResponse { node, decision: Some(v1::admit_response::Decision::Granted(granted)) };
        insta::assert_snapshot!(decision(&answer, "", &VIEW), @r"
        granted     by ghost
        lease       01k2f9r7c4m8x0aq
        state       reserved
        repository  https://github.com/projectbluefin/dakota
        ref         refs/heads/main
        commit      0123456789abcdef0123456789abcdef01234567 Use the newer base
        for         bluefin/dakota
        size        4 CPU · 8 GiB memory · 20 GiB disk · 1 h
        from        CPU: declared in the request
                    memory: the most of 12 runs (low confidence)
                    disk: default for rust
                    time: declared in .build-spec.yaml:3
        note        disk lowered to what this node has
        request     ci-4711
        made        1 min ago
        bind        in 4 min
        affinity    kubernetes.io/hostname in (ghost)
        ");
    }

    #[test]
    fn wait_and_rejection_say_why_and_what_next() {
        let node = Some(v1::Node { name: "ghost".to_owned(), ..Default::default() });
        let why = reason(v1::reason::Code::MemoryHeld, "", "40 GiB of memory are wanted, 10.5 GiB are free");
        let waiting = v1::Waiting {
            retry_after: Some(prost_types::Duration { seconds: 45, nanos: 0 }),
            reasons: vec![why.clone()],
            ticket: Some(v1::Ticket {
                id: "01k2f9s5v2w8y6zr".into(),
                request_id: "ci-1".into(),
                position: 2,
                ..Default::default()
            }),
            ..Default::default()
        };
        let rejected = v1::Rejection { final_everywhere: false, reasons: vec![why], sizing: None };
        let told =
            |decision| self::decision(&v1::AdmitResponse { node: node.clone(), decision: Some(decision) }, "", &VIEW);
        let both = [
            told(v1::admit_response::Decision::Waiting(waiting)),
            told(v1::admit_response::Decision::Rejected(rejected)),
        ];
        insta::assert_snapshot!(both.join("\n"), @r"
        wait       told by ghost
        why        40 GiB of memory are wanted, 10.5 GiB are free [MEMORY_HELD]
        ticket     01k2f9s5v2w8y6zr, place 2 of the queue
        request    ci-1
        ask again  in 45 s

        rejected   by ghost
        why        40 GiB of memory are wanted, 10.5 GiB are free [MEMORY_HELD]
        elsewhere  other nodes may fit
        ");
    }

    #[test]
    fn an_evaluation_is_a_verdict_with_its_figures() {
        let mut found = v1::Evaluation { score: 80, sizing: sized(&made("x", 4, 8, None)), ..Default::default() };
        found.set_verdict(v1::Verdict::Fits);
        found.set_source(v1::SourceState::Mirror);
        let node = Some(v1::Node { name: "ghost".to_owned(), ..Default::default() });
        insta::assert_snapshot!(evaluations(&v1::EvaluateResponse { node, evaluations: vec![found] }, &VIEW), @r"
        ghost   fits now
        score   80 of 100
        source  mirrored
        size    4 CPU · 8 GiB memory · 20 GiB disk · 1 h
        from    CPU: declared in the request
                memory: the most of 12 runs (low confidence)
                disk: default for rust
                time: declared in .build-spec.yaml:3
        note    disk lowered to what this node has
        ");
    }
}
