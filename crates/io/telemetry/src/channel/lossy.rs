//! Work that may be dropped when the receiver is slow; every drop is counted.

use super::Depth;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Makes a channel that holds at most `size` items and drops the newest when full.
pub fn channel<T>(name: &'static str, size: usize) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = mpsc::channel(size);
    let dropped = Arc::new(AtomicU64::new(0));
    (
        Sender {
            name,
            tx,
            dropped: Arc::clone(&dropped),
        },
        Receiver { rx, dropped },
    )
}

/// The end that offers items.
#[derive(Debug)]
pub struct Sender<T> {
    name: &'static str,
    tx: mpsc::Sender<T>,
    dropped: Arc<AtomicU64>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            tx: self.tx.clone(),
            dropped: Arc::clone(&self.dropped),
        }
    }
}

impl<T> Sender<T> {
    /// Offers an item; drops and counts it when the channel is full or closed.
    pub fn offer(&self, item: T) {
        if self.tx.try_send(item).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How full the channel is.
    pub fn depth(&self) -> Depth {
        let size = self.tx.max_capacity();
        Depth {
            name: self.name,
            used: size - self.tx.capacity(),
            size,
        }
    }
}

/// The end that takes items.
#[derive(Debug)]
pub struct Receiver<T> {
    rx: mpsc::Receiver<T>,
    dropped: Arc<AtomicU64>,
}

impl<T> Receiver<T> {
    /// The next item; `None` when every sender is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<T> {
        self.rx.recv().await
    }

    /// How many items were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
