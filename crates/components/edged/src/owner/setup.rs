//! What stands before the first event.

use super::{Inputs, Observer, Owner, RESULTS_MAX};
use crate::beside::{Beside, Board, ORDERS_MAX, Order, RuntimeTrouble};
use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::config::Config;
use crate::devices::Devices;
use crate::events::Events;
use crate::face::ProbeCounts;
use crate::hands::{Hands, IdBook, STARTS_MAX};
use crate::images::Images;
use crate::logs::{self, Logs, Places};
use crate::objects::Held;
use crate::pinning::{self, Pinning};
use crate::probe::Prober;
use crate::reports::Reports;
use crate::stats::Stats;
use crate::volumes::{self, Volumes};
use crate::{Ports, face, node, static_pods};
use kedge_containers::DnsConfig;
use kedge_host::Facts;
use kedge_host::cgroups::Layout;
use kedge_pods::{DeadContainers, Pods, Swap};
use kedge_runtime::Runtime;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, latest, queue};
use kedge_wire::{Body, ObjectKey};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// Where the node's resolver is described.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Logs that are asked for at one time; the owner only looks up where they are.
const LOGS_WAITING_MAX: usize = 16;
/// Hints closer together than this are one.
const HINT_INTERVAL_MIN: Duration = Duration::from_millis(20);
/// A runtime that does not say its name within this time is not there.
const VERSION_MAX: Duration = Duration::from_secs(10);
/// How often a runtime that is not there is asked again.
const VERSION_RETRY: Duration = Duration::from_secs(1);

/// What holds for all pods of the node. The default is KubeEdge's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodRules {
    /// A container without a seccomp profile gets the runtime's own one.
    pub seccomp_default: bool,
    /// Do not limit CPU time by quotas.
    pub cpu_quota_off: bool,
    /// The scheduling period of quotas; `None` is the kernel's 100 ms.
    pub cpu_period: Option<Duration>,
    /// Processes that one pod may have.
    pub pids_max: Option<i64>,
    /// Slow a container down at this many thousandths of its memory limit; only with control groups of version 2.
    pub memory_throttling_permille: Option<u32>,
    /// When memory ends, kill one process of a container and not all of them.
    pub oom_kills_one_process: bool,
    /// What containers may have of the node's swap; `None`: control groups do not divide it.
    pub swap: Option<Swap>,
    /// What is kept of containers that ended and were started again.
    pub dead_containers: DeadContainers,
    /// Kernel parameters that pods may set although they are not safe.
    pub unsafe_sysctls: Vec<String>,
    /// The longest wait before a container is started again; `None` is Kubernetes' 5 minutes.
    pub crash_wait_max: Option<Duration>,
    /// The node's resolver; `None` is `/etc/resolv.conf`, an empty path is none.
    pub resolv_conf: Option<PathBuf>,
}

