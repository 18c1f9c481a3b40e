//! The status page: one HTML document without anything from elsewhere, made from what the rooms publish.
//!
//! Alarms stand first, then the gate and the budget, then what runs and waits, then pools and repositories. It loads
//! itself again every few seconds, unless it is asked to stand still. Colours never say what no word says.

mod kept;

use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use stoker_core::admission::{Lease, LeaseState, Ticket};
use stoker_core::quantity::{Amounts, Resource, Timestamp};
use stoker_proto::v1;

use super::html::{Part, Text, ago, ahead, bar, count, number, rough, share, shown, time};
use crate::metrics::repository_word;
use crate::repository::{Eviction, Progress, RepositoryState, View};

/// The policy of every answer that is not the page.
pub(super) const POLICY_ELSEWHERE: &str = "default-src 'none'; frame-ancestors 'none'";
/// How often the page loads itself again.
const AGAIN_SECONDS: u32 = 10;
/// The most rows of one table; how many more there are is said below it.
const ROWS_MAX: usize = 200;
/// How many of the last evictions are shown.
const EVICTIONS_SHOWN: usize = 8;
const STYLE: &str = include_str!("style.css");
/// A flame on a dark tile.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' \
                    height='16' rx='4' fill='%231d1a17'/%3E%3Cpath d='M8 2c1 3 4 4 4 8a4 4 0 0 1-8 0c0-2 1-3 2-4 0 1 1 \
                    2 1 2 1-2 0-4 1-6z' fill='%23f2762e'/%3E%3C/svg%3E";

/// The policy of the page: its own style, named by hash, and its icon; no script at all.
pub(super) fn policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash = STANDARD.encode(Sha256::digest(STYLE));
        format!(
            "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
    });
    &POLICY
}

/// What the page shows.
pub(super) struct Sight<'a> {
    pub(super) status: &'a v1::Status,
    pub(super) repositories: &'a [View],
    pub(super) evictions: &'a [Eviction],
    pub(super) leases: &'a [Arc<Lease>],
    pub(super) tickets: &'a [Arc<Ticket>],
    pub(super) now: Timestamp,
    /// Do not load again.
    pub(super) still: bool,
}

/// The whole page.
pub(super) fn page(sight: &Sight<'_>) -> String {
    let node = sight.status.node.clone().unwrap_or_default();
    let again = match sight.still {
        true => String::new(),
        false => format!("<meta http-equiv=\"refresh\" content=\"{AGAIN_SECONDS}\">"),
    };
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">{again}\
         <title>{name} · Stoker</title><link rel=\"icon\" href=\"{ICON}\"><style>{STYLE}</style></head><body>",
        name = Text(&node.name),
    );
    out.push_str(&head(sight, &node));
    out.push_str("<main>");
    out.push_str(&alarms(sight.status));
    out.push_str(&gate(sight));
    out.push_str(&budget(sight.status));
    out.push_str(&leases(sight));
    out.push_str(&queue(sight));
    out.push_str(&pools(sight));
    out.push_str(&repositories(sight));
    out.push_str(&kept::kept(sight));
    out.push_str("</main>");
    out.push_str(&foot(sight));
    out.push_str("</body></html>\n");
    out
}

fn head(sight: &Sight<'_>, node: &v1::Node) -> String {
    let status = sight.status;
    let host = status.host.clone().unwrap_or_default();
    let since = status.started_at.as_ref().map(|at| format!(" · up {}", rough(sight.now.since(time(at)))));
    let facts: Vec<String> = [host.system, host.kernel, host.architecture]
        .iter()
        .filter(|fact| !fact.is_empty())
        .map(|fact| Text(fact).to_string())
        .collect();
    format!(
        "<header><div><p class=\"brand\">Stoker {}{}</p><h1>{}</h1><p class=\"facts\">{}</p></div>{}</header>",
        Text(&node.agent_version),
        since.unwrap_or_default(),
        Text(&node.name),
        facts.join(" · "),
        badge(status),
    )
}

/// The gate and the mode, as large as what they decide.
fn badge(status: &v1::Status) -> String {
    let (class, word) = match status.gate.as_ref().map(v1::Gate::state) {
        Some(v1::GateState::Open) => ("good", "open"),
        Some(v1::GateState::Narrow) => ("warn", "narrow"),
        Some(v1::GateState::Shut) => ("bad", "shut"),
        _ => ("warn", "unknown"),
    };
    let mode = match status.mode() {
        v1::Mode::Maintenance => "<span class=\"badge warn\"><small>mode</small>maintenance</span>",
        v1::Mode::Drain => "<span class=\"badge warn\"><small>mode</small>drain</span>",
        v1::Mode::Accepting | v1::Mode::Unspecified => "",
    };
    format!("<p class=\"badges\"><span class=\"badge {class}\"><small>gate</small>{word}</span>{mode}</p>")
}

