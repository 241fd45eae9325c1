//! From the operator's file to what each part wants to know. No decision is made here that is not said in the file.

use anyhow::{Context, Result};
use kedge_config::edgecore::{Amount, CgroupDriver, Enforcement, Signal, Threshold, TopologyPolicy};
use kedge_config::{ContainerRuntime, EdgeCore};
use kedge_edged::{
    CpuRules, EventLimits, FaceSettings, Images, LogRotation, Node, PodRules, PullLimits, Reserved,
    StaticPods,
};
use kedge_edgehub::CertificateConfig;
use kedge_host::Root;
use kedge_pki::IdentityFiles;
use kedge_pods::pinning::{self, Alignment, CpuReserve, CpuSet};
use kedge_pods::{Amounts, DeadContainers, Swap, eviction, image_gc, shutdown};
use kedge_runtime::cri::CriConfig;
use kedge_store::meta::Settings;
use kedge_telemetry::clock::process_seed;
use kedge_wire::NodeName;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where `keadm join` lays the token; it goes before the one in the file.
const BOOTSTRAP_TOKEN_FILE: &str = "/etc/kubeedge/bootstrap-edgecore.conf";
/// Beside the key of the certificate, not beside the database.
const STORE_KEY: &str = "store.key";
/// Officially logs are here, and only then log collectors look for links to them.
const OFFICIAL_LOGS: &str = "/var/log/pods";
/// The kernel's own period of CPU quotas, which needs no order.
const CPU_PERIOD: Duration = Duration::from_millis(100);

/// What edged wants.
pub fn edged(config: &EdgeCore, node: &NodeName) -> Result<kedge_edged::Config> {
    let edged = &config.edged;
    // A hollow node shares its machine with others: it neither watches nor changes it.
    let real = edged.container_runtime != ContainerRuntime::Hollow;
    let log_dir = PathBuf::from(&edged.pod_logs_dir);
    Ok(kedge_edged::Config {
        log_links_dir: (real && edged.pod_logs_dir == OFFICIAL_LOGS)
            .then(|| kedge_edged::Config::LOG_LINKS.into()),
        log_dir,
        log_rotation: LogRotation {
            bytes_max: edged.log_bytes_max,
            files_max: u32::try_from(edged.log_files_max).unwrap_or(u32::MAX),
            workers: edged.logs.workers,
            interval: edged.logs.check_interval,
        },
        report_events: edged.report_event,
        event_limits: EventLimits {
            per_second: edged.events.per_second,
            burst: edged.events.burst,
        },
        image_pulls: PullLimits {
            parallel_max: if edged.images.serial {
                Some(1)
            } else {
                edged.images.parallel_max
            },
            per_second: edged.images.pulls_per_second,
            burst: edged.images.pull_burst,
        },
        static_pods: (!edged.static_pods.path.is_empty()).then(|| StaticPods {
            path: PathBuf::from(&edged.static_pods.path),
            check_interval: edged.static_pods.check_interval,
        }),
        pods: pod_rules(config),
        pinning: pinning(config, real),
        node: presented_node(config)?,
        cluster_dns: edged.cluster_dns.clone(),
        cluster_domain: edged.cluster_domain.clone(),
        eviction: real.then(|| eviction_rules(config)),
        shutdown: shutdown_rules(config),
        images: Images {
            gc: (real && collects_images(config)).then(|| image_policy(config)),
            sandbox: edged.sandbox_image.clone(),
        },
        device_plugins: (real && !edged.device_plugins.is_empty())
            .then(|| edged.device_plugins.clone().into()),
        mount_volumes: real,
        face: FaceSettings {
            listen: edged
                .server
                .port
                .map(|port| SocketAddr::new(edged.server.address, port)),
            debugging_handlers: edged.server.debugging_handlers,
            configz: edged.effective.clone(),
            cgroup_roots: cgroup_roots(config),
            streaming_idle: edged.server.streaming_idle_timeout,
        },
        ..kedge_edged::Config::new(node.clone(), PathBuf::from(&edged.root_directory))
    })
}

