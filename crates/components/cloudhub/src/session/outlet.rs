//! The way out to a node: one message is being written, and the next is chosen when it is gone, so that the order by
//! priority is decided as late as possible and nothing waits behind a queue.

use futures_util::future::BoxFuture;
use kedge_transport::{Close, SendError, Sender};
use kedge_wire::Packet;
use std::time::Duration;

/// Time for the last words to a node; one that does not take them is cut off.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(3);

type Written = (Sender, Result<(), SendError>);

/// At rest it is the sender and nothing else; the future of a write exists only while there is one.
pub(super) enum Outlet {
    Idle(Sender),
    Writing(BoxFuture<'static, Written>),
    /// The connection is broken.
    Gone,
}

impl Outlet {
    pub(super) fn is_idle(&self) -> bool {
        match self {
            Self::Idle(_) => true,
            Self::Writing(_) | Self::Gone => false,
        }
    }

    /// Begins to write. Only an idle outlet does; otherwise the message is lost with the connection.
    pub(super) fn write(&mut self, packet: Packet) {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Idle(mut sender) => Self::Writing(Box::pin(async move {
                let sent = sender.send(&packet).await;
                (sender, sent)
            })),
            busy @ (Self::Writing(_) | Self::Gone) => busy,
        };
    }

    /// Completes when what is being written is gone; never while nothing is. Cancel safe.
    pub(super) async fn written(&mut self) -> Result<(), SendError> {
        let Self::Writing(writing) = self else {
            return std::future::pending().await;
        };
        let (sender, sent) = writing.await;
        *self = match sent {
            Ok(()) => Self::Idle(sender),
            Err(_) => Self::Gone,
        };
        sent
    }

    /// Ends the connection with a reason, after what is being written, and does not wait for long.
    pub(super) async fn close(self, close: Close) {
        let last_words = async {
            let sender = match self {
                Self::Idle(sender) => sender,
                Self::Writing(writing) => match writing.await {
                    (sender, Ok(())) => sender,
                    (_, Err(_)) => return,
                },
                Self::Gone => return,
            };
            sender.close(&close).await;
        };
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, last_words).await;
    }
}
