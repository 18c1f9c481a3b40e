//! How much is read, and how much is told.

use super::refused::{HEAD, POOL, problems};
use super::*;

#[test]
fn more_than_the_bounds() {
    let many = |n: usize, each: &dyn Fn(usize) -> String| (0..n).map(each).collect::<Vec<_>>().join(", ");
    let pools = many(65, &|n| format!("{{name: p{n}, path: /p/{n}}}"));
    let directories = many(257, &|n| format!("{{path: d{n}}}"));
    let mirrors = many(10_001, &|n| format!("{{url: 'https://a.org/{n}'}}"));
    let manifests = many(65, &|n| format!("{{url: 'https://a.org/{n}'}}"));
    let filesystems = many(17, &|n| format!("{{path: /f/{n}}}"));
    let rules = many(257, &|n| format!("{{tenant: t{n}, keep: 1d}}"));
    let rows = [
        (format!("{POOL}outputs: {{rules: [{rules}]}}"), "outputs.rules", "257 rules"),
        (format!("{POOL}repositories: {{manifests: [{manifests}]}}"), "repositories.manifests", "65 manifests"),
        (format!("repositories: {{pool: p1}}\npools: [{pools}]"), "pools", "65 pools"),
        (format!("pools: [{{name: d, path: /d, directories: [{directories}]}}]"), "pools[0].directories", "257 dir"),
        (format!("{POOL}node: {{filesystems: [{filesystems}]}}"), "node.filesystems", "17 filesystems"),
        (format!("{POOL}repositories: {{mirrors: [{mirrors}]}}"), "repositories.mirrors", "10001 mirrors"),
    ];
    for (text, field, message) in rows {
        let problem = problems(&format!("{HEAD}{text}")).remove(0);
        assert_eq!(problem.field, field, "{problem:?}");
        assert!(problem.message.contains(message), "{problem:?}");
        assert!(problem.remedy.starts_with("declare at most"), "{problem:?}");
    }
    let fits = many(10_000, &|n| format!("{{url: 'https://a.org/{n}'}}"));
    let text = format!("{HEAD}{POOL}repositories: {{mirrors: [{fits}]}}");
    assert_eq!(config(&text, &NodeIdentity::default()).repositories.mirrors.len(), 10_000);
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_lines() {
    let text = "apiVersion: stoker.build/v1
kind: AgentConfig
colour: red
node: {reserve: {cpu: lots, memory: 1GiB}}
pools:
- name: data
  path: mnt
  floor: 10%
  directories: [3, {path: ../x, mode: 7}]
listen: {grpc: {address: '0.0.0.0:1'}}
";
    let all = problems(text);
    let told: Vec<_> = all.iter().map(|problem| (problem.line, problem.field.as_str())).collect();
    assert_eq!(
        told,
        [
            (3, "colour"),
            (4, "node.reserve.cpu"),
            (7, "pools[0].path"),
            (8, "pools[0].floor"),
            (9, "pools[0].directories[0]"),
            (9, "pools[0].directories[1].path"),
            (9, "pools[0].directories[1].mode"),
            (10, "listen.grpc.address"),
        ]
    );
}

#[test]
fn endless_problems_are_counted() {
    let unknown: String = (0..500).map(|n| format!("x{n}: 1\n")).collect();
    let errors = read(&format!("{HEAD}{POOL}{unknown}"), "a", &NodeIdentity::default()).unwrap_err();
    assert_eq!((errors.problems.len(), errors.omitted), (PROBLEMS_MAX, 400));
}
