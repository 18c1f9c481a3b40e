//! TLS before a server of the test's: what git and the agent see of an upstream that is reached by `https`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Takes connections of TLS on a port of its own until the test ends, and passes on what comes to another address.
pub(crate) struct Tls {
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Tls {
    /// Before the server at `url` (`http://127.0.0.1:1234/...`).
    pub(crate) async fn before(url: &str) -> Self {
        let folder = super::place("tls-");
        let behind = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
        let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("ca.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=upstream of a test"])
            .args([
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
            ])
            .args([&key, Path::new("-out"), &certificate])
            .output()
            .unwrap();
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let chain = CertificateDer::pem_file_iter(&certificate).unwrap().collect::<Result<_, _>>().unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, PrivateKeyDer::from_pem_file(&key).unwrap());
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((outside, _)) = listener.accept().await {
                let (acceptor, behind) = (acceptor.clone(), behind.clone());
                tokio::spawn(async move {
                    // A client that does not trust us hangs up.
                    let Ok(mut outside) = acceptor.accept(outside).await else { return };
                    let mut inside = TcpStream::connect(behind).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Self { folder, address }
    }

    /// What a URL of the server behind is here.
    pub(crate) fn url(&self, url: &str) -> String {
        let (_, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        format!("https://{}/{path}", self.address)
    }

    /// The certificate, which vouches for itself.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}
