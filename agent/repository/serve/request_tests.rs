#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::super::pkt::line;
use super::*;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// Lines as packets; `0000` and `0001` stand for themselves.
fn body(lines: &[&str]) -> Vec<u8> {
    let packet = |text: &&str| match *text {
        "0000" | "0001" => text.as_bytes().to_vec(),
        text => line(&format!("{text}\n")),
    };
    lines.iter().flat_map(packet).collect()
}

#[track_caller]
fn fetched(version: Version, lines: &[&str]) -> Fetch {
    match parse(version, &body(lines)) {
        Ok(Request::Fetch(fetch)) => fetch,
        other => panic!("{other:?} of {lines:?}"),
    }
}

fn wants(ids: &[&str]) -> BTreeSet<CommitId> {
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

#[test]
fn the_version_is_the_highest_that_is_known() {
    for (header, version) in [
        (None, Version::V0),
        (Some(""), Version::V0),
        (Some("version=2"), Version::V2),
        (Some("version=1:version=2:x"), Version::V2),
        (Some("version=3:version=1"), Version::V1),
        (Some("version=2\nGIT_DIR=/"), Version::V0),
        (Some("version=02"), Version::V0),
    ] {
        assert_eq!(Version::of(header), version, "{header:?}");
    }
}

#[test]
fn a_fetch_of_version_0_is_read() {
    let first = format!("want {A} multi_ack side-band-64k agent=git/2 filter");
    let clone = fetched(Version::V0, &[&first, &format!("want {B}"), "deepen 1", "filter blob:none", "0000", "done"]);
    assert_eq!(clone.wants, wants(&[A, B]));
    assert!(clone.sends_pack);
    let talk = fetched(Version::V0, &[&first, "0000", &format!("have {B}"), "0000"]);
    assert!(!talk.sends_pack);
    let over = fetched(Version::V1, &[&first, "0000", &format!("have {B}"), "0000", &format!("have {A}"), "done"]);
    assert!(over.sends_pack);
}

#[test]
fn requests_of_version_2_are_read() {
    let listing =
        |prefix: &str| parse(Version::V2, &body(&["command=ls-refs", "agent=x", "0001", "peel", prefix, "0000"]));
    assert_eq!(listing("ref-prefix refs/heads/"), Ok(Request::LsRefs { pulls: vec![] }));
    assert_eq!(listing("ref-prefix refs/pull/152/head"), Ok(Request::LsRefs { pulls: vec![152] }));
    assert_eq!(listing("ref-prefix refs/merge-requests/7/head"), Ok(Request::LsRefs { pulls: vec![7] }));
    assert_eq!(listing("ref-prefix refs/pull/"), Ok(Request::LsRefs { pulls: vec![] }));
    assert!(listing("nonsense").is_err());
    let fetch = fetched(Version::V2, &["command=fetch", "0001", "thin-pack", &format!("want {A}"), "done", "0000"]);
    assert_eq!((fetch.wants, fetch.sends_pack), (wants(&[A]), true));
    assert_eq!(parse(Version::V2, b"0000"), Ok(Request::Empty));
    assert_eq!(parse(Version::V0, b"0000"), Ok(Request::Empty));
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let (a, long) = (format!("want {A}"), format!("want {A}0"));
    for lines in [
        &["command=object-info", "0001", "size", "0000"][..],
        &["command=fetch", "command=ls-refs", "0001", &a, "done", "0000"],
        &["command=fetch", "object-format=sha256", "0001", &a, "0000"],
        &["command=fetch", "0001", &a, "done", "0000", "command=fetch", "0001", &a, "0000"],
        &["command=fetch", "0001", &a, "done"],
        &["command=fetch", "0001", &long, "0000"],
        &["command=fetch", "0001", "want refs/heads/main", "0000"],
        &["command=fetch", "0001", "want", "0000"],
        &["command=fetch", "0001", &a, "upload-pack --evil", "0000"],
        &["command=fetch", "0001", "done", "0000"],
        // Not advertised.
        &["command=fetch", "0001", "want-ref refs/heads/main", "done", "0000"],
        &["command=fetch", "0000"],
        &[&a, "0000", "done"],
        &["agent=git/2", "0000"],
    ] {
        assert!(parse(Version::V2, &body(lines)).is_err(), "{lines:?}");
    }
    for lines in [
        &["command=fetch", "0001", &a, "done", "0000"][..],
        &["0000", "0000"],
        &[&a, &format!("want {B} side-band"), "0000", "done"],
        &[&long, "0000", "done"],
        &[&a, "done"],
        &[&a, "0000", "done", "done"],
        &[&a, "0000", "have x", "done"],
        &[&a, "0001", "done"],
        &["shallow x", &a, "0000", "done"],
        &[&a],
    ] {
        assert!(parse(Version::V0, &body(lines)).is_err(), "{lines:?}");
    }
    assert!(parse(Version::V0, b"").is_err());
}

#[test]
fn the_same_request_of_another_client_is_the_same() {
    let v2 = |agent: &str, first: &str, second: &str| {
        let (agent, first, second) = (format!("agent={agent}"), format!("want {first}"), format!("want {second}"));
        let lines = ["command=fetch", &agent, "session-id=1", "0001", "ofs-delta", &first, &second, "done", "0000"];
        fetched(Version::V2, &lines).digest
    };
    assert_eq!(v2("git/2.39", A, B), v2("dulwich", B, A));
    assert_ne!(v2("git/2.39", A, B), v2("git/2.39", A, A));
    let plain = fetched(Version::V2, &["command=fetch", "0001", &format!("want {A}"), "done", "0000"]);
    let quiet = fetched(Version::V2, &["command=fetch", "0001", &format!("want {A}"), "done", "no-progress", "0000"]);
    assert_ne!(plain.digest, quiet.digest);
    let v0 = |caps: &str| fetched(Version::V0, &[&format!("want {A} {caps}"), "0000", "done"]).digest;
    assert_eq!(v0("ofs-delta side-band agent=a"), v0("agent=b side-band ofs-delta session-id=9"));
    assert_ne!(v0("ofs-delta"), v0("side-band"));
    assert_ne!(v0("ofs-delta"), plain.digest);
}

proptest! {
    #[test]
    fn no_request_is_a_panic(lines in prop::collection::vec(
        prop_oneof![
            Just("0000".to_owned()), Just("0001".to_owned()), Just("command=fetch".to_owned()),
            Just(format!("want {A}")), Just(format!("have {B}")), Just("done".to_owned()), "[a-z=/ -]{0,60}",
        ], 0..12), cut in 0_usize..400) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let bytes = body(&lines);
        for version in [Version::V0, Version::V1, Version::V2] {
            let whole = parse(version, &bytes);
            if let Ok(Request::Fetch(fetch)) = whole {
                prop_assert!(!fetch.wants.is_empty());
            }
            let _ = parse(version, &bytes[..cut.min(bytes.len())]);
        }
    }
}
