//! `stoker repo`: the node's git repositories.

use stoker_core::source::RepositoryUrl;
use stoker_proto::v1::{self, RepositoryState};
use tonic::Status;

use super::ask::{self, Ended, Failure, PAGE, within};
use super::client::Client;
use super::screen::{self, Steps, bytes, counted, grouped};
use super::table::{self, Fields, Grid, Tone, View, cell};
use super::{Common, DONE, amount};

/// How many holders of snapshots are named.
const HOLDERS_SHOWN: usize = 8;

mod transfer;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// All that this node knows
    List,
    /// One of them
    Show(Name),
    /// Mirror a repository, and wait until it is filled
    Add(Add),
    /// Forget a repository and delete what is cached of it
    Remove(Name),
    /// Never forget a repository for want of room
    Pin(Name),
    /// Take the pin away
    Unpin(Name),
    /// Fetch now, and wait for the end
    Refresh(Name),
    /// Look for damage, and mend it
    Verify(transfer::Verify),
    /// Take in what you bring: an archive of `export`, a git bundle, a repository of this machine
    Import(transfer::Import),
    /// Write the newest state into an archive, for `import` elsewhere
    Export(transfer::Export),
}

#[derive(Debug, clap::Args)]
pub(super) struct Name {
    /// A URL or a path
    url: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// A URL or a path
    url: String,
    /// Never forget it for want of room
    #[arg(long)]
    pin: bool,
    /// Who may read it; default: the agent's default class
    #[arg(long, value_name = "CLASS", default_value = "", hide_default_value = true)]
    trust: String,
    /// Mirror the submodules of its HEAD too, and theirs
    #[arg(long)]
    submodules: bool,
    /// Do not wait for the fill
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(common: &Common, command: &Command) -> u8 {
    ask::exit(obey(common, command).await)
}

fn named(text: &str) -> Result<String, Failure> {
    amount::repository(text).map(Into::into).map_err(Failure::Usage)
}

async fn obey(common: &Common, command: &Command) -> Ended {
    let format = common.output;
    // What was written is judged before anybody is asked.
    let url = match command {
        Command::List => String::new(),
        Command::Add(Add { url, .. }) => named(url)?,
        Command::Show(name) | Command::Remove(name) | Command::Refresh(name) => named(&name.url)?,
        Command::Pin(name) | Command::Unpin(name) => named(&name.url)?,
        Command::Verify(verify) => return transfer::verify(common, verify).await,
        Command::Import(import) => return transfer::import(common, import).await,
        Command::Export(export) => return transfer::export(common, export).await,
    };
    let client = Client::of(common).await?;
    let mut asked = client.repositories();
    match command {
        Command::List => ask::answer(format, &list(&client).await?, render_list)?,
        Command::Show(_) => {
            let answer = asked.get_repository(within(ask::SOON, v1::GetRepositoryRequest { url })).await?.into_inner();
            ask::answer(format, &answer, |answer, view| render_optional(answer.repository.as_ref(), view))?;
        }
        Command::Add(add) => {
            let Add { pin, trust, submodules, .. } = add;
            let (url_of, pin, trust, submodules) = (url.clone(), *pin, trust.clone(), *submodules);
            let request = v1::AddRepositoryRequest { url: url_of, pin, trust, submodules };
            let mut answer = asked.add_repository(within(ask::UPSTREAM, request)).await?.into_inner();
            if !add.no_wait {
                answer.repository = Some(refresh(&client, url, true).await?);
            }
            ask::answer(format, &answer, |answer, view| render_optional(answer.repository.as_ref(), view))?;
        }
        Command::Remove(_) => {
            let request = within(ask::SOON, v1::RemoveRepositoryRequest { url: url.clone() });
            let answer = asked.remove_repository(request).await?.into_inner();
            ask::answer(format, &answer, |_, _| String::new())?;
            screen::say(&format!("{url} is removed"));
        }
        Command::Pin(_) | Command::Unpin(_) => {
            let request = v1::PinRepositoryRequest { url, pinned: matches!(command, Command::Pin(_)) };
            let answer = asked.pin_repository(within(ask::SOON, request)).await?.into_inner();
            ask::answer(format, &answer, |answer, view| render_optional(answer.repository.as_ref(), view))?;
        }
        Command::Refresh(_) => {
            let repository = refresh(&client, url, false).await?;
            let answer = v1::GetRepositoryResponse { repository: Some(repository) };
            ask::answer(format, &answer, |answer, view| render_optional(answer.repository.as_ref(), view))?;
        }
        // They have gone their way above.
        Command::Verify(_) | Command::Import(_) | Command::Export(_) => {}
    }
    Ok::<u8, Failure>(DONE)
}

/// All repositories, from all pages.
pub(crate) async fn list(client: &Client) -> Result<v1::ListRepositoriesResponse, Status> {
    let repositories = ask::all(|page_token| async move {
        let request = within(ask::SOON, v1::ListRepositoriesRequest { page_size: PAGE, page_token });
        let page = client.repositories().list_repositories(request).await?.into_inner();
        Ok((page.repositories, page.next_page_token))
    });
    Ok(v1::ListRepositoriesResponse { repositories: repositories.await?, next_page_token: String::new() })
}

/// Fetches, shows it, and gives the state after it.
async fn refresh(client: &Client, url: String, only_if_empty: bool) -> Result<v1::Repository, Failure> {
    use v1::refresh_repository_response::Event;
    let begun = std::time::Instant::now();
    let mut steps = Steps::new();
    steps.under_way("mirror", "connecting", 0, 0);
    let request = within(ask::LONG, v1::RefreshRepositoryRequest { url, only_if_empty });
    let mut events = client.repositories().refresh_repository(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(now)) => {
                steps.under_way("mirror", &progress(&now), table::positive(now.done), table::positive(now.total));
            }
            Some(Event::Repository(repository)) => {
                let objects = counted(repository.objects, "object", "objects");
                let what = format!("{} · {objects}, {}", screen::safe(&repository.url), bytes(repository.disk_bytes));
                steps.done("mirror", &what, Some(begun.elapsed()));
                return Ok(repository);
            }
            None => {}
        }
    }
    Err(anyhow::anyhow!("the agent ended the stream before the fetch was over; it may go on: `stoker repo show`")
        .into())
}

