//! Real repositories: bare, made by `git fast-import`, the same ids on every machine (fixed author and dates).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// The submodule's commit in [`TestRepo::standard`]: nothing that exists.
pub(crate) const SUBMODULE_COMMIT: &str = "1234567890123456789012345678901234567890";
/// A path with spaces in [`TestRepo::standard`].
pub(crate) const SPACED: &str = "docs/file with spaces.txt";
/// A path in [`TestRepo::standard`] that is not UTF-8: `docs/caf\xe9.txt`, as Latin-1 writes it.
pub(crate) const LATIN1: &[u8] = b"docs/caf\xe9.txt";
/// When the first commit was made; each further one is a minute later.
const EPOCH: u64 = 1_700_000_000;
/// Who made them.
const WHO: &str = "Ada Builder <ada@example.org>";

/// `git` with nothing of the machine's or the user's configuration, in the folder `at`.
pub(crate) fn git(at: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(at);
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"GIT_") {
            command.env_remove(name);
        }
    }
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "Ada Builder")
        .env("GIT_AUTHOR_EMAIL", "ada@example.org")
        .env("GIT_COMMITTER_NAME", "Ada Builder")
        .env("GIT_COMMITTER_EMAIL", "ada@example.org")
        .env("GIT_AUTHOR_DATE", format!("{EPOCH} +0000"))
        .env("GIT_COMMITTER_DATE", format!("{EPOCH} +0000"))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    command
}

