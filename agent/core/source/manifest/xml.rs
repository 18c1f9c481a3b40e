//! From the text of one manifest to its elements.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use roxmltree::{Document, Node, ParsingOptions};

use super::{ManifestError, Place, shown};

/// Elements, texts and comments of one file.
const NODES_MAX: u32 = 200_000;
/// How deep projects may be nested.
const NESTED_MAX: usize = 8;

/// One element, and what is nested in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) projects: Vec<Element>,
    /// `copyfile` and `linkfile`.
    pub(super) files: Vec<Element>,
    pub(super) place: Place,
}

impl Element {
    /// The attribute; empty where there is none: `repo` makes no difference.
    pub(super) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, ManifestError> {
        match self.attribute(name) {
            "" => Err(self.error(format!("has no {name}"), format!("add {name}=\"...\""))),
            value => Ok(value),
        }
    }

    pub(super) fn set(&mut self, name: &str, value: String) {
        self.attributes.insert(name.to_owned(), value);
    }

    pub(super) fn error(&self, what: impl Into<String>, remedy: impl Into<String>) -> ManifestError {
        self.place.error(what, remedy)
    }

    /// With its attributes as they are written.
    fn read(node: Node<'_, '_>, file: &File, depth: usize) -> Result<Self, ManifestError> {
        let attributes: BTreeMap<String, String> =
            node.attributes().map(|one| (one.name().to_owned(), one.value().to_owned())).collect();
        let name = node.tag_name().name().to_owned();
        let by = ["name", "path"].into_iter().find_map(|by| Some((by, attributes.get(by)?)));
        let element = by.map_or_else(|| format!("<{name}>"), |(by, value)| format!("<{name} {by}={}>", shown(value)));
        let place = Place { file: Arc::clone(&file.name), line: file.line(node), element };
        if depth > NESTED_MAX {
            let what = format!("is nested more than {NESTED_MAX} deep");
            return Err(place.error(what, "write it beside its parent"));
        }
        let nested = node.children().filter(|child| name == "project" && child.has_tag_name("project"));
        let projects = nested.map(|child| Self::read(child, file, depth.saturating_add(1)));
        let projects = projects.collect::<Result<_, _>>()?;
        let is_file = |child: &Node<'_, '_>| child.has_tag_name("copyfile") || child.has_tag_name("linkfile");
        let files = node.children().filter(is_file).map(|child| Self::read(child, file, depth));
        Ok(Self { projects, files: files.collect::<Result<_, _>>()?, name, attributes, place })
    }
}

/// A file, and where its lines end: counting them anew for each element would take the square of its size.
struct File {
    name: Arc<str>,
    line_ends: Vec<usize>,
}

impl File {
    /// The node's line, from 1.
    fn line(&self, node: Node<'_, '_>) -> u32 {
        let before = self.line_ends.partition_point(|end| *end < node.range().start);
        u32::try_from(before.saturating_add(1)).unwrap_or(u32::MAX)
    }
}

/// The elements of a manifest, in order.
pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Element>, ManifestError> {
    // A document type is the one way to declare entities, and with them to make gigabytes or read files.
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| refused(file, text, &error))?;
    let root = document.root_element();
    let file = File {
        name: Arc::from(file),
        line_ends: text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect(),
    };
    if !root.has_tag_name("manifest") {
        let place = Place { line: file.line(root), ..Place::whole(&file.name) };
        let what = format!("begins with <{}>", root.tag_name().name());
        return Err(place.error(what, "write <manifest> around it"));
    }
    root.children().filter(Node::is_element).map(|node| Element::read(node, &file, 0)).collect()
}

fn refused(file: &str, text: &str, error: &roxmltree::Error) -> ManifestError {
    use roxmltree::Error;
    let place = Place { line: error.pos().row, ..Place::whole(file) };
    match error {
        Error::DtdDetected => {
            let line = text.lines().position(|line| line.contains("<!DOCTYPE")).and_then(|at| u32::try_from(at).ok());
            let place = Place { line: line.map_or(0, |at| at.saturating_add(1)), ..place };
            place.error("has a document type, with which entities could be declared", "remove the <!DOCTYPE ...>")
        }
        Error::UnknownEntityReference(name, _) => {
            let what = format!("has the entity {}, which is not one of XML's own", shown(name));
            place.error(what, "write the text that it stands for")
        }
        Error::NodesLimitReached => {
            place.error(format!("has more than {NODES_MAX} elements"), "list the projects in several manifests")
        }
        _ => place.error(format!("is not well-formed: {error}"), "see what `xmllint` says of it"),
    }
}
