//! CPUs that containers have to themselves, and those that all others share.

use super::align::hints_where;
use super::choose::{self, Manner};
use super::topology::{BANKS_MAX, Level, Topology};
use super::{Banks, CpuSet, Hint, Shortage, distribute, in_turn};
use crate::qos::{self, CPU};
use kedge_api::{Container, Pod, QosClass};
use std::collections::{BTreeMap, BTreeSet};

/// CPUs by pod UID and container.
pub type Assigned = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// `cpuManagerPolicyOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuOptions {
    /// `full-pcpus-only`: no two containers have threads of one core.
    pub full_cores: bool,
    /// `distribute-cpus-across-numa`: the same number from each bank, where one is not enough.
    pub distribute_banks: bool,
    /// `align-by-socket`: banks of one socket are as good as one bank.
    pub align_sockets: bool,
    /// `distribute-cpus-across-cores`: threads of different cores.
    pub spread_cores: bool,
    /// `strict-cpu-reservation`: those who share do not run on reserved CPUs.
    pub strict_reserve: bool,
    /// `prefer-align-cpus-by-uncorecache`: below one last cache, if possible.
    pub align_caches: bool,
}

/// What is never given to a container alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuReserve {
    These(CpuSet),
    /// The first so many.
    Count(usize),
}

/// Why CPUs cannot be divided so on this machine, or not as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuTrouble {
    NothingReserved,
    /// More than there are.
    ReservedMissing {
        reserved: CpuSet,
        there: CpuSet,
    },
    TooFewToReserve {
        wanted: usize,
        there: CpuSet,
    },
    TooManyBanks(usize),
    /// `align-by-socket` on a machine whose banks have several sockets.
    SocketsWithinBanks,
    /// What is remembered of a container cannot be so any more.
    Lost {
        uid: String,
        container: String,
        cpus: CpuSet,
        why: &'static str,
    },
}

impl std::fmt::Display for CpuTrouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NothingReserved => f.write_str(
                "the policy static needs CPUs for the node itself: give reservedSystemCPUs, or cpu in kubeReserved or systemReserved",
            ),
            Self::ReservedMissing { reserved, there } => {
                write!(f, "CPUs {reserved} are to be reserved, but this machine has {there}")
            }
            Self::TooFewToReserve { wanted, there } => {
                write!(f, "{wanted} CPUs are to be reserved, but this machine has {there}")
            }
            Self::TooManyBanks(banks) => write!(
                f,
                "this machine has {banks} NUMA nodes, and a policy for the topology or distribute-cpus-across-numa works with {BANKS_MAX} at most, numbered below 64"
            ),
            Self::SocketsWithinBanks => f.write_str(
                "align-by-socket does not go with a machine that has more sockets than NUMA nodes",
            ),
            Self::Lost {
                uid,
                container,
                cpus,
                why,
            } => write!(f, "container {container} of pod {uid} loses CPUs {cpus}: {why}"),
        }
    }
}

impl std::error::Error for CpuTrouble {}

/// Who has which CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus {
    topology: Topology,
    options: CpuOptions,
    reserved: CpuSet,
    /// Nobody's own; with the reserved ones, unless those are kept strictly.
    shared: CpuSet,
    assigned: Assigned,
}

impl Cpus {
    /// Everything is free.
    pub fn new(topology: Topology, options: CpuOptions, reserve: &CpuReserve) -> Result<Self, CpuTrouble> {
        let there = topology.all();
        let banks = topology.count(Level::Bank);
        if options.distribute_banks && banks > BANKS_MAX {
            return Err(CpuTrouble::TooManyBanks(banks));
        }
        if options.align_sockets && topology.count(Level::Socket) > banks {
            return Err(CpuTrouble::SocketsWithinBanks);
        }
        let reserved = match reserve {
            CpuReserve::These(cpus) if !cpus.is_subset(&there) => {
                let reserved = cpus.clone();
                return Err(CpuTrouble::ReservedMissing { reserved, there });
            }
            CpuReserve::These(cpus) => cpus.clone(),
            CpuReserve::Count(count) => {
                choose_by(&topology, options, &there, *count).ok_or(CpuTrouble::TooFewToReserve {
                    wanted: *count,
                    there: there.clone(),
                })?
            }
        };
        if reserved.is_empty() {
            return Err(CpuTrouble::NothingReserved);
        }
        let shared = if options.strict_reserve {
            there.without(&reserved)
        } else {
            there
        };
        Ok(Self {
            topology,
            options,
            reserved,
            shared,
            assigned: Assigned::new(),
        })
    }

