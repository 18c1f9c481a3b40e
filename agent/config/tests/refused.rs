//! What is refused, and how: each row has its field, its line, and what it is told.

use super::*;

/// A text, and what must be said of it: the field, the line, a part of the message, a part of the remedy.
pub(super) struct Row(
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) u64,
    pub(super) &'static str,
    pub(super) &'static str,
);

/// The text of a row stands below these lines: it begins in line 3.
pub(super) const HEAD: &str = "apiVersion: stoker.build/v1\nkind: AgentConfig\n";
/// Or below this one too: it begins in line 4.
pub(super) const POOL: &str = "pools: [{name: data, path: /var/mnt/data}]\n";

pub(super) fn problems(text: &str) -> Vec<Problem> {
    match read(text, "agent.yaml", &NodeIdentity::default()) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(errors) => errors.problems,
    }
}

pub(super) fn refused(head: &str, rows: &[Row]) {
    for Row(text, field, line, message, remedy) in rows {
        let text = format!("{head}{text}");
        let problems = problems(&text);
        let [problem] = problems.as_slice() else { panic!("one problem is expected:\n{text}\n{problems:#?}") };
        assert_eq!((problem.field.as_str(), problem.line), (*field, *line), "{text}\n{problem:?}");
        assert!(problem.message.contains(message), "{text}\n{problem:?}");
        assert!(problem.remedy.contains(remedy), "{text}\n{problem:?}");
    }
}

#[test]
fn what_is_no_document() {
    let deep = format!("{HEAD}node: {}{}", "[".repeat(100), "]".repeat(100));
    let rows = [
        ("", 0, "is empty", "begin with"),
        ("# only a comment\n", 0, "is empty", "begin with"),
        ("---\n", 0, "is empty", "begin with"),
        ("a: 1\n---\nb: 2\n", 3, "more than one YAML document", "keep one"),
        ("a:\n\tb: 1\n", 2, "not valid YAML", "indent with spaces"),
        ("a: [1\nb: 2\n", 2, "not valid YAML", "quote special characters"),
        ("a: *nowhere\n", 1, "not valid YAML", "quote special characters"),
        ("a: !secret x\n", 1, "tag", "remove the tag"),
        (&deep, 3, "depth", "less depth"),
    ];
    for (text, line, message, remedy) in rows {
        let problems = problems(text);
        let [problem] = problems.as_slice() else { panic!("{text}\n{problems:#?}") };
        assert_eq!((problem.field.as_str(), problem.line), ("", line), "{text}\n{problem:?}");
        assert!(problem.message.contains(message), "{text}\n{problem:?}");
        assert!(problem.remedy.contains(remedy), "{text}\n{problem:?}");
    }
}

#[test]
fn few_lines_cannot_become_gigabytes() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let many = format!("*a{}, ", n - 1).repeat(10);
        bomb.push_str(&format!("a{n}: &a{n} [{many}]\n"));
    }
    let problem = problems(&bomb).remove(0);
    assert_eq!(problem.remedy, "write it with fewer aliases and less depth", "{problem:?}");
}

#[test]
fn wrong_shapes() {
    refused(
        "",
        &[
            Row(
                "kind: AgentConfig\npools: [{name: d, path: /d}]",
                "apiVersion",
                1,
                "is missing",
                "add `apiVersion: stoker.build/v1`",
            ),
            Row(
                "apiVersion: v2\nkind: AgentConfig\npools: [{name: d, path: /d}]",
                "apiVersion",
                1,
                "\"v2\" is not a word for it",
                "`stoker.build/v1`",
            ),
            Row("just text", "", 1, "is text, a map is wanted", "write a map"),
            Row("[1, 2]", "", 1, "is a list, a map is wanted", "write a map"),
        ],
    );
    refused(
        &format!("{HEAD}{POOL}"),
        &[
            Row("nodes: {}", "nodes", 4, "is not a known field", "known here: access, admission"),
            Row("node:\n  host_root: /", "node.host_root", 5, "is not a known field", "write `hostRoot`"),
            Row("node:\n  reserve: 4", "node.reserve", 5, "is a number, a map is wanted", "write a map"),
            Row("node: {name: 12}", "node.name", 4, "is a number, text is wanted", "put it in quotes"),
            Row("node: {name: a, name: b}", "node.name", 4, "is given twice, first in line 4", "keep one"),
            Row(
                "repositories:\n  mirrors: {}",
                "repositories.mirrors",
                5,
                "is a map, a list is wanted",
                "write a list",
            ),
            Row("repositories: {add: anybody}", "repositories.add", 4, "\"anybody\"", "`declared` or `on-demand`"),
            Row("repositories:\n  protocols:\n  - https\n  - ext", "repositories.protocols[1]", 7, "\"ext\"", "`ssh`"),
            Row("repositories: {parallel: -1}", "repositories.parallel", 4, "is -1", "without sign"),
            Row("repositories: {parallel: 1.5}", "repositories.parallel", 4, "is 1.5", "whole number"),
            Row("repositories: {refresh: 300}", "repositories.refresh", 4, "text is wanted", "as `\"5m\"`"),
            Row(
                "repositories:\n  mirrors:\n  - url: https://a.org/b\n    pin: yes",
                "repositories.mirrors[0].pin",
                7,
                "is text",
                "write `true` or `false`",
            ),
            Row(
                "repositories:\n  mirrors:\n  - pin: true",
                "repositories.mirrors[0].url",
                6,
                "is missing",
                "add `url`",
            ),
            Row("admission: {timeBudget: kill}", "admission.timeBudget", 4, "\"kill\"", "`end` or `report`"),
            Row(
                "listen: {grpc: {address: '127.0.0.1:1', tls: {key: /k}}}",
                "listen.grpc.tls.certificate",
                4,
                "is missing",
                "add `certificate`",
            ),
        ],
    );
}

