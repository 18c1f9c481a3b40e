//! Within version 1 messages, fields, values and methods are only added. The committed `descriptor.binpb` is what was
//! promised so far; what the `.proto` files say now must keep all of it.
//!
//! `UPDATE_DESCRIPTOR=1 cargo test -p stoker-proto` records additions; a break is never recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use stoker_proto::DESCRIPTOR;

/// The package whose promises are kept.
const PACKAGE: &str = "stoker.v1";

/// What a descriptor promises: a path of names to what a client relies on, in words.
type Promises = BTreeMap<String, String>;

fn decode(bytes: &[u8]) -> FileDescriptorSet {
    prost::Message::decode(bytes).unwrap()
}

/// Only our own files, without comments: what is committed changes when a promise does, and not with a word of prose.
fn own(set: &FileDescriptorSet) -> FileDescriptorSet {
    let mut file: Vec<_> = set.file.iter().filter(|file| file.package() == PACKAGE).cloned().collect();
    for file in &mut file {
        file.source_code_info = None;
    }
    file.sort_by(|left, right| left.name.cmp(&right.name));
    FileDescriptorSet { file }
}

/// All promises. In which file a message stands is none of them.
fn promises(set: &FileDescriptorSet) -> Promises {
    let mut found = Promises::new();
    for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
        for message in &file.message_type {
            promise_message(&mut found, PACKAGE, message);
        }
        for values in &file.enum_type {
            promise_enum(&mut found, PACKAGE, values);
        }
        for service in &file.service {
            let path = format!("{PACKAGE}.{}", service.name());
            for method in &service.method {
                let stream = |on: bool| if on { "stream " } else { "" };
                let shape = format!(
                    "method ({}{}) returns ({}{})",
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type(),
                );
                found.insert(format!("{path}/{}", method.name()), shape);
            }
            found.insert(path, "service".to_owned());
        }
    }
    found
}

/// A field is known by its number on the wire and by its name in JSON: both are promised, each bound to the other.
fn promise_message(found: &mut Promises, scope: &str, message: &DescriptorProto) {
    let path = format!("{scope}.{}", message.name());
    for field in &message.field {
        let mut shape = format!("field {} {} {}", field.number(), field.name(), label(field.label()));
        match field.r#type() {
            Type::Message | Type::Enum | Type::Group => shape.push_str(field.type_name()),
            scalar => write!(shape, "{scalar:?}").unwrap(),
        }
        write!(shape, " json {}", field.json_name()).unwrap();
        if field.proto3_optional() {
            shape.push_str(" optional");
        } else if let Some(index) = field.oneof_index {
            let oneof = usize::try_from(index).ok().and_then(|index| message.oneof_decl.get(index)).unwrap();
            write!(shape, " oneof {}", oneof.name()).unwrap();
        }
        found.insert(format!("{path}.{}", field.name()), shape);
    }
    for nested in &message.nested_type {
        promise_message(found, &path, nested);
    }
    for values in &message.enum_type {
        promise_enum(found, &path, values);
    }
    found.insert(path, "message".to_owned());
}

fn label(label: Label) -> &'static str {
    match label {
        Label::Optional => "",
        Label::Required => "required ",
        Label::Repeated => "repeated ",
    }
}

fn promise_enum(found: &mut Promises, scope: &str, values: &EnumDescriptorProto) {
    let path = format!("{scope}.{}", values.name());
    for value in &values.value {
        found.insert(format!("{path}.{}", value.name()), format!("value {}", value.number()));
    }
    found.insert(path, "enum".to_owned());
}

/// What of `before` does not hold `now`.
fn breaks(before: &Promises, now: &Promises) -> Vec<String> {
    before
        .iter()
        .filter_map(|(path, shape)| match now.get(path) {
            None => Some(format!("{path} is gone ({shape})")),
            Some(other) if other != shape => Some(format!("{path} was `{shape}`, is `{other}`")),
            Some(_) => None,
        })
        .collect()
}

#[test]
fn what_was_promised_is_kept_and_what_is_new_is_recorded() {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("descriptor.binpb");
    let update = std::env::var_os("UPDATE_DESCRIPTOR").is_some();
    let current = own(&decode(DESCRIPTOR));
    let now = promises(&current);
    assert!(now.contains_key("stoker.v1.AdmissionService/Admit"), "the descriptor is not ours");
    match std::fs::read(&place) {
        Ok(bytes) => {
            let before = promises(&decode(&bytes));
            let broken = breaks(&before, &now);
            assert!(broken.is_empty(), "these changes break clients:\n  {}", broken.join("\n  "));
            let new: Vec<_> = now.keys().filter(|path| !before.contains_key(*path)).cloned().collect();
            assert!(
                new.is_empty() || update,
                "not recorded yet (run `UPDATE_DESCRIPTOR=1 cargo test -p stoker-proto` and commit \
                 proto/descriptor.binpb):\n  {}",
                new.join("\n  ")
            );
        }
        Err(error) => assert!(update, "{}: {error}", place.display()),
    }
    if update {
        std::fs::write(&place, prost::Message::encode_to_vec(&current)).unwrap();
    }
}

/// What a change of the descriptor breaks.
fn after(change: impl FnOnce(&mut FileDescriptorSet)) -> Vec<String> {
    let before = own(&decode(DESCRIPTOR));
    let mut now = before.clone();
    change(&mut now);
    assert_ne!(before, now, "the change changed nothing");
    breaks(&promises(&before), &promises(&now))
}

