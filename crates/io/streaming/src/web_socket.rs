//! WebSocket after its handshake, which is `kedge-transport`'s.

use crate::{Error, Io, PIPE_BYTES, spdy};
use bytes::Bytes;
use kedge_transport::{Close, CloseCode, Connection, Receiver, RecvError, Sender};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// One message. kubectl sends 32 KiB at a time.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// A client whose user reads slowly takes a message when he has read; kubelets know no limit but the idle one.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

pub(crate) fn open(io: impl Io + 'static) -> (Sender, Receiver) {
    Connection::upgraded(io, MESSAGE_BYTES_MAX, PATIENCE).split()
}

/// What is received, and `None` when the client has hung up, in whatever way: that is how a user leaves.
pub(crate) async fn receive(receiver: &mut Receiver) -> Result<Option<Bytes>, Error> {
    match receiver.recv_binary().await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(RecvError::Closed(_) | RecvError::Lost(_)) => Ok(None),
        Err(error) => Err(Error::WebSocket(error.to_string())),
    }
}

pub(crate) fn broken(error: kedge_transport::SendError) -> Error {
    Error::WebSocket(error.to_string())
}

/// The end as it should be: readers of all channels see their end, not a failure.
pub(crate) async fn end(sender: Sender) {
    let close = Close {
        code: CloseCode::Normal,
        reason: String::new(),
    };
    sender.close(&close).await;
}

/// Takes the bytes of another protocol out of binary messages. The future drives it; it ends when either side is done.
pub(crate) fn unwrapped(io: impl Io + 'static) -> (DuplexStream, impl Future<Output = Result<(), Error>>) {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let (mut sender, mut receiver) = open(io);
    let drive = async move {
        let (mut from, mut to) = tokio::io::split(near);
        let inward = async {
            while let Some(bytes) = receive(&mut receiver).await? {
                to.write_all(&bytes).await?;
            }
            to.shutdown().await?;
            Ok::<_, Error>(())
        };
        let outward = async {
            let mut piece = vec![0; spdy::PIECE_BYTES_MAX];
            loop {
                let count = from.read(&mut piece).await?;
                if count == 0 {
                    return Ok::<_, Error>(());
                }
                let bytes = Bytes::copy_from_slice(&piece[..count]);
                sender.send_binary(bytes).await.map_err(broken)?;
            }
        };
        let ended = tokio::select! {
            ended = outward => ended,
            ended = async { inward.await?; std::future::pending().await } => ended,
        };
        end(sender).await;
        ended
    };
    (far, drive)
}
