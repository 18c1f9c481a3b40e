//! `stoker workspace`: what one build gets, also for people who want to look.

use stoker_core::source::{RepositoryUrl, SourceRef};
use stoker_proto::v1;
use tonic::Status;

use super::ask::{self, Ended, Failure, PAGE, within};
use super::client::Client;
use super::lease::Scope;
use super::screen::{self, Steps, bytes, counted};
use super::table::{self, Fields, Grid, Tone, View, cell, lines};
use super::{Common, DONE, amount};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make one, of a lease or for people
    Prepare(Box<Prepare>),
    /// All that are there
    List,
    /// One of them
    Show {
        /// The workspace
        #[arg(value_name = "WORKSPACE")]
        id: String,
    },
    /// Delete one; returns before the files are gone
    Delete {
        /// The workspace
        #[arg(value_name = "WORKSPACE")]
        id: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Prepare {
    /// The repository: a URL or a path
    #[arg(long, value_name = "URL", required_unless_present = "lease")]
    repo: Option<String>,
    /// head, branch:NAME, tag:NAME, pr:NUMBER or sha:COMMIT; default: the upstream's HEAD
    #[arg(long = "ref", value_name = "REF", requires = "repo")]
    reference: Option<String>,
    /// The workspace of this lease, with its source; --repo and --ref are then only compared with it
    #[arg(long, value_name = "ID")]
    lease: Option<String>,
    /// Without a lease: how long it lives; default: 24h, at most 7 days
    #[arg(long = "for", value_name = "DURATION", value_parser = amount::span, conflicts_with = "lease")]
    lasting: Option<prost_types::Duration>,
    /// Without a lease: what this request is called; the same id gives the same workspace; default: a new one
    #[arg(long, value_name = "ID", conflicts_with = "lease")]
    request_id: Option<String>,
    /// The user that it belongs to; default: the agent's
    #[arg(long, value_name = "UID")]
    user: Option<u32>,
    /// The group that it belongs to; default: the agent's
    #[arg(long, value_name = "GID")]
    group: Option<u32>,
    /// Check the submodules out too, and theirs
    #[arg(long)]
    submodules: bool,
    #[command(flatten)]
    manifest: Manifest,
    /// With its large files (git-lfs) in the place of their pointers
    #[arg(long)]
    lfs: bool,
    /// With all objects in src/.git, so that it works wherever it is copied to
    #[arg(long)]
    self_contained: bool,
    /// With a lease: tmp in memory, of this size (1GiB); it is counted in the lease's memory
    #[arg(long, value_name = "BYTES", value_parser = amount::bytes, requires = "lease")]
    tmpfs: Option<i64>,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Debug, clap::Args)]
pub(super) struct Manifest {
    /// The projects of a manifest (of the tool repo) in the repository; default: default.xml
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "", conflicts_with = "submodules")]
    manifest: Option<String>,
    /// Which of its projects, as `repo init --groups` takes them
    #[arg(long, value_name = "GROUPS", requires = "manifest", default_value = "", hide_default_value = true)]
    groups: String,
}

impl Manifest {
    pub(super) fn message(&self) -> Option<v1::Manifest> {
        let file = self.manifest.clone()?;
        Some(v1::Manifest { file, groups: self.groups.clone() })
    }
}

pub(super) async fn run(common: &Common, command: &Command) -> u8 {
    ask::exit(obey(common, command).await)
}

async fn obey(common: &Common, command: &Command) -> Ended {
    let format = common.output;
    match command {
        Command::Prepare(wanted) => {
            let answer = v1::GetWorkspaceResponse { workspace: Some(prepare(common, wanted).await?) };
            ask::answer(format, &answer, |answer, view| render(answer.workspace.as_ref(), view))?;
        }
        Command::List => ask::answer(format, &list(&Client::of(common).await?).await?, render_list)?,
        Command::Show { id } => {
            let request = within(ask::SOON, v1::GetWorkspaceRequest { id: id.clone() });
            let answer = Client::of(common).await?.workspaces().get_workspace(request).await?.into_inner();
            ask::answer(format, &answer, |answer, view| render(answer.workspace.as_ref(), view))?;
        }
        Command::Delete { id } => {
            let request = within(ask::SOON, v1::DeleteWorkspaceRequest { id: id.clone() });
            let answer = Client::of(common).await?.workspaces().delete_workspace(request).await?.into_inner();
            ask::answer(format, &answer, |_, _| String::new())?;
            screen::say(&format!("workspace {} is deleted", screen::safe(id)));
        }
    }
    Ok::<u8, Failure>(DONE)
}

