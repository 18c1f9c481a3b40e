//! Who may ask: every credential at every method, tenants beside each other, certificates and clusters that change.

mod credentials;
mod https;
mod local;
mod rates;
mod reviews;
mod rotation;
mod tenants;

use std::path::PathBuf;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use stoker_proto::v1::admission_service_client::AdmissionServiceClient;
use stoker_proto::v1::node_service_client::NodeServiceClient;
use stoker_proto::v1::repository_service_client::RepositoryServiceClient;
use stoker_proto::v1::workspace_service_client::WorkspaceServiceClient;

use crate::support::authority::{Authority, Signed, swap_secret};
use crate::support::free_port;
use crate::support::stoker::Agent;
use crate::support::token_review::{Claims, Cluster};

const LIMIT: Duration = Duration::from_secs(60);

/// An agent behind TLS, in a cluster, with an authority of its own.
struct Node {
    agent: Agent,
    cluster: Cluster,
    authority: Authority,
    port: u16,
}

/// Shows its token with each call.
#[derive(Clone)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

type Way = InterceptedService<Channel, Bearer>;

/// One caller: what it reaches, as it.
#[derive(Clone)]
struct Caller(Way);

impl Caller {
    fn node(&self) -> NodeServiceClient<Way> {
        NodeServiceClient::new(self.0.clone())
    }

    fn admission(&self) -> AdmissionServiceClient<Way> {
        AdmissionServiceClient::new(self.0.clone())
    }

    fn repositories(&self) -> RepositoryServiceClient<Way> {
        RepositoryServiceClient::new(self.0.clone())
    }

    fn workspaces(&self) -> WorkspaceServiceClient<Way> {
        WorkspaceServiceClient::new(self.0.clone())
    }
}

impl Node {
    /// With further sections of the configuration, where `access` is one.
    fn start(more: &str) -> Self {
        let mut node = Self::prepare(more);
        node.launch();
        node
    }

    fn prepare(more: &str) -> Self {
        let (cluster, authority, port) = (Cluster::start(), Authority::new("farm"), free_port());
        let agent = Agent::prepare(&format!(
            "node: {{name: ghost, rootFloor: {{bytes: 0, inodes: 0}}}}\n\
             pressure: {{memoryFloor: 1MiB, memoryNarrow: 2MiB, hold: 100ms, diskForecast: 0s}}\n\
             pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]\n\
             listen:\n  socket: $ROOT/run/stoker.sock\n  http: {{address: \"127.0.0.1:$PORT\"}}\n  grpc:\n    \
             address: 127.0.0.1:{port}\n    tls: {{certificate: $ROOT/tls/tls.crt, key: $ROOT/tls/tls.key, clientCa: \
             $ROOT/tls/ca.crt}}\n{more}\n"
        ));
        let node = Self { agent, cluster, authority, port };
        std::fs::create_dir(node.tls_folder()).unwrap();
        node.present("first", &node.authority.server(), node.authority.pem());
        node
    }

    fn launch(&mut self) {
        self.begin();
        self.agent.wait_ready();
    }

    /// Starts it, and does not wait for it.
    fn begin(&mut self) {
        let kubeconfig = self.agent.root().join("kubeconfig");
        std::fs::write(&kubeconfig, self.cluster.kubeconfig()).unwrap();
        self.agent.env("KUBECONFIG", kubeconfig);
        self.agent.launch();
    }

    fn tls_folder(&self) -> PathBuf {
        self.agent.root().join("tls")
    }

    /// Swaps the listener's files.
    fn present(&self, version: &str, signed: &Signed, client_ca: &str) {
        let files = [("tls.crt", &*signed.certificate), ("tls.key", &*signed.key), ("ca.crt", client_ca)];
        swap_secret(&self.tls_folder(), version, &files);
    }

    async fn connect(&self, tls: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::try_from(format!("https://127.0.0.1:{}", self.port)).unwrap().tls_config(tls).unwrap();
        endpoint.connect_timeout(Duration::from_secs(10)).connect().await
    }

    /// Somebody with nothing but the authority.
    async fn stranger(&self) -> Caller {
        self.shows(None).await
    }

    /// Somebody with a token, whatever it is.
    async fn shows(&self, token: Option<&str>) -> Caller {
        let token = token.map(|token| format!("Bearer {token}").parse().unwrap());
        Caller(InterceptedService::new(self.connect(self.authority.tls(None)).await.unwrap(), Bearer(token)))
    }

    /// A service account.
    async fn account(&self, claims: &Claims) -> Caller {
        self.shows(Some(&self.cluster.token(claims))).await
    }

    /// Somebody with a certificate.
    async fn certified(&self, signed: &Signed) -> Caller {
        let channel = self.connect(self.authority.tls(Some(signed))).await.unwrap();
        Caller(InterceptedService::new(channel, Bearer(None)))
    }

    async fn status(&self, caller: &Caller) -> Result<stoker_proto::v1::Status, Status> {
        let answer = caller.node().get_status(stoker_proto::v1::GetStatusRequest {}).await?;
        Ok(answer.into_inner().status.unwrap())
    }
}
