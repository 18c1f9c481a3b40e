//! Whole repositories that move: exported, imported, seeded, verified and mended.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use stoker_proto::v1;

use crate::support::disk::leftovers_of_repositories;
use crate::support::repository::{TestRepo, git, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wait;

/// How long anything here may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A pool in the agent's folder, without floors, where all of 127.0.0.1 may be added. `more` goes into `repositories`.
fn configuration(more: &str) -> String {
    format!(
        "node: {{rootFloor: {{bytes: 0, inodes: 0}}}}\n\
         pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 1}}}}]\n\
         repositories:\n  refresh: 24h\n  protocols: [http]\n  add: on-demand\n  allow: [127.0.0.1]\n{more}"
    )
}

fn pool(agent: &Agent) -> PathBuf {
    agent.root().join("pool")
}

fn repositories(agent: &Agent) -> PathBuf {
    pool(agent).join("stoker/repositories")
}

/// The newest snapshot of the only repository.
fn snapshot(agent: &Agent, url: &str) -> PathBuf {
    let shown = shown(agent, url);
    let (folder, name) = (shown["folder"].as_str().unwrap(), shown["snapshot"].as_str().unwrap());
    assert!(!name.is_empty(), "{shown}");
    repositories(agent).join(folder).join("snapshots").join(name)
}

#[track_caller]
fn shown(agent: &Agent, url: &str) -> serde_json::Value {
    agent.stoker().run(["repo", "show", url, "-o", "json"]).expect_code(0).json()["repository"].clone()
}

/// Every object is there and good.
#[track_caller]
fn assert_whole(snapshot: &Path) {
    git_out(snapshot, &["fsck", "--full", "--strict", "--no-dangling"]);
}

/// The branches and tags of a repository, with what they name.
fn refs(dir: &Path) -> String {
    git_out(dir, &["for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", "refs/heads", "refs/tags"])
}

#[track_caller]
fn export(agent: &Agent, url: &str) -> PathBuf {
    let file = agent.root().join("export.tar");
    agent.stoker().run(["repo", "export", url, file.to_str().unwrap()]).expect_code(0);
    file
}

/// An agent that never saw the upstream, which is away.
fn elsewhere() -> Agent {
    Agent::start(&configuration(""))
}

#[test]
fn what_is_exported_is_imported_elsewhere_without_upstream() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(""));
    agent.stoker().run(["repo", "add", &url]).expect_code(0);
    let archive = export(&agent, &url);

    // Any tar unpacks it, and git reads it, also where nobody may write.
    let unpacked = agent.root().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    assert!(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&unpacked).status().unwrap().success());
    assert_eq!(refs(&unpacked), refs(&repo.path()));
    assert_whole(&unpacked);
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(unpacked.join("stoker-export.json")).unwrap()).unwrap();
    assert_eq!((&manifest["format"], manifest["head"].as_str()), (&1.into(), Some("ref: refs/heads/main")));
    let listing = Command::new("tar").arg("-tf").arg(&archive).output().unwrap().stdout;
    assert!(listing.starts_with(b"stoker-export.json\n"), "{}", String::from_utf8_lossy(&listing));

    upstream.stop();
    let other = elsewhere();
    let imported =
        other.stoker().run(["repo", "import", archive.to_str().unwrap(), "--pin", "-o", "json"]).expect_code(0);
    assert_eq!(imported.json()["repository"]["url"], url);
    let there = snapshot(&other, &url);
    assert_whole(&there);
    assert_eq!(refs(&there), refs(&repo.path()));
    assert_eq!(leftovers_of_repositories(&pool(&other)), Vec::<PathBuf>::new());
    let known = format!("sha:{}", repo.commit("develop"));
    let resolved = other.stoker().run(["resolve", &url, &known, "-o", "json"]).expect_code(0).json();
    assert_eq!(resolved["resolved"]["origin"], "ORIGIN_CACHE");
    assert_eq!(shown(&other, &url)["pinned"], true);

    // Upstream counts for more: it comes back with a branch forced and one gone.
    let forced = repo.force_push("develop", "v1.0", "other.txt", b"other\n");
    repo.delete_branch("feature/with-slash");
    upstream.resume();
    other.stoker().run(["repo", "refresh", &url]).expect_code(0);
    let after = snapshot(&other, &url);
    assert_eq!(refs(&after), refs(&repo.path()));
    assert_eq!(git_out(&after, &["rev-parse", "develop"]), forced);
    assert_whole(&after);

    // What the archive has is older than what upstream said since: that stays.
    other.stoker().run(["repo", "import", archive.to_str().unwrap()]).expect_code(0);
    assert_eq!(git_out(&snapshot(&other, &url), &["rev-parse", "develop"]), forced);
    assert_whole(&snapshot(&other, &url));
}