fn pod_rules(config: &EdgeCore) -> PodRules {
    let edged = &config.edged;
    let groups = &edged.cgroups;
    PodRules {
        seccomp_default: edged.security.seccomp_default,
        cpu_quota_off: !groups.cpu_cfs_quota,
        cpu_period: (groups.cpu_cfs_quota_period != CPU_PERIOD).then_some(groups.cpu_cfs_quota_period),
        pids_max: edged.pod_pids_max.and_then(|max| i64::try_from(max).ok()),
        memory_throttling_permille: Some(permille(groups.memory_throttling_factor)),
        oom_kills_one_process: groups.single_process_oom_kill.unwrap_or(false),
        unsafe_sysctls: edged.security.allowed_unsafe_sysctls.clone(),
        swap: kedge_host::cgroups::divides_swap(&Root::machine()).then(|| swap(groups.swap)),
        dead_containers: DeadContainers {
            age_min: edged.container_gc.age_min,
            each_max: edged.container_gc.per_pod_max,
            all_max: edged.container_gc.total_max,
        },
        crash_wait_max: edged.crash_wait_max,
        resolv_conf: Some(PathBuf::from(&edged.resolv_conf)),
    }
}

/// A hollow node has no CPUs of its own to give.
fn pinning(config: &EdgeCore, real: bool) -> kedge_edged::Pinning {
    let edged = &config.edged;
    let says = &edged.pinning;
    if !real {
        return kedge_edged::Pinning::default();
    }
    let cpus = says.cpus.map(|options| CpuRules {
        options: pinning::CpuOptions {
            full_cores: options.full_pcpus_only,
            distribute_banks: options.distribute_cpus_across_numa,
            align_sockets: options.align_by_socket,
            spread_cores: options.distribute_cpus_across_cores,
            strict_reserve: options.strict_cpu_reservation,
            align_caches: options.prefer_align_cpus_by_uncorecache,
        },
        reserve: cpu_reserve(&edged.reserved),
    });
    kedge_edged::Pinning {
        cpus,
        alignment: Alignment {
            policy: match says.topology {
                TopologyPolicy::None => pinning::Policy::None,
                TopologyPolicy::BestEffort => pinning::Policy::BestEffort,
                TopologyPolicy::Restricted => pinning::Policy::Restricted,
                TopologyPolicy::SingleNumaNode => pinning::Policy::SingleNumaNode,
            },
            scope: if says.whole_pods {
                pinning::Scope::Pod
            } else {
                pinning::Scope::Container
            },
            prefer_closest: says.prefer_closest,
        },
        retry: says.retry,
    }
}

/// CPUs by name, or as many as are reserved of them, rounded up.
fn cpu_reserve(reserved: &kedge_config::edgecore::Reserved) -> CpuReserve {
    if let Some(cpus) = reserved
        .cpus
        .parse()
        .ok()
        .filter(|cpus: &CpuSet| !cpus.is_empty())
    {
        return CpuReserve::These(cpus);
    }
    let lists = reserved.system.iter().chain(&reserved.kube);
    let cpus = lists.filter(|(name, _)| name == "cpu");
    let milli: i64 = cpus.map(|(_, amount)| amount.milli()).sum();
    CpuReserve::Count(usize::try_from(milli).unwrap_or(0).div_ceil(1000))
}

fn swap(says: kedge_config::edgecore::Swap) -> Swap {
    match says {
        kedge_config::edgecore::Swap::None => Swap::None,
        kedge_config::edgecore::Swap::Limited => Swap::Limited {
            bytes: i64::try_from(kedge_host::own::swap_bytes()).unwrap_or(i64::MAX),
        },
    }
}

fn shutdown_rules(config: &EdgeCore) -> shutdown::Rules {
    let says = &config.edged.shutdown;
    if says.by_priority.is_empty() {
        shutdown::Rules::of(says.grace, says.critical)
    } else {
        shutdown::Rules::by_priority(says.by_priority.clone())
    }
}

/// The file has it above 0 and at most 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 1000 every whole number is exact"
)]
fn permille(factor: f64) -> u32 {
    (factor * 1000.0).round().clamp(0.0, 1000.0) as u32
}

