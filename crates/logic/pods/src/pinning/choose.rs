//! Which of the free CPUs a container gets: together, and where the least is left free.

use super::CpuSet;
use super::topology::{Level, Processor, Topology};
use std::collections::BTreeMap;

/// How CPUs are chosen within a bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Manner {
    /// One thread of many cores rather than all of few.
    pub(super) spread_cores: bool,
    /// Together below one last cache rather than filling gaps.
    pub(super) align_caches: bool,
}

/// `count` of the free CPUs; `None` when there are not so many. What is large goes first: whole banks and sockets, whole
/// cores, then single threads where the fewest others are free.
pub(super) fn packed(topology: &Topology, free: &CpuSet, count: usize, manner: Manner) -> Option<CpuSet> {
    let mut taking = Taking::new(topology, free, count)?;
    for level in taking.large_first {
        taking.take_whole(level);
    }
    if manner.align_caches {
        taking.take_whole(Level::Cache);
        taking.take_below_one_cache();
    }
    if !manner.spread_cores {
        taking.take_whole(Level::Core);
    }
    taking.take_threads(manner.spread_cores);
    Some(taking.taken)
}

struct Taking<'a> {
    topology: &'a Topology,
    /// Sockets within banks, or banks within sockets.
    large_first: [Level; 2],
    free: CpuSet,
    taken: CpuSet,
    missing: usize,
}

/// Free CPUs of a group, and its number: less comes first.
type Fullness = (usize, u32);

impl<'a> Taking<'a> {
    fn new(topology: &'a Topology, free: &CpuSet, count: usize) -> Option<Self> {
        let free = free.common(&topology.all());
        let banks_are_larger = topology.count(Level::Socket) >= topology.count(Level::Bank);
        (free.len() >= count).then(|| Self {
            topology,
            large_first: if banks_are_larger {
                [Level::Bank, Level::Socket]
            } else {
                [Level::Socket, Level::Bank]
            },
            free,
            taken: CpuSet::default(),
            missing: count,
        })
    }

    fn take(&mut self, cpus: &CpuSet) {
        self.free = self.free.without(cpus);
        self.taken = self.taken.with(cpus);
        self.missing -= cpus.len();
    }

    /// How many are free in each group of a level.
    fn fullness(&self, level: Level) -> BTreeMap<u32, Fullness> {
        let groups = self.topology.groups(level);
        groups
            .into_iter()
            .map(|(group, cpus)| (group, (cpus.common(&self.free).len(), group)))
            .collect()
    }

    /// The free CPUs with the place of each in the order in which groups are filled.
    fn by_fullness(&self) -> Vec<([Fullness; 3], Processor)> {
        let [outer, inner] = self.large_first;
        let levels = [outer, inner, Level::Core].map(|level| (level, self.fullness(level)));
        let place = |cpu: &Processor| {
            levels
                .each_ref()
                .map(|(level, full)| full.get(&cpu.of(*level)).copied().unwrap_or_default())
        };
        let free = self.free.iter().filter_map(|cpu| self.topology.processor(cpu));
        let mut places: Vec<_> = free.map(|cpu| (place(cpu), *cpu)).collect();
        places.sort_by_key(|(place, cpu)| (*place, cpu.id));
        places
    }

    /// Every group that is free as a whole, as long as so many are missing.
    fn take_whole(&mut self, level: Level) {
        let groups = self.topology.groups(level);
        let mut order: Vec<u32> = Vec::new();
        for (_, cpu) in self.by_fullness() {
            if !order.contains(&cpu.of(level)) {
                order.push(cpu.of(level));
            }
        }
        for group in order {
            let Some(cpus) = groups.get(&group) else { continue };
            if cpus.is_subset(&self.free) && cpus.len() <= self.missing {
                self.take(cpus);
            }
        }
    }

    /// All that is missing, if there is a cache with so many; the fullest of these.
    fn take_below_one_cache(&mut self) {
        if self.missing == 0 {
            return;
        }
        let groups = self.topology.groups(Level::Cache);
        let fitting = groups.values().map(|cpus| cpus.common(&self.free));
        let fitting = fitting.filter(|free| free.len() >= self.missing);
        let Some(below) = fitting.min_by_key(CpuSet::len) else {
            return;
        };
        let chosen = packed(self.topology, &below, self.missing, Manner::default());
        if let Some(chosen) = chosen {
            self.take(&chosen);
        }
    }

    fn take_threads(&mut self, spread: bool) {
        let mut order = self.by_fullness();
        if spread {
            // The first free thread of every core, then the second of every one.
            let mut turns: BTreeMap<u32, usize> = BTreeMap::new();
            let mut in_turns: Vec<_> = Vec::new();
            order.sort_by_key(|(_, cpu)| cpu.id);
            for ([outer, inner, _], cpu) in order {
                let turn = turns.entry(cpu.core).or_default();
                in_turns.push((outer, inner, *turn, cpu.id));
                *turn += 1;
            }
            in_turns.sort_unstable();
            let chosen = in_turns.into_iter().map(|(_, _, _, cpu)| cpu);
            let chosen: CpuSet = chosen.take(self.missing).collect();
            return self.take(&chosen);
        }
        let chosen: CpuSet = order.iter().map(|(_, cpu)| cpu.id).take(self.missing).collect();
        self.take(&chosen);
    }
}
