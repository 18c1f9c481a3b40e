#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::symlink;

use stoker_core::admission::Source;
use stoker_core::identity::CommitId;
use stoker_core::quantity::Span;
use tokio::sync::watch;

use super::*;
use crate::config::Config;
use crate::workspace::Method;

pub(in crate::workspace) const NOW: Timestamp = Timestamp(1_800_000_000_000);

/// A pool in a folder of its own.
pub(in crate::workspace) struct World {
    pub(in crate::workspace) dir: tempfile::TempDir,
    pub(in crate::workspace) pools: Pools,
    pub(in crate::workspace) config: watch::Sender<Arc<Config>>,
}

impl World {
    pub(in crate::workspace) fn new(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::for_run(dir.path(), "ghost");
        change(&mut config);
        let pools = Pools::open(&config.pools);
        Self { dir, pools, config: watch::Sender::new(Arc::new(config)) }
    }

    pub(in crate::workspace) fn outputs(&self) -> Outputs {
        let outputs = Outputs::new("run", self.pools.clone(), self.config.subscribe());
        outputs.look().unwrap();
        outputs
    }

    pub(in crate::workspace) fn own(&self) -> PathBuf {
        self.dir.path().join("pool/stoker")
    }

    /// A workspace that a build wrote to.
    pub(in crate::workspace) fn workspace(&self, id: &str, made: Timestamp) -> Workspace {
        let home = self.own().join("workspaces").join(id);
        for name in ["src", "tmp", "out"] {
            fs::create_dir_all(home.join(name)).unwrap();
        }
        Workspace {
            id: id.to_owned(),
            lease: None,
            src: home.join("src"),
            tmp: home.join("tmp"),
            out: home.join("out"),
            cache: self.own().join("caches/t"),
            cache_keys: Vec::new(),
            cache_slot: 1,
            form: (false, false),
            method: Method::Checkout,
            checkout: None,
            self_contained: false,
            given: (0, 0),
            tmpfs_bytes: None,
            project: None,
            source: Source {
                repository: "example.org/a".to_owned(),
                reference: "branch:main".to_owned(),
                commit: CommitId::new([7; 20]),
                clone_url: "https://example.org/a".to_owned(),
                clone_ref: "refs/heads/main".to_owned(),
                as_of: made,
                origin: "cache".to_owned(),
                snapshot: String::new(),
                subject: String::new(),
                other_fork: false,
            },
            scope: Scope { tenant: "red".to_owned(), project: "stx".to_owned(), branch: "main".to_owned() },
            created_at: made,
            expires_at: None,
            files: 0,
            bytes: 0,
            also_mount: Vec::new(),
            owner: None,
            submodules: Vec::new(),
            manifest: None,
            projects: Vec::new(),
            trust: "default".to_owned(),
        }
    }
}

fn write(workspace: &Workspace, text: &str) {
    fs::write(workspace.out.join("log"), text).unwrap();
}

fn kept(outputs: &Outputs, workspace: &Workspace, now: Timestamp) -> Option<Arc<Output>> {
    outputs.keep(workspace, Ending::default(), now).unwrap()
}

fn ids(outputs: &Outputs) -> Vec<String> {
    outputs.list().unwrap().iter().map(|output| output.id.clone()).collect()
}

#[test]
fn what_a_build_left_is_kept_once_and_survives_a_restart() {
    let world = World::new(|_| {});
    let outputs = world.outputs();
    let workspace = world.workspace("w", NOW);
    assert_eq!(kept(&outputs, &workspace, NOW), None, "an empty `out` is no output");
    write(&workspace, "text");
    let later = NOW.plus(Span::hours(1));
    let output = kept(&outputs, &workspace, later).unwrap();
    assert_eq!((output.created_at, output.expires_at), (later, later.plus(Span::hours(14 * 24))));
    assert_eq!(output.rule, "outputs.retention (14 d)");
    assert_eq!(fs::read_to_string(world.own().join("outputs/w/log")).unwrap(), "text");
    assert!(!workspace.out.exists());
    assert_eq!(kept(&outputs, &workspace, later), Some(Arc::clone(&output)), "again is the same as once");
    assert_eq!(ids(&outputs), ["w"]);

    outputs.count(&|| false).unwrap();
    let output = outputs.get("w").unwrap();
    assert!(matches!(output.size, Some(Size { files: 1, bytes: 4, partial: false, .. })), "{output:?}");
    let again = world.outputs();
    assert_eq!(again.list().unwrap(), [output]);
}

#[test]
fn an_id_that_is_used_again_makes_another_output() {
    let world = World::new(|_| {});
    let outputs = world.outputs();
    for (at, id) in [(0, "w"), (1, "w-2"), (2, "w-3")] {
        let workspace = world.workspace("w", Timestamp(NOW.0 + at));
        write(&workspace, id);
        assert_eq!(kept(&outputs, &workspace, NOW).unwrap().id, id);
    }
    assert_eq!(ids(&outputs), ["w", "w-2", "w-3"]);
    // A folder of that name that nobody knows is not taken for it.
    fs::create_dir(world.own().join("outputs/x")).unwrap();
    let workspace = world.workspace("x", NOW);
    write(&workspace, "x");
    assert_eq!(kept(&outputs, &workspace, NOW).unwrap().id, "x-2");
}

