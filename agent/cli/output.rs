//! `stoker output`: what builds left, and for how long.

use stoker_proto::v1;
use tonic::Status;

use super::ask::{self, Ended, Failure, PAGE, within};
use super::client::Client;
use super::screen::{self, bytes, counted};
use super::table::{self, Fields, Grid, Tone, View, cell};
use super::{Common, DONE};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Those that are there, the oldest first
    List(List),
    /// One of them
    Show(Named),
    /// Keep one for good
    Release(Named),
    /// Delete one; returns before the files are gone
    Delete(Named),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Those of this tenant; default: of all
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    tenant: String,
    /// Those of this project
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    project: String,
    /// Those of this branch
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    branch: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// The output
    #[arg(value_name = "OUTPUT")]
    id: String,
}

pub(super) async fn run(common: &Common, command: &Command) -> u8 {
    ask::exit(obey(common, command).await)
}

async fn obey(common: &Common, command: &Command) -> Ended {
    let (client, format) = (Client::of(common).await?, common.output);
    match command {
        Command::List(wanted) => ask::answer(format, &list(&client, wanted).await?, render_list)?,
        Command::Show(Named { id }) => {
            let request = within(ask::SOON, v1::GetOutputRequest { id: id.clone() });
            let answer = client.workspaces().get_output(request).await?.into_inner();
            ask::answer(format, &answer, |answer, view| render(answer.output.as_ref(), view))?;
        }
        Command::Release(Named { id }) => {
            let request = within(ask::SOON, v1::ReleaseOutputRequest { id: id.clone() });
            let answer = client.workspaces().release_output(request).await?.into_inner();
            ask::answer(format, &answer, |answer, view| render(answer.output.as_ref(), view))?;
        }
        Command::Delete(Named { id }) => {
            let request = within(ask::SOON, v1::DeleteOutputRequest { id: id.clone() });
            let answer = client.workspaces().delete_output(request).await?.into_inner();
            ask::answer(format, &answer, |_, _| String::new())?;
            screen::say(&format!("output {} is deleted", screen::safe(id)));
        }
    }
    Ok::<u8, Failure>(DONE)
}

async fn list(client: &Client, wanted: &List) -> Result<v1::ListOutputsResponse, Status> {
    let List { tenant, project, branch } = wanted;
    let outputs = ask::all(|page_token| async move {
        let scope = v1::Scope { tenant: tenant.clone(), project: project.clone(), branch: branch.clone() };
        let request = v1::ListOutputsRequest { page_size: PAGE, page_token, scope: Some(scope) };
        let page = client.workspaces().list_outputs(within(ask::SOON, request)).await?.into_inner();
        Ok((page.outputs, page.next_page_token))
    });
    Ok(v1::ListOutputsResponse { outputs: outputs.await?, next_page_token: String::new() })
}

/// `main` of `branch:main`.
fn short(reference: &str) -> &str {
    reference.split_once(':').map_or(reference, |(_, name)| name)
}

/// How the build ended, in a word.
fn ended(output: &v1::Output) -> (&'static str, Tone) {
    match output.outcome() {
        v1::Outcome::Unspecified => ("-", Tone::Dim),
        v1::Outcome::Succeeded => ("succeeded", Tone::Good),
        v1::Outcome::Failed => ("failed", Tone::Bad),
        v1::Outcome::OutOfMemoryLimit | v1::Outcome::OutOfMemoryNode => ("out of memory", Tone::Bad),
        v1::Outcome::TimeBudgetExceeded => ("over its time", Tone::Bad),
        v1::Outcome::Evicted => ("evicted", Tone::Bad),
        v1::Outcome::Lost => ("lost", Tone::Warn),
    }
}

fn size(output: &v1::Output) -> String {
    match output.bytes {
        None => "-".to_owned(),
        Some(value) if output.partial => format!("> {}", bytes(value)),
        Some(value) => bytes(value),
    }
}

fn goes(output: &v1::Output, view: &View) -> String {
    match &output.expires_at {
        None => "never".to_owned(),
        Some(at) => view.when(Some(at)),
    }
}

