//! Deletion against who attacks it, on a filesystem of its own in a mount namespace of its own: in every round one more
//! tree is thrown away while processes work in it, and afterwards nothing outside has changed.
//!
//! `STOKER_ATTACK_ROUNDS` and `STOKER_ATTACK_SEED` decide how long and with which dice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

mod attacker;
mod dice;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use tokio_util::sync::CancellationToken;

use super::mount;
use super::tests::{names, plant, pool};
use super::tests_root::{in_private_mounts_of, run, runtime, text};
use super::*;
use crate::config::Pool;
use attacker::{Attacker, Deeds, Ground, ROLES, Role, USER};
use dice::Dice;

/// How an attacker is told what it is: role, seed, pool, elsewhere; a line each.
const ATTACKER: &str = "STOKER_TEST_ATTACKER";
/// So many trees are under attack at once before they are thrown away.
const LIVE: usize = 8;
/// So many may wait to be removed; how long until they are fewer is what "does not stall" means.
const BACKLOG_MAX: usize = 400;
/// How long the agent may take to come below that, or to remove all at the end.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a tree has 10,000 levels.
const DEEP_EVERY: u64 = 400;
/// The call must return within this; see the numbers of the design.
const CALL_MAX: Duration = Duration::from_millis(10);

/// A number from the environment.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// The filesystem under attack. XFS, whose directories of long names stay small.
struct Field {
    home: tempfile::TempDir,
    ground: Ground,
    workspaces: OwnedFd,
}

impl Field {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (image, point) = (home.path().join("image"), home.path().join("data"));
        fs::create_dir(&point).unwrap();
        fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
        run("mkfs.xfs", &["-q", text(&image)]);
        run("mount", &["-o", "loop", text(&image), text(&point)]);
        let ground = Ground { pool: point, elsewhere: home.path().join("elsewhere") };
        for path in [ground.own(), ground.workspaces(), ground.free()] {
            fs::create_dir(path).unwrap();
        }
        chown(ground.free(), Some(USER), Some(USER)).unwrap();
        for place in [ground.canary(), ground.elsewhere.clone()] {
            plant_canary(&place);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let workspaces = rustix::fs::open(ground.workspaces(), flags, Mode::empty()).unwrap();
        Self { home, ground, workspaces }
    }

    /// The folder of workspaces, whatever bears its name now.
    fn workspaces(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.workspaces.as_raw_fd()).into()
    }

    /// Those that are there, the oldest first.
    fn live(&self) -> Vec<String> {
        let entries = fs::read_dir(self.workspaces()).unwrap();
        let mut all: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        all.sort_unstable_by_key(|name| (name.len(), name.clone()));
        all
    }

    /// A tree as a build leaves it: below a directory of the agent, `src` of the user. It is made where nobody attacks.
    fn make(&self, round: u64, dice: &mut Dice) {
        let home = self.ground.pool.join("making");
        fs::create_dir(&home).unwrap();
        let src = home.join("src");
        match round.is_multiple_of(DEEP_EVERY) {
            true => plant(&src, &self.ground.canary().join("linked")),
            false => fs::create_dir(&src).unwrap(),
        }
        let mut folders = vec![src.clone()];
        for _ in 0..2 + dice.at(24) {
            let folder = &folders[dice.at(folders.len())];
            let made = match dice.at(3) {
                0 => {
                    let path = folder.join(dice.name('d'));
                    let made = fs::create_dir(&path);
                    if made.is_ok() {
                        folders.push(path);
                    }
                    made
                }
                1 => fs::write(folder.join(dice.name('f')), "file"),
                _ => symlink(self.ground.canary(), folder.join(dice.name('s'))),
            };
            // Names are met again.
            drop(made);
        }
        folders.iter().for_each(|path| chown(path, Some(USER), Some(USER)).unwrap());
        fs::rename(&home, self.workspaces().join(format!("w{round}"))).unwrap();
    }

    /// Takes away what attackers mounted and did not unmount.
    fn unmount_all(&self) {
        for point in mount::mounts_below(&self.ground.pool).unwrap().iter().filter(|point| **point != self.ground.pool)
        {
            mount::unmount(point).unwrap();
        }
    }
}

