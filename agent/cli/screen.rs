//! What people see on standard error, and the one way to standard output.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use stoker_core::quantity::Resource;

/// Writes data. A pipe that nobody reads any more is no error.
pub(crate) fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a line to standard error.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes what went wrong.
pub(crate) fn error(text: &str) {
    let paint = Paint::of(&std::io::stderr());
    say(&format!("{} {text}", paint.red("error:")));
}

/// Colours, or none: only on a terminal, and never with `NO_COLOR` set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self(wanted && stream.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb"))
    }

    pub(crate) const fn is_on(self) -> bool {
        self.0
    }

    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self(false)
    }

    /// Whether there are colours.
    pub(crate) const fn on(self) -> bool {
        self.0
    }

    fn with(self, code: &str, text: impl Display) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    pub(crate) fn bold(self, text: impl Display) -> String {
        self.with("1", text)
    }

    pub(crate) fn dim(self, text: impl Display) -> String {
        self.with("2", text)
    }

    pub(crate) fn red(self, text: impl Display) -> String {
        self.with("1;31", text)
    }

    pub(crate) fn green(self, text: impl Display) -> String {
        self.with("32", text)
    }

    pub(crate) fn yellow(self, text: impl Display) -> String {
        self.with("33", text)
    }
}

/// The steps of a build, one line each: a word, what is so, how long it took.
pub(crate) struct Steps {
    paint: Paint,
    bar: Option<ProgressBar>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { paint: Paint::of(&std::io::stderr()), bar: None }
    }

    pub(crate) const fn paint(&self) -> Paint {
        self.paint
    }

    /// A step that is done.
    pub(crate) fn done(&mut self, word: &str, what: &str, took: Option<Duration>) {
        self.clear();
        let took = took.map(|took| format!("  {}", self.paint.dim(elapsed(took)))).unwrap_or_default();
        say(&format!("  {} {what}{took}", self.paint.green(format!("{word:<10}"))));
    }

    /// Something to know, below the step it belongs to.
    pub(crate) fn note(&mut self, what: &str) {
        self.clear();
        say(&format!("  {:<10} {}", "", self.paint.yellow(what)));
    }

    /// A step that ended the build.
    pub(crate) fn failed(&mut self, word: &str, what: &str) {
        self.clear();
        say(&format!("  {} {what}", self.paint.red(format!("{word:<10}"))));
    }

    /// A step under way; shown on a terminal only.
    pub(crate) fn under_way(&mut self, word: &str, what: &str, done: u64, total: u64) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(12));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let template = match total {
            0 => "  {prefix:<10.cyan} {msg} {spinner:.dim}",
            _ => "  {prefix:<10.cyan} {msg}  {bar:28.cyan/dim} {percent:>3}%  {elapsed:.dim}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━━╌").tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ "));
        }
        bar.set_prefix(word.to_owned());
        bar.set_message(what.to_owned());
        if total > 0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A time as people read it: `3 ms`, `1.4 s`, `2 min 5 s`.
pub(crate) fn elapsed(took: Duration) -> String {
    match took.as_millis() {
        0 => "under 1 ms".to_owned(),
        millis @ 1..=999 => format!("{millis} ms"),
        1_000..=59_949 => format!("{:.1} s", took.as_secs_f64()),
        millis => Resource::Time.show(u64::try_from(millis).unwrap_or(u64::MAX)).to_string(),
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(value: i64) -> String {
    Resource::Memory.show(u64::try_from(value).unwrap_or(0)).to_string()
}

/// Whole numbers in groups of three.
pub(crate) fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0 { format!("-{text}") } else { text }
}

/// `1 file`, `2 files`.
pub(crate) fn counted(value: i64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(value), if value == 1 { one } else { many })
}

/// Text from elsewhere, safe for a terminal: control characters become a mark.
pub(crate) fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(-1_000), "-1,000");
        assert_eq!(counted(1, "file", "files"), "1 file");
        assert_eq!(elapsed(Duration::from_millis(1_449)), "1.4 s");
        assert_eq!(elapsed(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(safe("a\x1b[31mb"), "a\u{fffd}[31mb");
    }
}
