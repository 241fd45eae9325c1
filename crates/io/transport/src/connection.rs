//! One connection: messages in, messages out, and how it ends.

use crate::WRITE_TIMEOUT;
use crate::plug::{Plug, Wire};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::HeaderMap;
use kedge_wire::{DecodeError, Envelope, limits};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as RawCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// Small, because a cloud holds one for each of ten thousand nodes.
const READ_BUFFER_BYTES: usize = 4096;
/// A close frame's reason may have 123 bytes.
const CLOSE_REASON_BYTES_MAX: usize = 123;
/// Time for the close frame to go out; the peer may be gone already.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes on the way in an in-memory pair.
const PAIR_BYTES: usize = 64 * 1024;

/// What carries the bytes.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Socket = WebSocketStream<Box<dyn Io>>;

/// Sizes that one connection accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest message, in bytes, also when it comes in pieces.
    pub message_bytes_max: usize,
}

impl Limits {
    /// For the hub: one envelope.
    pub const HUB: Self = Self {
        message_bytes_max: limits::MESSAGE_BYTES_MAX,
    };
    /// For the tunnel: one frame with its two numbers.
    pub const TUNNEL: Self = Self {
        message_bytes_max: limits::TUNNEL_DATA_BYTES_MAX + 64,
    };

    pub(crate) fn config(self) -> WebSocketConfig {
        WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            // Every message is written at once.
            .write_buffer_size(0)
            .max_write_buffer_size(2 * self.message_bytes_max)
            .max_message_size(Some(self.message_bytes_max))
            .max_frame_size(Some(self.message_bytes_max))
    }
}

/// Why a connection is closed, as the close frame says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// 1000: done.
    Normal,
    /// 1001: the process ends.
    Away,
    /// 1002: not WebSocket.
    Protocol,
    /// 1007: text that is not what it should be.
    Invalid,
    /// 1008: against a rule.
    Policy,
    /// 1009: larger than the limit.
    TooLarge,
    /// 1011: the own side failed.
    Error,
    /// 1013: no room at the moment.
    TryAgain,
    /// Anything else a peer may say.
    Other(u16),
}

/// A close frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    pub code: CloseCode,
    pub reason: String,
}

impl std::fmt::Display for Close {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", u16::from(self.code.raw()), self.reason)
    }
}

impl CloseCode {
    fn raw(self) -> RawCode {
        match self {
            Self::Normal => RawCode::Normal,
            Self::Away => RawCode::Away,
            Self::Protocol => RawCode::Protocol,
            Self::Invalid => RawCode::Invalid,
            Self::Policy => RawCode::Policy,
            Self::TooLarge => RawCode::Size,
            Self::Error => RawCode::Error,
            Self::TryAgain => RawCode::Again,
            Self::Other(code) => RawCode::from(code),
        }
    }

    fn from_raw(raw: RawCode) -> Self {
        let known = [
            Self::Normal,
            Self::Away,
            Self::Protocol,
            Self::Invalid,
            Self::Policy,
            Self::TooLarge,
            Self::Error,
            Self::TryAgain,
        ];
        known
            .into_iter()
            .find(|code| code.raw() == raw)
            .unwrap_or(Self::Other(raw.into()))
    }
}

/// Why nothing more can be received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    #[error("the peer closed the connection: {0}")]
    Closed(Close),
    #[error("the connection broke: {0}")]
    Lost(String),
    #[error("the plug was pulled")]
    Unplugged,
    #[error("the peer sent a message larger than {max} bytes")]
    TooLarge { max: usize },
    #[error("the peer sent a malformed message")]
    Malformed(#[from] DecodeError),
    #[error("the peer breaks the WebSocket protocol: {0}")]
    Protocol(String),
}

impl RecvError {
    /// What to tell the peer when it is at fault; `None` when there is nobody left to tell.
    pub fn verdict(&self) -> Option<Close> {
        let code = match self {
            Self::Closed(_) | Self::Lost(_) | Self::Unplugged => return None,
            Self::TooLarge { .. } | Self::Malformed(DecodeError::TooLarge { .. }) => CloseCode::TooLarge,
            Self::Malformed(_) => CloseCode::Policy,
            Self::Protocol(_) => CloseCode::Protocol,
        };
        let mut reason = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        Some(Close { code, reason })
    }
}

/// Why a message did not go out.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("the peer did not take a message within {after:?}")]
    Timeout { after: Duration },
    #[error("the connection is closed")]
    Closed,
    #[error("the plug was pulled")]
    Unplugged,
    #[error("the connection broke: {0}")]
    Lost(String),
}

/// An open connection.
pub struct Connection {
    socket: Socket,
    limits: Limits,
    wire: Wire,
    headers: HeaderMap,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(socket: Socket, limits: Limits, wire: Wire, headers: HeaderMap) -> Self {
        Self {
            socket,
            limits,
            wire,
            headers,
        }
    }

    /// A header of the other side's half of the upgrade.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The two directions, so that one task may wait on both.
    pub fn split(self) -> (Sender, Receiver) {
        let (sink, stream) = self.socket.split();
        let sender = Sender {
            sink,
            wire: self.wire.clone(),
        };
        (
            sender,
            Receiver {
                stream,
                limits: self.limits,
                wire: self.wire,
            },
        )
    }

