//! The image that `daemonset/image/build` makes: its parts are whole, the same files give the same bytes, and it runs
//! with nothing of this machine in sight.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::free_port;
use crate::support::repository::TestRepo;
use crate::support::stoker::BINARY;
use crate::support::upstream::Upstream;

/// Runs a command to its end and gives what it wrote.
#[track_caller]
fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// The shell's words, with a folder as `$1`.
#[track_caller]
fn shell(script: &str, folder: &Path) -> String {
    ran(Command::new("sh").args(["-euc", script, "sh"]).arg(folder))
}

/// An archive of the binaries under test.
fn build(to: &Path) -> Vec<u8> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/image/build");
    let binaries = Path::new(BINARY).parent().unwrap();
    let mut command = Command::new(script);
    command.arg("--binaries").arg(binaries).arg("--output").arg(to).args(["--strip", "--revision", "a-commit"]);
    let said = ran(command.env_remove("SOURCE_DATE_EPOCH"));
    assert!(said.starts_with("stoker:0.1.0 sha256:"), "{said}");
    std::fs::read(to).unwrap()
}

/// A JSON document that a descriptor names; its size is as the descriptor has it.
fn document(layout: &Path, descriptor: &Value) -> Value {
    let content = std::fs::read(blob(layout, descriptor)).unwrap();
    assert_eq!(content.len() as u64, descriptor["size"].as_u64().unwrap());
    serde_json::from_slice(&content).unwrap()
}

fn blob(layout: &Path, descriptor: &Value) -> std::path::PathBuf {
    layout.join("blobs/sha256").join(descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())
}

/// Reads the layout as a container runtime does, and unpacks its layers below `root`; gives the configuration.
fn unpack(layout: &Path, root: &Path) -> Value {
    let names = shell("cd \"$1/blobs/sha256\" && sha256sum *", layout);
    for line in names.lines() {
        let (digest, name) = line.split_once("  ").unwrap();
        assert_eq!(digest, name, "a blob is called by what is in it");
    }
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    assert_eq!(std::fs::read_to_string(layout.join("oci-layout")).unwrap(), "{\"imageLayoutVersion\": \"1.0.0\"}");
    let manifest = document(layout, &index["manifests"][0]);
    let configuration = document(layout, &manifest["config"]);
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(names.lines().count(), layers.len() + 2, "nothing is there that nothing names");
    let diffs = configuration["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diffs.len(), layers.len());
    for (layer, diff) in layers.iter().zip(diffs) {
        let file = blob(layout, layer);
        assert_eq!(file.metadata().unwrap().len(), layer["size"].as_u64().unwrap());
        assert_eq!(format!("sha256:{}", shell("gzip -dc \"$1\" | sha256sum | cut -d ' ' -f 1", &file).trim()), *diff);
        ran(Command::new("tar").arg("--directory").arg(root).arg("-xzf").arg(&file));
    }
    configuration
}

/// What a machine of its own would see: a root without this one's files, processes or devices.
const INSIDE: &str = r#"
mount -t proc proc "$1/proc"
mkdir "$1/dev"
mount -t tmpfs tmpfs "$1/dev"
mknod -m 666 "$1/dev/null" c 1 3
mknod -m 666 "$1/dev/urandom" c 1 9
exec chroot "$1" /bin/sh -eu /tmp/inside
"#;

#[test]
fn an_image_is_whole_the_same_each_time_and_runs_with_nothing_of_this_machine() {
    let place = tempfile::tempdir().unwrap();
    let (layout, root) = (place.path().join("layout"), place.path().join("root"));
    let archive = place.path().join("stoker.tar");
    let first = build(&archive);
    assert!(first == build(&place.path().join("again.tar")), "the same files give another archive");
    std::fs::create_dir(&layout).unwrap();
    std::fs::create_dir(&root).unwrap();
    ran(Command::new("tar").arg("--directory").arg(&layout).arg("-xf").arg(&archive));
    let configuration = unpack(&layout, &root);
    let its = &configuration["config"];
    assert_eq!((&its["User"], &its["Entrypoint"][0]), (&"65532:65532".into(), &"/usr/bin/stoker".into()));
    assert_eq!(its["Labels"]["org.opencontainers.image.version"], "0.1.0");
    assert_eq!(its["Labels"]["org.opencontainers.image.revision"], "a-commit");
    assert_eq!(configuration["created"], "1970-01-01T00:00:00Z");
    let certificates = std::fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(certificates.matches("BEGIN CERTIFICATE").count() > 50);
    assert!(std::fs::read_to_string(root.join("etc/passwd")).unwrap().contains("stoker:x:65532:65532:"));
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root starts an image without a container runtime");
        return;
    }
    runs(&root);
}