/// What `git ARGS` prints in `at`, without the last line's end.
///
/// # Panics
///
/// Where it fails.
#[track_caller]
pub(crate) fn git_out(at: &Path, args: &[&str]) -> String {
    let output = git(at).args(args).output().unwrap();
    checked(&format!("git {}", args.join(" ")), &output);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

#[track_caller]
fn checked(what: &str, output: &Output) {
    assert!(output.status.success(), "{what}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// A bare repository that goes when this is dropped.
pub(crate) struct TestRepo {
    place: TempDir,
    names: BTreeMap<&'static str, String>,
}

impl TestRepo {
    /// No commit; `HEAD` names `main`.
    pub(crate) fn empty() -> Self {
        let place = super::place("repository-");
        git_out(place.path(), &["init", "--quiet", "--bare", "--initial-branch=main", "project.git"]);
        Self { place, names: BTreeMap::new() }
    }

    /// What tests need of an upstream:
    ///
    /// - branches `main` (the default), `develop` with two commits of its own, `feature/with-slash` with one;
    /// - tags `v1.0` (annotated, one commit below `main`, so `git describe` gives `v1.0-1-g...`) and `v1.1-rc1` (light, on
    ///   `develop`);
    /// - `refs/pull/152/head`, a commit on no branch;
    /// - [`TestRepo::unreferenced`], a commit that no ref reaches;
    /// - on all of them: nested folders, an executable, a symlink, an empty file, [`SPACED`], [`LATIN1`], a `.bat` that
    ///   `.gitattributes` gives CRLF, a submodule `vendor/library` at [`SUBMODULE_COMMIT`].
    pub(crate) fn standard() -> Self {
        let mut repo = Self::empty();
        let mut stream = Stream::default();
        stream.commit("refs/heads/main", None, "Begin");
        stream.file("README.md", b"# Project\n");
        stream.file("src/deep/er/nested.rs", b"pub fn nested() {}\n");
        stream.entry("100755", "build.sh", b"#!/bin/sh\necho built\n");
        stream.entry("120000", "latest", b"src/deep/er/nested.rs");
        stream.file("empty", b"");
        stream.file(SPACED, b"a file with spaces in its name\n");
        stream.file(LATIN1, b"a file whose name is not UTF-8\n");
        stream.file(".gitattributes", b"*.bat text eol=crlf\n");
        stream.file("run.bat", b"echo one\necho two\n");
        stream.file(
            ".gitmodules",
            b"[submodule \"library\"]\n\tpath = vendor/library\n\turl = https://example.org/library.git\n",
        );
        stream.gitlink("vendor/library", SUBMODULE_COMMIT);
        stream.tag("v1.0", "refs/heads/main", "Version 1.0");
        stream.commit("refs/heads/main", None, "Say more");
        stream.file("README.md", b"# Project\n\nMore.\n");
        stream.commit("refs/heads/develop", Some("refs/heads/main"), "Develop");
        stream.file("develop.txt", b"one\n");
        stream.reset("refs/tags/v1.1-rc1", "refs/heads/develop");
        stream.commit("refs/heads/develop", None, "Develop on");
        stream.file("develop.txt", b"two\n");
        stream.commit("refs/heads/feature/with-slash", Some("refs/heads/main"), "Add a feature");
        stream.file("feature.txt", b"feature\n");
        stream.commit("refs/pull/152/head", Some("refs/heads/main"), "Propose a change");
        stream.file("proposed.txt", b"proposed\n");
        stream.commit("refs/gone", Some("refs/heads/main"), "Be forgotten");
        stream.file("gone.txt", b"gone\n");
        repo.import(stream);
        repo.names.insert("unreferenced", repo.commit("refs/gone"));
        git_out(&repo.path(), &["update-ref", "-d", "refs/gone"]);
        repo
    }

    /// `main` with `commits` commits: the first has `files` files in folders of up to 100, `bytes` in all; each further
    /// one changes every twentieth of them. The content is text, compressible by about half, and the same each time.
    /// 40,000 files of 300 MB take some twenty seconds, nearly all of them in git.
    pub(crate) fn generated(files: usize, bytes: usize, commits: usize) -> Self {
        let repo = Self::empty();
        let size = bytes / files.max(1);
        let mut stream = Stream::default();
        for round in 0..commits {
            stream.commit("refs/heads/main", None, &format!("Round {round}"));
            for file in (0..files).filter(|file| round == 0 || (file + round) % 20 == 0) {
                let path = format!("tree{:03}/dir{:03}/file{file:06}.txt", file / 10_000, file / 100 % 100);
                let seed = (round * files + file) as u64;
                stream.file(&path, &words(seed, size));
            }
        }
        repo.import(stream);
        repo
    }

    /// Names these commits, by branches and tags in turn, as a project that was released often.
    pub(crate) fn name_often<'a>(&self, commits: impl IntoIterator<Item = &'a str>) {
        let mut commands = String::new();
        for (number, commit) in commits.into_iter().enumerate() {
            let kind = if number % 2 == 0 { "heads/topic/" } else { "tags/v0." };
            commands.push_str(&format!("create refs/{kind}{number} {commit}\n"));
        }
        let mut child = git(&self.path()).args(["update-ref", "--stdin"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "git update-ref");
        git_out(&self.path(), &["pack-refs", "--all"]);
    }

    /// A copy with its own objects, as a fork of it on another account.
    pub(crate) fn fork(&self) -> Self {
        Self { names: self.names.clone(), ..Self::mirror_of(&self.path()) }
    }

    /// A copy with its own objects of any repository on this machine whose default branch is `main`.
    pub(crate) fn mirror_of(from: &Path) -> Self {
        let place = super::place("repository-");
        let output = git(place.path())
            .args(["clone", "--quiet", "--mirror", "--no-hardlinks"])
            .args([from.as_os_str(), OsStr::new("project.git")])
            .output();
        checked("mirror", &output.unwrap());
        git_out(&place.path().join("project.git"), &["remote", "remove", "origin"]);
        Self { place, names: BTreeMap::new() }
    }

    /// Where it is: a bare repository.
    pub(crate) fn path(&self) -> PathBuf {
        self.place.path().join("project.git")
    }

    /// The commit that `name` stands for: a branch, a tag (peeled), a full ref, anything that `git rev-parse` knows.
    #[track_caller]
    pub(crate) fn commit(&self, name: &str) -> String {
        git_out(&self.path(), &["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{name}^{{commit}}")])
    }

    /// The commit of [`TestRepo::standard`] that no ref reaches.
    pub(crate) fn unreferenced(&self) -> &str {
        &self.names["unreferenced"]
    }

    /// All refs with what they name, as `git for-each-ref` and `git ls-remote` show them.
    pub(crate) fn refs(&self) -> BTreeMap<String, String> {
        let lines = git_out(&self.path(), &["for-each-ref", "--format=%(refname) %(objectname)"]);
        lines
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .collect()
    }

    /// Adds a commit with one file to a branch, which begins at the default branch where it is new. Gives the commit.
    pub(crate) fn commit_file(&self, branch: &str, path: &str, content: &[u8]) -> String {
        self.commit_on(branch, None, &format!("Write {path}"), |stream| stream.file(path, content))
    }

    /// Adds a commit with several files, and with submodules at these paths and commits; `.gitmodules` is one of the files.
    /// Gives the commit.
    pub(crate) fn commit_tree(
        &self,
        branch: &str,
        files: &[(&str, &str, &[u8])],
        submodules: &[(&str, &str)],
    ) -> String {
        self.commit_on(branch, None, "Write a tree", |stream| {
            for (mode, path, content) in files {
                stream.entry(mode, path, content);
            }
            for (path, commit) in submodules {
                stream.gitlink(path, commit);
            }
        })
    }

    /// Adds a commit that renames a file. Gives the commit.
    pub(crate) fn rename_file(&self, branch: &str, from: &str, to: &str) -> String {
        self.commit_on(branch, None, &format!("Rename {from}"), |stream| stream.rename(from, to))
    }

    /// Puts a ref on a new commit with one file whose parent is `onto`: what a force-push does to a branch.
    pub(crate) fn force_push(&self, branch: &str, onto: &str, path: &str, content: &[u8]) -> String {
        self.commit_on(branch, Some(self.commit(onto)), "Start over", |stream| stream.file(path, content))
    }

    /// Removes a branch.
    pub(crate) fn delete_branch(&self, branch: &str) {
        git_out(&self.path(), &["update-ref", "-d", &full(branch)]);
    }

    /// Renames a branch; `HEAD` follows where it named it.
    pub(crate) fn rename_branch(&self, from: &str, to: &str) {
        git_out(&self.path(), &["branch", "-M", from, to]);
    }

    /// Makes `HEAD` name another branch.
    pub(crate) fn set_head(&self, branch: &str) {
        git_out(&self.path(), &["symbolic-ref", "HEAD", &full(branch)]);
    }

    /// Sets any ref to a commit.
    pub(crate) fn set_ref(&self, name: &str, commit: &str) {
        git_out(&self.path(), &["update-ref", name, &self.commit(commit)]);
    }

    /// A plain clone with a work tree, by git itself: what others are compared with. `origin` is this repository.
    pub(crate) fn clone_to(&self, place: &Path) {
        let from = self.path();
        let output =
            git(Path::new("/")).args(["clone", "--quiet", "--no-hardlinks", "--"]).arg(from).arg(place).output();
        checked("clone", &output.unwrap());
    }

    fn commit_on(&self, branch: &str, onto: Option<String>, message: &str, change: impl FnOnce(&mut Stream)) -> String {
        let name = full(branch);
        let refs = self.refs();
        let parent = onto
            .or_else(|| refs.get(&name).cloned())
            .or_else(|| refs.contains_key("refs/heads/main").then(|| self.commit("HEAD")));
        // Later than every commit that is there, so that `git log` shows it first.
        let mut stream = Stream { minutes: 1_000 + self.count(), ..Stream::default() };
        stream.commit(&name, parent.as_deref(), message);
        change(&mut stream);
        self.import(stream);
        self.commit(&name)
    }

    /// How many commits there are.
    fn count(&self) -> u64 {
        git_out(&self.path(), &["rev-list", "--all", "--count"]).parse().unwrap()
    }

    fn import(&self, stream: Stream) {
        let mut child = git(&self.path())
            // Speed before size: these packs are read once or twice.
            .args(["-c", "core.compression=1", "fast-import", "--quiet", "--force", "--depth=0", "--date-format=raw"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A child that ends early is a broken pipe here; its own words below say why.
        let written = child.stdin.take().unwrap().write_all(&stream.bytes);
        checked("fast-import", &child.wait_with_output().unwrap());
        written.unwrap();
    }
}

/// `refs/heads/NAME`, where the name is not a full one already.
fn full(branch: &str) -> String {
    if branch.starts_with("refs/") { branch.to_owned() } else { format!("refs/heads/{branch}") }
}

/// Input of `git fast-import` (its man page has the format).
#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    minutes: u64,
}

impl Stream {
    fn commit(&mut self, name: &str, from: Option<&str>, message: &str) {
        let when = EPOCH + 60 * self.minutes;
        self.minutes += 1;
        self.line(&format!("commit {name}\nauthor {WHO} {when} +0000\ncommitter {WHO} {when} +0000"));
        self.data(message.as_bytes());
        if let Some(from) = from {
            self.line(&format!("from {from}"));
        }
    }

    fn file(&mut self, path: impl AsRef<[u8]>, content: &[u8]) {
        self.entry("100644", path, content);
    }

    fn entry(&mut self, mode: &str, path: impl AsRef<[u8]>, content: &[u8]) {
        self.line(&format!("M {mode} inline {}", quoted(path.as_ref())));
        self.data(content);
    }

    fn gitlink(&mut self, path: &str, commit: &str) {
        self.line(&format!("M 160000 {commit} {}", quoted(path.as_bytes())));
    }

    fn rename(&mut self, from: &str, to: &str) {
        self.line(&format!("R {} {}", quoted(from.as_bytes()), quoted(to.as_bytes())));
    }

    fn tag(&mut self, name: &str, from: &str, message: &str) {
        self.line(&format!("tag {name}\nfrom {from}\ntagger {WHO} {} +0000", EPOCH + 60 * self.minutes));
        self.data(message.as_bytes());
    }

    fn reset(&mut self, name: &str, from: &str) {
        self.line(&format!("reset {name}\nfrom {from}\n"));
    }

    fn line(&mut self, line: &str) {
        self.bytes.extend_from_slice(line.as_bytes());
        self.bytes.push(b'\n');
    }

    fn data(&mut self, content: &[u8]) {
        self.line(&format!("data {}", content.len()));
        self.bytes.extend_from_slice(content);
        self.bytes.push(b'\n');
    }
}

/// A path in quotes, every unusual byte in octal.
fn quoted(path: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in path {
        match byte {
            b'"' | b'\\' | ..=0x1f | 0x7f.. => text.push_str(&format!("\\{byte:03o}")),
            _ => text.push(char::from(byte)),
        }
    }
    text.push('"');
    text
}

/// `size` bytes of lines of letters that follow from `seed` (xorshift64): four bits of chance a letter, eight letters a
/// step, so that also an unoptimised build makes hundreds of megabytes in seconds.
fn words(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = Vec::with_capacity(size + 65);
    while text.len() < size {
        for _ in 0..8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let letters = (state & 0x0f0f_0f0f_0f0f_0f0f) + 0x6161_6161_6161_6161;
            text.extend_from_slice(&letters.to_le_bytes());
        }
        text.push(b'\n');
    }
    text.truncate(size);
    text
}
