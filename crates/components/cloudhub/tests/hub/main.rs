//! CloudHub on loopback with real TLS; the test plays the controllers and the edges.
#![allow(clippy::unwrap_used)] // clippy exempts test functions but not what they call.

mod join;
mod play;
mod sessions;
mod world;
