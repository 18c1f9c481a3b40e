//! From a source to its fields, or to the line and the kind of what is wrong.

use nickel_lang_core::ast::{Ast, AstAlloc, Node};
use nickel_lang_core::cache::{SourceCache, SourcePath};
use nickel_lang_core::error::{Error, EvalErrorKind, IntoDiagnostics, ParseErrors, TypecheckErrorKind};
use nickel_lang_core::eval::cache::CacheImpl;
use nickel_lang_core::eval::value::{Container, NickelValue};
use nickel_lang_core::files::Files;
use nickel_lang_core::position::TermPos;
use nickel_lang_core::program::{Program, ProgramBuilder};
use nickel_lang_core::serialize::{self, ExportFormat};
use nickel_lang_core::traverse::TraverseAlloc as _;
use serde_json::{Value, json};

/// What the source is called in positions.
const NAME: &str = "build-spec";

/// What is wrong. It says nothing of what is in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) line: Option<usize>,
    pub(crate) kind: &'static str,
}

impl Failure {
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self { line: None, kind }
    }
}

/// The fields of the record that `source` evaluates to: name, value, and the line where the name stands.
pub(crate) fn evaluate(source: &str) -> Result<Vec<Value>, Failure> {
    refuse_imports(source)?;
    let build = ProgramBuilder::new().add_source_string(source, NAME).build();
    let mut program: Program<CacheImpl> = build.map_err(|_| Failure::new("it cannot be read"))?;
    match program.eval_full_for_export() {
        Ok(value) => fields(source, &value),
        Err(error) => {
            let kind = kind(&error);
            Err(Failure { line: first_line(error, program.files()), kind })
        }
    }
}

/// An import is syntax, never a value: those of the source are all that there are.
fn refuse_imports(source: &str) -> Result<(), Failure> {
    let alloc = AstAlloc::new();
    let mut sources = SourceCache::new();
    let id = sources.add_string(SourcePath::Generated(NAME.into()), source.to_owned());
    let ast: Ast<'_> = sources.parse_nickel(&alloc, id).map_err(|errors: ParseErrors| {
        let line = first_line(Error::ParseErrors(errors), sources.files.clone());
        Failure { line, kind: "syntax error" }
    })?;
    let ast = alloc.alloc(ast);
    let import = ast.find_map(|node: &Ast<'_>| matches!(node.node, Node::Import(_)).then_some(node.pos));
    match import {
        None => Ok(()),
        Some(at) => {
            Err(Failure { line: line_of(source, at), kind: "import: a build spec is one file and reads no other" })
        }
    }
}

fn fields(source: &str, value: &NickelValue) -> Result<Vec<Value>, Failure> {
    let not_json = |line| Failure { line, kind: "a value that JSON does not have" };
    let record = match value.as_record() {
        Some(Container::Alloc(record)) => record,
        Some(Container::Empty) => return Ok(Vec::new()),
        None => return Err(Failure::new("it is not a record of fields")),
    };
    let shown = record.fields.iter().filter(|(_, field)| !field.metadata.not_exported());
    let entry = |(name, value): (_, &NickelValue)| {
        let name: &nickel_lang_core::identifier::LocIdent = name;
        let line = line_of(source, name.pos);
        serialize::validate(ExportFormat::Json, value).map_err(|_| not_json(line))?;
        let text = serialize::to_string(ExportFormat::Json, value).map_err(|_| not_json(line))?;
        let value: Value = serde_json::from_str(&text).map_err(|_| not_json(line))?;
        Ok(json!({ "name": name.label(), "line": line, "value": value }))
    };
    shown.filter_map(|(name, field)| Some((name, field.value.as_ref()?))).map(entry).collect()
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::ParseErrors(_) => "syntax error",
        Error::TypecheckError(data) => match data.borrow_error() {
            TypecheckErrorKind::UnboundIdentifier(_) => "an unknown name",
            _ => "type error",
        },
        Error::ImportError(_) => "import: a build spec is one file and reads no other",
        Error::ExportError(_) => "a value that JSON does not have",
        Error::EvalError(data) => match &data.error {
            EvalErrorKind::BlameError { .. } => "a contract is broken",
            EvalErrorKind::MissingFieldDef { .. } => "a field without a value",
            EvalErrorKind::FieldMissing { .. } => "a field that is not there",
            EvalErrorKind::UnboundIdentifier(..) => "an unknown name",
            EvalErrorKind::InfiniteRecursion(..) => "infinite recursion",
            EvalErrorKind::MergeIncompatibleArgs { .. } => "two values for one field",
            EvalErrorKind::NotAFunc(..) | EvalErrorKind::NotEnoughArgs(..) => "a call that does not work",
            EvalErrorKind::TypeError { .. }
            | EvalErrorKind::UnaryPrimopTypeError { .. }
            | EvalErrorKind::NAryPrimopTypeError { .. } => "a value of the wrong type",
            EvalErrorKind::SerializationError(_) => "a value that JSON does not have",
            _ => "it cannot be evaluated",
        },
        Error::IOError(_) | Error::ReplError(_) => "it cannot be evaluated",
    }
}

