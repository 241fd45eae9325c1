//! One connection: messages in, messages out, and how it ends.

use crate::WRITE_TIMEOUT;
use crate::close::{Close, CloseCode};
use crate::frame::{Carrier, Opcode};
use crate::incoming::{Event, Fault, Incoming};
use crate::outgoing::{Bulk, Outbox, Payload};
use crate::pack;
use crate::packet::{self, Framing, Heard};
use crate::plug::{Plug, Wire};
use bytes::Bytes;
use http::HeaderMap;
use kedge_wire::{DecodeError, Packet, limits};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// Time for the last words to go out; the peer may be gone already.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes on the way in an in-memory pair.
const PAIR_BYTES: usize = 64 * 1024;
/// What official edges say in a ping of their tunnel.
const PING_PAYLOAD: &[u8] = b"ping you";

/// Pings and pongs of the WebSocket layer that a peer may send within a second. Peers that send any send one in some ten
/// seconds; without a limit a peer could keep this side busy without ever saying a message that its owner counts.
const CONTROL_FRAMES_A_SECOND_MAX: u32 = 100;

/// What carries the bytes.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Sizes that one connection accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest message, in bytes, also when it comes in pieces; of a packed one, what it unpacks to.
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
    #[error("the peer breaks the protocol: {0}")]
    Protocol(String),
}

impl RecvError {
    /// What to tell the peer when it is at fault; `None` when there is nobody left to tell.
    pub fn verdict(&self) -> Option<Close> {
        let code = match self {
            Self::Closed(_) | Self::Lost(_) | Self::Unplugged => return None,
            Self::TooLarge { .. } | Self::Malformed(DecodeError::TooLarge { .. }) => CloseCode::TooLarge,
            Self::Malformed(DecodeError::NotUtf8 { .. }) => CloseCode::Invalid,
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
    #[error("an official peer knows no heartbeat of ours")]
    NoHeartbeat,
    #[error("only WebSocket has pings of its own")]
    NoPing,
}

/// An open connection.
pub struct Connection {
    core: Arc<Mutex<Core<dyn Io>>>,
    carrier: Carrier,
    limits: Limits,
    framing: Framing,
    wire: Wire,
    patience: Duration,
    last_patience: Duration,
    headers: Box<HeaderMap>,
}

/// What both halves share: the bytes' carrier and the direction out, to which the receiver adds its answers to pings.
struct Core<T: ?Sized> {
    outbox: Outbox,
    /// A sender is woken when bytes can be written. The carrier wakes only the last one that asked, so meanwhile the
    /// receiver must not ask.
    sender_waits: bool,
    io: T,
}

/// Says that the sender waits, as long as it lives: also a call that is given up ends its waiting.
struct SenderWaits<'a>(&'a Mutex<Core<dyn Io>>);

impl<'a> SenderWaits<'a> {
    fn new(core: &'a Mutex<Core<dyn Io>>) -> Self {
        lock(core).sender_waits = true;
        Self(core)
    }
}

impl Drop for SenderWaits<'_> {
    fn drop(&mut self) {
        lock(self.0).sender_waits = false;
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("carrier", &self.carrier)
            .field("framing", &self.framing)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(
        io: impl Io + 'static,
        carrier: Carrier,
        limits: Limits,
        framing: Framing,
        wire: Wire,
        headers: HeaderMap,
    ) -> Self {
        let core = Core {
            outbox: Outbox::new(carrier),
            sender_waits: false,
            io,
        };
        Self {
            core: Arc::new(Mutex::new(core)),
            carrier,
            limits,
            framing,
            wire,
            patience: WRITE_TIMEOUT,
            last_patience: CLOSE_TIMEOUT,
            headers: Box::new(headers),
        }
    }

    /// The accepting end of a WebSocket whose upgrade somebody else has answered, see [`crate::websocket_accept`].
    /// `patience` is how long its peer may take for one message, and for the last words.
    pub fn upgraded(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        message_bytes_max: usize,
        patience: Duration,
    ) -> Self {
        let limits = Limits { message_bytes_max };
        let (carrier, framing) = (Carrier::WebSocketServer, Framing::Official);
        Self {
            patience,
            last_patience: patience,
            ..Self::new(io, carrier, limits, framing, Wire::fixed(), HeaderMap::new())
        }
    }

    /// A header of the other side's half of the upgrade.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What both ends agreed on.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// The two directions, so that one task may wait on both.
    pub fn split(self) -> (Sender, Receiver) {
        let receiver = Receiver {
            core: Arc::clone(&self.core),
            incoming: Incoming::new(
                self.carrier,
                self.limits.message_bytes_max + self.framing.overhead(),
            ),
            control: ControlFrames::default(),
            limits: self.limits,
            framing: self.framing,
            wire: self.wire.clone(),
        };
        let sender = Sender {
            core: self.core,
            carrier: self.carrier,
            framing: self.framing,
            wire: self.wire,
            patience: self.patience,
            last_patience: self.last_patience,
        };
        (sender, receiver)
    }

    /// Ends an unsplit connection with a reason.
    pub async fn close(self, close: &Close) {
        self.split().0.close(close).await;
    }
}

/// Two connected ends in memory: the dialling one, which the plug may cut, and the accepting one.
pub async fn pair(limits: Limits, framing: Framing, plug: &Plug) -> (Connection, Connection) {
    let (near, far) = tokio::io::duplex(PAIR_BYTES);
    let wire = plug.wire().unwrap_or_else(Wire::fixed);
    let end = |io, carrier, wire| Connection::new(io, carrier, limits, framing, wire, HeaderMap::new());
    (
        end(near, Carrier::WebSocketClient, wire),
        end(far, Carrier::WebSocketServer, Wire::fixed()),
    )
}

/// No state is left half changed by a panic, because nothing here runs foreign code that could.
fn lock<T: ?Sized>(core: &Mutex<T>) -> MutexGuard<'_, T> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Io + ?Sized> Core<T> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbox.poll_drain(Pin::new(&mut self.io), cx)
    }
}

