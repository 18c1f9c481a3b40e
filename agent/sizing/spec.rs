//! `.build-spec.{json,yaml,toml,ncl}`: what a repository declares of its own build.
//!
//! The file comes from people whom the node need not trust, and what is in it decides how much of the node they get. So
//! it is small, flat and strict: unknown and repeated fields, text for numbers, YAML tags and anchors are refused, with
//! the field and the line. There is no silent default for something that was meant otherwise.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use stoker_core::reason::{Code, Reason};
use stoker_core::sizing::decimal::{DecimalError, scaled};
use stoker_core::sizing::{Spec, SpecValue};

/// The names of build specs, of which a commit has at most one.
pub const NAMES: [&str; 3] = [".build-spec.json", ".build-spec.yaml", ".build-spec.toml"];

/// The name that needs a program of its own.
pub const NAME_NICKEL: &str = ".build-spec.ncl";

/// The most bytes that a build spec may have.
pub const BYTES_MAX: usize = 64 << 10;

/// The most cache keys.
pub const CACHE_KEYS_MAX: usize = 16;

/// The most bytes of one cache key.
const CACHE_KEY_BYTES_MAX: usize = 64;

const FIELDS: [&str; 7] =
    ["schema_version", "cpu", "memory_gb", "disk_gb", "time_budget_min", "cache_keys", "oom_retry"];

/// A build spec that was read and is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFile {
    /// Its name in the repository.
    pub file: String,
    /// What it declares.
    pub spec: Spec,
}

/// Why a build spec is refused. Reads `.build-spec.yaml:3: cpu: 300 is out of range, allowed is (0, 256]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {}{problem}", Colon(*line), Named(field))]
pub struct SpecError {
    /// The file's name.
    pub file: String,
    /// The line, from 1, where one is known.
    pub line: Option<u32>,
    /// The field, where it is about one.
    pub field: Option<String>,
    /// What is wrong, and what is allowed.
    pub problem: String,
    /// The file may be right: it was not looked at to its end, and is looked at again.
    pub passing: bool,
}

impl SpecError {
    /// About no field.
    fn whole(file: &str, line: Option<u32>, problem: String) -> Self {
        Self { file: file.to_owned(), line, field: None, problem, passing: false }
    }

    /// The reason that callers get.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let code = if self.passing { Code::SpecUnevaluated } else { Code::SpecInvalid };
        Reason::new(code, self.file.clone(), self.to_string())
    }
}

struct Colon(Option<u32>);

impl fmt::Display for Colon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

struct Named<'a>(&'a Option<String>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |field| write!(f, "{field}: "))
    }
}

/// The build spec among the files at a commit's root, if there is one.
///
/// `read` gives a regular file's content; it need not give more than a byte past [`BYTES_MAX`]. `nickel` evaluates one.
pub fn find(
    root_files: &[String],
    mut read: impl FnMut(&str) -> Option<Vec<u8>>,
    nickel: impl FnOnce(&[u8]) -> Result<SpecFile, SpecError>,
) -> Option<Result<SpecFile, SpecError>> {
    let known = |name: &&str| NAMES.contains(name) || *name == NAME_NICKEL || *name == ".build-spec.yml";
    let mut names: Vec<&str> = root_files.iter().map(String::as_str).filter(known).collect();
    names.sort_unstable();
    let refuse = |file: &str, problem: String| Some(Err(SpecError::whole(file, None, problem)));
    match *names.as_slice() {
        [] => None,
        [".build-spec.yml"] => refuse(".build-spec.yml", "is not read; name it .build-spec.yaml".to_owned()),
        [file] => match read(file) {
            Some(content) if file == NAME_NICKEL => Some(nickel(&content)),
            Some(content) => Some(parse(file, &content)),
            None => refuse(file, "is not a regular file, or cannot be read".to_owned()),
        },
        [first, ref others @ ..] => {
            refuse(first, format!("is not the only build spec, there is also {}; keep one", others.join(" and ")))
        }
    }
}

