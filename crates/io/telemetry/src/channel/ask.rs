//! A question that carries its own reply channel.
//!
//! Questions wait in boxes: a channel takes memory for some dozen entries as long as it exists, and there is one of these
//! channels for each connected node, on which nearly always nothing waits.

use super::{Closed, Depth, queue};
use std::time::Duration;
use tokio::sync::oneshot;

/// Makes a channel on which at most `size` questions wait.
pub fn channel<Q, A>(name: &'static str, size: usize) -> (Sender<Q, A>, Receiver<Q, A>) {
    let (tx, rx) = queue::channel(name, size);
    (Sender { name, tx }, Receiver { rx })
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// The component that answers has ended, or dropped the question.
    Closed(Closed),
    /// The timeout passed.
    Timeout { name: &'static str, after: Duration },
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed(closed) => closed.fmt(f),
            Self::Timeout { name, after } => write!(f, "no answer on {name} within {after:?}"),
        }
    }
}

impl std::error::Error for NoAnswer {}

/// One question with the way back.
#[derive(Debug)]
pub struct Question<Q, A> {
    pub question: Q,
    pub reply: Reply<A>,
}

/// The way back. Dropping it tells the asker that there will be no answer.
#[derive(Debug)]
pub struct Reply<A> {
    tx: oneshot::Sender<A>,
}

impl<A> Reply<A> {
    /// A loose pair, for a component that asks itself.
    pub fn pair() -> (Self, oneshot::Receiver<A>) {
        let (tx, rx) = oneshot::channel();
        (Self { tx }, rx)
    }

    /// Answers. An asker that has given up is not an error.
    pub fn send(self, answer: A) {
        let _ = self.tx.send(answer);
    }

    /// Whether the asker has given up.
    pub fn is_closed(&self) -> bool {
        self.tx.is_closed()
    }
}

/// The end that asks.
#[derive(Debug)]
pub struct Sender<Q, A> {
    name: &'static str,
    tx: queue::Sender<Box<Question<Q, A>>>,
}

impl<Q, A> Clone for Sender<Q, A> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            tx: self.tx.clone(),
        }
    }
}

impl<Q, A> Sender<Q, A> {
    /// Asks and waits for the answer, at most `timeout` in all.
    pub async fn ask(&self, question: Q, timeout: Duration) -> Result<A, NoAnswer> {
        let closed = NoAnswer::Closed(Closed { name: self.name });
        let asked = async {
            let (reply, answer) = Reply::pair();
            self.tx
                .send(Box::new(Question { question, reply }))
                .await
                .map_err(|_| closed)?;
            answer.await.map_err(|_| closed)
        };
        match tokio::time::timeout(timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer::Timeout {
                name: self.name,
                after: timeout,
            }),
        }
    }

    /// Hands a question over together with a reply channel of the caller's.
    pub async fn forward(&self, question: Question<Q, A>) -> Result<(), Closed> {
        self.tx.send(Box::new(question)).await
    }

    /// How full the channel is.
    pub fn depth(&self) -> Depth {
        self.tx.depth()
    }
}

/// The end that answers.
#[derive(Debug)]
pub struct Receiver<Q, A> {
    rx: queue::Receiver<Box<Question<Q, A>>>,
}

impl<Q, A> Receiver<Q, A> {
    /// The next question; `None` when nobody can ask any more. Cancel safe.
    pub async fn recv(&mut self) -> Option<Question<Q, A>> {
        self.rx.recv().await.map(|question| *question)
    }
}