fn section(id: &str, title: &str, note: &str, body: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!(" <span class=\"note\">{note}</span>") };
    format!("<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{title}{note}</h2>{body}</section>")
}

fn reason(reason: &v1::Reason) -> String {
    format!("<li><code>{}</code> {}</li>", reason.code().as_str_name(), Text(&reason.message))
}

fn alarms(status: &v1::Status) -> String {
    if status.alarms.is_empty() {
        return String::new();
    }
    let rows: String = status.alarms.iter().take(ROWS_MAX).map(reason).collect();
    let list = format!("<ul class=\"reasons\">{rows}</ul>{}", more(status.alarms.len()));
    format!("<div class=\"alarms\" role=\"alert\">{}</div>", section("alarms", "To mend", "", &list))
}

fn gate(sight: &Sight<'_>) -> String {
    let gate = sight.status.gate.clone().unwrap_or_default();
    let words = match gate.state() {
        v1::GateState::Open => "The ledger decides what starts",
        v1::GateState::Narrow => "Only small builds start",
        v1::GateState::Shut => "Nothing new starts",
        v1::GateState::Unspecified => "Nothing is known of the gate yet",
    };
    let since = gate.since.as_ref().map(|at| format!(", since {}", ago(time(at), sight.now))).unwrap_or_default();
    let mut rows: String = gate.reasons.iter().take(ROWS_MAX).map(reason).collect();
    let mode = match sight.status.mode() {
        v1::Mode::Maintenance => Some(("MODE_MAINTENANCE", "nothing new starts, what runs goes on")),
        v1::Mode::Drain => Some(("MODE_DRAIN", "nothing new starts until the node is empty")),
        v1::Mode::Accepting | v1::Mode::Unspecified => None,
    };
    if let Some((code, words)) = mode {
        let note = match sight.status.mode_note.as_str() {
            "" => String::new(),
            note => format!(": {}", Text(note)),
        };
        let until = sight.status.mode_until.as_ref().map(|at| format!(", ends {}", ahead(time(at), sight.now)));
        let _ = write!(rows, "<li><code>{code}</code> {words}{note}{}</li>", until.unwrap_or_default());
    }
    let list = if rows.is_empty() { String::new() } else { format!("<ul class=\"reasons\">{rows}</ul>") };
    section("gate", "Gate", &format!("{words}{since}"), &format!("{list}{}", pressure(sight.status)))
}

/// Stalls, and what the machine has left.
fn pressure(status: &v1::Status) -> String {
    let memory = status.memory.as_ref();
    let cpu = status.cpu.as_ref();
    let available = memory.map(|memory| {
        let of = |value| shown(Resource::Memory, count(value));
        (of(memory.available_bytes), format!("of {} memory available", of(memory.total_bytes)))
    });
    let used = cpu.map(|cpu| {
        let of = |value| shown(Resource::Cpu, count(value));
        (of(cpu.used_millis), format!("of {} used", of(cpu.total_millis)))
    });
    let stall = |stall: Option<v1::Stall>, word: &str| {
        let stall = stall.filter(|stall| stall.known)?;
        Some((share(stall.some_avg10), format!("of the time some work waits for {word}")))
    };
    let figures = [
        available,
        used,
        stall(memory.and_then(|memory| memory.stall), "memory"),
        stall(cpu.and_then(|cpu| cpu.stall), "CPU"),
        stall(status.io.as_ref().and_then(|io| io.stall), "I/O"),
    ];
    let figures = figures.into_iter().flatten().map(|(value, words)| format!("<li><b>{value}</b> {words}</li>"));
    format!("<ul class=\"figures\">{}</ul>", figures.collect::<String>())
}