/// Reads a build spec; the format follows from the name.
///
/// # Errors
/// With field and line where they are known: anything that is not exactly what the field allows.
pub fn parse(file: &str, content: &[u8]) -> Result<SpecFile, SpecError> {
    let refuse = |line, problem: String| SpecError::whole(file, line, problem);
    if content.len() > BYTES_MAX {
        return Err(refuse(None, format!("has more than {BYTES_MAX} bytes")));
    }
    let text = std::str::from_utf8(content)
        .map_err(|error| refuse(line_at(content, error.valid_up_to()), "is not UTF-8".to_owned()))?;
    let format = Format::of(file).ok_or_else(|| refuse(None, format!("is none of {}", NAMES.join(", "))))?;
    let document = format.read(text).map_err(|(line, problem)| refuse(line, problem))?;
    Reader { file, places: Places::Of(text, format), document }.spec()
}

/// A build spec that was evaluated: its fields, and the lines where they stand.
///
/// # Errors
/// As [`parse`].
pub(super) fn of_fields(
    file: &str,
    fields: impl Iterator<Item = (String, Option<u32>, Value)>,
) -> Result<SpecFile, SpecError> {
    let (places, fields) = fields.map(|(name, line, value)| ((name.clone(), line), (name, value))).unzip();
    Reader { file, places: Places::Told(places), document: Document(fields) }.spec()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Yaml,
    Toml,
}

impl Format {
    fn of(file: &str) -> Option<Self> {
        match file {
            ".build-spec.json" => Some(Self::Json),
            ".build-spec.yaml" => Some(Self::Yaml),
            ".build-spec.toml" => Some(Self::Toml),
            _ => None,
        }
    }

    fn read(self, text: &str) -> Result<Document, (Option<u32>, String)> {
        match self {
            Self::Json => serde_json::from_str(text).map_err(|error| {
                let line = u32::try_from(error.line()).ok().filter(|line| *line > 0);
                let place = format!(" at line {} column {}", error.line(), error.column());
                (line, error.to_string().replace(&place, ""))
            }),
            Self::Yaml => {
                plain_yaml(text)?;
                serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|error| {
                    let line = error.location().and_then(|at| u32::try_from(at.line()).ok()).filter(|line| *line > 0);
                    (line, first_line(&error.to_string()))
                })
            }
            Self::Toml => toml::from_str(text).map_err(|error| {
                let line = error.span().and_then(|span| line_at(text.as_bytes(), span.start));
                (line, first_line(error.message()))
            }),
        }
    }
}

/// No tags, anchors, aliases or directives: nothing in a build spec needs them, and they make one text mean another.
fn plain_yaml(text: &str) -> Result<(), (Option<u32>, String)> {
    for (line, number) in text.lines().zip(1..) {
        if let Some(c) = code_of(line).chars().find(|c| matches!(c, '!' | '&' | '*' | '%')) {
            let problem = format!("has {c:?}: tags, anchors, aliases and directives are not allowed");
            return Err((Some(number), problem));
        }
    }
    Ok(())
}

fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_documents: 1, max_depth: 8, max_anchors: 0, max_aliases: 0, max_merge_keys: 0 },
        merge_keys: serde_saphyr::options::MergeKeyPolicy::Error,
        // So that the field that has it can be named.
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        // `010` is eight to some readers and ten to others, `yes` is text to some.
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        strict_booleans: true,
        with_snippet: false,
    }
}

