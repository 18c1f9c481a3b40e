//! Files as people write them: the documented example, defaults, and what is read for which node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounds;
mod keeping;
mod properties;
mod refused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_core::identity::Scope;
use stoker_core::quantity::Span;

use super::*;

/// The example of the documentation, with all that an operator may add.
const EXAMPLE: &str = r#"
apiVersion: stoker.build/v1
kind: AgentConfig
state: /var/lib/stoker                # journal and history
node:
  reserve: {cpu: 4, memory: 8GiB}
  hostRoot: /
pools:
  - name: data
    path: /var/mnt/ghost-data
    nodes: {names: [ghost]}
    mount: required
    uuid: 0f8fad5b-d9cb-469f-a165-70867728950e
    floor: {bytes: 10%, inodes: 5%}
    directories:
      - {path: bst-cache, mode: "0755", retention: cache, limit: 400GiB}
      - {path: shared, mode: "2775", owner: 1000, group: 1000}
      - {path: shared/out/, retention: output}
  - name: data
    path: /var/mnt/exo0-data
    nodes: {names: [exo-0], labels: {stoker.build/disk: nvme}}
    seal: true
    floor: {bytes: 10.25 GB, inodes: 100000}
repositories:
  pool: data
  limit: 200GiB
  refresh: 5m
  add: on-demand
  allow: [github.com, "*.Example.org", "[::1]", 127.0.0.1]
  protocols: [https, ssh, https]
  git: {user: "1234:5678", memory: 4GiB, processes: 100, helper: /run/git/git.sock}
  credentials:
    - {match: github.com, token: {file: /etc/stoker/github/token}}
    - {match: "https://git.Example.org/team", basic: {username: ci, passwordFile: /etc/stoker/team/password}}
    - {match: github.com, trust: [public, team], ssh: {keyFile: /etc/stoker/ssh/key, knownHostsFile: /etc/stoker/ssh/known_hosts}}
  forges:
    - {host: GitHub.com, kind: github}
    - {host: "git.example.org:8443", kind: forgejo, api: "https://git.example.org:8443/forge/api/v1/"}
  serve: {trust: [default, public], anonymous: everyone, clients: 9, patience: 2s, spool: 0, url: "http://stoker:9418/git"}
  mirrors:
    - {url: https://github.com/projectbluefin/dakota, pin: true, trust: public}
outputs:
  retention: 7d
  rules:
    - {tenant: red, branch: "release/*", keep: 90d}
    - {project: "stx-?", keep: 1d 12h}
caches: {limit: 200GiB, tenantLimit: 50GiB}
orphans: {grace: 48h}
pressure: {memoryFloor: 2GiB, memoryNarrow: 12.5%, hold: 1m30s}
listen:
  socket: /run/stoker/stoker.sock
  grpc: {address: "127.0.0.1:9417", insecure: loopback}
  http: {address: 0.0.0.0:9418}
volume: {socket: /var/lib/kubelet/plugins/stoker.build/csi.sock}
"#;

const MINIMAL: &str = "
apiVersion: stoker.build/v1
kind: AgentConfig
pools: [{name: data, path: /var/mnt/data}]
";

fn node(name: &str, labels: &[(&str, &str)]) -> NodeIdentity {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    NodeIdentity { name: name.to_owned(), labels }
}

fn config(text: &str, node: &NodeIdentity) -> Config {
    read(text, "agent.yaml", node).unwrap_or_else(|errors| panic!("{errors}")).1
}

#[test]
fn the_example_is_read_in_units() {
    let config = config(EXAMPLE, &node("ghost", &[]));
    assert_eq!(config.node.name, "ghost");
    assert_eq!(config.node.reserve.cpu_millis, 4000);
    assert_eq!(config.node.reserve.memory_bytes, 8 << 30);
    let [pool] = config.pools.as_slice() else { panic!("one pool is on this node: {:?}", config.pools) };
    assert_eq!(pool.path, Path::new("/var/mnt/ghost-data"));
    assert!(pool.mount_required);
    assert_eq!(pool.uuid.unwrap()[..4], [0x0f, 0x8f, 0xad, 0x5b]);
    assert_eq!(pool.floor, Floor { bytes: Share::Basis(1000), inodes: Share::Basis(500) });
    let [cache, shared, out] = pool.directories.as_slice() else { panic!("{:?}", pool.directories) };
    assert_eq!((cache.mode, cache.retention, cache.limit), (0o755, Retention::Cache, Some(400 << 30)));
    assert_eq!((shared.mode, shared.owner, shared.group), (0o2775, Some(1000), Some(1000)));
    assert_eq!((out.path.as_path(), out.retention), (Path::new("shared/out"), Retention::Output));
    assert_eq!(config.repositories.allow, ["github.com", "*.example.org", "[::1]", "127.0.0.1"]);
    assert_eq!(config.repositories.protocols, ["https", "ssh"]);
    assert_eq!(config.repositories.add, Add::OnDemand);
    let git = &config.repositories.git;
    assert_eq!((git.user, git.memory_bytes, git.processes), ("1234:5678".parse().ok(), 4 << 30, 100));
    assert_eq!(git.helper.as_deref(), Some(Path::new("/run/git/git.sock")));
    let [token, basic, ssh] = config.repositories.credentials.as_slice() else { panic!() };
    let files = |username: &str, file: &str, field| git::SecretFiles::Basic {
        username: username.to_owned(),
        file: file.into(),
        field,
    };
    assert_eq!(token.secret, files("x-access-token", "/etc/stoker/github/token", "token.file"));
    assert_eq!(basic.secret, files("ci", "/etc/stoker/team/password", "basic.passwordFile"));
    assert_eq!(
        (basic.matches.key.as_str(), basic.field.as_str()),
        ("git.example.org/team", "repositories.credentials[1]")
    );
    assert_eq!((token.trust.concat(), ssh.trust.join(" ")), ("default".to_owned(), "public team".to_owned()));
    assert!(matches!(&ssh.secret, git::SecretFiles::Ssh { user, .. } if user == "git"));
    let [github, forgejo] = config.repositories.forges.as_slice() else { panic!() };
    assert_eq!((github.host.as_str(), github.api.as_str()), ("github.com", "https://api.github.com"));
    assert_eq!(
        (forgejo.host.as_str(), forgejo.api.as_str()),
        ("git.example.org:8443", "https://git.example.org:8443/forge/api/v1")
    );
    let [mirror] = config.repositories.mirrors.as_slice() else { panic!("{:?}", config.repositories.mirrors) };
    assert_eq!(
        (mirror.url.key(), mirror.pin, mirror.trust.as_str()),
        ("github.com/projectbluefin/dakota", true, "public")
    );
    let serve = Serve {
        trust: vec!["default".to_owned(), "public".to_owned()],
        loopback_only: false,
        clients: 9,
        patience: Duration::from_secs(2),
        spool: 0,
        url: Some("http://stoker:9418/git/".to_owned()),
    };
    assert_eq!(config.repositories.serve, serve);
    let keeping = &config.keeping;
    assert_eq!((keeping.caches_limit, keeping.tenant_limit), (Some(200 << 30), Some(50 << 30)));
    assert_eq!((keeping.outputs.keep, keeping.orphan_grace), (Span::hours(7 * 24), Span::hours(48)));
    let [release, stx] = keeping.outputs.rules.as_slice() else { panic!() };
    assert_eq!((release.keep, stx.keep), (Span::hours(90 * 24), Span::hours(36)));
    assert!(release.matches(&Scope { tenant: "red".into(), project: "x".into(), branch: "release/1".into() }));
    assert!(!stx.matches(&Scope { project: "stx-10".into(), ..Scope::default() }));
    assert_eq!(config.pressure.memory_narrow, Share::Basis(1250));
    assert_eq!(config.pressure.hold, Duration::from_secs(90));
    assert_eq!(config.listen.grpc.unwrap().to_string(), "127.0.0.1:9417");
}

#[test]
fn pools_of_other_nodes_drop_out() {
    let elsewhere = config(EXAMPLE, &node("exo-0", &[]));
    assert!(elsewhere.pools.is_empty(), "the label is missing");
    assert_eq!(elsewhere.repositories.pool, "data", "a node without the pool is no error: it keeps no repositories");
    let exo = config(EXAMPLE, &node("exo-0", &[("stoker.build/disk", "nvme")]));
    assert_eq!(exo.pools[0].path, Path::new("/var/mnt/exo0-data"));
    assert_eq!(exo.pools[0].floor.bytes, Share::Absolute(10_250_000_000));
    assert!(exo.pools[0].seal);
}

#[test]
fn a_name_in_the_file_comes_before_the_hosts() {
    let text = format!("{EXAMPLE}\n").replace("  hostRoot: /\n", "  name: ghost\n");
    let config = config(&text, &node("localhost", &[]));
    assert_eq!((config.node.name.as_str(), config.pools.len()), ("ghost", 1));
}

#[test]
fn the_defaults_are_these() {
    let (file, _) = read(MINIMAL, "agent.yaml", &NodeIdentity::default()).unwrap();
    insta::assert_snapshot!(file::to_yaml(&file).unwrap(), @r#"
    apiVersion: stoker.build/v1
    kind: AgentConfig
    state: /var/lib/stoker
    node:
      reserve:
        cpu: 500m
        memory: 1GiB
      hostRoot: /
      rootFloor:
        bytes: 10%
        inodes: 5%
    pools:
    - name: data
      path: /var/mnt/data
      mount: required
      seal: false
      floor:
        bytes: 10%
        inodes: 5%
      directories: []
    repositories:
      pool: data
      refresh: 5m
      parallel: 8
      parallelPerHost: 4
      fetchWithin: 1h
      check: 24h
      add: declared
      allow: []
      protocols:
      - https
      - ssh
      git:
        memory: 2GiB
        processes: 4096
      upkeep:
        every: 10m
        fullEvery: 168h
        grace: 336h
        memory: 512MiB
        threads: 1
      minAge: 1h
      mirrors: []
      submodules:
        depth: 5
        repositories: 200
      lfs:
        objectLimit: 10GiB
      serve:
        trust:
        - default
        anonymous: loopback
        clients: 128
        patience: 15s
        spool: 8GiB
    workspaces:
      pool: data
      method: auto
      diskLimit: auto
      checkouts: {}
    outputs:
      retention: 14d
    caches: {}
    orphans:
      grace: 24h
    pressure:
      memoryFloor: 5%
      memoryNarrow: 10%
      diskForecast: 1m
      hold: 30s
    admission:
      leasesMax: 256
      ticketsMax: 1024
      timeBudget: end
      passFor: 10m
      ageAfter: 1h
    sizing:
      languages:
        rust:
          cpu: "4"
          memory: 8GiB
          time: 60m
        go:
          cpu: "2"
          memory: 4GiB
          time: 30m
        java:
          cpu: "4"
          memory: 8GiB
          time: 45m
        kotlin:
          cpu: "4"
          memory: 8GiB
          time: 45m
        scala:
          cpu: "4"
          memory: 8GiB
          time: 45m
        node:
          cpu: "2"
          memory: 4GiB
          time: 30m
        other:
          cpu: "2"
          memory: 4GiB
          time: 30m
      disk:
        bytes: 20GiB
        inodes: 1000000
      ladder:
      - cpu: "2"
        memory: 4GiB
      - cpu: "4"
        memory: 8GiB
      - cpu: "8"
        memory: 16GiB
      - cpu: "16"
        memory: 32GiB
      cap: {}
      overDeclared:
        times: 2
        runs: 5
      nickel:
        memory: 512MiB
        cpuTime: 5s
    kubernetes:
      watch: auto
      awayAfter: 60s
      heartbeat: 20s
      tolerates: []
      labels: 32
      unlimited: node
      rebindWithin: 60s
    listen:
      socket: /run/stoker/stoker.sock
    volume:
      kubelet: /var/lib/kubelet
    access:
      tokens:
        audience: stoker.build
        cache: 1m
      rate:
        perSecond: 100
        burst: 500
    "#);
}

#[test]
fn what_is_printed_reads_back_to_the_same() {
    for (text, node) in [(EXAMPLE, node("ghost", &[])), (MINIMAL, node("any", &[]))] {
        let (file, config) = read(text, "agent.yaml", &node).unwrap();
        let printed = file::to_yaml(&file).unwrap();
        let (again, same) = read(&printed, "printed", &node).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
        assert_eq!((again, same), (file, config), "{printed}");
    }
}

#[test]
fn nothing_written_is_nothing_said() {
    let text = format!("{MINIMAL}repositories:\n  mirrors:\nnode: ~\nlisten: {{grpc: null}}\n");
    assert_eq!(config(&text, &node("a", &[])), config(MINIMAL, &node("a", &[])));
}

#[test]
fn aliases_and_merges_are_plain_yaml() {
    let text = "
apiVersion: stoker.build/v1
kind: AgentConfig
pools:
  - &one {name: one, path: /var/mnt/one, floor: &floor {bytes: 1GiB}}
  - {<<: *one, name: two, path: /var/mnt/two, floor: *floor}
repositories: {pool: one}
";
    let pools = config(text, &node("a", &[])).pools;
    assert_eq!((pools[1].name.as_str(), pools[1].floor), ("two", pools[0].floor));
}

#[test]
fn amounts_are_read_to_the_unit() {
    let cores = |text: &str| units::Cores::from(text).millis().map_err(|fault| fault.message);
    assert_eq!(cores("2.5"), Ok(2500));
    assert_eq!(cores("0.005"), Ok(5));
    assert_eq!(cores("500m"), Ok(500));
    let bytes = |text: &str| units::Bytes::from(text).bytes().map_err(|fault| fault.message);
    assert_eq!(bytes("400 GB"), Ok(400_000_000_000));
    assert_eq!(bytes("9007199254740993"), Ok((1 << 53) + 1));
    assert_eq!(bytes("9223372036854775807"), Ok((1 << 63) - 1));
    let share = |text: &str| units::CountOrPercent::from(text).share().map_err(|fault| fault.message);
    assert_eq!(share("99.99%"), Ok(Share::Basis(9999)));
    assert_eq!(share("0.5%"), Ok(Share::Basis(50)));
    let time = |text: &str| units::Time::from(text).duration().map_err(|fault| fault.message);
    assert_eq!(time("1h30m"), Ok(Duration::from_secs(5400)));
    assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
}

#[test]
fn a_share_of_everything_does_not_overflow() {
    assert_eq!(Share::Basis(9999).of(u64::MAX), 18_444_899_399_302_180_659);
    assert_eq!(Share::Absolute(7).of(1), 7);
}

#[test]
fn the_schema_tells_defaults_and_units() {
    let schema = file::schema();
    let refresh = &schema["properties"]["repositories"]["properties"]["refresh"];
    assert_eq!(refresh["default"], "5m");
    assert!(refresh["description"].as_str().unwrap().contains("1s to 168h"), "{refresh}");
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["required"], serde_json::json!(["apiVersion", "kind", "pools"]));
    every_field_is_described(&schema, "");
}

fn every_field_is_described(schema: &serde_json::Value, path: &str) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let inner = field["anyOf"].as_array().and_then(|any| any.first()).unwrap_or(field);
        assert!(field["description"].is_string() || inner["description"].is_string(), "{path}.{name}: {field}");
        every_field_is_described(inner, &format!("{path}.{name}"));
        every_field_is_described(&inner["items"], &format!("{path}.{name}[]"));
    }
}