/// What must stay as it is. What is in `linked` gets names in trees, which its number of links and time of change tell of.
fn plant_canary(place: &Path) {
    for folder in ["", "plain", "plain/deep", "plain/deep/er", "linked", "src"] {
        fs::create_dir(place.join(folder)).unwrap();
    }
    for name in ["plain/a", "plain/deep/b", "plain/deep/er/c", "plain/d0", "f0", "linked/kept"] {
        fs::write(place.join(name), format!("the content of {name}")).unwrap();
    }
    for number in 0..4 {
        let path = place.join("linked").join(number.to_string());
        fs::write(&path, "linked").unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
    }
    symlink("plain", place.join("link")).unwrap();
    for (name, mode) in [("plain/a", 0o640), ("plain/deep", 0o711), ("plain/deep/b", 0o4755), ("linked", 0o755)] {
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Everything below a place: kind and mode, owner, times, content.
fn canary(place: &Path) -> Canaries {
    let (mut found, mut pending) = (BTreeMap::new(), vec![place.to_owned()]);
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let linked = path.parent().is_some_and(|parent| parent.ends_with("linked"));
        let changed = if linked { (0, 0, 1) } else { (meta.ctime(), meta.ctime_nsec(), meta.nlink()) };
        let modified = (meta.mtime(), meta.mtime_nsec());
        let content = if meta.is_dir() {
            pending.extend(names(&path));
            "folder".to_owned()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            fs::read_to_string(&path).unwrap()
        };
        let (mode, user, group) = (meta.mode(), meta.uid(), meta.gid());
        found.insert(path, format!("{mode:o} {user}:{group} {modified:?} {changed:?} {content}"));
    }
    found
}

type Canaries = BTreeMap<PathBuf, String>;

fn canaries(ground: &Ground) -> Canaries {
    [ground.canary(), ground.elsewhere.clone()].iter().flat_map(|place| canary(place)).collect()
}

#[track_caller]
fn assert_untouched(ground: &Ground, before: &Canaries, when: &str) {
    let now = canaries(ground);
    let differs: Vec<_> = before.iter().filter(|(path, told)| now.get(*path) != Some(*told)).collect();
    let new: Vec<_> = now.iter().filter(|(path, told)| before.get(*path) != Some(*told)).collect();
    assert!(differs.is_empty() && new.is_empty(), "{when}: {differs:#?} became {new:#?}");
}

/// A process that attacks; it ends with this.
struct Process {
    role: Role,
    child: Child,
}

impl Process {
    fn start(role: Role, ground: &Ground, seed: u64) -> Self {
        let told = [role.word(), seed.to_string(), text(&ground.pool).to_owned(), text(&ground.elsewhere).to_owned()];
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "node::tests_attack::attacks", "--nocapture"]).env(ATTACKER, told.join("\n"));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self { role, child }
    }

    fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Tells it to stop. Gives what it did.
    fn stop(&mut self) -> String {
        drop(self.child.stdin.take());
        let mut output = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(self.child.wait().unwrap().success(), "{output}");
        let told = output.lines().find_map(|line| line.split_once("deeds: ")).map(|(_, deeds)| deeds.to_owned());
        told.unwrap_or_else(|| panic!("{:?} tells nothing: {output}", self.role))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No test, but what an attacker's process runs.
#[test]
fn attacks() {
    let Ok(told) = std::env::var(ATTACKER) else { return };
    let [role, seed, pool, elsewhere] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    let role = ROLES.into_iter().find(|known| known.word() == role).unwrap();
    match role {
        Role::User => {
            nix::unistd::setgroups(&[]).unwrap();
            nix::unistd::setgid(USER.into()).unwrap();
            nix::unistd::setuid(USER.into()).unwrap();
        }
        Role::HiddenMounter => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap(),
        Role::Root | Role::Mounter => {}
    }
    // Its input ends when it is to stop, and when who started it is no more.
    let over = Arc::new(AtomicBool::new(false));
    let told_over = Arc::clone(&over);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told_over.store(true, Ordering::SeqCst);
    });
    let ground = Ground { pool: pool.into(), elsewhere: elsewhere.into() };
    let mut attacker = Attacker::new(role, ground, seed.parse().unwrap());
    attacker.attack(|| over.load(Ordering::SeqCst));
    let deeds: &Deeds = &attacker.deeds;
    println!("\ndeeds: {deeds:?}");
}

/// What the rounds took.
#[derive(Debug, Default)]
struct Times {
    calls: Vec<Duration>,
    refused: BTreeMap<String, u64>,
    slowest_backlog: Duration,
}