/// Runs edged until the scope is cancelled.
pub(crate) async fn run(
    config: Config,
    facts: Facts,
    runtime: Arc<dyn Runtime>,
    initial: Vec<(ObjectKey, Body)>,
    ports: Ports,
    pinning: Option<pinning::Prepared>,
    scope: Scope,
) {
    let Ports {
        desired,
        complete,
        cloud,
        online,
        node_get,
        node_connect,
        releases,
        shutdown,
        metrics,
    } = ports;
    let (beside, board, orders) = beside(config, facts, runtime, Cloud::new(cloud), online.clone(), &scope);
    let (logs_tx, logs) = ask::channel("edged-logs", LOGS_WAITING_MAX);
    let (beat, beat_rx) = latest::channel(beside.clock.now());
    let probes = ProbeCounts::new(beside.seen.clone());
    let face_ports = face::Ports {
        node_get,
        node_connect,
        logs: logs_tx,
        beat: beat_rx,
        metrics,
        probes: probes.clone(),
    };
    face::start(beside.clone(), face_ports);
    let devices = Devices::start(
        beside.config.device_plugins.as_deref(),
        beside.pods.clone(),
        beside.seen.clone(),
        beside.clock,
        &scope,
    );
    let pinning = Pinning::start(
        pinning,
        Arc::clone(&beside.runtime),
        beside.pods.clone(),
        beside.seen.clone(),
        beside.clock,
        &scope,
    );
    let shutting_down = crate::shutdown::start(&beside, shutdown);
    node::start(&beside, &devices, shutting_down);
    logs::start_rotation(&beside);
    let files = beside.config.static_pods.clone();
    let files = files.map(|source| static_pods::start(source, beside.events.clone(), &scope));
    let Some(prefix) = runtime_name(&beside, &board.trouble).await else {
        return;
    };
    let hint = Arc::new(Notify::new());
    start_hints(Arc::clone(&beside.runtime), Arc::clone(&hint), &scope);
    let pods_config = kedge_pods::Config {
        pins: pinning.binds(),
        ..pods_config(&beside, &prefix)
    };
    let (results_tx, results) = queue::channel("edged-results", RESULTS_MAX);
    let owner = Owner {
        hands: hands(&beside, devices, pinning, pods_config.clone()),
        pods: Pods::new(pods_config),
        held: Held::default(),
        changes: super::Changes::default(),
        reports: Reports::default(),
        scope,
        node_name: beside.config.node_name.to_string(),
        logs: Logs::new(beside.seen.clone(), beside.pods.clone()),
        observer: Observer::new(beside.clock.now()),
        board,
        board_stale: true,
        waits: BTreeMap::new(),
        results: results_tx,
        beat,
        probes,
        told_waiter: None,
        under_way: 0,
        holds_all: false,
        complete: false,
        files_known: false,
        swept: false,
        ahead_ms: 0,
    };
    let inputs = Inputs {
        desired,
        complete,
        online,
        logs,
        orders,
        releases,
        files,
        results,
        hint,
    };
    owner.run(initial, inputs).await;
}

/// What the tasks beside the owner get, with the owner's ends of it.
fn beside(
    config: Config,
    facts: Facts,
    runtime: Arc<dyn Runtime>,
    cloud: Cloud,
    online: latest::Receiver<bool>,
    scope: &Scope,
) -> (Beside, Board, queue::Receiver<Order>) {
    let clock = Clock::start();
    let (trouble_tx, trouble) = latest::channel(None);
    let (seen_tx, seen) = latest::channel(Arc::new(Vec::new()));
    let (pods_tx, pods) = latest::channel(Arc::new(Vec::new()));
    let (node_tx, node) = latest::channel(None);
    let (orders_tx, orders) = queue::channel("edged-orders", ORDERS_MAX);
    let config = Arc::new(config);
    let events = Events::start(
        config.report_events.then_some(config.event_limits),
        cloud.clone(),
        config.node_name.to_string(),
        pods.clone(),
        clock,
        scope,
    );
    let settings = volumes::Settings {
        root_dir: config.root_dir.clone(),
        node_name: config.node_name.to_string(),
        mounts: config.mount_volumes,
    };
    let volumes = Volumes::new(settings, cloud.clone());
    volumes.start(online.clone(), node.clone(), scope);
    let stats = Stats::new(
        Arc::clone(&config),
        Arc::clone(&runtime),
        pods.clone(),
        seen.clone(),
        clock,
    );
    let beside = Beside {
        config,
        facts: Arc::new(facts),
        runtime,
        cloud,
        events,
        clock,
        online,
        trouble,
        pods,
        seen,
        node,
        orders: orders_tx,
        stats: Arc::new(stats),
        volumes,
        scope: scope.clone(),
    };
    let board = Board {
        trouble: trouble_tx,
        pods: pods_tx,
        seen: seen_tx,
        node: node_tx,
    };
    (beside, board, orders)
}

fn hands(beside: &Beside, devices: Devices, pinning: Pinning, config: kedge_pods::Config) -> Hands {
    let runtime = Arc::clone(&beside.runtime);
    Hands {
        cloud: beside.cloud.clone(),
        events: beside.events.clone(),
        root_dir: beside.config.root_dir.clone(),
        clock: beside.clock,
        starts: Arc::new(Semaphore::new(STARTS_MAX)),
        ids: Arc::new(IdBook::new(config.pods_dir.clone())),
        images: Images::start(
            beside.config.image_pulls,
            Arc::clone(&runtime),
            beside.clock,
            &beside.scope,
        ),
        prober: Prober::new(Arc::clone(&runtime)),
        volumes: beside.volumes.clone(),
        devices,
        pinning,
        logs: Arc::new(Places {
            log_dir: config.log_dir.clone(),
            links_dir: beside.config.log_links_dir.clone(),
        }),
        seen: beside.seen.clone(),
        config: Arc::new(config),
        runtime,
    }
}