#[test]
fn bundles_and_repositories_of_this_machine_are_imported() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.stop();
    let agent = Agent::start(&configuration(""));
    let bundle = agent.root().join("project.bundle");
    git_out(&repo.path(), &["bundle", "create", "--quiet", bundle.to_str().unwrap(), "--branches", "--tags", "HEAD"]);
    let stoker = agent.stoker();
    let refused = stoker.run(["repo", "import", bundle.to_str().unwrap()]).expect_code(2);
    assert!(refused.stderr.contains("name the URL"), "{refused:?}");
    let imported = stoker.run(["repo", "import", &url, bundle.to_str().unwrap(), "-o", "json"]).expect_code(0).json();
    assert_eq!(imported["repository"]["head"], "main");
    assert_eq!(refs(&snapshot(&agent, &url)), refs(&repo.path()));
    assert_whole(&snapshot(&agent, &url));

    // Not bare, and with more than the mirror has: a fast-forward is taken.
    let place = agent.root().join("work");
    repo.clone_to(&place);
    git_out(&place, &["checkout", "--quiet", "main"]);
    std::fs::write(place.join("new.txt"), "new\n").unwrap();
    git_out(&place, &["add", "new.txt"]);
    git_out(&place, &["commit", "--quiet", "--message=New"]);
    let new = git_out(&place, &["rev-parse", "HEAD"]);
    std::fs::write(place.join(".git/hooks/post-checkout"), "#!/bin/sh\ntouch ran\n").unwrap();
    stoker.run(["repo", "import", &url, place.to_str().unwrap()]).expect_code(0);
    assert_eq!(git_out(&snapshot(&agent, &url), &["rev-parse", "main"]), new);
    let wrong = stoker.run(["repo", "import", place.to_str().unwrap()]).expect_code(64);
    assert!(wrong.stderr.contains("repo import URL"), "{wrong:?}");
    assert_eq!(leftovers_of_repositories(&pool(&agent)), Vec::<PathBuf>::new());
}

/// A tar of these files; the manifest lists them as they are, but for what `lie` changes.
fn archive(
    repo: &TestRepo,
    url: &str,
    lie: impl Fn(&mut serde_json::Value),
    extra: &[(&str, tar::EntryType)],
) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    let place = tempfile::tempdir().unwrap();
    let copy = place.path().join("copy.git");
    let cloned =
        git(Path::new("/")).args(["clone", "--quiet", "--bare", "--no-local"]).arg(repo.path()).arg(&copy).status();
    assert!(cloned.unwrap().success());
    let mut files: Vec<(String, Vec<u8>)> =
        ["HEAD", "packed-refs"].map(|name| (name.to_owned(), std::fs::read(copy.join(name)).unwrap())).to_vec();
    for entry in std::fs::read_dir(copy.join("objects/pack")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".pack") || name.ends_with(".idx") {
            files.push((format!("objects/pack/{name}"), std::fs::read(entry.path()).unwrap()));
        }
    }
    let listed = |(name, bytes): &(String, Vec<u8>)| {
        let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        serde_json::json!({"name": name, "size": bytes.len(), "sha256": sum})
    };
    let mut manifest = serde_json::json!({
        "format": 1, "url": url, "head": "ref: refs/heads/main", "refs": 1,
        "files": files.iter().map(listed).collect::<Vec<_>>(),
    });
    lie(&mut manifest);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        // `set_path` refuses what a hostile archive has.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        if kind == tar::EntryType::Symlink {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    };
    add("stoker-export.json", tar::EntryType::Regular, &manifest);
    for (name, kind) in extra {
        let bytes: &[u8] = if *kind == tar::EntryType::Regular { b"[core]\n" } else { b"" };
        add(name, *kind, bytes);
    }
    for (name, bytes) in &files {
        add(name, tar::EntryType::Regular, bytes);
    }
    builder.into_inner().unwrap()
}

