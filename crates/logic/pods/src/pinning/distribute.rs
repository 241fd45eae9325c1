//! CPUs of a container that needs several banks, the same number from each.

use super::choose::{self, Manner};
use super::topology::{Level, Topology};
use super::{Banks, CpuSet};
use std::collections::BTreeMap;

/// How a number of CPUs is divided.
struct Division {
    each: usize,
    banks: Banks,
    /// These give one group more.
    more: Banks,
}

/// As few banks as possible, as even as possible; of several ways the one that leaves the banks most alike. `group` CPUs
/// are not divided. What cannot be divided so is packed.
pub(super) fn distributed(
    topology: &Topology,
    free: &CpuSet,
    count: usize,
    group: usize,
    manner: Manner,
) -> Option<CpuSet> {
    let pack = || choose::packed(topology, free, count, manner);
    if count == 0 || !count.is_multiple_of(group) {
        return pack();
    }
    let by_bank: BTreeMap<u32, CpuSet> = topology
        .groups(Level::Bank)
        .into_iter()
        .map(|(bank, cpus)| (bank, cpus.common(free)))
        .collect();
    let Some(division) = divide(&by_bank, count, group) else {
        return pack();
    };
    let mut taken = CpuSet::default();
    for bank in division.banks.iter() {
        let more = if division.more.contains(bank) { group } else { 0 };
        let there = by_bank.get(&bank)?;
        taken = taken.with(&choose::packed(topology, there, division.each + more, manner)?);
    }
    Some(taken)
}

fn divide(by_bank: &BTreeMap<u32, CpuSet>, count: usize, group: usize) -> Option<Division> {
    let free: BTreeMap<u32, usize> = by_bank.iter().map(|(bank, cpus)| (*bank, cpus.len())).collect();
    let all: Banks = free.keys().copied().collect();
    let mut combinations = all.combinations();
    combinations.sort_by_key(|banks| (banks.len(), *banks));
    let mut best: Option<(u128, Division)> = None;
    for banks in combinations {
        if best
            .as_ref()
            .is_some_and(|(_, found)| found.banks.len() < banks.len())
        {
            break;
        }
        let each = count / banks.len() / group * group;
        let groups_left = (count - each * banks.len()) / group;
        for more in [Banks::default()].into_iter().chain(banks.combinations()) {
            if more.len() != groups_left {
                continue;
            }
            let given = |bank: u32| match (banks.contains(bank), more.contains(bank)) {
                (true, true) => each + group,
                (true, false) => each,
                (false, _) => 0,
            };
            if free.iter().any(|(bank, free)| *free < given(*bank)) {
                continue;
            }
            let left = free.iter().map(|(bank, free)| free - given(*bank));
            let unlike = unlikeness(&left.collect::<Vec<_>>());
            if best.as_ref().is_none_or(|(least, _)| unlike < *least) {
                best = Some((unlike, Division { each, banks, more }));
            }
        }
    }
    best.map(|(_, division)| division)
}

/// Grows with the differences between the numbers: their number squared, times their variance.
fn unlikeness(numbers: &[usize]) -> u128 {
    let sum: u128 = numbers.iter().map(|n| *n as u128).sum();
    let squares: u128 = numbers.iter().map(|n| (*n as u128).pow(2)).sum();
    squares * numbers.len() as u128 - sum * sum
}
