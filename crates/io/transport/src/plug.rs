//! The cable between an edge and the cloud, which a demo or a test may pull.

use std::sync::Arc;
use tokio::sync::watch;

/// A handle to the cable; clones hold the same one. It starts plugged in.
#[derive(Debug, Clone)]
pub struct Plug {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    inserted: bool,
    /// How often it was pulled: a connection made before the last pull is dead for good.
    pulls: u64,
}

impl Default for Plug {
    fn default() -> Self {
        Self::new()
    }
}

impl Plug {
    pub fn new() -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State {
                inserted: true,
                pulls: 0,
            })),
        }
    }

    /// Breaks every connection and lets no new one come.
    pub fn pull(&self) {
        self.state.send_modify(|state| {
            *state = State {
                inserted: false,
                pulls: state.pulls + 1,
            }
        });
    }

    /// Lets new connections come again.
    pub fn insert(&self) {
        self.state.send_modify(|state| state.inserted = true);
    }

    pub fn is_inserted(&self) -> bool {
        self.state.borrow().inserted
    }

    /// The wire of a connection that is made now; `None` while the plug is pulled.
    pub(crate) fn wire(&self) -> Option<Wire> {
        let state = *self.state.borrow();
        state.inserted.then(|| Wire {
            plug: Some(self.clone()),
            pulls: state.pulls,
        })
    }
}

/// What ties one connection to the plug.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    plug: Option<Plug>,
    pulls: u64,
}

impl Wire {
    /// A wire that nobody can pull.
    pub(crate) fn fixed() -> Self {
        Self { plug: None, pulls: 0 }
    }

    /// Completes when the plug has been pulled since this wire was made.
    pub(crate) async fn cut(&self) {
        let Some(plug) = &self.plug else {
            return std::future::pending().await;
        };
        let mut state = plug.state.subscribe();
        // The sender lives in `plug`, so waiting cannot fail.
        let _ = state.wait_for(|state| state.pulls != self.pulls).await;
    }
}
