#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

fn url(text: &str) -> RepositoryUrl {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn all_spellings_of_one_repository_have_one_key() {
    for text in [
        "https://github.com/ProjectBluefin/dakota",
        "https://github.com/projectbluefin/dakota.git",
        "HTTPS://GitHub.com:443/projectbluefin/dakota/",
        "http://github.com/projectbluefin/dakota",
        "ssh://git@github.com/projectbluefin/dakota.git",
        "ssh://git@github.com:22/projectbluefin/dakota",
        "git@github.com:projectbluefin/dakota.git",
        "github.com:projectbluefin/dakota",
        "git://github.com./projectbluefin/dakota",
        "https://github.com/projectbluefin/%64akota",
    ] {
        assert_eq!(url(text).key(), "github.com/projectbluefin/dakota", "{text}");
        assert_eq!(url(text), url("https://github.com/projectbluefin/dakota"));
    }
}

#[test]
fn what_git_gets_is_as_it_was_spelled() {
    let pairs = [
        ("HTTPS://Host.Example:443/A/b.git/", "https://host.example/A/b.git"),
        ("https://host.example:8443/a", "https://host.example:8443/a"),
        ("git@Host:a/b.git", "git@host:a/b.git"),
        ("git@[::1]:a/b", "git@[::1]:a/b"),
        ("ssh://me@host:2222/~you/b", "ssh://me@host:2222/~you/b"),
        ("/srv/my repo/50%", "file:///srv/my%20repo/50%25"),
        ("file:///srv/a/", "file:///srv/a"),
        ("file:///srv/a/.git", "file:///srv/a"),
    ];
    for (text, fetch) in pairs {
        assert_eq!(url(text).fetch_url(), fetch, "{text}");
        assert_eq!(url(fetch), url(text));
    }
    assert_eq!(url("/srv/my repo/50%").local_path().as_deref(), Some("/srv/my repo/50%"));
    assert_eq!(url("https://host.example:8443/a").key(), "host.example:8443/a");
}

#[test]
fn different_repositories_differ() {
    let different = [
        "https://github.com/a/linux",
        "https://github.com/b/linux",
        "https://host/a/Linux",
        "https://host/a/linux",
        "https://host:8443/a/linux",
        "file:///srv/a",
        "file:///srv/a.git",
        "https://host/a%20b",
    ];
    for (i, a) in different.iter().enumerate() {
        for b in different.iter().skip(i.saturating_add(1)) {
            assert_ne!(url(a), url(b));
            assert_ne!(url(a).folder(), url(b).folder());
        }
    }
}

#[test]
fn what_is_not_plainly_an_address_is_refused() {
    use UrlError as E;
    let long = format!("https://host/{}", "a".repeat(2048));
    let table: Vec<(&str, E)> = vec![
        ("", E::Empty),
        (&long, E::TooLong(2061)),
        ("https://host/a\nb", E::Character('\n')),
        ("https://host/a\0b", E::Character('\0')),
        ("https://host/a b", E::Character(' ')),
        ("https://host\\@evil/a", E::Character('\\')),
        ("/srv/a\tb", E::Character('\t')),
        ("--upload-pack=touch", E::Option("--upload-pack=touch".into())),
        ("host:-x", E::Option("-x".into())),
        ("ssh://-oProxyCommand=x/a", E::Host("-oProxyCommand=x".into())),
        ("-oX@host:a", E::Option("-oX@host:a".into())),
        ("ext::sh -c x", E::Helper("ext".into())),
        ("ext::sh", E::Helper("ext".into())),
        ("fd::3", E::Helper("fd".into())),
        ("http::https://host/a", E::Helper("http".into())),
        ("ftp://host/a", E::Scheme("ftp".into())),
        ("git+ssh://host/a", E::Scheme("git+ssh".into())),
        ("a/b", E::Relative("a/b".into())),
        ("./a:b", E::Relative("./a:b".into())),
        ("https://me:secret@host/a", E::Credentials),
        ("https://token@host/a", E::Credentials),
        ("https://a@b?c@host/a", E::Credentials),
        ("ssh://me:secret@host/a", E::Credentials),
        ("git://me@host/a", E::Credentials),
        ("ssh://-l@host/a", E::User("-l".into())),
        ("https://host:0/a", E::Port("0".into())),
        ("https://host:65536/a", E::Port("65536".into())),
        ("https://host:/a", E::Port("".into())),
        ("https://host:+1/a", E::Port("+1".into())),
        ("https:///a", E::Host("".into())),
        ("https://ho..st/a", E::Host("ho..st".into())),
        ("https://h\u{f6}st/a", E::Host("h\u{f6}st".into())),
        ("https://[::1/a", E::Host("[::1".into())),
        ("file://host/a", E::Host("host".into())),
        ("https://host", E::EmptyPath),
        ("https://host/", E::EmptyPath),
        ("file://", E::EmptyPath),
        ("/", E::EmptyPath),
        ("host:", E::EmptyPath),
        ("https://host/a/../b", E::Segment("..".into())),
        ("https://host/./b", E::Segment(".".into())),
        ("https://host/a//b", E::Segment("".into())),
        ("/srv/../etc", E::Segment("..".into())),
        ("git@host:../a", E::Segment("..".into())),
        ("https://host/a/%2e%2e/b", E::Escape("%2e".into())),
        ("https://host/a%2Fb", E::Escape("%2F".into())),
        ("https://host/%2dx", E::Escape("%2d".into())),
        ("https://host/a%00", E::Escape("%00".into())),
        ("https://host/a%0a", E::Escape("%0a".into())),
        ("https://host/a%4", E::Escape("%4".into())),
        ("https://host/a?b", E::Query('?')),
        ("https://host/a#b", E::Query('#')),
        ("https://host?a", E::Query('?')),
    ];
    for (text, error) in table {
        assert_eq!(text.parse::<RepositoryUrl>().err(), Some(error), "{text:?}");
    }
}

#[test]
fn no_error_repeats_a_password() {
    for text in ["https://me:hunter2@host/a", "ftp://me:hunter2@host/a", "me:hunter2@host:a", "file://me:hunter2@x/a"] {
        let error = text.parse::<RepositoryUrl>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[test]
fn this_machine_is_known_in_every_spelling() {
    for host in [
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "169.254.169.254",
        "2852039166",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[::127.0.0.1]",
    ] {
        assert!(url(&format!("https://{host}/a")).is_loopback_or_link_local(), "{host}");
    }
    for host in ["example.org", "10.0.0.1", "128.0.0.1", "[2001:db8::1]", "localhost.example.org"] {
        assert!(!url(&format!("https://{host}/a")).is_loopback_or_link_local(), "{host}");
    }
}

proptest! {
    #[test]
    fn a_parse_never_panics(text in ".{0,80}") {
        let _ = text.parse::<RepositoryUrl>();
    }

    #[test]
    fn near_misses_never_panic(text in "(https|ssh|file|ext|git|)(://|::|:|@|/)[a-z0-9@:./%\\[\\]~-]{0,40}") {
        if let Ok(url) = text.parse::<RepositoryUrl>() {
            prop_assert!(!url.key().contains("/../") && !url.fetch_url().starts_with('-'));
        }
    }

    #[test]
    fn the_canonical_form_is_its_own_canonical_form(
        text in "(https://|ssh://git@|git@|/|file:///)[A-Za-z0-9.-]{1,12}[:/][A-Za-z0-9_.%~é-]{1,12}(/[a-z.git]{1,8})?/?"
    ) {
        if let Ok(url) = text.parse::<RepositoryUrl>() {
            let again: RepositoryUrl = url.fetch_url().parse().expect("what was parsed parses again");
            prop_assert_eq!(url.fetch_url(), again.fetch_url());
            prop_assert_eq!(url.key(), again.key());
            let key = if url.host().is_some() { format!("https://{}", url.key()) } else { url.key().into() };
            let from_key: RepositoryUrl = key.parse().expect("a key parses");
            prop_assert_eq!(url.key(), from_key.key());
        }
    }
}
