//! Where the agent answers, and whether it is safe to answer there.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::text;
use crate::config::file::{GrpcSection, Insecure, ListenSection, TlsSection};
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::{Listen, SOCKET_BYTES_MAX, TlsFiles};

/// The addresses.
pub(super) fn validate(section: &ListenSection, place: &Place<'_>, problems: &mut Problems) -> Listen {
    let grpc = section.grpc.as_ref().and_then(|grpc| self::grpc(grpc, &place.field("grpc"), problems));
    let at = place.field("http").field("address");
    let http = section.http.as_ref().and_then(|http| address(&http.address, &at, "0.0.0.0:9418", problems));
    if let (Some(grpc), Some(http)) = (grpc, http)
        && grpc.port() == http.port()
        && grpc.port() != 0
        && (grpc.ip() == http.ip() || http.ip().is_unspecified())
    {
        let fault = Fault::new(format!("{http} takes the port of listen.grpc.address"), "write another port");
        problems.add(&at, fault);
    }
    let mut files = |section: Option<&TlsSection>, listener: &str| {
        Some(tls(section?, &place.field(listener).field("tls"), problems))
    };
    let grpc_tls = files(section.grpc.as_ref().and_then(|grpc| grpc.tls.as_ref()), "grpc");
    let http_tls = files(section.http.as_ref().and_then(|http| http.tls.as_ref()), "http");
    Listen {
        socket: Some(problems.take(&place.field("socket"), socket(&section.socket))),
        grpc,
        grpc_tls,
        http,
        http_tls,
        private_git: false,
    }
}

pub(super) fn socket(written: &str) -> Result<PathBuf, Fault> {
    let path = text::absolute(written)?;
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_BYTES_MAX {
        let message = format!("has {bytes} bytes, and the kernel takes {SOCKET_BYTES_MAX}");
        return Err(Fault::new(message, "write a shorter path"));
    }
    if path.parent().is_none() {
        return Err(Fault::new("is a directory", "write the path of a file, as `/run/stoker/stoker.sock`"));
    }
    Ok(path)
}

/// Where the files are. What is in them is another machine's affair as long as nobody listens.
fn tls(section: &TlsSection, place: &Place<'_>, problems: &mut Problems) -> TlsFiles {
    let mut path = |name: &str, written: &str| problems.take(&place.field(name), text::absolute(written));
    TlsFiles {
        certificate: path("certificate", &section.certificate),
        key: path("key", &section.key),
        client_ca: section.client_ca.as_deref().map(|written| path("clientCa", written)),
    }
}

/// Whoever reaches gRPC over plain TCP can do everything, so it stays on the machine, and the file has to say so.
fn grpc(section: &GrpcSection, place: &Place<'_>, problems: &mut Problems) -> Option<SocketAddr> {
    let at = place.field("address");
    let address = address(&section.address, &at, "127.0.0.1:9417", problems)?;
    if section.tls.is_some() {
        if section.insecure.is_some() {
            let fault = Fault::new("is for a listener without TLS, and this one has `tls`", "remove it, or `tls`");
            problems.add(&place.field("insecure"), fault);
        }
    } else if !address.ip().is_loopback() {
        let message = format!("{address} is not a loopback address, and there is no `tls`");
        let remedy = "add `tls`, or listen on a loopback address, as `127.0.0.1:9417`, with `insecure: loopback`";
        problems.add(&at, Fault::new(message, remedy));
    } else if section.insecure != Some(Insecure::Loopback) {
        let message = format!("{address} would be served without TLS, to all who can connect");
        problems.add(&place.field("insecure"), Fault::new(message, "add `insecure: loopback` if that is meant"));
    }
    Some(address)
}

fn address(written: &str, place: &Place<'_>, example: &str, problems: &mut Problems) -> Option<SocketAddr> {
    let parsed = written.parse().map_err(|_| {
        let message = format!("{} is not an address and a port", shown(written));
        Fault::new(message, format!("write a numeric address and a port, as `{example}`"))
    });
    problems.take(place, parsed.map(Some))
}
