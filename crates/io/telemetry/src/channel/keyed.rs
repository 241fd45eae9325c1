//! The newest value of each key: state, not events.
//!
//! A sender that is faster than the receiver never makes it fall behind by more than one value a key, and never
//! waits. Keys come out in the order in which they first became dirty.

use super::{Closed, Depth};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

struct Shared<K, V> {
    name: &'static str,
    state: Mutex<State<K, V>>,
    changed: Notify,
}

struct State<K, V> {
    dirty: HashMap<K, V>,
    order: VecDeque<K>,
    senders: usize,
    receiver_gone: bool,
}

impl<K, V> Shared<K, V> {
    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a keyed channel. Its size is the number of distinct keys that its owner sets.
pub fn channel<K: Eq + Hash + Clone, V>(name: &'static str) -> (Sender<K, V>, Receiver<K, V>) {
    let state = State {
        dirty: HashMap::new(),
        order: VecDeque::new(),
        senders: 1,
        receiver_gone: false,
    };
    let shared = Arc::new(Shared {
        name,
        state: Mutex::new(state),
        changed: Notify::new(),
    });
    (
        Sender {
            shared: Arc::clone(&shared),
        },
        Receiver { shared },
    )
}

/// The end that sets values.
pub struct Sender<K, V> {
    shared: Arc<Shared<K, V>>,
}

impl<K: Eq + Hash + Clone, V> Sender<K, V> {
    /// Sets the value of a key, replacing one that was not taken yet.
    pub fn set(&self, key: K, value: V) -> Result<(), Closed> {
        let mut state = self.shared.lock();
        if state.receiver_gone {
            return Err(Closed {
                name: self.shared.name,
            });
        }
        if state.dirty.insert(key.clone(), value).is_none() {
            state.order.push_back(key);
        }
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// How many keys wait. The size of a keyed channel is its key set, so `size` repeats `used`.
    pub fn depth(&self) -> Depth {
        let used = self.shared.lock().dirty.len();
        Depth {
            name: self.shared.name,
            used,
            size: used,
        }
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().receiver_gone
    }
}

impl<K, V> Clone for Sender<K, V> {
    fn clone(&self) -> Self {
        self.shared.lock().senders += 1;
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K, V> Drop for Sender<K, V> {
    fn drop(&mut self) {
        self.shared.lock().senders -= 1;
        self.shared.changed.notify_one();
    }
}

impl<K, V> std::fmt::Debug for Sender<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "keyed::Sender({})", self.shared.name)
    }
}

/// The end that takes values.
pub struct Receiver<K, V> {
    shared: Arc<Shared<K, V>>,
}

impl<K: Eq + Hash + Clone, V> Receiver<K, V> {
    /// The next changed key with its newest value; `None` when every sender is gone and nothing waits. Cancel safe.
    pub async fn recv(&mut self) -> Option<(K, V)> {
        loop {
            {
                let mut state = self.shared.lock();
                if let Some(key) = state.order.pop_front() {
                    let value = state.dirty.remove(&key).expect("an ordered key is dirty");
                    if state.order.is_empty() {
                        // Most of these channels rest most of the time, and there are some for each connected node: one
                        // that is empty owns no memory.
                        state.order = VecDeque::new();
                        state.dirty = HashMap::new();
                    }
                    return Some((key, value));
                }
                if state.senders == 0 {
                    return None;
                }
            }
            // `notify_one` stores a permit, so a change between the check and this wait is not lost.
            self.shared.changed.notified().await;
        }
    }
}

impl<K, V> Drop for Receiver<K, V> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.receiver_gone = true;
        state.dirty.clear();
        state.order.clear();
    }
}

impl<K, V> std::fmt::Debug for Receiver<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "keyed::Receiver({})", self.shared.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fast_sender_leaves_one_value_a_key() {
        let (tx, mut rx) = channel("test");
        for version in 0..1000 {
            tx.set("web", version).unwrap();
            tx.set("db", version).unwrap();
        }
        assert_eq!(tx.depth().used, 2);
        drop(tx);
        assert_eq!(rx.recv().await, Some(("web", 999)));
        assert_eq!(rx.recv().await, Some(("db", 999)));
        assert_eq!(rx.recv().await, None);
    }

    #[tokio::test]
    async fn a_gone_receiver_is_told() {
        let (tx, rx) = channel::<_, u8>("test");
        drop(rx);
        assert_eq!(tx.set("web", 1), Err(Closed { name: "test" }));
    }
}
