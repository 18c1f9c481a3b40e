//! The socket: rights by uid only for a process that is known to be of this machine; and the command line over TLS.

use std::os::unix::fs::PermissionsExt as _;

use super::Node;
use crate::support::stoker::{BINARY, Invocation};
use crate::support::token_review::of;

const ACCESS: &str = "access: {rules: [{role: viewer, namespaces: [red]}, {role: viewer, uids: [4712]}, {role: operator, users: [admin]}]}";

/// `PROGRAM ARGS stoker status`.
fn status(node: &Node, program: &str, args: &[&str]) -> Invocation {
    node.agent.stoker().program(program, args.iter().chain(&[BINARY, "status", "-o", "json"]))
}

#[test]
fn a_process_of_another_pid_namespace_has_no_rights_by_its_uid() {
    let node = Node::start(ACCESS);
    node.agent.stoker().run(["status"]).expect_code(0);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not shown: only root makes pid namespaces and other users");
        return;
    }
    // As root of a pod whose processes this agent sees.
    let pod = ["--pid", "--fork"];
    let refused = status(&node, "unshare", &pod).run().expect_code(2);
    assert!(refused.stderr.contains("CREDENTIAL_INVALID"), "{}", refused.stderr);
    let token = node.agent.root().join("token");
    std::fs::write(&token, node.cluster.token(&of("red", "builder"))).unwrap();
    status(&node, "unshare", &pod).env("STOKER_TOKEN_FILE", &token).run().expect_code(0);

    // Another user of this machine, as far as the file lets it.
    std::fs::set_permissions(node.agent.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let user = |uid: &'static str| ["--reuid", uid, "--regid", uid, "--clear-groups"];
    status(&node, "setpriv", &user("4712")).run().expect_code(0);
    let refused = status(&node, "setpriv", &user("4713")).run().expect_code(2);
    assert!(refused.stderr.contains("ACCESS_DENIED"), "{}", refused.stderr);
}

#[test]
fn the_command_line_speaks_tls_with_a_token_or_a_certificate() {
    let node = Node::start(ACCESS);
    let file = |name: &str, content: &str| {
        let path = node.agent.root().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = file("authority.pem", node.authority.pem());
    let token = file("token", &node.cluster.token(&of("red", "builder")));
    let admin = node.authority.client("admin", "ops");
    let (certificate, key) = (file("admin.crt", &admin.certificate), file("admin.key", &admin.key));
    let address = format!("127.0.0.1:{}", node.port);
    let run = |args: &[&str]| node.agent.stoker().run(["--address", &address].iter().chain(args));
    let status = run(&["--ca-file", &ca, "--token-file", &token, "status", "-o", "json"]).expect_code(0).json();
    assert_eq!(status["status"]["node"]["name"], "ghost");
    let mode = ["--ca-file", &ca, "--cert-file", &certificate, "--key-file", &key, "mode", "maintenance"];
    run(&mode).expect_code(0);
    for (args, told) in [
        (vec!["--ca-file", &ca, "status"], "CREDENTIAL_INVALID"),
        (vec!["--ca-file", &ca, "--token-file", &token, "mode", "accepting"], "ACCESS_DENIED"),
        (vec!["--ca-file", &ca, "--cert-file", &certificate, "status"], "give both"),
        (vec!["--cert-file", &certificate, "--key-file", &key, "status"], "give --ca-file"),
        (vec!["--ca-file", &token, "status"], "no agent answers"),
        (vec!["--token-file", "/nowhere", "status"], "--token-file /nowhere"),
    ] {
        let ended = run(&args).expect_code(2);
        assert!(ended.stderr.contains(told), "{args:?}: {}", ended.stderr);
    }
    let lines: Vec<String> =
        node.agent.log().lines().filter(|line| line.contains("audit")).map(str::to_owned).collect();
    let has = |parts: &[&str]| lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(has(&["admin", "certificate", "SetMode", "MODE_MAINTENANCE", "OK", "request_id"]), "{lines:#?}");
    assert!(has(&["system:serviceaccount:red:builder", "SetMode", "PERMISSION_DENIED"]), "{lines:#?}");
}