#[test]
fn a_kill_at_any_step_neither_loses_an_output_nor_makes_two() {
    // After the record, after the move, and after the workspace went.
    for step in 0..3 {
        let world = World::new(|_| {});
        let workspace = world.workspace("w", NOW);
        write(&workspace, "text");
        kept(&world.outputs(), &workspace, NOW).unwrap();
        let place = world.own().join("outputs/w");
        match step {
            0 => fs::rename(&place, &workspace.out).unwrap(),
            1 => {}
            _ => world.pools.discard(workspace.out.parent().unwrap()).unwrap(),
        }
        let outputs = world.outputs();
        let later = NOW.plus(Span::hours(9));
        if step < 2 {
            let output = kept(&outputs, &workspace, later).unwrap();
            assert_eq!(output.created_at, NOW, "its age counts from when it was kept first");
        }
        assert_eq!(ids(&outputs), ["w"], "step {step}");
        assert_eq!(fs::read_to_string(place.join("log")).unwrap(), "text", "step {step}");
    }
}

#[test]
fn a_record_without_its_directory_goes_once_its_workspace_has() {
    let world = World::new(|_| {});
    let workspace = world.workspace("w", NOW);
    write(&workspace, "text");
    kept(&world.outputs(), &workspace, NOW).unwrap();
    let record = world.own().join("outputs/w.json");
    world.pools.discard(&world.own().join("outputs/w")).unwrap();
    world.outputs();
    assert!(record.exists(), "the workspace may still bring it");
    world.pools.discard(workspace.out.parent().unwrap()).unwrap();
    let outputs = world.outputs();
    assert!(!record.exists());
    assert_eq!(ids(&outputs), Vec::<String>::new());
}

#[test]
fn a_released_output_stays_and_a_deleted_one_goes() {
    let world = World::new(|_| {});
    let outputs = world.outputs();
    for id in ["a", "b"] {
        let workspace = world.workspace(id, NOW);
        write(&workspace, id);
        kept(&outputs, &workspace, NOW).unwrap();
    }
    let late = NOW.plus(Span::hours(24 * 400));
    assert_eq!(outputs.release("a", NOW).unwrap().unwrap().released_at, Some(NOW));
    assert_eq!(outputs.release("a", late).unwrap().unwrap().released_at, Some(NOW), "again is the same as once");
    assert_eq!(outputs.release("c", NOW).unwrap(), None);
    assert!(!outputs.expire("a", late).unwrap());
    assert!(!outputs.expire("b", NOW).unwrap(), "not yet");
    assert!(outputs.expire("b", late).unwrap());
    let outputs = world.outputs();
    assert_eq!(ids(&outputs), ["a"]);
    assert!(outputs.delete("a").unwrap() && !outputs.delete("a").unwrap());
    assert_eq!(fs::read_dir(world.own().join("outputs")).unwrap().count(), 0, "with their records");
}

#[test]
fn several_ends_of_one_workspace_keep_it_once() {
    let world = World::new(|_| {});
    let outputs = world.outputs();
    for round in 0..20 {
        let workspace = world.workspace(&format!("w{round}"), NOW);
        write(&workspace, "text");
        let end = || kept(&outputs, &workspace, NOW).unwrap();
        let of_all = std::thread::scope(|scope| [(); 4].map(|()| scope.spawn(end)).map(|end| end.join().unwrap()));
        assert!(of_all.iter().all(|output| output.id == workspace.id), "{of_all:?}");
        assert!(world.own().join("outputs").join(&workspace.id).join("log").exists());
    }
    assert_eq!(world.outputs().list().unwrap().len(), 20);
}

#[test]
fn what_is_no_directory_is_no_output() {
    let world = World::new(|_| {});
    let outputs = world.outputs();
    let workspace = world.workspace("w", NOW);
    fs::remove_dir(&workspace.out).unwrap();
    symlink("/etc", &workspace.out).unwrap();
    assert_eq!(kept(&outputs, &workspace, NOW), None);
    assert!(fs::exists("/etc/passwd").unwrap() && workspace.out.is_symlink());
    assert!(!world.own().join("outputs/w.json").exists());
}

#[test]
fn the_rule_that_matches_is_written_down() {
    use stoker_core::retention::Rule;
    let world = World::new(|config| {
        let rule = Rule {
            tenant: Some("r*".parse().unwrap()),
            project: None,
            branch: Some("main".parse().unwrap()),
            keep: Span::hours(36),
        };
        config.keeping.outputs = Arc::new(Rules { rules: vec![rule], ..Rules::default() });
    });
    let workspace = world.workspace("w", NOW);
    write(&workspace, "x");
    let output = kept(&world.outputs(), &workspace, NOW).unwrap();
    assert_eq!(output.rule, "outputs.rules[0] (tenant r*, branch main: 36 h)");
    assert_eq!(output.expires_at, NOW.plus(Span::hours(36)));
}

#[test]
fn outputs_are_found_by_their_line_of_builds() {
    let world = World::new(|_| {});
    let workspace = world.workspace("w", NOW);
    write(&workspace, "x");
    let output = kept(&world.outputs(), &workspace, NOW).unwrap();
    let of = |tenant: &str, branch: &str| {
        is_of(&output, &Scope { tenant: tenant.into(), project: String::new(), branch: branch.into() })
    };
    assert!(of("", "") && of("red", "") && of("red", "main"));
    assert!(!of("blue", "") && !of("red", "x"));
}
