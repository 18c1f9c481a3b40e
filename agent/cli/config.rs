//! `config check, schema, print`: what people see of a configuration.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;

use super::{DONE, USAGE, screen};
use crate::config::{Config, ConfigErrors, FILE_BYTES_MAX, File, NodeIdentity, file, read};

/// `stoker config ...`
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Check a configuration: exit 0 where it is right, 64 with all that is wrong
    Check(Which),
    /// Print the JSON Schema of the configuration
    Schema,
    /// Print a configuration with all defaults filled in
    Print(Which),
}

/// Which configuration, for which node.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The configuration (YAML); - for standard input
    #[arg(long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as an argument
    #[arg(value_name = "FILE", conflicts_with = "file", required_unless_present = "file")]
    path: Option<PathBuf>,
    /// The node it is for; default: this one
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

/// Runs the command and says with which code to exit.
pub(super) fn run(command: &Command) -> u8 {
    let answer = match command {
        Command::Schema => Ok(schema() + "\n"),
        Command::Check(which) => which.read().and_then(|(text, name, node)| {
            check(&text, &name, &node).map(|found| render_summary(&found)).map_err(|errors| errors_of(&errors))
        }),
        Command::Print(which) => which.read().and_then(|(text, name, node)| {
            print(&text, &name, &node).map_err(|error| match error {
                PrintError::Config(errors) => errors_of(&errors),
                other @ PrintError::Yaml(_) => other.to_string(),
            })
        }),
    };
    match answer {
        Ok(text) => {
            screen::data(&text);
            DONE
        }
        Err(text) => {
            screen::say(text.trim_end());
            USAGE
        }
    }
}

fn errors_of(errors: &ConfigErrors) -> String {
    render_errors(errors, screen::Paint::of(&std::io::stderr()).is_on())
}

impl Which {
    fn read(&self) -> Result<(String, String, NodeIdentity), String> {
        let path = self.file.as_ref().or(self.path.as_ref()).cloned().unwrap_or_else(|| PathBuf::from("-"));
        let bound = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
        let mut text = String::new();
        let (name, read) = if path.as_os_str() == "-" {
            ("standard input".to_owned(), std::io::stdin().take(bound).read_to_string(&mut text))
        } else {
            let name = path.display().to_string();
            (name, std::fs::File::open(&path).and_then(|file| file.take(bound).read_to_string(&mut text)))
        };
        read.map_err(|error| format!("{name} cannot be read: {error}"))?;
        let here = NodeIdentity::of_this_node();
        let node = NodeIdentity { name: self.node.clone().unwrap_or(here.name), ..here };
        Ok((text, name, node))
    }
}

/// What `config check` says of a configuration that is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summary {
    /// What the file is called.
    pub(super) source_name: String,
    /// The node that it was read for.
    pub(super) node: String,
    /// The names of the pools of that node.
    pub(super) pools: Vec<String>,
    /// How many pools the file has for other nodes only.
    pub(super) pools_elsewhere: usize,
    /// How many directories the pools of that node have.
    pub(super) directories: usize,
    /// How many mirrors are declared.
    pub(super) mirrors: usize,
    /// What is allowed, but may not be meant.
    pub(super) notes: Vec<String>,
}

/// The JSON Schema of the configuration, indented.
#[must_use]
pub(super) fn schema() -> String {
    format!("{:#}", file::schema())
}

/// Checks a configuration for a node.
///
/// # Errors
///
/// All that is wrong.
pub(super) fn check(text: &str, source_name: &str, node: &NodeIdentity) -> Result<Summary, ConfigErrors> {
    let (file, config) = read(text, source_name, node)?;
    Ok(summary(&file, &config, source_name))
}

/// The configuration with all defaults filled in, as YAML that reads back to the same.
///
/// # Errors
///
/// All that is wrong.
pub(super) fn print(text: &str, source_name: &str, node: &NodeIdentity) -> Result<String, PrintError> {
    let (file, _) = read(text, source_name, node)?;
    Ok(file::to_yaml(&file)?)
}

/// Why a configuration is not printed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrintError {
    /// It is not right.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// It cannot be written as YAML.
    #[error("the configuration cannot be written as YAML: {0}")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// What a right configuration amounts to.
#[must_use]
pub(super) fn summary(file: &File, config: &Config, source_name: &str) -> Summary {
    let mut notes = Vec::new();
    for (what, pool) in [("repositories", &config.repositories.pool), ("workspaces", &config.workspaces.pool)] {
        if !config.pools.iter().any(|here| here.name == *pool) {
            notes.push(format!("the pool {pool} is not on this node: no {what} here"));
        }
    }
    Summary {
        source_name: source_name.to_owned(),
        node: config.node.name.clone(),
        pools: config.pools.iter().map(|pool| pool.name.clone()).collect(),
        pools_elsewhere: file.pools.len().saturating_sub(config.pools.len()),
        directories: config.pools.iter().map(|pool| pool.directories.len()).sum(),
        mirrors: config.repositories.mirrors.len(),
        notes,
    }
}

