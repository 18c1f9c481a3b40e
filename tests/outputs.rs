//! Outputs from the build that leaves them to the one who downloads them, also where the build is hostile.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use serde_json::Value;

use crate::support::repository::TestRepo;
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wait;

const CONFIGURATION: &str = "
listen: {socket: $ROOT/run/stoker.sock, http: {address: \"127.0.0.1:$PORT\"}}
pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 10}}]
repositories: {add: on-demand, allow: [127.0.0.1], protocols: [http]}
node: {rootFloor: {bytes: 0, inodes: 0}}
";
const LIMIT: Duration = Duration::from_secs(60);

/// `stoker ARGS -o json` at this agent.
#[track_caller]
fn asked(agent: &Agent, args: &[&str]) -> Value {
    agent.stoker().run(args.iter().chain(&["-o", "json"])).expect_code(0).json()
}

/// Runs a build through `stoker run`; gives the id of its output once that is counted.
#[track_caller]
fn built(agent: &Agent, url: &str, script: &str) -> String {
    let socket = agent.socket();
    let socket = socket.to_str().unwrap();
    let args = ["--socket", socket, "run", "--repo", url, "--tenant", "red", "--", "sh", "-ec"];
    let told = agent.stoker().command(args.iter().chain(&[script])).deadline(LIMIT).run().expect_code(0).stderr;
    let outputs = || asked(agent, &["output", "list", "--tenant", "red"])["outputs"].as_array().unwrap().clone();
    wait::until(LIMIT, "the output is counted, and how its build ended is known", || {
        let outputs = outputs();
        let whole = |output: &Value| !output["files"].is_null() && output["outcome"] == "OUTCOME_SUCCEEDED";
        outputs.last().is_some_and(whole)
    });
    let id = outputs().last().unwrap()["id"].as_str().unwrap().to_owned();
    assert!(told.contains(&format!("all removed but output {id}")), "{told}");
    id
}

/// `GET PATH`: the status, the head and the body as bytes.
#[track_caller]
fn get(agent: &Agent, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.http_port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head, answer[end + 4..].to_vec())
}

/// The entries of a tar: name, kind, content or target.
fn untarred(bytes: &[u8]) -> Vec<(Vec<u8>, tar::EntryType, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let mut all = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (name, kind) = (entry.path_bytes().to_vec(), entry.header().entry_type());
        let mut content = entry.link_name_bytes().map(|target| target.to_vec()).unwrap_or_default();
        entry.read_to_end(&mut content).unwrap();
        all.push((name, kind, content));
    }
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

#[test]
fn what_a_build_leaves_is_listed_downloaded_and_released_across_a_kill() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = Agent::start(CONFIGURATION);
    let id = built(
        &agent,
        &url,
        "mkdir \"$STOKER_OUT/deep\"; seq 1000 > \"$STOKER_OUT/build.log\"; \
                                  echo image > \"$STOKER_OUT/deep/image\"",
    );
    let output = asked(&agent, &["output", "show", &id])["output"].clone();
    assert_eq!((&output["commit"], &output["scope"]["tenant"]), (&repo.commit("main").into(), &"red".into()));
    assert_eq!((&output["files"], &output["bytes"]), (&"2".into(), &"3899".into()), "{output}");
    assert_eq!((&output["released"], &output["rule"]), (&false.into(), &"outputs.retention (14 d)".into()));
    assert_eq!(asked(&agent, &["output", "list", "--tenant", "blue"])["outputs"], Value::Array(Vec::new()));

    agent.restart();
    let log: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    let at = |path: &str| format!("/outputs/{id}/{path}");
    let (code, head, body) = get(&agent, &at("build.log"), "");
    assert_eq!((code, body.as_slice()), (200, log.as_bytes()));
    assert!(head.contains("content-length: 3893") && head.contains("content-type: text/plain"), "{head}");
    let (code, head, body) = get(&agent, &at("build.log"), "Range: bytes=3889-\r\n");
    assert_eq!((code, body.as_slice()), (206, b"000\n".as_slice()), "{head}");
    assert!(head.contains("content-range: bytes 3889-3892/3893"), "{head}");
    assert_eq!(get(&agent, &at("build.log"), "Range: bytes=4000-\r\n").0, 416);
    assert_eq!(String::from_utf8(get(&agent, &at(""), "").2).unwrap(), "build.log\ndeep/\n");
    assert_eq!(get(&agent, &at("deep"), "").0, 308);
    let (code, head, body) = get(&agent, &at("?tar"), "");
    assert!(code == 200 && head.contains("application/x-tar"), "{head}");
    let names: Vec<Vec<u8>> = untarred(&body).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, [b"build.log".as_slice(), b"deep", b"deep/image"]);
    for (path, code) in [("missing", 404), ("build.log?tar", 400), ("%zz", 400), ("..%2f..", 404)] {
        assert_eq!(get(&agent, &at(path), "").0, code, "{path}");
    }
    assert_eq!(get(&agent, "/outputs/none/", "").0, 404);

    let released = asked(&agent, &["output", "release", &id])["output"].clone();
    assert_eq!((&released["released"], &released["expiresAt"]), (&true.into(), &Value::Null), "{released}");
    agent.restart();
    assert_eq!(asked(&agent, &["output", "show", &id])["output"]["released"], true);
    asked(&agent, &["output", "delete", &id]);
    assert_eq!(get(&agent, &at("build.log"), "").0, 404);
    agent.stoker().run(["output", "show", &id]).expect_code(2);
}

