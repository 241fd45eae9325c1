//! When the node runs out of something, which pod must go for it.
//!
//! [`Evictor`] is told what is left ([`Evictor::handle_observed`]) and answers which pressures the node shows, what is
//! starved, and which pod is the next to go. It measures nothing itself and evicts nobody.
//!
//! ```text
//!   observations --> thresholds met --(grace)--> starved --> node's own garbage first --> ranked pods --> one victim
//!                          |
//!                          +--> pressures, which last for the transition period after the last moment of need
//! ```
//!
//! Periods are counted in observed time: what passed between two observations counts for at most [`STEP_MAX`]. A clock
//! that jumps, or a machine that slept, therefore neither evicts a pod early nor keeps a pressure for years.

mod message;
mod rank;
mod signal;
mod storage;
#[cfg(test)]
mod tests;

pub use signal::{Amount, Pressure, Resource, Signal, Threshold, enforce_allocatable};

use crate::{PodKey, is_critical};
use kedge_api::Pod;
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// Observations come every ten seconds; a gap that is longer than this was no continuous need.
pub const STEP_MAX: Duration = Duration::from_secs(60);
/// A pod that must go at once still gets a moment for its last words, as with a kubelet.
pub const GRACE_IMMEDIATE: Duration = Duration::from_secs(1);

/// What the operator decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    pub thresholds: Vec<Threshold>,
    /// How long a pressure is shown after the last moment of need.
    pub transition: Duration,
    /// The most that a pod gets when a soft threshold evicts it.
    pub grace_max: Duration,
    /// Limits of local disk are kept.
    pub local_storage: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            thresholds: crate::allocatable::default_thresholds(),
            transition: Duration::from_secs(300),
            grace_max: Duration::ZERO,
            local_storage: true,
        }
    }
}

/// How much is left of how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

/// What was measured at one moment; what could not be measured is absent.
pub type Observations = BTreeMap<Signal, Observation>;

/// What one pod uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodUsage {
    pub uid: String,
    /// Memory that cannot be taken back without stopping something.
    pub memory_working_set: u64,
    pub pids: u64,
    pub containers: Vec<ContainerUsage>,
    /// Volumes on the node's own disk.
    pub volumes: Vec<VolumeUsage>,
}

/// What one container uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerUsage {
    pub name: String,
    pub memory_working_set: u64,
    /// What it wrote over its image.
    pub root: DiskUse,
    pub logs: DiskUse,
}

/// What one volume holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeUsage {
    pub name: String,
    pub disk: DiskUse,
}

/// Files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskUse {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::Add for DiskUse {
    type Output = Self;

    fn add(self, rhs: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(rhs.bytes),
            inodes: self.inodes.saturating_add(rhs.inodes),
        }
    }
}

impl std::iter::Sum for DiskUse {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| sum + part)
    }
}

/// The pressures that the node shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressures {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

impl Pressures {
    fn set(&mut self, pressure: Pressure) {
        match pressure {
            Pressure::Memory => self.memory = true,
            Pressure::Disk => self.disk = true,
            Pressure::Pid => self.pid = true,
        }
    }
}

/// What the node needs most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Starved {
    pub threshold: Threshold,
    /// The node's own garbage may be the cause: dead containers and unused images go before any pod.
    pub garbage_helps: bool,
}

/// The pod that goes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    pub uid: String,
    pub key: PodKey,
    pub message: String,
    pub grace: Duration,
}

/// The state of need of this node.
#[derive(Debug, Clone)]
pub struct Evictor {
    rules: Rules,
    /// Images and containers lie on a disk of their own.
    own_imagefs: bool,
    observations: Observations,
    /// Observed time so far, and the moment of the last observation.
    elapsed: Duration,
    last: Option<Time>,
    /// Thresholds met, by their place in the rules, and since when.
    met: BTreeMap<usize, Duration>,
    /// When each pressure was last needed.
    needed: BTreeMap<Pressure, Duration>,
}

