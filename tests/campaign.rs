//! The campaign: everything that goes wrong on a node, at once and without end, while builds clone, fetch and check out.
//! No build ever sees a missing object, and whatever a build was given passes `git fsck`.
//!
//! Four parties, each on threads of its own, and one seed for all that is left to chance:
//!
//! - [`sites`]: upstreams, of which one forks another, and the writer who pushes, force-pushes, deletes and re-creates;
//! - [`builds`]: clones of every kind, fetches of commits, workspaces, refreshes, each looked through;
//! - [`fate`]: SIGKILL of the agent, SIGKILL of its git children while they repack or work, power cuts;
//! - the agent: upkeep and refreshes as often as the configuration allows, and less room than the mirrors need.
//!
//! [`ledger`] has what happened. The campaign goes on until each kind of event was seen often enough, so it cannot pass by
//! doing nothing, and for `STOKER_CAMPAIGN_MINUTES` at least; `STOKER_CAMPAIGN_SEED` gives the same dice again.

mod builds;
mod fate;
mod ledger;
mod sites;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::chance::{self, Chance, from_environment};
use crate::support::disk::{leftovers, names};
use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::repository::git_out;
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wait;

use ledger::{Ledger, Trouble};
use sites::Site;

/// How many builds run at once.
const BUILDERS: u64 = 4;
/// By when everything must have happened, beyond the time that was asked for.
const LIMIT: Duration = Duration::from_secs(420);
/// How often the ledger is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What all parties share.
struct Campaign {
    sites: Vec<Site>,
    ledger: Ledger,
    trouble: Trouble,
    over: AtomicBool,
    /// Builds that got what they asked for.
    done: AtomicU64,
    /// The agent's folder.
    root: PathBuf,
    port: u16,
}

impl Campaign {
    fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Where the agent serves a site.
    fn served(&self, site: &Site) -> String {
        format!("http://127.0.0.1:{}/git/{}", self.port, site.url.strip_prefix("http://").unwrap())
    }

    fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }
}

/// Ends the campaign for all where one party panics.
struct OverWhenPanicking<'a>(&'a Campaign);

impl Drop for OverWhenPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.over.store(true, Ordering::SeqCst);
        }
    }
}

/// As aggressive as it can be: everything is due all the time, and the mirrors do not all fit. Workspaces are checkouts,
/// which read the snapshots themselves and outlast the power; overlays go with it (`workspaces::kill` has those).
fn configuration(sites: &[Site]) -> String {
    let (project, fork) = (&sites[0].url, &sites[1].url);
    format!(
        "node: {{rootFloor: {{bytes: 0, inodes: 0}}}}\n\
         pools: [{{name: data, path: $ROOT/pool, mount: required, floor: {{bytes: 1MiB, inodes: 10}}}}]\n\
         repositories:\n  add: on-demand\n  allow: [127.0.0.1]\n  protocols: [http]\n  refresh: 1s\n\
         \x20 limit: {limit}MiB\n  minAge: 0s\n  upkeep: {{every: 1s, fullEvery: 1s, grace: 0s}}\n\
         \x20 mirrors:\n    - {{url: '{project}'}}\n    - {{url: '{fork}', forkOf: '{project}'}}\n\
         workspaces: {{method: checkout}}\n\
         listen: {{socket: $ROOT/run/stoker.sock, http: {{address: '127.0.0.1:$PORT'}}}}\n",
        limit = sites::LIMIT_MIB,
    )
}

/// Every snapshot that is there, looked through. Gives their number.
fn snapshots_are_whole(pool: &Path) -> u64 {
    let repositories = pool.join("stoker/repositories");
    let mut count = 0;
    for repository in names(&repositories) {
        let snapshots = repositories.join(repository).join("snapshots");
        for name in names(&snapshots).iter().filter(|name| !name.starts_with('.')) {
            git_out(&snapshots.join(name), &["fsck", "--connectivity-only", "--no-dangling", "--strict"]);
            count += 1;
        }
    }
    count
}