/// Starts what is unpacked, and asks it for a repository of an upstream.
fn runs(root: &Path) {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let port = free_port();
    std::fs::write(
        root.join("etc/stoker/agent.yaml"),
        format!(
            "apiVersion: stoker.build/v1\nkind: AgentConfig\nstate: /var/lib/stoker\n\
             node: {{reserve: {{cpu: 100m, memory: 64MiB}}, rootFloor: {{bytes: 1MiB, inodes: 1}}}}\n\
             pools: [{{name: data, path: /var/mnt/data, mount: optional, floor: {{bytes: 1MiB, inodes: 1}}}}]\n\
             repositories: {{add: on-demand, allow: [127.0.0.1], protocols: [http]}}\n\
             listen: {{socket: /run/stoker/stoker.sock, http: {{address: \"127.0.0.1:{port}\"}}}}\n"
        ),
    )
    .unwrap();
    let served = format!("http://127.0.0.1:{port}/git/{}", url.strip_prefix("http://").unwrap());
    // The steps of the examples run in this image, by its own shell.
    let steps = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/examples/steps");
    ran(Command::new("cp").arg("-R").arg(steps).arg(root.join("steps")));
    let script = format!(
        "stoker agent --config /etc/stoker/agent.yaml >/tmp/log 2>&1 &\n\
         agent=$!\n\
         trap 'cat /tmp/log >&2; kill $agent' EXIT\n\
         ready() {{ wget -q -O /dev/null http://127.0.0.1:{port}/readyz 2>/dev/null; }}\n\
         for i in $(seq 300); do ready && break; sleep 0.1; done\n\
         tell() {{ name=$1; shift; \"$@\" 2>&1 | sed \"s|^|$name: |\"; }}\n\
         tell root ls -1 /\n\
         tell stoker stoker --version\n\
         tell git git --version\n\
         tell ssh ssh -V\n\
         tell lfs git lfs version\n\
         tell refs git ls-remote {url} refs/heads/main\n\
         tell tls git ls-remote https://127.0.0.1:1/a/b || true\n\
         tell added stoker repo add {url}\n\
         git clone -q {served} /tmp/clone\n\
         tell clone git -C /tmp/clone rev-parse HEAD\n\
         export STOKER_HTTP=http://127.0.0.1:{port} REPO={url} REF_TYPE=branch REF_VALUE=main\n\
         SRC=/tmp/src tell sources sh /steps/sources.sh\n\
         RESULT=/tmp/result REQUEST_ID=a CPU=100m MEMORY=32MiB DISK=1MiB tell admit sh /steps/admit.sh\n\
         tell admitted cat /tmp/result/commit\n\
         echo\n\
         LEASE=$(cat /tmp/result/lease) EXIT_CODE=0 tell release sh /steps/release.sh\n\
         tell run stoker run --repo {url} --cpu 100m --memory 32MiB --disk 1MiB -- git rev-parse HEAD\n\
         tell processes ls -1 /proc/1/root/\n"
    );
    std::fs::write(root.join("tmp/inside"), script).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", INSIDE, "sh"]).arg(root).env_clear();
    let said = ran(command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("HOME", "/root"));
    let mut told = BTreeMap::<&str, Vec<&str>>::new();
    for line in said.lines().filter(|line| !line.is_empty()) {
        let (name, text) = line.split_once(": ").unwrap();
        told.entry(name).or_default().push(text);
    }
    let all = "bin dev etc home host lib lib64 proc root run sbin steps sys tmp usr var";
    assert_eq!(told["root"], all.split(' ').collect::<Vec<_>>(), "{said}");
    assert_eq!(told["processes"], told["root"]);
    assert_eq!(told["stoker"], [format!("stoker {}", env!("CARGO_PKG_VERSION"))]);
    assert!(told["git"][0].starts_with("git version 2."), "{said}");
    assert!(told["ssh"][0].starts_with("OpenSSH_") && told["lfs"][0].starts_with("git-lfs/"), "{said}");
    let commit = repo.commit("main");
    assert_eq!(told["refs"], [format!("{commit}\trefs/heads/main")]);
    assert!(told["tls"].concat().contains("onnect"), "the transport itself is there: {said}");
    assert_eq!(told["clone"], [commit.as_str()]);
    assert_eq!(told["sources"], ["sources: from this node's cache"]);
    assert_eq!(told["admitted"], [commit.as_str()]);
    assert!(told["run"].contains(&commit.as_str()), "{said}");
}