#[test]
fn a_hostile_output_leads_nowhere_and_breaks_nothing() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(CONFIGURATION);
    let id = built(
        &agent,
        &url,
        "cd \"$STOKER_OUT\"; ln -s /etc/passwd passwd; ln -s /etc etc; ln -s .. up; mkfifo pipe; \
         echo 1 > \"$(printf 'new\\nline')\"; echo 2 > '\"><script>alert(1)'; echo 3 > \"$(printf 'caf\\351')\"; \
         mkdir '%2e%2e'; echo 4 > '%2e%2e/x'; echo 5 > -rf",
    );
    let at = |path: &str| format!("/outputs/{id}/{path}");
    for path in ["passwd", "etc/passwd", "up/", "up/x", "%2e%2e/", "..%2f", "%2e%2e/%2e%2e/state/lock", "etc/"] {
        let (code, _, body) = get(&agent, &at(path), "");
        assert_eq!(code, 404, "{path}: {}", String::from_utf8_lossy(&body));
    }
    assert_eq!(get(&agent, &at("pipe"), "").0, 403, "and nobody waits for a writer");
    for (path, content) in [
        ("new%0Aline", "1\n"),
        ("%22%3E%3Cscript%3Ealert%281%29", "2\n"),
        ("caf%E9", "3\n"),
        ("%252e%252e/x", "4\n"),
        ("-rf", "5\n"),
    ] {
        let (code, head, body) = get(&agent, &at(path), "");
        assert_eq!((code, body.as_slice()), (200, content.as_bytes()), "{path} {head}");
        assert!(head.contains("application/octet-stream") && head.contains("nosniff"), "{head}");
    }
    let text = String::from_utf8(get(&agent, &at(""), "").2).unwrap();
    assert!(text.lines().all(|line| !line.contains(['"', '<', ' '])) && text.contains("new%0Aline\n"), "{text}");
    let html = String::from_utf8(get(&agent, &at(""), "Accept: text/html\r\n").2).unwrap();
    assert!(!html.contains("<script") && html.contains("passwd → /etc/passwd"), "{html}");
    let entries = untarred(&get(&agent, &at("?tar"), "").2);
    let find = |name: &[u8]| entries.iter().find(|(other, ..)| other == name).unwrap_or_else(|| panic!("{entries:?}"));
    assert_eq!((find(b"passwd").1, find(b"passwd").2.as_slice()), (tar::EntryType::Symlink, b"/etc/passwd".as_slice()));
    assert_eq!(find(b"caf\xe9").2, b"3\n");
    assert_eq!(find(b"new\nline").2, b"1\n");
    assert!(!entries.iter().any(|(name, ..)| name == b"pipe"), "{entries:?}");
    assert_eq!(OsStr::from_bytes(&find(b"etc").2), "/etc");
}

#[test]
fn time_takes_an_output_and_the_status_says_so() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = Agent::start(&format!("{CONFIGURATION}outputs: {{rules: [{{tenant: red, keep: 1h}}]}}\n"));
    let id = built(&agent, &url, "echo x > \"$STOKER_OUT/x\"");
    let plan = asked(&agent, &["plan"]);
    assert_eq!((&plan["now"], &plan["next"][0]["id"]), (&Value::Array(Vec::new()), &id.as_str().into()), "{plan}");
    assert_eq!(plan["next"][0]["reason"]["code"], "RETENTION_OVER");
    assert_eq!(asked(&agent, &["status"])["status"]["retention"]["lastRemovedAt"], Value::Null);

    // As if an hour had passed: the record says when it goes.
    agent.kill9();
    let record = agent.root().join(format!("pool/stoker/outputs/{id}.json"));
    let text = std::fs::read_to_string(&record).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["expires_at"] = 1.into();
    std::fs::write(&record, json.to_string()).unwrap();
    std::fs::create_dir(agent.root().join("pool/stoker/unknown")).unwrap();
    agent.launch();
    agent.wait_ready();
    let status = || asked(&agent, &["status"])["status"].clone();
    wait::until(LIMIT, "the output goes", || status()["retention"]["lastRemoved"] == "1");
    assert!(!record.exists() && !record.with_extension("").exists());
    let status = status();
    assert_eq!(status["retention"]["orphans"], "1", "{status}");
    assert_eq!(status["alarms"][0]["code"], "ORPHAN");
    let told = agent.stoker().run(["doctor"]).expect_code(1).stdout;
    assert!(told.contains("stoker/unknown"), "{told}");
    let (code, metrics) = agent.http_get("/metrics").unwrap();
    assert!(code == 200 && metrics.contains("stoker_retention_removed 1"), "{metrics}");
}
