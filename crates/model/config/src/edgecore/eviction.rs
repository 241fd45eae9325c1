//! When pods are put off the node: `evictionHard`, `evictionSoft` and what belongs to them.

use super::kubelet::at;
use crate::parse_go_duration;
use crate::reader::Reader;
use kedge_api::Quantity;
use std::time::Duration;

/// What makes the node put off pods.
#[derive(Debug, Clone, PartialEq)]
pub struct Eviction {
    /// Pods end at once.
    pub hard: Vec<Threshold>,
    /// Pods end with grace when the threshold was met for a while.
    pub soft: Vec<SoftThreshold>,
    /// `evictionMinimumReclaim`: how far beyond a threshold to go.
    pub reclaim_min: Vec<(Signal, Amount)>,
    /// `evictionPressureTransitionPeriod`: how long a pressure condition stays after the pressure has gone.
    pub pressure_transition: Duration,
    /// `evictionMaxPodGracePeriod`.
    pub pod_grace_max: Duration,
}

/// A line that is crossed downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
}

/// A threshold with `evictionSoftGracePeriod`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftThreshold {
    pub threshold: Threshold,
    pub grace: Duration,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    NodeFsAvailable,
    NodeFsInodesFree,
    ImageFsAvailable,
    ImageFsInodesFree,
    ContainerFsAvailable,
    ContainerFsInodesFree,
    PidAvailable,
    AllocatableMemoryAvailable,
}

/// How much must be left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or process ids.
    Units(u64),
    /// Of the capacity, from 0 to 1.
    Share(f64),
}

impl Signal {
    const ALL: [Self; 9] = [
        Self::MemoryAvailable,
        Self::NodeFsAvailable,
        Self::NodeFsInodesFree,
        Self::ImageFsAvailable,
        Self::ImageFsInodesFree,
        Self::ContainerFsAvailable,
        Self::ContainerFsInodesFree,
        Self::PidAvailable,
        Self::AllocatableMemoryAvailable,
    ];

    /// As in the file and in messages of a kubelet.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::ContainerFsAvailable => "containerfs.available",
            Self::ContainerFsInodesFree => "containerfs.inodesFree",
            Self::PidAvailable => "pid.available",
            Self::AllocatableMemoryAvailable => "allocatableMemory.available",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }
}

const HARD: [(&str, &str); 5] = [
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
];

pub(super) fn read(r: &mut Reader) -> Eviction {
    let grace = r.number(
        &at("evictionMaxPodGracePeriod"),
        0,
        0,
        u64::from(i32::MAX.unsigned_abs()),
    );
    Eviction {
        hard: hard(r),
        soft: soft(r),
        reclaim_min: amounts(r, "evictionMinimumReclaim", &[])
            .into_iter()
            .filter_map(|(signal, amount)| Some((signal, amount?)))
            .collect(),
        pressure_transition: r.go_duration(&at("evictionPressureTransitionPeriod"), Duration::from_secs(300)),
        pod_grace_max: Duration::from_secs(grace),
    }
}

/// The official reader lays the file's thresholds over the defaults, each by itself.
fn hard(r: &mut Reader) -> Vec<Threshold> {
    let thresholds = amounts(r, "evictionHard", &HARD).into_iter();
    let thresholds = thresholds.filter_map(|(signal, amount)| {
        Some(Threshold {
            signal,
            amount: amount?,
        })
    });
    thresholds.collect()
}

fn soft(r: &mut Reader) -> Vec<SoftThreshold> {
    let path = at("evictionSoftGracePeriod");
    let mut graces = Vec::new();
    for (name, text) in r.text_map(&path) {
        let path = format!("{path}.{name}");
        match (Signal::parse(&name), parse_go_duration(&text)) {
            (None, _) => unknown(r, &path),
            (Some(_), None) => r.mistake(&path, format!("a duration such as 90s is expected, not {text:?}")),
            (Some(signal), Some(grace)) => graces.push((signal, grace)),
        }
    }
    let mut thresholds = Vec::new();
    for (signal, amount) in amounts(r, "evictionSoft", &[]) {
        let Some(amount) = amount else { continue };
        let threshold = Threshold { signal, amount };
        match graces.iter().find(|(known, _)| *known == signal) {
            Some((_, grace)) => thresholds.push(SoftThreshold {
                threshold,
                grace: *grace,
            }),
            None => r.mistake(
                &format!("{}.{}", at("evictionSoft"), signal.name()),
                "a soft threshold needs its time in evictionSoftGracePeriod",
            ),
        }
    }
    thresholds
}

/// Amounts by signal; `None` where 0 % or 100 % switches the threshold off.
fn amounts(r: &mut Reader, key: &str, defaults: &[(&str, &str)]) -> Vec<(Signal, Option<Amount>)> {
    let path = at(key);
    let mut texts: Vec<(String, String)> = defaults
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    for (name, text) in r.text_map(&path) {
        texts.retain(|(known, _)| *known != name);
        texts.push((name, text));
    }
    let mut amounts = Vec::new();
    for (name, text) in texts {
        let path = format!("{path}.{name}");
        match (Signal::parse(&name), amount(&text)) {
            (None, _) => unknown(r, &path),
            (Some(_), Err(())) => r.mistake(
                &path,
                format!("a size such as 100Mi or a share such as 10% is expected, not {text:?}"),
            ),
            (Some(signal), Ok(amount)) => amounts.push((signal, amount)),
        }
    }
    amounts.sort_by_key(|(signal, _)| *signal);
    amounts
}

fn unknown(r: &mut Reader, path: &str) {
    let known: Vec<&str> = Signal::ALL.into_iter().map(Signal::name).collect();
    r.mistake(
        path,
        format!("is no eviction signal; there are {}", known.join(", ")),
    );
}

fn amount(text: &str) -> Result<Option<Amount>, ()> {
    if let Some(number) = text.strip_suffix('%') {
        let percent: f64 = number.parse().map_err(|_| ())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(());
        }
        let share = percent > 0.0 && percent < 100.0;
        return Ok(share.then_some(Amount::Share(percent / 100.0)));
    }
    let units = Quantity::parse(text).map_err(|_| ())?.units();
    u64::try_from(units).map(Amount::Units).map(Some).map_err(|_| ())
}
