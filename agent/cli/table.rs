//! How answers are laid out for people: quiet tables, relative times, sizes, and one line for a reason. Pure: messages,
//! the time and the width in, text out. Whatever came from elsewhere passes [`screen::safe`].

use comfy_table::{CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, presets};
use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};
use stoker_core::quantity::Resource;
use stoker_proto::v1;

use super::screen::{self, Paint};

/// Piped output has no width of its own.
const WIDTH_PIPED: u16 = 100;
const WIDTH_MIN: u16 = 40;
/// Beyond it lines are too long for the eye.
const WIDTH_MAX: u16 = 140;
const DAY_MILLIS: i64 = 24 * 3_600_000;

/// What rendering depends on beside the message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    /// Milliseconds since the Unix epoch.
    pub(crate) now: i64,
    /// Columns.
    pub(crate) width: u16,
    pub(crate) paint: Paint,
}

impl View {
    /// Standard output, now.
    pub(crate) fn stdout() -> Self {
        let paint = Paint::of(&std::io::stdout());
        // A terminal that was never told its size says 0.
        let width = Table::new().width().filter(|width| *width > 0).unwrap_or(WIDTH_PIPED);
        let width = width.clamp(WIDTH_MIN, WIDTH_MAX);
        Self { now: now(), width, paint }
    }

    /// `3 min ago`, `in 2 h`; a dash where there is no time.
    pub(crate) fn when(&self, at: Option<&ProtoTimestamp>) -> String {
        let Some(at) = at else { return "-".to_owned() };
        let past = self.now.saturating_sub(millis(at));
        match past {
            -999..=999 => "now".to_owned(),
            past if past > 0 => format!("{} ago", coarse(past)),
            to_come => {
                // Rounded: what was asked for a moment ago as 5 minutes is not 4.
                let left = to_come.saturating_neg();
                format!("in {}", coarse(left.saturating_add(if left < 60_000 { 500 } else { 30_000 })))
            }
        }
    }

    /// `3 min`: how long it has been so.
    pub(crate) fn lasting(&self, since: Option<&ProtoTimestamp>) -> String {
        since.map_or_else(|| "-".to_owned(), |since| coarse(self.now.saturating_sub(millis(since)).max(0)))
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds since the Unix epoch.
pub(crate) fn millis(at: &ProtoTimestamp) -> i64 {
    at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000)
}

/// A span as an eye takes it in: at most two units, the second only where it matters.
pub(crate) fn coarse(millis: i64) -> String {
    let seconds = millis.max(0) / 1000;
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (_, 0, 0) => format!("{seconds} s"),
        (_, 0, minutes) => format!("{minutes} min"),
        (_, hours @ 1..10, minutes) if minutes % 60 > 0 => format!("{hours} h {} min", minutes % 60),
        (_, hours @ 1..48, _) => format!("{hours} h"),
        (days @ 2..10, hours, _) if hours % 24 > 0 => format!("{days} d {} h", hours % 24),
        (days, ..) => format!("{days} d"),
    }
}

/// A duration as people read it.
pub(crate) fn span(span: Option<&ProtoDuration>) -> String {
    span.map_or_else(
        || "-".to_owned(),
        |span| match span.seconds.saturating_mul(1000).saturating_add(i64::from(span.nanos) / 1_000_000) {
            long if long >= 2 * DAY_MILLIS => coarse(long),
            short => Resource::Time.show(positive(short)).to_string(),
        },
    )
}

