//! A simulated world: three clouds over one API, three edges, a lossy network. Everything grows from one seed.
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
//!   Api: objects, their history, ObjectSyncs, statuses; refuses writes at times; survives everything
//!    | watches, some of them late
//!   replica 0        replica 1        replica 2      each: Placement, a CloudLink a session; dies with all it knew
//!    |  Network: delay, cuts, half-open connections; order kept within a connection; an edge dials any replica
//!   edge-0: EdgeLink   edge-1: EdgeLink   edge-2: a model of the official edge
//!   Peer::Kedge        Peer::Official     (no memory of message ids, writes whatever it is told)
//!        each with a Store: orders in a queue, some fail, a crash loses what was not durable; and a clock that leaps
//! ```
//!
//! In four of five worlds the clouds record as ObjectSyncs what the official edges acknowledge, and read it when such an
//! edge comes; in the others an official edge may keep what its new cloud cannot know of.
//!
//! What is checked: see [`checks`]. How long the world may take to agree once faults have stopped:
//! [`CONVERGENCE_MS_MAX`].

mod api;
mod chance;
pub mod checks;
mod clock;
mod cloud;
mod edge;
mod network;
mod store;
mod world;

pub use checks::Violation;
pub use world::{CONVERGENCE_MS_MAX, Report, run, run_and_trace};
