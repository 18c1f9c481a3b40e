//! SIGKILL while workspaces are made, handed over and removed: afterwards everything that is there is whole and known.
//!
//! `STOKER_KILL_ROUNDS` kills on each kind of disk, at moments that `STOKER_KILL_SEED` decides.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::support::chance::{self, Chance, from_environment};
use crate::support::disk::mounts_below;
use crate::support::wait;

/// A repository whose commits are near one another, so that most checkouts are layers, and what a clone of each has.
struct Line {
    _upstream: Upstream,
    _repo: TestRepo,
    url: String,
    clones: BTreeMap<String, BTreeMap<PathBuf, String>>,
}

impl Line {
    fn new() -> Self {
        let (wild, mut commits) = wild();
        let generated = TestRepo::generated(700, 2_000_000, 6);
        // One repository: what is under way for one commit meets what is there for another.
        git_out(&wild.path(), &["fetch", "--quiet", generated.path().to_str().unwrap(), "main:generated"]);
        commits.extend((0..6).map(|back| wild.commit(&format!("generated~{back}"))));
        let upstream = Upstream::start();
        let url = upstream.host("team/line.git", &wild);
        let place = crate::support::place("clones-");
        let plain = place.path().join("plain");
        git_out(
            place.path(),
            &["clone", "--quiet", "--no-checkout", wild.path().to_str().unwrap(), plain.to_str().unwrap()],
        );
        let checked_out = |commit: &String| {
            // All of it anew: git does not write a file again for other attributes alone.
            git_out(&plain, &["read-tree", "--empty"]);
            git_out(&plain, &["clean", "--quiet", "-ffdx"]);
            git_out(&plain, &["checkout", "--quiet", "--force", "--detach", commit]);
            (commit.clone(), files(&plain))
        };
        let clones = commits.iter().map(checked_out).collect();
        Self { _upstream: upstream, _repo: wild, url, clones }
    }

    fn pick(&self, chance: &mut Chance) -> String {
        let all: Vec<&String> = self.clones.keys().collect();
        (*chance.pick(&all)).clone()
    }
}

/// What a kill left behind, so that the rounds show what they interrupted.
fn interrupted(pool: &Path, seen: &mut BTreeMap<&'static str, u64>) {
    let own = pool.join("stoker");
    let folders = |part: &str| -> BTreeSet<String> {
        names(&own.join(part)).into_iter().filter(|name| !name.contains(".json")).collect()
    };
    let without_record = |part: &str, beside: &str| {
        folders(part).into_iter().filter(|name| !own.join(beside).join(format!("{name}.json")).exists()).count()
    };
    let mounted = mounts_below(&own);
    let unknown = mounted.iter().filter(|point| {
        let home = point.parent().unwrap();
        !home.with_extension("json").exists()
    });
    let mapping = mounted.iter().filter(|point| point.starts_with(own.join("overlays"))).count();
    for (what, count) in [
        ("checkouts", without_record("checkouts", "checkouts")),
        ("workspaces", without_record("workspaces", "workspaces")),
        ("what lies beside overlays", without_record("overlays", "workspaces")),
        ("mounts of no workspace", unknown.count()),
        ("mounts that map owners", mapping),
        ("deletions", names(&own.join("trash")).len()),
    ] {
        *seen.entry(what).or_default() += u64::from(count > 0);
    }
}

async fn list(agent: &Agent) -> Vec<v1::Workspace> {
    let all = agent.workspace().await.list_workspaces(v1::ListWorkspacesRequest::default()).await.unwrap();
    all.into_inner().workspaces
}

/// That nothing is there but what is listed, and that this is whole.
async fn assert_sound(agent: &Agent, pool: &Path, line: &Line, when: &str) {
    let listed = list(agent).await;
    let own = pool.join("stoker");
    let ids: BTreeSet<String> = listed.iter().map(|one| one.id.clone()).collect();
    let of = |part: &str| -> BTreeSet<String> { names(&own.join(part)).into_iter().collect() };
    let with_records = |names: &BTreeSet<String>| -> BTreeSet<String> {
        names.iter().flat_map(|name| [name.clone(), format!("{name}.json")]).collect()
    };
    assert_eq!(of("workspaces"), with_records(&ids), "{when}: workspaces");
    let overlays = listed.iter().filter(|one| one.method() == v1::Method::Overlay);
    let overlays: BTreeSet<String> = overlays.map(|one| one.id.clone()).collect();
    assert_eq!(of("overlays"), overlays, "{when}: beside overlays");
    let mounted: BTreeSet<PathBuf> = mounts_below(pool).into_iter().collect();
    assert_eq!(mounted, overlays.iter().map(|id| own.join("workspaces").join(id).join("src")).collect(), "{when}");
    // Kept ones may be evicted meanwhile, their records first.
    let (mut checkouts, mut expected) = (BTreeSet::new(), BTreeSet::new());
    wait::holds_within(LIMIT, || {
        checkouts = of("checkouts");
        expected = with_records(&checkouts.iter().filter(|name| !name.contains(".json")).cloned().collect());
        checkouts == expected
    });
    assert_eq!(checkouts, expected, "{when}: checkouts");
    for one in &listed {
        let src = Path::new(&one.src);
        assert_same(&files(src), &line.clones[&one.commit], &format!("{when}: {}", one.id));
        let user = Some(fs::metadata(src).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap());
        let said =
            as_owner(src, user.filter(|user| *user != 0), "git status --porcelain --ignored; git fsck 2>/dev/null");
        assert_eq!(said, "", "{when}: {}", one.id);
    }
    for record in checkouts.iter().filter(|name| name.ends_with(".json")) {
        let place = own.join("checkouts");
        let text = match fs::read(place.join(record)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.unwrap(),
        };
        let kept: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let is_whole = kept["base"].is_null();
        let tree = files(&place.join(record.trim_end_matches(".json")).join("tree"));
        if is_whole && place.join(record).exists() {
            assert_same(&tree, &line.clones[kept["commit"].as_str().unwrap()], &format!("{when}: {record}"));
        }
    }
    let trash = own.join("trash");
    wait::until(LIMIT, &format!("{when}: an empty trash"), || names(&trash).is_empty());
}

