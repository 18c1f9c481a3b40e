//! Where the agent answers, as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListenSection {
    /// Absolute path of the unix socket: at most 107 bytes.
    pub socket: String,
    /// gRPC over TCP. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcSection>,
    /// Metrics, health, status page, git over HTTP. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSection>,
}

impl Default for ListenSection {
    fn default() -> Self {
        Self { socket: "/run/stoker/stoker.sock".to_owned(), grpc: None, http: None }
    }
}

/// gRPC over TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcSection {
    /// An address and a port (0.0.0.0:9417), without `tls` a loopback one; port 0 takes a free one.
    pub address: String,
    /// Serves TLS. Clients are known by their certificates or tokens; see `access`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSection>,
    /// Says that plain TCP on loopback is meant: whoever can connect can do everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure: Option<Insecure>,
}

/// Where plain TCP is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Insecure {
    /// On loopback addresses.
    Loopback,
}

/// HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSection {
    /// An address and a port (0.0.0.0:9418); port 0 takes a free one.
    pub address: String,
    /// Serves HTTPS instead of HTTP. Builds then need `repositories.serve.url`, and the authority of the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSection>,
}

/// Files of TLS, in PEM. They are read again whenever they change, without a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSection {
    /// Absolute path of the certificate, followed by those between it and its authority.
    pub certificate: String,
    /// Absolute path of its private key.
    pub key: String,
    /// Absolute path of the authorities whose clients are known by their certificates, which stay optional. Unset:
    /// clients are not asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<String>,
}