/// Makes it and shows the progress.
async fn prepare(common: &Common, wanted: &Prepare) -> Result<v1::Workspace, Failure> {
    use v1::prepare_workspace_request::For;
    use v1::prepare_workspace_response::Event;
    let source = wanted.repo.as_deref().map(|repo| amount::source(repo, wanted.reference.as_deref()));
    let source = source.transpose().map_err(Failure::Usage)?;
    let client = Client::of(common).await?;
    let which = match (&wanted.lease, source) {
        (Some(lease_id), source) => {
            if let Some(source) = source {
                let request = within(ask::SOON, v1::GetLeaseRequest { lease_id: lease_id.clone() });
                let held = client.admission().get_lease(request).await?.into_inner().lease.unwrap_or_default();
                same(wanted, &source, &held).map_err(Failure::Usage)?;
            }
            For::LeaseId(lease_id.clone())
        }
        (None, source) => For::Unleased(v1::Unleased {
            source,
            scope: Some(wanted.scope.message()),
            lifetime: wanted.lasting,
            request_id: wanted.request_id.clone().unwrap_or_else(|| format!("cli-{}", uuid::Uuid::now_v7())),
        }),
    };
    let begun = std::time::Instant::now();
    let mut steps = Steps::new();
    steps.under_way("workspace", "asking", 0, 0);
    let request = v1::PrepareWorkspaceRequest {
        r#for: Some(which),
        user: wanted.user,
        group: wanted.group,
        submodules: wanted.submodules,
        lfs: wanted.lfs,
        self_contained: wanted.self_contained,
        user_namespace: false,
        tmpfs_bytes: wanted.tmpfs,
        manifest: wanted.manifest.message(),
    };
    let mut events = client.workspaces().prepare_workspace(within(ask::LONG, request)).await?.into_inner();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(now)) => {
                let what = super::repo::progress(&now);
                steps.under_way("workspace", &what, table::positive(now.done), table::positive(now.total));
            }
            Some(Event::Workspace(workspace)) => {
                let files = counted(workspace.files, "file", "files");
                let what = format!("{} · {files}, {}", screen::safe(&workspace.id), bytes(workspace.bytes));
                steps.done("workspace", &what, Some(begun.elapsed()));
                return Ok(workspace);
            }
            None => {}
        }
    }
    Err(anyhow::anyhow!("the agent ended the stream before the workspace was ready; the same command attaches again")
        .into())
}

/// A lease has a source of its own: another one that is named with it is a mistake, and better said than ignored.
fn same(wanted: &Prepare, source: &v1::Source, lease: &v1::Lease) -> Result<(), String> {
    let held = lease.source.clone().unwrap_or_default();
    let key = |url: &str| url.parse::<RepositoryUrl>().ok();
    if key(&source.repository_url) != key(&held.clone_url) {
        return Err(format!("--repo: lease {} is for {}; leave --repo out", lease.id, screen::safe(&held.clone_url)));
    }
    let reference = wanted.reference.as_deref().and_then(|text| text.parse::<SourceRef>().ok());
    let matches = match &reference {
        None | Some(SourceRef::Head) => true,
        Some(SourceRef::Commit(commit)) => commit.to_string() == held.commit,
        Some(named) => named.full_names().contains(&held.clone_ref),
    };
    match matches {
        true => Ok(()),
        false => Err(format!("--ref: lease {} is for {}; leave --ref out", lease.id, screen::safe(&held.clone_ref))),
    }
}

async fn list(client: &Client) -> Result<v1::ListWorkspacesResponse, Status> {
    let workspaces = ask::all(|page_token| async move {
        let request = within(ask::SOON, v1::ListWorkspacesRequest { page_size: PAGE, page_token });
        let page = client.workspaces().list_workspaces(request).await?.into_inner();
        Ok((page.workspaces, page.next_page_token))
    });
    Ok(v1::ListWorkspacesResponse { workspaces: workspaces.await?, next_page_token: String::new() })
}

