//! What changes between two configurations, and what of that a running agent can take over. Pure: whoever reloads keeps
//! the old configuration where the new file is refused, applies what [`take_over`] gives, and reports [`Changes`].

use std::collections::BTreeMap;

use stoker_core::sizing::{Defaults, Policy};

use super::access::{Access, TokenRules};
use super::{Admission, Config, Keeping, Kubernetes, Listen, Mirror, Node, Pool, Pressure, Sizing, Workspaces};

/// The fields that differ, as they are written in the file; pools and mirrors by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Take effect at once.
    pub applied: Vec<String>,
    /// Wait for the next start.
    pub needs_restart: Vec<String>,
}

impl Changes {
    /// Do both say the same?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.needs_restart.is_empty()
    }

    fn live(&mut self, differs: bool, field: &str) {
        if differs {
            self.applied.push(field.to_owned());
        }
    }

    fn restart(&mut self, differs: bool, field: &str) {
        if differs {
            self.needs_restart.push(field.to_owned());
        }
    }
}

/// What of a new configuration a running agent takes over, and what differs from the one that runs.
#[must_use]
pub fn take_over(old: &Config, new: &Config) -> (Config, Changes) {
    let merged = merged(old, new);
    let Changes { applied, .. } = diff(old, &merged);
    let waits = diff(&merged, new);
    // Also what would take effect at once elsewhere: a pool that is in use keeps its path.
    (merged, Changes { applied, needs_restart: [waits.needs_restart, waits.applied].concat() })
}

/// What differs between the configuration that runs and a new one.
fn diff(old: &Config, new: &Config) -> Changes {
    // Named in full, so that a new field cannot be forgotten here.
    let Config {
        state,
        node,
        pools,
        repositories,
        workspaces,
        keeping,
        pressure,
        admission,
        sizing,
        kubernetes,
        listen,
        volume,
        access,
    } = old;
    let Node { name, reserve, others_cpu_counts, host_root, root_floor, filesystems } = node;
    let Workspaces { pool: of_workspaces, method, quotas, checkouts_limit, ahead } = workspaces;
    let Keeping { outputs, caches_limit, tenant_limit, orphan_grace } = keeping;
    let Pressure { memory_floor, memory_narrow, disk_forecast, control_plane, hold } = pressure;
    let Admission { leases_max, tickets_max, time_budget, pass_for, age_after, tenants } = admission;
    let Listen { socket, grpc, grpc_tls, http, http_tls, private_git } = listen;
    let Access { rules, tokens: TokenRules { audience, issuer, cache }, rate } = access;
    let Sizing { policy, nickel } = sizing;
    let Policy { defaults, ladder, cap, over_declared } = policy.as_ref();
    let mut changes = Changes::default();
    changes.restart(*state != new.state, "state");
    changes.restart(*name != new.node.name, "node.name");
    changes.live(*reserve != new.node.reserve, "node.reserve");
    changes.live(*others_cpu_counts != new.node.others_cpu_counts, "node.othersCpuCounts");
    changes.restart(*host_root != new.node.host_root, "node.hostRoot");
    changes.live(*root_floor != new.node.root_floor, "node.rootFloor");
    changes.live(*filesystems != new.node.filesystems, "node.filesystems");
    diff_pools(pools, &new.pools, &mut changes);
    diff_repositories(repositories, &new.repositories, &mut changes);
    // Live workspaces lie on the pool, and the ledger counts disk there.
    changes.restart(*of_workspaces != new.workspaces.pool, "workspaces.pool");
    changes.restart(*method != new.workspaces.method, "workspaces.method");
    changes.restart(*quotas != new.workspaces.quotas, "workspaces.diskLimit");
    changes.live(*checkouts_limit != new.workspaces.checkouts_limit, "workspaces.checkouts.limit");
    changes.live(*ahead != new.workspaces.ahead, "workspaces.checkouts.ahead");
    changes.live(outputs.keep != new.keeping.outputs.keep, "outputs.retention");
    changes.live(outputs.rules != new.keeping.outputs.rules, "outputs.rules");
    changes.live(*caches_limit != new.keeping.caches_limit, "caches.limit");
    changes.live(*tenant_limit != new.keeping.tenant_limit, "caches.tenantLimit");
    changes.live(*orphan_grace != new.keeping.orphan_grace, "orphans.grace");
    changes.live(*memory_floor != new.pressure.memory_floor, "pressure.memoryFloor");
    changes.live(*memory_narrow != new.pressure.memory_narrow, "pressure.memoryNarrow");
    changes.live(*disk_forecast != new.pressure.disk_forecast, "pressure.diskForecast");
    changes.live(*control_plane != new.pressure.control_plane, "pressure.controlPlane");
    changes.live(*hold != new.pressure.hold, "pressure.hold");
    changes.live(*leases_max != new.admission.leases_max, "admission.leasesMax");
    changes.live(*tickets_max != new.admission.tickets_max, "admission.ticketsMax");
    changes.live(*time_budget != new.admission.time_budget, "admission.timeBudget");
    changes.live(*pass_for != new.admission.pass_for, "admission.passFor");
    changes.live(*age_after != new.admission.age_after, "admission.ageAfter");
    changes.live(tenants.named != new.admission.tenants.named, "admission.tenants");
    changes.live(tenants.other != new.admission.tenants.other, "admission.otherTenants");
    let sizes = &new.sizing.policy;
    let disk = |of: &Defaults| (of.disk_bytes, of.disk_inodes);
    let languages = |of: &Defaults| Defaults { disk_bytes: 0, disk_inodes: 0, ..of.clone() };
    changes.live(languages(defaults) != languages(&sizes.defaults), "sizing.languages");
    changes.live(disk(defaults) != disk(&sizes.defaults), "sizing.disk");
    changes.live(*ladder != sizes.ladder, "sizing.ladder");
    changes.live(*cap != sizes.cap, "sizing.cap");
    changes.live(*over_declared != sizes.over_declared, "sizing.overDeclared");
    changes.live(*nickel != new.sizing.nickel, "sizing.nickel");
    diff_kubernetes(kubernetes, &new.kubernetes, &mut changes);
    changes.restart(*socket != new.listen.socket, "listen.socket");
    changes.restart(*grpc != new.listen.grpc, "listen.grpc");
    changes.restart(*private_git != new.listen.private_git, "listen.privateGit");
    changes.restart(*http != new.listen.http, "listen.http");
    // What is in the files is read again by itself; which files they are is not.
    changes.restart(*grpc_tls != new.listen.grpc_tls, "listen.grpc.tls");
    changes.restart(*http_tls != new.listen.http_tls, "listen.http.tls");
    changes.restart(*volume != new.volume, "volume");
    changes.live(*rules != new.access.rules, "access.rules");
    changes.live(*audience != new.access.tokens.audience, "access.tokens.audience");
    changes.live(*issuer != new.access.tokens.issuer, "access.tokens.issuer");
    changes.live(*cache != new.access.tokens.cache, "access.tokens.cache");
    changes.live(*rate != new.access.rate, "access.rate");
    changes
}

