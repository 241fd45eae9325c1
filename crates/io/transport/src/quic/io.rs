//! One QUIC stream as something to read and write, holding its connection.

use quinn::{
    Connection, ConnectionError, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError,
};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Completes when the peer has everything, or will take nothing more.
type Delivered = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

pub(super) struct QuicIo {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    /// While shutting down.
    delivered: Option<Delivered>,
}

impl QuicIo {
    pub(super) fn new(connection: Connection, send: SendStream, receive: RecvStream) -> Self {
        Self {
            connection,
            send,
            receive,
            delivered: None,
        }
    }
}

impl Drop for QuicIo {
    fn drop(&mut self) {
        // The last words, if any, were a message; this only frees both ends at once.
        self.connection.close(VarInt::from_u32(0), &[]);
    }
}

impl AsyncRead for QuicIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.receive.poll_read_buf(cx, buffer));
        Poll::Ready(read.map_err(|error| match error {
            ReadError::ConnectionLost(error) => lost(error),
            error => error.into(),
        }))
    }
}

impl AsyncWrite for QuicIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = ready!(SendStream::poll_write(Pin::new(&mut self.send), cx, bytes));
        Poll::Ready(wrote.map_err(|error| match error {
            WriteError::ConnectionLost(error) => lost(error),
            error => error.into(),
        }))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was taken is sent by the connection's own task.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { send, delivered, .. } = &mut *self;
        let delivered = delivered.get_or_insert_with(|| {
            // An error says that it is finished already.
            let _ = send.finish();
            Box::pin(send.stopped())
        });
        let _ = ready!(delivered.as_mut().poll(cx));
        Poll::Ready(Ok(()))
    }
}

/// A peer that closed the connection without a word before is like one that closed its socket.
fn lost(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::ApplicationClosed(_) => io::Error::new(io::ErrorKind::UnexpectedEof, error),
        error => error.into(),
    }
}