fn presented_node(config: &EdgeCore) -> Result<Node> {
    let edged = &config.edged;
    let taints: Result<_, _> = edged.taints.iter().cloned().map(serde_json::from_value).collect();
    let ip = match edged.node_ip.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .context("modules.edged.nodeIP is not an IP address")?,
        ),
    };
    let reserved = Reserved {
        system: amounts(&edged.reserved.system),
        kube: amounts(&edged.reserved.kube),
        without_thresholds: !edged.reserved.eviction_counts,
    };
    Ok(Node {
        register: edged.register_node,
        interface: (!edged.interface.is_empty()).then(|| edged.interface.clone()),
        ip,
        labels: edged.node_labels.iter().cloned().collect(),
        taints: taints.context("modules.edged.tailoredKubeletConfig.registerWithTaints")?,
        unschedulable: !edged.register_schedulable,
        controller_attach_detach: edged.controller_attach_detach,
        pods_max: u32::try_from(edged.pods_max).unwrap_or(u32::MAX),
        pods_per_core: edged.pods_per_core,
        reserved: match edged.reserved.cpu_count() {
            0 => reserved,
            count => reserved.with_cpus(count),
        },
        local_storage: edged.local_storage,
        kubelet_port: edged.server.port.unwrap_or(0),
        lease_interval: edged.lease_duration / 4,
        lease_duration: edged.lease_duration,
        status_check_interval: edged.status_check_interval,
        status_report_interval: edged.status_report_interval,
        images_max: edged
            .images
            .reported_max
            .map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
        ..Node::default()
    })
}

fn amounts(list: &[(String, kedge_api::Quantity)]) -> Amounts {
    list.iter().cloned().collect()
}

fn eviction_rules(config: &EdgeCore) -> eviction::Rules {
    let from = &config.edged.eviction;
    let reclaim = |signal: Signal| {
        let found = from.reclaim_min.iter().find(|(of, _)| *of == signal);
        found.map(|(_, amount)| amount_of(*amount))
    };
    let threshold = |of: &Threshold, grace: Duration| {
        Some(eviction::Threshold {
            signal: signal_of(of.signal)?,
            amount: amount_of(of.amount),
            grace,
            reclaim_min: reclaim(of.signal),
        })
    };
    let hard = from.hard.iter().filter_map(|of| threshold(of, Duration::ZERO));
    let soft = from
        .soft
        .iter()
        .filter_map(|of| threshold(&of.threshold, of.grace));
    let mut thresholds = hard.chain(soft).collect();
    if config.edged.reserved.enforce.contains(&Enforcement::Pods) {
        eviction::enforce_allocatable(&mut thresholds);
    }
    eviction::Rules {
        thresholds,
        transition: from.pressure_transition,
        grace_max: from.pod_grace_max,
        local_storage: config.edged.local_storage,
    }
}

/// The file system of containers is that of the images or that of the node, whose thresholds count.
fn signal_of(signal: Signal) -> Option<eviction::Signal> {
    Some(match signal {
        Signal::MemoryAvailable => eviction::Signal::MemoryAvailable,
        Signal::AllocatableMemoryAvailable => eviction::Signal::AllocatableMemoryAvailable,
        Signal::NodeFsAvailable => eviction::Signal::NodefsAvailable,
        Signal::NodeFsInodesFree => eviction::Signal::NodefsInodesFree,
        Signal::ImageFsAvailable => eviction::Signal::ImagefsAvailable,
        Signal::ImageFsInodesFree => eviction::Signal::ImagefsInodesFree,
        Signal::PidAvailable => eviction::Signal::PidAvailable,
        Signal::ContainerFsAvailable | Signal::ContainerFsInodesFree => return None,
    })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a kubelet reckons in single precision, too"
)]
fn amount_of(amount: Amount) -> eviction::Amount {
    match amount {
        Amount::Units(units) => eviction::Amount::Absolute(units),
        Amount::Share(share) => eviction::Amount::Share(share as f32),
    }
}

/// A disk that is never too full, and images that are never too old.
fn collects_images(config: &EdgeCore) -> bool {
    let images = &config.edged.images;
    images.gc_high_percent < 100 || images.age_max.is_some()
}

