//! Work with back-pressure.

use super::{Closed, Depth};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Makes a queue that holds at most `size` items.
pub fn channel<T>(name: &'static str, size: usize) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = mpsc::channel(size);
    (Sender { name, tx }, Receiver { name, rx })
}

/// The end that adds work.
#[derive(Debug)]
pub struct Sender<T> {
    name: &'static str,
    tx: mpsc::Sender<T>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            tx: self.tx.clone(),
        }
    }
}

impl<T> Sender<T> {
    /// Adds an item, waiting while the queue is full.
    pub async fn send(&self, item: T) -> Result<(), Closed> {
        self.tx.send(item).await.map_err(|_| Closed { name: self.name })
    }

    /// Adds an item if there is room now; gives it back otherwise.
    pub fn try_send(&self, item: T) -> Result<(), T> {
        self.tx.try_send(item).map_err(|error| match error {
            mpsc::error::TrySendError::Full(item) | mpsc::error::TrySendError::Closed(item) => item,
        })
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.tx.is_closed()
    }

    /// Completes when the receiver is gone.
    pub async fn closed(&self) {
        self.tx.closed().await;
    }

    /// How full the queue is.
    pub fn depth(&self) -> Depth {
        let size = self.tx.max_capacity();
        Depth {
            name: self.name,
            used: size - self.tx.capacity(),
            size,
        }
    }
}

/// The end that takes work.
#[derive(Debug)]
pub struct Receiver<T> {
    name: &'static str,
    rx: mpsc::Receiver<T>,
}

impl<T> Receiver<T> {
    /// The next item; `None` when every sender is gone and the queue is empty. Cancel safe.
    pub async fn recv(&mut self) -> Option<T> {
        self.rx.recv().await
    }

    /// As [`Self::recv`], for a future written by hand.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.rx.poll_recv(context)
    }

    /// The next item if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        self.rx.try_recv().ok()
    }

    /// How full the queue is.
    pub fn depth(&self) -> Depth {
        Depth {
            name: self.name,
            used: self.rx.len(),
            size: self.rx.max_capacity(),
        }
    }
}
