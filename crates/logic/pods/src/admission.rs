//! Whether a new pod may run on the node.

use crate::eviction::Pressures;
use crate::static_pods;
use crate::translate::protocol;
use crate::{Amounts, Config, Refusal, amounts, is_critical, qos};
use kedge_api::{ContainerPort, Pod, QosClass, Taint, Toleration};
use kedge_containers::Protocol;
use std::collections::BTreeMap;

/// What stands before every refusal in a pod's status.
const REJECTED: &str = "Pod was rejected: ";
/// Kernel parameters that concern nobody but the pod.
const SYSCTLS_SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The node as admission sees it.
pub(crate) struct Node<'a> {
    pub(crate) config: &'a Config,
    pub(crate) allocatable: &'a Amounts,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) taints: &'a [Taint],
    pub(crate) pressures: Pressures,
}

/// Why a pod may not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Resources of which there is not enough, with what is lacking: evicting others may help.
    pub(crate) lacking: BTreeMap<String, i64>,
}

impl Rejection {
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
            lacking: BTreeMap::new(),
        }
    }

    /// As the pod's status tells it.
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal::new(&self.reason, format!("{REJECTED}{}", self.message))
    }
}

/// Judges a pod beside those that hold the node's resources already.
pub(crate) fn judge(node: &Node<'_>, pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
    under_pressure(pod, node.pressures)?;
    sysctls(node.config, pod)?;
    operating_system(pod)?;
    let lacking = resources(node, pod, others);
    let other_reasons = affinity(node, pod)
        .and_then(|()| ports(pod, others))
        .and_then(|()| taints(node, pod));
    match (lacking, other_reasons) {
        (None, result) => result,
        // Making room would not help a pod that does not belong here anyway.
        (Some(_), Err(rejection)) if is_critical(pod) => Err(rejection),
        (Some(rejection), _) => Err(rejection),
    }
}

fn under_pressure(pod: &Pod, pressures: Pressures) -> Result<(), Rejection> {
    let names = [
        (pressures.memory, "MemoryPressure"),
        (pressures.disk, "DiskPressure"),
        (pressures.pid, "PIDPressure"),
    ];
    let shown = names.into_iter().filter(|(shown, _)| *shown);
    let shown: Vec<&str> = shown.map(|(_, name)| name).collect();
    if shown.is_empty() || is_critical(pod) {
        return Ok(());
    }
    let taint = Taint {
        key: "node.kubernetes.io/memory-pressure".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let bears_it = || pod.spec.tolerations.iter().any(|t| tolerates(t, &taint));
    let only_memory = pressures.memory && shown.len() == 1;
    if only_memory && (qos::qos_class(pod) != QosClass::BestEffort || bears_it()) {
        return Ok(());
    }
    let message = format!("The node had condition: [{}]. ", shown.join(" "));
    Err(Rejection::new("Evicted", message))
}

/// A kernel parameter with points, whichever of the two spellings the pod has.
pub(crate) fn sysctl_name(name: &str) -> String {
    // `net/ipv4/conf/eth0.1/x` is the only spelling of a name that has a point of its own.
    match (name.find('/'), name.find('.')) {
        (Some(slash), point) if point.is_none_or(|point| slash < point) => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        (Some(_) | None, _) => name.to_owned(),
    }
}

fn sysctls(config: &Config, pod: &Pod) -> Result<(), Rejection> {
    let unsafe_allowed = |name: &str| {
        config
            .unsafe_sysctls
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == pattern,
            })
    };
    let context = pod.spec.security_context.iter();
    for sysctl in context.flat_map(|context| &context.sysctls) {
        let name = sysctl_name(&sysctl.name);
        let why = if pod.spec.host_network && name.starts_with("net.") {
            "not allowed with host net enabled"
        } else if pod.spec.host_ipc && is_ipc(&name) {
            "not allowed with host ipc enabled"
        } else if SYSCTLS_SAFE.contains(&name.as_str()) || unsafe_allowed(&name) {
            continue;
        } else {
            "not allowlisted"
        };
        let message = format!("forbidden sysctl: \"{}\" {why}", sysctl.name);
        return Err(Rejection::new("SysctlForbidden", message));
    }
    Ok(())
}

fn is_ipc(name: &str) -> bool {
    ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]
        .iter()
        .any(|start| name.starts_with(start))
}