#[test]
fn amounts_that_are_none() {
    refused(
        &format!("{HEAD}{POOL}"),
        &[
            Row("node: {reserve: {cpu: -1}}", "node.reserve.cpu", 4, "\"-1\" is negative", "`500m`"),
            Row("node: {reserve: {cpu: 0.0001}}", "node.reserve.cpu", 4, "finer than a thousandth", "`2.5`"),
            Row("node: {reserve: {cpu: 4 cores}}", "node.reserve.cpu", 4, "not an amount of CPU", "`4`"),
            Row("node: {reserve: {cpu: 9223372036854775808}}", "node.reserve.cpu", 4, "any machine", "cores"),
            Row("node: {reserve: {cpu: 9223372036854775808m}}", "node.reserve.cpu", 4, "any machine", "cores"),
            Row("node: {reserve: {cpu: 1e300}}", "node.reserve.cpu", 4, "any machine", "cores"),
            Row("node: {reserve: {cpu: .nan}}", "node.reserve.cpu", 4, "\".nan\" is not an amount", "cores"),
            Row("node: {reserve: {cpu: NaN}}", "node.reserve.cpu", 4, "\"NaN\" is not an amount", "cores"),
            Row("node: {reserve: {memory: 8 apples}}", "node.reserve.memory", 4, "not a number of bytes", "`8GiB`"),
            Row("node: {reserve: {memory: -8GiB}}", "node.reserve.memory", 4, "is negative", "`8GiB`"),
            Row("node: {reserve: {memory: 8192m}}", "node.reserve.memory", 4, "mean two things", "`8GiB`"),
            Row("node: {reserve: {memory: 8EiB}}", "node.reserve.memory", 4, "any machine", "`8GiB`"),
            Row("node: {reserve: {memory: 9223372036854775808}}", "node.reserve.memory", 4, "any machine", "`8GiB`"),
            Row("node: {reserve: {memory: 99999999999999999999}}", "node.reserve.memory", 4, "any machine", "`8GiB`"),
            Row("node: {reserve: {memory: nan}}", "node.reserve.memory", 4, "not a number of bytes", "`8GiB`"),
            Row("node: {reserve: {memory: ''}}", "node.reserve.memory", 4, "not a number of bytes", "`8GiB`"),
            Row("node: {rootFloor: {bytes: 100%}}", "node.rootFloor.bytes", 4, "leaves nothing to use", "below 100"),
            Row("node: {rootFloor: {bytes: 101%}}", "node.rootFloor.bytes", 4, "more than the whole", "below 100"),
            Row("node: {rootFloor: {inodes: -5%}}", "node.rootFloor.inodes", 4, "is negative", "`5%`"),
            Row("node: {rootFloor: {inodes: 1.234%}}", "node.rootFloor.inodes", 4, "hundredth of a percent", "`5%`"),
            Row("node: {rootFloor: {inodes: x%}}", "node.rootFloor.inodes", 4, "not a percentage", "`5%`"),
            Row("node: {rootFloor: {inodes: 1GiB}}", "node.rootFloor.inodes", 4, "not a number or", "`100000`"),
            Row(
                "node: {rootFloor: {inodes: 9223372036854775808}}",
                "node.rootFloor.inodes",
                4,
                "any filesystem",
                "`5%`",
            ),
            Row("repositories: {limit: 0}", "repositories.limit", 4, "is 0", "more than 0"),
            Row("repositories: {refresh: fast}", "repositories.refresh", 4, "not a length of time", "`1h30m`"),
            Row("repositories: {refresh: -5m}", "repositories.refresh", 4, "is negative", "`1h30m`"),
            Row("repositories: {refresh: 0s}", "repositories.refresh", 4, "is 0s", "1s to 168h"),
            Row(
                "repositories: {fetchWithin: 99999999999999999h}",
                "repositories.fetchWithin",
                4,
                "not a length",
                "`5m`",
            ),
            Row("repositories: {upkeep: {every: 0s}}", "repositories.upkeep.every", 4, "is 0s", "1s to 168h"),
            Row("repositories: {upkeep: {memory: 1MiB}}", "repositories.upkeep.memory", 4, "is 1MiB", "64MiB to 1TiB"),
            Row("repositories: {upkeep: {threads: 0}}", "repositories.upkeep.threads", 4, "is 0", "1 to 64"),
            Row("repositories: {minAge: 9999h}", "repositories.minAge", 4, "is 9999h", "0s to 8760h"),
            Row(
                "repositories: {paths: {directory: stoker/x}}",
                "repositories.paths.directory",
                4,
                "agent's own",
                "mirrors",
            ),
            Row("repositories: {paths: {directory: ../x}}", "repositories.paths.directory", 4, "..", ""),
            Row(
                "repositories: {paths: {directory: m, trust: []}}",
                "repositories.paths.trust",
                4,
                "0 classes",
                "default",
            ),
            Row("repositories: {parallel: 65}", "repositories.parallel", 4, "is 65", "1 to 64"),
            Row(
                "node: {filesystems: [{path: var}]}",
                "node.filesystems[0].path",
                4,
                "not an absolute",
                "begins with /",
            ),
            Row(
                "node: {filesystems: [{path: /a}, {path: /a/}]}",
                "node.filesystems[1].path",
                4,
                "is there twice",
                "keep one",
            ),
            Row("pressure: {diskForecast: 2h}", "pressure.diskForecast", 4, "is 2h", "0s to 1h"),
            Row(
                "pressure: {controlPlane: {readyz: 'https://127.0.0.1:6443/readyz'}}",
                "pressure.controlPlane.ca",
                4,
                "is not set",
                "ca.crt",
            ),
            Row(
                "pressure: {controlPlane: {readyz: 'http://10.0.0.1/readyz'}}",
                "pressure.controlPlane.readyz",
                4,
                "in the clear",
                "https",
            ),
            Row(
                "pressure: {controlPlane: {readyz: readyz}}",
                "pressure.controlPlane.readyz",
                4,
                "is not a URL",
                "6443/readyz",
            ),
            Row(
                "pressure: {controlPlane: {cgroups: [etcd]}}",
                "pressure.controlPlane.cgroups[0]",
                4,
                "not an absolute",
                "begins with /",
            ),
            Row("pressure: {controlPlane: {latency: 1ms}}", "pressure.controlPlane.latency", 4, "is 1ms", "10ms to 1m"),
            Row("pressure: {memoryFloor: 0}", "pressure.memoryFloor", 4, "is 0", "more than 0"),
            Row("pressure: {memoryFloor: 100%}", "pressure.memoryFloor", 4, "leaves nothing", "below 100"),
            Row(
                "pressure: {memoryFloor: 20%}",
                "pressure.memoryNarrow",
                4,
                "10% is below memoryFloor, 20%",
                "at least",
            ),
            Row("pressure: {hold: 2h}", "pressure.hold", 4, "is 2h", "100ms to 1h"),
            Row("admission: {leasesMax: 0}", "admission.leasesMax", 4, "is 0", "1 to 4096"),
            Row("sizing: {ladder: []}", "sizing.ladder", 4, "has 0 steps", "1 to 16"),
            Row(
                "sizing:\n  ladder:\n    - {cpu: 2, memory: 4GiB}\n    - {cpu: 4, memory: 4GiB}",
                "sizing.ladder[1].memory",
                7,
                "no more than the step before",
                "the smallest first",
            ),
            Row("sizing: {ladder: [{cpu: 257, memory: 1GiB}]}", "sizing.ladder[0].cpu", 4, "is 257", "at most 256"),
            Row("sizing: {ladder: [{cpu: 2}]}", "sizing.ladder[0].memory", 4, "missing", "memory"),
            Row(
                "sizing: {languages: {rust: {cpu: 0, memory: 1GiB, time: 1h}}}",
                "sizing.languages.rust.cpu",
                4,
                "is 0",
                "more than 0",
            ),
            Row(
                "sizing: {languages: {go: {cpu: 1, memory: 0B, time: 1h}}}",
                "sizing.languages.go.memory",
                4,
                "is 0",
                "more than 0",
            ),
            Row(
                "sizing: {languages: {node: {cpu: 1, memory: 1GiB, time: 25h}}}",
                "sizing.languages.node.time",
                4,
                "is 25h",
                "1m to 24h",
            ),
            Row(
                "sizing: {languages: {cobol: {cpu: 1, memory: 1GiB, time: 1h}}}",
                "sizing.languages.cobol",
                4,
                "is not a known field",
                "known here: go, java",
            ),
            Row("sizing: {disk: {bytes: 0B}}", "sizing.disk.bytes", 4, "is 0", "more than 0"),
            Row("sizing: {disk: {inodes: 0}}", "sizing.disk.inodes", 4, "is 0", "more than 0"),
            Row("sizing: {cap: {cpu: 0}}", "sizing.cap.cpu", 4, "is 0", "more than 0"),
            Row("sizing: {cap: {memory: 0B}}", "sizing.cap.memory", 4, "is 0", "more than 0"),
            Row("sizing: {cap: {disk: 0B}}", "sizing.cap.disk", 4, "is 0", "more than 0"),
            Row("sizing: {cap: {time: 30s}}", "sizing.cap.time", 4, "is 30s", "1m to 24h"),
            Row("sizing: {overDeclared: {times: 1}}", "sizing.overDeclared.times", 4, "is 1", "2 to 100, or 0"),
            Row("sizing: {overDeclared: {runs: 33}}", "sizing.overDeclared.runs", 4, "is 33", "1 to 32"),
            Row("sizing: {nickel: {memory: 1MiB}}", "sizing.nickel.memory", 4, "is 1MiB", "128MiB to 16GiB"),
            Row("sizing: {nickel: {cpuTime: 6m}}", "sizing.nickel.cpuTime", 4, "is 6m", "1s to 5m"),
            Row("sizing: {nickel: {program: bin/nickel}}", "sizing.nickel.program", 4, "absolute", "begins with /"),
            Row("admission: {ticketsMax: 18446744073709551615}", "admission.ticketsMax", 4, "is 184", "1 to 65536"),
            Row("admission: {passFor: 25h}", "admission.passFor", 4, "is 25h", "0s to 24h"),
            Row("admission: {ageAfter: 0s}", "admission.ageAfter", 4, "is 0s", "1m to 24h"),
            Row("admission: {tenants: [{name: a, weight: 0}]}", "admission.tenants[0].weight", 4, "is 0", "1 to 1000"),
            Row(
                "admission: {tenants: [{name: a, cpuMax: 0}]}",
                "admission.tenants[0].cpuMax",
                4,
                "is 0",
                "more than 0",
            ),
            Row("admission: {tenants: [{name: a}, {name: a}]}", "admission.tenants[1].name", 4, "twice", "once"),
            Row("admission: {otherTenants: {memoryMax: 0B}}", "admission.otherTenants.memoryMax", 4, "is 0", "leave"),
        ],
    );
}

