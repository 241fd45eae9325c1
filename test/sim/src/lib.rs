//! A simulated world: one cloud, three edges, a lossy network, an API that changes. Everything grows from one seed.
//!
//! **Duty.** Drive the real `kedge-placement` and `kedge-link` through what happens to them in the field, and check
//! the delivery contract after every event.
//!
//! **Inputs.** A seed. **Outputs.** A [`Report`], or a [`Violation`] with the last events before it and the command
//! that replays it.
//!
//! **Never.** No real time, threads, sockets or files: a seed gives the same run on every machine.
//!
//! ```text
//!   Api --changes--> Cloud [ Placement, a CloudLink a session ]
//!                      |  Network: delay, cuts, half-open connections; order kept within a connection
//!        +-------------+--------------+
//!   edge-0: EdgeLink   edge-1: EdgeLink   edge-2: a model of the official edge
//!   Peer::Kedge        Peer::Official     (no memory of message ids, writes whatever it is told)
//!        each with a Store: orders in a queue, some fail, a crash loses what was not durable
//! ```
//!
//! What is checked: see [`checks`]. How long the world may take to agree once faults have stopped:
//! [`CONVERGENCE_MS_MAX`].

mod api;
mod chance;
pub mod checks;
mod cloud;
mod edge;
mod network;
mod store;
mod world;

pub use checks::Violation;
pub use world::{CONVERGENCE_MS_MAX, Report, run};
