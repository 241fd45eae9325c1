//! gRPC with the neighbours on this machine: container runtimes, plug-ins, the pods' health services.
//!
//! * Input: an [`Address`], and for a server the frame that `kedge-grpc` generated around a handler.
//! * Output: a [`Channel`] that carries the calls of any generated client, or a served socket.
//! * Never: TLS, DNS, or a call to another machine's service but for the address that it was given; never waits for a
//!   peer to be there before it is needed.
//!
//! ```text
//!   client stub ── Channel ── one HTTP/2 connection, dialled at the first call, again when it died
//!                     └ refuses at once while it waits before the next dial
//! ```

mod address;
mod channel;
mod server;

pub use address::{Address, AddressError};
pub use channel::Channel;
pub use server::{BindError, Routes, bind, serve};

/// The authority in the requests to a local socket, as every gRPC library names it.
pub const ORIGIN: &str = "http://localhost";

/// [`ORIGIN`], parsed, for `SomeClient::with_origin(channel, origin())`.
pub fn origin() -> http::Uri {
    http::Uri::from_static(ORIGIN)
}
