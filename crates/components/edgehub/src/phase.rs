//! Where the connection stands, with what belongs to it.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_transport::{Connection, DialError, Receiver, RecvError, SendError, Sender};
use kedge_wire::Packet;
use tokio::time::Instant;

/// The life of a connection.
pub(crate) enum Phase {
    /// There is no certificate to dial with.
    Unknown,
    /// Waits before the next attempt.
    Resting { until: Instant },
    Dialling {
        attempt: BoxFuture<'static, Result<Connection, DialError>>,
    },
    /// The connection stands; the store's owner is being asked what is held.
    Opening { connection: Box<Connection> },
    Online {
        receiver: Box<Receiver>,
        out: Out,
        since: Instant,
    },
}

/// The direction out. A send must not be dropped half way, so it owns the sender until it is done.
pub(crate) enum Out {
    Idle(Sender),
    Sending(BoxFuture<'static, (Sender, Result<(), SendError>)>),
    /// A send failed.
    Broken,
}

/// What happens next on its own.
#[derive(Debug)]
pub(crate) enum PhaseEvent {
    Rested,
    Connected(Box<Connection>),
    NotConnected(DialError),
    Received(Packet),
    /// A message that cannot be read. The next one may be.
    Malformed(String),
    Sent,
    /// The connection is over; the second value is what to tell the peer.
    Broken(String, Option<kedge_transport::Close>),
}

impl Phase {
    /// The next event; waits for ever while opening. Cancel safe.
    pub(crate) async fn next(&mut self) -> PhaseEvent {
        match self {
            Self::Resting { until } => {
                tokio::time::sleep_until(*until).await;
                PhaseEvent::Rested
            }
            Self::Dialling { attempt } => match attempt.await {
                Ok(connection) => PhaseEvent::Connected(Box::new(connection)),
                Err(error) => PhaseEvent::NotConnected(error),
            },
            Self::Unknown | Self::Opening { .. } => std::future::pending().await,
            Self::Online { receiver, out, .. } => tokio::select! {
                biased;
                // Acknowledgements and leases before new work.
                sent = out.next() => match sent {
                    Ok(()) => PhaseEvent::Sent,
                    Err(error) => PhaseEvent::Broken(error.to_string(), None),
                },
                received = receiver.recv() => match received {
                    Ok(packet) => PhaseEvent::Received(packet),
                    Err(RecvError::Malformed(why)) => PhaseEvent::Malformed(why.to_string()),
                    Err(error) => broken(&error),
                },
            },
        }
    }

    /// Whether a packet can be sent now.
    pub(crate) fn can_send(&self) -> bool {
        matches!(
            self,
            Self::Online {
                out: Out::Idle(_),
                ..
            }
        )
    }

    /// Begins to send. Only when [`Phase::can_send`].
    pub(crate) fn send(&mut self, packet: Packet) {
        let Self::Online { out, .. } = self else { return };
        let Out::Idle(mut sender) = std::mem::replace(out, Out::Broken) else {
            return;
        };
        let send = async move {
            let result = sender.send(&packet).await;
            (sender, result)
        };
        *out = Out::Sending(send.boxed());
    }

    /// Whether a send is under way.
    pub(crate) fn is_sending(&self) -> bool {
        matches!(
            self,
            Self::Online {
                out: Out::Sending(_),
                ..
            }
        )
    }
}

impl Out {
    async fn next(&mut self) -> Result<(), SendError> {
        let Self::Sending(sending) = self else {
            return std::future::pending().await;
        };
        let (sender, result) = sending.await;
        *self = if result.is_ok() {
            Self::Idle(sender)
        } else {
            Self::Broken
        };
        result
    }
}

fn broken(error: &RecvError) -> PhaseEvent {
    PhaseEvent::Broken(error.to_string(), error.verdict())
}
