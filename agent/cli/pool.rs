//! `stoker pool`: the node's data filesystems and the directories in them.

use stoker_core::quantity::Resource;
use stoker_proto::v1;

use super::ask::{self, Ended, Failure, within};
use super::client::Client;
use super::table::{Grid, Tone, View, cell};
use super::{Common, DONE, json, screen};

/// A floor that is reached later than this is not spoken of.
const FILLS_SOON_SECONDS: i64 = 3600;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// All pools of this node, with their directories
    List,
    /// Let go of a pool, so that its disk can be unmounted; new builds wait meanwhile
    Detach(Named),
    /// Take a detached pool into use again
    Attach(Named),
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// The pool's name
    name: String,
}

pub(super) async fn run(common: &Common, command: &Command) -> u8 {
    ask::exit(obey(common, command).await)
}

async fn obey(common: &Common, command: &Command) -> Ended {
    let client = Client::of(common).await?;
    match command {
        Command::List => {
            let answer = client.node().get_status(within(ask::SOON, v1::GetStatusRequest {})).await?.into_inner();
            let status = ask::part(answer.status, "status")?;
            let pools = json::value(&status)?.get("pools").cloned().unwrap_or_default();
            ask::value(common.output, &serde_json::json!({ "pools": pools }), |view| render(&status.pools, view))?;
        }
        Command::Detach(pool) => set(common, &client, &pool.name, true).await?,
        Command::Attach(pool) => set(common, &client, &pool.name, false).await?,
    }
    Ok::<u8, Failure>(DONE)
}

async fn set(common: &Common, client: &Client, name: &str, detached: bool) -> Result<(), Failure> {
    let request = v1::SetPoolRequest { name: name.to_owned(), detached };
    let answer = client.node().set_pool(within(ask::SOON, request)).await?.into_inner();
    let pool = ask::part(answer.pool, "pool")?;
    ask::value(common.output, &serde_json::json!({ "pool": json::value(&pool)? }), |view| {
        render(std::slice::from_ref(&pool), view)
    })
}

fn render(pools: &[v1::Pool], view: &View) -> String {
    match pools.is_empty() {
        true => format!("{}\n", view.paint.dim("no pools: none is configured for this node")),
        false => table(pools, None, &[], view),
    }
}

/// The pools, what is in them, the root filesystem where it is known, and what else is watched.
pub(crate) fn table(
    pools: &[v1::Pool],
    root: Option<&v1::Filesystem>,
    watched: &[v1::WatchedFilesystem],
    view: &View,
) -> String {
    let header = ["POOL", "STATE", "PATH", "TYPE", "FREE", "OF", "FLOOR", "INODES FREE"];
    let mut grid = Grid::new(&header).right(&[4, 5, 6, 7]).wraps(&[2]);
    for pool in pools {
        row(&mut grid, &pool.name, &pool.state, &pool.path, pool.filesystem.as_ref());
        fills(&mut grid, pool.filesystem.as_ref());
        told(&mut grid, &pool.message);
        for directory in &pool.directories {
            let prepared = directory.state == "Prepared";
            let tone = if prepared { Tone::Dim } else { Tone::Bad };
            let kept =
                if directory.retention.is_empty() { String::new() } else { format!(" ({})", directory.retention) };
            grid.row([
                cell(""),
                cell(&directory.state).tone(tone),
                cell(format!("└ {}{kept}", directory.path)).tone(Tone::Dim),
            ]);
            told(&mut grid, &directory.message);
        }
    }
    if let Some(root) = root {
        row(&mut grid, "(root)", "", "/", Some(root));
        fills(&mut grid, Some(root));
    }
    for other in watched {
        let state = if other.filesystem.is_some() { "" } else { "Silent" };
        row(&mut grid, "(node)", state, &other.path, other.filesystem.as_ref());
        fills(&mut grid, other.filesystem.as_ref());
    }
    grid.render(view)
}

fn row(grid: &mut Grid, name: &str, state: &str, path: &str, disk: Option<&v1::Filesystem>) {
    let tone = if state == "Ready" { Tone::Good } else { Tone::Bad };
    let mut cells = vec![cell(name).tone(Tone::Bold), cell(state).tone(tone), cell(path)];
    if let Some(disk) = disk {
        let low = |free: i64, floor: i64| if floor > 0 && free <= floor { Tone::Bad } else { Tone::Plain };
        let percent = disk.free_inodes.max(0).saturating_mul(100).checked_div(disk.total_inodes);
        cells.extend([
            cell(&disk.r#type),
            cell(screen::bytes(disk.free_bytes)).tone(low(disk.free_bytes, disk.floor_bytes)),
            cell(screen::bytes(disk.total_bytes)),
            cell(screen::bytes(disk.floor_bytes)),
            cell(percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %")))
                .tone(low(disk.free_inodes, disk.floor_inodes)),
        ]);
    }
    grid.row(cells);
}

/// Said where it is near enough to be worth a look.
fn fills(grid: &mut Grid, disk: Option<&v1::Filesystem>) {
    let Some((disk, floor_in)) = disk.and_then(|disk| Some((disk, disk.floor_in?))) else { return };
    if floor_in.seconds >= FILLS_SOON_SECONDS {
        return;
    }
    let at = Resource::Time.show(floor_in.seconds.max(0).unsigned_abs().saturating_mul(1000));
    let speed = screen::bytes(disk.bytes_per_minute);
    let text = format!("fills: the floor in {at}, at {speed} and {} inodes a minute", disk.inodes_per_minute);
    grid.row([cell(""), cell(""), cell(text).tone(Tone::Warn)]);
}

fn told(grid: &mut Grid, message: &str) {
    if !message.is_empty() {
        grid.row([cell(""), cell(""), cell(message).tone(Tone::Warn)]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::troubled;
    use super::super::table::tests::VIEW;
    use super::*;

    #[test]
    fn a_lost_pool_says_why() {
        let mut pools = troubled().status.pools;
        pools[0].directories.push(v1::Directory {
            path: "ccache".to_owned(),
            state: "NotADirectory".to_owned(),
            message: "a regular file is in its place".to_owned(),
            retention: "cache".to_owned(),
            ..Default::default()
        });
        insta::assert_snapshot!(render(&pools, &VIEW), @r"
        POOL     STATE          PATH                              TYPE     FREE     OF    FLOOR  INODES FREE
        data     Ready          /var/mnt/ghost-data               xfs   812 GiB  2 TiB  205 GiB         97 %
                 Prepared       └ bst-cache (cache)
                 NotADirectory  └ ccache (cache)
                                a regular file is in its place
        scratch  NotMounted     /var/mnt/ghost-scratch
                                /var/mnt/ghost-scratch is no
                                mount point
        ");
    }
}