/// The direction out.
pub struct Sender {
    core: Arc<Mutex<Core<dyn Io>>>,
    carrier: Carrier,
    framing: Framing,
    wire: Wire,
    patience: Duration,
    last_patience: Duration,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl Sender {
    /// Sends one packet. A call that is given up may have sent nothing, or the first part of the message; then the next
    /// call sends its rest first.
    pub async fn send(&mut self, packet: &Packet) -> Result<(), SendError> {
        if let (Framing::Kedge, Packet::Envelope(envelope)) = (self.framing, packet) {
            pack::prepare(&envelope.content).await;
        }
        let payload = packet::encode(self.framing, packet)?;
        self.send_payload(payload).await
    }

    /// Sends bytes as one text message, whatever they are: a frame of the tunnel, as official peers write it. Given up,
    /// it is like [`Sender::send`].
    pub async fn send_text(&mut self, bytes: Bytes) -> Result<(), SendError> {
        self.send_bytes(Opcode::Text, bytes).await
    }

    /// Sends raw bytes as one binary message. Given up, it is like [`Sender::send`].
    pub async fn send_binary(&mut self, bytes: Bytes) -> Result<(), SendError> {
        self.send_bytes(Opcode::Binary, bytes).await
    }

    /// Asks the peer's WebSocket layer for a sign of life, as official edges do on their tunnel.
    pub async fn ping(&mut self) -> Result<(), SendError> {
        match self.carrier {
            Carrier::WebSocketClient | Carrier::WebSocketServer => {
                self.send_bytes(Opcode::Ping, Bytes::from_static(PING_PAYLOAD))
                    .await
            }
            Carrier::Stream => Err(SendError::NoPing),
        }
    }

    /// Ends the connection with a reason that the peer can log. Never waits long and never fails: the connection is
    /// over in any case.
    pub async fn close(self, close: &Close) {
        let _waits = SenderWaits::new(&self.core);
        let mut close = Some(close.clone());
        let said = poll_fn(|cx| {
            let mut core = lock(&self.core);
            if let Some(close) = close.take() {
                core.outbox.close(close);
            }
            if ready!(core.poll_drain(cx)).is_err() {
                return Poll::Ready(());
            }
            Pin::new(&mut core.io).poll_shutdown(cx).map(drop)
        });
        tokio::select! {
            biased;
            () = self.wire.cut() => {}
            _ = tokio::time::timeout(self.last_patience, said) => {}
        }
    }

    async fn send_bytes(&mut self, opcode: Opcode, bytes: Bytes) -> Result<(), SendError> {
        let bulk = Bulk::Bytes(bytes);
        let (head, tail) = (Vec::new(), "");
        self.send_payload(Payload {
            opcode,
            head,
            bulk,
            tail,
        })
        .await
    }

    async fn send_payload(&mut self, payload: Payload) -> Result<(), SendError> {
        let _waits = SenderWaits::new(&self.core);
        let mut payload = Some(payload);
        let sent = poll_fn(|cx| self.poll_send(&mut payload, cx));
        let after = self.patience;
        let sent = tokio::time::timeout(after, sent);
        tokio::select! {
            biased;
            // A pulled plug lets nothing through, not even what could still be written.
            () = self.wire.cut() => Err(SendError::Unplugged),
            sent = sent => match sent {
                Err(_) => Err(SendError::Timeout { after }),
                Ok(sent) => sent,
            },
        }
    }

    fn poll_send(&self, payload: &mut Option<Payload>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let lost = |error: io::Error| SendError::Lost(hung_up(&error));
        let mut core = lock(&self.core);
        loop {
            if let Some(next) = payload.take_if(|_| !core.outbox.is_busy()) {
                if core.outbox.is_closed() {
                    return Poll::Ready(Err(SendError::Closed));
                }
                core.outbox.begin(next).map_err(lost)?;
            }
            ready!(core.poll_drain(cx)).map_err(lost)?;
            if payload.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Text(Bytes),
    Binary(Bytes),
}

impl Message {
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes,
        }
    }

    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes,
        }
    }
}