impl Times {
    fn summary(&mut self) -> String {
        self.calls.sort_unstable();
        let part = |of: usize| self.calls.get(self.calls.len() * of / 1000).copied().unwrap_or_default();
        format!(
            "calls: {} median {:?} p99 {:?} longest {:?}; longest wait for the trash {:?}; refused {:?}",
            self.calls.len(),
            part(500),
            part(990),
            self.calls.last(),
            self.slowest_backlog,
            self.refused
        )
    }
}

/// Throws away the oldest that can be.
fn throw_away(field: &Field, pools: &Pools, times: &mut Times) {
    for name in field.live() {
        let began = Instant::now();
        let outcome = pools.discard(&field.ground.workspaces().join(&name));
        times.calls.push(began.elapsed());
        match outcome {
            Ok(()) => return,
            Err(error) => {
                let count = times.refused.entry(error.kind().to_string()).or_default();
                *count = count.saturating_add(1);
            }
        }
    }
}

fn attacked(rounds: u64, seed: u64) {
    let field = Field::new();
    let before = canaries(&field.ground);
    let pools = Pools::open(&[Pool { mount_required: true, ..pool(&field.ground.pool) }]);
    let runtime = runtime();
    let mut processes: Vec<_> =
        (0..).zip(ROLES).map(|(number, role)| Process::start(role, &field.ground, seed ^ (number + 1))).collect();
    let (mut dice, mut times, began) = (Dice::new(seed), Times::default(), Instant::now());
    runtime.block_on(async { pools.watch(&CancellationToken::new()) });
    let trash = field.ground.own().join("trash");
    let waiting = || fs::read_dir(&trash).map_or(0, Iterator::count);
    for round in 1..=rounds {
        field.make(round, &mut dice);
        let since = Instant::now();
        while field.live().len() > LIVE || waiting() > BACKLOG_MAX {
            throw_away(&field, &pools, &mut times);
            assert!(since.elapsed() < LIMIT, "round {round} stalls: {:?}\n{}", pools.view(), times.summary());
        }
        times.slowest_backlog = times.slowest_backlog.max(since.elapsed());
        if round.is_multiple_of(1000) {
            let dead = processes.iter_mut().find_map(|one| (!one.alive()).then_some(one.role));
            assert_eq!(dead, None, "an attacker ended by itself");
            assert_untouched(&field.ground, &before, &format!("by round {round}"));
        }
    }
    let took = began.elapsed();
    for one in &mut processes {
        let deeds = one.stop();
        eprintln!("{:?}: {deeds}", one.role);
    }
    field.unmount_all();
    for name in field.live() {
        pools.discard(&field.ground.workspaces().join(name)).unwrap();
    }
    let drained = runtime.block_on(async { tokio::time::timeout(LIMIT, pools.drained()).await });
    assert!(drained.is_ok() && waiting() == 0, "left: {:?} {:?}", names(&trash), pools.view());
    runtime.block_on(pools.shutdown());
    assert_untouched(&field.ground, &before, "at the end");
    eprintln!("{rounds} rounds, seed {seed}, in {:.0} s; {}", took.as_secs_f64(), times.summary());
    assert!(times.calls.get(times.calls.len() * 9 / 10).is_some_and(|call| *call < CALL_MAX), "{}", times.summary());
    drop(field.home);
}

fn under_attack(name: &str, rounds: u64) {
    in_private_mounts_of(&format!("node::tests_attack::{name}"), || {
        let seed = number("STOKER_ATTACK_SEED", now().0.unsigned_abs());
        let rounds = number("STOKER_ATTACK_ROUNDS", rounds);
        eprintln!("STOKER_ATTACK_ROUNDS={rounds} STOKER_ATTACK_SEED={seed}");
        attacked(rounds, seed);
    });
}

#[test]
fn needs_root_nothing_outside_is_touched_under_attack() {
    under_attack("needs_root_nothing_outside_is_touched_under_attack", 2000);
}

/// By hand: `cargo test --release --lib -- --ignored --nocapture a_hundred_thousand`.
#[test]
#[ignore = "takes many minutes"]
fn needs_root_nothing_outside_is_touched_in_a_hundred_thousand_rounds() {
    under_attack("needs_root_nothing_outside_is_touched_in_a_hundred_thousand_rounds", 100_000);
}
