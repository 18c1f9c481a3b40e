//! Build specs in Nickel, evaluated by the real `stoker-nickel` at a real commit.

use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

const SPEC: &str = ".build-spec.ncl";

/// Ends the test where the program was not built.
macro_rules! needs_nickel {
    () => {
        match program() {
            Some(program) => program,
            None => {
                assert!(std::env::var_os("CI").is_none(), "this test needs stoker-nickel, and CI skips nothing");
                eprintln!("not run: it needs stoker-nickel, `.ci/run nickel` builds it");
                return;
            }
        }
    };
}

/// Where `.ci/run nickel` puts it: beside the agent.
fn program() -> Option<PathBuf> {
    Some(Path::new(env!("CARGO_BIN_EXE_stoker")).with_file_name("stoker-nickel")).filter(|path| path.is_file())
}

/// An agent, and an upstream whose branches each have a build spec in Nickel.
struct World {
    agent: Agent,
    repo: TestRepo,
    url: String,
    _upstream: Upstream,
}

impl World {
    fn new(nickel: &str) -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let agent = start(&format!("{}sizing: {{nickel: {{{nickel}}}}}\n", configuration(PLAIN, &[])));
        Self { agent, repo, url, _upstream: upstream }
    }

    async fn admit(&self, source: &str) -> Answer {
        let commit = self.repo.commit_file("main", SPEC, source.as_bytes());
        let build = v1::Build { source: Some(super::commit(&self.url, &commit)), ..Default::default() };
        let request = v1::AdmitRequest { request_id: commit, build: Some(build), ..Default::default() };
        admit(&self.agent, request).await.unwrap()
    }

    /// Why a spec is refused: the code, and what is said.
    async fn refused(&self, source: &str) -> (v1::reason::Code, String) {
        let rejected = self.admit(source).await.rejected();
        let [reason] = rejected.reasons.try_into().expect("one reason");
        assert_eq!(reason.subject, SPEC);
        (reason.code(), reason.message)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nickel_is_evaluated_and_its_fields_are_declared() {
    needs_nickel!();
    let world = World::new("");
    let spec = "# Twice as much as one core needs.\nlet cores = 2 in\n{\n  schema_version = 1,\n  cpu | Number = cores * 2,\n  memory_gb = cores * 1.5,\n  time_budget_min = 20,\n  cache_keys = [\"cargo\"],\n}\n";
    let lease = world.admit(spec).await.granted();
    let sizing = lease.sizing.unwrap();
    let size = sizing.size.unwrap();
    assert_eq!(
        (size.cpu_millis, size.memory_bytes, size.time_budget),
        (Some(4000), Some(3 * GIB), Some(seconds(1200)))
    );
    let memory = sizing.basis.iter().find(|basis| basis.resource() == v1::Resource::Memory).unwrap();
    assert_eq!((memory.tier(), &*memory.file, memory.line), (v1::Tier::Spec, SPEC, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn nickel_that_is_wrong_is_refused_with_its_line_and_nothing_of_its_text() {
    needs_nickel!();
    let world = World::new("");
    for (spec, said) in [
        ("{\n  schema_version = 1,\n  cpu = 100 + 200,\n}", ":3: cpu: 300 is out of range, allowed is (0, 256]"),
        ("{\n  schema_version = 1,\n  cpus = 4,\n}", ":3: cpus: is not a field; there are schema_version, cpu,"),
        ("{\n  cpu = 4,\n}", ": schema_version: is missing; write 1"),
        ("{\n  schema_version = 1,\n  cpu = \"4\",\n}", ":3: cpu: is the text \"4\", allowed is a number in (0, 256]"),
        ("{\n  schema_version = 1,\n  cpu = = 4,\n}", ":3: syntax error"),
        ("{\n  schema_version = 1,\n  cpu = hunter2,\n}", ":3: an unknown name"),
        ("{\n  schema_version = 1,\n  cpu | String = 4,\n}", ":3: a contract is broken"),
        ("{\n  schema_version = 1,\n  cpu = cpu,\n}", "infinite recursion"),
        ("\"text\"", ": it is not a record of fields"),
        (
            "{\n  schema_version = 1,\n  cpu = import \"/etc/passwd\",\n}",
            ":3: import: a build spec is one file and reads no other",
        ),
        ("{\n  schema_version = 1,\n} & (import \"other.ncl\")", ":3: import: a build spec is one file"),
    ] {
        let (code, message) = world.refused(spec).await;
        assert_eq!(code, v1::reason::Code::SpecInvalid, "{spec}: {message}");
        assert!(message.starts_with(SPEC) && message.contains(said), "{spec}: {message}");
        assert!(!message.contains("hunter2") && !message.contains("root:"), "{message}");
    }
}

/// What has no end is ended within its limits; meanwhile, and afterwards, the agent answers.
#[tokio::test(flavor = "multi_thread")]
async fn nickel_without_end_is_ended_within_its_limits_and_the_agent_goes_on() {
    needs_nickel!();
    let world = World::new("memory: 256MiB, cpuTime: 3s");
    let deep = format!("{{ schema_version = 1, cpu = {}1{} }}", "[".repeat(30_000), "]".repeat(30_000));
    let endless = [
        ("let rec f = fun x => if x > 0 then f (x + 1) else 1 in { schema_version = 1, cpu = f 1 }", "of CPU"),
        ("let rec f = fun x => f (x ++ x) in { schema_version = 1, cpu = f \"grows\" }", "of memory"),
        ("let rec f = fun x => [f x, f x] in { schema_version = 1, cpu = f 1 }", ""),
        (&*deep, "nested too deep"),
    ];
    for (spec, said) in endless {
        let began = Instant::now();
        let (code, message) = world.refused(spec).await;
        assert_eq!(code, v1::reason::Code::SpecInvalid, "{message}");
        assert!(message.starts_with(".build-spec.ncl: takes more than ") && message.contains(said), "{message}");
        assert!(began.elapsed() < LIMIT / 2, "after {:?}", began.elapsed());
        // The same commit is not evaluated again.
        let again = Instant::now();
        world.refused_again(spec).await;
        assert!(again.elapsed() < began.elapsed() + Duration::from_secs(3), "after {:?}", again.elapsed());
    }
    let lease = world.admit("{ schema_version = 1, cpu = 1 }").await.granted();
    assert_eq!(lease.sizing.unwrap().size.unwrap().cpu_millis, Some(1000));
    let status = status(&world.agent).await;
    assert!(gate_is(&status, v1::GateState::Open) && status.alarms.is_empty(), "{status:?}");
}

impl World {
    /// Asked once more for the commit that is there.
    async fn refused_again(&self, spec: &str) {
        let build = v1::Build { source: Some(branch(&self.url, "main")), ..Default::default() };
        let request_id = format!("again-{}", spec.len());
        let request = v1::AdmitRequest { request_id, build: Some(build), ..Default::default() };
        admit(&self.agent, request).await.unwrap().rejected();
    }
}

/// Where it is not installed the file is refused by name, with what to do; and once it is there, it is used.
#[tokio::test(flavor = "multi_thread")]
async fn nickel_is_refused_by_name_where_its_program_is_missing() {
    let world = World::new("program: $ROOT/stoker-nickel");
    let (code, message) = world.refused("{ schema_version = 1, cpu = 1 }").await;
    let place = world.agent.root().join("stoker-nickel");
    let said = format!(
        ".build-spec.ncl: needs stoker-nickel, which is not installed: put it at {}, name it in \
         `sizing.nickel.program`, or write .build-spec.yaml",
        place.display()
    );
    assert_eq!((code, message), (v1::reason::Code::SpecUnevaluated, said));
    let told = format!("there is no stoker-nickel that starts at {}: .build-spec.ncl is refused", place.display());
    let examined = world.agent.stoker().run(["doctor"]).expect_code(1).stdout;
    let examined = examined.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(examined.contains(&told) && examined.contains("install stoker-nickel there"), "{examined}");

    let program = needs_nickel!();
    symlink(program, place).unwrap();
    let build = v1::Build { source: Some(branch(&world.url, "main")), ..Default::default() };
    let request = v1::AdmitRequest { request_id: "installed".into(), build: Some(build), ..Default::default() };
    let lease = admit(&world.agent, request).await.unwrap().granted();
    assert_eq!(lease.sizing.unwrap().size.unwrap().cpu_millis, Some(1000));
}

/// A program in the place of `stoker-nickel` that notes each start of it and says `answer` once it may.
fn stand_in(agent: &Agent, answer: &str) {
    let (program, root) = (agent.root().join("stoker-nickel"), agent.root().display());
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\necho start >>{root}/nickel.log\nwhile [ ! -e {root}/go ]; do /bin/sleep 0.02; done\n\
         echo end >>{root}/nickel.log\n{answer}\n"
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn noted(agent: &Agent, word: &str) -> usize {
    let text = std::fs::read_to_string(agent.root().join("nickel.log")).unwrap_or_default();
    text.lines().filter(|line| *line == word).count()
}

/// Many who ask for one commit wait for one evaluation; of many commits two are evaluated at once; and what was found is
/// not looked for again.
#[tokio::test(flavor = "multi_thread")]
async fn nickel_is_evaluated_once_a_commit_and_twice_at_once() {
    let world = World::new("program: $ROOT/stoker-nickel, cpuTime: 60s");
    let agent = &world.agent;
    std::fs::write(agent.root().join("nickel.log"), "").unwrap();
    // What evaluates may be a user of its own.
    std::fs::set_permissions(agent.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    stand_in(
        agent,
        r#"echo '{"fields": [{"name": "schema_version", "line": 1, "value": 1}, {"name": "cpu", "line": 2, "value": 1}]}'"#,
    );
    let commits: Vec<String> =
        (0..4).map(|n| world.repo.commit_file("main", SPEC, format!("spec {n}").as_bytes())).collect();
    let ask = async |commit: String, number: usize| {
        // All of them have room.
        let declared = Some(v1::Size { disk_bytes: Some(MIB), memory_bytes: Some(MIB), ..Default::default() });
        let source = Some(super::commit(&world.url, &commit));
        let build = v1::Build { source, declared, ..Default::default() };
        let request_id = format!("{commit}-{number}");
        let lease = admit(agent, v1::AdmitRequest { request_id, build: Some(build), ..Default::default() }).await;
        assert_eq!(lease.unwrap().granted().sizing.unwrap().size.unwrap().cpu_millis, Some(1000));
    };
    let all = commits.iter().flat_map(|commit| (0..2).map(|number| ask(commit.clone(), number)));
    let asked = futures_util::future::join_all(all);
    let looked = async {
        wait::until_async(LIMIT, "two are evaluated", async || noted(agent, "start") == 2).await;
        // A third would be there by now, for all eight ask at once.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!((noted(agent, "start"), noted(agent, "end")), (2, 0));
        std::fs::write(agent.root().join("go"), "").unwrap();
    };
    tokio::join!(asked, looked);
    assert_eq!((noted(agent, "start"), noted(agent, "end")), (4, 4), "one evaluation a commit");
    ask(commits[0].clone(), 9).await;
    assert_eq!(noted(agent, "start"), 4, "what was found is known");
}

/// One that says more than a spec can is not listened to any longer, and not asked again.
#[tokio::test(flavor = "multi_thread")]
async fn nickel_that_says_too_much_is_refused_and_not_evaluated_again() {
    let world = World::new("program: $ROOT/stoker-nickel");
    let agent = &world.agent;
    std::fs::write(agent.root().join("go"), "").unwrap();
    std::fs::set_permissions(agent.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    stand_in(agent, "while echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; do :; done");
    let (code, message) = world.refused("endless").await;
    assert_eq!((code, &*message), (v1::reason::Code::SpecInvalid, ".build-spec.ncl: says more than 1048576 bytes"));
    world.refused_again("endless").await;
    assert_eq!(noted(agent, "start"), 1);
}
