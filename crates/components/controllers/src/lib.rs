//! The controllers of CloudCore: between the Kubernetes API and the sessions of edge nodes.
//!
//! **Duty.** [`edge`]: feeds the placement index from watches, tells every attached node what it must hold, does to the
//! API what the node asks and may ask, and answers its leases. `sync`: reads and writes the records by which an official
//! cloud remembers what a node holds. `csr`: takes a node's request for the certificate of its own server, and approves
//! it while this replica leads.
//!
//! **Inputs.** The cluster and the budget of calls; [`Attach`] from the hub for each session. **Outputs.** Changes of each
//! node's desired set; one [`Answer`] to each request.
//!
//! **Never.** No decision about who must hold what or who may do what (that is `kedge-placement`), no wire message
//! beyond the body of an answer, no queue that two nodes share, no call on behalf of a node past the budget.
//!
//! ```text
//!   watch pods, nodes, config maps, secrets, records              one task each
//!        |  observed
//!        v
//!     owner of the index  -- desired (newest per key) -->  session of node A, B, ...
//!        ^  what has node A to do with this?
//!        |
//!     worker of node A    <-- requests, acknowledgements -- session of node A       one task per attached node
//!        |
//!        v
//!     budget --> Kubernetes API <-- leader only: approver of certificates, sweeper of records
//! ```

mod csr;
pub mod edge;
mod sync;

pub use edge::{Acked, Answer, Attach, Attached, Config, Controllers, Hands};