#[test]
fn archives_that_lie_or_escape_leave_nothing() {
    use tar::EntryType::{Block, Link, Regular, Symlink};
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.stop();
    let agent = Agent::start(&configuration(""));
    let file = agent.root().join("archive.tar");
    let fails = |bytes: &[u8], word: &str| {
        std::fs::write(&file, bytes).unwrap();
        let output = agent.stoker().run(["repo", "import", file.to_str().unwrap()]).expect_code(2);
        assert!(output.stderr.contains(word), "{word}: {}", output.stderr);
        assert_eq!(leftovers_of_repositories(&pool(&agent)), Vec::<PathBuf>::new(), "{word}");
        let listed = agent.stoker().run(["repo", "list", "-o", "json"]).expect_code(0).json();
        assert_eq!(listed["repositories"].as_array().unwrap().len(), 0, "{word}: {listed}");
    };
    let honest = |_: &mut serde_json::Value| {};
    for (name, kind) in [
        ("../escape", Regular),
        ("/absolute", Regular),
        ("config", Regular),
        ("hooks/post-checkout", Regular),
        ("objects/info/alternates", Regular),
        ("HEAD", Symlink),
        ("HEAD", Link),
        ("device", Block),
        ("stoker-export.json", Regular),
    ] {
        fails(&archive(&repo, &url, honest, &[(name, kind)]), "ARCHIVE_INVALID");
    }
    let good = archive(&repo, &url, honest, &[]);
    fails(&good[..good.len() / 2], "ARCHIVE_INVALID");
    fails(b"", "neither an archive");
    fails(&vec![b'x'; 4096], "neither an archive");
    fails(&archive(&repo, &url, |m| m["format"] = 9.into(), &[]), "format 9");
    fails(&archive(&repo, &url, |m| m["files"][2]["sha256"] = "00".into(), &[]), "sum");
    fails(&archive(&repo, &url, |m| m["files"][2]["size"] = (1_u64 << 50).into(), &[]), "DISK_FLOOR");
    fails(&archive(&repo, &url, |m| m["files"][0]["name"] = "../HEAD".into(), &[]), "ARCHIVE_INVALID");
    let twice = |m: &mut serde_json::Value| {
        let first = m["files"][0].clone();
        m["files"].as_array_mut().unwrap().push(first);
    };
    fails(&archive(&repo, &url, twice, &[]), "twice");
    fails(&archive(&repo, "https://example.org/other", honest, &[]), "REPOSITORY_NOT_ALLOWED");
    // A tag that peels to what it is not, and a pack with a byte changed within: the sums of the manifest are right.
    let mut bent = good.clone();
    let at = bent.windows(4).position(|four| four == b"PACK").unwrap() + 200;
    bent[at] ^= 0x40;
    fails(&bent, "sum");
    // What was refused is no obstacle for what is good.
    std::fs::write(&file, &good).unwrap();
    agent.stoker().run(["repo", "import", file.to_str().unwrap()]).expect_code(0);
    assert_whole(&snapshot(&agent, &url));
}

