//! Which containers have CPUs to themselves, and what must lie together: the keys of a kubelet's managers.

use super::kubelet::{self, Reserved, at};
use crate::reader::Reader;
use std::time::Duration;

/// The keys of the managers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinning {
    /// `cpuManagerPolicy: static`; `None` is `none`.
    pub cpus: Option<CpuOptions>,
    pub topology: TopologyPolicy,
    /// `topologyManagerScope: pod`; else each container is looked at by itself.
    pub whole_pods: bool,
    /// `prefer-closest-numa-nodes` of `topologyManagerPolicyOptions`.
    pub prefer_closest: bool,
    /// `cpuManagerReconcilePeriod`: a container that could not be told where it runs is told again after this time.
    pub retry: Duration,
}

/// `cpuManagerPolicyOptions`, by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuOptions {
    pub full_pcpus_only: bool,
    pub distribute_cpus_across_numa: bool,
    pub align_by_socket: bool,
    pub distribute_cpus_across_cores: bool,
    pub strict_cpu_reservation: bool,
    pub prefer_align_cpus_by_uncorecache: bool,
}

/// `topologyManagerPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopologyPolicy {
    #[default]
    None,
    BestEffort,
    Restricted,
    SingleNumaNode,
}

/// Options that a kubelet of this release hides behind [`ALPHA_GATE`], and those behind [`BETA_GATE`], which is open.
const ALPHA: [&str; 5] = [
    "distribute-cpus-across-numa",
    "align-by-socket",
    "distribute-cpus-across-cores",
    "strict-cpu-reservation",
    "prefer-align-cpus-by-uncorecache",
];
const ALPHA_GATE: &str = "CPUManagerPolicyAlphaOptions";
const BETA_GATE: &str = "CPUManagerPolicyBetaOptions";
/// Gates that change something here.
pub(super) const GATES: [&str; 2] = [ALPHA_GATE, BETA_GATE];
/// A kubelet's own limit: all sets of banks are looked at.
const NUMA_NODES_MAX: u64 = 8;
const OPTIONS: &str = "cpuManagerPolicyOptions";

pub(super) fn read(r: &mut Reader, reserved: &Reserved, gates: &[(String, bool)]) -> Pinning {
    let is_static = r.word(&at("cpuManagerPolicy"), &[("none", false), ("static", true)]);
    let options = cpu_options(r, gates);
    if !is_static && options != CpuOptions::default() {
        r.mistake(&at(OPTIONS), "needs cpuManagerPolicy: static");
    }
    if is_static && !reserves_cpu(reserved) {
        r.mistake(
            &at("cpuManagerPolicy"),
            "static needs CPUs for the node itself: give reservedSystemCPUs, or cpu in kubeReserved or systemReserved",
        );
    }
    let topology = r.word(
        &at("topologyManagerPolicy"),
        &[
            ("none", TopologyPolicy::None),
            ("best-effort", TopologyPolicy::BestEffort),
            ("restricted", TopologyPolicy::Restricted),
            ("single-numa-node", TopologyPolicy::SingleNumaNode),
        ],
    );
    if options.align_by_socket && topology == TopologyPolicy::SingleNumaNode {
        r.mistake(
            &at(OPTIONS),
            "align-by-socket does not go with topologyManagerPolicy: single-numa-node",
        );
    }
    if r.word(&at("memoryManagerPolicy"), &[("None", false), ("Static", true)]) {
        r.without_effect(&at("memoryManagerPolicy"), kubelet::NOT_PINNED);
    }
    Pinning {
        cpus: is_static.then_some(options),
        topology,
        whole_pods: r.word(
            &at("topologyManagerScope"),
            &[("container", false), ("pod", true)],
        ),
        prefer_closest: topology_options(r),
        retry: kubelet::interval(r, "cpuManagerReconcilePeriod", 10),
    }
}

