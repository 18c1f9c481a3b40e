//! Builds: what they ask of the node, and that what they are given is whole.
//!
//! A build may be refused, in clear words, and it may find the agent away or its answer cut short where something was
//! struck. It may never be given anything that is not whole, nor be told of a commit that upstream never had.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::chance::Chance;
use crate::support::stoker::{BINARY, Output, Stoker};
use crate::support::wait;

use super::ledger::Before;
use super::sites::Site;
use super::{Campaign, OverWhenPanicking};

/// How long one command of a build may take.
const WITHIN: Duration = Duration::from_secs(180);
/// How long a workspace is kept at most, so that a kill can come meanwhile.
const KEPT_MILLIS_MAX: u64 = 4000;
/// How long a workspace lives that its build lost hold of.
const LIFETIME: &str = "2m";
/// How long an agent that was struck may take to delete a workspace.
const DELETED_WITHIN: Duration = Duration::from_secs(60);

/// Words that no build may ever read.
const DAMAGE: [&str; 23] = [
    "missing blob",
    "missing tree",
    "missing commit",
    "missing object",
    "bad object",
    "bad tree",
    "unable to read",
    "could not read",
    "did not send all necessary objects",
    "did not receive expected object",
    "remote did not send",
    "corrupt",
    "CORRUPT",
    "broken link",
    "object file",
    "loose object",
    "packfile",
    "hash mismatch",
    "inflate",
    "invalid sha1",
    "fsck error",
    "unresolved deltas",
    "panicked",
];
/// What git says where its child was killed, where its connection was, and where it would ask a person: no damage.
const HARMLESS: [&str; 5] = [
    "git upload-pack failed; the agent's log says why [REPOSITORY_CORRUPT]",
    "possible repository corruption on the remote side",
    "expected 'packfile'",
    "could not read Username",
    "could not read Password",
];
/// Reasons that are an answer at any time: there is no room just now.
const NO_ROOM: [&str; 2] = ["[REPOSITORIES_LIMIT]", "[REPOSITORY_EVICTED]"];
/// Reasons that are an answer where upstream no longer has what is asked for.
const GONE: [&str; 4] = ["[REF_NOT_FOUND]", "[COMMIT_NOT_FOUND]", "[COMMIT_UNREACHABLE]", "not our ref"];

/// Why a build did not get what it asked for.
struct Failed {
    what: String,
    said: String,
    /// It is damage, whatever was said.
    damage: bool,
    /// It stood on the pool, and went with it where the power was cut.
    on_pool: bool,
    /// What it asked for: a branch or a commit.
    wanted: String,
}

type Done<T = ()> = Result<T, Failed>;

impl Failed {
    fn wanting(self, wanted: &str) -> Self {
        Self { wanted: wanted.to_owned(), ..self }
    }
}

struct Builder<'a> {
    campaign: &'a Campaign,
    stoker: Stoker,
    chance: Chance,
    number: u64,
}

/// Builds one after the other, until it is over.
pub(super) fn build(campaign: &Campaign, chance: Chance) {
    let _guard = OverWhenPanicking(campaign);
    let mut builder = Builder { campaign, stoker: Stoker::new(), chance, number: 0 };
    while !campaign.over() {
        builder.number += 1;
        // The last one is asked for least: it is what must go.
        let site = &campaign.sites[[0, 0, 0, 0, 1, 1, 1, 2, 2, 3][usize::try_from(builder.chance.below(10)).unwrap()]];
        let (begun, before) = (Instant::now(), campaign.trouble.before());
        match builder.one(site) {
            Ok(kind) => {
                campaign.ledger.count(format!("build: {kind}"));
                campaign.done.fetch_add(1, Ordering::SeqCst);
            }
            Err(failed) => {
                let why = builder.judge(site, &failed, begun, before);
                campaign.ledger.count(format!("build: not done, {why}"));
                // As builds do: not at once again.
                wait::holds_within(Duration::from_millis(100), || campaign.over());
            }
        }
    }
}

