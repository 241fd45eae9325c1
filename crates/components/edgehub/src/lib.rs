//! The edge's end of the hub connection.
//!
//! **Duty.** Get the node's certificate by its join token, renew it, and get another when it has ended or the cloud does
//! not know it any more; hold one connection to the cloud and make a new one when it breaks; carry object changes to the store's owner and acknowledge them once they
//! are durable; carry questions to the cloud and answers back; say whether the cloud is connected.
//!
//! **Inputs.** [`Config`], a [`Dialer`], [`Ports`]. Nothing is needed at the start: without files, network, cloud and
//! right time the hub waits for them, and everything else of the edge runs. **Outputs.** Orders to the store's owner, answers,
//! the online flag, renewed identities.
//!
//! **Never.** It does not decide about messages: that is [`kedge_link::edge::EdgeLink`], which it owns and feeds. It
//! does not look into objects, keeps nothing on disk but its certificate, and does not queue while offline: who asks
//! then is told so at once.
//!
//! ```text
//!   [waiting for a certificate]
//!       |                  +----+ refused: the next address, and a rest once all were tried
//!       v                  v    |
//!   [resting] --delay--> [dialling] --connected--> [opening: what is held?] --> [online]
//!       ^                                                                          | broken, silent,
//!       +--------------------------------------------------------------------------+ renewed
//! ```

mod backoff;
mod certificate;
mod dialer;
mod hub;
mod lane;
mod phase;
mod servers;
#[cfg(test)]
mod tests;

pub use certificate::{CertificateConfig, Enrolment, Error, bootstrap, enrol};
pub use dialer::{Dialer, Network, Transport};
pub use hub::{EdgeHub, StartError};
pub use kedge_link::edge::Rates;
pub use kedge_pki::Identity;

use kedge_link::edge::{CloudRequest, RequestError, StoreDone, StoreOrder};
use kedge_telemetry::channel::{ask, latest};
use kedge_wire::Reply;
use std::time::Duration;

/// Settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Node name, certificate files and where to renew.
    pub certificate: CertificateConfig,
    /// How clouds are dialled: `edgeHub.websocket.enable` or `edgeHub.quic.enable`.
    pub transport: Transport,
    /// `server` of that transport: `host:port` of each cloud. When one is not reached or lost, the next is dialled.
    pub servers: Vec<String>,
    /// `handshakeTimeout` of that transport: how long one attempt may take.
    pub handshake_timeout: Duration,
    /// `readDeadline` of that transport, official default 15 s. A cloud that owes an answer and says nothing for two of
    /// it is lost.
    pub read_deadline: Duration,
    /// `edgeHub.projectID`; not empty.
    pub project_id: String,
    /// `edgeHub.heartbeat`, official default 15 s.
    pub heartbeat: Duration,
    /// `edgeHub.messageQPS` and `edgeHub.messageBurst`, and the same for bytes.
    pub rates: Rates,
    /// `edgeHub.rotateCertificates`.
    pub rotate_certificates: bool,
    /// Spreads delays and ids; any number that differs between nodes and starts.
    pub seed: u64,
}

/// The neighbours.
#[derive(Debug)]
pub struct Ports {
    /// To the owner of the store.
    pub store: ask::Sender<StoreOrder, StoreDone>,
    /// From whoever has something to say to the cloud.
    pub requests: ask::Receiver<CloudRequest, Result<Reply, RequestError>>,
    /// Whether the cloud is connected and the session is open.
    pub online: latest::Sender<bool>,
    /// Changes when the node no longer holds what the cloud was told of; then a new session begins, which says it anew.
    /// Nothing where that cannot happen.
    pub held_anew: Option<latest::Receiver<u64>>,
    /// The identity in use, for others who dial with it; `None` until there is one.
    pub identity: latest::Sender<Option<Identity>>,
}