fn budget(status: &v1::Status) -> String {
    let Some(ledger) = &status.ledger else { return String::new() };
    let get = |size: &Option<v1::Size>, resource: Resource| {
        let size = size.unwrap_or_default();
        count(match resource {
            Resource::Cpu => size.cpu_millis(),
            Resource::Memory => size.memory_bytes(),
            Resource::DiskBytes => size.disk_bytes(),
            Resource::DiskInodes | Resource::Time => size.disk_inodes(),
        })
    };
    let mut rows = String::new();
    for (resource, title) in [
        (Resource::Memory, "Memory"),
        (Resource::Cpu, "CPU"),
        (Resource::DiskBytes, "Disk"),
        (Resource::DiskInodes, "Inodes"),
    ] {
        let part = |size: &Option<v1::Size>| get(size, resource);
        let (capacity, reserve) = (part(&ledger.capacity), part(&ledger.reserve));
        let (others, leased, free) = (part(&ledger.others), part(&ledger.leased), part(&ledger.free));
        let parts = [("reserve", "reserved", reserve), ("others", "others", others), ("leased", "leased", leased)];
        let told: Vec<String> = parts
            .iter()
            .filter(|(.., value)| *value > 0)
            .map(|(class, word, value)| format!("<li class=\"{class}\"><b>{}</b> {word}</li>", shown(resource, *value)))
            .collect();
        let (free, capacity_told) = (shown(resource, free), shown(resource, capacity));
        let label = format!("{title}: {free} free of {capacity_told}");
        let parts = parts.map(|(class, _, value)| Part { class, value });
        let _ = write!(
            rows,
            "<div class=\"meter\"><h3>{title} <span>{free} free <small>of {capacity_told}</small></span></h3>{}\
             <ul class=\"legend\">{}</ul></div>",
            bar(capacity, &parts, None, &label),
            told.concat(),
        );
    }
    section("budget", "Budget", "what new builds can have", &format!("<div class=\"meters\">{rows}</div>"))
}

/// A table with its caption for those who hear it, or a sentence where it has no rows.
fn table(caption: &str, heads: &[&str], rows: &[String], nothing: &str) -> String {
    if rows.is_empty() {
        return format!("<p class=\"nothing\">{nothing}</p>");
    }
    let heads: String = heads.iter().map(|head| format!("<th scope=\"col\">{head}</th>")).collect();
    let shown: String = rows.iter().take(ROWS_MAX).map(|row| format!("<tr>{row}</tr>")).collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table><caption>{caption}</caption>\
         <thead><tr>{heads}</tr></thead><tbody>{shown}</tbody></table></div>{}",
        more(rows.len())
    )
}

fn more(rows: usize) -> String {
    match rows.saturating_sub(ROWS_MAX) {
        0 => String::new(),
        more => format!("<p class=\"nothing\">and {more} more</p>"),
    }
}

/// The cells that leases and tickets share: what, who for, how big.
fn build(source: &stoker_core::admission::Source, target: &str, scope: &stoker_core::identity::Scope) -> String {
    let target = if target.is_empty() { String::new() } else { format!(" · {}", Text(target)) };
    let who: Vec<&str> = [&scope.tenant, &scope.project, &scope.branch]
        .into_iter()
        .map(String::as_str)
        .filter(|s| !s.is_empty())
        .collect();
    format!(
        "<td><b>{}</b>{target}<small>{} <code title=\"{}\">{}</code></small></td><td>{}</td>",
        Text(short(&source.repository)),
        Text(&source.reference),
        source.commit,
        source.commit.short(),
        Text(if who.is_empty() { "–".to_owned() } else { who.join(" / ") }),
    )
}

fn size(amounts: &Amounts) -> String {
    let part = |resource: Resource| shown(resource, amounts.get(resource));
    format!(
        "<td class=\"size\">{} · {}<small>{} disk</small></td>",
        part(Resource::Cpu),
        part(Resource::Memory),
        part(Resource::DiskBytes)
    )
}

fn leases(sight: &Sight<'_>) -> String {
    let row = |lease: &Arc<Lease>| {
        let (class, state, when) = match (lease.state, lease.ends_at) {
            (LeaseState::Bound, Some(at)) => ("good", "bound", format!("ends {}", ahead(at, sight.now))),
            _ => ("warn", "reserved", format!("to be bound {}", ahead(lease.bind_by, sight.now))),
        };
        format!(
            "{}{}<td><span class=\"state {class}\">{state}</span><small>{when}</small></td><td>{}<small><code>{}</code></small></td>",
            build(&lease.source, &lease.target, &lease.scope),
            size(&lease.sizing.size.amounts),
            ago(lease.created_at, sight.now),
            Text(&lease.id),
        )
    };
    let rows: Vec<String> = sight.leases.iter().map(row).collect();
    let heads = ["Build", "For", "Size", "State", "Granted"];
    let body = table("Live leases", &heads, &rows, "Nothing runs here.");
    section("leases", "Leases", &number(sight.leases.len(), "build", "builds"), &body)
}

