//! A forge's API, as far as it tells of pull requests: the documented answers of GitHub, GitLab and Gitea, cut down to
//! what stands around what is looked for, and what can be wrong with one.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::cgi::Body;

/// The number that GitLab knows a fork by.
const PROJECT: u64 = 4711;

/// What a pull request looks like there.
#[derive(Debug, Clone)]
pub(crate) struct Pull {
    pub(crate) sha: String,
    pub(crate) branch: String,
    /// None: the fork was deleted.
    pub(crate) url: Option<String>,
}

/// What is wrong with the API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Every answer has this status.
    Status(u16),
    /// No answer comes.
    Hang,
    /// An answer begins well and never ends.
    Huge,
    /// A header, and then no more.
    HangBody,
    /// It is no JSON.
    Html,
    /// It is elsewhere, below this base; what comes from there by `/moved` is answered.
    Moved(String),
}

/// A question, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
}

#[derive(Default)]
struct State {
    pulls: Vec<(String, u64, Pull)>,
    trouble: Trouble,
    seen: Vec<Seen>,
}

/// A server of it, of all kinds at once. It has a thread of its own, and ends with it.
pub(crate) struct Forge {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Forge {
    pub(crate) fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("forge".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, &shared, stopped).await;
            });
        });
        let address = address.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { address, state, stop: Some(stop), thread: Some(thread.unwrap()) }
    }

    /// `http://` and its address.
    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the API of this kind is.
    pub(crate) fn api(&self, kind: &str) -> String {
        let below = match kind {
            "github" => "",
            "gitlab" => "/api/v4",
            _ => "/api/v1",
        };
        format!("{}{below}", self.base())
    }

    /// Tells this of the pull request from now on.
    pub(crate) fn tell(&self, repository: &str, number: u64, pull: Pull) {
        let mut state = self.state.lock().unwrap();
        state.pulls.retain(|(known, its, _)| (known.as_str(), *its) != (repository, number));
        state.pulls.push((repository.to_owned(), number, pull));
    }

    pub(crate) fn trouble(&self, trouble: Trouble) {
        self.state.lock().unwrap().trouble = trouble;
    }

    /// What was asked so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(!matches!(ended, Some(Err(_))), "the forge's thread panicked");
        }
    }
}

async fn serve(listener: TcpListener, state: &Arc<Mutex<State>>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let state = Arc::clone(state);
                connections.spawn(async move {
                    let service = service_fn(move |request| handle(Arc::clone(&state), request));
                    // A client that goes is an error here, and what a test asked for.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn handle(state: Arc<Mutex<State>>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (trouble, answer) = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen { path: path.clone(), authorization });
        (state.trouble.clone(), state.answer(path.strip_prefix("/moved").unwrap_or(&path)))
    };
    match trouble {
        Trouble::None => {}
        Trouble::Moved(_) if path.starts_with("/moved") => {}
        Trouble::Hang => std::future::pending().await,
        Trouble::Status(code) => {
            return Ok(whole(code, "application/json", json!({"message": "as asked"}).to_string()));
        }
        Trouble::Html => return Ok(whole(200, "text/html", "<html>Sign in</html>".to_owned())),
        Trouble::Moved(base) => {
            let mut response = whole(301, "application/json", String::new());
            response.headers_mut().insert(LOCATION, format!("{base}/moved{path}").parse().unwrap());
            return Ok(response);
        }
        Trouble::Huge | Trouble::HangBody => return Ok(endless(trouble == Trouble::Huge)),
    }
    Ok(match answer {
        Some(answer) => whole(200, "application/json", answer.to_string()),
        None => whole(404, "application/json", json!({"message": "Not Found"}).to_string()),
    })
}

impl State {
    fn answer(&self, path: &str) -> Option<Value> {
        if path == format!("/api/v4/projects/{PROJECT}") {
            let url = self.pulls.last()?.2.url.clone()?;
            return Some(json!({"id": PROJECT, "path": "project", "http_url_to_repo": url, "forks_count": 0}));
        }
        self.pulls.iter().find_map(|(repository, number, pull)| {
            let asked = [
                format!("/repos/{repository}/pulls/{number}"),
                format!("/api/v1/repos/{repository}/pulls/{number}"),
                format!("/api/v4/projects/{}/merge_requests/{number}", repository.replace('/', "%2F")),
            ];
            let is_gitlab = *asked.last()? == path;
            asked
                .iter()
                .any(|asked| asked == path)
                .then(|| if is_gitlab { merge(*number, pull) } else { head(*number, pull) })
        })
    }
}

/// As GitHub, Gitea and Forgejo tell it.
fn head(number: u64, pull: &Pull) -> Value {
    let repo = |url: &String| json!({"id": PROJECT, "fork": true, "clone_url": url, "ssh_url": "git@x:y"});
    let Pull { sha, branch, url } = pull;
    json!({
        "number": number, "state": "open", "title": "A change", "body": "x".repeat(100_000),
        "head": {"label": format!("somebody:{branch}"), "ref": branch, "sha": sha, "repo": url.as_ref().map(repo)},
        "base": {"label": "team:main", "ref": "main", "sha": "0".repeat(40), "repo": repo(&"http://wrong.example.org/base".to_owned())},
    })
}

/// As GitLab tells it.
fn merge(number: u64, pull: &Pull) -> Value {
    let project = pull.url.as_ref().map(|_| PROJECT);
    json!({
        "id": 1, "iid": number, "project_id": 3, "target_project_id": 3, "source_project_id": project,
        "source_branch": pull.branch, "target_branch": "main", "sha": pull.sha, "merge_commit_sha": null,
    })
}

fn whole(code: u16, kind: &str, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response.headers_mut().insert(CONTENT_TYPE, kind.parse().unwrap());
    response
}

/// The beginning of a JSON string, and more of it for ever, or nothing.
fn endless(more: bool) -> Response<Body> {
    let parts = futures_util::stream::unfold(0_u64, move |count| async move {
        match (count, more) {
            (0, _) => Some((Ok(Frame::data(Bytes::from_static(b"{\"title\":\""))), 1)),
            (_, false) => std::future::pending().await,
            (_, true) => Some((Ok(Frame::data(Bytes::from(vec![b'x'; 64 << 10]))), count + 1)),
        }
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(parts)));
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    response
}