fn render_list(list: &v1::ListWorkspacesResponse, view: &View) -> String {
    if list.workspaces.is_empty() {
        return format!("{}\n", view.paint.dim("no workspaces"));
    }
    let mut grid = Grid::new(&["WORKSPACE", "BUILDS", "COMMIT", "FOR", "FILES", "SIZE", "SINCE", "GOES"]);
    grid = grid.right(&[4, 5]).wraps(&[0, 1, 3]);
    for held in &list.workspaces {
        let goes = match &held.expires_at {
            Some(at) => view.when(Some(at)),
            None => "with its lease".to_owned(),
        };
        grid.row([
            cell(&held.id).tone(Tone::Bold),
            cell(format!("{} {}", table::short_url(&held.repository_url), table::short_ref(&held.r#ref)).trim_end()),
            cell(table::short_commit(&held.commit)),
            cell(table::scope(held.scope.as_ref())),
            cell(screen::grouped(held.files)),
            cell(bytes(held.bytes)),
            cell(view.lasting(held.created_at.as_ref())),
            cell(goes),
        ]);
    }
    grid.render(view)
}

fn render(workspace: Option<&v1::Workspace>, view: &View) -> String {
    let Some(held) = workspace else { return String::new() };
    let mut fields = Fields::new();
    fields.put("workspace", cell(&held.id).tone(Tone::Bold));
    fields.add("repository", &held.repository_url);
    fields.add("ref", &held.r#ref);
    fields.add("commit", &held.commit);
    fields.add("for", table::scope(held.scope.as_ref()));
    fields.put("src", cell(&held.src).tone(Tone::Bold));
    fields.add("tmp", &held.tmp);
    fields.add("out", &held.out);
    fields.add("cache", &held.cache);
    fields.put("also mount", lines(held.also_mount.clone()));
    let method = match held.method() {
        v1::Method::Checkout => ", checked out",
        v1::Method::Reflink => ", cloned by reflinks",
        v1::Method::Overlay => ", an overlay",
        v1::Method::Unspecified => "",
    };
    fields.put(
        "projects",
        lines(held.projects.iter().map(|one| {
            let path = if one.path.is_empty() { "." } else { &one.path };
            format!("{path}  {} {}", table::short_url(&one.repository_url), table::short_commit(&one.commit))
        })),
    );
    fields.add("holds", format!("{}, {}{method}", counted(held.files, "file", "files"), bytes(held.bytes)));
    fields.add("lease", &held.lease_id);
    fields.add("made", view.when(held.created_at.as_ref()));
    fields.add(
        "goes",
        if held.expires_at.is_some() { view.when(held.expires_at.as_ref()) } else { "with its lease".to_owned() },
    );
    let mut environment: Vec<(&String, &String)> = held.environment.iter().collect();
    environment.sort();
    fields.put("environment", lines(environment.into_iter().map(|(name, value)| format!("{name}={value}"))));
    fields.render(view)
}

/// How sources come into workspaces.
pub(super) const fn method_word(method: v1::Method) -> &'static str {
    match method {
        v1::Method::Checkout => "checkout",
        v1::Method::Reflink => "reflink",
        v1::Method::Overlay => "overlay",
        v1::Method::Unspecified => "no method",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::status::tests::lease;
    use super::super::table::tests::{VIEW, ago};
    use super::*;

    fn workspace() -> v1::Workspace {
        let base = "/var/mnt/ghost-data/stoker/workspaces/w-x-0123456789abcdef";
        let mut held = v1::Workspace {
            id: "w-x-0123456789abcdef".to_owned(),
            src: format!("{base}/src"),
            tmp: format!("{base}/tmp"),
            out: format!("{base}/out"),
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            repository_url: "https://github.com/projectbluefin/dakota".to_owned(),
            r#ref: "refs/heads/main".to_owned(),
            created_at: ago(30),
            expires_at: ago(-86_370),
            environment: [
                ("TMPDIR".to_owned(), format!("{base}/tmp")),
                ("STOKER_OUT".to_owned(), format!("{base}/out")),
            ]
            .into(),
            files: 40_123,
            bytes: 512 << 20,
            also_mount: vec!["/var/mnt/ghost-data/stoker/repositories/dakota/snapshots/1".to_owned()],
            ..Default::default()
        };
        held.set_method(v1::Method::Checkout);
        held
    }

    #[test]
    fn a_workspace_is_shown_with_all_that_a_build_needs() {
        insta::assert_snapshot!(render(Some(&workspace()), &VIEW), @r"
        workspace    w-x-0123456789abcdef
        repository   https://github.com/projectbluefin/dakota
        ref          refs/heads/main
        commit       0123456789abcdef0123456789abcdef01234567
        src          /var/mnt/ghost-data/stoker/workspaces/w-x-0123456789abcdef/src
        tmp          /var/mnt/ghost-data/stoker/workspaces/w-x-0123456789abcdef/tmp
        out          /var/mnt/ghost-data/stoker/workspaces/w-x-0123456789abcdef/out
        also mount   /var/mnt/ghost-data/stoker/repositories/dakota/snapshots/1
        holds        40,123 files, 512 MiB, checked out
        made         30 s ago
        goes         in 24 h
        environment  STOKER_OUT=/var/mnt/ghost-data/stoker/workspaces/w-x-0123456789abcdef/out
                     TMPDIR=/var/mnt/ghost-data/stoker/workspaces/w-x-0123456789abcdef/tmp
        ");
        let list = v1::ListWorkspacesResponse { workspaces: vec![workspace()], ..Default::default() };
        insta::assert_snapshot!(render_list(&list, &VIEW), @r"
        WORKSPACE             BUILDS                      COMMIT        FOR   FILES     SIZE  SINCE  GOES
        w-x-0123456789abcdef  projectbluefin/dakota main  0123456789ab  -    40,123  512 MiB  30 s   in 24 h
        ");
    }

    #[test]
    fn a_source_beside_a_lease_must_be_the_lease_s() {
        let check = |repo: &str, reference: &str| {
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                prepare: Prepare,
            }
            let words = ["x", "--lease", "l", "--repo", repo, "--ref", reference];
            let wanted = <Line as clap::Parser>::try_parse_from(words).ok().unwrap().prepare;
            let source = amount::source(repo, Some(reference)).unwrap();
            same(&wanted, &source, &lease("l", 1, 1, None))
        };
        let url = "https://github.com/projectbluefin/dakota.git";
        assert_eq!(check(url, "branch:main"), Ok(()));
        assert_eq!(check(url, "sha:0123456789abcdef0123456789abcdef01234567"), Ok(()));
        assert!(check(url, "branch:next").unwrap_err().starts_with("--ref: "));
        assert!(check("https://github.com/projectbluefin/bluefin", "branch:main").unwrap_err().starts_with("--repo: "));
    }
}
