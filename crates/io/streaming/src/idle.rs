//! A stream on which nothing happens for too long is ended.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

/// A stream that remembers when something last went through it, in either direction.
#[derive(Debug)]
pub struct Watched<T> {
    io: T,
    last: watch::Sender<Instant>,
}

impl<T> Watched<T> {
    pub(crate) fn new(io: T) -> Self {
        let last = watch::Sender::new(Instant::now());
        Self { io, last }
    }

    /// Completes when nothing has gone through for so long. It may outlive the stream.
    pub(crate) fn idle(&self, limit: Duration) -> impl Future<Output = ()> + Send + use<T> {
        let last = self.last.subscribe();
        async move {
            loop {
                let until = *last.borrow() + limit;
                if until <= Instant::now() {
                    return;
                }
                tokio::time::sleep_until(until).await;
            }
        }
    }

    fn touch(&self) {
        self.last.send_replace(Instant::now());
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        if buf.filled().len() > before {
            self.touch();
        }
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        if written.as_ref().is_ok_and(|&count| count > 0) {
            self.touch();
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn only_what_goes_through_counts() {
        const HOUR: Duration = Duration::from_secs(3600);
        let (near, mut far) = tokio::io::duplex(64);
        let mut watched = Watched::new(near);
        let idle = watched.idle(HOUR);
        let began = Instant::now();
        let using = async {
            tokio::time::sleep(HOUR / 2).await;
            watched.write_all(b"x").await.unwrap();
            tokio::time::sleep(HOUR / 2).await;
            far.write_all(b"y").await.unwrap();
            watched.read_u8().await.unwrap();
        };
        tokio::join!(idle, using);
        assert_eq!(began.elapsed(), HOUR * 2);
    }
}