/// What the runtime calls itself, which is a part of every container's id in a pod's status. A node whose runtime is not
/// there yet tells so, and waits for it; `None` when this process ends.
async fn runtime_name(beside: &Beside, trouble: &latest::Sender<RuntimeTrouble>) -> Option<String> {
    loop {
        let asked = tokio::select! {
            biased;
            () = beside.scope.cancelled() => return None,
            asked = tokio::time::timeout(VERSION_MAX, beside.runtime.version()) => asked,
        };
        let why = match asked {
            Ok(Ok(version)) => return Some(version.name),
            Ok(Err(error)) => crate::hands::chain(&error),
            Err(_) => format!("it did not answer within {}s", VERSION_MAX.as_secs()),
        };
        trouble.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&why);
            if differs {
                tracing::warn!(why, "waiting for the container runtime");
                *known = Some(why.clone());
            }
            differs
        });
        tokio::select! {
            biased;
            () = beside.scope.cancelled() => return None,
            () = tokio::time::sleep(VERSION_RETRY) => {}
        }
    }
}

/// Turns the runtime's hints into permits: a hint that comes while the owner is busy is not lost.
fn start_hints(runtime: Arc<dyn Runtime>, hint: Arc<Notify>, scope: &Scope) {
    scope.spawn_until_cancelled("edged-runtime-hints", async move {
        loop {
            runtime.changed().await;
            hint.notify_one();
            // A runtime whose hint is always ready must not keep a core busy.
            tokio::time::sleep(HINT_INTERVAL_MIN).await;
        }
    });
}

/// What the pod workers need to know.
fn pods_config(beside: &Beside, prefix: &str) -> kedge_pods::Config {
    let (config, facts) = (&beside.config, &beside.facts);
    let rules = &config.pods;
    let (node_dns, node_dns_given) = node_dns(rules);
    let (node_labels, node_taints) = node::labels_and_taints(config, facts);
    kedge_pods::Config {
        node_name: config.node_name.to_string(),
        host_ips: node::host_ips(config, facts),
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        node_dns,
        node_dns_given,
        pods_dir: config.pods_dir(),
        log_dir: config.log_dir.clone(),
        seccomp_dir: config.root_dir.join("seccomp"),
        container_id_prefix: format!("{prefix}://"),
        env: config.env.clone(),
        allocatable: node::allocatable(config, facts),
        memory_capacity_bytes: i64::try_from(facts.memory_bytes).unwrap_or(i64::MAX),
        swap: rules.swap,
        dead_containers: rules.dead_containers,
        seccomp_default: rules.seccomp_default,
        cpu_quota_off: rules.cpu_quota_off,
        cpu_period_us: rules
            .cpu_period
            .map(|period| u64::try_from(period.as_micros()).unwrap_or(u64::MAX)),
        pod_pids_max: rules.pids_max,
        cgroup_v2: matches!(kedge_host::cgroups::layout(), Ok(Layout::V2 { .. })),
        huge_page_sizes: node::huge_page_sizes(config),
        oom_kills_one_process: rules.oom_kills_one_process,
        // The runtime tells when it is there.
        recursive_read_only: BTreeSet::new(),
        memory_throttling_permille: rules.memory_throttling_permille,
        unsafe_sysctls: rules.unsafe_sysctls.clone(),
        crash_wait_max: rules.crash_wait_max,
        node_labels,
        node_taints,
        // Whoever starts the task for it says so.
        pins: false,
        seed: kedge_telemetry::clock::process_seed(),
    }
}

/// The node's resolver, and whether it is another one than the runtime would take.
fn node_dns(rules: &PodRules) -> (DnsConfig, bool) {
    let path = rules.resolv_conf.as_deref().unwrap_or(Path::new(RESOLV_CONF));
    if path.as_os_str().is_empty() {
        return (DnsConfig::default(), true);
    }
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "the node's resolver is unknown");
        String::new()
    });
    (parse_resolv_conf(&text), path != Path::new(RESOLV_CONF))
}

fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            Some("search") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            Some(_) | None => {}
        }
    }
    dns
}
