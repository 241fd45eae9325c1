//! What must happen to the containers of this node: one pod worker per pod UID.
//!
//! **Duty.** From the desired pods, what the runtime shows, the results of earlier actions and the time, decide the
//! next action of every pod and compute the status that the cloud is told ([`Pods`]). And translate a pod into what a
//! runtime understands ([`translate`]).
//!
//! **Inputs.** `handle_*`: pods that the cloud desires and static pods of files, observations, outcomes, probe results,
//! evictions, releases, facts of the node, the link coming up; each with `now`.
//! **Outputs.** [`Effect`]s by [`Pods::poll_effect`], and the moment to wake by [`Pods::poll_timeout`].
//!
//! **Never.** No tokio, no clock, no files, no runtime. It restarts nothing that it was not told about: after a restart
//! the runtime's list is the truth, and containers whose pod UID, name and spec hash match are adopted, whichever agent
//! made them. What belongs to no pod goes only when all desired pods and all static ones have been told.
//!
//! ```text
//!   (new) --> held? --> admission --> devices --> volumes --> sandbox --> init containers, sidecars --> containers
//!               |           |                        ^           |                                       |
//!               |           +-> Failed, told why     +-----------+ the sandbox died        run, probe, restart with
//!               +-> waits for its release                                                  back-off; ephemeral ones
//!                                                                                                        |
//!   all ended for good, deadline, eviction: stop -> network down -> volumes removed; records and logs stay
//!   deletionTimestamp, or not desired any more: stop -> sandboxes removed -> volumes removed -> ReportDeleted
//! ```
//!
//! Devices stand for all that containers have to themselves; CPUs are the other part of it ([`pinning`]).
//!
//! A stop takes the main containers together, then the sidecars in reverse, all within one grace. At most one action of
//! a pod is under way (stopping faster is the exception), and a worker decides only on an observation that began after
//! its last action ended, so it never acts on the past.

mod action;
mod admission;
pub mod allocatable;
mod amounts;
mod backoff;
mod clock;
mod config;
pub mod eviction;
pub mod image_gc;
mod instances;
mod patch;
pub mod pinning;
mod pods;
mod probes;
mod qos;
pub mod shutdown;
mod static_pods;
mod status;
pub mod translate;
pub mod user_namespaces;
mod worker;

pub use action::{
    Action, Effect, EventReason, Eviction, ObservationId, Outcome, PodEvent, PodKey, PodSource, ProbeId,
    ProbeKind, ProbeResult, ProbeTarget, Refusal, Running, Stop, VolumesReady,
};
pub use config::{Amounts, Config, DeadContainers, Swap};
pub use pods::{Known, NodeFacts, Pods, Release};
pub use qos::{cgroup_parent, is_critical, qos_class};

#[cfg(test)]
mod tests;