fn image_policy(config: &EdgeCore) -> image_gc::Policy {
    let images = &config.edged.images;
    image_gc::Policy {
        high_percent: images.gc_high_percent,
        low_percent: images.gc_low_percent,
        age_min: images.age_min,
        age_max: images.age_max.unwrap_or(Duration::ZERO),
    }
}

fn cgroup_roots(config: &EdgeCore) -> Vec<String> {
    match config.edged.container_runtime {
        ContainerRuntime::Cri { .. } => FaceSettings::roots_below(&config.edged.cgroups.root),
        ContainerRuntime::Embedded | ContainerRuntime::Hollow => vec![config.edged.cgroup_root.clone()],
    }
}

/// What the client of a CRI runtime wants.
pub fn cri(config: &EdgeCore, socket: &str, image_socket: &str) -> CriConfig {
    let groups = &config.edged.cgroups;
    CriConfig {
        runtime_endpoint: format!("unix://{socket}"),
        image_endpoint: format!("unix://{image_socket}"),
        cgroup_root: groups.root.clone(),
        cgroup_driver: match groups.driver {
            CgroupDriver::Cgroupfs => kedge_containers::CgroupDriver::Cgroupfs,
            CgroupDriver::Systemd => kedge_containers::CgroupDriver::Systemd,
        },
        cgroups_per_pod: groups.per_qos,
        request_timeout: config.edged.runtime_timeout,
    }
}

/// Where the built-in runtime pulls images from.
pub fn registries(config: &EdgeCore) -> kedge_registry::Config {
    let registries = &config.edged.registries;
    kedge_registry::Config {
        plain_http: registries.plain_http.clone(),
        mirrors: registries.mirrors.iter().cloned().collect(),
        authorities: registries.authorities.iter().map(PathBuf::from).collect(),
        variant: kedge_host::architecture_variant().map(str::to_owned),
        ..kedge_registry::Config::new(kedge_host::architecture())
    }
}

/// Where the identity of the node is kept and whom it is asked of.
pub fn certificate(config: &EdgeCore, node: &NodeName) -> CertificateConfig {
    CertificateConfig {
        node: node.clone(),
        http_server: config.hub.http_server.clone(),
        token: (!config.hub.token.is_empty()).then(|| config.hub.token.clone()),
        token_file: Some(PathBuf::from(BOOTSTRAP_TOKEN_FILE)),
        files: IdentityFiles {
            authority: PathBuf::from(&config.hub.ca_file),
            certificate: PathBuf::from(&config.hub.cert_file),
            key: PathBuf::from(&config.hub.key_file),
        },
    }
}

/// What the link to the cloud wants.
pub fn hub(config: &EdgeCore, node: &NodeName) -> kedge_edgehub::Config {
    let hub = &config.hub;
    kedge_edgehub::Config {
        certificate: certificate(config, node),
        transport: match hub.transport {
            kedge_config::Transport::WebSocket => kedge_edgehub::Transport::WebSocket,
            kedge_config::Transport::Quic => kedge_edgehub::Transport::Quic,
        },
        servers: hub.servers.clone(),
        handshake_timeout: hub.handshake_timeout,
        read_deadline: hub.read_deadline,
        rates: kedge_edgehub::Rates {
            messages_per_second: hub.rates.messages_per_second,
            messages_burst: hub.rates.messages_burst,
            bytes_per_second: hub.rates.bytes_per_second,
            bytes_burst: hub.rates.bytes_burst,
        },
        project_id: hub.project_id.clone(),
        heartbeat: hub.heartbeat_interval,
        rotate_certificates: hub.rotate_certificates,
        seed: process_seed(),
    }
}

/// Where the metadata is kept, and apart from it the key that seals its secrets.
pub fn store(config: &EdgeCore) -> Settings {
    let key_file = Path::new(&config.hub.key_file).with_file_name(STORE_KEY);
    Settings::at(&config.data_source).with_key_file(key_file)
}