#[test]
fn pools_that_cannot_be() {
    refused(
        HEAD,
        &[
            Row("state: /s", "pools", 1, "is missing", "add `pools`"),
            Row("pools: []", "pools", 3, "is empty", "declare a pool"),
            Row("pools:\n- name: d\n  seal: true", "pools[0].path", 4, "is missing", "add `path`"),
            Row("pools: [{name: Data, path: /d}]", "pools[0].name", 3, "\"Data\" is not a name", "a-z"),
            Row("pools: [{name: '', path: /d}]", "pools[0].name", 3, "is empty", "a-z"),
            Row("pools: [{name: d, path: var/mnt}]", "pools[0].path", 3, "not an absolute path", "begins with /"),
            Row("pools: [{name: d, path: /var/../etc}]", "pools[0].path", 3, "has a `..`", "without `..`"),
            Row("pools: [{name: d, path: \"/d\\0\"}]", "pools[0].path", 3, "control characters", "visible"),
            Row("pools: [{name: d, path: /}]", "pools[0].path", 3, "contains the agent's state", "set `state`"),
            Row(
                "pools: [{name: d, path: /var/lib/stoker/p}]",
                "pools[0].path",
                3,
                "lies in the agent's state",
                "outside",
            ),
            Row(
                "state: /d//x/\npools:\n- name: d\n  path: /d",
                "pools[0].path",
                6,
                "contains the agent's state",
                "no pool",
            ),
            Row(
                "pools: [{name: d, path: /d, mount: maybe}]",
                "pools[0].mount",
                3,
                "\"maybe\"",
                "`required` or `optional`",
            ),
            Row("pools: [{name: d, path: /d, uuid: 12-34}]", "pools[0].uuid", 3, "not the UUID", "blkid"),
            Row("pools: [{name: d, path: /d, floor: {bytes: 0}}]", "pools[0].floor.bytes", 3, "is 0", "more than 0"),
            Row(
                "pools: [{name: d, path: /d, nodes: {}}]",
                "pools[0].nodes",
                3,
                "selects no node",
                "`names` or `labels`",
            ),
            Row(
                "pools: [{name: d, path: /d, nodes: {names: [a b]}}]",
                "pools[0].nodes.names[0]",
                3,
                "\"a b\"",
                "host name",
            ),
            Row(
                "pools: [{name: d, path: /d, nodes: {labels: {a: 'b c'}}}]",
                "pools[0].nodes.labels.a",
                3,
                "is not a label",
                "example.org/disk",
            ),
            Row(
                "pools:\n- name: d\n  path: /d\n- name: d\n  path: /e",
                "pools[1].name",
                6,
                "is the name of the pool in line 4 too",
                "choose another name",
            ),
            Row(
                "repositories: {pool: d}\npools:\n- name: d\n  path: /d\n- name: e\n  path: /d/./e",
                "pools[1].path",
                8,
                "\"/d/e\" overlaps \"/d\", the pool in line 5",
                "neither contains",
            ),
            Row(
                "repositories: {pool: d}\npools:\n- name: d\n  path: /d\n- name: e\n  path: /d/",
                "pools[1].path",
                8,
                "overlaps",
                "neither contains",
            ),
            Row(
                "pools: [{name: d, path: /d}, {name: e, path: /e}]",
                "repositories.pool",
                1,
                "more than one pool",
                "name the pool",
            ),
        ],
    );
}

