//! The cloud-edge wire format of KubeEdge v1.23: data only.
//!
//! **Duty.** Turn the JSON text of one WebSocket message into an [`Envelope`], an envelope into a typed
//! [`ToEdge`] or [`ToCloud`] letter, and back, without losing a byte that the peer may care about.
//!
//! **Inputs.** Text or bytes from a peer, bounded by [`limits`].
//! **Outputs.** Typed letters; or a [`DecodeError`] that names what was wrong.
//!
//! **Never.** No I/O, no clock, no randomness, no policy: whether a message needs an acknowledgement is said by
//! [`ToEdge::needs_ack`] as a fact of the protocol, but when it is sent again is decided in `kedge-link`.
//!
//! ```text
//!   text  <-- Envelope::{decode, encode} -->  Envelope { header, route: RawRoute, content: Body }
//!                                               |  ^
//!                         ToEdge::open / ToCloud::open  |  |  Letter::seal
//!                                               v  |
//!                                             Letter<ToEdge> / Letter<ToCloud>
//! ```

mod body;
mod depth;
mod envelope;
mod ids;
pub mod limits;
mod packet;
mod placed;
mod route;
mod status;
mod time;
mod to_cloud;
mod to_edge;
mod trace;
pub mod tunnel;

pub use body::{Body, Object, ObjectMeta};
pub use envelope::{DecodeError, Envelope, Header, Letter, RawRoute};
pub use ids::{InvalidName, MessageId, NodeName, ResourceVersion, Uid};
pub use packet::Packet;
pub use placed::PlacedKind;
pub use route::{Group, ObjectKey, ObjectKind, Operation, Resource, Route, Source};
pub use status::{ObjectResponse, Status, StatusError};
pub use time::Time;
pub use to_cloud::{Ack, Refusal, Request, ToCloud};
pub use to_edge::{ChangeVerb, ObjectChange, Reply, ToEdge};
pub use trace::TraceId;
