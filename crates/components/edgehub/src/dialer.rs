//! The hub's hands: connections, certificates, and the time.

use crate::certificate::{self, CertificateConfig, Enrolment, Error};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_pki::{Identity, UnixTime};
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
pub trait Dialer: std::fmt::Debug + Send + Sync + 'static {
    /// Starts one attempt.
    fn dial(
        &self,
        transport: Transport,
        target: Target,
        tls: Arc<rustls::ClientConfig>,
    ) -> BoxFuture<'static, Result<Connection, DialError>>;

    /// Asks the cloud for a certificate and saves it.
    fn enrol(
        &self,
        config: CertificateConfig,
        how: Enrolment,
        now: UnixTime,
    ) -> BoxFuture<'static, Result<Identity, Error>> {
        async move { certificate::enrol(&config, &how, now).await }.boxed()
    }

    /// What the clock of the machine says, which certificates are judged by.
    fn now(&self) -> UnixTime {
        UnixTime::now()
    }
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