#[test]
fn directories_that_cannot_be() {
    let head = format!("{HEAD}pools:\n- name: data\n  path: /d\n  directories:\n");
    refused(
        &head,
        &[
            Row("  - path: /abs", "pools[0].directories[0].path", 7, "is an absolute path", "relative to the pool"),
            Row("  - path: a/../b", "pools[0].directories[0].path", 7, "has a `..`", "without `..`"),
            Row("  - path: ./", "pools[0].directories[0].path", 7, "is the pool itself", "name a directory"),
            Row("  - path: ./stoker/x", "pools[0].directories[0].path", 7, "the agent's own", "another name"),
            Row("  - {path: x, mode: 755}", "pools[0].directories[0].mode", 7, "is a number", "in quotes"),
            Row("  - {path: x, mode: '0789'}", "pools[0].directories[0].mode", 7, "not a mode", "octal"),
            Row("  - {path: x, mode: '+755'}", "pools[0].directories[0].mode", 7, "not a mode", "octal"),
            Row("  - {path: x, owner: root}", "pools[0].directories[0].owner", 7, "is text", "a whole number"),
            Row("  - {path: x, owner: 4294967295}", "pools[0].directories[0].owner", 7, "not an id", "4294967294"),
            Row("  - {path: x, retention: ever}", "pools[0].directories[0].retention", 7, "\"ever\"", "`cache`"),
            Row("  - {path: x, limit: 0}", "pools[0].directories[0].limit", 7, "is 0", "for no limit"),
            Row("  - path: x\n  - path: ./x/", "pools[0].directories[1].path", 8, "twice, first in line 7", "keep one"),
            Row(
                "  - {path: a/b}\n  - {path: a, retention: scratch}",
                "pools[0].directories[1].path",
                8,
                "content of \"a\" is deleted in time",
                "side by side",
            ),
            Row(
                "  - {path: a, retention: cache}\n  - {path: a/b}",
                "pools[0].directories[1].path",
                8,
                "overlaps the directory of line 7",
                "side by side",
            ),
        ],
    );
}

