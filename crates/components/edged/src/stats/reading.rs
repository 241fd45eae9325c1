//! One reading: who uses how much at one moment.

use kedge_containers::{ContainerId, ContainerState, ObservedContainer, ObservedSandbox, SandboxStats};
use kedge_host::cgroups::Layout;
use kedge_host::groups::{self, GroupCpu, GroupMemory, GroupUsage, PodGroup};
use kedge_host::network::{self, Interface};
use kedge_wire::Time;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Everything that was read at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) at: Time,
    pub(crate) node: NodeUsage,
    /// Pods whose sandbox stands, in the order of the runtime's list.
    pub(crate) pods: Vec<PodUsage>,
    /// Processor time was compared with an earlier reading.
    pub(crate) has_rates: bool,
}

/// The machine as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NodeUsage {
    pub(crate) cpu: Option<Cpu>,
    pub(crate) memory: Option<GroupMemory>,
    pub(crate) network: Vec<Interface>,
    pub(crate) default_interface: Option<String>,
    /// All pods together, where they have a group.
    pub(crate) pods: Option<(Option<Cpu>, Option<GroupMemory>)>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodUsage {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) sandbox: String,
    pub(crate) started_ms: u64,
    /// The path of its control group, if it was found.
    pub(crate) group: Option<String>,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) memory: Option<GroupMemory>,
    pub(crate) processes: Option<u64>,
    /// Empty on the node's network.
    pub(crate) network: Vec<Interface>,
    /// Those that run.
    pub(crate) containers: Vec<ContainerUsage>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerUsage {
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) started_ms: u64,
    pub(crate) group: Option<String>,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) memory: Option<GroupMemory>,
    pub(crate) processes: Option<u64>,
}

/// Processor time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cpu {
    pub(crate) total: GroupCpu,
    /// Billionths of a processor, since the reading before.
    pub(crate) rate: Option<u64>,
}

impl Cpu {
    fn of(total: GroupCpu) -> Self {
        Self { total, rate: None }
    }

    fn compare_with(&mut self, earlier: Option<Self>, window: Duration) {
        let window_ns = window.as_nanos();
        let used = earlier.and_then(|earlier| self.total.usage_ns.checked_sub(earlier.total.usage_ns));
        let rate = used.and_then(|used| (u128::from(used) * 1_000_000_000).checked_div(window_ns));
        self.rate = rate.and_then(|rate| u64::try_from(rate).ok());
    }
}

