//! How a connection comes about.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_transport::{Connection, DialError, Plug, Target, dial};
use std::sync::Arc;

/// Makes connections. The network is one; a test hands out ends of in-memory pairs.
pub trait Dialer: std::fmt::Debug + Send + 'static {
    /// Starts one attempt.
    fn dial(
        &self,
        target: Target,
        tls: Arc<rustls::ClientConfig>,
    ) -> BoxFuture<'static, Result<Connection, DialError>>;
}

/// WebSocket over TLS.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// The cable, which a demo may pull.
    pub plug: Plug,
}

impl Dialer for Network {
    fn dial(
        &self,
        target: Target,
        tls: Arc<rustls::ClientConfig>,
    ) -> BoxFuture<'static, Result<Connection, DialError>> {
        let plug = self.plug.clone();
        async move { dial(&target, tls, &plug).await }.boxed()
    }
}
