//! What is wrong with a configuration: each problem names the field, the line, and what to write instead.

use std::fmt;

use super::document::{Mark, Node};

/// How many problems are kept; of those above it only the number is told.
pub const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, as `pools[1].directories[0].path`; empty where it is the whole file.
    pub field: String,
    /// The line, from 1; 0 where none can be named.
    pub line: u64,
    /// The column in characters, from 1; 0 where none can be named.
    pub column: u64,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// All that is wrong with one configuration, in the order of the file's lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// What the file is called.
    pub source_name: String,
    /// At least one, at most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub omitted: usize,
}

impl ConfigErrors {
    /// A problem of the file as a whole.
    pub(super) fn whole(source_name: &str, fault: Fault) -> Self {
        Self::at(source_name, Mark::default(), fault)
    }

    /// One problem at a place of the file that is not a field.
    pub(super) fn at(source_name: &str, mark: Mark, fault: Fault) -> Self {
        let problem = Problem {
            field: String::new(),
            line: mark.line,
            column: mark.column,
            message: fault.message,
            remedy: fault.remedy,
        };
        Self { source_name: source_name.to_owned(), problems: vec![problem], omitted: 0 }
    }
}

impl fmt::Display for Problem {
    /// Without its place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.field.is_empty() { "" } else { ": " };
        write!(f, "{}{separator}{} ({})", self.field, self.message, self.remedy)
    }
}

impl fmt::Display for ConfigErrors {
    /// One line a problem, for logs. People at a terminal get the blocks that `cli` renders.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{}", self.source_name)?;
            if problem.line > 0 {
                write!(f, ":{}:{}", problem.line, problem.column)?;
            }
            write!(f, ": {problem}")?;
        }
        match self.omitted {
            0 => Ok(()),
            n => write!(f, "\nand {n} more"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// Something wrong with a value, before it is known where the value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// What is wrong; reads on after the field's name.
    pub(super) message: String,
    /// What to do about it.
    pub(super) remedy: String,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// A field's place: its path for people, and the node that stands there. A field that the file does not name has its
/// parent's line.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    path: String,
    node: Option<&'a Node>,
    mark: Mark,
}

impl<'a> Place<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { path: String::new(), node: Some(node), mark: node.at }
    }

    /// The field `name` of a map.
    pub(super) fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        self.child(path, self.node.and_then(|node| node.get(name)))
    }

    /// The entry `index`, from 0, of a list.
    pub(super) fn entry(&self, index: usize) -> Self {
        self.child(format!("{}[{index}]", self.path), self.node.and_then(|node| node.entry(index)))
    }

    /// The same path at another mark (a key instead of its value).
    pub(super) fn at(mut self, mark: Mark) -> Self {
        self.mark = mark;
        self
    }

    /// The path, as `pools[0].path`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The line where it stands.
    pub(super) fn line(&self) -> u64 {
        self.mark.line
    }

    fn child(&self, path: String, node: Option<&'a Node>) -> Self {
        Self { path, node, mark: node.map_or(self.mark, |node| node.at) }
    }
}

/// Collects problems. What is already known to be wrong is not reported again, neither the field nor what is in it.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: Vec<Problem>,
    omitted: usize,
}

impl Problems {
    pub(super) fn add(&mut self, place: &Place<'_>, fault: Fault) {
        if self.list.iter().any(|known| covers(&known.field, &place.path)) {
            return;
        }
        if self.list.len() >= PROBLEMS_MAX {
            self.omitted = self.omitted.saturating_add(1);
            return;
        }
        self.list.push(Problem {
            field: place.path.clone(),
            line: place.mark.line,
            column: place.mark.column,
            message: fault.message,
            remedy: fault.remedy,
        });
    }

    /// The value, or what stands in for it when it is wrong: nothing that follows from a stand-in leaves this room.
    pub(super) fn take<T: Default>(&mut self, place: &Place<'_>, value: Result<T, Fault>) -> T {
        value.unwrap_or_else(|fault| {
            self.add(place, fault);
            T::default()
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn into_errors(mut self, source_name: &str) -> ConfigErrors {
        self.list.sort_by_key(|problem| (problem.line, problem.column));
        ConfigErrors { source_name: source_name.to_owned(), problems: self.list, omitted: self.omitted }
    }
}

/// `inner` is `outer` or lies in it.
fn covers(outer: &str, inner: &str) -> bool {
    match inner.strip_prefix(outer) {
        Some(rest) => outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']),
        None => false,
    }
}

/// A value as it is shown in a message: in quotes, escaped, and no longer than a line.
pub(super) fn shown(text: &str) -> String {
    const CHARACTERS_MAX: usize = 60;
    let mut short: String = text.chars().take(CHARACTERS_MAX).collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        short.push('…');
    }
    format!("{short:?}")
}