    /// Takes over what a former life of the agent gave out. What cannot be so any more is left out, and said.
    pub fn restore(&mut self, assigned: Assigned) -> Vec<CpuTrouble> {
        let mut troubles = Vec::new();
        for (uid, containers) in assigned {
            let mut of_pod = CpuSet::default();
            for (container, cpus) in containers {
                let fault = if !cpus.is_subset(&self.topology.all()) {
                    Some("some of them are not there any more")
                } else if !cpus.common(&self.reserved).is_empty() {
                    Some("some of them are reserved now")
                } else if cpus.is_empty() || !cpus.is_subset(&self.shared.with(&of_pod)) {
                    Some("another pod has some of them")
                } else {
                    None
                };
                if let Some(why) = fault {
                    let uid = uid.clone();
                    troubles.push(CpuTrouble::Lost {
                        uid,
                        container,
                        cpus,
                        why,
                    });
                    continue;
                }
                self.shared = self.shared.without(&cpus);
                of_pod = of_pod.with(&cpus);
                let known = self.assigned.entry(uid.clone()).or_default();
                known.insert(container, cpus);
            }
        }
        troubles
    }

    /// What the next life must know.
    pub fn assigned(&self) -> &Assigned {
        &self.assigned
    }

    /// CPUs that nobody has to themselves, as they are remembered.
    pub fn shared(&self) -> &CpuSet {
        &self.shared
    }