fn queue(sight: &Sight<'_>) -> String {
    let row = |(place, ticket): (usize, &Arc<Ticket>)| {
        format!(
            "<td class=\"place\">{}</td>{}{}<td>{}</td>",
            place + 1,
            build(&ticket.request.source, &ticket.request.target, &ticket.request.scope),
            size(&ticket.request.sizing.size.amounts),
            ago(ticket.created_at, sight.now),
        )
    };
    let rows: Vec<String> = sight.tickets.iter().enumerate().map(row).collect();
    let heads = ["Place", "Build", "For", "Size", "Waits since"];
    let body = table("The queue", &heads, &rows, "Nobody waits.");
    let note = if rows.is_empty() { String::new() } else { number(rows.len(), "build waits", "builds wait") };
    section("queue", "Queue", &note, &body)
}

fn pools(sight: &Sight<'_>) -> String {
    let mut cards: String = sight.status.pools.iter().map(|pool| self::pool(pool, sight.now)).collect();
    if let Some(root) = &sight.status.root {
        let _ = write!(
            cards,
            "<article><h3>root filesystem</h3>{}<p class=\"nothing\">Builds never write here.</p></article>",
            filesystem("root filesystem", root)
        );
    }
    for watched in &sight.status.filesystems {
        let path = Text(&watched.path);
        let figures = match &watched.filesystem {
            Some(disk) => filesystem(&watched.path, disk),
            None => "<p>It does not tell how full it is.</p>".to_owned(),
        };
        let _ = write!(
            cards,
            "<article><h3>{path}</h3>{figures}<p class=\"nothing\">The node's own: watched, not managed.</p></article>"
        );
    }
    section("pools", "Pools", "the mark is the floor that stays free", &format!("<div class=\"cards\">{cards}</div>"))
}

fn pool(pool: &v1::Pool, now: Timestamp) -> String {
    let class = if pool.state == crate::node::State::Ready.word() { "good" } else { "bad" };
    let since = pool.since.as_ref().map(|at| format!(" · since {}", ago(time(at), now))).unwrap_or_default();
    let mut out = format!(
        "<article><h3>{} <span class=\"state {class}\">{}</span></h3><p class=\"path\"><code>{}</code>{since}</p>",
        Text(&pool.name),
        Text(&pool.state),
        Text(&pool.path),
    );
    if !pool.message.is_empty() {
        let _ = write!(out, "<p>{}</p>", Text(&pool.message));
    }
    if let Some(disk) = &pool.filesystem {
        out.push_str(&filesystem(&pool.name, disk));
    }
    let directory = |directory: &v1::Directory| {
        let prepared = directory.state == crate::node::State::Prepared.word();
        let message =
            if directory.message.is_empty() { String::new() } else { format!(" {}", Text(&directory.message)) };
        format!(
            "<li><code>{}</code> <span class=\"note\">{}</span> <span class=\"state {}\">{}</span>{message}</li>",
            Text(&directory.path),
            Text(&directory.retention),
            if prepared { "good" } else { "bad" },
            Text(&directory.state),
        )
    };
    if !pool.directories.is_empty() {
        let rows: String = pool.directories.iter().take(ROWS_MAX).map(directory).collect();
        let _ = write!(out, "<ul class=\"directories\">{rows}</ul>{}", more(pool.directories.len()));
    }
    out.push_str("</article>");
    out
}

/// How full a filesystem is, with its floor as a mark.
fn filesystem(name: &str, disk: &v1::Filesystem) -> String {
    let meter = |resource: Resource, total: i64, free: i64, floor: i64, note: &str| {
        let (total, free, floor) = (count(total), count(free), count(floor));
        let class = if free < floor { "short" } else { "used" };
        let told = format!("{} free of {}{note}", shown(resource, free), shown(resource, total));
        let label = format!("{name}: {told}, floor {}", shown(resource, floor));
        let used = Part { class, value: total.saturating_sub(free) };
        let mark = (floor > 0).then(|| total.saturating_sub(floor));
        format!("<p class=\"fill\">{}</p>{}", Text(&told), bar(total, &[used], mark, &label))
    };
    let kind = if disk.r#type.is_empty() { String::new() } else { format!(" · {}", disk.r#type) };
    let mut out = meter(Resource::DiskBytes, disk.total_bytes, disk.free_bytes, disk.floor_bytes, &kind);
    if disk.total_inodes > 0 {
        let (total, free, floor) = (disk.total_inodes, disk.free_inodes, disk.floor_inodes);
        out.push_str(&meter(Resource::DiskInodes, total, free, floor, " inodes"));
    }
    out
}

fn repositories(sight: &Sight<'_>) -> String {
    let rows: Vec<String> = sight.repositories.iter().map(|view| repository(view, sight.now)).collect();
    let heads = ["Repository", "State", "Confirmed", "Disk", "Snapshots", "From the cache"];
    let body = table("Repositories", &heads, &rows, "No repository is known yet.");
    let body = format!("{body}{}", evictions(sight));
    section("repositories", "Repositories", &number(rows.len(), "repository", "repositories"), &body)
}