fn diff_kubernetes(old: &Kubernetes, new: &Kubernetes, changes: &mut Changes) {
    let Kubernetes { watch, away_after, heartbeat, namespace, tolerates, labels, taint, unlimited, rebind_within } =
        old;
    changes.restart(*watch != new.watch, "kubernetes.watch");
    changes.live(*away_after != new.away_after, "kubernetes.awayAfter");
    changes.live(*heartbeat != new.heartbeat, "kubernetes.heartbeat");
    changes.restart(*namespace != new.namespace, "kubernetes.namespace");
    changes.live(*tolerates != new.tolerates, "kubernetes.tolerates");
    changes.live(*labels != new.labels, "kubernetes.labels");
    changes.live(*taint != new.taint, "kubernetes.taint");
    changes.live(*unlimited != new.unlimited, "kubernetes.unlimited");
    changes.live(*rebind_within != new.rebind_within, "kubernetes.rebindWithin");
}

/// The new configuration as far as a running agent can take it over: what needs a restart stays as it was.
///
/// A pool that holds the repositories or the workspaces of the running agent stays too, with its path, though the new
/// one may lack it.
fn merged(old: &Config, new: &Config) -> Config {
    let mut merged = new.clone();
    merged.state.clone_from(&old.state);
    merged.node.name.clone_from(&old.node.name);
    merged.node.host_root.clone_from(&old.node.host_root);
    merged.kubernetes.watch = old.kubernetes.watch;
    merged.kubernetes.namespace.clone_from(&old.kubernetes.namespace);
    merged.repositories.pool.clone_from(&old.repositories.pool);
    merged.repositories.git.clone_from(&old.repositories.git);
    merged.workspaces.pool.clone_from(&old.workspaces.pool);
    merged.workspaces.method = old.workspaces.method;
    merged.workspaces.quotas = old.workspaces.quotas;
    merged.listen.clone_from(&old.listen);
    merged.volume.clone_from(&old.volume);
    for kept in old.pools.iter().filter(|pool| is_used(old, pool)) {
        match merged.pools.iter_mut().find(|pool| pool.name == kept.name) {
            Some(pool) => pool.path.clone_from(&kept.path),
            None => merged.pools.push(kept.clone()),
        }
    }
    merged
}

fn is_used(config: &Config, pool: &Pool) -> bool {
    pool.name == config.repositories.pool || pool.name == config.workspaces.pool
}

