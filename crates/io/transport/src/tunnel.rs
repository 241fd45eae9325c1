//! Streams within a tunnel, as both of its ends hold them: bytes that came and are not taken yet, and how many may go.
//!
//! Between two own ends a stream has credit (see [`kedge_wire::tunnel`]), so what comes always finds room and a stream
//! whose reader does not read holds up nothing but itself. An official peer sends what it likes: a reader that is full
//! holds up the tunnel for a moment, so that a slow one slows its writer down; then it is cut off.

use bytes::{Buf, Bytes, BytesMut};
use kedge_wire::tunnel::{Frame, FrameBody, OFFER, OFFER_HEADER, WINDOW_BYTES};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Bytes of one DATA frame. Official ends send 256; a larger frame costs less, and this size still lets other streams
/// through in between.
pub const DATA_BYTES_MAX: usize = 32 * 1024;
/// How long a reader that is full may hold up the tunnel of an official peer.
pub const STALL_MAX: Duration = Duration::from_secs(3);

/// Whether streams of this tunnel have credit: both ends have said so in the upgrade.
pub fn has_credit(connection: &crate::Connection) -> bool {
    connection.header(OFFER_HEADER) == Some(OFFER)
}

/// Bytes that may go on one stream.
#[derive(Debug, Clone)]
pub struct Credit(Option<Arc<Semaphore>>);

impl Credit {
    /// Of a new stream; without an agreement there is no end to it.
    pub fn new(agreed: bool) -> Self {
        Self(agreed.then(|| Arc::new(Semaphore::new(WINDOW_BYTES))))
    }

    /// Waits until something may go; how much of what is wanted. Only one caller a stream.
    pub async fn take(&self, wanted: usize) -> usize {
        let Some(bytes) = self.0.as_ref().filter(|_| wanted > 0) else {
            return wanted;
        };
        // Nobody closes it.
        let Ok(first) = bytes.acquire().await else {
            return 0;
        };
        first.forget();
        let more = bytes.available_permits().min(wanted - 1);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        match bytes.try_acquire_many(more) {
            Ok(permits) => {
                permits.forget();
                1 + more as usize
            }
            Err(_) => 1,
        }
    }

    /// The peer has taken so many bytes. `false`: more than it was sent.
    #[must_use]
    pub fn give(&self, more: u32) -> bool {
        let (Some(bytes), more) = (&self.0, more as usize) else {
            return false;
        };
        let fits = bytes.available_permits() + more <= WINDOW_BYTES;
        if fits {
            bytes.add_permits(more);
        }
        fits
    }
}

/// Where the bytes of all streams of a tunnel come in. One owner: the task that reads the tunnel.
#[derive(Debug)]
pub struct Inlets {
    agreed: bool,
    open: HashMap<u64, DuplexStream>,
    stalled: Option<Stalled>,
}

/// Bytes that found their reader full.
#[derive(Debug)]
struct Stalled {
    id: u64,
    data: Bytes,
    until: Instant,
}

impl Inlets {
    pub fn new(agreed: bool) -> Self {
        Self {
            agreed,
            open: HashMap::new(),
            stalled: None,
        }
    }

    /// Begins a stream; its reader gets the other end.
    pub fn open(&mut self, id: u64) -> Outlet {
        let (inlet, from) = tokio::io::duplex(WINDOW_BYTES);
        self.open.insert(id, inlet);
        Outlet {
            from,
            agreed: self.agreed,
            taken: 0,
        }
    }

    /// Nothing more comes; what has come is still read.
    pub fn close(&mut self, id: u64) {
        self.open.remove(&id);
    }

    /// Takes what came for a stream. `false`: the peer has sent more than it may, and the stream is closed.
    #[must_use]
    pub fn data(&mut self, id: u64, mut data: Bytes) -> bool {
        // Of a stream that was ended here some bytes are still on their way for a moment.
        let Some(inlet) = self.open.get_mut(&id) else {
            return true;
        };
        let mut nobody = Context::from_waker(Waker::noop());
        while !data.is_empty() {
            match Pin::new(&mut *inlet).poll_write(&mut nobody, &data) {
                Poll::Ready(Ok(count)) => data.advance(count),
                // Its reader has gone, which its own task has noticed.
                Poll::Ready(Err(_)) => return true,
                Poll::Pending if self.agreed => {
                    self.close(id);
                    return false;
                }
                Poll::Pending => {
                    let until = Instant::now() + STALL_MAX;
                    self.stalled = Some(Stalled { id, data, until });
                    return true;
                }
            }
        }
        true
    }

    /// Nothing may be read from the tunnel now: what it says next might be for the reader that is full.
    pub fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Waits until the stalled bytes are delivered, or gives the stream that took too long; it is closed. Never completes
    /// when nothing is stalled. Cancel safe.
    pub async fn unstall(&mut self) -> Option<u64> {
        let Some(Stalled { id, data, until }) = &mut self.stalled else {
            return std::future::pending().await;
        };
        let (id, until) = (*id, *until);
        let mut cut = None;
        if let Some(inlet) = self.open.get_mut(&id) {
            while !data.is_empty() {
                match tokio::time::timeout_at(until, inlet.write(data)).await {
                    Ok(Ok(count)) => data.advance(count),
                    // Its reader has gone.
                    Ok(Err(_)) => break,
                    Err(_elapsed) => {
                        cut = Some(id);
                        break;
                    }
                }
            }
        }
        self.stalled = None;
        if let Some(id) = cut {
            self.close(id);
        }
        cut
    }
}

