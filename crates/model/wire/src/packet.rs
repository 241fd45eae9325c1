//! What travels over one hub connection.

use crate::Envelope;

/// One message of a connection between an edge and the cloud.
///
/// Official peers know envelopes only. The heartbeat exists between two of our own ends, where it takes the place of
/// the official keepalive envelope and needs a few bytes on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Envelope(Box<Envelope>),
    /// The sender is alive and asks the same of the other.
    Ping,
    /// The answer to a ping.
    Pong,
}

impl From<Envelope> for Packet {
    fn from(envelope: Envelope) -> Self {
        Self::Envelope(Box::new(envelope))
    }
}