    /// CPUs that nobody ever has to themselves.
    pub fn reserved(&self) -> &CpuSet {
        &self.reserved
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where a container runs. Those who share never run on somebody's own CPUs: where nothing else is left to them, they
    /// run on the reserved ones.
    pub fn of(&self, uid: &str, container: &str) -> &CpuSet {
        let own = self.assigned.get(uid).and_then(|pod| pod.get(container));
        own.unwrap_or(if self.shared.is_empty() {
            &self.reserved
        } else {
            &self.shared
        })
    }

    /// How many CPUs a container gets alone.
    pub fn wanted(pod: &Pod, container: &Container) -> usize {
        if qos::qos_class(pod) != QosClass::Guaranteed {
            return 0;
        }
        let milli = qos::request(&container.resources, CPU).map_or(0, kedge_api::Quantity::milli);
        if milli % 1000 == 0 {
            usize::try_from(milli / 1000).unwrap_or(0)
        } else {
            0
        }
    }

    /// How many a pod has alone at one time.
    fn wanted_by_pod(pod: &Pod) -> usize {
        let mains = pod.spec.containers.iter();
        let mains: usize = mains.map(|container| Self::wanted(pod, container)).sum();
        let (mut sidecars, mut peak) = (0, 0);
        for container in &pod.spec.init_containers {
            let own = Self::wanted(pod, container);
            peak = peak.max(sidecars + own);
            if qos::is_sidecar(container) {
                sidecars += own;
            }
        }
        peak.max(mains + sidecars)
    }

    /// Gives a container its CPUs, out of these banks if possible. True when something changed.
    pub fn take(&mut self, pod: &Pod, container: &Container, near: Option<Banks>) -> Result<bool, Shortage> {
        let count = Self::wanted(pod, container);
        let uid = pod.uid();
        let has = self
            .assigned
            .get(uid)
            .is_some_and(|of_pod| of_pod.contains_key(&container.name));
        if count == 0 || has {
            return Ok(false);
        }
        let reusable = self.reusable(pod, container);
        let free = self.free().with(&reusable);
        if self.options.full_cores {
            let threads_per_core = self.topology.threads_per_core();
            if !count.is_multiple_of(threads_per_core) {
                return Err(Shortage::PartOfCore {
                    requested: count,
                    threads_per_core,
                });
            }
            if count > free.len() {
                return Err(Shortage::TooFewCores {
                    requested: count,
                    available: free.len(),
                    threads_per_core,
                });
            }
        }
        let short = || Shortage::TooFewCpus {
            requested: count,
            available: free.len(),
        };
        let choose =
            |free: &CpuSet, count| choose_by(&self.topology, self.options, free, count).ok_or_else(short);
        let aligned = near.map_or_else(CpuSet::default, |banks| free.common(&self.near(banks)));
        let first = choose(&aligned, count.min(aligned.len()))?;
        let rest = choose(&free.without(&first), count - first.len())?;
        let cpus = first.with(&rest);
        self.shared = self.shared.without(&cpus);
        let of_pod = self.assigned.entry(uid.to_owned()).or_default();
        of_pod.insert(container.name.clone(), cpus);
        Ok(true)
    }

    /// A container does not get its CPUs after all.
    pub fn give_back(&mut self, uid: &str, container: &str) {
        let Some(mut of_pod) = self.assigned.remove(uid) else {
            return;
        };
        if let Some(cpus) = of_pod.remove(container) {
            let still = of_pod
                .values()
                .fold(CpuSet::default(), |all, cpus| all.with(cpus));
            self.shared = self.shared.with(&cpus.without(&still));
        }
        if !of_pod.is_empty() {
            self.assigned.insert(uid.to_owned(), of_pod);
        }
    }

    /// Only these pods go on. True when another one had CPUs.
    pub fn keep(&mut self, goes_on: impl Fn(&str) -> bool) -> bool {
        let gone: Vec<String> = self
            .assigned
            .keys()
            .filter(|uid| !goes_on(uid))
            .cloned()
            .collect();
        for uid in &gone {
            for cpus in self.assigned.remove(uid).unwrap_or_default().values() {
                self.shared = self.shared.with(cpus);
            }
        }
        !gone.is_empty()
    }

    /// From which banks the container's CPUs could come; `None` when it gets none alone.
    pub fn hints(&self, pod: &Pod, container: &Container) -> Option<Vec<Hint>> {
        let count = Self::wanted(pod, container);
        let own = self
            .assigned
            .get(pod.uid())
            .and_then(|of_pod| of_pod.get(&container.name));
        (count > 0).then(|| self.hints_for(count, own, &self.reusable(pod, container)))
    }

    /// The same for all containers of a pod.
    pub fn pod_hints(&self, pod: &Pod) -> Option<Vec<Hint>> {
        let count = Self::wanted_by_pod(pod);
        let own = self.assigned.get(pod.uid());
        let own = own.map(|of_pod| {
            of_pod
                .values()
                .fold(CpuSet::default(), |all, cpus| all.with(cpus))
        });
        (count > 0).then(|| self.hints_for(count, own.as_ref(), &CpuSet::default()))
    }

    fn hints_for(&self, count: usize, own: Option<&CpuSet>, reusable: &CpuSet) -> Vec<Hint> {
        let (free, must) = match own {
            Some(own) if own.len() != count => return Vec::new(),
            Some(own) => (own.clone(), CpuSet::default()),
            None => (self.free(), reusable.clone()),
        };
        let within = |cpus: &CpuSet, banks: Banks| cpus.common(&self.topology.in_banks(banks)).len() as u64;
        let everywhere = self.topology.every_bank();
        let mut hints = hints_where(
            everywhere,
            count as u64,
            |banks| self.topology.in_banks(banks).len() as u64,
            |banks| (within(&must, banks) == must.len() as u64).then(|| within(&free.with(&must), banks)),
        );
        if self.options.align_sockets {
            self.prefer_sockets(count, &mut hints);
        }
        hints
    }

    /// Banks of as few sockets as must be are as good as any.
    fn prefer_sockets(&self, count: usize, hints: &mut [Hint]) {
        let sockets = |hint: &Hint| self.topology.sockets_of(hint.banks.unwrap_or_default()).len();
        let per_socket = self.topology.groups(Level::Socket);
        let largest = per_socket.values().map(CpuSet::len).max().unwrap_or(1).max(1);
        let fewest = count.div_ceil(largest);
        for hint in hints {
            hint.preferred = sockets(hint) == fewest;
        }
    }

    /// The CPUs of these banks; of their sockets, where those count.
    fn near(&self, banks: Banks) -> CpuSet {
        if self.options.align_sockets {
            self.topology.in_sockets(&self.topology.sockets_of(banks))
        } else {
            self.topology.in_banks(banks)
        }
    }

    /// What a container may be given.
    fn free(&self) -> CpuSet {
        let kept = if self.options.full_cores {
            self.topology.whole_cores(&self.reserved)
        } else {
            self.reserved.clone()
        };
        self.shared.without(&kept)
    }

    /// What init containers of the pod had that have ended before this one begins, and nobody has since.
    fn reusable(&self, pod: &Pod, container: &Container) -> CpuSet {
        let of_pod = self.assigned.get(pod.uid());
        let mut reusable = CpuSet::default();
        for (before, ends) in in_turn(pod).take_while(|(before, _)| before.name != container.name) {
            let Some(cpus) = of_pod.and_then(|of_pod| of_pod.get(&before.name)) else {
                continue;
            };
            reusable = if ends {
                reusable.with(cpus)
            } else {
                reusable.without(cpus)
            };
        }
        reusable
    }

    /// Pods that have CPUs.
    pub fn pods(&self) -> BTreeSet<&str> {
        self.assigned.keys().map(String::as_str).collect()
    }
}

fn choose_by(topology: &Topology, options: CpuOptions, free: &CpuSet, count: usize) -> Option<CpuSet> {
    let manner = Manner {
        spread_cores: options.spread_cores,
        align_caches: options.align_caches,
    };
    if options.distribute_banks {
        let group = if options.full_cores {
            topology.threads_per_core()
        } else {
            1
        };
        distribute::distributed(topology, free, count, group, manner)
    } else {
        choose::packed(topology, free, count, manner)
    }
}
