//! The environment of a build, also as files that a step can read.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use serde_json::json;

use super::Workspace;

/// What a shell sources, beside `src`.
const SHELL_FILE: &str = "environment";
/// The same and where everything is, for programs.
const JSON_FILE: &str = "workspace.json";

/// Writes both. `more` is what others add: how git reaches the node's cache.
pub(super) fn write(workspace: &Workspace, more: &BTreeMap<String, String>) -> io::Result<()> {
    let environment: BTreeMap<String, String> = more.clone().into_iter().chain(workspace.environment()).collect();
    let lines = environment.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value)));
    let home = workspace.home();
    fs::write(home.join(SHELL_FILE), lines.collect::<String>())?;
    let told = json!({
        "workspace": {
            "id": workspace.id,
            "leaseId": workspace.lease.as_ref().map(ToString::to_string).unwrap_or_default(),
            "src": workspace.src,
            "tmp": workspace.tmp,
            "out": workspace.out,
            "cache": workspace.cache,
            "commit": workspace.source.commit.to_string(),
            "repositoryUrl": workspace.source.clone_url,
            "ref": workspace.source.reference,
            "method": format!("METHOD_{}", workspace.method.to_string().to_uppercase()),
            "environment": environment,
        }
    });
    fs::write(home.join(JSON_FILE), serde_json::to_vec_pretty(&told)?)
}

/// One word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_value_is_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME `x` \\"), r"'it'\''s $HOME `x` \'");
    }
}
