//! The controllers of CloudCore: between the Kubernetes API and the sessions of edge nodes.
//!
//! **Duty.** [`edge`]: feeds the placement index from watches, tells every attached node what it must hold, and does
//! to the API what the node asks and may ask.
//!
//! **Inputs.** The cluster; [`Attach`] from the hub for each session. **Outputs.** Changes of each node's desired set;
//! one [`Answer`] to each request.
//!
//! **Never.** No decision about who must hold what or who may do what (that is `kedge-placement`), no wire message
//! beyond the body of an answer, no queue that two nodes share.
//!
//! ```text
//!   watch pods, nodes, config maps, secrets                       one task each
//!        |  observed
//!        v
//!     owner of the index  -- desired (newest per key) -->  session of node A, B, ...
//!        ^  may node A read this?
//!        |
//!     worker of node A    <-- requests -- session of node A       one task per attached node
//!        |
//!        v
//!     Kubernetes API
//! ```

pub mod edge;

pub use edge::{Answer, Attach, Config, Controllers};