impl Builder<'_> {
    fn one(&mut self, site: &Site) -> Done<&'static str> {
        match self.chance.below(12) {
            0 | 1 => self.clones(site, &[], "clone"),
            2 | 3 => self.clones(site, &["--depth", "1"], "clone --depth 1"),
            4 | 5 => self.clones(site, &["--filter=blob:none"], "clone --filter=blob:none"),
            6 => self.fetches(site),
            7 => self.resolves(site),
            8..=10 => self.workspace(site),
            _ => self.refreshes(site),
        }
    }

    /// Why that is nothing to worry about.
    ///
    /// # Panics
    ///
    /// Where it is.
    fn judge(&self, site: &Site, failed: &Failed, begun: Instant, before: Before) -> String {
        let Failed { what, said, damage, on_pool, wanted } = failed;
        let trouble = &self.campaign.trouble;
        if *on_pool && trouble.cut_since(before) {
            return "the power was cut".to_owned();
        }
        let struck = trouble.since(begun);
        // The agent's own words where its store was struck: nothing is served from it, and it is mended.
        if struck && !damage && what.starts_with("stoker ") && said.contains("[REPOSITORY_CORRUPT]") {
            return "something was struck, [REPOSITORY_CORRUPT]".to_owned();
        }
        let text = HARMLESS.iter().fold(said.clone(), |text, harmless| text.replace(harmless, ""));
        let damage = *damage || DAMAGE.iter().any(|word| text.contains(word));
        assert!(!damage, "{}: {what} of {wanted:?}: {said}", site.url);
        if let Some(word) = NO_ROOM.iter().find(|word| text.contains(**word)) {
            return (*word).to_owned();
        }
        if let Some(word) = GONE.iter().find(|word| text.contains(**word)) {
            let refused = text.split("not our ref ").nth(1).and_then(|rest| rest.get(..40)).unwrap_or(wanted);
            let there = if refused.len() == 40 { site.reaches(refused) } else { refused == "main" };
            assert!(struck || !there, "{}: {what} of {wanted:?}, which is there: {said}", site.url);
            return (*word).to_owned();
        }
        // A git child that was killed in a fetch: the agent tells that of upstream until it has asked it again.
        if said.contains("[UPSTREAM_UNREACHABLE]") && trouble.remembered_since(begun) {
            return "something was struck, [UPSTREAM_UNREACHABLE]".to_owned();
        }
        assert!(struck, "{}: {what} of {wanted:?} failed, and nothing was struck: {said}", site.url);
        "something was struck".to_owned()
    }

    /// A folder that nobody had before, outside the pool.
    fn place(&self) -> PathBuf {
        self.stoker.home().join(format!("build-{}", self.number))
    }

    /// Git with the index that the folder has.
    fn git(&self, at: &Path, args: &[&str]) -> Done<String> {
        self.git_with(at, args, None)
    }

    fn git_with(&self, at: &Path, args: &[&str], index: Option<&Path>) -> Done<String> {
        // A folder that went with the power is told by git, as anything else that it misses.
        let args = [&["-C", at.to_str().unwrap()], args].concat();
        let command = self.stoker.program("git", &args).deadline(WITHIN);
        let mut command = command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
        if let Some(index) = index {
            command = command.env("GIT_INDEX_FILE", index);
        }
        self.told(&format!("git {}", args.join(" ")), command.run(), at)
    }

    /// A command of the agent's command line.
    fn ask(&self, args: &[&str]) -> Done<Output> {
        let command = self.stoker.program(BINARY, args).deadline(WITHIN);
        let output = command.env("STOKER_SOCKET", self.campaign.root.join("run/stoker.sock")).run();
        if output.code() == Some(0) {
            return Ok(output);
        }
        let (what, said) = (format!("stoker {}", args.join(" ")), output.stderr);
        Err(Failed { what, said, damage: false, on_pool: false, wanted: String::new() })
    }

    fn told(&self, what: &str, output: Output, at: &Path) -> Done<String> {
        if output.code() == Some(0) {
            return Ok(output.stdout.trim_end().to_owned());
        }
        let said = format!("{}: {}{}", output.status, output.stderr, output.stdout);
        let on_pool = at.starts_with(self.campaign.pool());
        Err(Failed { what: what.to_owned(), said, damage: false, on_pool, wanted: String::new() })
    }

    fn clones(&mut self, site: &Site, options: &[&str], kind: &'static str) -> Done<&'static str> {
        let (version, served, place) = (self.version(), self.campaign.served(site), self.place());
        let args = [&["-c", version, "clone", "--quiet"], options, &[&served, place.to_str().unwrap()]].concat();
        self.git(self.stoker.home(), &args)?;
        let looked = self.looked_through(site, &place, None);
        std::fs::remove_dir_all(place).unwrap();
        looked.map(|()| kind)
    }

    fn fetches(&mut self, site: &Site) -> Done<&'static str> {
        let branch = self.chance.pick(&site.branches()).clone();
        let Some(commit) = site.repo.refs().remove(&format!("refs/heads/{branch}")) else {
            return self.refreshes(site);
        };
        self.fetched(site, &commit).map(|()| "fetch of a commit")
    }

    fn resolves(&mut self, site: &Site) -> Done<&'static str> {
        let branch = self.chance.pick(&site.branches()).clone();
        let answer = self.ask(&["resolve", &site.url, &format!("branch:{branch}"), "-o", "json"]);
        let answer = answer.map_err(|failed| failed.wanting(&branch))?.json();
        let commit = answer["resolved"]["commit"].as_str().unwrap();
        self.was_there(site, commit)?;
        self.fetched(site, commit).map(|()| "resolve, fetch of that commit")
    }

    fn refreshes(&mut self, site: &Site) -> Done<&'static str> {
        self.ask(&["repo", "add", &site.url])?;
        self.ask(&["repo", "refresh", &site.url]).map(|_| "refresh")
    }

    fn version(&mut self) -> &'static str {
        if self.chance.below(3) == 0 { "protocol.version=0" } else { "protocol.version=2" }
    }

    /// Fetches exactly this commit into an empty repository.
    fn fetched(&mut self, site: &Site, commit: &str) -> Done {
        let (version, served, place) = (self.version(), self.campaign.served(site), self.place());
        self.git(self.stoker.home(), &["init", "--quiet", place.to_str().unwrap()])?;
        let fetched = self.git(&place, &["-c", version, "fetch", "--quiet", &served, commit]);
        let looked = fetched.map_err(|failed| failed.wanting(commit)).and_then(|_| {
            let checked_out = self.git(&place, &["checkout", "--quiet", "--detach", "FETCH_HEAD"]);
            checked_out.map_err(|failed| Failed { damage: true, ..failed })?;
            self.looked_through(site, &place, Some(commit))
        });
        std::fs::remove_dir_all(place).unwrap();
        looked
    }

    /// A workspace of a branch, looked through when it comes and before it goes.
    fn workspace(&mut self, site: &Site) -> Done<&'static str> {
        let branch = self.chance.pick(&site.branches()).clone();
        let reference = format!("branch:{branch}");
        let args = ["workspace", "prepare", "--repo", &site.url, "--ref", &reference, "--for", LIFETIME, "-o", "json"];
        let answer = self.ask(&args).map_err(|failed| failed.wanting(&branch))?.json();
        let workspace = &answer["workspace"];
        let text = |name: &str| workspace[name].as_str().unwrap().to_owned();
        let (id, src, commit) = (text("id"), PathBuf::from(text("src")), text("commit"));
        let before = self.campaign.trouble.before();
        let looked = self.looked_through(site, &src, Some(&commit)).and_then(|()| {
            let kept = Duration::from_millis(self.chance.below(KEPT_MILLIS_MAX));
            wait::holds_within(kept, || self.campaign.over());
            self.looked_through(site, &src, Some(&commit))
        });
        if looked.is_ok() && self.campaign.trouble.before().agents != before.agents {
            self.campaign.ledger.count("build: workspace that outlived a kill of the agent");
        }
        // It goes also after a cut, where nobody would look at it any more.
        let gone = wait::holds_within(DELETED_WITHIN, || match self.ask(&["workspace", "delete", &id]) {
            Ok(_) => true,
            Err(failed) => failed.said.contains("no workspace"),
        });
        assert!(gone, "workspace {id} is not deleted");
        looked.map(|()| "workspace")
    }

    fn was_there(&self, site: &Site, commit: &str) -> Done {
        self.same(&format!("{commit}: upstream had it"), &true, &site.had(commit), Path::new(""))
    }

    fn same<T: PartialEq + std::fmt::Debug>(&self, what: &str, expected: &T, found: &T, at: &Path) -> Done {
        if expected == found {
            return Ok(());
        }
        let said = format!("expected {expected:?}, found {found:?}");
        let on_pool = at.starts_with(self.campaign.pool());
        Err(Failed { what: what.to_owned(), said, damage: true, on_pool, wanted: String::new() })
    }

    /// All that HEAD needs is there and whole, and the files are those of the commit: also to an index that knows
    /// nothing of them, so each is read.
    fn looked_through(&self, site: &Site, at: &Path, commit: Option<&str>) -> Done {
        let damage = |failed: Failed| Failed { damage: true, ..failed };
        let git = |args: &[&str]| self.git(at, args).map_err(damage);
        git(&["fsck", "--full", "--strict", "--no-dangling"])?;
        let head = git(&["rev-parse", "HEAD"])?;
        self.same("HEAD", &commit.unwrap_or(&head), &head.as_str(), at)?;
        self.was_there(site, &head)?;
        let tree = crate::support::repository::git_out(&site.repo.path(), &["rev-parse", &format!("{head}^{{tree}}")]);
        self.same("the tree", &tree, &git(&["rev-parse", "HEAD^{tree}"])?, at)?;
        self.same("git status", &String::new(), &git(&["status", "--porcelain"])?, at)?;
        let index = self.stoker.home().join("fresh-index");
        let _ = std::fs::remove_file(&index);
        self.git_with(at, &["read-tree", "HEAD"], Some(&index)).map_err(damage)?;
        let status = self.git_with(at, &["status", "--porcelain"], Some(&index)).map_err(damage)?;
        self.same("git status with a fresh index", &String::new(), &status, at)
    }
}
