//! The health of the control plane on this node: its probe's latency, and the stalls of its control groups.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::HttpsConnectorBuilder;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use stoker_core::pressure::{GroupReading, Probe, STALLED_AFTER, StallReading};
use stoker_core::quantity::Span;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::Configured;
use super::sample::stall_of;
use crate::config::sensing::Readyz;

/// Between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// The most control groups that patterns stand for.
const GROUPS_MAX: usize = 16;
/// The most folders that are looked into for one component of a pattern.
const FOLDERS_MAX: usize = 1024;

/// Asks until it is told to stop. Without a probe in the configuration there is nothing to ask, until there is.
pub(super) async fn probe_on(config: Configured, probes: watch::Sender<Probe>, stop: CancellationToken) {
    loop {
        let now = Arc::clone(&config.borrow());
        let asked = async {
            let Some(watched) = &now.pressure.control_plane else { return Probe::Unasked };
            let Some(readyz) = &watched.readyz else { return Probe::Unasked };
            ask(readyz, watched.latency.saturating_mul(u32::try_from(STALLED_AFTER).unwrap_or(1))).await
        };
        tokio::select! {
            () = stop.cancelled() => return,
            probe = asked => { probes.send_replace(probe); }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
    }
}

/// Asks once, over a connection of its own, as a kubelet does.
pub(super) async fn ask(readyz: &Readyz, within: Duration) -> Probe {
    let roots = match readyz.ca.clone().map(|file| roots(&file)).transpose() {
        Ok(roots) => roots.unwrap_or_else(RootCertStore::empty),
        Err(why) => return Probe::Failed(why),
    };
    let began = Instant::now();
    match tokio::time::timeout(within, get(&readyz.url, roots)).await {
        Err(_) => Probe::Unwell(format!("{} did not answer within {within:?}", readyz.url)),
        Ok(Err(why)) => Probe::Unwell(format!("{} does not answer: {why}", readyz.url)),
        Ok(Ok(StatusCode::OK)) => Probe::Answered(Span(i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX))),
        Ok(Ok(status)) => Probe::Unwell(format!("{} answers {status}", readyz.url)),
    }
}

fn roots(file: &Path) -> Result<RootCertStore, String> {
    let told = |why: String| format!("{}: {why}", file.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| told(error.to_string()))? {
        let certificate = certificate.map_err(|error| told(error.to_string()))?;
        roots.add(certificate).map_err(|error| told(error.to_string()))?;
    }
    if roots.is_empty() { Err(told("has no certificate".to_owned())) } else { Ok(roots) }
}

async fn get(url: &Uri, roots: RootCertStore) -> Result<StatusCode, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let stream = connector.oneshot(url.clone()).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| error.to_string())?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, url.authority().map_or("", |authority| authority.as_str()))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.map_err(|error| error.to_string())?);
    // The connection is driven here, and ends here: maybe in the very step that brings the answer.
    tokio::pin!(connection, answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    };
    answer.map(|answer| answer.status()).map_err(|error| error.to_string())
}

/// The stalls of the control groups that these patterns stand for. Only cgroup v2 tells them; under v1 they are untold.
pub(super) fn groups(host_root: &Path, patterns: &[PathBuf]) -> Vec<GroupReading> {
    let cgroup = host_root.join("sys/fs/cgroup");
    let roots = [cgroup.clone(), cgroup.join("unified")];
    let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists());
    let mut readings = Vec::new();
    for pattern in patterns {
        let path = pattern.display().to_string();
        let Some(root) = &root else {
            readings.push(GroupReading { path, ..GroupReading::default() });
            continue;
        };
        let found = expand(root, pattern);
        if found.is_empty() {
            let (memory, cpu) = (StallReading::Failed, StallReading::Failed);
            readings.push(GroupReading { path, memory, cpu });
        }
        readings.extend(found.iter().map(|group| GroupReading {
            path: format!("/{}", group.strip_prefix(root).unwrap_or(group).display()),
            memory: stall_of(group.join("memory.pressure")),
            cpu: stall_of(group.join("cpu.pressure")),
        }));
    }
    readings.truncate(GROUPS_MAX);
    readings
}

/// The directories that a path stands for, in whose components `*` is any text.
fn expand(root: &Path, pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    for part in pattern.iter().filter_map(|part| part.to_str()).filter(|part| *part != "/") {
        let next = found.iter().flat_map(|folder| -> Vec<PathBuf> {
            if !part.contains('*') {
                return vec![folder.join(part)];
            }
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let fits = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| matches(part, name)));
            fits.map(|entry| entry.path()).collect()
        });
        found = next.filter(|path| path.is_dir()).take(FOLDERS_MAX).collect();
        // The same ones each time, whatever the order in which the kernel lists them.
        found.sort();
    }
    found.truncate(GROUPS_MAX);
    found
}

/// Whether a name fits a pattern in which `*` is any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or("");
    for part in parts {
        let Some((_, after)) = left.split_once(part) else { return false };
        left = after;
    }
    left.ends_with(last)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("kubepods-*.slice", "kubepods-burstable.slice", true),
            ("kubepods-*.slice", "kubepods-.scope", false),
            ("*pod*_*.slice", "kubepods-podx_y.slice", true),
            ("ab*ba", "aba", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn stalls_of_control_groups_are_found_by_pattern_and_failures_named() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cgroup");
        let pattern = [PathBuf::from("/kubepods.slice/*/kubepods-burstable-pod*.slice")];
        let [group] = groups(&root.join("v2-systemd-containerd"), &pattern).try_into().unwrap();
        assert!(group.path.starts_with("/kubepods.slice/kubepods-burstable.slice/"), "{}", group.path);
        assert_eq!(group.memory.known().unwrap().full_avg10, 50);
        assert_eq!(group.cpu, StallReading::Untold, "no such file");
        let [group] = groups(&root.join("v2-systemd-containerd"), &["/none".into()]).try_into().unwrap();
        assert_eq!((group.path.as_str(), group.memory), ("/none", StallReading::Failed));
        let place = tempfile::tempdir().unwrap();
        let [group] = groups(place.path(), &["/none".into()]).try_into().unwrap();
        assert_eq!(group.memory, StallReading::Untold, "v1 does not tell");
    }

    /// Answers one request with this, or never.
    async fn server(answer: Option<&'static str>) -> Readyz {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1"));
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
        });
        Readyz { url, ca: None }
    }

    #[tokio::test]
    async fn an_answer_is_timed_and_none_is_told() {
        let long = Duration::from_secs(30);
        let well = ask(&server(Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")).await, long).await;
        assert!(matches!(well, Probe::Answered(took) if took < Span::seconds(30)), "{well:?}");
        let unwell = ask(&server(Some("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n")).await, long).await;
        assert!(
            matches!(&unwell, Probe::Unwell(why) if why.ends_with("answers 503 Service Unavailable")),
            "{unwell:?}"
        );
        let silent = ask(&server(None).await, Duration::from_millis(20)).await;
        assert!(matches!(&silent, Probe::Unwell(why) if why.contains("did not answer within 20ms")), "{silent:?}");
        let nobody = Readyz { url: "http://127.0.0.1:1/readyz".parse().unwrap(), ca: None };
        assert!(matches!(ask(&nobody, long).await, Probe::Unwell(why) if why.contains("does not answer")));
        let blind = Readyz { url: "https://127.0.0.1:1/readyz".parse().unwrap(), ca: Some("/no/such/ca".into()) };
        assert!(matches!(ask(&blind, long).await, Probe::Failed(why) if why.contains("/no/such/ca")));
    }
}
