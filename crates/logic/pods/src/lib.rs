//! What must happen to the containers of this node: one pod worker per pod UID.
//!
//! **Duty.** From the desired pods, what the runtime shows, the results of earlier actions and the time, decide the
//! next action of every pod and compute the status that the cloud is told ([`Pods`]). And translate a pod into what a
//! runtime understands ([`translate`]).
//!
//! **Inputs.** `handle_*`: desired pods, observations, outcomes, probe results, the link coming up; each with `now`.
//! **Outputs.** [`Effect`]s by [`Pods::poll_effect`], and the moment to wake by [`Pods::poll_timeout`].
//!
//! **Never.** No tokio, no clock, no files, no runtime. It restarts nothing that it was not told about: after a restart
//! the runtime's list is the truth, and containers whose pod UID, name and spec hash match are adopted.
//!
//! ```text
//!            desired                      observed running
//!   (new) ----------> volumes -> sandbox -> init containers -> containers -+-> run, probe, restart with back-off
//!                        ^          |                                      |
//!                        +----------+ the sandbox died                     | all ended for good
//!                                                                          v
//!   deletionTimestamp, or not desired any more: stop -> sandbox removed -> volumes removed -> ReportDeleted
//! ```
//!
//! At most one action of a pod is under way (stopping faster is the exception), and a worker decides only on an
//! observation that began after its last action ended, so it never acts on the past.

mod action;
mod admission;
mod backoff;
mod config;
mod instances;
mod patch;
mod pods;
mod probes;
mod qos;
mod status;
pub mod translate;
mod worker;

pub use action::{
    Action, Effect, EventReason, ObservationId, Outcome, PodEvent, PodKey, ProbeId, ProbeKind, ProbeResult,
    ProbeTarget, Refusal, VolumesReady,
};
pub use config::{Capacity, Config};
pub use pods::Pods;
pub use qos::{cgroup_parent, qos_class};

#[cfg(test)]
mod tests;