#[test]
fn repositories_and_addresses_that_cannot_be() {
    let long = Box::leak(format!("listen: {{socket: /{}}}", "s".repeat(107)).into_boxed_str());
    refused(
        &format!("{HEAD}{POOL}"),
        &[
            Row("state: stoker", "state", 4, "not an absolute path", "begins with /"),
            Row("node: {hostRoot: host}", "node.hostRoot", 4, "not an absolute path", "begins with /"),
            Row("repositories: {pool: dat}", "repositories.pool", 4, "\"dat\" is not a declared pool", "data"),
            Row("workspaces: {pool: dat}", "workspaces.pool", 4, "\"dat\" is not a declared pool", "data"),
            Row("repositories: {serve: {trust: [A]}}", "repositories.serve.trust[0]", 4, "not a name", "a-z"),
            Row("repositories: {serve: {clients: 0}}", "repositories.serve.clients", 4, "is 0", "1 to 4096"),
            Row("repositories: {serve: {patience: 0s}}", "repositories.serve.patience", 4, "is 0s", "1s to 1h"),
            Row(
                "repositories: {serve: {url: 'ssh://a/git'}}",
                "repositories.serve.url",
                4,
                "plain http",
                "no credentials",
            ),
            Row(
                "repositories: {serve: {url: 'http://u@a/git'}}",
                "repositories.serve.url",
                4,
                "plain http",
                "no query",
            ),
            Row("repositories: {add: on-demand}", "repositories.allow", 4, "is empty", "list hosts"),
            Row("repositories: {protocols: []}", "repositories.protocols", 4, "is empty", "at least one"),
            Row(
                "repositories: {allow: ['https://a.org/b']}",
                "repositories.allow[0]",
                4,
                "host pattern",
                "without scheme",
            ),
            Row("repositories: {allow: ['a.org:80']}", "repositories.allow[0]", 4, "host pattern", "without its port"),
            Row("repositories: {allow: ['*a.org']}", "repositories.allow[0]", 4, "host pattern", "`*.example.org`"),
            Row("repositories: {allow: ['a..org']}", "repositories.allow[0]", 4, "host pattern", "`github.com`"),
            Row("repositories: {allow: ['']}", "repositories.allow[0]", 4, "host pattern", "`github.com`"),
            Row(
                "repositories:\n  mirrors:\n  - url: https://a.org/../b",
                "repositories.mirrors[0].url",
                6,
                "is not a repository",
                "write a URL",
            ),
            Row("repositories: {mirrors: [{url: -x}]}", "repositories.mirrors[0].url", 4, "not a repository", "a URL"),
            Row(
                "repositories: {mirrors: [{url: 'ext::sh'}]}",
                "repositories.mirrors[0].url",
                4,
                "not a repository",
                "URL",
            ),
            Row(
                "repositories: {mirrors: [{url: 'http://a.org/b'}]}",
                "repositories.mirrors[0].url",
                4,
                "needs http, which `protocols` does not list",
                "add http",
            ),
            Row(
                "repositories: {mirrors: [{url: 'file:///b'}]}",
                "repositories.mirrors[0].url",
                4,
                "needs file",
                "add file",
            ),
            Row(
                "repositories:\n  mirrors:\n  - url: https://a.org/b\n  - url: git@a.org:b.git",
                "repositories.mirrors[1].url",
                7,
                "is the repository of line 6 too",
                "keep one",
            ),
            Row(
                "repositories: {mirrors: [{url: 'https://a.org/b', trust: Red}]}",
                "repositories.mirrors[0].trust",
                4,
                "\"Red\" is not a name",
                "a-z",
            ),
            Row("repositories: {manifests: [{}]}", "repositories.manifests[0]", 4, "not one of `url`", "write `url`"),
            Row(
                "repositories: {manifests: [{url: 'https://a.org/m', path: /m.xml}]}",
                "repositories.manifests[0]",
                4,
                "not one of `url` and `path`",
                "`path` and `base`",
            ),
            Row(
                "repositories: {manifests: [{url: 'https://a.org/m', base: 'https://a.org'}]}",
                "repositories.manifests[0].base",
                4,
                "stands beside `url`",
                "remove it",
            ),
            Row(
                "repositories: {manifests: [{url: 'http://a.org/m'}]}",
                "repositories.manifests[0].url",
                4,
                "needs http",
                "add http",
            ),
            Row(
                "repositories: {manifests: [{url: 'https://a.org/m', ref: main}]}",
                "repositories.manifests[0].ref",
                4,
                "\"main\" names no ref",
                "branch:main",
            ),
            Row(
                "repositories: {manifests: [{url: 'https://a.org/m', ref: 'pr:1'}]}",
                "repositories.manifests[0].ref",
                4,
                "a pull request",
                "branch:NAME",
            ),
            Row(
                "repositories: {manifests: [{url: 'https://a.org/m', file: ../x}]}",
                "repositories.manifests[0].file",
                4,
                "has a `..`",
                "without `..`",
            ),
            Row(
                "repositories: {manifests: [{path: /m.xml}]}",
                "repositories.manifests[0].base",
                4,
                "is missing",
                "to which `fetch` is relative",
            ),
            Row(
                "repositories: {manifests: [{path: /m.xml, base: 'https://me:x@a.org'}]}",
                "repositories.manifests[0].base",
                4,
                "credentials",
                "without credentials",
            ),
            Row(
                "repositories: {manifests: [{url: 'https://a.org/m', groups: ['a,b']}]}",
                "repositories.manifests[0].groups[0]",
                4,
                "is not a group",
                "without commas",
            ),
            Row(
                "repositories:\n  manifests:\n  - url: https://a.org/m\n  - url: git@a.org:m.git",
                "repositories.manifests[1]",
                7,
                "is the manifest of line 6 too",
                "keep one",
            ),
            Row("repositories: {submodules: {depth: 0}}", "repositories.submodules.depth", 4, "is 0", "from 1 to 32"),
            Row("listen: {socket: stoker.sock}", "listen.socket", 4, "not an absolute path", "begins with /"),
            Row("volume: {socket: csi.sock}", "volume.socket", 4, "not an absolute path", "begins with /"),
            Row(
                "volume: {socket: /k/csi.sock, kubelet: k}",
                "volume.kubelet",
                4,
                "not an absolute path",
                "begins with /",
            ),
            Row(
                "volume: {kubelet: /k, socket: /k/pods/csi.sock}",
                "volume.socket",
                4,
                "keeps other things",
                "of its own",
            ),
            Row(long, "listen.socket", 4, "has 108 bytes", "shorter path"),
            Row("listen: {http: {address: 'localhost:80'}}", "listen.http.address", 4, "not an address", "numeric"),
            Row("listen: {http: {}}", "listen.http.address", 4, "is missing", "add `address`"),
            Row(
                "listen:\n  grpc:\n    address: 0.0.0.0:9417\n    insecure: loopback",
                "listen.grpc.address",
                6,
                "0.0.0.0:9417 is not a loopback address, and there is no `tls`",
                "`127.0.0.1:9417`, with `insecure: loopback`",
            ),
            Row(
                "listen: {grpc: {address: '[::1]:9417'}}",
                "listen.grpc.insecure",
                4,
                "without TLS",
                "add `insecure: loopback`",
            ),
            Row(
                "listen: {grpc: {address: '127.0.0.1:1', insecure: loopback, tls: {certificate: /c, key: /k}}}",
                "listen.grpc.insecure",
                4,
                "this one has `tls`",
                "remove it",
            ),
            Row(
                "listen: {http: {address: '127.0.0.1:1', tls: {certificate: /c, key: k}}}",
                "listen.http.tls.key",
                4,
                "not an absolute path",
                "begins with /",
            ),
            Row(
                "listen: {grpc: {address: '127.0.0.1:1', insecure: loopback}, http: {address: '0.0.0.0:1'}}",
                "listen.http.address",
                4,
                "takes the port",
                "another port",
            ),
        ],
    );
}

