//! Whatever stands in a file, it is either read or refused, with something to say in either case.

use proptest::prelude::*;

use super::*;

/// Values that have broken parsers before, in the places of real ones.
fn hostile() -> impl Strategy<Value = String> {
    const FIXED: &[&str] = &[
        "",
        "~",
        "0",
        "-1",
        "1e400",
        "-0",
        "0x7fffffffffffffffff",
        ".inf",
        "''",
        "[]",
        "{}",
        "[[[[",
        "&a [*a]",
        "*a",
        "\"\\u0000\"",
        "'%'",
        "100%",
        "10%%",
        "1m",
        "99999999999999999999999999999999GiB",
        "1h-1m",
        "/",
        "//",
        "/..",
        "- -",
        "? :",
        "|",
        ">-",
        "!x y",
        "!!float 1",
        "é%",
        "🔥GiB",
        "[::]:0",
        "256.0.0.1:99999",
        "<<",
        "\t",
    ];
    prop_oneof![3 => prop::sample::select(FIXED).prop_map(String::from), 1 => ".{0,40}", 1 => "[0-9.%mhGiBk -]{0,12}"]
}

/// The example with some of its words replaced.
fn mutated() -> impl Strategy<Value = String> {
    let words = EXAMPLE.split_whitespace().count();
    prop::collection::vec((0..words, hostile()), 1..4).prop_map(|changes| {
        let mut text = EXAMPLE.to_owned();
        for (index, value) in changes {
            if let Some(word) = EXAMPLE.split_whitespace().nth(index) {
                text = text.replacen(word, &value, 1);
            }
        }
        text
    })
}

fn holds(text: &str) {
    match read(text, "agent.yaml", &node("ghost", &[])) {
        Ok((file, config)) => {
            let printed = file::to_yaml(&file).unwrap();
            let again = read(&printed, "printed", &node("ghost", &[]));
            assert_eq!(again, Ok((file, config)), "{text}\n--- printed\n{printed}");
        }
        Err(errors) => {
            assert!(!errors.problems.is_empty());
            for problem in &errors.problems {
                assert!(!problem.message.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
                assert!(usize::try_from(problem.line).unwrap() <= text.lines().count() + 1, "{problem:?}\n{text}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        holds(&text);
    }

    #[test]
    fn any_yaml_like_text_is_read_or_refused(text in "[a-c:{}\\[\\],&*!|>'\"#%0-9 \n\t-]{0,120}") {
        holds(&text);
    }

    #[test]
    fn a_changed_example_is_read_or_refused(text in mutated()) {
        holds(&text);
    }

    #[test]
    fn amounts_never_panic(text in hostile()) {
        let _ = units::Cores(text.clone()).millis();
        let _ = units::Bytes(text.clone()).bytes();
        let _ = units::BytesOrPercent(text.clone()).share();
        let _ = units::CountOrPercent(text.clone()).share();
        let _ = units::Time(text.clone()).duration();
        let _ = units::Mode(text).bits();
    }
}
