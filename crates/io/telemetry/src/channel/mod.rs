//! The kinds of channel. A component's ports are made of these and of nothing else.
//!
//! | kind | when | full |
//! |---|---|---|
//! | [`latest`] | only the newest value matters | the older value is replaced |
//! | [`keyed`] | only the newest value of each key matters | replaced per key; bounded by the number of keys |
//! | [`queue`] | work with back-pressure | the sender waits |
//! | [`lossy`] | work that may be dropped | dropped and counted |
//! | [`ask`] | a question with one answer | the asker waits, at most its timeout |
//!
//! Every channel has a name and a size, and can tell how full it is.

pub mod ask;
pub mod keyed;
pub mod lossy;
pub mod queue;

/// The newest value only.
pub mod latest {
    pub use tokio::sync::watch::{Receiver, Sender, channel};
}

/// How full a channel is, for metrics and for a human who asks why something is slow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depth {
    pub name: &'static str,
    pub used: usize,
    pub size: usize,
}

/// The other end of a channel is gone: its component has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    pub name: &'static str,
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "channel {} is closed", self.name)
    }
}

impl std::error::Error for Closed {}