#[test]
fn credentials_and_git_children_that_cannot_be() {
    let at = "repositories.credentials[0]";
    let token = "token: {file: /t}";
    let row = |text: &str| format!("repositories: {{credentials: [{{{text}}}]}}");
    for (text, field, message, remedy) in [
        (format!("match: '', {token}"), ".match", "is not the beginning", "`github.com`"),
        (format!("match: 'https://me:pw@x.org', {token}"), ".match", "names a user", "https://git.example.org/team"),
        (format!("match: 'ftp://x.org', {token}"), ".match", "none of https, http and ssh", "`github.com`"),
        (format!("match: 'ssh://x.org', {token}"), ".match", "does not go with", "another scheme"),
        ("match: x.org".to_owned(), "", "not exactly one", "write one of them"),
        (format!("match: x.org, {token}, basic: {{username: a, passwordFile: /p}}"), "", "not exactly one", "one of"),
        (format!("match: x.org, trust: [], {token}"), ".trust", "no trust class", "[default]"),
        (format!("match: x.org, trust: [Team], {token}"), ".trust[0]", "Team", "a-z"),
        ("match: x.org, token: {file: t}".to_owned(), ".token.file", "not an absolute path", "begins with /"),
        ("match: x.org, token: {file: /t, username: 'a:b'}".to_owned(), ".token.username", "no", "without ':'"),
        (
            "match: x.org, ssh: {keyFile: /k, knownHostsFile: /h, user: '-oProxyCommand=x'}".to_owned(),
            ".ssh.user",
            "is not a user name",
            "visible characters",
        ),
    ] {
        let problem = problems(&format!("{HEAD}{POOL}{}", row(&text))).remove(0);
        assert_eq!(problem.field, format!("{at}{field}"), "{problem:?}");
        assert!(problem.message.contains(message) && problem.remedy.contains(remedy), "{problem:?}");
    }
    refused(
        &format!("{HEAD}{POOL}"),
        &[
            Row(
                "repositories: {git: {user: root}}",
                "repositories.git.user",
                4,
                "\"root\" is not a user",
                "65532:65532",
            ),
            Row(
                "repositories: {git: {helper: git.sock}}",
                "repositories.git.helper",
                4,
                "is not an absolute path",
                "begins with /",
            ),
            Row(
                "repositories: {git: {helper: /run/a-folder-whose-name-is-much-longer-than-any-address-of-a-unix-\
                 socket-could-ever-hold-on-this-kernel/git.sock}}",
                "repositories.git.helper",
                4,
                "has 113 bytes",
                "at most 107",
            ),
            Row(
                "repositories: {git: {user: \"0:0\", helper: /run/git.sock}}",
                "repositories.git.user",
                4,
                "is root",
                "remove `helper`",
            ),
            Row("repositories: {git: {memory: 1MiB}}", "repositories.git.memory", 4, "is 1MiB", "256MiB or more"),
            Row("repositories: {git: {processes: 1}}", "repositories.git.processes", 4, "is 1", "64 to 1000000"),
            Row(
                "repositories: {credentials: [{match: x.org, token: {file: /a}}, {match: X.org, token: {file: /b}}]}",
                "repositories.credentials[1].match",
                4,
                "is the match of line 4 too",
                "keep one",
            ),
            Row(
                "repositories: {credentials: [{match: x.org, trust: [a, b], token: {file: /a}}, \
                 {match: x.org, token: {file: /b}}, {match: x.org, trust: [c, b], token: {file: /b}}]}",
                "repositories.credentials[2].match",
                4,
                "is the match of line 4 too",
                "for each trust class",
            ),
        ],
    );
}