#[test]
fn a_bad_pack_is_refused_whatever_its_sums_say() {
    use sha2::{Digest as _, Sha256};
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.stop();
    let agent = Agent::start(&configuration(""));
    // A bundle of good objects that lacks the history: a commit without its parent.
    let place = agent.root().join("cut.git");
    repo.clone_to(&place);
    let tree = git_out(&place, &["rev-parse", "HEAD^{tree}"]);
    let text =
        format!("tree {tree}\nparent {}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n", "1".repeat(40));
    let mut child = git(&place)
        .args(["hash-object", "-t", "commit", "-w", "--stdin", "--literally"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let commit = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let list = format!("{commit}{tree}\n");
    let mut child = git(&place)
        .args(["pack-objects", "--quiet", "cut"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    let name = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let pack = std::fs::read(place.join(format!("cut-{}.pack", name.trim()))).unwrap();
    let packed_refs = format!("{} refs/heads/main\n", commit.trim());
    let mut builder = tar::Builder::new(Vec::new());
    let files = [
        ("HEAD".to_owned(), b"ref: refs/heads/main\n".to_vec()),
        ("packed-refs".to_owned(), packed_refs.into_bytes()),
        (format!("objects/pack/pack-{}.pack", name.trim()), pack),
    ];
    let sum = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let listed: Vec<_> = files
        .iter()
        .map(|(name, bytes)| serde_json::json!({"name": name, "size": bytes.len(), "sha256": sum(bytes)}))
        .collect();
    let manifest = serde_json::json!({"format": 1, "url": url, "head": "", "refs": 1, "files": listed});
    let manifest = ("stoker-export.json".to_owned(), serde_json::to_vec(&manifest).unwrap());
    for (name, bytes) in [manifest].iter().chain(&files) {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    let file = agent.root().join("cut.tar");
    std::fs::write(&file, builder.into_inner().unwrap()).unwrap();
    let output = agent.stoker().run(["repo", "import", file.to_str().unwrap()]).expect_code(2);
    assert!(output.stderr.contains("REPOSITORY_CORRUPT"), "{}", output.stderr);
    assert_eq!(leftovers_of_repositories(&pool(&agent)), Vec::<PathBuf>::new());
}

#[test]
fn a_seed_is_taken_first_and_only_the_rest_is_fetched() {
    let repo = TestRepo::generated(400, 2 << 20, 3);
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(""));
    agent.stoker().run(["repo", "add", &url]).expect_code(0);
    let archive = export(&agent, &url);
    let seeds = tempfile::tempdir().unwrap();
    let seed = seeds.path().join("project");
    std::fs::create_dir(&seed).unwrap();
    assert!(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&seed).status().unwrap().success());
    upstream.stop();

    // Without upstream the seed serves.
    let seeded = format!("  seeds: [{}]\n  mirrors: [{{url: \"{url}\"}}]\n", seeds.path().display());
    let other = Agent::start(&configuration(&seeded));
    let filled = || !shown(&other, &url)["snapshot"].as_str().unwrap().is_empty();
    wait::until(LIMIT, "the seed is imported", filled);
    assert_eq!(refs(&snapshot(&other, &url)), refs(&repo.path()));

    // With it, only what is newer comes.
    let new = repo.commit_file("main", "new.txt", b"new\n");
    upstream.resume();
    upstream.reset();
    other.stoker().run(["repo", "refresh", &url]).expect_code(0);
    let after = snapshot(&other, &url);
    assert_eq!(git_out(&after, &["rev-parse", "main"]), new);
    assert_whole(&after);
    let packs = std::fs::read_dir(after.join("objects/pack")).unwrap().flatten();
    let mut sizes: Vec<u64> = packs
        .filter(|file| file.path().extension().is_some_and(|e| e == "pack"))
        .map(|f| f.metadata().unwrap().len())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes.len(), 2);
    assert!(sizes[0] < sizes[1] / 20, "only the rest was fetched: {sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_breaks_or_is_killed_leaves_nothing() {
    use v1::import_repository_request::Part;
    let repo = TestRepo::generated(400, 2 << 20, 2);
    let (upstream, url) = Upstream::of(&repo);
    upstream.stop();
    let mut agent = Agent::start(&configuration(""));
    let bytes = archive(&repo, &url, |_| {}, &[]);
    let message = |part| v1::ImportRepositoryRequest { part: Some(part) };
    for killed in [false, true] {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut client = agent.repository().await;
        let call = tokio::spawn(async move {
            client.import_repository(tokio_stream::wrappers::ReceiverStream::new(receiver)).await
        });
        let target = v1::ImportTarget { url: url.clone(), ..Default::default() };
        sender.send(message(Part::Target(target))).await.unwrap();
        for chunk in bytes[..bytes.len() / 2].chunks(64 << 10) {
            sender.send(message(Part::Chunk(chunk.to_vec()))).await.unwrap();
        }
        wait::until_async(LIMIT, "it is being received", async || !leftovers_of_repositories(&pool(&agent)).is_empty())
            .await;
        if killed {
            agent.restart();
        } else {
            drop(sender);
            let status = call.await.unwrap().unwrap_err();
            assert!(status.message().contains("cut off") || status.message().contains("end"), "{status:?}");
        }
        wait::until_async(LIMIT, "nothing is left", async || leftovers_of_repositories(&pool(&agent)).is_empty()).await;
        let listed = agent.stoker().run(["repo", "list", "-o", "json"]).expect_code(0).json();
        assert_eq!(listed["repositories"].as_array().unwrap().len(), 0, "{listed}");
    }
}

/// The packs of a snapshot or store.
fn packs(repository: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(repository.join("objects/pack")).unwrap().flatten().map(|file| file.path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "pack")).collect()
}

/// Writes into the middle of a file, through every name that it has.
fn rot(file: &Path) {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = std::fs::File::options().write(true).open(file).unwrap();
    let middle = open.metadata().unwrap().len() / 2;
    open.write_all_at(&[0xff; 64], middle).unwrap();
}

fn heals(agent: &Agent, url: &str) -> Vec<(String, String)> {
    let heals = shown(agent, url)["heals"].as_array().unwrap().clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    heals.iter().map(|heal| (text(&heal["step"]), text(&heal["count"]))).collect()
}

#[test]
fn verify_finds_and_mends_what_is_wrong() {
    let repo = TestRepo::generated(200, 1 << 20, 2);
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&format!(
        "listen: {{socket: $ROOT/run/stoker.sock, http: {{address: \"127.0.0.1:$PORT\"}}}}\n{}",
        configuration("")
    ));
    let stoker = agent.stoker();
    stoker.run(["repo", "add", &url]).expect_code(0);
    let verify = |args: &[&str], code| {
        let output = stoker.run([&["repo", "verify", &url, "-o", "json"], args].concat()).expect_code(code);
        output.json()["findings"].as_array().unwrap().clone()
    };
    for full in [&[][..], &["--full"]] {
        assert_eq!(verify(full, 0), Vec::<serde_json::Value>::new());
    }

    // Rot in the middle of a pack, which snapshot and store share: only a full look sees it.
    let before = snapshot(&agent, &url);
    rot(&packs(&before)[0]);
    assert_eq!(verify(&[], 0), Vec::<serde_json::Value>::new());
    let findings = verify(&["--full"], 0);
    assert!(findings.iter().any(|finding| finding["subject"] == "store"), "{findings:?}");
    assert!(findings.iter().all(|finding| finding["action"] != ""), "{findings:?}");
    let after = snapshot(&agent, &url);
    assert_ne!(after, before);
    assert_whole(&after);
    assert_eq!(refs(&after), refs(&repo.path()));
    assert_eq!(heals(&agent, &url), [("repair".to_owned(), "1".to_owned())]);
    let (_, metrics) = agent.http_get("/metrics").unwrap();
    assert!(metrics.contains("stoker_repository_heals_total{step=\"repair\"} 1"), "{metrics}");
    assert_eq!(verify(&["--full"], 0), Vec::<serde_json::Value>::new());

    // An index that is gone, while upstream is away: it is made anew from its pack.
    upstream.stop();
    let store = agent.root().join("pool/stoker/stores");
    let store = std::fs::read_dir(store).unwrap().next().unwrap().unwrap().path().join("store.git");
    std::fs::remove_file(packs(&store)[0].with_extension("idx")).unwrap();
    let findings = verify(&[], 0);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0]["problem"].as_str().unwrap().contains("has no index"), "{findings:?}");
    assert_eq!(heals(&agent, &url), [("repair".to_owned(), "2".to_owned())]);
    assert_whole(&store_with_head(&store));

    // A pack that is gone, while upstream is away: nothing can be done, and nothing is thrown away.
    std::fs::remove_file(&packs(&store)[0]).unwrap();
    let findings = verify(&[], 1);
    assert!(
        findings.iter().any(|finding| finding["action"].as_str().unwrap().starts_with("nothing yet")),
        "{findings:?}"
    );
    assert_whole(&snapshot(&agent, &url));
    upstream.resume();
    stoker.run(["repo", "refresh", &url]).expect_code(0);
    assert_eq!(verify(&["--full"], 0), Vec::<serde_json::Value>::new());
    assert_whole(&snapshot(&agent, &url));
}