/// Something, be it a thousandth.
fn reserves_cpu(reserved: &Reserved) -> bool {
    let lists = reserved.system.iter().chain(&reserved.kube);
    let cpus = lists.filter(|(name, _)| name == "cpu");
    !reserved.cpus.is_empty() || cpus.map(|(_, amount)| amount.milli()).sum::<i64>() > 0
}

fn cpu_options(r: &mut Reader, gates: &[(String, bool)]) -> CpuOptions {
    let mut options = CpuOptions::default();
    for (name, on) in switches(r, OPTIONS) {
        let path = at(&format!("{OPTIONS}.{name}"));
        let option = match name.as_str() {
            "full-pcpus-only" => &mut options.full_pcpus_only,
            "distribute-cpus-across-numa" => &mut options.distribute_cpus_across_numa,
            "align-by-socket" => &mut options.align_by_socket,
            "distribute-cpus-across-cores" => &mut options.distribute_cpus_across_cores,
            "strict-cpu-reservation" => &mut options.strict_cpu_reservation,
            "prefer-align-cpus-by-uncorecache" => &mut options.prefer_align_cpus_by_uncorecache,
            _unknown => {
                r.mistake(
                    &path,
                    format!("is no option; there are full-pcpus-only, {}", ALPHA.join(", ")),
                );
                continue;
            }
        };
        let (gate, open) = if ALPHA.contains(&name.as_str()) {
            (ALPHA_GATE, false)
        } else {
            (BETA_GATE, true)
        };
        let said = gates.iter().find(|(known, _)| known == gate);
        if !said.map_or(open, |(_, open)| *open) {
            r.mistake(&path, format!("it takes the gate {gate}: true"));
        }
        *option = on;
    }
    let exclusive = [
        (options.full_pcpus_only, "full-pcpus-only"),
        (options.distribute_cpus_across_numa, "distribute-cpus-across-numa"),
        (
            options.prefer_align_cpus_by_uncorecache,
            "prefer-align-cpus-by-uncorecache",
        ),
    ];
    for (on, other) in exclusive {
        if on && options.distribute_cpus_across_cores {
            r.mistake(
                &at(OPTIONS),
                format!("{other} and distribute-cpus-across-cores exclude each other"),
            );
        }
    }
    if options.distribute_cpus_across_numa && options.prefer_align_cpus_by_uncorecache {
        let why = "distribute-cpus-across-numa and prefer-align-cpus-by-uncorecache exclude each other";
        r.mistake(&at(OPTIONS), why);
    }
    options
}

/// Whether banks that are closer to each other come first.
fn topology_options(r: &mut Reader) -> bool {
    const OPTIONS: &str = "topologyManagerPolicyOptions";
    let mut closest = false;
    for (name, value) in r.entries(&at(OPTIONS)) {
        let path = at(&format!("{OPTIONS}.{name}"));
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match name.as_str() {
            "prefer-closest-numa-nodes" => match switch(&text) {
                Some(on) => closest = on,
                None => r.mistake(&path, format!("true or false is expected, not {text:?}")),
            },
            "max-allowable-numa-nodes" if text.parse::<u64>().is_ok_and(|max| max <= NUMA_NODES_MAX) => {}
            "max-allowable-numa-nodes" => {
                r.mistake(&path, format!("a number up to {NUMA_NODES_MAX} is expected, not {text:?}: this version aligns upon no more"));
            }
            _unknown => {
                r.mistake(
                    &path,
                    "is no option; there are prefer-closest-numa-nodes and max-allowable-numa-nodes",
                );
            }
        }
    }
    closest
}

/// Names with true or false, which the official file writes as text.
fn switches(r: &mut Reader, key: &str) -> Vec<(String, bool)> {
    let mut switches = Vec::new();
    for (name, value) in r.entries(&at(key)) {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match switch(&text) {
            Some(on) => switches.push((name, on)),
            None => {
                let path = at(&format!("{key}.{name}"));
                r.mistake(&path, format!("true or false is expected, not {text:?}"));
            }
        }
    }
    switches
}

/// As Go reads it.
fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _other => None,
    }
}