/// `receiving 45,210/98,000, 120 MiB`.
pub(crate) fn progress(now: &v1::Progress) -> String {
    let mut text = screen::safe(&now.phase);
    if !now.subject.is_empty() {
        text = format!("{}: {text}", screen::safe(&now.subject));
    }
    if now.total > 0 {
        text.push_str(&format!(" {}/{}", grouped(now.done), grouped(now.total)));
    }
    if now.bytes > 0 {
        text.push_str(&format!(", {}", bytes(now.bytes)));
    }
    text
}

pub(crate) const fn state_word(state: RepositoryState) -> &'static str {
    match state {
        RepositoryState::Empty => "empty",
        RepositoryState::Filling => "filling",
        RepositoryState::Ready => "ready",
        RepositoryState::Fetching => "fetching",
        RepositoryState::Stale => "stale",
        RepositoryState::Quarantined => "quarantined",
        RepositoryState::Unspecified => "unknown",
    }
}

pub(crate) const fn tone(state: RepositoryState) -> Tone {
    match state {
        RepositoryState::Ready => Tone::Good,
        RepositoryState::Filling | RepositoryState::Fetching => Tone::Plain,
        RepositoryState::Empty | RepositoryState::Stale | RepositoryState::Unspecified => Tone::Warn,
        RepositoryState::Quarantined => Tone::Bad,
    }
}

/// What goes on there, or what is wrong, or when upstream last answered.
pub(crate) fn doing(repository: &v1::Repository, view: &View) -> String {
    if let Some(now) = &repository.progress {
        return progress(now);
    }
    match repository.reasons.first() {
        Some(reason) => table::reason_line(reason),
        None if repository.confirmed_at.is_some() => {
            format!("confirmed {}", view.when(repository.confirmed_at.as_ref()))
        }
        None => String::new(),
    }
}

fn render_list(list: &v1::ListRepositoriesResponse, view: &View) -> String {
    let mut grid = Grid::new(&["REPOSITORY", "STATE", "TRUST", "SIZE", "HITS", "UNUSED", "KEPT", ""]);
    grid = grid.right(&[3, 4]).wraps(&[7]);
    for repository in &list.repositories {
        let kept = match (repository.pinned, repository.declared) {
            (true, _) => "pinned",
            (false, true) => "declared",
            (false, false) => "on demand",
        };
        grid.row([
            cell(address(&repository.url)),
            cell(state_word(repository.state())).tone(tone(repository.state())),
            cell(&repository.trust),
            cell(bytes(repository.disk_bytes)),
            cell(share(repository)),
            cell(view.lasting(repository.last_used_at.as_ref())),
            cell(kept),
            cell(doing(repository, view)),
        ]);
    }
    match list.repositories.is_empty() {
        true => format!("{}\n", view.paint.dim("no repositories: `stoker repo add URL`, or declare mirrors")),
        false => grid.render(view),
    }
}