/// The first place within the source that the error is about: those of the standard library help nobody.
fn first_line(error: Error, mut files: Files) -> Option<usize> {
    let diagnostics = error.into_diagnostics(&mut files);
    let labels = diagnostics.iter().flat_map(|diagnostic| &diagnostic.labels);
    let here = labels.filter(|label| files.name(label.file_id).to_string_lossy().contains(NAME));
    let first = here.min_by_key(|label| label.style as u8)?;
    Some(line_at(files.source(first.file_id), first.range.start))
}

fn line_of(source: &str, at: TermPos) -> Option<usize> {
    at.into_opt().map(|span| line_at(source, span.start.into()))
}

/// From 1.
fn line_at(source: &str, position: usize) -> usize {
    source.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn failure(source: &str) -> (Option<usize>, &'static str) {
        let failure = evaluate(source).unwrap_err();
        (failure.line, failure.kind)
    }

    #[test]
    fn fields_come_with_their_values_and_lines() {
        let source = "let cores = 4 in\n{\n  schema_version = 1,\n  cpu | Number = cores * 2,\n  cache_keys = [\"a\"],\n} & {\n  memory_gb = 2.5\n}\n";
        let expected = json!([
            { "name": "schema_version", "line": 3, "value": 1 },
            { "name": "cpu", "line": 4, "value": 8 },
            { "name": "cache_keys", "line": 5, "value": ["a"] },
            { "name": "memory_gb", "line": 7, "value": 2.5 },
        ]);
        let mut fields = evaluate(source).unwrap();
        fields.sort_by_key(|field| field["line"].as_u64());
        assert_eq!(Value::Array(fields), expected);
        assert_eq!(evaluate("{}").unwrap(), Vec::<Value>::new());
        assert_eq!(evaluate("{ hidden | not_exported = 1 }").unwrap(), Vec::<Value>::new());
    }

    #[test]
    fn what_is_wrong_has_its_line_and_nothing_of_the_source() {
        assert_eq!(failure("{\n  cpu = ,\n}"), (Some(2), "syntax error"));
        assert_eq!(failure("{\n  cpu = secret,\n}"), (Some(2), "an unknown name"));
        assert_eq!(failure("{\n  cpu | String = 4,\n}"), (Some(2), "a contract is broken"));
        assert_eq!(failure("{\n  cpu : String = 4,\n}"), (Some(2), "type error"));
        assert_eq!(failure("{\n  cpu = cpu,\n}").1, "infinite recursion");
        assert_eq!(failure("{\n  cpu = 1 + \"a\",\n}"), (Some(2), "a value of the wrong type"));
        assert_eq!(failure("{ cpu = 1 } & { cpu = 2 }").1, "two values for one field");
        assert_eq!(failure("{\n\n  cpu = fun x => x }").1, "a value that JSON does not have");
        assert_eq!(failure("{ cpu }").1, "a field without a value");
        assert_eq!(failure("4").1, "it is not a record of fields");
        assert_eq!(failure("").1, "syntax error");
    }

    #[test]
    fn no_import_is_taken_wherever_it_stands() {
        for source in [
            "{\n  cpu = import \"/etc/passwd\" }",
            "let f = fun x =>\n  import \"/etc/passwd\" as 'Text in { cpu = 1 }",
            "{ cpu\n  | (import \"contract.ncl\") = 1 }",
            "{ cpu = 1,\n  \"%{import \"x.ncl\"}\" = 1 }",
            "{ cpu =\n  import package }",
        ] {
            assert_eq!(failure(source), (Some(2), "import: a build spec is one file and reads no other"), "{source}");
        }
    }
}