#[test]
fn a_file_is_read_and_nothing_else_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.yaml");
    let state = dir.path().join("state");
    let pool = dir.path().join("pool");
    let text = format!(
        "apiVersion: stoker.build/v1\nkind: AgentConfig\nstate: {}\npools: [{{name: data, path: {}}}]\n",
        state.display(),
        pool.display()
    );
    std::fs::write(&path, text).unwrap();
    let (_, config) = load(&path, &NodeIdentity::default()).unwrap();
    assert_eq!(config.state, state);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn files_that_cannot_be_read_are_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        load(&path, &NodeIdentity::default()).unwrap_err().problems.remove(0)
    };
    assert_eq!(refused("latin1", b"state: \xe9").message, "the file is not UTF-8");
    let large = refused("large", " ".repeat(FILE_BYTES_MAX + 1).as_bytes());
    assert_eq!(large.message, "the file has 1048577 bytes, at most 1048576 are read");
    assert_eq!(refused("binary", &vec![0xff; FILE_BYTES_MAX + 1]).message, "the file has more than 1048576 bytes");
    let absent = load(&dir.path().join("absent"), &NodeIdentity::default()).unwrap_err();
    assert!(absent.problems[0].message.starts_with("the file cannot be read"), "{absent}");
    assert_eq!(absent.problems[0].remedy, "name a file that the agent may read");
}