/// What of two readings belongs together.
#[derive(PartialEq, Eq, Hash)]
enum Who<'a> {
    Node,
    Pods,
    Pod(&'a str),
    Container(&'a ContainerId),
}

impl Usage {
    pub(crate) fn empty(at: Time) -> Self {
        Self {
            at,
            node: NodeUsage::default(),
            pods: Vec::new(),
            has_rates: false,
        }
    }

    /// Reads control groups and networks. Blocks for some small files per container.
    pub(super) fn read(
        at: Time,
        layout: Option<&Layout>,
        roots: &[String],
        seen: &[ObservedSandbox],
    ) -> Self {
        let found = layout.map_or_else(Vec::new, |layout| groups::pod_groups(layout, roots));
        let by_uid: HashMap<&str, &PodGroup> = found.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
        let stands = seen.iter().filter(|sandbox| sandbox.ready);
        Self {
            at,
            node: node(layout, roots),
            pods: stands
                .map(|sandbox| pod(sandbox, layout, by_uid.get(sandbox.pod.uid.as_str()).copied()))
                .collect(),
            has_rates: false,
        }
    }

    /// Whether the control group of a container that runs was not found.
    pub(super) fn lacks_groups(&self) -> bool {
        let mut containers = self.pods.iter().flat_map(|pod| &pod.containers);
        containers.any(|container| container.cpu.is_none() || container.memory.is_none())
    }

    /// Fills in what the runtime knows.
    pub(super) fn complete_with(&mut self, told: &[SandboxStats]) {
        for pod in &mut self.pods {
            let Some(told) = told.iter().find(|told| told.id.0 == pod.sandbox) else {
                continue;
            };
            for container in &mut pod.containers {
                let Some(told) = told.containers.iter().find(|told| told.id == container.id) else {
                    continue;
                };
                container.cpu = container.cpu.or(told.cpu.map(cpu_told));
                container.memory = container.memory.or(told.memory.map(memory_told));
            }
            pod.cpu = pod
                .cpu
                .or(told.cpu.map(cpu_told))
                .or_else(|| sum_cpu(&pod.containers));
            pod.memory = pod
                .memory
                .or(told.memory.map(memory_told))
                .or_else(|| sum_memory(&pod.containers));
            pod.processes = pod.processes.or(told.processes);
            if pod.network.is_empty() {
                pod.network = told.network.iter().map(interface_told).collect();
            }
        }
    }

    /// Computes how much processor time was used per second since an earlier reading.
    pub(super) fn compare_with(&mut self, earlier: &Self) {
        let window = self.at.since(earlier.at);
        if window.is_zero() {
            return;
        }
        let before = earlier.totals();
        let node = &mut self.node;
        if let Some(cpu) = &mut node.cpu {
            cpu.compare_with(before.get(&Who::Node).copied(), window);
        }
        if let Some((Some(cpu), _)) = &mut node.pods {
            cpu.compare_with(before.get(&Who::Pods).copied(), window);
        }
        for pod in &mut self.pods {
            if let Some(cpu) = &mut pod.cpu {
                cpu.compare_with(before.get(&Who::Pod(&pod.sandbox)).copied(), window);
            }
            for container in &mut pod.containers {
                if let Some(cpu) = &mut container.cpu {
                    cpu.compare_with(before.get(&Who::Container(&container.id)).copied(), window);
                }
            }
        }
        self.has_rates = true;
    }

    fn totals(&self) -> HashMap<Who<'_>, Cpu> {
        let node = [
            (Who::Node, self.node.cpu),
            (Who::Pods, self.node.pods.and_then(|(cpu, _)| cpu)),
        ];
        let pods = self.pods.iter().map(|pod| (Who::Pod(&pod.sandbox), pod.cpu));
        let containers = self.pods.iter().flat_map(|pod| &pod.containers);
        node.into_iter()
            .chain(pods)
            .chain(containers.map(|container| (Who::Container(&container.id), container.cpu)))
            .filter_map(|(who, cpu)| Some((who, cpu?)))
            .collect()
    }
}

fn node(layout: Option<&Layout>, roots: &[String]) -> NodeUsage {
    let root = layout.and_then(|layout| groups::group_usage(layout, "/"));
    let machine = root.unwrap_or_else(groups::machine_usage);
    let pods = layout.and_then(|layout| roots.iter().find_map(|root| groups::group_usage(layout, root)));
    NodeUsage {
        cpu: machine.cpu.map(Cpu::of),
        memory: machine.memory,
        network: network::interfaces().unwrap_or_default(),
        default_interface: network::default_interface(),
        pods: pods.map(|pods| (pods.cpu.map(Cpu::of), pods.memory)),
    }
}

fn pod(sandbox: &ObservedSandbox, layout: Option<&Layout>, group: Option<&PodGroup>) -> PodUsage {
    let usage = |path: &str| layout.and_then(|layout| groups::group_usage(layout, path));
    let of_pod = group.and_then(|group| usage(&group.path)).unwrap_or_default();
    let paths = group.map(|group| &group.containers);
    let containers: Vec<ContainerUsage> = sandbox
        .containers
        .iter()
        .filter_map(|container| {
            let ContainerState::Running { started_ms } = container.state else {
                return None;
            };
            let path = paths.and_then(|paths| paths.get(&container.id.0));
            let read = path.and_then(|path| usage(path)).unwrap_or_default();
            Some(running(container, started_ms, path.cloned(), read))
        })
        .collect();
    PodUsage {
        uid: sandbox.pod.uid.clone(),
        namespace: sandbox.pod.namespace.clone(),
        name: sandbox.pod.name.clone(),
        sandbox: sandbox.id.0.clone(),
        started_ms: sandbox.created_ms,
        group: group.map(|group| group.path.clone()),
        cpu: of_pod.cpu.map(Cpu::of).or_else(|| sum_cpu(&containers)),
        memory: of_pod.memory.or_else(|| sum_memory(&containers)),
        processes: of_pod.processes,
        network: paths.zip(layout).map_or_else(Vec::new, |(paths, layout)| {
            pod_network(layout, &sandbox.id.0, paths)
        }),
        containers,
    }
}