fn message<'a>(set: &'a mut FileDescriptorSet, name: &str) -> &'a mut DescriptorProto {
    set.file.iter_mut().flat_map(|file| &mut file.message_type).find(|message| message.name() == name).unwrap()
}

#[test]
fn additions_break_nothing() {
    let broken = after(|set| {
        let lease = message(set, "Lease");
        let mut field = lease.field[0].clone();
        field.name = Some("brand_new".to_owned());
        field.number = Some(900);
        lease.field.push(field);
        let mut other = lease.clone();
        other.name = Some("BrandNew".to_owned());
        set.file[0].message_type.push(other);
        let service = set.file.iter_mut().flat_map(|file| &mut file.service).next().unwrap();
        let mut method = service.method[0].clone();
        method.name = Some("BrandNew".to_owned());
        service.method.push(method);
        let values = set.file.iter_mut().flat_map(|file| &mut file.enum_type).next().unwrap();
        let mut value = values.value[0].clone();
        value.name = Some("BRAND_NEW".to_owned());
        value.number = Some(900);
        values.value.push(value);
    });
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn a_message_may_move_to_another_file() {
    let broken = after(|set| {
        let moved = set.file[0].message_type.remove(0);
        set.file[1].message_type.push(moved);
    });
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn every_break_of_a_field_is_found() {
    let broken = |change: fn(&mut DescriptorProto)| {
        let all = after(|set| change(message(set, "Lease")));
        assert!(!all.is_empty());
        all.join("; ")
    };
    assert!(broken(|lease| drop(lease.field.remove(0))).contains("stoker.v1.Lease.id is gone"));
    assert!(broken(|lease| lease.field[0].number = Some(900)).contains("stoker.v1.Lease.id was"));
    assert!(broken(|lease| lease.field[0].name = Some("key".to_owned())).contains("stoker.v1.Lease.id is gone"));
    assert!(broken(|lease| lease.field[0].json_name = Some("key".to_owned())).contains("stoker.v1.Lease.id was"));
    assert!(broken(|lease| lease.field[0].set_type(Type::Bytes)).contains("Bytes"));
    assert!(broken(|lease| lease.field[0].set_label(Label::Repeated)).contains("repeated"));
    let typed = broken(|lease| {
        let field = lease.field.iter_mut().find(|field| field.name() == "sizing").unwrap();
        field.type_name = Some(".stoker.v1.Size".to_owned());
    });
    assert!(typed.contains("stoker.v1.Lease.sizing was"));
    let moved = broken(|lease| {
        let field = lease.field.iter_mut().find(|field| field.name() == "pod").unwrap();
        field.oneof_index = None;
    });
    assert!(moved.contains("stoker.v1.Lease.pod was"));
    let present = broken(|lease| {
        let field = lease.field.iter_mut().find(|field| field.name() == "exit_code").unwrap();
        field.proto3_optional = None;
    });
    assert!(present.contains("stoker.v1.Lease.exit_code was"));
}

#[test]
fn every_break_of_a_method_a_value_or_a_whole_is_found() {
    fn admission(set: &mut FileDescriptorSet) -> &mut prost_types::ServiceDescriptorProto {
        set.file.iter_mut().flat_map(|file| &mut file.service).find(|one| one.name() == "AdmissionService").unwrap()
    }
    let first = |broken: Vec<String>| broken.into_iter().next().unwrap();
    let gone = first(after(|set| drop(admission(set).method.remove(0))));
    assert!(gone.starts_with("stoker.v1.AdmissionService/Evaluate is gone"));
    for change in [
        (|method| method.server_streaming = Some(true)) as fn(&mut prost_types::MethodDescriptorProto),
        |method| method.client_streaming = Some(true),
        |method| method.input_type = Some(".stoker.v1.AdmitRequest".to_owned()),
        |method| method.output_type = Some(".stoker.v1.AdmitResponse".to_owned()),
    ] {
        let changed = first(after(|set| change(&mut admission(set).method[0])));
        assert!(changed.starts_with("stoker.v1.AdmissionService/Evaluate was"));
    }
    let service = after(|set| set.file.iter_mut().for_each(|file| file.service.clear()));
    assert!(service.iter().any(|line| line.starts_with("stoker.v1.NodeService is gone")));
    let value = first(after(|set| {
        let nested = &mut message(set, "Reason").enum_type[0];
        nested.value.retain(|value| value.name() != "MEMORY_FLOOR");
    }));
    assert!(value.starts_with("stoker.v1.Reason.Code.MEMORY_FLOOR is gone"));
    let number = first(after(|set| message(set, "Reason").enum_type[0].value[1].number = Some(900)));
    assert!(number.contains("was `value 1`, is `value 900`"));
    let whole = after(|set| set.file.iter_mut().for_each(|file| file.message_type.retain(|one| one.name() != "Head")));
    assert!(whole.iter().any(|line| line.starts_with("stoker.v1.Head is gone")));
}

#[test]
fn only_our_own_files_are_recorded_and_no_prose() {
    let set = own(&decode(DESCRIPTOR));
    let names: BTreeSet<_> = set.file.iter().map(|file| file.name().to_owned()).collect();
    assert!(names.iter().all(|name| name.starts_with("stoker/v1/")), "{names:?}");
    assert!(set.file.iter().all(|file| file.source_code_info.is_none()));
}
