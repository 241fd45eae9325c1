//! How a connection comes about.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_transport::{Connection, DialError, Plug, Target, dial, dial_quic};
use std::sync::Arc;

/// What carries the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// WebSocket over TLS over TCP, as all edges and clouds speak it. Our own additions are offered in the upgrade.
    #[default]
    WebSocket,
    /// RFC 9000 with mutual TLS. Only clouds of ours speak it, and only our own additions are spoken over it.
    Quic,
}

/// Makes connections. The network is one; a test hands out ends of in-memory pairs.
pub trait Dialer: std::fmt::Debug + Send + 'static {
    /// Starts one attempt.
    fn dial(
        &self,
        transport: Transport,
        target: Target,
        tls: Arc<rustls::ClientConfig>,
    ) -> BoxFuture<'static, Result<Connection, DialError>>;
}

/// The real network.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// The cable, which a demo may pull.
    pub plug: Plug,
}

impl Dialer for Network {
    fn dial(
        &self,
        transport: Transport,
        target: Target,
        tls: Arc<rustls::ClientConfig>,
    ) -> BoxFuture<'static, Result<Connection, DialError>> {
        let plug = self.plug.clone();
        async move {
            match transport {
                Transport::WebSocket => dial(&target, tls, &plug).await,
                Transport::Quic => dial_quic(&target, tls, &plug).await,
            }
        }
        .boxed()
    }
}