fn diff_pools(old: &[Pool], new: &[Pool], changes: &mut Changes) {
    for pool in old {
        let field = |name: &str| format!("pools[{}]{name}", pool.name);
        let Some(now) = new.iter().find(|other| other.name == pool.name) else {
            changes.live(true, &field(""));
            continue;
        };
        changes.live(pool.path != now.path, &field(".path"));
        changes.live(pool.mount_required != now.mount_required, &field(".mount"));
        changes.live(pool.uuid != now.uuid, &field(".uuid"));
        changes.live(pool.seal != now.seal, &field(".seal"));
        changes.live(pool.floor != now.floor, &field(".floor"));
        changes.live(pool.directories != now.directories, &field(".directories"));
    }
    for pool in new.iter().filter(|pool| !old.iter().any(|other| other.name == pool.name)) {
        changes.live(true, &format!("pools[{}]", pool.name));
    }
}

fn diff_repositories(old: &super::Repositories, new: &super::Repositories, changes: &mut Changes) {
    let super::Repositories {
        pool,
        limit,
        refresh,
        parallel,
        parallel_per_host,
        fetch_within,
        check,
        seeds,
        add,
        allow,
        protocols,
        git,
        credentials,
        forges,
        upkeep,
        min_age,
        paths,
        mirrors,
        manifests,
        submodules,
        lfs,
        serve,
    } = old;
    // Stores, snapshots and what leases pin lie there.
    changes.restart(*pool != new.pool, "repositories.pool");
    changes.live(*limit != new.limit, "repositories.limit");
    changes.live(*refresh != new.refresh, "repositories.refresh");
    changes.live(*parallel != new.parallel, "repositories.parallel");
    changes.live(*parallel_per_host != new.parallel_per_host, "repositories.parallelPerHost");
    changes.live(*fetch_within != new.fetch_within, "repositories.fetchWithin");
    changes.live(*check != new.check, "repositories.check");
    changes.live(*seeds != new.seeds, "repositories.seeds");
    changes.live(*add != new.add, "repositories.add");
    changes.live(*allow != new.allow, "repositories.allow");
    changes.live(*protocols != new.protocols, "repositories.protocols");
    // The wrapper's arguments and the stores' owner follow from it.
    changes.restart(*git != new.git, "repositories.git");
    changes.live(*credentials != new.credentials, "repositories.credentials");
    changes.live(*forges != new.forges, "repositories.forges");
    changes.live(*manifests != new.manifests, "repositories.manifests");
    changes.live(*submodules != new.submodules, "repositories.submodules");
    changes.live(*lfs != new.lfs, "repositories.lfs");
    changes.live(*serve != new.serve, "repositories.serve");
    changes.live(*upkeep != new.upkeep, "repositories.upkeep");
    changes.live(*min_age != new.min_age, "repositories.minAge");
    changes.live(*paths != new.paths, "repositories.paths");
    let by_key = |mirrors: &[Mirror]| -> BTreeMap<String, Mirror> {
        mirrors.iter().map(|mirror| (mirror.url.key().to_owned(), mirror.clone())).collect()
    };
    let (was, is) = (by_key(mirrors), by_key(&new.mirrors));
    let gone = was.keys().filter(|key| !is.contains_key(*key));
    let other = is.iter().filter(|(key, mirror)| was.get(*key) != Some(mirror)).map(|(key, _)| key);
    for key in gone.chain(other) {
        changes.live(true, &format!("repositories.mirrors[{key}]"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::{NodeIdentity, read};
    use super::*;

    const BASE: &str = "
apiVersion: stoker.build/v1
kind: AgentConfig
node: {name: ghost}
pools:
  - {name: data, path: /var/mnt/data}
  - {name: more, path: /var/mnt/more}
repositories:
  pool: data
  mirrors: [{url: https://example.org/a}, {url: https://example.org/b}]
";

    fn config(text: &str) -> Config {
        read(text, "test", &NodeIdentity::default()).unwrap().1
    }

    #[test]
    fn the_same_configuration_changes_nothing() {
        let config = config(BASE);
        assert!(diff(&config, &config).is_empty());
        assert_eq!(merged(&config, &config), config);
    }

    #[test]
    fn each_field_is_either_applied_or_waits() {
        let old = config(BASE);
        let live = "
state: /srv/stoker
node: {name: exo, reserve: {cpu: 2}, hostRoot: /host, rootFloor: {bytes: 0}, filesystems: []}
pools:
  - {name: data, path: /var/mnt/other, mount: optional, seal: true, floor: {bytes: 1GiB}, directories: [{path: x}],
     uuid: 01234567-89ab-cdef-0123-456789abcdef}
  - {name: third, path: /var/mnt/third}
repositories:
  pool: third
  limit: 1GiB
  refresh: 1m
  parallel: 1
  fetchWithin: 1m
  check: 1m
  seeds: [/seeds]
  add: on-demand
  allow: [example.org]
  protocols: [https]
  git: {memory: 1GiB}
  credentials: [{match: example.org, token: {file: /t}}]
  forges: [{host: example.org, kind: gitlab}]
  upkeep: {every: 1m}
  minAge: 2h
  paths: {directory: mirrors}
  mirrors: [{url: https://example.org/b, pin: true}, {url: https://example.org/c}]
  manifests: [{url: https://example.org/m}]
  submodules: {depth: 1}
  lfs: {objectLimit: 1GiB}
workspaces: {pool: data}
outputs: {retention: 3d, rules: [{branch: main, keep: 30d}]}
caches: {limit: 2GiB, tenantLimit: 1GiB}
orphans: {grace: 1h}
pressure: {memoryFloor: 1%, memoryNarrow: 2%, hold: 1s, diskForecast: 5s, controlPlane: {cgroups: [/etcd]}}
admission:
  {leasesMax: 1, ticketsMax: 1, timeBudget: report, passFor: 0s, ageAfter: 1m, tenants: [{name: red}], otherTenants: {weight: 2}}
sizing:
  languages: {go: {cpu: 3, memory: 5GiB, time: 20m}}
  disk: {bytes: 1GiB}
  ladder: [{cpu: 1, memory: 1GiB}]
  cap: {cpu: 8}
  overDeclared: {times: 3}
  nickel: {memory: 1GiB}
listen: {socket: /run/x.sock, grpc: {address: '127.0.0.1:1', insecure: loopback}, http: {address: '127.0.0.1:2'}}
";
        let new = config(&format!("apiVersion: stoker.build/v1\nkind: AgentConfig{live}"));
        let mut changes = diff(&old, &new);
        // The pool of the workspaces was that of the repositories, so it stays `data`.
        assert_eq!(
            changes.needs_restart,
            [
                "state",
                "node.name",
                "node.hostRoot",
                "repositories.pool",
                "repositories.git",
                "listen.socket",
                "listen.grpc",
                "listen.http"
            ]
        );
        changes.applied.sort();
        insta::assert_snapshot!(changes.applied.join("\n"), @r"
    admission.ageAfter
    admission.leasesMax
    admission.otherTenants
    admission.passFor
    admission.tenants
    admission.ticketsMax
    admission.timeBudget
    caches.limit
    caches.tenantLimit
    node.filesystems
    node.reserve
    node.rootFloor
    orphans.grace
    outputs.retention
    outputs.rules
    pools[data].directories
    pools[data].floor
    pools[data].mount
    pools[data].path
    pools[data].seal
    pools[data].uuid
    pools[more]
    pools[third]
    pressure.controlPlane
    pressure.diskForecast
    pressure.hold
    pressure.memoryFloor
    pressure.memoryNarrow
    repositories.add
    repositories.allow
    repositories.check
    repositories.credentials
    repositories.fetchWithin
    repositories.forges
    repositories.lfs
    repositories.limit
    repositories.manifests
    repositories.minAge
    repositories.mirrors[example.org/a]
    repositories.mirrors[example.org/b]
    repositories.mirrors[example.org/c]
    repositories.parallel
    repositories.paths
    repositories.protocols
    repositories.refresh
    repositories.seeds
    repositories.submodules
    repositories.upkeep
    sizing.cap
    sizing.disk
    sizing.ladder
    sizing.languages
    sizing.nickel
    sizing.overDeclared
    ");

        let (merged, told) = take_over(&old, &new);
        assert!(told.needs_restart.contains(&"pools[data].path".to_owned()), "{told:?}");
        assert!(!told.applied.contains(&"pools[data].path".to_owned()), "{told:?}");
        assert_eq!(diff(&old, &merged).needs_restart, Vec::<String>::new());
        let data = merged.pools.iter().find(|pool| pool.name == "data").unwrap();
        assert_eq!(data.path, std::path::Path::new("/var/mnt/data"), "stores do not move under a running agent");
        assert!(data.seal);
        assert_eq!(merged.repositories.mirrors, new.repositories.mirrors);
    }

    #[test]
    fn a_pool_in_use_does_not_go_under_a_running_agent() {
        let old = config(BASE);
        let new = config(
            "apiVersion: stoker.build/v1\nkind: AgentConfig\npools: [{name: more, path: /var/mnt/more}]\nnode: {name: ghost}",
        );
        assert_eq!(diff(&old, &new).needs_restart, ["repositories.pool", "workspaces.pool"]);
        let (merged, told) = take_over(&old, &new);
        assert_eq!(told.needs_restart, ["repositories.pool", "workspaces.pool", "pools[data]"]);
        assert!(merged.pools.iter().any(|pool| pool.name == "data"));
        assert_eq!(merged.repositories.pool, "data");
    }
}