fn running(
    container: &ObservedContainer,
    started_ms: u64,
    group: Option<String>,
    read: GroupUsage,
) -> ContainerUsage {
    ContainerUsage {
        id: container.id.clone(),
        name: container.name.clone(),
        image: container.image.clone(),
        started_ms,
        group,
        cpu: read.cpu.map(Cpu::of),
        memory: read.memory,
        processes: read.processes,
    }
}

/// The pod's interfaces, as one of its processes sees them: the sandbox's own if it has one. The traffic of a pod on the
/// node's network is the node's.
fn pod_network(layout: &Layout, sandbox: &str, paths: &BTreeMap<String, String>) -> Vec<Interface> {
    let mut candidates = paths.get(sandbox).into_iter().chain(paths.values());
    let process = candidates.find_map(|path| groups::first_process(layout, path));
    match process {
        Some(process) if !network::is_on_node_network(process) => network::interfaces_of(process),
        Some(_) | None => Vec::new(),
    }
}

fn sum_cpu(containers: &[ContainerUsage]) -> Option<Cpu> {
    let sum = |a: GroupCpu, b: GroupCpu| GroupCpu {
        usage_ns: a.usage_ns + b.usage_ns,
        user_ns: a.user_ns + b.user_ns,
        system_ns: a.system_ns + b.system_ns,
        periods: a.periods + b.periods,
        throttled_periods: a.throttled_periods + b.throttled_periods,
        throttled_ns: a.throttled_ns + b.throttled_ns,
    };
    let each = containers
        .iter()
        .filter_map(|container| Some(container.cpu?.total));
    each.reduce(sum).map(Cpu::of)
}

fn sum_memory(containers: &[ContainerUsage]) -> Option<GroupMemory> {
    let sum = |a: GroupMemory, b: GroupMemory| GroupMemory {
        usage: a.usage + b.usage,
        working_set: a.working_set + b.working_set,
        rss: a.rss + b.rss,
        cache: a.cache + b.cache,
        mapped: a.mapped + b.mapped,
        peak: None,
        limit: None,
        swap: a.swap.zip(b.swap).map(|(a, b)| a + b),
        page_faults: a.page_faults + b.page_faults,
        major_page_faults: a.major_page_faults + b.major_page_faults,
        failures: a.failures + b.failures,
        oom_kills: a.oom_kills + b.oom_kills,
    };
    let each = containers.iter().filter_map(|container| container.memory);
    each.reduce(sum)
}

fn cpu_told(told: kedge_containers::CpuStats) -> Cpu {
    Cpu::of(GroupCpu {
        usage_ns: told.usage_ns,
        ..GroupCpu::default()
    })
}

fn memory_told(told: kedge_containers::MemoryStats) -> GroupMemory {
    GroupMemory {
        usage: told.usage_bytes,
        working_set: told.working_set_bytes,
        rss: told.rss_bytes,
        page_faults: told.page_faults,
        major_page_faults: told.major_page_faults,
        ..GroupMemory::default()
    }
}

fn interface_told(told: &kedge_containers::InterfaceStats) -> Interface {
    Interface {
        name: told.name.clone(),
        received_bytes: told.received_bytes,
        received_errors: told.received_errors,
        sent_bytes: told.sent_bytes,
        sent_errors: told.sent_errors,
        ..Interface::default()
    }
}