fn operating_system(pod: &Pod) -> Result<(), Rejection> {
    const LABEL: &str = "kubernetes.io/os";
    if pod.metadata.labels.get(LABEL).is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Rejection::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    if pod.spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Rejection::new("PodOSNotSupported", message));
    }
    Ok(())
}

/// Whether a resource is one that device plug-ins or the operator added: its name has a domain that is not Kubernetes'.
pub(crate) fn is_extended(name: &str) -> bool {
    let domain = name.split_once('/').map(|(domain, _)| domain);
    domain.is_some_and(|domain| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
}

fn resources(node: &Node<'_>, pod: &Pod, others: &[&Pod]) -> Option<Rejection> {
    let asked = amounts::requests(pod);
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    for (name, amount) in others.iter().flat_map(|other| amounts::requests(other)) {
        amounts::add(&mut used, &name, amount);
    }
    let capacity = |name: &str| match node.allocatable.get(name) {
        Some(quantity) => Some(amounts::number(name, quantity)),
        None if name.starts_with(qos::HUGE_PAGES) => Some(0),
        None => None,
    };
    // In the order in which a kubelet looks; the first one is told.
    let order = |name: &str| match name {
        amounts::PODS => 0,
        qos::CPU => 1,
        qos::MEMORY => 2,
        "ephemeral-storage" => 3,
        _ => 4,
    };
    let mut names: Vec<&String> = asked.keys().collect();
    names.sort_by_key(|name| (order(name), (*name).clone()));
    let mut first: Option<Rejection> = None;
    for name in names {
        let (asked, used) = (asked[name], used.get(name).copied().unwrap_or(0));
        let Some(capacity) = capacity(name) else { continue };
        let lacking = asked.saturating_sub(capacity.saturating_sub(used));
        if asked <= 0 || lacking <= 0 {
            continue;
        }
        let rejection = first.get_or_insert_with(|| {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
            );
            Rejection::new(&format!("OutOf{name}"), message)
        });
        rejection.lacking.insert(name.clone(), lacking);
    }
    first
}

fn predicate(name: &str, why: &str) -> Rejection {
    Rejection::new(name, format!("Predicate {name} failed: {why}"))
}

fn affinity(node: &Node<'_>, pod: &Pod) -> Result<(), Rejection> {
    let spec = &pod.spec;
    let selected = spec
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref()?.required.as_ref());
    let matches = required.is_none_or(|r| r.matches(&node.config.node_name, node.labels));
    if selected && matches {
        return Ok(());
    }
    Err(predicate(
        "NodeAffinity",
        "node(s) didn't match Pod's node affinity/selector",
    ))
}

/// Ports of the node that the pod takes.
fn host_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| qos::is_sidecar(c));
    let containers = pod.spec.containers.iter().chain(sidecars);
    containers
        .flat_map(|c| &c.ports)
        .filter(|port| port.host_port.is_some_and(|number| number > 0))
}

fn ports(pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
    type Taken<'a> = (Protocol, Option<i32>, &'a str);
    fn taken(port: &ContainerPort) -> Taken<'_> {
        let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
        (protocol(port), port.host_port, ip.unwrap_or("0.0.0.0"))
    }
    let collide = |a: Taken<'_>, b: Taken<'_>| {
        let all = |ip: &str| ip == "0.0.0.0";
        a.0 == b.0 && a.1 == b.1 && (a.2 == b.2 || all(a.2) || all(b.2))
    };
    let busy = || others.iter().flat_map(|other| host_ports(other)).map(taken);
    if host_ports(pod)
        .map(taken)
        .any(|own| busy().any(|other| collide(own, other)))
    {
        return Err(predicate(
            "NodePorts",
            "node(s) didn't have free ports for the requested pod ports",
        ));
    }
    Ok(())
}

fn taints(node: &Node<'_>, pod: &Pod) -> Result<(), Rejection> {
    if static_pods::is_static(pod) {
        return Ok(());
    }
    let mut no_execute = node.taints.iter().filter(|taint| taint.effect == "NoExecute");
    if no_execute.all(|taint| pod.spec.tolerations.iter().any(|t| tolerates(t, taint))) {
        return Ok(());
    }
    Err(predicate(
        "TaintToleration",
        "node(s) had taints that the pod didn't tolerate",
    ))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    let key = text(&toleration.key);
    let same_value = || text(&toleration.value) == text(&taint.value);
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match text(&toleration.operator).as_str() {
            "Exists" => true,
            "" | "Equal" => same_value() && !key.is_empty(),
            _ => false,
        }
}

