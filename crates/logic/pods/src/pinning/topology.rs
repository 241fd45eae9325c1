//! How the CPUs of a machine belong together.

use super::{Banks, CpuSet};
use std::collections::{BTreeMap, BTreeSet};

/// Banks that are aligned or distributed upon. All their combinations are looked at, and a kubelet takes no more either.
pub const BANKS_MAX: usize = 8;

/// One CPU, which is a thread of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    pub id: u32,
    /// The lowest CPU of its core: a name that no core of another socket has.
    pub core: u32,
    pub socket: u32,
    /// Its NUMA node.
    pub bank: u32,
    /// The lowest CPU among those that share its last cache.
    pub cache: u32,
}

/// What a CPU is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Core,
    Cache,
    Socket,
    Bank,
}

/// The CPUs that are online.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    cpus: BTreeMap<u32, Processor>,
    /// Of each bank to each, by their numbers; empty where the machine does not say.
    distances: BTreeMap<(u32, u32), u32>,
    /// Also those that have memory only.
    banks: BTreeSet<u32>,
}

impl Topology {
    pub fn new(cpus: impl IntoIterator<Item = Processor>) -> Self {
        let cpus: BTreeMap<u32, Processor> = cpus.into_iter().map(|cpu| (cpu.id, cpu)).collect();
        let banks = cpus.values().map(|cpu| cpu.bank).collect();
        Self {
            cpus,
            distances: BTreeMap::new(),
            banks,
        }
    }

    /// Names a bank that may have no CPUs, with how far each other is.
    #[must_use]
    pub fn with_bank(mut self, bank: u32, distances: &[(u32, u32)]) -> Self {
        self.banks.insert(bank);
        let from_here = distances.iter().map(|(to, far)| ((bank, *to), *far));
        self.distances.extend(from_here);
        self
    }

    /// All CPUs.
    pub fn all(&self) -> CpuSet {
        self.cpus.keys().copied().collect()
    }

    /// All banks, by their numbers.
    pub fn banks(&self) -> impl Iterator<Item = u32> {
        self.banks.iter().copied()
    }

    pub(super) fn every_bank(&self) -> Banks {
        self.banks().collect()
    }

    /// How far the banks are from each other, all in all.
    pub(super) fn spread(&self, banks: Banks) -> u64 {
        let far = |from: u32, to: u32| self.distances.get(&(from, to)).copied().unwrap_or(0);
        let pairs = banks
            .iter()
            .flat_map(|from| banks.iter().map(move |to| (from, to)));
        pairs.map(|(from, to)| u64::from(far(from, to))).sum()
    }

    pub(super) fn processor(&self, cpu: u32) -> Option<&Processor> {
        self.cpus.get(&cpu)
    }

    /// The groups of a level with the CPUs of each.
    pub(super) fn groups(&self, level: Level) -> BTreeMap<u32, CpuSet> {
        let mut groups: BTreeMap<u32, CpuSet> = BTreeMap::new();
        for cpu in self.cpus.values() {
            groups.entry(cpu.of(level)).or_default().add(cpu.id);
        }
        groups
    }

    pub(super) fn in_banks(&self, banks: Banks) -> CpuSet {
        let there = self.cpus.values().filter(|cpu| banks.contains(cpu.bank));
        there.map(|cpu| cpu.id).collect()
    }

    pub(super) fn sockets_of(&self, banks: Banks) -> BTreeSet<u32> {
        let there = self.cpus.values().filter(|cpu| banks.contains(cpu.bank));
        there.map(|cpu| cpu.socket).collect()
    }

    pub(super) fn in_sockets(&self, sockets: &BTreeSet<u32>) -> CpuSet {
        let there = self.cpus.values().filter(|cpu| sockets.contains(&cpu.socket));
        there.map(|cpu| cpu.id).collect()
    }

    /// With all threads of their cores.
    pub(super) fn whole_cores(&self, cpus: &CpuSet) -> CpuSet {
        let cores: BTreeSet<u32> = cpus
            .iter()
            .filter_map(|cpu| Some(self.cpus.get(&cpu)?.core))
            .collect();
        let there = self.cpus.values().filter(|cpu| cores.contains(&cpu.core));
        there.map(|cpu| cpu.id).collect()
    }

    pub(super) fn count(&self, level: Level) -> usize {
        self.groups(level).len()
    }

    /// Of the largest core, where they differ.
    pub(super) fn threads_per_core(&self) -> usize {
        self.groups(Level::Core)
            .values()
            .map(CpuSet::len)
            .max()
            .unwrap_or(1)
    }
}

impl Processor {
    pub(super) fn of(&self, level: Level) -> u32 {
        match level {
            Level::Core => self.core,
            Level::Cache => self.cache,
            Level::Socket => self.socket,
            Level::Bank => self.bank,
        }
    }
}
