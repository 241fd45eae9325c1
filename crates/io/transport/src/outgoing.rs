//! From messages to bytes: the direction out, shared by the two halves of a connection.
//!
//! A message is described, not copied: its head, then the bytes of a body that other connections may be sending too.
//! They pass through a scratch buffer of the thread, where they are joined (so that TLS makes few records of them) and
//! masked.

use crate::close::Close;
use crate::frame::{self, Carrier, Opcode};
use crate::pack;
use bytes::Bytes;
use kedge_wire::Body;
use ring::rand::{SecureRandom, SystemRandom};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// One TLS record.
const SCRATCH_BYTES: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// The longest part of a message, by reference.
#[derive(Debug)]
pub(crate) enum Bulk {
    None,
    Bytes(Bytes),
    /// The text of a body.
    Json(Body),
    /// A body as [`pack::packed`] shortens it.
    Packed(Body),
}

impl Bulk {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Bytes(bytes) => bytes,
            Self::Json(body) => body.json().as_bytes(),
            Self::Packed(body) => pack::packed(body).unwrap_or_default(),
        }
    }
}

/// A message: a head of its own, then shared bytes, then an end that is always the same.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) opcode: Opcode,
    pub(crate) head: Vec<u8>,
    pub(crate) bulk: Bulk,
    pub(crate) tail: &'static str,
}

/// A frame on its way.
#[derive(Debug)]
struct Outgoing {
    head: Vec<u8>,
    payload: Payload,
    mask: Option<[u8; 4]>,
    written: usize,
}

impl Outgoing {
    fn new(carrier: Carrier, payload: Payload) -> io::Result<Self> {
        let length = payload.head.len() + payload.bulk.bytes().len() + payload.tail.len();
        let mut head = Vec::with_capacity(frame::HEAD_BYTES_MAX);
        let mut key = [0; 4];
        if carrier == Carrier::WebSocketClient {
            // Unpredictable, so that nobody who chooses a message can choose what an old proxy sees.
            SystemRandom::new()
                .fill(&mut key)
                .map_err(|_| io::Error::other("the system gives no random bytes"))?;
        }
        frame::write(carrier, payload.opcode, length, key, &mut head);
        Ok(Self {
            head,
            payload,
            mask: (carrier == Carrier::WebSocketClient).then_some(key),
            written: 0,
        })
    }

    /// Copies what comes next into `scratch`, masked; nothing is left when it gives 0.
    fn fill(&self, scratch: &mut [u8]) -> usize {
        let parts = [
            self.head.as_slice(),
            &self.payload.head,
            self.payload.bulk.bytes(),
            self.payload.tail.as_bytes(),
        ];
        let mut skip = self.written;
        let mut filled = 0;
        for part in parts {
            let rest = part.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(part.len());
            let count = rest.len().min(scratch.len() - filled);
            scratch[filled..filled + count].copy_from_slice(&rest[..count]);
            filled += count;
        }
        if let Some(mask) = self.mask {
            let clear = self.head.len().saturating_sub(self.written).min(filled);
            let offset = (self.written + clear) - self.head.len();
            frame::mask(&mut scratch[clear..filled], mask, offset);
        }
        filled
    }
}

/// What the connection itself has to say between two messages.
#[derive(Debug)]
enum Control {
    /// The answer to the latest ping; earlier ones need none.
    Pong(Bytes),
    Close(Close),
}

/// The direction out. Its state survives the waiting: a frame that was begun is always finished before another.
#[derive(Debug)]
pub(crate) struct Outbox {
    carrier: Carrier,
    current: Option<Outgoing>,
    control: Option<Control>,
    /// Bytes may wait in the layers below.
    unflushed: bool,
    /// A close was said; nothing may follow it.
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            current: None,
            control: None,
            unflushed: false,
            closed: false,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether a frame is half written.
    pub(crate) fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// Begins a message. Only when nothing is under way.
    pub(crate) fn begin(&mut self, payload: Payload) -> io::Result<()> {
        debug_assert!(self.current.is_none() && !self.closed);
        self.current = Some(Outgoing::new(self.carrier, payload)?);
        Ok(())
    }

    pub(crate) fn pong(&mut self, payload: Bytes) {
        if !self.closed && !matches!(self.control, Some(Control::Close(_))) {
            self.control = Some(Control::Pong(payload));
        }
    }

    pub(crate) fn close(&mut self, close: Close) {
        if !self.closed && !matches!(self.control, Some(Control::Close(_))) {
            self.control = Some(Control::Close(close));
        }
    }

    /// Writes everything that is there, until the operating system has it.
    pub(crate) fn poll_drain<T: AsyncWrite + ?Sized>(
        &mut self,
        mut io: Pin<&mut T>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(outgoing) = &mut self.current {
                self.unflushed = true;
                let wrote = SCRATCH.with_borrow_mut(|scratch| {
                    let filled = outgoing.fill(scratch);
                    match filled {
                        0 => Poll::Ready(Ok(None)),
                        _ => io.as_mut().poll_write(cx, &scratch[..filled]).map_ok(Some),
                    }
                });
                match ready!(wrote)? {
                    None => self.current = None,
                    Some(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Some(count) => outgoing.written += count,
                }
            } else if let Some(control) = self.control.take() {
                let payload = self.payload(control);
                self.current = Some(Outgoing::new(self.carrier, payload)?);
            } else {
                if self.unflushed {
                    ready!(io.as_mut().poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn payload(&mut self, control: Control) -> Payload {
        let (opcode, head) = match control {
            Control::Pong(payload) => (Opcode::Pong, payload.to_vec()),
            Control::Close(close) => {
                self.closed = true;
                (Opcode::Close, close.payload())
            }
        };
        match (self.carrier, opcode) {
            // A stream has no control frames: a close is a message of its own kind there.
            (Carrier::Stream, Opcode::Close) => crate::packet::stream_close(&head),
            _ => Payload {
                opcode,
                head,
                bulk: Bulk::None,
                tail: "",
            },
        }
    }
}
