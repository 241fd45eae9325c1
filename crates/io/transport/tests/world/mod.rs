//! One authority, one server and one edge on loopback.
#![allow(dead_code)] // Each test takes what it needs.

use kedge_pki::{Authority, ClientAuth, Identity, ServerNames, UnixTime};
use kedge_transport::{
    Acceptance, Framing, HandshakeLimits, Limits, Listener, QuicListener, Refusal, Target, UpgradeRequest,
};
use kedge_wire::{NodeName, RawRoute};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn node() -> NodeName {
    NodeName::new("edge-1").unwrap()
}

pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) server: Identity,
    pub(crate) edge: Identity,
}

impl World {
    pub(crate) fn new() -> Self {
        let now = UnixTime::now();
        let authority = Authority::create(now).unwrap();
        let names = ServerNames {
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            dns: Vec::new(),
        };
        let server = authority.issue_server(&names, now).unwrap();
        let edge = edge_of(&authority, now);
        Self {
            authority,
            server,
            edge,
        }
    }

    pub(crate) fn server_tls(&self) -> Arc<rustls::ServerConfig> {
        Arc::new(self.server.server_config(ClientAuth::Required).unwrap())
    }

    pub(crate) fn edge_tls(&self) -> Arc<rustls::ClientConfig> {
        tls(&self.edge)
    }

    pub(crate) async fn listen(&self) -> (Listener, Arc<rustls::ServerConfig>) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        (listener, self.server_tls())
    }

    pub(crate) fn listen_quic(&self) -> QuicListener {
        let limits = HandshakeLimits::default();
        QuicListener::bind("127.0.0.1:0".parse().unwrap(), &self.server_tls(), limits).unwrap()
    }
}

pub(crate) fn edge_of(authority: &Authority, now: UnixTime) -> Identity {
    let lifetime = Duration::from_secs(3600);
    authority
        .issue_client("system:node:edge-1", &["system:nodes"], lifetime, now)
        .unwrap()
}

pub(crate) fn tls(identity: &Identity) -> Arc<rustls::ClientConfig> {
    Arc::new(identity.client_config().unwrap())
}

/// What both ends say in an upgrade.
pub(crate) fn hub_target(address: String, limits: Limits) -> Target {
    Target {
        limits,
        ..Target::hub(&address, "project", &node())
    }
    .offering("Kedge-Link", "1")
}

/// What the server makes of it.
pub(crate) fn decide(
    framing: Framing,
) -> impl FnOnce(&UpgradeRequest<'_>) -> Result<Acceptance<()>, Refusal> {
    move |request| {
        assert_eq!(request.path, "/project/edge-1/events");
        assert_eq!(request.header("Node_id"), Some("edge-1"));
        assert_eq!(request.header("ConnectionUse"), Some("msg"));
        assert!(request.certificate.is_some());
        let headers = match framing {
            Framing::Official => Vec::new(),
            Framing::Kedge => vec![("kedge-link", "1")],
        };
        Ok(Acceptance {
            value: (),
            headers,
            framing,
        })
    }
}

/// Takes whoever asks, in the official framing, and looks at nothing.
pub(crate) fn welcome(_: &UpgradeRequest<'_>) -> Result<Acceptance<()>, Refusal> {
    Ok(Acceptance {
        value: (),
        headers: Vec::new(),
        framing: Framing::Official,
    })
}

/// A route that both ends know.
pub(crate) fn keepalive() -> RawRoute {
    RawRoute {
        source: "websocket".into(),
        group: "resource".into(),
        operation: "keepalive".into(),
        resource: "node".into(),
        ..RawRoute::default()
    }
}