/// The direction in.
pub struct Receiver {
    core: Arc<Mutex<Core<dyn Io>>>,
    incoming: Incoming,
    control: ControlFrames,
    limits: Limits,
    framing: Framing,
    wire: Wire,
}

/// Pings and pongs of the last second.
#[derive(Debug, Default)]
struct ControlFrames {
    since: Option<Instant>,
    number: u32,
}

impl ControlFrames {
    fn count(&mut self) -> Result<(), End> {
        let now = Instant::now();
        match self.since {
            Some(since) if now - since < Duration::from_secs(1) => self.number += 1,
            Some(_) | None => {
                *self = Self {
                    since: Some(now),
                    number: 1,
                }
            }
        }
        if self.number > CONTROL_FRAMES_A_SECOND_MAX {
            return Err(End::Fault(Fault::Protocol("more than 100 pings a second")));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}

impl Receiver {
    /// The next packet. Cancel safe.
    pub async fn recv(&mut self) -> Result<Packet, RecvError> {
        let message = self.recv_message().await?;
        match packet::decode(self.framing, self.limits, &message)? {
            Heard::Packet(packet) => Ok(packet),
            Heard::Close(close) => Err(RecvError::Closed(close)),
        }
    }

    /// The bytes of the next message, be it text or binary. Cancel safe.
    pub async fn recv_binary(&mut self) -> Result<Bytes, RecvError> {
        Ok(self.recv_message().await?.into_bytes())
    }

    /// The next message. Text need not be UTF-8, because official peers send the binary frames of the tunnel as text;
    /// who needs text checks it. Cancel safe.
    pub async fn recv_message(&mut self) -> Result<Message, RecvError> {
        let Self {
            core,
            incoming,
            control,
            limits,
            wire,
            ..
        } = self;
        let received = poll_fn(|cx| poll_message(&mut lock(core), incoming, control, cx));
        let received = tokio::select! {
            biased;
            () = wire.cut() => return Err(RecvError::Unplugged),
            received = received => received,
        };
        received.map_err(|end| match end {
            End::Close(close) => RecvError::Closed(close),
            End::Fault(Fault::Lost(error)) => RecvError::Lost(hung_up(&error)),
            End::Fault(Fault::TooLarge) => RecvError::TooLarge {
                max: limits.message_bytes_max,
            },
            End::Fault(Fault::Protocol(what)) => RecvError::Protocol(what.to_owned()),
            End::Fault(Fault::Ended) => RecvError::Lost("it has ended before".to_owned()),
        })
    }
}

/// Why no message comes.
enum End {
    Close(Close),
    Fault(Fault),
}

/// The next message. What the connection has to answer (pongs, the echo of a close) goes out on the way, unless a sender
/// is at work: then the sender takes it along.
fn poll_message(
    core: &mut Core<dyn Io>,
    incoming: &mut Incoming,
    control: &mut ControlFrames,
    cx: &mut Context<'_>,
) -> Poll<Result<Message, End>> {
    loop {
        let event = incoming.poll_event(Pin::new(&mut core.io), cx);
        let event = match event {
            Poll::Ready(event) => event.map_err(End::Fault)?,
            Poll::Pending => {
                answer(core, cx);
                return Poll::Pending;
            }
        };
        match event {
            Event::Message { text: true, bytes } => return Poll::Ready(Ok(Message::Text(bytes))),
            Event::Message { text: false, bytes } => return Poll::Ready(Ok(Message::Binary(bytes))),
            Event::Ping(payload) => {
                control.count()?;
                core.outbox.pong(payload);
            }
            Event::Pong => control.count()?,
            Event::Close(close) => {
                core.outbox.close(close.clone());
                answer(core, cx);
                return Poll::Ready(Err(End::Close(close)));
            }
        }
    }
}

/// Writes answers as far as that is possible now. A failure shows itself to whoever reads or writes next.
fn answer(core: &mut Core<dyn Io>, cx: &mut Context<'_>) {
    if !core.sender_waits {
        let _ = core.poll_drain(cx);
    }
}

/// A connection that ends without its last words, in a person's words.
fn hung_up(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the peer hung up without a word".to_owned(),
        _ => error.to_string(),
    }
}
