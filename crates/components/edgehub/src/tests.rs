//! Stories on in-memory connections with a stopped clock, and on loopback TLS.

mod certificates;
pub(crate) mod cloud;
mod network;
mod sessions;
