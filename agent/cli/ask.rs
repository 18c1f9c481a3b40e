//! What every command shares that asks an agent: deadlines, pages, and the way a refusal becomes words and an exit code.

use std::time::Duration;

use anyhow::{Context, Result};
use prost::{Message, Name};
use tonic::{Request, Status};
use tonic_types::StatusExt;

use super::table::View;
use super::{ERROR, Format, USAGE, client, json, screen};

/// For what an agent answers from memory or from its journal.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// For what waits for an upstream.
pub(crate) const UPSTREAM: Duration = Duration::from_secs(600);
/// For what moves a whole repository or checks one out.
pub(crate) const LONG: Duration = Duration::from_secs(4 * 3600);

/// An agent gives at most a thousand a page.
pub(crate) const PAGE: i32 = 1000;
/// No node has a million leases: beyond it the tokens go in circles.
const PAGES_MAX: usize = 1000;

/// Why a command ends without its answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The agent refuses.
    Refused(Box<Status>),
    /// What was asked makes no sense.
    Usage(String),
    /// Anything else.
    Failed(anyhow::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// The exit code, or why there is no answer.
pub(crate) type Ended = Result<u8, Failure>;

/// Says why there is no answer, and gives the exit code.
pub(crate) fn exit(ended: Ended) -> u8 {
    match ended {
        Ok(code) => code,
        Err(failure) => {
            let (text, code) = told(&failure);
            screen::error(&text);
            code
        }
    }
}

fn told(failure: &Failure) -> (String, u8) {
    match failure {
        Failure::Refused(status) => (refusal(status), client::code(status)),
        Failure::Usage(text) => (text.clone(), USAGE),
        Failure::Failed(error) => (format!("{error:#}"), ERROR),
    }
}

/// Why there is no answer, in words.
pub(crate) fn words(failure: &Failure) -> String {
    told(failure).0
}

/// A refusal in words: what, which reason, which field, when to try again.
pub(crate) fn refusal(status: &Status) -> String {
    let mut text = client::words(status);
    for violation in status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default() {
        // Most agents begin their message with the field.
        let (field, what) = (screen::safe(&violation.field), screen::safe(&violation.description));
        if !field.is_empty() && !text.contains(&field) {
            text.push_str(&format!("\n  {field}: {what}"));
        }
    }
    if let Some(delay) = status.get_details_retry_info().and_then(|info| info.retry_delay) {
        text.push_str(&format!(
            "\ntry again in {}",
            stoker_core::quantity::Resource::Time.show(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
        ));
    }
    text
}

/// A request that ends.
pub(crate) fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// A part that an answer must have.
pub(crate) fn part<T>(part: Option<T>, name: &str) -> Result<T, Failure> {
    Ok(part.with_context(|| format!("the agent's answer has no {name}; is it of another version?"))?)
}

/// All pages of a list. `page` takes a token and gives the items and the next token.
pub(crate) async fn all<T, F>(mut page: impl FnMut(String) -> F) -> Result<Vec<T>, Status>
where
    F: Future<Output = Result<(Vec<T>, String), Status>>,
{
    let (mut items, mut token) = (Vec::new(), String::new());
    for _ in 0..PAGES_MAX {
        let (some, next) = page(token).await?;
        items.extend(some);
        if next.is_empty() {
            return Ok(items);
        }
        token = next;
    }
    Err(Status::internal(format!("the list has no end after {PAGES_MAX} pages")))
}

/// Writes an answer as asked.
pub(crate) fn answer<M: Message + Name>(
    format: Format,
    message: &M,
    table: impl FnOnce(&M, &View) -> String,
) -> Result<(), Failure> {
    Ok(json::answer(format, message, |message| table(message, &View::stdout()))?)
}

/// Writes an answer that is no message of its own.
pub(crate) fn value(
    format: Format,
    value: &serde_json::Value,
    table: impl FnOnce(&View) -> String,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table | Format::Env => table(&View::stdout()),
        Format::Json => format!("{value:#}\n"),
        Format::Yaml => serde_saphyr::to_string(value).context("the answer cannot be written as YAML")?,
    };
    screen::data(&text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic::Code;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_refusal_names_field_reason_and_time() {
        let mut details = ErrorDetails::with_error_info("UPSTREAM_TIMEOUT", "stoker.build", HashMap::new());
        details.add_bad_request_violation("build.source", "is missing");
        details.set_retry_info(Some(Duration::from_secs(10)));
        let status = Status::with_error_details(Code::InvalidArgument, "no\x1b[31m", details);
        let (text, code) = told(&status.into());
        insta::assert_snapshot!(text, @r"
        no�[31m [UPSTREAM_TIMEOUT]
          build.source: is missing
        try again in 10 s
        ");
        assert_eq!(code, USAGE);
        assert_eq!(told(&Status::not_found("no lease x").into()), ("no lease x".to_owned(), ERROR));
    }

    #[tokio::test]
    async fn pages_are_put_together_and_end() {
        let page = |token: String| async move {
            Ok(match token.as_str() {
                "" => (vec![1, 2], "b".to_owned()),
                _ => (vec![3], String::new()),
            })
        };
        assert_eq!(all(page).await.ok(), Some(vec![1, 2, 3]));
        let endless = |_| async { Ok((vec![0_u8], "again".to_owned())) };
        assert!(all(endless).await.is_err());
    }
}