fn render_list(list: &v1::ListOutputsResponse, view: &View) -> String {
    if list.outputs.is_empty() {
        return format!("{}\n", view.paint.dim("no outputs"));
    }
    let mut grid = Grid::new(&["OUTPUT", "BUILT", "COMMIT", "FOR", "BUILD", "SIZE", "SINCE", "GOES"]);
    grid = grid.right(&[5]).wraps(&[1, 3]);
    for output in &list.outputs {
        let (word, tone) = ended(output);
        grid.row([
            cell(&output.id).tone(Tone::Bold),
            cell(format!("{} {}", table::short_url(&output.repository_url), short(&output.r#ref)).trim_end()),
            cell(table::short_commit(&output.commit)),
            cell(table::scope(output.scope.as_ref())),
            cell(word).tone(tone),
            cell(size(output)),
            cell(view.lasting(output.created_at.as_ref())),
            cell(goes(output, view)).tone(if output.released { Tone::Good } else { Tone::Plain }),
        ]);
    }
    grid.render(view)
}

fn render(output: Option<&v1::Output>, view: &View) -> String {
    let Some(output) = output else { return String::new() };
    let mut fields = Fields::new();
    fields.put("output", cell(&output.id).tone(Tone::Bold));
    fields.add("repository", &output.repository_url);
    fields.add("ref", &output.r#ref);
    fields.add("commit", &output.commit);
    fields.add("for", table::scope(output.scope.as_ref()));
    fields.add("lease", &output.lease_id);
    let (word, tone) = ended(output);
    let code = output.exit_code.map(|code| format!(", exit {code}")).unwrap_or_default();
    fields.put("build", cell(format!("{word}{code}")).tone(tone));
    let files = output.files.map(|files| format!("{}, {}", counted(files, "file", "files"), size(output)));
    fields.add("holds", files.unwrap_or_else(|| "not counted yet".to_owned()));
    fields.add("kept", view.when(output.created_at.as_ref()));
    let goes = if output.released {
        format!("never: released {}", view.when(output.released_at.as_ref()))
    } else {
        format!("{}, by {}", goes(output, view), output.rule)
    };
    fields.add("goes", goes);
    fields.add("trust", &output.trust);
    fields.add("path", &output.path);
    fields.add("http", format!("/outputs/{}/", output.id));
    fields.render(view)
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{VIEW, ago};
    use super::*;

    fn output(id: &str, released: bool) -> v1::Output {
        let mut output = v1::Output {
            id: id.to_owned(),
            path: format!("/var/mnt/ghost-data/stoker/outputs/{id}"),
            scope: Some(v1::Scope { tenant: "red".to_owned(), project: "stx".to_owned(), branch: "main".to_owned() }),
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            created_at: ago(7_300),
            expires_at: if released { None } else { ago(7_300 - 14 * 86_400) },
            released,
            released_at: if released { ago(30) } else { None },
            repository_url: "https://github.com/projectbluefin/dakota".to_owned(),
            r#ref: "branch:main".to_owned(),
            lease_id: id.to_owned(),
            exit_code: Some(0),
            files: Some(1_234),
            bytes: Some(512 << 20),
            rule: "outputs.retention (14 d)".to_owned(),
            trust: "public".to_owned(),
            ..Default::default()
        };
        output.set_outcome(v1::Outcome::Succeeded);
        output
    }

    #[test]
    fn outputs_are_shown_with_when_they_go() {
        let uncounted = v1::Output { files: None, bytes: None, ..output("06f1b5ynfxyz0002", false) };
        let outputs = vec![output("06f1b5ynfxyz0001", true), uncounted];
        let list = v1::ListOutputsResponse { outputs, ..Default::default() };
        insta::assert_snapshot!(render_list(&list, &VIEW), @r"
        OUTPUT            BUILT           COMMIT        FOR           BUILD         SIZE  SINCE      GOES
        06f1b5ynfxyz0001  projectbluefin  0123456789ab  red/stx/main  succeeded  512 MiB  2 h 1 min  never
                          /dakota main
        06f1b5ynfxyz0002  projectbluefin  0123456789ab  red/stx/main  succeeded        -  2 h 1 min  in 13 d
                          /dakota main
        ");
        insta::assert_snapshot!(render(Some(&output("06f1b5ynfxyz0001", false)), &VIEW), @r"
        output      06f1b5ynfxyz0001
        repository  https://github.com/projectbluefin/dakota
        ref         branch:main
        commit      0123456789abcdef0123456789abcdef01234567
        for         red/stx/main
        lease       06f1b5ynfxyz0001
        build       succeeded, exit 0
        holds       1,234 files, 512 MiB
        kept        2 h 1 min ago
        goes        in 13 d, by outputs.retention (14 d)
        trust       public
        path        /var/mnt/ghost-data/stoker/outputs/06f1b5ynfxyz0001
        http        /outputs/06f1b5ynfxyz0001/
        ");
        assert!(render(Some(&output("x", true)), &VIEW).contains("never: released 30 s ago"));
    }
}