/// Why even a critical pod is refused.
pub(crate) fn no_victims(rejection: &Rejection) -> Rejection {
    let lacking: Vec<String> = rejection
        .lacking
        .iter()
        .map(|(name, amount)| format!("{name} (lacking {amount})"))
        .collect();
    let message = format!(
        "Unexpected error while attempting to recover from admission failure: preemption: no set of running pods found to reclaim resources: [{}]",
        lacking.join(", ")
    );
    Rejection::new("UnexpectedAdmissionError", message)
}

/// A pod that could be evicted for a critical one.
#[derive(Debug, Clone)]
pub(crate) struct Candidate<'a> {
    pub(crate) uid: &'a str,
    pub(crate) pod: &'a Pod,
}

/// Which pods must go so that a pod finds what it lacks: as few and as humble ones as possible. `None`: even without
/// all of them there would not be enough.
pub(crate) fn victims(
    pod: &Pod,
    lacking: &BTreeMap<String, i64>,
    candidates: &[Candidate<'_>],
) -> Option<Vec<String>> {
    let priority = |pod: &Pod| pod.spec.priority.unwrap_or(0);
    let yields = |other: &Pod| {
        !is_critical(other) || priority(other) < priority(pod) && !static_pods::is_static(other)
    };
    let of_class = |class: QosClass| -> Vec<(&str, BTreeMap<String, i64>)> {
        let humble = candidates
            .iter()
            .filter(|c| yields(c.pod) && qos::qos_class(c.pod) == class);
        humble.map(|c| (c.uid, amounts::requests(c.pod))).collect()
    };
    let [best_effort, burstable, guaranteed] =
        [QosClass::BestEffort, QosClass::Burstable, QosClass::Guaranteed].map(of_class);
    let none = Vec::new();
    let from_guaranteed = nearest(&guaranteed, less(lacking, &[&best_effort, &burstable]))?;
    let from_burstable = nearest(&burstable, less(lacking, &[&best_effort, &from_guaranteed]))?;
    let from_best_effort = nearest(
        &best_effort,
        less(lacking, &[&from_burstable, &from_guaranteed, &none]),
    )?;
    let all = [from_best_effort, from_burstable, from_guaranteed].concat();
    Some(all.into_iter().map(|(uid, _)| uid.to_owned()).collect())
}

type Asked<'a> = (&'a str, BTreeMap<String, i64>);

/// What would still lack without these pods.
fn less(lacking: &BTreeMap<String, i64>, gone: &[&Vec<Asked<'_>>]) -> BTreeMap<String, i64> {
    let mut rest = lacking.clone();
    for (_, asked) in gone.iter().copied().flatten() {
        for (name, amount) in &mut rest {
            *amount = amount.saturating_sub(asked.get(name).copied().unwrap_or(0));
        }
    }
    rest.retain(|_, amount| *amount > 0);
    rest
}

/// Takes again and again the pod that covers most of what lacks, and of equal ones the smallest.
fn nearest<'a>(pods: &[Asked<'a>], mut lacking: BTreeMap<String, i64>) -> Option<Vec<Asked<'a>>> {
    let mut rest = pods.to_vec();
    let mut chosen: Vec<Asked<'a>> = Vec::new();
    while !lacking.is_empty() {
        let uncovered = |asked: &BTreeMap<String, i64>| -> u64 {
            lacking
                .iter()
                .map(|(name, need)| {
                    let gap = need.saturating_sub(asked.get(name).copied().unwrap_or(0)).max(0);
                    // Thousandths of what lacks, so that bytes do not outweigh processors.
                    u64::try_from(i128::from(gap) * 1000 / i128::from((*need).max(1))).unwrap_or(u64::MAX)
                })
                .map(|part| part.saturating_mul(part))
                .sum()
        };
        let size = |asked: &BTreeMap<String, i64>| {
            let of = |name: &str| asked.get(name).copied().unwrap_or(0);
            (of(qos::MEMORY), of(qos::CPU))
        };
        let best = (0..rest.len()).min_by_key(|at| (uncovered(&rest[*at].1), size(&rest[*at].1)))?;
        let pod = rest.swap_remove(best);
        lacking = less(&lacking, &[&vec![pod.clone()]]);
        chosen.push(pod);
    }
    Some(chosen)
}
