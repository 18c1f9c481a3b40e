#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::repository::listing::Head;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn answer(lines: &[String]) -> Vec<u8> {
    let mut bytes: Vec<u8> = lines.iter().flat_map(|line| packet(line)).collect();
    bytes.extend_from_slice(b"0000");
    bytes
}

fn read(bytes: &[u8], at_once: usize, wanted: &Wanted) -> Result<Option<Listing>, Odd> {
    let mut reader = Reader::new(Lister::new(wanted));
    for part in bytes.chunks(at_once) {
        reader.push(part)?;
    }
    Ok(reader.finish())
}

#[test]
fn an_answer_is_the_listing_that_git_gives() {
    let mut wanted = Wanted::default();
    wanted.refs.insert("refs/pull/2/head".into());
    wanted.tips.insert(B.parse().unwrap());
    let bytes = answer(&[
        format!("{A} HEAD symref-target:refs/heads/main"),
        format!("{A} refs/heads/main"),
        format!("{B} refs/pull/1/head"),
        format!("{A} refs/pull/2/head"),
        format!("{B} refs/pull/1/merge"),
        format!("{A} refs/tags/v1 peeled:{B}"),
    ]);
    let printed = format!(
        "ref: refs/heads/main\tHEAD\n{A}\tHEAD\n{A}\trefs/heads/main\n{B}\trefs/pull/1/head\n{A}\trefs/pull/2/head\n\
         {B}\trefs/pull/1/merge\n{A}\trefs/tags/v1\n{B}\trefs/tags/v1^{{}}\n"
    );
    let same = Listing::parse(printed.as_bytes(), &wanted, "x").unwrap();
    assert_eq!(same.head, Some(Head::Branch("main".into())));
    // However the network cuts it.
    for at_once in [1, 3, 50, 4096] {
        assert_eq!(read(&bytes, at_once, &wanted), Ok(Some(same.clone())), "{at_once}");
    }
}

#[test]
fn what_is_no_list_is_left_to_git() {
    let wanted = Wanted::default();
    let listed = packet(&format!("{A} HEAD"));
    for bytes in [
        &b"<html>"[..],
        b"0003",
        b"0001",
        b"fff5",
        b"+004",
        &packet("ERR access denied"),
        &packet("nonsense"),
        &packet(A),
        &packet("unborn HEAD symref-target:refs/heads/main"),
        &[b"0000", &listed[..]].concat(),
    ] {
        assert!(matches!(read(bytes, 4096, &wanted), Err(Odd::NoList(_))), "{}", String::from_utf8_lossy(bytes));
    }
    // It broke off: in a packet, and between two.
    for bytes in [&b""[..], b"00", &listed, &listed[..20], &[&listed[..], b"0000", b"00"].concat()] {
        assert_eq!(read(bytes, 4096, &wanted), Ok(None), "{}", String::from_utf8_lossy(bytes));
    }
    let long = packet(&format!("{} HEAD", "c".repeat(64)));
    assert_eq!(read(&long, 4096, &wanted), Err(Odd::ObjectFormat));
}

#[test]
fn an_endless_list_ends() {
    let wanted = Wanted::default();
    let mut reader = Reader::new(Lister::new(&wanted));
    let part: Vec<u8> = packet(&format!("{A} refs/other/endless")).repeat(10_000);
    let mut pushed = 0_u64;
    let odd = loop {
        match reader.push(&part) {
            Ok(()) => pushed += part.len() as u64,
            Err(odd) => break odd,
        }
    };
    assert_eq!(odd, Odd::TooMuch);
    assert!(pushed <= ANSWER_BYTES_MAX);
}

#[test]
fn only_what_is_wanted_is_asked_for() {
    let text = |wanted: &Wanted| String::from_utf8(command(wanted)).unwrap();
    assert_eq!(
        text(&Wanted::default()),
        "0014command=ls-refs\n0001000csymrefs\n0014ref-prefix HEAD\n001bref-prefix refs/heads/\n\
         001aref-prefix refs/tags/\n0000"
    );
    let mut wanted = Wanted::default();
    wanted.refs.insert("refs/pull/7/head".into());
    assert!(text(&wanted).contains("ref-prefix refs/pull/7/head\n") && !text(&wanted).contains("refs/pull/\n"));
    wanted.tips.insert(A.parse().unwrap());
    assert!(text(&wanted).contains("ref-prefix refs/pull/\n"));
}

#[test]
fn who_does_not_speak_it_is_asked_once_an_hour() {
    let http = Http::new(tokio_util::task::TaskTracker::new(), CancellationToken::new());
    let asks = LsRefs::new(http);
    let url = |text: &str| text.parse::<RepositoryUrl>().unwrap();
    let (a, b) = (url("https://old.example.org/a"), url("https://old.example.org/b"));
    asks.remember(&a, &Left::Once("x".into()));
    assert!(!asks.is_left(&a));
    asks.remember(&a, &Left::Repository("x"));
    assert!(asks.is_left(&a) && !asks.is_left(&b));
    asks.remember(&a, &Left::Host("x"));
    assert!(asks.is_left(&b) && !asks.is_left(&url("https://new.example.org/a")));
    assert!(!asks.is_left(&url("https://old.example.org:8443/a")));
    for until in lock(&asks.left).values_mut() {
        *until = Instant::now();
    }
    assert!(!asks.is_left(&a) && !asks.is_left(&b), "not for ever");
}

proptest! {
    #[test]
    fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at_once in 1..64_usize) {
        let _ = read(&bytes, at_once, &Wanted::default());
    }

    #[test]
    fn damage_is_no_panic(at in 0..200_usize, byte in any::<u8>()) {
        let mut bytes = answer(&[format!("{A} HEAD symref-target:refs/heads/main"), format!("{A} refs/heads/main")]);
        if let Some(there) = bytes.get_mut(at) {
            *there = byte;
        }
        let _ = read(&bytes, 7, &Wanted::default());
    }
}
