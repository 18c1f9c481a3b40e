#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const JSON: &str = ".build-spec.json";
const YAML: &str = ".build-spec.yaml";
const TOML: &str = ".build-spec.toml";

fn refused(file: &str, text: &str) -> SpecError {
    match parse(file, text.as_bytes()) {
        Err(error) => error,
        Ok(spec) => panic!("{text:?} was accepted: {spec:?}"),
    }
}

/// The same fields in all three formats, each field on a line of its own from line 2.
fn in_all(fields: &[(&str, &str)]) -> [(&'static str, String); 3] {
    let json: Vec<String> = fields.iter().map(|(name, value)| format!("  \"{name}\": {value}")).collect();
    let yaml: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let toml: Vec<String> = fields.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    [
        (JSON, format!("{{\n{}\n}}\n", json.join(",\n"))),
        (YAML, format!("# cpu: 999\n{}\n", yaml.join("\n"))),
        (TOML, format!("# cpu = 999\n{}\n", toml.join("\n"))),
    ]
}

#[test]
fn all_formats_say_the_same() {
    let fields = [
        ("schema_version", "1"),
        ("cpu", "1.1"),
        ("memory_gb", "0.1"),
        ("disk_gb", "40"),
        ("time_budget_min", "2.5"),
        ("cache_keys", "[\"cargo\", \"ccache-4.9\"]"),
        ("oom_retry", "false"),
    ];
    for (file, text) in in_all(&fields) {
        let spec = parse(file, text.as_bytes()).unwrap().spec;
        assert_eq!(spec.cpu, Some(SpecValue { value: 1100, line: 3 }), "{file}");
        assert_eq!(spec.memory, Some(SpecValue { value: 107_374_183, line: 4 }), "{file}");
        assert_eq!(spec.disk, Some(SpecValue { value: 40 << 30, line: 5 }), "{file}");
        assert_eq!(spec.time, Some(SpecValue { value: 150_000, line: 6 }), "{file}");
        assert_eq!(spec.cache_keys, ["cargo", "ccache-4.9"], "{file}");
        assert_eq!(spec.oom_retry, Some(false), "{file}");
    }
}

#[test]
fn only_the_version_is_needed() {
    for (file, text) in in_all(&[("schema_version", "1")]) {
        let expected = Spec { file: file.to_owned(), ..Spec::default() };
        assert_eq!(parse(file, text.as_bytes()).unwrap().spec, expected);
    }
    assert!(parse(YAML, b"{schema_version: 1, cpu: 2}").is_ok());
    assert!(parse(YAML, b"---\r\nschema_version: 1 # one\r\n'cpu': 2\r\n...\r\n").is_ok());
}

#[test]
fn what_a_field_does_not_allow_is_refused_with_field_and_line() {
    let wrong = [
        ("cpu", "0"),
        ("cpu", "-1"),
        ("cpu", "256.001"),
        ("cpu", "256.0000000001"),
        ("cpu", "\"4\""),
        ("cpu", "true"),
        ("cpu", "[4]"),
        ("cpu", "18446744073709551615"),
        ("memory_gb", "0"),
        ("memory_gb", "-0.0"),
        ("memory_gb", "1048577"),
        ("memory_gb", "1e300"),
        ("disk_gb", "0.0"),
        ("disk_gb", "1e-400"),
        ("time_budget_min", "0"),
        ("time_budget_min", "1441"),
        ("cache_keys", "\"cargo\""),
        ("cache_keys", "[1]"),
        ("cache_keys", "[\"../x\"]"),
        ("cache_keys", "[\".hidden\"]"),
        ("cache_keys", "[\"\"]"),
        ("cache_keys", "[\"Cargo\"]"),
        ("cache_keys", "[\"a\", \"a\"]"),
        ("oom_retry", "\"yes\""),
        ("oom_retry", "1"),
        ("cpus", "4"),
    ];
    for (field, value) in wrong {
        for (file, text) in in_all(&[("schema_version", "1"), (field, value)]) {
            let error = refused(file, &text);
            assert_eq!((error.field.as_deref(), error.line), (Some(field), Some(3)), "{error}");
            assert_eq!(error.reason().code, Code::SpecInvalid);
        }
    }
}

#[test]
fn bounds_themselves_are_allowed() {
    for (field, value) in [
        ("cpu", "256"),
        ("cpu", "0.001"),
        ("memory_gb", "1048576"),
        ("disk_gb", "0.000000001"),
        ("time_budget_min", "1440"),
    ] {
        for (file, text) in in_all(&[("schema_version", "1"), (field, value)]) {
            assert!(parse(file, text.as_bytes()).is_ok(), "{text}");
        }
    }
    let keys = |count: usize| {
        let names: Vec<String> = (0..count).map(|n| format!("\"k{n}\"")).collect();
        format!("schema_version: 1\ncache_keys: [{}]\n", names.join(","))
    };
    assert!(parse(YAML, keys(16).as_bytes()).is_ok());
    assert_eq!(refused(YAML, &keys(17)).line, Some(2));
    assert!(is_cache_key(&"k".repeat(64)) && !is_cache_key(&"k".repeat(65)));
}

#[test]
fn what_is_no_number_is_refused() {
    for (file, values) in [
        (JSON, ["1e400", "NaN", "Infinity", "null", "01"]),
        (YAML, ["1e400", ".nan", ".inf", "~", "010"]),
        (TOML, ["1e400", "nan", "inf", "1979-05-27", "010"]),
    ] {
        for value in values {
            let all = in_all(&[("schema_version", "1"), ("cpu", value)]);
            let (_, text) = all.iter().find(|(name, _)| *name == file).unwrap();
            let error = refused(file, text);
            assert_eq!(error.line, Some(3), "{value}: {error}");
        }
    }
    assert_eq!(refused(YAML, "schema_version: 1\ncpu: 1_000\n").field.as_deref(), Some("cpu"));
    assert_eq!(refused(YAML, "schema_version: 1\noom_retry: yes\n").field.as_deref(), Some("oom_retry"));
}

#[test]
fn the_version_is_needed_and_known() {
    for (file, text) in in_all(&[("cpu", "1")]) {
        let error = refused(file, &text);
        assert_eq!((error.field.as_deref(), error.line), (Some("schema_version"), None), "{error}");
    }
    for version in ["2", "0", "\"1\"", "1.5"] {
        for (file, text) in in_all(&[("schema_version", version)]) {
            let error = refused(file, &text);
            assert_eq!((error.field.as_deref(), error.line), (Some("schema_version"), Some(2)), "{error}");
        }
    }
}

#[test]
fn a_field_is_there_once() {
    for (file, text) in in_all(&[("schema_version", "1"), ("cpu", "1"), ("cpu", "2")]) {
        let error = refused(file, &text);
        assert_eq!(error.line, Some(4), "{error}");
        assert!(error.to_string().contains("cpu") || file == TOML, "{error}");
    }
}

#[test]
fn yaml_has_no_tags_anchors_or_documents() {
    let one = "schema_version: 1\n";
    for (text, line) in [
        ("cpu: !!float \"4\"\n", 2),
        ("cpu: !include x\n", 2),
        ("cpu: &a 4\nmemory_gb: *a\n", 2),
        ("x: &a [1]\ny: &b [*a, *a]\nz: [*b, *b]\n", 2),
        ("<<: {cpu: 4}\n", 2),
        ("---\nschema_version: 1\n", 2),
    ] {
        let error = refused(YAML, &format!("{one}{text}"));
        assert!(error.line.is_some_and(|found| found >= line), "{error}");
    }
    assert!(refused(YAML, "%YAML 1.2\n---\nschema_version: 1\n").line == Some(1));
}

#[test]
fn what_is_no_map_of_fields_is_refused() {
    for (file, text) in [
        (JSON, ""),
        (JSON, "[]"),
        (JSON, "{\"schema_version\": 1} x"),
        (JSON, "{\"schema_version\": 1,}"),
        (YAML, ""),
        (YAML, "- 1\n"),
        (YAML, "4"),
        (TOML, "[build]\nschema_version = 1\n"),
        (TOML, "schema_version: 1"),
    ] {
        let error = refused(file, text);
        assert!(!error.problem.is_empty() && !error.problem.contains('\n'), "{error:?}");
    }
    assert!(parse(JSON, format!("{}1{}", "[".repeat(9000), "]".repeat(9000)).as_bytes()).is_err());
    assert!(parse(YAML, "[".repeat(60_000).as_bytes()).is_err());
    assert!(parse(TOML, format!("a = {}", "[".repeat(60_000)).as_bytes()).is_err());
    assert_eq!(refused(JSON, &" ".repeat(BYTES_MAX + 1)).problem, "has more than 65536 bytes");
    assert_eq!(parse(YAML, b"schema_version: 1\ncpu: \xff\n").unwrap_err().line, Some(2));
}

#[test]
fn an_error_names_file_line_field_and_what_is_allowed() {
    let text = "{\"schema_version\": 1,\n \"cache_keys\": [\"a\", \"cpu\"],\n\n \"cpu\": 300}";
    assert_eq!(refused(JSON, text).to_string(), ".build-spec.json:4: cpu: 300 is out of range, allowed is (0, 256]");
    let long = refused(YAML, &format!("schema_version: 1\ncpu: {}\n", "x".repeat(60_000)));
    assert!(long.to_string().len() < 200);
}

#[test]
fn one_build_spec_at_most() {
    let content = |_: &str| Some(b"schema_version = 1".to_vec());
    let nickel = |_: &[u8]| of_fields(NAME_NICKEL, std::iter::empty());
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let find = |files: &[&str]| find(&names(files), content, nickel);
    assert_eq!(find(&["README.md", "build-spec.yaml"]), None);
    assert!(find(&["a", TOML]).unwrap().is_ok());
    let error = find(&[YAML, JSON]).unwrap().unwrap_err().to_string();
    assert!(error.contains(YAML) && error.contains(JSON), "{error}");
    let error = find(&[YAML, NAME_NICKEL]).unwrap().unwrap_err().to_string();
    assert!(error.contains(YAML) && error.contains(NAME_NICKEL), "{error}");
    let error = find(&[NAME_NICKEL]).unwrap().unwrap_err();
    assert_eq!(error.to_string(), ".build-spec.ncl: schema_version: is missing; write 1");
    assert!(find(&[".build-spec.yml"]).unwrap().unwrap_err().to_string().contains(YAML));
    assert!(super::find(&names(&[TOML]), |_| None, nickel).unwrap().is_err(), "a symlink or a folder");
}

#[test]
fn fields_that_were_evaluated_are_judged_like_those_that_were_read() {
    let number = |text: &str| Value::Number(text.to_owned());
    let fields = |cpu: &str| {
        let fields = [("schema_version", None, number("1")), ("cpu", Some(7), number(cpu))];
        of_fields(NAME_NICKEL, fields.into_iter().map(|(name, line, value)| (name.to_owned(), line, value)))
    };
    assert_eq!(fields("2.5").unwrap().spec.cpu, Some(SpecValue { value: 2500, line: 7 }));
    let error = fields("300").unwrap_err().to_string();
    assert_eq!(error, ".build-spec.ncl:7: cpu: 300 is out of range, allowed is (0, 256]");
}