/// A store's HEAD names nothing, which git takes for damage: the same objects under another HEAD.
fn store_with_head(store: &Path) -> PathBuf {
    let copy = store.with_file_name("checked.git");
    assert!(Command::new("cp").arg("-r").arg(store).arg(&copy).status().unwrap().success());
    std::fs::write(copy.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    copy
}

#[test]
fn a_snapshot_that_is_cut_off_serves_nobody_after_a_start_or_a_look() {
    let repo = TestRepo::generated(200, 1 << 20, 2);
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = Agent::start(&configuration("  check: 1s\n"));
    agent.stoker().run(["repo", "add", &url]).expect_code(0);
    let cut = |agent: &Agent| {
        let pack = packs(&snapshot(agent, &url)).remove(0);
        let open = std::fs::File::options().write(true).open(&pack).unwrap();
        open.set_len(open.metadata().unwrap().len() / 2).unwrap();
    };
    for by_start in [false, true] {
        let before = snapshot(&agent, &url);
        if by_start {
            agent.kill9();
            let pack = packs(&before).remove(0);
            let open = std::fs::File::options().write(true).open(&pack).unwrap();
            open.set_len(open.metadata().unwrap().len() / 2).unwrap();
            agent.launch();
            agent.wait_ready();
        } else {
            cut(&agent);
        }
        let mended = || {
            let now = shown(&agent, &url);
            let name = now["snapshot"].as_str().unwrap();
            !name.is_empty() && !before.ends_with(name) && now["state"] == "REPOSITORY_STATE_READY"
        };
        wait::until(LIMIT, "another snapshot serves", mended);
        assert_whole(&snapshot(&agent, &url));
        assert!(!heals(&agent, &url).is_empty());
    }
}