#[test]
fn forges_that_cannot_be() {
    refused(
        &format!("{HEAD}{POOL}"),
        &[
            Row("repositories: {forges: [{host: github.com}]}", "repositories.forges[0].kind", 4, "is missing", ""),
            Row(
                "repositories: {forges: [{host: 'github.com/a', kind: github}]}",
                "repositories.forges[0].host",
                4,
                "it has a slash",
                "`github.com`",
            ),
            Row(
                "repositories: {forges: [{host: GitHub.com, kind: github}, {host: github.com, kind: gitea}]}",
                "repositories.forges[1].host",
                4,
                "is the forge of line 4 too",
                "keep one",
            ),
            Row(
                "repositories: {forges: [{host: x.org, kind: gitea, api: 'https://me:pw@x.org/api/v1'}]}",
                "repositories.forges[0].api",
                4,
                "a user name or a password",
                "without credentials",
            ),
            Row(
                "repositories: {forges: [{host: x.org, kind: gitea, api: 'ssh://x.org/api/v1'}]}",
                "repositories.forges[0].api",
                4,
                "not one of HTTP",
                "https://api.github.com",
            ),
            Row(
                "repositories: {forges: [{host: x.org, kind: gitea, api: 'http://x.org/api/v1'}]}",
                "repositories.forges[0].api",
                4,
                "needs http",
                "add http",
            ),
        ],
    );
}