/// What is under way when the agent is killed: new workspaces, and the end of others.
async fn begin(agent: &Agent, line: &Line, round: u64, chance: &mut Chance) {
    for one in list(agent).await {
        if chance.below(2) == 0 {
            let mut client = agent.workspace().await;
            tokio::spawn(async move { client.delete_workspace(v1::DeleteWorkspaceRequest { id: one.id }).await });
        }
    }
    for number in 0..1 + chance.below(3) {
        let user = (chance.below(2) == 0).then_some(USER);
        let unleased = v1::Unleased {
            source: Some(source(&line.url, &format!("sha:{}", line.pick(chance)))),
            request_id: format!("r{round}-{number}"),
            ..Default::default()
        };
        let request = v1::PrepareWorkspaceRequest {
            r#for: Some(v1::prepare_workspace_request::For::Unleased(unleased)),
            user,
            group: user.map(|_| GROUP),
            ..Default::default()
        };
        let mut client = agent.workspace().await;
        tokio::spawn(async move {
            let mut events = client.prepare_workspace(request).await?.into_inner();
            while events.message().await?.is_some() {}
            Ok::<_, Status>(())
        });
    }
}

async fn killed(kind: Kind, method: &str) {
    let rounds = from_environment("STOKER_KILL_ROUNDS", 4);
    let seed = chance::seed("STOKER_KILL_SEED");
    eprintln!("{kind:?} {method}: STOKER_KILL_ROUNDS={rounds} STOKER_KILL_SEED={seed}");
    let mut chance = Chance::new(seed).fork(method.len() as u64);
    let filesystem = LoopFs::new(kind, 1 << 30);
    let pool = filesystem.path();
    let line = Line::new();
    // Few fit: checkouts are made again and again.
    let more = format!("workspaces: {{method: {method}, checkouts: {{limit: 10MiB}}}}");
    let mut agent = Agent::start(&configuration(pool, &more));
    // The mirror is there before anything is killed.
    let first = source(&line.url, &format!("sha:{}", line.pick(&mut chance)));
    prepare_as(&agent, first, "first", Default::default()).await.unwrap();
    let mut seen = BTreeMap::new();
    for round in 0..rounds {
        begin(&agent, &line, round, &mut chance).await;
        // What is short comes early: half of the kills are in the first tenth.
        let longest = if chance.below(2) == 0 { 60 } else { 600 };
        let moment = Duration::from_millis(chance.below(longest));
        // Not a condition but a moment: that is what the test is about.
        tokio::time::sleep(moment).await;
        agent.kill9();
        // A child of the dead one that was not yet what it was to become holds it for a moment: nobody is to ask there.
        let _ = fs::remove_file(agent.socket());
        interrupted(pool, &mut seen);
        agent.launch();
        agent.wait_ready();
        assert_sound(&agent, pool, &line, &format!("round {round}, seed {seed}, after {moment:?}")).await;
    }
    // And what comes next stands on what was kept.
    for (number, commit) in line.clones.keys().enumerate() {
        let from = source(&line.url, &format!("sha:{commit}"));
        prepare_as(&agent, from, &format!("last-{number}"), Default::default()).await.unwrap();
    }
    assert_sound(&agent, pool, &line, "at the end").await;
    eprintln!("{kind:?} {method}: of {rounds} kills, seed {seed}, so many interrupted {seen:?}");
    assert!(rounds < 20 || seen["workspaces"] > 0 && seen["deletions"] > 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overlays_are_whole_after_kills_at_any_moment() {
    needs_root!();
    killed(Kind::Xfs, "overlay").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflinked_copies_are_whole_after_kills_at_any_moment() {
    needs_root!();
    killed(Kind::Xfs, "reflink").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkouts_are_whole_after_kills_at_any_moment() {
    needs_root!();
    killed(Kind::Ext4, "checkout").await;
}