fn campaign(kind: Kind) {
    let seed = chance::seed("STOKER_CAMPAIGN_SEED");
    let minutes = from_environment("STOKER_CAMPAIGN_MINUTES", 0);
    eprintln!("{kind:?}: STOKER_CAMPAIGN_MINUTES={minutes} STOKER_CAMPAIGN_SEED={seed}");
    let chance = Chance::new(seed);
    let upstream = Upstream::start();
    let sites = sites::all(&upstream);
    let mut agent = Agent::prepare(&configuration(&sites));
    let mount = agent.root().join("pool");
    std::fs::create_dir(&mount).unwrap();
    let mut filesystem = LoopFs::unmounted(kind, 400 << 20).at(&mount);
    filesystem.mount();
    agent.launch();
    agent.wait_ready();
    let campaign = Campaign {
        sites,
        ledger: Ledger::default(),
        trouble: Trouble::default(),
        over: AtomicBool::new(false),
        done: AtomicU64::new(0),
        root: agent.root().to_owned(),
        port: agent.http_port(),
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let all = &campaign;
        scope.spawn(|| sites::write(all, chance.fork(0)));
        scope.spawn(|| fate::strike(all, &mut agent, &mut filesystem, chance.fork(1)));
        for number in 0..BUILDERS {
            let chance = chance.fork(2 + number);
            scope.spawn(move || builds::build(all, chance));
        }
        let least = Duration::from_secs(60 * minutes);
        let seen = wait::holds_within(least + LIMIT, || {
            all.over() || {
                std::thread::sleep(LOOK_EVERY);
                all.ledger.read_log(&all.root.join("agent.log"));
                begun.elapsed() >= least && all.ledger.lacking().is_empty()
            }
        });
        all.over.store(true, Ordering::SeqCst);
        assert!(seen, "not within {LIMIT:?}: {:?} in\n{}", all.ledger.lacking(), all.ledger);
    });
    let took = begun.elapsed();
    let whole = at_rest(agent, &campaign);
    eprintln!(
        "{kind:?}: {:.0} s, seed {seed}, {whole} snapshots whole at the end\n{}",
        took.as_secs_f64(),
        campaign.ledger
    );
}

/// When all is quiet: each mirror is there or comes when it is asked for, is what upstream is, and nothing is left over.
/// Gives the number of snapshots.
fn at_rest(mut agent: Agent, campaign: &Campaign) -> u64 {
    agent.wait_ready();
    let shown = agent.stoker().run(["workspace", "list", "-o", "json"]).expect_code(0).json();
    for workspace in shown["workspaces"].as_array().unwrap() {
        let deleted = agent.stoker().run(["workspace", "delete", workspace["id"].as_str().unwrap()]);
        // Its time may have ended meanwhile.
        assert!(deleted.code() == Some(0) || deleted.stderr.contains("no workspace "), "{deleted:?}");
    }
    for site in &campaign.sites {
        let mut last = Ok(());
        let sound = wait::holds_within(LIMIT, || {
            last = is_sound(&agent, campaign, site);
            last.is_ok()
        });
        assert!(sound, "{} is not ready and verified: {last:?}", site.url);
    }
    let pool = campaign.pool();
    wait::until(LIMIT, "an empty trash", || names(&pool.join("stoker/trash")).is_empty());
    assert_eq!(names(&pool.join("stoker/workspaces")), Vec::<String>::new());
    assert!(agent.terminate().success(), "{}", agent.log());
    for folder in ["repositories", "stores", "spool"] {
        assert_eq!(leftovers(&pool.join("stoker").join(folder)), Vec::<PathBuf>::new(), "left in {folder}");
    }
    let log = agent.log();
    assert!(!log.contains("panicked"), "{}", log.lines().find(|line| line.contains("panicked")).unwrap());
    snapshots_are_whole(&pool)
}

/// Whether a site is served as upstream has it, and verified clean. Not so, and why, where another one took its room
/// meanwhile.
fn is_sound(agent: &Agent, campaign: &Campaign, site: &Site) -> Result<(), String> {
    let ask = |args: &[&str]| {
        let output = agent.stoker().run(args);
        if output.code() == Some(0) { Ok(output) } else { Err(output.stderr) }
    };
    ask(&["repo", "add", &site.url])?;
    ask(&["repo", "refresh", &site.url])?;
    let listed = |url: &str| git_out(agent.root(), &["ls-remote", "--heads", "--tags", url]);
    assert_eq!(listed(&campaign.served(site)), listed(&site.url), "{}", site.url);
    let answer = ask(&["repo", "verify", "--full", &site.url, "-o", "json"])?.json();
    let found = answer["findings"].as_array().unwrap();
    assert!(found.is_empty(), "{}: {found:?}", site.url);
    match answer["repository"]["state"].as_str() {
        Some("REPOSITORY_STATE_READY") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn no_build_sees_a_missing_object_on_xfs() {
    needs_root!();
    campaign(Kind::Xfs);
}

#[test]
fn no_build_sees_a_missing_object_on_ext4() {
    needs_root!();
    campaign(Kind::Ext4);
}