#[test]
fn access_that_cannot_be() {
    let rule = |text: &str| -> &'static str { format!("access: {{rules: [{{{text}}}]}}").leak() };
    let at = "access.rules[0]";
    let row = |text, field, why, remedy| Row(rule(text), field, 4, why, remedy);
    let rows = [
        row("role: viewer", at, "names nobody", "`users`"),
        row("role: root, users: [a]", "access.rules[0].role", "\"root\"", "`operator`"),
        row(
            "role: viewer, serviceAccounts: [a]",
            "access.rules[0].serviceAccounts[0]",
            "is not a service account",
            "`namespace/name`",
        ),
        row("role: viewer, users: ['']", "access.rules[0].users[0]", "is empty", "a name"),
        row("role: viewer, users: [a], tenants: ['']", "access.rules[0].tenants[0]", "is empty", "a name"),
        row("role: viewer, users: [a], trust: [A]", "access.rules[0].trust[0]", "is not a name", "a-z"),
        row(
            "role: viewer, users: [a], tenant: b",
            "access.rules[0].tenant",
            "is not a known field",
            "known here: groups",
        ),
    ];
    refused(&format!("{HEAD}{POOL}"), &rows);
    refused(
        &format!("{HEAD}{POOL}"),
        &[
            Row("access: {tokens: {cache: 1h}}", "access.tokens.cache", 4, "is 1h", "1s to 10m"),
            Row("access: {tokens: {audience: ''}}", "access.tokens.audience", 4, "is none", "visible"),
            Row("access: {rate: {perSecond: 0}}", "access.rate.perSecond", 4, "is 0", "from 1"),
            Row("access: {rate: {burst: 2000000}}", "access.rate.burst", 4, "is 2000000", "to 1000000"),
        ],
    );
}