/// The line before its comment, in YAML and TOML. A `#` in quotes ends it too: no valid value has one.
fn code_of(line: &str) -> &str {
    let comment = line.char_indices().find(|(at, c)| {
        *c == '#' && line.get(..*at).is_none_or(|before| before.is_empty() || before.ends_with([' ', '\t']))
    });
    comment.and_then(|(at, _)| line.get(..at)).unwrap_or(line)
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// The line, from 1, of a position.
fn line_at(content: &[u8], position: usize) -> Option<u32> {
    let before = content.get(..position.min(content.len()))?;
    u32::try_from(before.iter().filter(|byte| **byte == b'\n').count()).ok().map(|lines| lines.saturating_add(1))
}

/// The fields as written, repetitions included, so that the checks are the same for all formats.
#[derive(Debug)]
struct Document(Vec<(String, Value)>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// As the shortest decimal that reads as the same number, so exact up to 15 digits. `inf` and `NaN` come through.
    Number(String),
    Text(String),
    Bool(bool),
    List(Vec<Value>),
    Null,
    Map,
}

impl Value {
    fn show(&self) -> String {
        match self {
            Self::Number(number) => shortened(number),
            Self::Text(text) => format!("the text {:?}", shortened(text)),
            Self::Bool(flag) => flag.to_string(),
            Self::List(_) => "a list".to_owned(),
            Self::Null => "nothing".to_owned(),
            Self::Map => "a map".to_owned(),
        }
    }
}

/// Enough of it for a person to see which one is meant.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Document(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, a text, true, false or a list")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(Value::Number(number.to_string()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Number(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
                Ok(Value::Number(number.to_string()))
            }
            fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
                Ok(Value::Bool(flag))
            }
            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = seq.next_element()? {
                    list.push(value);
                    if list.len() > BYTES_MAX {
                        return Err(A::Error::custom("a list is too long"));
                    }
                }
                Ok(Value::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Map)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Takes the fields of one document to a [`Spec`].
struct Reader<'a> {
    file: &'a str,
    places: Places<'a>,
    document: Document,
}

/// How the line of a field is known.
enum Places<'a> {
    /// Looked for in the text.
    Of(&'a str, Format),
    /// Told by who evaluated it.
    Told(Vec<(String, Option<u32>)>),
}

