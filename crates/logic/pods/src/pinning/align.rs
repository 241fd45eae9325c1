//! What belongs together shall lie together: everyone who gives something to a container says from which banks it could,
//! and the policy of the node chooses.

use super::{Shortage, Topology};
use std::collections::{BTreeMap, BTreeSet};

/// Banks by their numbers, 63 at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Banks(u64);

impl Banks {
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, bank: u32) -> bool {
        bank < u64::BITS && self.0 & (1 << bank) != 0
    }

    /// Ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |bank| self.contains(*bank))
    }

    /// Whether every bank is one of the others as well.
    pub fn is_subset(self, others: Self) -> bool {
        self.0 & others.0 == self.0
    }

    #[must_use]
    pub fn common(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// All sets of one and more of these banks.
    pub fn combinations(self) -> Vec<Self> {
        let banks: Vec<u32> = self.iter().collect();
        let some = |chosen: u64| {
            let of = banks.iter().enumerate();
            of.filter(|(place, _)| chosen & (1 << place) != 0)
                .map(|(_, bank)| *bank)
                .collect()
        };
        (1..1_u64 << banks.len()).map(some).collect()
    }
}

impl FromIterator<u32> for Banks {
    fn from_iter<T: IntoIterator<Item = u32>>(banks: T) -> Self {
        let small = banks.into_iter().filter(|bank| *bank < u64::BITS);
        Self(small.fold(0, |all, bank| all | 1 << bank))
    }
}

impl std::fmt::Display for Banks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let banks: Vec<String> = self.iter().map(|bank| bank.to_string()).collect();
        f.write_str(&banks.join(","))
    }
}

/// From where one thing could come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    /// `None`: it does not matter.
    pub banks: Option<Banks>,
    /// With as few banks as the machine allows for so much.
    pub preferred: bool,
}

/// What a container asks for, and from where each could come. No hint at all: from nowhere.
pub type Hints = BTreeMap<String, Vec<Hint>>;

/// `topologyManagerPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Everyone chooses for themselves.
    #[default]
    None,
    /// Together if possible.
    BestEffort,
    /// From as few banks as each thing by itself, or not at all.
    Restricted,
    /// From one bank, or not at all.
    SingleNumaNode,
}

/// `topologyManagerScope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Each container by itself.
    #[default]
    Container,
    /// All containers of a pod together.
    Pod,
}

/// How the node aligns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Alignment {
    pub policy: Policy,
    pub scope: Scope,
    /// Of as many banks those that are closer to each other.
    pub prefer_closest: bool,
}

impl Alignment {
    /// The banks to take from; `None`: wherever it is.
    pub fn choose(&self, topology: &Topology, hints: &[Hints]) -> Result<Option<Banks>, Shortage> {
        let best = match self.policy {
            Policy::None => return Ok(None),
            Policy::BestEffort | Policy::Restricted => self.merge(topology, &with_defaults(hints)),
            Policy::SingleNumaNode => {
                let mut hints = with_defaults(hints);
                for list in &mut hints {
                    list.retain(|hint| hint.preferred && hint.banks.is_none_or(|banks| banks.len() == 1));
                }
                let best = self.merge(topology, &hints);
                let anywhere = best.banks == Some(topology.every_bank());
                Hint {
                    banks: best.banks.filter(|_| !anywhere),
                    ..best
                }
            }
        };
        match self.policy {
            Policy::Restricted | Policy::SingleNumaNode if !best.preferred => Err(Shortage::Apart),
            Policy::None | Policy::BestEffort | Policy::Restricted | Policy::SingleNumaNode => Ok(best.banks),
        }
    }

    /// The best that everyone can agree upon. Instead of all combinations of everyone's hints only those that differ in
    /// what they lead to are kept.
    fn merge(&self, topology: &Topology, lists: &[Vec<Hint>]) -> Hint {
        let everywhere = topology.every_bank();
        let mut reached = BTreeSet::from([(everywhere, true)]);
        for list in lists {
            let pairs = reached
                .iter()
                .flat_map(|at| list.iter().map(move |hint| (*at, *hint)));
            reached = pairs
                .map(|((banks, preferred), hint)| {
                    (
                        banks.common(hint.banks.unwrap_or(everywhere)),
                        preferred && hint.preferred,
                    )
                })
                .collect();
        }
        let fewest_possible = fewest(lists);
        let place = |(banks, preferred): &(Banks, bool)| {
            let count = banks.len();
            // What nobody prefers shall at least be as wide as the widest must be, rather than squeezed together.
            let off = match (preferred, count.cmp(&fewest_possible)) {
                (true, _) | (false, std::cmp::Ordering::Equal) => (0, 0),
                (false, std::cmp::Ordering::Less) => (1, fewest_possible - count),
                (false, std::cmp::Ordering::Greater) => (2, count - fewest_possible),
            };
            let width = if *preferred { count } else { 0 };
            let far = if self.prefer_closest {
                topology.spread(*banks)
            } else {
                0
            };
            (!preferred, off, width, far, *banks)
        };
        let possible = reached.into_iter().filter(|(banks, _)| !banks.is_empty());
        let best = possible.min_by_key(place).unwrap_or((everywhere, false));
        Hint {
            banks: Some(best.0),
            preferred: best.1,
        }
    }
}

/// Of each thing the fewest banks that it could come from; of these the most.
fn fewest(lists: &[Vec<Hint>]) -> usize {
    let of_each = lists
        .iter()
        .filter_map(|list| list.iter().filter_map(|hint| hint.banks).map(Banks::len).min());
    of_each.max().unwrap_or(0)
}

/// Who can give from nowhere is asked nothing more, but it is not what was wished for.
fn with_defaults(hints: &[Hints]) -> Vec<Vec<Hint>> {
    let nowhere = Hint {
        banks: None,
        preferred: false,
    };
    let lists = hints.iter().flat_map(BTreeMap::values);
    lists
        .map(|list| {
            if list.is_empty() {
                vec![nowhere]
            } else {
                list.clone()
            }
        })
        .collect()
}

/// Every set of banks with enough of something, by those that have the fewest banks on this machine. `whole` is how much
/// the banks have at all, `free` how much of it can be given.
pub(super) fn hints_where(
    everywhere: Banks,
    wanted: u64,
    whole: impl Fn(Banks) -> u64,
    free: impl Fn(Banks) -> Option<u64>,
) -> Vec<Hint> {
    let all = everywhere.combinations();
    let large_enough = all.iter().filter(|banks| whole(**banks) >= wanted);
    let fewest = large_enough
        .map(|banks| banks.len())
        .min()
        .unwrap_or(everywhere.len());
    let possible = all
        .into_iter()
        .filter(|banks| free(*banks).is_some_and(|free| free >= wanted));
    possible
        .map(|banks| Hint {
            banks: Some(banks),
            preferred: banks.len() == fewest,
        })
        .collect()
}

/// Hints for `wanted` devices of a kind. Each device is the banks that it belongs to; `must` are those that a container
/// before had and has to go on with.
pub fn device_hints(
    topology: &Topology,
    wanted: usize,
    all: &[Banks],
    free: &[Banks],
    must: &[Banks],
) -> Vec<Hint> {
    let near = |devices: &[Banks], banks: Banks| {
        let near = devices.iter().filter(|device| !device.common(banks).is_empty());
        near.count() as u64
    };
    hints_where(
        topology.every_bank(),
        wanted as u64,
        |banks| near(all, banks),
        |banks| (near(must, banks) == must.len() as u64).then(|| near(must, banks) + near(free, banks)),
    )
}