/// Where a reader takes the bytes of a stream.
#[derive(Debug)]
pub struct Outlet {
    from: DuplexStream,
    agreed: bool,
    /// Bytes for which the peer has no new credit yet.
    taken: usize,
}

impl Outlet {
    /// The next bytes; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        let mut bytes = BytesMut::with_capacity(DATA_BYTES_MAX);
        match self.from.read_buf(&mut bytes).await {
            Ok(count) if count > 0 => Some(bytes.freeze()),
            Ok(_) | Err(_) => None,
        }
    }

    /// The reader is done with so many bytes: the credit to tell the peer, when it is worth a frame.
    pub fn taken(&mut self, bytes: usize) -> Option<FrameBody> {
        self.taken += bytes;
        if !self.agreed || self.taken < WINDOW_BYTES / 2 {
            return None;
        }
        u32::try_from(std::mem::take(&mut self.taken))
            .ok()
            .map(FrameBody::Window)
    }
}

/// The way of frames out: a bounded queue.
pub trait Frames: Sync {
    /// Waits for a place; `false` when the tunnel has ended.
    fn send(&self, frame: Frame) -> impl Future<Output = bool> + Send;
}

/// Carries a byte stream on a stream of the tunnel, until either side is done. Says to the peer when it is this one.
pub async fn carry(
    connection: u64,
    stream: impl AsyncRead + AsyncWrite + Send,
    outlet: &mut Outlet,
    credit: &Credit,
    frames: &impl Frames,
) {
    let (from, mut to) = tokio::io::split(stream);
    let inward = async {
        while let Some(bytes) = outlet.next().await {
            // A side that reads no more may still have something to say.
            let _ = to.write_all(&bytes).await;
            if let Some(body) = outlet.taken(bytes.len())
                && !frames.send(Frame { connection, body }).await
            {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    let outward = async {
        if send_all(connection, from, credit, frames).await {
            let body = FrameBody::Remove;
            frames.send(Frame { connection, body }).await;
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

async fn send_all(
    connection: u64,
    mut from: impl AsyncRead + Unpin,
    credit: &Credit,
    frames: &impl Frames,
) -> bool {
    let mut piece = vec![0; DATA_BYTES_MAX];
    loop {
        match from.read(&mut piece).await {
            // A stream that broke has ended, too.
            Ok(0) | Err(_) => return true,
            Ok(count) => {
                if !send(connection, &piece[..count], credit, frames).await {
                    return false;
                }
            }
        }
    }
}

/// Sends bytes as DATA frames, as credit allows; `false` when the tunnel has ended.
pub async fn send(connection: u64, mut bytes: &[u8], credit: &Credit, frames: &impl Frames) -> bool {
    while !bytes.is_empty() {
        let count = credit.take(bytes.len().min(DATA_BYTES_MAX)).await;
        let (part, rest) = bytes.split_at(count);
        bytes = rest;
        let body = FrameBody::Data(part.to_vec());
        if !frames.send(Frame { connection, body }).await {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    async fn is_pending<T>(mut fact: Pin<&mut impl Future<Output = T>>) -> bool {
        poll_fn(|cx| Poll::Ready(fact.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn credit_is_what_the_reader_has_taken() {
        let credit = Credit::new(true);
        assert_eq!(credit.take(100).await, 100);
        assert_eq!(credit.take(WINDOW_BYTES).await, WINDOW_BYTES - 100);
        let mut next = Box::pin(credit.take(10));
        assert!(is_pending(next.as_mut()).await);
        assert!(credit.give(7));
        assert_eq!(next.await, 7);
        assert!(credit.give(u32::try_from(WINDOW_BYTES).unwrap()));
        assert!(!credit.give(1), "more than was sent");
        assert_eq!(Credit::new(false).take(1 << 30).await, 1 << 30);
        assert!(!Credit::new(false).give(1));
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_up_only_itself() {
        let mut inlets = Inlets::new(true);
        let (mut idle, mut busy) = (inlets.open(1), inlets.open(2));
        assert!(inlets.data(1, Bytes::from(vec![b'x'; WINDOW_BYTES])));
        assert!(inlets.data(2, Bytes::from_static(b"y")) && !inlets.is_stalled());
        assert_eq!(busy.next().await.unwrap(), "y");
        assert!(!inlets.data(1, Bytes::from_static(b"z")), "beyond its credit");
        let mut rest = WINDOW_BYTES;
        let mut given = 0;
        while let Some(bytes) = idle.next().await {
            rest -= bytes.len();
            if let Some(FrameBody::Window(more)) = idle.taken(bytes.len()) {
                given += more as usize;
            }
        }
        assert_eq!((rest, given), (0, WINDOW_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn an_official_writer_is_slowed_down_and_then_cut_off() {
        let mut inlets = Inlets::new(false);
        let mut outlet = inlets.open(1);
        let full = Bytes::from(vec![b'x'; WINDOW_BYTES + 10]);
        assert!(inlets.data(1, full.clone()) && inlets.is_stalled());
        let mut left = WINDOW_BYTES + 10;
        left -= outlet.next().await.unwrap().len();
        assert_eq!(inlets.unstall().await, None);
        while left > 0 {
            left -= outlet.next().await.unwrap().len();
        }
        assert!(inlets.data(1, full) && inlets.is_stalled());
        assert_eq!(inlets.unstall().await, Some(1));
        assert!(!inlets.is_stalled());
        let mut left = WINDOW_BYTES;
        while let Some(bytes) = outlet.next().await {
            left -= bytes.len();
        }
        assert_eq!(left, 0, "what had come is still read");
    }
}
