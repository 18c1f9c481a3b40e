//! What the cluster says of a service account token: its keys, and a review.

use std::time::Duration;

use axum::http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Client;

/// The most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// What a review says.
#[derive(Debug)]
pub enum Reviewed {
    /// The token is good.
    Yes(Box<TokenReviewStatus>),
    /// It is not.
    No(String),
    /// The API server does not answer, or wants to be asked later (429, 5xx), or not by us (403).
    Away(String),
    /// It answers something that is no review of this token.
    Nonsense(String),
}

/// The keys with which the cluster signs tokens, as JSON (RFC 7517).
///
/// # Errors
/// Why there is no answer.
pub async fn keys(client: &Client, within: Duration) -> Result<Vec<u8>, String> {
    let request = Request::get("/openid/v1/jwks").header(header::ACCEPT, "application/jwk-set+json, application/json");
    let request = request.body(Vec::new()).map_err(|error| error.to_string())?;
    ask(client, request, within).await.map_err(|(Failure::Away(why) | Failure::Nonsense(why))| why)
}

/// Why there is no answer that counts.
enum Failure {
    /// It may come later, or for others.
    Away(String),
    /// What answers is no API server, or does not take this agent for one of its cluster.
    Nonsense(String),
}

/// Asks the cluster for a token, for one audience.
pub async fn review(client: &Client, token: &str, audience: &str, within: Duration) -> Reviewed {
    let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let request = serde_json::to_vec(&review).map_err(|error| error.to_string()).and_then(|body| {
        let request = Request::post("/apis/authentication.k8s.io/v1/tokenreviews");
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        request.map_err(|error| error.to_string())
    });
    let answer = match request {
        Ok(request) => ask(client, request, within).await,
        Err(error) => Err(Failure::Nonsense(error)),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(Failure::Away(why)) => return Reviewed::Away(why),
        Err(Failure::Nonsense(why)) => return Reviewed::Nonsense(why),
    };
    let status = match serde_json::from_slice::<TokenReview>(&answer) {
        Ok(TokenReview { status: Some(status), .. }) => status,
        Ok(_) => return Reviewed::Nonsense("the review has no status".to_owned()),
        Err(error) => return Reviewed::Nonsense(format!("the answer is no review: {error}")),
    };
    if status.authenticated != Some(true) {
        // Its words are for people, and may be anything.
        let why = status.error.unwrap_or_default().replace(char::is_control, " ");
        return Reviewed::No(why.chars().take(200).collect());
    }
    // An API server that does not know audiences says nothing of them, and its yes is not meant for us.
    if !status.audiences.as_ref().is_some_and(|all| all.iter().any(|one| one == audience)) {
        return Reviewed::Nonsense(format!("the review is not for the audience {audience:?}"));
    }
    Reviewed::Yes(Box::new(status))
}

async fn ask(client: &Client, request: Request<Vec<u8>>, within: Duration) -> Result<Vec<u8>, Failure> {
    let ask = async {
        let sent = client.send(request.map(kube::client::Body::from)).await;
        let answer = sent.map_err(|error| Failure::Away(innermost(&error)))?;
        let status = answer.status();
        if !status.is_success() {
            let later =
                status.is_server_error() || [StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS].contains(&status);
            let why = format!("it answers {status}");
            return Err(if later { Failure::Away(why) } else { Failure::Nonsense(why) });
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        body.map(|body| body.to_bytes().to_vec()).map_err(|error| match error.is::<LengthLimitError>() {
            true => Failure::Nonsense(format!("its answer has more than {ANSWER_BYTES_MAX} bytes")),
            false => Failure::Away(error.to_string()),
        })
    };
    let late = || Err(Failure::Away(format!("it did not answer within {} ms", within.as_millis())));
    tokio::time::timeout(within, ask).await.unwrap_or_else(|_| late())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
