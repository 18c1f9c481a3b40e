//! What `stoker doctor` found: for people, as a message, and as fragments of files.

use stoker_proto::v1;
use stoker_proto::v1::node_finding::Severity;

use super::super::ask::{self, Failure};
use super::super::table::{Fields, Tone, View, cell};
use super::super::{Format, screen};
use super::{Finding, Report};

/// Before each line of a fragment, where people read it.
const INDENT: &str = "    ";

/// Writes it as asked: all of it, or the fragments alone.
pub(super) fn answer(format: Format, report: &Report, patches_only: bool) -> Result<(), Failure> {
    let patches = report.patches.iter().map(|patch| serde_json::json!({"file": patch.file, "yaml": patch.yaml}));
    let patches = patches.collect::<Vec<_>>();
    if patches_only {
        if report.patches.is_empty() {
            screen::say("nothing is to be written");
        }
        return ask::value(format, &serde_json::json!({ "patches": patches }), |_| fragments(&report.patches));
    }
    let finding = |finding: &Finding| {
        serde_json::json!({
            "kind": finding.kind.as_str_name(),
            "severity": finding.severity.as_str_name(),
            "what": finding.what,
            "why": finding.why,
            "remedy": finding.remedy,
        })
    };
    let findings = report.findings.iter().map(finding).collect::<Vec<_>>();
    let json = serde_json::json!({"findings": findings, "patches": patches, "unseen": report.unseen});
    ask::value(format, &json, |view| render(report, view))
}

/// YAML documents, each after a comment that says where it goes.
fn fragments(patches: &[v1::Patch]) -> String {
    let one =
        |patch: &v1::Patch| format!("# merge into {}\n{}", screen::safe(&patch.file), safe_lines(&patch.yaml, ""));
    patches.iter().map(one).collect::<Vec<_>>().join("---\n")
}

/// Each line after an indent, safe for a terminal.
fn safe_lines(text: &str, indent: &str) -> String {
    text.lines().map(|line| format!("{indent}{}\n", screen::safe(line))).collect()
}

pub(super) fn render(report: &Report, view: &View) -> String {
    let mut out = headline(report, view);
    for (i, finding) in report.findings.iter().enumerate() {
        let tone = if finding.severity == Severity::Warning { Tone::Warn } else { Tone::Bad };
        let mut block = Fields::new();
        block.put(&format!("{}.", i + 1), cell(&finding.what).tone(tone));
        block.put("", cell(&finding.why));
        block.put("", cell(if finding.remedy.is_empty() { String::new() } else { format!("→ {}", finding.remedy) }));
        out.push('\n');
        out.push_str(&block.render(view));
    }
    if !report.patches.is_empty() {
        let alone = view.paint.dim("(`stoker doctor --patch` prints it alone)");
        out.push_str(&format!("\n{} {alone}\n", view.paint.bold("What to write")));
    }
    for patch in &report.patches {
        out.push_str(&format!("\n  {}\n", screen::safe(&patch.file)));
        out.push_str(&safe_lines(&patch.yaml, INDENT));
    }
    if !report.unseen.is_empty() {
        let mut block = Fields::new();
        report.unseen.iter().for_each(|unseen| block.put("-", cell(unseen).tone(Tone::Dim)));
        out.push_str(&format!("\n{}\n{}", view.paint.dim("Not looked at"), block.render(view)));
    }
    out
}

fn headline(report: &Report, view: &View) -> String {
    let node = view.paint.bold(screen::safe(&report.node));
    let warnings = report.findings.iter().filter(|finding| finding.severity == Severity::Warning).count();
    let faults = report.findings.len().saturating_sub(warnings);
    let counted = |count: usize, one, many| screen::counted(i64::try_from(count).unwrap_or(i64::MAX), one, many);
    let warned = counted(warnings, "warning", "warnings");
    match (faults, warnings) {
        (0, 0) => format!("{node} {}\n", view.paint.green("is well: nothing to mend")),
        (0, _) => format!("{node} has nothing to mend, and {}\n", view.paint.yellow(warned)),
        (_, 0) => format!("{node} has {} to mend\n", counted(faults, "thing", "things")),
        _ => format!("{node} has {} to mend, and {warned}\n", counted(faults, "thing", "things")),
    }
}

#[cfg(test)]
mod tests {
    use stoker_proto::v1::node_finding::Kind;

    use super::super::super::table::tests::VIEW;
    use super::*;

    fn report() -> Report {
        let finding = |severity, what: &str, why: &str, remedy: &str| Finding {
            kind: Kind::ReserveBelowRequests,
            severity,
            what: what.into(),
            why: why.into(),
            remedy: remedy.into(),
        };
        let patch = |file: &str, yaml: &str| v1::Patch { file: file.into(), yaml: yaml.into() };
        Report {
            node: "ghost".into(),
            findings: vec![
                finding(
                    Severity::Fault,
                    "node.reserve keeps 0.5 CPU and 1 GiB of memory; its static pods (etcd, kube-apiserver) ask for 1.5 CPU \
                     and 2 GiB of memory",
                    "builds are admitted into what keeps the node alive",
                    "keep 1.5 CPU and 3 GiB of memory for them",
                ),
                finding(
                    Severity::Warning,
                    "pool data (/var/mnt/data) shares nvme0n1 with etcd's data (/var/lib/etcd)",
                    "etcd waits for its disk at each write",
                    "mount another disk at /var/mnt/data",
                ),
            ],
            patches: vec![
                patch("the agent's configuration", "node:\n  reserve: {cpu: 1500m, memory: 3GiB}\n"),
                patch("the kubelet's\x1b configuration", "enforceNodeAllocatable: [pods]\n"),
            ],
            unseen: vec!["the kubelet's thresholds for evictions: /var/lib/kubelet/config.yaml cannot be read".into()],
        }
    }

    #[test]
    fn faults_come_first_and_what_to_write_after_them() {
        insta::assert_snapshot!(render(&report(), &VIEW), @r"
        ghost has 1 thing to mend, and 1 warning

        1.  node.reserve keeps 0.5 CPU and 1 GiB of memory; its static pods (etcd, kube-apiserver) ask for
            1.5 CPU and 2 GiB of memory
            builds are admitted into what keeps the node alive
            → keep 1.5 CPU and 3 GiB of memory for them

        2.  pool data (/var/mnt/data) shares nvme0n1 with etcd's data (/var/lib/etcd)
            etcd waits for its disk at each write
            → mount another disk at /var/mnt/data

        What to write (`stoker doctor --patch` prints it alone)

          the agent's configuration
            node:
              reserve: {cpu: 1500m, memory: 3GiB}

          the kubelet's� configuration
            enforceNodeAllocatable: [pods]

        Not looked at
        -  the kubelet's thresholds for evictions: /var/lib/kubelet/config.yaml cannot be read
        ");
        let narrow = render(&report(), &View { width: 80, ..VIEW });
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
    }

    #[test]
    fn fragments_are_documents_that_say_where_they_go() {
        insta::assert_snapshot!(fragments(&report().patches), @r"
        # merge into the agent's configuration
        node:
          reserve: {cpu: 1500m, memory: 3GiB}
        ---
        # merge into the kubelet's� configuration
        enforceNodeAllocatable: [pods]
        ");
        assert_eq!(fragments(&[]), "");
    }
}