impl Reader<'_> {
    fn spec(&self) -> Result<SpecFile, SpecError> {
        let fields = &self.document.0;
        for (at, (name, _)) in fields.iter().enumerate() {
            if !FIELDS.contains(&name.as_str()) {
                let problem = format!("is not a field; there are {}", FIELDS.join(", "));
                return Err(self.refuse(&shortened(name), 0, problem));
            }
            if fields.iter().skip(at + 1).any(|(other, _)| other == name) {
                return Err(self.refuse(name, 1, "is there twice; keep one".to_owned()));
            }
        }
        match self.get("schema_version") {
            Some(Value::Number(version)) if version == "1" => {}
            Some(other) => {
                let problem = format!("{} is not known, allowed is the number 1", other.show());
                return Err(self.refuse("schema_version", 0, problem));
            }
            None => return Err(self.refuse("schema_version", 0, "is missing; write 1".to_owned())),
        }
        let spec = Spec {
            file: self.file.to_owned(),
            cpu: self.amount("cpu", 1000, 256)?,
            memory: self.amount("memory_gb", 1 << 30, 1 << 20)?,
            disk: self.amount("disk_gb", 1 << 30, 1 << 20)?,
            time: self.amount("time_budget_min", 60_000, 1440)?,
            cache_keys: self.cache_keys()?,
            oom_retry: match self.get("oom_retry") {
                None => None,
                Some(Value::Bool(flag)) => Some(*flag),
                Some(other) => {
                    let problem = format!("is {}, allowed is true or false", other.show());
                    return Err(self.refuse("oom_retry", 0, problem));
                }
            },
        };
        Ok(SpecFile { file: self.file.to_owned(), spec })
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.document.0.iter().find(|(name, _)| name == field).map(|(_, value)| value)
    }

    /// A number in `(0, most]`, in its unit.
    fn amount(&self, field: &str, units_per_one: u64, most: u64) -> Result<Option<SpecValue>, SpecError> {
        let value = match self.get(field) {
            None => return Ok(None),
            Some(Value::Number(number)) => match scaled(number, units_per_one) {
                Ok(units) if units > 0 && units <= most.saturating_mul(units_per_one) => units,
                Ok(_) | Err(DecimalError::Malformed | DecimalError::TooLarge) => {
                    let problem = format!("{} is out of range, allowed is (0, {most}]", shortened(number));
                    return Err(self.refuse(field, 0, problem));
                }
            },
            Some(other) => {
                let problem = format!("is {}, allowed is a number in (0, {most}]", other.show());
                return Err(self.refuse(field, 0, problem));
            }
        };
        Ok(Some(SpecValue { value, line: self.line_of(field, 0).unwrap_or(0) }))
    }

    fn cache_keys(&self) -> Result<Vec<String>, SpecError> {
        let refuse = |problem: String| Err(self.refuse("cache_keys", 0, problem));
        let list = match self.get("cache_keys") {
            None => return Ok(Vec::new()),
            Some(Value::List(list)) => list,
            Some(other) => return refuse(format!("is {}, allowed is a list of names", other.show())),
        };
        if list.len() > CACHE_KEYS_MAX {
            return refuse(format!("has {} names, allowed are at most {CACHE_KEYS_MAX}", list.len()));
        }
        let mut keys: Vec<String> = Vec::new();
        for value in list {
            match value {
                Value::Text(key) if is_cache_key(key) && !keys.contains(key) => keys.push(key.clone()),
                Value::Text(key) if keys.contains(key) => return refuse(format!("has {key:?} twice")),
                other => {
                    return refuse(format!(
                        "has {}, allowed are texts of 1 to {CACHE_KEY_BYTES_MAX} of a-z 0-9 . _ -, not starting with a dot",
                        other.show()
                    ));
                }
            }
        }
        Ok(keys)
    }

    fn refuse(&self, field: &str, occurrence: usize, problem: String) -> SpecError {
        let line = self.line_of(field, occurrence).or_else(|| self.line_of(field, 0));
        SpecError { field: Some(field.to_owned()), ..SpecError::whole(self.file, line, problem) }
    }

    fn line_of(&self, field: &str, occurrence: usize) -> Option<u32> {
        match &self.places {
            Places::Of(text, format) => line_of_key(text, *format, field, occurrence),
            Places::Told(lines) => lines.iter().filter(|(name, _)| name == field).nth(occurrence)?.1,
        }
    }
}

/// The line of the key `field`: the word alone, perhaps quoted, after the line's begin, `{` or `,`, and before `:`
/// or `=`. The document was parsed and is flat, so that is enough; a key in a strange spelling has no line.
fn line_of_key(text: &str, format: Format, field: &str, occurrence: usize) -> Option<u32> {
    let begins = |before: &str| {
        let before = before.strip_suffix(['"', '\'']).unwrap_or(before).trim_end();
        before.is_empty() || before.ends_with(['{', ','])
    };
    let ends = |after: &str| {
        let after = after.strip_prefix(['"', '\'']).unwrap_or(after).trim_start();
        after.starts_with([':', '='])
    };
    let is_key =
        |line: &str, at: usize| line.get(..at).is_some_and(begins) && line.get(at + field.len()..).is_some_and(ends);
    let keys = text.lines().zip(1..).flat_map(|(line, number)| {
        let code = if format == Format::Json { line } else { code_of(line) };
        let found = code.match_indices(field).filter(move |(at, _)| is_key(code, *at)).count();
        std::iter::repeat_n(number, found)
    });
    keys.into_iter().nth(occurrence)
}

/// `[a-z0-9._-]{1,64}`, not hidden: it becomes a directory.
#[must_use]
pub fn is_cache_key(key: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    !key.is_empty() && key.len() <= CACHE_KEY_BYTES_MAX && !key.starts_with('.') && key.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