/// The URL as it is read in a list: what it is reached by goes without saying.
pub(crate) fn address(url: &str) -> &str {
    url.strip_prefix("https://").or_else(|| url.strip_prefix("file://")).unwrap_or(url)
}

/// Whether a reason's subject is this repository: its URL, or the name that it is known by.
pub(crate) fn is_about(subject: &str, repository: &v1::Repository) -> bool {
    let named = repository.url.parse::<RepositoryUrl>().is_ok_and(|url| url.key() == subject);
    named || repository.url == subject
}

/// How many of the questions were answered from the cache.
fn share(repository: &v1::Repository) -> String {
    let asked = repository.hits.saturating_add(repository.misses);
    match table::positive(repository.hits).saturating_mul(100).checked_div(table::positive(asked)) {
        Some(percent) => format!("{percent} %"),
        None => "-".to_owned(),
    }
}

/// A step of mending in plain words.
fn heal_word(step: &str) -> String {
    match step {
        "recheck" => "looking again".to_owned(),
        "fetch" => "fetching".to_owned(),
        "repair" => "repair".to_owned(),
        "clone" => "cloning anew".to_owned(),
        "failed" => "nothing (it failed)".to_owned(),
        other => screen::safe(other),
    }
}

/// `, its store shared with 2 others`.
fn sharing(repository: &v1::Repository) -> String {
    match repository.shares_store_with {
        ..=0 => String::new(),
        others => format!(", its store shared with {}", counted(i64::from(others), "other", "others")),
    }
}

/// `, 1 in use by 3 leases and readers`.
fn holding(repository: &v1::Repository) -> String {
    match repository.snapshots_in_use {
        ..=0 => String::new(),
        used => {
            let holders = counted(i64::from(repository.holders), "lease or reader", "leases and readers");
            format!(", {used} in use by {holders}")
        }
    }
}

/// `lease L1 (snapshot 3), workspace W (snapshot 2), its pin, 4 more`.
fn held_by(repository: &v1::Repository) -> String {
    let all = &repository.held_by;
    let mut words: Vec<String> = all
        .iter()
        .take(HOLDERS_SHOWN)
        .map(|holder| match holder.kind.as_str() {
            "pin" => "its pin".to_owned(),
            kind => {
                let [kind, id, snapshot] = [kind, &holder.id, &holder.snapshot].map(screen::safe);
                format!("{kind} {id} (snapshot {snapshot})")
            }
        })
        .collect();
    if all.len() > HOLDERS_SHOWN {
        words.push(format!("{} more", all.len() - HOLDERS_SHOWN));
    }
    words.join(", ")
}

fn stale(repository: &v1::Repository) -> String {
    match repository.stale {
        ..=0 => String::new(),
        stale => format!(", {} older than asked for", grouped(stale)),
    }
}

/// `2 h ago, in 1.2 s: full repack; 9 packs became 2`.
fn upkeep(repository: &v1::Repository, view: &View) -> String {
    let Some(last) = &repository.last_upkeep else { return String::new() };
    let packs = match (last.packs_before, last.packs_after) {
        (before, after) if before == after => String::new(),
        (before, after) => format!("; {} became {after}", counted(i64::from(before), "pack", "packs")),
    };
    format!(
        "{}, in {}: {}{packs}",
        view.when(last.at.as_ref()),
        table::span(last.took.as_ref()),
        screen::safe(&last.what)
    )
}

fn render_optional(repository: Option<&v1::Repository>, view: &View) -> String {
    repository.map(|repository| render(repository, view)).unwrap_or_default()
}

