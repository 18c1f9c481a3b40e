//! `stoker resolve`: a source to the one commit that it stands for.

use stoker_proto::v1;

use super::ask::{self, Ended, Failure, within};
use super::client::Client;
use super::table::{Fields, Tone, View, cell, span};
use super::{Common, DONE, amount};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The repository: a URL or a path
    #[arg(value_name = "URL")]
    repo: String,
    /// head, branch:NAME, tag:NAME, pr:NUMBER or sha:COMMIT
    #[arg(value_name = "REF", default_value = "head")]
    reference: String,
    /// How old an answer may be, as 10m; without it upstream is asked
    #[arg(long, value_name = "DURATION", value_parser = amount::span)]
    max_age: Option<prost_types::Duration>,
    /// An answer of any age is good when upstream cannot be reached
    #[arg(long)]
    allow_stale: bool,
}

pub(super) async fn run(common: &Common, args: &Args) -> u8 {
    ask::exit(resolve(common, args).await)
}

async fn resolve(common: &Common, args: &Args) -> Ended {
    let source = amount::source(&args.repo, Some(&args.reference)).map_err(Failure::Usage)?;
    let source = v1::Source { max_age: args.max_age, allow_stale: args.allow_stale, ..source };
    let client = Client::of(common).await?;
    let request = within(ask::UPSTREAM, v1::ResolveSourceRequest { source: Some(source) });
    let answer = client.repositories().resolve_source(request).await?.into_inner();
    ask::answer(common.output, &answer, render)?;
    Ok::<u8, Failure>(DONE)
}

fn render(answer: &v1::ResolveSourceResponse, view: &View) -> String {
    let resolved = answer.resolved.clone().unwrap_or_default();
    let mut fields = Fields::new();
    fields.put("commit", cell(&resolved.commit).tone(Tone::Bold));
    fields.add("subject", &resolved.subject);
    fields.add("clone_url", &resolved.clone_url);
    fields.add("clone_ref", &resolved.clone_ref);
    if !resolved.fork_url.is_empty() {
        fields.add("fork_url", &resolved.fork_url);
        fields.add("fork_ref", &resolved.fork_ref);
    }
    let origin = match resolved.origin() {
        v1::Origin::Upstream => "upstream says so",
        v1::Origin::Cache => "from the cache, within its age",
        v1::Origin::Stale => "from the cache: upstream could not be asked",
        v1::Origin::Unspecified => "",
    };
    let stale = resolved.origin() == v1::Origin::Stale;
    fields.put("origin", cell(origin).tone(if stale { Tone::Warn } else { Tone::Plain }));
    if resolved.other_fork {
        fields.put("reached by", cell("another fork only, as allowed").tone(Tone::Warn));
    }
    fields.add("as of", format!("{} ({} old)", view.when(resolved.as_of.as_ref()), span(answer.age.as_ref())));
    fields.render(view)
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{VIEW, ago};
    use super::*;

    #[test]
    fn a_stale_answer_says_so() {
        let mut resolved = v1::Resolved {
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            clone_url: "https://github.com/projectbluefin/dakota".to_owned(),
            clone_ref: "refs/pull/152/head".to_owned(),
            as_of: ago(4_000),
            subject: "Use the newer base".to_owned(),
            ..Default::default()
        };
        resolved.set_origin(v1::Origin::Stale);
        let age = Some(prost_types::Duration { seconds: 4_000, nanos: 0 });
        let answer = v1::ResolveSourceResponse { resolved: Some(resolved), age };
        insta::assert_snapshot!(render(&answer, &VIEW), @r"
        commit     0123456789abcdef0123456789abcdef01234567
        subject    Use the newer base
        clone_url  https://github.com/projectbluefin/dakota
        clone_ref  refs/pull/152/head
        origin     from the cache: upstream could not be asked
        as of      1 h 6 min ago (1 h 6 min old)
        ");
    }

    #[test]
    fn a_pull_request_tells_where_it_comes_from() {
        let resolved = v1::Resolved {
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            clone_url: "https://github.com/projectbluefin/dakota".to_owned(),
            clone_ref: "refs/pull/152/head".to_owned(),
            fork_url: "https://github.com/somebody/dakota.git".to_owned(),
            fork_ref: "refs/heads/newer-base".to_owned(),
            as_of: ago(1),
            ..Default::default()
        };
        let answer = v1::ResolveSourceResponse { resolved: Some(resolved), age: None };
        let shown = render(&answer, &VIEW);
        assert!(shown.contains("\nfork_url   https://github.com/somebody/dakota.git\n"), "{shown}");
        assert!(shown.contains("\nfork_ref   refs/heads/newer-base\n"), "{shown}");
    }
}