pub(crate) fn positive(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

const fn unit(resource: v1::Resource) -> Option<Resource> {
    match resource {
        v1::Resource::Cpu => Some(Resource::Cpu),
        v1::Resource::Memory => Some(Resource::Memory),
        v1::Resource::DiskBytes => Some(Resource::DiskBytes),
        v1::Resource::DiskInodes => Some(Resource::DiskInodes),
        v1::Resource::Time => Some(Resource::Time),
        v1::Resource::Unspecified => None,
    }
}

/// `value` in the unit of its resource.
pub(crate) fn amount(resource: v1::Resource, value: i64) -> String {
    unit(resource).map_or_else(|| value.to_string(), |unit| unit.show(positive(value)).to_string())
}

/// `2 CPU · 4 GiB memory · 20 GiB disk · 30 min`, of what is set.
pub(crate) fn size(size: Option<&v1::Size>) -> String {
    let Some(size) = size else { return "-".to_owned() };
    let part = |resource: Resource, value: Option<i64>, word: &str| {
        value.map(|value| format!("{}{word}", resource.show(positive(value))))
    };
    let parts = [
        part(Resource::Cpu, size.cpu_millis, ""),
        part(Resource::Memory, size.memory_bytes, " memory"),
        part(Resource::DiskBytes, size.disk_bytes, " disk"),
        size.time_budget.as_ref().map(|budget| span(Some(budget))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// The size in a narrow column: `2 CPU  4 GiB`.
pub(crate) fn brief_size(size: Option<&v1::Size>) -> (String, String) {
    let show = |resource: Resource, value: Option<i64>| {
        value.map_or_else(|| "-".to_owned(), |value| resource.show(positive(value)).to_string())
    };
    let (cpu, memory) = size.map_or((None, None), |size| (size.cpu_millis, size.memory_bytes));
    (show(Resource::Cpu, cpu), show(Resource::Memory, memory))
}

/// `tenant/project/branch`, of what is set.
pub(crate) fn scope(scope: Option<&v1::Scope>) -> String {
    let Some(scope) = scope else { return "-".to_owned() };
    let parts = [&scope.tenant, &scope.project, &scope.branch];
    let set: Vec<&str> = parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    if set.is_empty() { "-".to_owned() } else { set.join("/") }
}

/// The part of a URL that people call the repository by: its last two segments.
pub(crate) fn short_url(url: &str) -> &str {
    let path = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    path.rmatch_indices(['/', ':']).nth(1).map_or(path, |(at, _)| &path[at + 1..])
}

/// `main`, `v1.0`, `pr 152`.
pub(crate) fn short_ref(clone_ref: &str) -> String {
    for prefix in ["refs/heads/", "refs/tags/"] {
        if let Some(name) = clone_ref.strip_prefix(prefix) {
            return name.to_owned();
        }
    }
    let number = clone_ref.strip_prefix("refs/pull/").or_else(|| clone_ref.strip_prefix("refs/merge-requests/"));
    match number.and_then(|rest| rest.strip_suffix("/head")) {
        Some(number) => format!("pr {number}"),
        None => clone_ref.to_owned(),
    }
}

/// Twelve digits, as the core shortens commits.
pub(crate) fn short_commit(commit: &str) -> String {
    commit.chars().take(12).collect()
}

/// `dakota main 01234567`, for a line of a list.
pub(crate) fn source(source: Option<&v1::Resolved>) -> String {
    let Some(source) = source else { return "-".to_owned() };
    let reference = short_ref(&source.clone_ref);
    let commit: String = source.commit.chars().take(8).collect();
    let name = short_url(&source.clone_url);
    let name = name.rsplit(['/', ':']).next().unwrap_or(name);
    let parts = [name, if reference == source.commit { "" } else { &reference }, &commit];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The word of a reason, also of one that this version does not know.
pub(crate) fn code(reason: &v1::Reason) -> String {
    match v1::reason::Code::try_from(reason.code) {
        Ok(code) => code.as_str_name().to_owned(),
        Err(_) => format!("REASON_{}", reason.code),
    }
}

/// What a reason says, in figures where it has no sentence.
pub(crate) fn reason(reason: &v1::Reason) -> String {
    if !reason.message.is_empty() {
        return screen::safe(&reason.message);
    }
    match unit(reason.resource()) {
        Some(unit) => {
            let (wanted, available) = (unit.show(positive(reason.wanted)), unit.show(positive(reason.available)));
            format!("{wanted} wanted, {available} available")
        }
        None => screen::safe(&reason.subject),
    }
}

/// `message [CODE]`.
pub(crate) fn reason_line(why: &v1::Reason) -> String {
    match reason(why) {
        text if text.is_empty() => code(why),
        text => format!("{text} [{}]", code(why)),
    }
}

/// How a text looks, where colours are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
}

/// A text in a table.
#[derive(Debug, Clone)]
pub(crate) struct Cell(String, Tone);

/// A plain text in a table.
pub(crate) fn cell(text: impl AsRef<str>) -> Cell {
    Cell(screen::safe(text.as_ref()), Tone::Plain)
}

/// Several lines in one cell.
pub(crate) fn lines(texts: impl IntoIterator<Item = String>) -> Cell {
    Cell(texts.into_iter().map(|text| screen::safe(&text)).collect::<Vec<_>>().join("\n"), Tone::Plain)
}

impl Cell {
    pub(crate) fn tone(self, tone: Tone) -> Self {
        Self(self.0, tone)
    }
}

/// A table without lines. Columns keep their width; those that may wrap take what is left.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grid {
    header: Vec<String>,
    rows: Vec<Vec<Cell>>,
    right: Vec<usize>,
    wrapping: Vec<usize>,
    indent: u16,
}

impl Grid {
    /// With a header; none where it is empty.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|name| (*name).to_owned()).collect(), ..Self::default() }
    }

    /// These columns hold numbers.
    pub(crate) fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    /// These columns may wrap.
    pub(crate) fn wraps(mut self, columns: &[usize]) -> Self {
        self.wrapping = columns.to_vec();
        self
    }

    /// So many blanks before each line.
    pub(crate) fn indent(mut self, columns: u16) -> Self {
        self.indent = columns;
        self
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn render(&self, view: &View) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(view.width.saturating_sub(self.indent).max(WIDTH_MIN / 2)).style_text_only();
        if view.paint.on() {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !self.header.is_empty() {
            table.set_header(self.header.iter().map(|text| paint(&Cell(text.clone(), Tone::Dim))));
        }
        for row in &self.rows {
            table.add_row(row.iter().map(paint));
        }
        let columns = table.column_count();
        for (i, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, if i + 1 == columns { 0 } else { 2 }));
            if self.right.contains(&i) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if !self.wrapping.contains(&i) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        let indent = " ".repeat(usize::from(self.indent));
        let mut out = String::new();
        for line in table.lines() {
            out.push_str(format!("{indent}{line}").trim_end());
            out.push('\n');
        }
        out
    }
}

fn paint(cell: &Cell) -> comfy_table::Cell {
    let shown = comfy_table::Cell::new(&cell.0);
    match cell.1 {
        Tone::Plain => shown,
        Tone::Bold => shown.add_attribute(comfy_table::Attribute::Bold),
        Tone::Dim => shown.add_attribute(comfy_table::Attribute::Dim),
        Tone::Good => shown.fg(Color::DarkGreen),
        Tone::Warn => shown.fg(Color::DarkYellow),
        Tone::Bad => shown.fg(Color::Red).add_attribute(comfy_table::Attribute::Bold),
    }
}

/// Names and values, one a line: what `show` commands print.
#[derive(Debug, Clone)]
pub(crate) struct Fields(Grid);

impl Fields {
    pub(crate) fn new() -> Self {
        Self(Grid::new(&[]).wraps(&[1]))
    }

    /// A field, unless there is nothing to say.
    pub(crate) fn add(&mut self, name: &str, value: impl AsRef<str>) {
        self.put(name, cell(value));
    }

    /// A field as it is.
    pub(crate) fn put(&mut self, name: &str, value: Cell) {
        if !value.0.is_empty() && value.0 != "-" {
            self.0.row([cell(name).tone(if name.is_empty() { Tone::Plain } else { Tone::Dim }), value]);
        }
    }

    /// A line that is marked in its own colour.
    pub(crate) fn mark(&mut self, mark: &str, value: Cell) {
        self.0.row([cell(mark).tone(value.1), value]);
    }

    /// All reasons under one name.
    pub(crate) fn reasons(&mut self, name: &str, reasons: &[v1::Reason]) {
        self.put(name, lines(reasons.iter().map(reason_line)));
    }

    pub(crate) fn render(&self, view: &View) -> String {
        self.0.render(view)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Saturday, 4 July 2026, 03:00 UTC.
    pub(crate) const NOW: i64 = 1_783_134_000_000;

    pub(crate) const VIEW: View = View { now: NOW, width: 100, paint: Paint::plain() };

    /// So many seconds before (or after) the time at which tests look.
    pub(crate) fn ago(seconds: i64) -> Option<ProtoTimestamp> {
        Some(ProtoTimestamp { seconds: NOW / 1000 - seconds, nanos: 0 })
    }

    #[test]
    fn times_are_relative() {
        let when: Vec<String> =
            [0, 59, 61, 3_700, 36_500, 180_000, 864_000, -90, -4_000].map(|s| VIEW.when(ago(s).as_ref())).into();
        insta::assert_snapshot!(when.join(", "), @"now, 59 s ago, 1 min ago, 1 h 1 min ago, 10 h ago, 2 d 2 h ago, 10 d ago, in 2 min, in 1 h 7 min");
        assert_eq!(VIEW.when(None), "-");
    }

    #[test]
    fn names_are_short_where_they_can_be() {
        assert_eq!(short_url("https://github.com/projectbluefin/dakota.git"), "projectbluefin/dakota");
        assert_eq!(short_url("git@example.org:a/b"), "a/b");
        assert_eq!(short_url("file:///srv"), "/srv");
        assert_eq!(short_ref("refs/pull/152/head"), "pr 152");
        assert_eq!(short_ref("refs/heads/a/b"), "a/b");
    }

    #[test]
    fn tables_wrap_what_may_wrap_and_end_without_blanks() {
        let mut grid = Grid::new(&["NAME", "N", "WHY"]).right(&[1]).wraps(&[2]).indent(2);
        grid.row([cell("a"), cell("1"), cell("short")]);
        grid.row([
            cell("longer\x1b[31m"),
            cell("1000"),
            cell("a sentence that goes on beyond the width of the screen"),
        ]);
        let text = grid.render(&View { width: 50, ..VIEW });
        assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
        insta::assert_snapshot!(text, @r"
        NAME            N  WHY
        a               1  short
        longer�[31m  1000  a sentence that goes on
                           beyond the width of the
                           screen
        ");
    }

    #[test]
    fn reasons_speak_in_figures_also_when_unknown() {
        let mut why = v1::Reason { code: 999, wanted: 8 << 30, available: 3 << 30, ..Default::default() };
        why.set_resource(v1::Resource::Memory);
        assert_eq!(reason_line(&why), "8 GiB wanted, 3 GiB available [REASON_999]");
    }
}
