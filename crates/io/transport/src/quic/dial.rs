//! The edge's side: one socket for its one connection.

use super::io::QuicIo;
use super::listener::endpoint_config;
use super::{ALPN, CLIENT_RECEIVE_BYTES, transport};
use crate::HANDSHAKE_TIMEOUT;
use crate::connection::Connection;
use crate::dial::{DialError, Target, TlsTrouble, through, upgrade};
use crate::frame::Carrier;
use crate::plug::Plug;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, Endpoint, TokioRuntime, TransportErrorCode};
use rustls::AlertDescription;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

/// Opens a connection over QUIC. The target is that of the WebSocket, but for the port; it must offer our own framing,
/// since nothing else is spoken over QUIC.
pub async fn dial_quic(
    target: &Target,
    tls: Arc<rustls::ClientConfig>,
    plug: &Plug,
) -> Result<Connection, DialError> {
    through(target, plug, async |wire| {
        let io = match tokio::time::timeout(HANDSHAKE_TIMEOUT, connect(target, tls)).await {
            Ok(connected) => connected?,
            Err(_) => {
                return Err(DialError::Timeout {
                    address: target.address.clone(),
                    step: "QUIC handshake",
                    after: HANDSHAKE_TIMEOUT,
                });
            }
        };
        upgrade(io, Carrier::Stream, target, wire).await
    })
    .await
}

async fn connect(target: &Target, tls: Arc<rustls::ClientConfig>) -> Result<QuicIo, DialError> {
    let address = || target.address.clone();
    let network = |source: io::Error| DialError::Network {
        address: target.address.clone(),
        source,
    };
    let (host, _) = target
        .address
        .rsplit_once(':')
        .ok_or_else(|| DialError::Address { address: address() })?;
    let host = host.trim_matches(['[', ']']);
    let mut tls = Arc::unwrap_or_clone(tls);
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| network(io::Error::other(error)))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    // The server opens no streams.
    config.transport_config(transport(CLIENT_RECEIVE_BYTES, 0));

    let mut failure = DialError::Address { address: address() };
    let remotes = tokio::net::lookup_host(&target.address).await.map_err(network)?;
    for remote in remotes {
        let local: SocketAddr = match remote {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(local).map_err(network)?;
        let endpoint =
            Endpoint::new(endpoint_config(), None, socket, Arc::new(TokioRuntime)).map_err(network)?;
        let connecting = endpoint
            .connect_with(config.clone(), remote, host)
            .map_err(|error| network(io::Error::other(error)))?;
        match connecting.await {
            Ok(connection) => {
                let opened = connection.open_bi().await;
                let (send, receive) = opened.map_err(|error| failed(&target.address, error))?;
                return Ok(QuicIo::new(connection, send, receive));
            }
            Err(error) => failure = failed(&target.address, error),
        }
    }
    Err(failure)
}

/// What a failed connection means to a person.
pub(crate) fn failed(address: &str, error: ConnectionError) -> DialError {
    let address = address.to_owned();
    let tls = |trouble| DialError::Tls {
        address: address.clone(),
        trouble,
    };
    match &error {
        ConnectionError::TransportError(ours) => match alert(ours.code) {
            // Two authorities of the same name differ in their key, so the signature is what does not fit.
            Some(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
                tls(TlsTrouble::UnknownAuthority)
            }
            Some(_) => tls(TlsTrouble::Other(ours.reason.clone())),
            None => network(address, error),
        },
        ConnectionError::ConnectionClosed(theirs) => match alert(theirs.error_code) {
            Some(AlertDescription::NoApplicationProtocol) => DialError::Handshake {
                address,
                why: "the server speaks QUIC, but not to edges".to_owned(),
            },
            Some(alert) => tls(TlsTrouble::RefusesUs {
                alert: format!("{alert:?}"),
            }),
            None if theirs.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                DialError::Refused { address }
            }
            None => network(address, error),
        },
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => network(address, error),
    }
}

fn network(address: String, error: ConnectionError) -> DialError {
    DialError::Network {
        address,
        source: error.into(),
    }
}

/// TLS alerts have a range of their own among QUIC's codes.
fn alert(code: TransportErrorCode) -> Option<AlertDescription> {
    let code = u64::from(code).checked_sub(0x100)?;
    u8::try_from(code).ok().map(AlertDescription::from)
}