fn repository(view: &View, now: Timestamp) -> String {
    let class = match view.state {
        RepositoryState::Ready | RepositoryState::Fetching => "good",
        RepositoryState::Filling => "warn",
        RepositoryState::Empty if !view.declared => "warn",
        RepositoryState::Empty | RepositoryState::Stale | RepositoryState::Quarantined => "bad",
    };
    let marks = [(view.declared, "declared"), (view.pinned, "pinned"), (true, view.trust.as_str())];
    let marks: Vec<&str> = marks.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect();
    let doing = match (&view.progress, view.reasons.first()) {
        (Some(fetch), _) => progress(fetch),
        (None, Some(why)) => format!("<small>{}</small>", Text(&why.message)),
        (None, None) => String::new(),
    };
    let confirmed = view.confirmed_at.map_or_else(|| "never".to_owned(), |at| ago(at, now));
    let next = view.next_refresh_at.map(|at| format!("<small>next {}</small>", ahead(at, now))).unwrap_or_default();
    let counted = |count: u64, one, many| number(usize::try_from(count).unwrap_or(usize::MAX), one, many);
    let held = match view.snapshots_in_use {
        0 => String::new(),
        used => format!("<small>{used} in use by {}</small>", view.holders),
    };
    let asked = view.hits.saturating_add(view.misses);
    let stale = if view.stale > 0 { format!("<small>{} stale</small>", view.stale) } else { String::new() };
    format!(
        "<td><b title=\"{}\">{}</b><small>{}</small></td><td><span class=\"state {class}\">{}</span>{doing}</td>\
         <td class=\"size\">{confirmed}{next}</td><td class=\"size\">{}<small>{}, {}</small></td>\
         <td class=\"size\">{}{held}</td><td class=\"size\">{} <span class=\"note\">of {asked}</span>{stale}</td>",
        Text(view.url.key()),
        Text(short(view.url.key())),
        Text(marks.join(" · ")),
        repository_word(view.state),
        shown(Resource::DiskBytes, view.disk_bytes),
        counted(view.objects, "object", "objects"),
        counted(view.refs, "ref", "refs"),
        view.snapshots,
        view.hits,
    )
}

/// A fetch that runs, as far as git tells.
fn progress(fetch: &Progress) -> String {
    let subject = if fetch.subject.is_empty() { String::new() } else { format!("{}: ", fetch.subject) };
    let told = match fetch.total {
        0 => format!("{subject}{}", fetch.phase),
        total => format!("{subject}{} {} of {total}", fetch.phase, fetch.done),
    };
    let bytes = if fetch.bytes > 0 { format!(", {}", shown(Resource::DiskBytes, fetch.bytes)) } else { String::new() };
    let meter = match fetch.total {
        0 => String::new(),
        total => bar(total, &[Part { class: "leased", value: fetch.done }], None, &told),
    };
    format!("<small>{}{bytes}</small>{meter}", Text(&told))
}

/// What went last for want of room, the newest first.
fn evictions(sight: &Sight<'_>) -> String {
    if sight.evictions.is_empty() {
        return String::new();
    }
    let row = |gone: &Eviction| {
        let (repository, what) = (Text(short(&gone.repository)), Text(&gone.what));
        format!(
            "<li>{repository} · {what} <span class=\"note\">{}</span> <code>{}</code></li>",
            ago(gone.at, sight.now),
            gone.code.word()
        )
    };
    let rows: String = sight.evictions.iter().rev().take(EVICTIONS_SHOWN).map(row).collect();
    format!("<h3>Evicted for want of room</h3><ul class=\"evictions\">{rows}</ul>")
}

/// A canonical URL without its scheme.
fn short(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest)
}

fn foot(sight: &Sight<'_>) -> String {
    let at = sight.status.node.as_ref().and_then(|node| node.observed_at.as_ref()).map_or(sight.now, time);
    let moment = jiff::Timestamp::from_millisecond(at.0).map(|at| format!("{at:.0}")).unwrap_or_default();
    let link = match sight.still {
        true => "<a href=\"/\">follow</a>".to_owned(),
        false => format!("again every {AGAIN_SECONDS} s, <a href=\"/?still\">stand still</a>"),
    };
    format!(
        "<footer><p>As of {moment} · {link} · <a href=\"/metrics\">metrics</a> · <a href=\"/readyz\">ready</a></p></footer>"
    )
}
