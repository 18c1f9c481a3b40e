//! Does a file have the shape that its schema says: no unknown and no missing fields, each value of its kind.
//!
//! A deserializer stops at the first of these. Here the tree is held against the JSON Schema that the structs of `file`
//! give, so that all are found; what is wrong is left out of, or stood in for in, the value that is handed on, and so
//! the rest can still be validated.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::document::{Entry, Kind, Node};
use super::problem::{Fault, Place, Problems, shown};

/// Fields that other versions have, or that people may expect, and what to do without them.
const KNOWN_ABSENT: &[(&str, &str)] =
    &[("tenants", "tenants of callers are told by `access.rules`, their shares by `admission.tenants`: remove it")];

/// Holds `node` against `schema`; gives what of it has the right shape.
pub(super) fn check(node: &Node, schema: &Value, place: &Place<'_>, problems: &mut Problems) -> Value {
    let schema = without_null(schema);
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        return match &node.kind {
            Kind::Map(entries) => map(entries, properties, schema, place, problems),
            _ => wrong(node, schema, "a map", place, problems),
        };
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        return match &node.kind {
            Kind::Map(entries) => free_map(entries, values, place, problems),
            _ => wrong(node, schema, "a map", place, problems),
        };
    }
    if let Some(items) = schema.get("items") {
        return match &node.kind {
            Kind::List(list) => {
                let each = list.iter().enumerate();
                each.map(|(index, item)| check(item, items, &place.entry(index), problems)).collect()
            }
            _ => wrong(node, schema, "a list", place, problems),
        };
    }
    let words = words(schema);
    if !words.is_empty() {
        return match &node.kind {
            Kind::Text(text) if words.contains(&text.as_str()) => json!(text),
            _ => word(node, &words, place, problems),
        };
    }
    scalar(node, schema, place, problems)
}

