//! One address for an API server's objects and for what it says of tokens.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::api_server::ApiServer;
use super::token_review::Cluster;

/// One API server of two: what is asked about tokens goes to the one that signs them, all else to the other.
pub(crate) struct Front {
    pub(crate) kubeconfig: String,
    runtime: Option<Runtime>,
}

impl Front {
    pub(crate) fn of(tokens: &Cluster, api: &ApiServer) -> Self {
        let place = |kubeconfig: String| -> SocketAddr {
            let kubeconfig: Value = serde_json::from_str(&kubeconfig).unwrap();
            let server = kubeconfig["clusters"][0]["cluster"]["server"].as_str().unwrap();
            server.strip_prefix("http://").unwrap().parse().unwrap()
        };
        let (tokens, others) = (place(tokens.kubeconfig()), place(api.kubeconfig()));
        let runtime = Runtime::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                // One that goes in the middle is nobody's loss but its own.
                tokio::spawn(async move { drop(Self::pass(client, tokens, others).await) });
            }
        });
        let kubeconfig = api.kubeconfig().replace(&others.to_string(), &address.to_string());
        Self { kubeconfig, runtime: Some(runtime) }
    }

    /// Passes one request on, and the answer back; the next one has a connection of its own.
    async fn pass(mut client: TcpStream, tokens: SocketAddr, others: SocketAddr) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        let head = String::from_utf8(head).map_err(std::io::Error::other)?;
        let (line, rest) = head.split_once("\r\n").unwrap();
        let is_of_tokens = line.contains("/openid/") || line.contains("/tokenreviews");
        let mut server = TcpStream::connect(if is_of_tokens { tokens } else { others }).await?;
        server.write_all(format!("{line}\r\nconnection: close\r\n{rest}").as_bytes()).await?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Tests with a runtime of their own may not wait for another.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
