//! A connection to the kubelet port that comes by another way than TCP.

use kedge_wire::tunnel::NodeConnect;
use std::convert::Infallible;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;

/// The head of a request, and the stream on which the answer and everything after it goes.
#[derive(Debug)]
pub struct Connection {
    pub request: NodeConnect,
    pub stream: DuplexStream,
    gone: oneshot::Receiver<Infallible>,
}

/// The asker's end. Dropping it hangs up at once, also on somebody who does not read just now.
#[derive(Debug)]
pub struct Asker {
    pub stream: DuplexStream,
    _there: oneshot::Sender<Infallible>,
}

impl Connection {
    /// Both ends; so many bytes may wait in each direction.
    pub fn pair(request: NodeConnect, bytes_max: usize) -> (Asker, Self) {
        let (near, far) = tokio::io::duplex(bytes_max);
        let (there, gone) = oneshot::channel();
        let asker = Asker {
            stream: near,
            _there: there,
        };
        let connection = Self {
            request,
            stream: far,
            gone,
        };
        (asker, connection)
    }

    /// Serves it, until that is done or the asker has hung up; `None` then.
    pub async fn serve<T, F: Future<Output = T>>(
        self,
        serve: impl FnOnce(NodeConnect, DuplexStream) -> F,
    ) -> Option<T> {
        let Self {
            request,
            stream,
            gone,
        } = self;
        tokio::select! {
            biased;
            // What was said last is still read by an asker that is there.
            served = serve(request, stream) => Some(served),
            _ = gone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::tests::request;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn an_asker_that_goes_ends_it() {
        let (asker, connection) = Connection::pair(request(&[]), 16);
        let serving = connection.serve(|_, _| std::future::pending::<()>());
        drop(asker);
        assert_eq!(serving.await, None);

        let (asker, connection) = Connection::pair(request(&[]), 16);
        let served = connection.serve(|request, stream| async move {
            drop(stream);
            request.method
        });
        assert_eq!(served.await.as_deref(), Some("POST"));
        let mut stream = asker.stream;
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
}
