//! What a commit says of its build: its spec, its language, how much there is of it.

use std::collections::BTreeMap;

use stoker_core::reason::Reason;
use stoker_core::sizing::{Language, Spec};

use super::spec::{self, SpecError, SpecFile};

/// A listing of a commit, as far as sizes need it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The names of files at the root (no folders).
    pub root_files: Vec<String>,
    /// By extension (lower case, without the dot): how many files, how many bytes.
    pub extensions: BTreeMap<String, (u64, u64)>,
    /// All files.
    pub files: u64,
    /// All their bytes.
    pub bytes: u64,
}

/// What a commit says of its build.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its build spec, or why that is refused. None: it has none.
    pub spec: Option<Result<SpecFile, SpecError>>,
    /// What it is mostly written in.
    pub language: Language,
    /// All files.
    pub files: u64,
    /// All their bytes.
    pub bytes: u64,
}

impl Facts {
    /// From a listing; `read` gives the content of a regular file at the root, none where there is no such file, and
    /// `nickel` evaluates one.
    pub fn of(
        tree: &Tree,
        read: impl FnMut(&str) -> Option<Vec<u8>>,
        nickel: impl FnOnce(&[u8]) -> Result<SpecFile, SpecError>,
    ) -> Self {
        Self {
            spec: spec::find(&tree.root_files, read, nickel),
            language: language(tree),
            files: tree.files,
            bytes: tree.bytes,
        }
    }

    /// Whether another look may say something else of the same commit.
    pub(super) fn is_passing(&self) -> bool {
        matches!(&self.spec, Some(Err(error)) if error.passing)
    }

    /// The build spec, where there is one.
    ///
    /// # Errors
    /// When there is one and it is refused.
    pub fn spec(&self) -> Result<Option<&Spec>, Reason> {
        match &self.spec {
            None => Ok(None),
            Some(Ok(file)) => Ok(Some(&file.spec)),
            Some(Err(error)) => Err(error.reason()),
        }
    }
}

/// Extensions of the languages that have a size of their own.
const EXTENSIONS: [(&str, Language); 16] = [
    ("rs", Language::Rust),
    ("go", Language::Go),
    ("java", Language::Java),
    ("kt", Language::Kotlin),
    ("kts", Language::Kotlin),
    ("scala", Language::Scala),
    ("sc", Language::Scala),
    ("js", Language::Node),
    ("cjs", Language::Node),
    ("mjs", Language::Node),
    ("jsx", Language::Node),
    ("ts", Language::Node),
    ("cts", Language::Node),
    ("mts", Language::Node),
    ("tsx", Language::Node),
    ("vue", Language::Node),
];

/// Extensions of other languages, so that a C project with one script is not called a JavaScript one.
const OTHERS: [&str; 38] = [
    "asm", "c", "cc", "clj", "cpp", "cs", "cxx", "d", "dart", "el", "erl", "ex", "f90", "fs", "h", "hh", "hpp", "hs",
    "hxx", "jl", "lisp", "lua", "m", "ml", "mm", "nim", "nix", "pas", "php", "pl", "py", "r", "rb", "s", "scm", "sh",
    "swift", "zig",
];

/// The build file at the root says it; else the language with the most bytes does.
fn language(tree: &Tree) -> Language {
    let has = |names: &[&str]| tree.root_files.iter().any(|file| names.contains(&file.as_str()));
    let ends = |end: &str| tree.root_files.iter().any(|file| file.ends_with(end));
    if has(&["Cargo.toml"]) {
        Language::Rust
    } else if has(&["go.mod"]) {
        Language::Go
    } else if has(&["build.sbt"]) {
        Language::Scala
    } else if has(&["pom.xml", "build.gradle", "build.gradle.kts"]) {
        most_bytes(tree, &[Language::Java, Language::Kotlin, Language::Scala]).unwrap_or(Language::Java)
    } else if ends(".kt") {
        Language::Kotlin
    } else if ends(".scala") {
        Language::Scala
    } else if has(&["package.json"]) {
        Language::Node
    } else {
        let all = EXTENSIONS.map(|(_, language)| language);
        most_bytes(tree, &[all.as_slice(), &[Language::Other]].concat()).unwrap_or(Language::Other)
    }
}

/// Which of these languages has the most bytes; none where none has any.
fn most_bytes(tree: &Tree, among: &[Language]) -> Option<Language> {
    let mut sums: BTreeMap<Language, u64> = BTreeMap::new();
    for (extension, (_, bytes)) in &tree.extensions {
        let known = EXTENSIONS.iter().find(|(name, _)| name == extension).map(|(_, language)| *language);
        let other = OTHERS.contains(&extension.as_str()).then_some(Language::Other);
        if let Some(language) = known.or(other).filter(|language| among.contains(language)) {
            let sum = sums.entry(language).or_default();
            *sum = sum.saturating_add(*bytes);
        }
    }
    sums.into_iter().filter(|(_, bytes)| *bytes > 0).max_by_key(|(_, bytes)| *bytes).map(|(language, _)| language)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tree(root_files: &[&str], extensions: &[(&str, u64)]) -> Tree {
        Tree {
            root_files: root_files.iter().map(|name| (*name).to_owned()).collect(),
            extensions: extensions.iter().map(|(name, bytes)| ((*name).to_owned(), (1, *bytes))).collect(),
            files: 7,
            bytes: 70,
        }
    }

    #[test]
    fn the_build_file_says_the_language() {
        let of = |root: &[&str], extensions: &[(&str, u64)]| language(&tree(root, extensions));
        assert_eq!(of(&["Cargo.toml", "package.json"], &[("js", 900)]), Language::Rust);
        assert_eq!(of(&["go.mod"], &[]), Language::Go);
        assert_eq!(of(&["pom.xml"], &[]), Language::Java);
        assert_eq!(of(&["build.gradle.kts"], &[("java", 1), ("kt", 2), ("js", 50)]), Language::Kotlin);
        assert_eq!(of(&["build.sbt"], &[]), Language::Scala);
        assert_eq!(of(&["Main.kt"], &[]), Language::Kotlin);
        assert_eq!(of(&["package.json"], &[("py", 900)]), Language::Node);
    }

    #[test]
    fn without_a_build_file_the_most_bytes_do() {
        let of = |extensions: &[(&str, u64)]| language(&tree(&["README.md"], extensions));
        assert_eq!(of(&[("ts", 60), ("js", 60), ("rs", 100), ("md", 5000)]), Language::Node);
        assert_eq!(of(&[("c", 80), ("h", 30), ("js", 100)]), Language::Other);
        assert_eq!(of(&[("md", 5000)]), Language::Other);
        assert_eq!(of(&[("rs", 0)]), Language::Other);
        assert_eq!(of(&[]), Language::Other);
    }

    #[test]
    fn facts_name_the_spec_and_count_the_files() {
        let read = |name: &str| {
            assert_eq!(name, ".build-spec.json");
            Some(b"{\"schema_version\": 1, \"cpu\": 3}".to_vec())
        };
        let none = |_: &[u8]| unreachable!("nothing to evaluate");
        let facts = Facts::of(&tree(&[".build-spec.json", "Cargo.toml"], &[]), read, none);
        assert_eq!(facts.spec.unwrap().unwrap().spec.cpu.unwrap().value, 3000);
        assert_eq!((facts.language, facts.files, facts.bytes), (Language::Rust, 7, 70));
        assert_eq!(Facts::of(&tree(&[], &[]), |_| None, none).spec, None);
    }
}