#[test]
fn run_has_one_pool_below_its_state() {
    let run = Config::for_run(Path::new("/home/me/.local/state/stoker"), "laptop");
    let defaults = config(MINIMAL, &node("laptop", &[]));
    assert_eq!(run.pressure, defaults.pressure);
    assert_eq!(run.admission, defaults.admission);
    assert_eq!(run.sizing, defaults.sizing);
    let same = |config: &Config| {
        let Repositories { refresh, parallel, fetch_within, serve, upkeep, min_age, .. } = config.repositories.clone();
        (refresh, parallel, fetch_within, serve, upkeep, min_age)
    };
    assert_eq!(same(&run), same(&defaults));
    assert_eq!(run.pools[0].path, PathBuf::from("/home/me/.local/state/stoker/pool"));
    assert!(!run.pools[0].mount_required);
    assert_eq!(run.pools[0].floor.bytes.of(0), 1 << 30);
    let socket = Some(run.state.join("run/agent.sock"));
    assert_eq!(
        run.listen,
        Listen { socket, grpc: None, grpc_tls: None, http: None, http_tls: None, private_git: true }
    );
    assert_eq!(run.repositories.pool, run.pools[0].name);
    assert_eq!(run.workspaces.pool, run.pools[0].name);
    for protocol in &run.repositories.protocols {
        assert!(["https", "http", "ssh", "git", "file"].contains(&protocol.as_str()));
    }
}

#[test]
fn labels_are_free_but_not_the_rest() {
    let labels: BTreeMap<_, _> = [("a.b/c".to_owned(), "d".to_owned())].into();
    let text = MINIMAL.replace("name: data", "name: data, nodes: {labels: {a.b/c: d}}");
    let here = NodeIdentity { name: "n".to_owned(), labels };
    assert_eq!(config(&text, &here).pools.len(), 1);
    assert_eq!(config(&text, &node("n", &[])).pools.len(), 0);
}