impl Evictor {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            own_imagefs: false,
            observations: Observations::new(),
            elapsed: Duration::ZERO,
            last: None,
            met: BTreeMap::new(),
            needed: BTreeMap::new(),
        }
    }

    /// Whether images and containers lie on a disk of their own: cleaning there does not help the node's disk.
    pub fn handle_layout(&mut self, own_imagefs: bool) {
        self.own_imagefs = own_imagefs;
    }

    /// What is left now.
    pub fn handle_observed(&mut self, observations: Observations, now: Time) {
        let step = self.last.map_or(Duration::ZERO, |last| now.since(last));
        self.elapsed = self.elapsed.saturating_add(step.min(STEP_MAX));
        self.last = Some(now);
        self.observations = observations;
        let before = std::mem::take(&mut self.met);
        for (place, threshold) in self.rules.thresholds.iter().enumerate() {
            let since = before.get(&place);
            // One that was met is over only when the minimum reclaim has come back too.
            let is_met = self.is_met(threshold, false) || since.is_some() && self.is_met(threshold, true);
            if is_met {
                self.met.insert(place, since.copied().unwrap_or(self.elapsed));
                self.needed.insert(threshold.signal.pressure(), self.elapsed);
            }
        }
    }

    /// The pressures to show.
    pub fn pressures(&self) -> Pressures {
        let mut pressures = Pressures::default();
        let lasts = |at: &Duration| *at == self.elapsed || self.elapsed - *at < self.rules.transition;
        for (pressure, _) in self.needed.iter().filter(|(_, at)| lasts(at)) {
            pressures.set(*pressure);
        }
        pressures
    }

    /// What must be reclaimed now: memory before everything else, then in the order of the rules.
    pub fn starved(&self) -> Option<Starved> {
        let threshold = *self.starving().next()?;
        Some(Starved {
            threshold,
            garbage_helps: self.garbage_helps(threshold.signal),
        })
    }

    /// Whether all thresholds are satisfied, with what must be reclaimed at least.
    pub fn is_satisfied_by(&self, observations: &Observations) -> bool {
        let met = |threshold: &&Threshold| met_by(threshold, observations, true);
        !self.rules.thresholds.iter().any(|threshold| met(&threshold))
    }

    /// The pod that goes for what is starved; `None` when nothing is or nobody may go.
    pub fn choose(&self, pods: &[&Pod], usage: &[PodUsage]) -> Option<Victim> {
        let threshold = *self.starving().next()?;
        let usage: BTreeMap<&str, &PodUsage> =
            usage.iter().map(|usage| (usage.uid.as_str(), usage)).collect();
        let scope = self.scope(threshold.signal);
        let mut ranked = rank::candidates(pods, &usage, threshold.signal, scope);
        ranked.sort_by(rank::first_to_go);
        let first = ranked.into_iter().find(|candidate| !is_critical(candidate.pod))?;
        let usage = usage.get(first.pod.uid()).copied();
        Some(Victim {
            uid: first.pod.uid().to_owned(),
            key: PodKey::of(first.pod),
            message: message::starved(
                first.pod,
                usage,
                threshold.signal.resource(),
                self.met_amount(&threshold),
            ),
            grace: self.grace(first.pod, &threshold),
        })
    }

    /// Pods that hold more local disk than they may. Each goes at once.
    pub fn over_their_limits(&self, pods: &[&Pod], usage: &[PodUsage]) -> Vec<Victim> {
        if !self.rules.local_storage {
            return Vec::new();
        }
        let judged = pods.iter().filter(|pod| !is_critical(pod)).filter_map(|pod| {
            let usage = usage.iter().find(|usage| usage.uid == pod.uid())?;
            let message = storage::excess(pod, usage, self.own_imagefs)?;
            Some(Victim {
                uid: pod.uid().to_owned(),
                key: PodKey::of(pod),
                message,
                grace: GRACE_IMMEDIATE,
            })
        });
        judged.collect()
    }

    /// Whether the pod has a limit of local disk, so that somebody must measure it.
    pub fn has_storage_limit(&self, pod: &Pod) -> bool {
        self.rules.local_storage && !is_critical(pod) && storage::is_limited(pod)
    }

    fn is_met(&self, threshold: &Threshold, with_reclaim: bool) -> bool {
        met_by(threshold, &self.observations, with_reclaim)
    }

    /// Thresholds that are met for their grace period, the most urgent first.
    fn starving(&self) -> impl Iterator<Item = &Threshold> {
        let due = self.met.iter().filter_map(|(place, since)| {
            let threshold = self.rules.thresholds.get(*place)?;
            (self.elapsed.saturating_sub(*since) >= threshold.grace).then_some(threshold)
        });
        let mut due: Vec<&Threshold> = due.collect();
        due.sort_by_key(|threshold| threshold.signal.resource() != Resource::Memory);
        due.into_iter()
    }

    fn garbage_helps(&self, signal: Signal) -> bool {
        match signal {
            Signal::ImagefsAvailable | Signal::ImagefsInodesFree => true,
            Signal::NodefsAvailable | Signal::NodefsInodesFree => !self.own_imagefs,
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable | Signal::PidAvailable => false,
        }
    }

    /// Which of a pod's files count.
    fn scope(&self, signal: Signal) -> rank::Scope {
        let (root, rest) = match signal {
            _any if !self.own_imagefs => (true, true),
            Signal::ImagefsAvailable | Signal::ImagefsInodesFree => (true, false),
            Signal::NodefsAvailable
            | Signal::NodefsInodesFree
            | Signal::MemoryAvailable
            | Signal::AllocatableMemoryAvailable
            | Signal::PidAvailable => (false, true),
        };
        rank::Scope { root, rest }
    }

    fn met_amount(&self, threshold: &Threshold) -> Option<message::Met> {
        let observed = self.observations.get(&threshold.signal)?;
        Some(message::Met {
            threshold: *threshold,
            observed: *observed,
        })
    }

    fn grace(&self, pod: &Pod, threshold: &Threshold) -> Duration {
        if threshold.is_hard() {
            return GRACE_IMMEDIATE;
        }
        let own = pod
            .spec
            .termination_grace_period_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.rules.grace_max, Duration::from_secs);
        self.rules.grace_max.min(own).max(GRACE_IMMEDIATE)
    }
}

fn met_by(threshold: &Threshold, observations: &Observations, with_reclaim: bool) -> bool {
    observations.get(&threshold.signal).is_some_and(|observed| {
        let mut wanted = threshold.amount.of(observed.capacity);
        if with_reclaim && let Some(reclaim) = threshold.reclaim_min {
            wanted = wanted.saturating_add(reclaim.of(observed.capacity));
        }
        observed.available < wanted
    })
}