fn render(repository: &v1::Repository, view: &View) -> String {
    let mut fields = Fields::new();
    fields.put("repository", cell(&repository.url).tone(Tone::Bold));
    fields.put("state", cell(state_word(repository.state())).tone(tone(repository.state())));
    if let Some(now) = &repository.progress {
        fields.add("now", progress(now));
    }
    fields.reasons("why", &repository.reasons);
    if repository.failures > 0 {
        let failures = counted(i64::from(repository.failures), "time", "times");
        fields.put("failed", cell(format!("{failures} in a row")).tone(Tone::Warn));
    }
    fields.add("head", &repository.head);
    let objects = counted(repository.objects, "object", "objects");
    let refs = counted(repository.refs, "ref", "refs");
    let packs = counted(i64::from(repository.packs), "pack", "packs");
    fields.add("holds", format!("{refs}, {objects} in {packs}"));
    fields.add("disk", format!("{}{}", bytes(repository.disk_bytes), sharing(repository)));
    fields.add("confirmed", view.when(repository.confirmed_at.as_ref()));
    fields.add("fetched", view.when(repository.last_fetch_at.as_ref()));
    fields.add("next", view.when(repository.next_refresh_at.as_ref()));
    fields.add("used", view.when(repository.last_used_at.as_ref()));
    let snapshots = counted(i64::from(repository.snapshots), "snapshot", "snapshots");
    let newest = screen::safe(&repository.snapshot);
    fields.add(
        "snapshots",
        if newest.is_empty() {
            "none".to_owned()
        } else {
            format!("{snapshots}, newest {newest}{}", holding(repository))
        },
    );
    fields.add("held by", held_by(repository));
    fields.add(
        "hits",
        format!(
            "{} of {} ({})",
            grouped(repository.hits),
            grouped(repository.hits.saturating_add(repository.misses)),
            share(repository)
        ) + &stale(repository),
    );
    let mended = repository
        .heals
        .iter()
        .map(|heal| format!("{} by {}", counted(heal.count, "time", "times"), heal_word(&heal.step)));
    fields.add("mended", mended.collect::<Vec<_>>().join(", "));
    fields.add("upkeep", upkeep(repository, view));
    fields.reasons("put off", repository.upkeep_skipped.as_slice());
    fields.add("trust", &repository.trust);
    let kept = [(repository.declared, "declared"), (repository.pinned, "pinned")];
    let kept: Vec<&str> = kept.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect();
    fields.add("kept", if kept.is_empty() { "on demand".to_owned() } else { kept.join(", ") });
    if !repository.declared_by.is_empty() {
        fields.add("declared by", &repository.declared_by);
    }
    if repository.submodules {
        fields.add("submodules", "mirrored too");
    }
    fields.add("folder", &repository.folder);
    fields.render(view)
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{healthy, troubled};
    use super::super::table::tests::VIEW;
    use super::*;

    #[test]
    fn a_list_shows_what_goes_on() {
        let list = v1::ListRepositoriesResponse { repositories: troubled().repositories, ..Default::default() };
        insta::assert_snapshot!(render_list(&list, &VIEW), @r"
        REPOSITORY                          STATE    TRUST      SIZE  HITS  UNUSED  KEPT
        github.com/projectbluefin/dakota    ready    public  734 MiB  94 %  45 s    declared   confirmed 2
                                                                                               min ago
        github.com/projectbluefin/bluefin   filling  public  734 MiB  94 %  45 s    on demand  receiving 45,
                                                                                               210/98,000,
                                                                                               120 MiB
        github.com/projectbluefin/finpilot  empty    public  734 MiB  94 %  45 s    declared   github.com
                                                                                               does not
                                                                                               answer:
                                                                                               connection
                                                                                               timed out [UP
                                                                                               STREAM_UNREAC
                                                                                               HABLE]
        ");
    }

    #[test]
    fn a_repository_is_shown_whole() {
        insta::assert_snapshot!(render(&healthy().repositories[0], &VIEW), @r"
        repository  https://github.com/projectbluefin/dakota
        state       ready
        head        main
        holds       1,024 refs, 412,345 objects in 2 packs
        disk        734 MiB, its store shared with 2 others
        confirmed   2 min ago
        fetched     1 h 6 min ago
        next        in 3 min
        used        45 s ago
        snapshots   2 snapshots, newest 0b5e-1, 1 in use by 3 leases and readers
        hits        52 of 55 (94 %), 1 older than asked for
        upkeep      2 h 1 min ago, in 12 s: full repack (due), commit-graph; 9 packs became 1
        trust       public
        kept        declared
        ");
    }
}