/// What the tunnel for logs and pages wants.
pub fn stream(config: &EdgeCore, node: NodeName) -> Result<kedge_edgestream::Config> {
    let internal_ip = match config.edged.node_ip.as_str() {
        "" => {
            let facts = kedge_host::facts()?;
            let first = facts.addresses.first();
            first.map(ToString::to_string).unwrap_or_default()
        }
        text => text.to_owned(),
    };
    Ok(kedge_edgestream::Config {
        node,
        internal_ip,
        server: config.stream.server.clone(),
        handshake_timeout: config.stream.handshake_timeout,
        seed: process_seed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use kedge_config::EdgeFacts;

    #[test]
    fn what_is_kept_of_dead_containers_and_how_the_node_ends() {
        let told = |yaml: &str| {
            let facts = EdgeFacts {
                hostname: "edge-1".to_owned(),
                primary_ip: "192.0.2.9".to_owned(),
            };
            let (config, warnings) = EdgeCore::from_yaml(yaml, &facts).unwrap();
            assert_eq!(warnings.len(), 0, "what is acted upon needs no warning");
            let edged = edged(&config, &NodeName::new("edge-1").unwrap()).unwrap();
            let groups = edged.shutdown.groups([("web", 0), ("dns", 2_000_000_000)]);
            format!(
                "{:?} crash {:?} shutdown {groups:?}",
                edged.pods.dead_containers, edged.pods.crash_wait_max
            )
        };
        let chosen = "
modules:
  edged:
    minimumGCAge: 1m
    maxPerPodContainerCount: 2
    maxContainerCount: 100
    tailoredKubeletConfig:
      shutdownGracePeriod: 30s
      shutdownGracePeriodCriticalPods: 10s
      memorySwap: {swapBehavior: LimitedSwap}
      protectKernelDefaults: true
      crashLoopBackOff: {maxContainerRestartPeriod: 1m}
      featureGates: {KubeletCrashLoopBackOffMax: true}
";
        let by_priority = "
modules:
  edged:
    tailoredKubeletConfig:
      shutdownGracePeriodByPodPriority:
      - {priority: 1000, shutdownGracePeriodSeconds: 5}
      - {priority: 0, shutdownGracePeriodSeconds: 20}
";
        let lines = [told(""), told(chosen), told(by_priority)];
        expect![[r#"
            DeadContainers { age_min: 0ns, each_max: Some(1), all_max: None } crash None shutdown []
            DeadContainers { age_min: 60s, each_max: Some(2), all_max: Some(100) } crash Some(60s) shutdown [(20s, ["web"]), (10s, ["dns"])]
            DeadContainers { age_min: 0ns, each_max: Some(1), all_max: None } crash None shutdown [(20s, ["web"]), (5s, ["dns"])]
        "#]].assert_eq(&(lines.join("\n") + "\n"));
    }

    #[test]
    fn what_is_reserved_of_cpus_is_named_or_counted() {
        let told = |keys: &str| {
            let facts = EdgeFacts {
                hostname: "edge-1".to_owned(),
                primary_ip: "192.0.2.9".to_owned(),
            };
            let yaml = format!("modules: {{edged: {{tailoredKubeletConfig: {{{keys}}}}}}}");
            let (config, _) = EdgeCore::from_yaml(&yaml, &facts).unwrap();
            let edged = edged(&config, &NodeName::new("edge-1").unwrap()).unwrap();
            format!("{:?}", edged.pinning.cpus.map(|cpus| cpus.reserve))
        };
        let lines = [
            told(""),
            told("cpuManagerPolicy: static, systemReserved: {cpu: 900m}, kubeReserved: {cpu: 200m}"),
            told("cpuManagerPolicy: static, systemReserved: {cpu: '3'}, reservedSystemCPUs: '0,4'"),
            told(
                "cpuManagerPolicy: static, systemReserved: {cpu: '3'}, containerRuntimeEndpoint: 'kedge://hollow'",
            ),
        ];
        expect![[r#"
            None
            Some(Count(2))
            Some(These(CpuSet({0, 4})))
            None
        "#]]
        .assert_eq(&(lines.join("\n") + "\n"));
    }
}