    /// Ends an unsplit connection with a reason.
    pub async fn close(self, close: &Close) {
        self.split().0.close(close).await;
    }
}

/// Two connected ends in memory: the dialling one and the accepting one.
pub async fn pair(limits: Limits, plug: &Plug) -> (Connection, Connection) {
    let (near, far) = tokio::io::duplex(PAIR_BYTES);
    let wire = plug.wire().unwrap_or_else(Wire::fixed);
    let near =
        WebSocketStream::from_raw_socket(Box::new(near) as Box<dyn Io>, Role::Client, Some(limits.config()));
    let far =
        WebSocketStream::from_raw_socket(Box::new(far) as Box<dyn Io>, Role::Server, Some(limits.config()));
    (
        Connection::new(near.await, limits, wire, HeaderMap::new()),
        Connection::new(far.await, limits, Wire::fixed(), HeaderMap::new()),
    )
}

/// The direction out.
pub struct Sender {
    sink: SplitSink<Socket, Message>,
    wire: Wire,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl Sender {
    /// Sends one envelope as text. Not cancel safe: a dropped call may have sent half a message.
    pub async fn send(&mut self, envelope: &Envelope) -> Result<(), SendError> {
        self.send_message(Message::text(envelope.encode())).await
    }

    /// Sends raw bytes as one binary message. Not cancel safe.
    pub async fn send_binary(&mut self, bytes: Bytes) -> Result<(), SendError> {
        self.send_message(Message::binary(bytes)).await
    }

    /// Asks the peer's WebSocket layer for a sign of life.
    pub async fn ping(&mut self) -> Result<(), SendError> {
        self.send_message(Message::Ping(Bytes::from_static(b"ping you")))
            .await
    }

    /// Ends the connection with a reason that the peer can log. Never waits long and never fails: the connection is
    /// over in any case.
    pub async fn close(mut self, close: &Close) {
        let mut reason = close.reason.clone();
        let mut end = CLOSE_REASON_BYTES_MAX.min(reason.len());
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        let frame = CloseFrame {
            code: close.code.raw(),
            reason: reason.into(),
        };
        let said = async {
            let _ = self.sink.send(Message::Close(Some(frame))).await;
            let _ = self.sink.close().await;
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, said).await;
    }

    async fn send_message(&mut self, message: Message) -> Result<(), SendError> {
        let sent = tokio::time::timeout(WRITE_TIMEOUT, self.sink.send(message));
        tokio::select! {
            biased;
            // A pulled plug lets nothing through, not even what could still be written.
            () = self.wire.cut() => Err(SendError::Unplugged),
            sent = sent => match sent {
                Err(_) => Err(SendError::Timeout { after: WRITE_TIMEOUT }),
                Ok(Ok(())) => Ok(()),
                Ok(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => Err(SendError::Closed),
                Ok(Err(error)) => Err(SendError::Lost(error.to_string())),
            },
        }
    }
}

/// The direction in.
pub struct Receiver {
    stream: SplitStream<Socket>,
    limits: Limits,
    wire: Wire,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}

impl Receiver {
    /// The next envelope, from a text or a binary message. Cancel safe.
    pub async fn recv(&mut self) -> Result<Envelope, RecvError> {
        Ok(Envelope::decode(&self.recv_binary().await?)?)
    }

    /// The bytes of the next text or binary message. Cancel safe.
    pub async fn recv_binary(&mut self) -> Result<Bytes, RecvError> {
        loop {
            let next = tokio::select! {
                biased;
                () = self.wire.cut() => return Err(RecvError::Unplugged),
                next = self.stream.next() => next,
            };
            match next {
                Some(Ok(Message::Text(text))) => return Ok(text.into()),
                Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
                Some(Ok(Message::Close(frame))) => return Err(RecvError::Closed(closing(frame))),
                // Answered by the library; raw frames never come out of it.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(self.failure(error)),
                None => return Err(RecvError::Closed(closing(None))),
            }
        }
    }

    fn failure(&self, error: WsError) -> RecvError {
        match error {
            WsError::ConnectionClosed | WsError::AlreadyClosed => RecvError::Closed(closing(None)),
            WsError::Capacity(CapacityError::MessageTooLong { .. }) => RecvError::TooLarge {
                max: self.limits.message_bytes_max,
            },
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                RecvError::Lost("the peer hung up without a word".into())
            }
            WsError::Protocol(error) => RecvError::Protocol(error.to_string()),
            WsError::Utf8(_) => RecvError::Malformed(DecodeError::NotUtf8 { valid_up_to: 0 }),
            other => RecvError::Lost(other.to_string()),
        }
    }
}

fn closing(frame: Option<CloseFrame>) -> Close {
    match frame {
        Some(frame) => Close {
            code: CloseCode::from_raw(frame.code),
            reason: frame.reason.to_string(),
        },
        None => Close {
            code: CloseCode::Normal,
            reason: "without a reason".into(),
        },
    }
}