fn map(
    entries: &[Entry],
    properties: &Map<String, Value>,
    schema: &Value,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Value {
    let mut fields = Map::new();
    let mut seen = BTreeMap::new();
    for entry in entries {
        let here = place.field(&entry.key);
        if let Some(line) = seen.insert(entry.key.as_str(), entry.at.line) {
            let message = format!("is given twice, first in line {line}");
            problems.add(&here.at(entry.at), Fault::new(message, "keep one of them"));
            continue;
        }
        match properties.get(&entry.key) {
            None => unknown(entry, properties, here.at(entry.at), problems),
            // Nothing written is nothing said: the default holds.
            Some(_) if matches!(entry.value.kind, Kind::Null) => {}
            Some(schema) => {
                fields.insert(entry.key.clone(), check(&entry.value, schema, &here, problems));
            }
        }
    }
    for name in required(schema) {
        if !fields.contains_key(name) {
            let field = properties.get(name).unwrap_or(&Value::Null);
            let about = field.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
            let remedy = match words(field).as_slice() {
                [only] => format!("add `{name}: {only}`"),
                _ => format!("add `{name}`: {about}"),
            };
            problems.add(&place.field(name), Fault::new("is missing", remedy));
            fields.insert(name.to_owned(), stand_in(field));
        }
    }
    Value::Object(fields)
}

/// A map with keys that the file's author chooses.
fn free_map(entries: &[Entry], values: &Value, place: &Place<'_>, problems: &mut Problems) -> Value {
    let mut fields = Map::new();
    for entry in entries {
        let here = place.field(&entry.key);
        if fields.contains_key(&entry.key) {
            problems.add(&here.at(entry.at), Fault::new("is given twice", "keep one of them"));
            continue;
        }
        fields.insert(entry.key.clone(), check(&entry.value, values, &here, problems));
    }
    Value::Object(fields)
}

fn unknown(entry: &Entry, properties: &Map<String, Value>, here: Place<'_>, problems: &mut Problems) {
    let path = here.path();
    let absent = KNOWN_ABSENT.iter().find(|(known, _)| *known == path).map(|(_, remedy)| (*remedy).to_owned());
    let alike = properties.keys().find(|known| known.eq_ignore_ascii_case(&entry.key.replace(['-', '_'], "")));
    let remedy = absent.unwrap_or_else(|| match alike {
        Some(known) => format!("write `{known}`"),
        None => {
            format!("remove it; known here: {}", properties.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        }
    });
    problems.add(&here, Fault::new("is not a known field", remedy));
}

fn scalar(node: &Node, schema: &Value, place: &Place<'_>, problems: &mut Problems) -> Value {
    let is = |kind: &str| match schema.get("type") {
        Some(Value::String(one)) => one == kind,
        Some(Value::Array(many)) => many.iter().any(|one| one == kind),
        _ => false,
    };
    let (text, number) = (is("string"), is("number") || is("integer"));
    match &node.kind {
        Kind::Bool(value) if is("boolean") => json!(value),
        Kind::Text(value) if text => json!(value),
        // Amounts are kept as written; their unit is looked at later.
        Kind::Number(value) if text && number => json!(value),
        Kind::Number(value) if number => match value.parse::<u64>() {
            Ok(value) => json!(value),
            Err(_) => {
                let message = format!("is {value}, which is not a whole number from 0");
                problems.add(place, Fault::new(message, "write a whole number without sign and unit"));
                stand_in(schema)
            }
        },
        Kind::Number(_) | Kind::Bool(_) if text => {
            let message = format!("is {}, text is wanted", node.described());
            let remedy = match schema.get("examples").and_then(Value::as_array).and_then(|all| all.first()) {
                Some(example) => format!("put it in quotes, with its unit where it has one, as `{example}`"),
                None => "put it in quotes".to_owned(),
            };
            problems.add(place, Fault::new(message, remedy));
            stand_in(schema)
        }
        _ if text => wrong(node, schema, "text", place, problems),
        _ if number => wrong(node, schema, "a whole number", place, problems),
        _ => wrong(node, schema, "`true` or `false`", place, problems),
    }
}

fn word(node: &Node, words: &[&str], place: &Place<'_>, problems: &mut Problems) -> Value {
    let message = match &node.kind {
        Kind::Text(text) | Kind::Number(text) => format!("{} is not a word for it", shown(text)),
        _ => format!("is {}, a word is wanted", node.described()),
    };
    let list = words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or ");
    problems.add(place, Fault::new(message, format!("write {list}")));
    json!(words.first())
}

fn wrong(node: &Node, schema: &Value, wanted: &str, place: &Place<'_>, problems: &mut Problems) -> Value {
    let message = format!("is {}, {wanted} is wanted", node.described());
    problems.add(place, Fault::new(message, format!("write {wanted}")));
    stand_in(schema)
}

/// A value of the right shape, for one that is missing or wrong. It never reaches a configuration.
fn stand_in(schema: &Value) -> Value {
    let schema = without_null(schema);
    if let Some(word) = words(schema).first() {
        return json!(word);
    }
    match schema.get("type").map(|kind| kind.as_array().and_then(|many| many.first()).unwrap_or(kind)) {
        Some(Value::String(kind)) => match kind.as_str() {
            "object" => {
                let field = |name| (String::from(name), stand_in(&schema["properties"][name]));
                Value::Object(required(schema).map(field).collect())
            }
            "array" => json!([]),
            "boolean" => json!(false),
            "integer" | "number" => json!(0),
            _ => json!(""),
        },
        _ => Value::Null,
    }
}

fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The schema of the value where there is one: optional fields are `anyOf` it and null.
fn without_null(schema: &Value) -> &Value {
    let Some(any) = schema.get("anyOf").and_then(Value::as_array) else { return schema };
    any.iter().find(|one| one.get("type").is_none_or(|kind| kind != "null")).unwrap_or(schema)
}

/// The words of an enumeration; none for anything else.
fn words(schema: &Value) -> Vec<&str> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let each = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    let only = schema.get("const").into_iter();
    listed.chain(each.filter_map(|one| one.get("const"))).chain(only).filter_map(Value::as_str).collect()
}