/// The summary in a line, and one for each note.
#[must_use]
pub(super) fn render_summary(summary: &Summary) -> String {
    let Summary { source_name, node, pools, pools_elsewhere, directories, mirrors, notes } = summary;
    let node = if node.is_empty() { String::new() } else { format!(" for node {node}") };
    let names = if pools.is_empty() { String::new() } else { format!(" ({})", pools.join(", ")) };
    let elsewhere = match pools_elsewhere {
        0 => String::new(),
        n => format!(", {n} on other nodes"),
    };
    let mut out = format!(
        "{source_name} is valid{node}: {}{names}{elsewhere}, {}, {}\n",
        counted(pools.len(), "pool", "pools"),
        counted(*directories, "directory", "directories"),
        counted(*mirrors, "mirror", "mirrors"),
    );
    for note in notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// One block a problem: what, where, and what to do. Colour is for terminals.
#[must_use]
pub(super) fn render_errors(errors: &ConfigErrors, colour: bool) -> String {
    let (red, blue, bold, plain) =
        if colour { ("\x1b[1;31m", "\x1b[1;34m", "\x1b[1m", "\x1b[0m") } else { ("", "", "", "") };
    let mut out = String::new();
    for problem in &errors.problems {
        let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
        let _ = writeln!(out, "{red}error{plain}{bold}: {field}{}{plain}", problem.message);
        let _ = write!(out, "  {blue}-->{plain} {}", errors.source_name);
        if problem.line > 0 {
            let _ = write!(out, ":{}:{}", problem.line, problem.column);
        }
        let _ = writeln!(out, "\n  {blue}={plain} {}\n", problem.remedy);
    }
    let told = counted(errors.problems.len().saturating_add(errors.omitted), "problem", "problems");
    let hidden = if errors.omitted == 0 { String::new() } else { format!(", {} not shown", errors.omitted) };
    let _ = writeln!(out, "{told} in {}{hidden}", errors.source_name);
    out
}

fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const WRONG: &str = "apiVersion: stoker.build/v1
kind: AgentConfig
pools:
  - name: data
    path: var/mnt/data
    floor: {bytes: 110%}
listen: {grpc: {address: 0.0.0.0:9417}}
";

    const RIGHT: &str = "apiVersion: stoker.build/v1
kind: AgentConfig
pools:
  - {name: data, path: /var/mnt/ghost-data, nodes: {names: [ghost]}, directories: [{path: bst-cache}]}
  - {name: data, path: /var/mnt/exo0-data, nodes: {names: [exo-0]}}
repositories: {mirrors: [{url: https://example.org/a}, {url: https://example.org/b}]}
";

    fn node(name: &str) -> NodeIdentity {
        NodeIdentity { name: name.to_owned(), ..NodeIdentity::default() }
    }

    #[test]
    fn people_see_what_where_and_what_to_do() {
        let errors = check(WRONG, "agent.yaml", &node("ghost")).unwrap_err();
        insta::assert_snapshot!(render_errors(&errors, false), @r#"
        error: pools[0].path: "var/mnt/data" is not an absolute path
          --> agent.yaml:5:11
          = write a path that begins with /

        error: pools[0].floor.bytes: "110%" is more than the whole
          --> agent.yaml:6:20
          = write bytes with a unit, as `10GiB`, or a percentage below 100, as `10%`

        error: listen.grpc.address: 0.0.0.0:9417 is not a loopback address, and there is no `tls`
          --> agent.yaml:7:26
          = add `tls`, or listen on a loopback address, as `127.0.0.1:9417`, with `insecure: loopback`

        3 problems in agent.yaml
        "#);
    }

    #[test]
    fn colour_only_when_asked() {
        let errors = check(WRONG, "agent.yaml", &node("ghost")).unwrap_err();
        let coloured = render_errors(&errors, true);
        let mut bare = coloured.clone();
        for code in ["\x1b[1;31m", "\x1b[1;34m", "\x1b[1m", "\x1b[0m"] {
            assert!(bare.contains(code), "{coloured}");
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, render_errors(&errors, false));
    }

    #[test]
    fn what_is_hidden_is_counted() {
        let mut errors = check("", "agent.yaml", &node("ghost")).unwrap_err();
        errors.omitted = 3;
        insta::assert_snapshot!(render_errors(&errors, false), @r"
        error: the file is empty
          --> agent.yaml
          = begin with `apiVersion: stoker.build/v1` and `kind: AgentConfig`

        4 problems in agent.yaml, 3 not shown
        ");
    }

    #[test]
    fn a_right_file_is_summed_up_for_its_node() {
        let here = check(RIGHT, "agent.yaml", &node("ghost")).unwrap();
        let elsewhere = check(RIGHT, "agent.yaml", &node("control")).unwrap();
        insta::assert_snapshot!(render_summary(&here) + &render_summary(&elsewhere), @r"
        agent.yaml is valid for node ghost: 1 pool (data), 1 on other nodes, 1 directory, 2 mirrors
        agent.yaml is valid for node control: 0 pools, 2 on other nodes, 0 directories, 2 mirrors
        note: the pool data is not on this node: no repositories here
        note: the pool data is not on this node: no workspaces here
        ");
    }

    #[test]
    fn the_schema_is_json_for_editors() {
        let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
        assert_eq!(schema["title"], "File");
        assert_eq!(schema["properties"]["pools"]["items"]["properties"]["mount"]["default"], "required");
    }

    #[test]
    fn print_fills_in_and_refuses() {
        let printed = print(RIGHT, "agent.yaml", &node("ghost")).unwrap();
        assert!(printed.contains("refresh: 5m"), "{printed}");
        assert_eq!(print(&printed, "printed", &node("ghost")).unwrap(), printed);
        assert!(matches!(print(WRONG, "agent.yaml", &node("ghost")), Err(PrintError::Config(_))));
    }
}
