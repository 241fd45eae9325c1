//! The streaming protocols of a kubelet, server side: how `kubectl exec`, `attach` and `port-forward` talk with a node.
//!
//! **Duty.** Over a byte stream that begins as an HTTP/1.1 request with an upgrade, which somebody else has read: agree on
//! a protocol ([`CommandDoor`], [`ForwardDoor`]) and carry a command's input, outputs, terminal size and ending
//! ([`Process`]), or connections to ports. Where the container runtime serves these protocols itself ([`remote`]): connect
//! to it, and pass bytes or meanings on.
//!
//! **Inputs.** A request ([`kedge_wire::tunnel::NodeConnect`]), the byte stream after it, the ends of a process or a way to
//! a port. **Outputs.** Bytes on the stream; a [`Refusal`] where nothing begins.
//!
//! **Never.** It asks nobody who they are, opens no listener, finds no container, and spawns no task: everything runs
//! within the future of its caller and ends with it. Every buffer has a limit; a peer that does not read is waited for,
//! but for a port that holds up the other ports of its client (see `forward`).
//!
//! ```text
//!   SPDY/3.1                     v4 .. v1 .channel.k8s.io ──┐                ┌─> a process of this machine
//!   WebSocket    v5, v4, v1 (and base64) .channel.k8s.io ───┴── Process ─────┴─> SPDY to the runtime's own server
//!
//!   SPDY/3.1                         portforward.k8s.io ──┬── streams in pairs ──> a connection to a port each
//!   WebSocket               SPDY/3.1+portforward.k8s.io ──┘
//! ```

mod answer;
mod command;
mod connection;
mod forward;
mod idle;
pub mod remote;
mod spdy;
mod status;
#[cfg(test)]
mod tests;
mod upgrade;
mod web_socket;

pub use answer::{Answer, Refusal, refuse};
pub use command::{CommandDoor, FromProcess, Process, ToProcess, Wanted};
pub use connection::{Asker, Connection};
pub use forward::ForwardDoor;
pub use status::Status;

use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A client opens its streams at once; one that has not by then never will. A kubelet's limit.
pub(crate) const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that wait between two halves of this crate.
pub(crate) const PIPE_BYTES: usize = 64 * 1024;

/// Why a conversation ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("the peer sent {0}")]
    Protocol(&'static str),
    #[error("the peer did not open its streams within {}s", STREAMS_TIMEOUT.as_secs())]
    NoStreams,
    #[error("the connection broke: {0}")]
    WebSocket(String),
    #[error("nothing went through for {}s", .0.as_secs())]
    Idle(Duration),
}

/// Runs a conversation over a stream, until it ends or nothing has gone through for so long.
pub async fn unless_idle<T, F>(
    io: T,
    limit: Duration,
    talk: impl FnOnce(Watched<T>) -> F,
) -> Result<(), Error>
where
    T: Io,
    F: Future<Output = Result<(), Error>>,
{
    let io = idle::Watched::new(io);
    let idle = io.idle(limit);
    tokio::select! {
        biased;
        ended = talk(io) => ended,
        () = idle => Err(Error::Idle(limit)),
    }
}

pub use idle::Watched;
