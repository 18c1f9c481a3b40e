//! YAML as a tree in which every value knows its line. Nothing is interpreted here but YAML itself.
//!
//! The tree exists so that all problems of a file can be told at once, each with its line: a deserializer alone stops
//! at the first unknown field, and the values that it makes no longer know where they stood.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};

use super::problem::{ConfigErrors, Fault};

/// The most bytes that a file may have.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Where something stands; zeros where that is not known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// From 1.
    pub(super) line: u64,
    /// In characters, from 1.
    pub(super) column: u64,
}

impl Mark {
    fn of(location: serde_saphyr::Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

/// A value of the file.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Mark,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    /// As text: no number of a configuration is a float.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value. A key may stand twice: the shape is checked later.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Mark,
    pub(super) value: Node,
}

impl Node {
    /// The value of the key `name`.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The entry of a list, from 0.
    pub(super) fn entry(&self, index: usize) -> Option<&Self> {
        match &self.kind {
            Kind::List(entries) => entries.get(index),
            _ => None,
        }
    }

    /// What it is, for people.
    pub(super) fn described(&self) -> &'static str {
        match &self.kind {
            Kind::Null => "nothing",
            Kind::Bool(_) => "a truth value",
            Kind::Number(_) => "a number",
            Kind::Text(_) => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }
}

/// Reads one YAML document.
///
/// # Errors
///
/// It is too large, has no document or more than one, is not YAML, or goes beyond the bounds on depth, nodes and
/// aliases.
pub(super) fn parse(text: &str, source_name: &str) -> Result<Node, ConfigErrors> {
    if text.len() > FILE_BYTES_MAX {
        let message = format!("the file has {} bytes, at most {FILE_BYTES_MAX} are read", text.len());
        return Err(ConfigErrors::whole(source_name, Fault::new(message, "remove what is not configuration")));
    }
    let node: Node = serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let mark = error.location().map(Mark::of).unwrap_or_default();
        ConfigErrors::at(source_name, mark, fault(&error))
    })?;
    if matches!(node.kind, Kind::Null) {
        let remedy = "begin with `apiVersion: stoker.build/v1` and `kind: AgentConfig`";
        return Err(ConfigErrors::whole(source_name, Fault::new("the file is empty", remedy)));
    }
    Ok(node)
}

/// YAML as in version 1.2: `yes` and `0755` are text, and so are `.nan` and `.inf`, which the field then refuses.
/// Aliases are replayed within bounds, so that a few lines cannot become gigabytes; a configuration of 10,000 mirrors
/// has about 80,000 nodes.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(FILE_BYTES_MAX),
            max_depth: 32,
            max_documents: 2,
            max_nodes: 200_000,
            max_events: 400_000,
            max_aliases: 10_000,
            max_anchors: 1_000,
            max_total_scalar_bytes: 4 * FILE_BYTES_MAX,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 200_000,
            max_replay_stack_depth: 16,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn fault(error: &serde_saphyr::Error) -> Fault {
    use serde_saphyr::Error as E;
    match error {
        // What is wrong, without the story of the alias.
        E::AliasError { error, .. } => fault(error),
        E::MultipleDocuments { .. } => {
            Fault::new("more than one YAML document", "keep one document: remove what follows `---`")
        }
        E::Budget { .. } | E::AliasReplayLimitExceeded { .. } => {
            Fault::new(bare(error), "write it with fewer aliases and less depth")
        }
        E::UnsupportedTag { .. } => Fault::new(bare(error), "remove the tag"),
        _ => {
            Fault::new(format!("is not valid YAML: {}", bare(error)), "indent with spaces and quote special characters")
        }
    }
}

/// The library's words without the line, which is told separately.
fn bare(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let head = text.rsplit_once(" at line ").map_or(text.as_str(), |(head, _)| head);
    head.chars().take(200).collect()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Kind>::deserialize(deserializer)?;
        Ok(Self { at: Mark::of(referenced), kind: value })
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KindVisitor)
    }
}

struct KindVisitor;

impl<'de> Visitor<'de> for KindVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_none<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Number(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Kind, E> {
        Ok(Kind::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Kind, E> {
        Ok(Kind::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Kind, E> {
        Ok(Kind::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
        Ok(Kind::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Kind, E> {
        Ok(Kind::Text(value))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Kind, E> {
        Err(E::custom("binary data is not part of a configuration"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Kind::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Node>()? {
            let name = match key.kind {
                Kind::Text(name) | Kind::Number(name) => name,
                Kind::Bool(value) => value.to_string(),
                _ => return Err(A::Error::custom("a key must be a word")),
            };
            entries.push(Entry { key: name, at: key.at, value: map.next_value()? });
        }
        Ok(Kind::Map(entries))
    }
}
