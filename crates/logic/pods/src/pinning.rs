//! Which CPUs and memory banks containers have to themselves.
//!
//! A container of a guaranteed pod that asks for whole CPUs gets them alone ([`Cpus`]); with a policy for memory it gets
//! its memory from banks that are counted ([`Memory`]); and a policy for the topology sees to it that CPUs, memory and
//! devices of one container, or of one pod, lie together ([`Alignment`]). What the machine looks like is data that is
//! handed in ([`Topology`]), and so is what a former life of the agent left behind.
//!
//! ```text
//!   Topology --> Cpus, Memory --- hints --+
//!                  ^                      +--> Alignment --> Affinity, or the pod is refused
//!   devices' hints | ---------------------+        |
//!                  +------- take <-----------------+
//! ```
//!
//! A bank is what the kernel calls a NUMA node: some memory and the CPUs that are near to it.

mod align;
mod choose;
mod cpus;
mod distribute;
mod set;
mod topology;

#[cfg(test)]
mod tests;

pub use align::{Alignment, Banks, Hint, Hints, Policy, Scope, device_hints};
pub use cpus::{Assigned, CpuOptions, CpuReserve, CpuTrouble, Cpus};
pub use set::{CpuSet, NotACpuSet};
pub use topology::{BANKS_MAX, Processor, Topology};

use crate::{Refusal, qos};
use kedge_api::{Container, Pod};

/// Why a node cannot give a pod what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortage {
    /// It asks for CPUs that make up no whole cores.
    PartOfCore {
        requested: usize,
        threads_per_core: usize,
    },
    /// There are not so many whole cores.
    TooFewCores {
        requested: usize,
        available: usize,
        threads_per_core: usize,
    },
    TooFewCpus {
        requested: usize,
        available: usize,
    },
    /// What it asks for does not lie together as the node's policy wants.
    Apart,
}

impl Shortage {
    /// In a kubelet's words, by which those who make pods know it.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::PartOfCore {
                requested,
                threads_per_core,
            } => Refusal::new(
                "SMTAlignmentError",
                format!(
                    "SMT Alignment Error: requested {requested} cpus not multiple cpus per core = {threads_per_core}"
                ),
            ),
            Self::TooFewCores {
                requested,
                available,
                threads_per_core,
            } => Refusal::new(
                "SMTAlignmentError",
                format!(
                    "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = {requested}, CPUs per core = {threads_per_core}"
                ),
            ),
            Self::TooFewCpus { requested, available } => unexpected(&format!(
                "not enough cpus available to satisfy request: requested={requested}, available={available}"
            )),
            Self::Apart => Refusal::new(
                "TopologyAffinityError",
                "Resources cannot be allocated with Topology locality",
            ),
        }
    }

    /// Whether it may be over as soon as another pod has gone.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::PartOfCore { .. } => false,
            Self::TooFewCores { .. } | Self::TooFewCpus { .. } | Self::Apart => true,
        }
    }
}

/// What a kubelet says of everything that has no reason of its own.
fn unexpected(why: &str) -> Refusal {
    let message = format!("Allocate failed due to {why}, which is unexpected");
    Refusal::new("UnexpectedAdmissionError", message)
}

/// The containers of a pod that get something of their own, in the order in which they get it; with each whether it has
/// ended before the next begins, so that those behind it may have what it had.
pub fn in_turn(pod: &Pod) -> impl Iterator<Item = (&Container, bool)> {
    let init = pod.spec.init_containers.iter();
    let init = init.map(|container| (container, !qos::is_sidecar(container)));
    init.chain(pod.spec.containers.iter().map(|container| (container, false)))
}
