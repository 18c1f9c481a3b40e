#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config;

fn policy() -> Policy {
    let config = config::Config::for_run(std::path::Path::new("/x"), "x").repositories;
    let config = config::Repositories { allow: Vec::new(), protocols: vec!["https".into()], ..config };
    Policy::new(&"https://git.example.org/a".parse().unwrap(), &config)
}

fn oid(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn pointer(digit: char) -> Pointer {
    Pointer { oid: LfsOid::parse(&oid(digit)).unwrap(), bytes: 7 }
}

fn ask(answer: &serde_json::Value) -> Result<Result<Action, Code>, Code> {
    let read = read(answer.to_string().as_bytes(), &[pointer('a')], &policy()).map_err(|reason| reason.code);
    read.map(|mut judged| judged.remove(&pointer('a')).unwrap().map_err(|reason| reason.code))
}

#[test]
fn a_request_is_what_the_documentation_shows() {
    let request: serde_json::Value = serde_json::from_slice(&request(&[pointer('a')]).unwrap()).unwrap();
    let expected = json!({"operation": "download", "transfers": ["basic"], "hash_algo": "sha256",
        "objects": [{"oid": oid('a'), "size": 7}]});
    assert_eq!(request, expected);
}

#[test]
fn a_good_answer_is_an_action() {
    let answer = json!({"transfer": "basic", "objects": [
        {"oid": oid('b'), "size": 9, "actions": {"download": {"href": "https://elsewhere.example.org/b"}}},
        {"oid": oid('a'), "size": 7, "authenticated": true, "actions": {"download": {
            "href": "https://storage.example.org/a?signature=x", "expires_at": "2016-11-10T15:29:07Z",
            "header": {"Authorization": "Basic c2VjcmV0", "Host": "evil", "Transfer-Encoding": "chunked"}}}},
    ]});
    let action = ask(&answer).unwrap().unwrap();
    assert_eq!(action.uri.to_string(), "https://storage.example.org/a?signature=x");
    assert_eq!(action.headers.len(), 1, "what frames a request is ours");
    assert!(action.headers["authorization"].is_sensitive());
}

#[test]
fn a_hostile_answer_is_refused() {
    let with = |more: serde_json::Value| {
        let mut object = json!({"oid": oid('a'), "size": 7});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"objects": [object]})
    };
    let href = |href: &str| with(json!({"actions": {"download": {"href": href}}}));
    let header = |name: &str, value: &str| {
        with(json!({"actions": {"download": {"href": "https://example.org/x", "header": {name: value}}}}))
    };
    let many: BTreeMap<String, String> = (0..100).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    for (answer, code) in [
        (json!({}), Code::LfsObjectMissing),
        (json!({"objects": [{"oid": oid('b'), "size": 7}]}), Code::LfsObjectMissing),
        (with(json!({})), Code::LfsObjectMissing),
        (with(json!({"actions": {}})), Code::LfsObjectMissing),
        (with(json!({"error": {"code": 404, "message": "no\u{1b}[31m"}})), Code::LfsObjectMissing),
        (with(json!({"error": {"code": 422}})), Code::LfsObjectMissing),
        (with(json!({"size": 8})), Code::LfsObjectCorrupt),
        (with(json!({"size": -7})), Code::LfsObjectCorrupt),
        (href("http://storage.example.org/a"), Code::RepositoryNotAllowed),
        (href("https://127.0.0.1/a"), Code::RepositoryNotAllowed),
        (href("https://[fe80::1]/a"), Code::RepositoryNotAllowed),
        (href("https://169.254.169.254/latest/meta-data"), Code::RepositoryNotAllowed),
        (href("file:///etc/passwd"), Code::RepositoryNotAllowed),
        (href("/relative"), Code::RepositoryNotAllowed),
        (href("https://me:pw@storage.example.org/a"), Code::RepositoryNotAllowed),
        (header("bad name", "x"), Code::LfsObjectMissing),
        (header("x", "a\r\nInjected: y"), Code::LfsObjectMissing),
        (
            with(json!({"actions": {"download": {"href": "https://example.org/x", "header": many}}})),
            Code::LfsObjectMissing,
        ),
    ] {
        assert_eq!(ask(&answer).unwrap().err(), Some(code), "{answer}");
    }
    for answer in [
        json!("x"),
        json!({"objects": {}}),
        json!({"transfer": "tus", "objects": []}),
        json!({"hash_algo": "sha512", "objects": []}),
        json!({"objects": [{"oid": 7}]}),
        with(json!({"size": 1e300})),
    ] {
        assert_eq!(ask(&answer).err(), Some(Code::UpstreamUnreachable), "{answer}");
    }
    let told = ask_words(&with(json!({"error": {"code": 404, "message": "no\u{1b}[31m\nline"}})));
    assert!(told.contains("no[31mline"), "{told}");
}

fn ask_words(answer: &serde_json::Value) -> String {
    let mut judged = read(answer.to_string().as_bytes(), &[pointer('a')], &policy()).unwrap();
    judged.remove(&pointer('a')).unwrap().err().unwrap().message
}

#[test]
fn what_may_be_better_soon_is_asked_again() {
    for (status, code) in [
        (500, None),
        (503, None),
        (429, None),
        (401, Some(Code::UpstreamUnauthorized)),
        (403, Some(Code::UpstreamUnauthorized)),
        (404, Some(Code::UpstreamNotFound)),
        (501, Some(Code::UpstreamUnreachable)),
        (302, Some(Code::UpstreamUnreachable)),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(refused(status, b"{\"message\": \"x\"}", &policy()).map(|reason| reason.code), code, "{status}");
    }
}

proptest! {
    #[test]
    fn garbage_is_no_panic(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&body, &[pointer('a')], &policy());
    }
}
