//! `modules.edged.tailoredKubeletConfig`: what the kubelet of KubeEdge takes, with its own rules.

use super::{absolute, pinning};
use crate::reader::Reader;
use kedge_api::Quantity;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Images: pulls and garbage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// `registryPullQPS`: pulls a second over a longer time; 0 sets no limit.
    pub pulls_per_second: u32,
    /// `registryBurst`.
    pub pull_burst: u32,
    /// `serializeImagePulls`: one after the other.
    pub serial: bool,
    /// `maxParallelImagePulls`, when pulls are not serial.
    pub parallel_max: Option<u32>,
    /// `imageGCHighThresholdPercent`: garbage is collected above it. 100 never does.
    pub gc_high_percent: u8,
    /// `imageGCLowThresholdPercent`: until the use is below it.
    pub gc_low_percent: u8,
    /// `imageMinimumGCAge`.
    pub age_min: Duration,
    /// `imageMaximumGCAge`: unused for longer, an image goes in any case.
    pub age_max: Option<Duration>,
    /// `nodeStatusMaxImages`, by default 0; `None` names all.
    pub reported_max: Option<u32>,
}

/// Dead containers that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerGc {
    /// `minimumGCAge` of `modules.edged`.
    pub age_min: Duration,
    /// `maxPerPodContainerCount` of `modules.edged`; `None` sets no limit.
    pub per_pod_max: Option<u32>,
    /// `maxContainerCount` of `modules.edged`; `None` sets no limit.
    pub total_max: Option<u32>,
}

/// How often container logs are looked at, and by how many hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    pub workers: u32,
    pub check_interval: Duration,
}

/// Control groups of pods and what they bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Cgroups {
    pub driver: CgroupDriver,
    /// `cgroupRoot`: pods are below it. Empty: the root.
    pub root: String,
    /// `cgroupsPerQOS`: a group for each class, above those of the pods.
    pub per_qos: bool,
    /// `kubeletCgroups`: where EdgeCore is to be found.
    pub kubelet: String,
    /// `systemCgroups`: where processes outside of every group are put.
    pub system: String,
    /// `runtimeCgroups` of `modules.edged`: where the container runtime is to be found.
    pub runtime: String,
    pub cpu_cfs_quota: bool,
    pub cpu_cfs_quota_period: Duration,
    /// `memoryThrottlingFactor`: `memory.high` between request and limit.
    pub memory_throttling_factor: f64,
    /// `memorySwap.swapBehavior`.
    pub swap: Swap,
    /// `singleProcessOOMKill`, when the file says.
    pub single_process_oom_kill: Option<bool>,
}

/// `cgroupDriver`. The runtime's word counts more, where it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

/// `memorySwap.swapBehavior`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// Empty or `NoSwap`.
    None,
    /// `LimitedSwap`.
    Limited,
}

/// What is kept from pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// `systemReserved`: `cpu`, `memory`, `ephemeral-storage`, `pid`, huge pages.
    pub system: Vec<(String, Quantity)>,
    /// `kubeReserved`.
    pub kube: Vec<(String, Quantity)>,
    /// `reservedSystemCPUs`, for example `0-1,3`: their number replaces `cpu` above. Empty: none.
    pub cpus: String,
    pub system_cgroup: String,
    pub kube_cgroup: String,
    /// `enforceNodeAllocatable`, without `none`.
    pub enforce: Vec<Enforcement>,
    /// Whether hard eviction thresholds are kept from pods, too: not with
    /// `experimentalNodeAllocatableIgnoreEvictionThreshold` of `modules.edged`.
    pub eviction_counts: bool,
}

impl Reserved {
    /// How many processors `reservedSystemCPUs` names.
    pub fn cpu_count(&self) -> u32 {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let count = |range: &str| match range.split_once('-') {
            Some((from, to)) => Some((number(to)? + 1).saturating_sub(number(from)?)),
            None => number(range).map(|_| 1),
        };
        self.cpus.split(',').filter_map(count).sum()
    }
}

/// What limits are set upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    Pods,
    SystemReserved,
    SystemReservedCompressible,
    KubeReserved,
    KubeReservedCompressible,
}

/// Rules for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// `seccompDefault`, here or in `modules.edged`.
    pub seccomp_default: bool,
    /// `allowedUnsafeSysctls`: names, or beginnings with `*` behind them.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// `protectKernelDefaults`.
    pub protect_kernel_defaults: bool,
}

/// Pods from files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticPods {
    /// `staticPodPath`: a folder or a file. Empty: none.
    pub path: String,
    /// `fileCheckFrequency`.
    pub check_interval: Duration,
}

/// What the kubelet serves on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalServer {
    pub address: IpAddr,
    /// `readOnlyPort`; `None` when it is 0.
    pub port: Option<u16>,
    pub streaming_idle_timeout: Duration,
    /// `enableDebuggingHandlers`: logs and the list of running pods. There is neither exec nor run in any case.
    pub debugging_handlers: bool,
}

/// Events that are sent: 0 a second sets no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    pub per_second: u32,
    pub burst: u32,
}

/// How pods end when the node shuts down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// `shutdownGracePeriod`, of which `critical` is the last part. 0: pods are not ended.
    pub grace: Duration,
    /// `shutdownGracePeriodCriticalPods`.
    pub critical: Duration,
    /// `shutdownGracePeriodByPodPriority`: from this priority on, this long. Empty unless the file says.
    pub by_priority: Vec<(i32, Duration)>,
}

pub(super) const NOT_PINNED: &str =
    "containers are not bound to memory banks by this version; requests, limits and reserves count";
const NO_MOVES: &str = "processes of the system are not moved between control groups, nor looked for in them";
const NO_STREAMS: &str = "exec, attach and port forwarding are not part of this version";
const INSIDE: &str = "they tune parts that are built differently";
const NETWORK: &str = "the network of pods is the affair of the container runtime";
const GATES: &str = "gates of Kubernetes switch code that is not here";
/// Without it a kubelet refuses another longest wait than its own.
const CRASH_GATE: &str = "KubeletCrashLoopBackOffMax";
const NO_CRASH_GATE: &str = "it takes the gate KubeletCrashLoopBackOffMax: true";
/// The bounds of a kubelet.
const CRASH_WAIT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// A kubelet's own.
const STREAMS_IDLE: Duration = Duration::from_secs(4 * 3600);
/// 32 bits with a sign, as every count in the official file.
const COUNT_MAX: u64 = i32::MAX as u64;
/// The longest that is waited for anything.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) fn at(key: &str) -> String {
    format!("modules.edged.tailoredKubeletConfig.{key}")
}

/// More than nothing.
pub(super) fn interval(r: &mut Reader, key: &str, default_s: u64) -> Duration {
    let default = Duration::from_secs(default_s);
    r.go_duration_in(&at(key), default, Duration::from_secs(1)..=WAIT_MAX)
}

fn count(r: &mut Reader, key: &str, default: u32) -> u32 {
    let number = r.number(&at(key), u64::from(default), 0, COUNT_MAX);
    u32::try_from(number).unwrap_or(default)
}

/// Empty stands for none.
pub(super) fn absolute_or_none(r: &mut Reader, key: &str, default: &str) -> String {
    let path = r.text(&at(key), default);
    if !path.is_empty() && !path.starts_with('/') {
        r.mistake(&at(key), format!("an absolute path is expected, not {path:?}"));
    }
    path
}

pub(super) fn pod_logs_dir(r: &mut Reader) -> String {
    let path = at("podLogsDir");
    let dir = absolute(r, &path, "/var/log/pods");
    let clean = dir
        .split('/')
        .skip(1)
        .all(|part| !matches!(part, "" | "." | ".."));
    if !clean || !dir.is_ascii() {
        r.mistake(
            &path,
            format!("a plain ASCII path without '..' and double '/' is expected, not {dir:?}"),
        );
    }
    dir
}

pub(super) fn log_bytes_max(r: &mut Reader) -> u64 {
    const DEFAULT: u64 = 10 << 20;
    let path = at("containerLogMaxSize");
    let text = r.text(&path, "10Mi");
    let bytes = Quantity::parse(&text)
        .ok()
        .and_then(|size| u64::try_from(size.units()).ok());
    match bytes {
        Some(bytes) if bytes > 0 => bytes,
        Some(_) | None => {
            r.mistake(&path, format!("a size such as 10Mi is expected, not {text:?}"));
            DEFAULT
        }
    }
}

pub(super) fn logs(r: &mut Reader) -> Logs {
    let workers = r.number(&at("containerLogMaxWorkers"), 1, 1, COUNT_MAX);
    let bounds = Duration::from_secs(3)..=WAIT_MAX;
    Logs {
        workers: u32::try_from(workers).unwrap_or(1),
        check_interval: r.go_duration_in(
            &at("containerLogMonitorInterval"),
            Duration::from_secs(10),
            bounds,
        ),
    }
}

pub(super) fn images(r: &mut Reader) -> Images {
    let high = r.number(&at("imageGCHighThresholdPercent"), 85, 0, 100);
    let low = r.number(&at("imageGCLowThresholdPercent"), 80, 0, 100);
    if low >= high {
        r.mistake(
            &at("imageGCLowThresholdPercent"),
            format!("{low} is not below imageGCHighThresholdPercent, which is {high}"),
        );
    }
    let age_min = r.go_duration(&at("imageMinimumGCAge"), Duration::from_secs(120));
    let age_max = r.go_duration(&at("imageMaximumGCAge"), Duration::ZERO);
    if !age_max.is_zero() && age_max <= age_min {
        r.mistake(
            &at("imageMaximumGCAge"),
            format!("{age_max:?} is not above imageMinimumGCAge, which is {age_min:?}"),
        );
    }
    let serial = r.flag(&at("serializeImagePulls"), true);
    let parallel_path = at("maxParallelImagePulls");
    let parallel = r.has(&parallel_path);
    let parallel_max = r.number(&parallel_path, 1, 1, COUNT_MAX);
    if serial && parallel_max > 1 {
        r.mistake(
            &parallel_path,
            "is above 1 although serializeImagePulls is true; set that to false",
        );
    }
    let reported = r.integer(&at("nodeStatusMaxImages"), 0, -1, i64::from(i32::MAX));
    Images {
        pulls_per_second: count(r, "registryPullQPS", 5),
        pull_burst: count(r, "registryBurst", 10),
        serial,
        parallel_max: parallel.then(|| u32::try_from(parallel_max).unwrap_or(u32::MAX)),
        gc_high_percent: u8::try_from(high).unwrap_or(85),
        gc_low_percent: u8::try_from(low).unwrap_or(80),
        age_min,
        age_max: (!age_max.is_zero()).then_some(age_max),
        reported_max: u32::try_from(reported).ok(),
    }
}

pub(super) fn cgroups(r: &mut Reader) -> Cgroups {
    let driver = r.word(
        &at("cgroupDriver"),
        &[
            ("cgroupfs", CgroupDriver::Cgroupfs),
            ("systemd", CgroupDriver::Systemd),
        ],
    );
    let (root, system) = (r.text(&at("cgroupRoot"), ""), r.text(&at("systemCgroups"), ""));
    if !system.is_empty() && root.is_empty() {
        r.mistake(&at("systemCgroups"), "needs cgroupRoot");
    }
    let oom_kill = at("singleProcessOOMKill");
    let oom_kill_said = r.has(&oom_kill);
    let single_process_oom_kill = r.flag(&oom_kill, false);
    let period = Duration::from_millis(1)..=Duration::from_secs(1);
    let kubelet = r.text(&at("kubeletCgroups"), "");
    let runtime = r.text("modules.edged.runtimeCgroups", "");
    for (path, group) in [
        (at("kubeletCgroups"), &kubelet),
        (at("systemCgroups"), &system),
        ("modules.edged.runtimeCgroups".to_owned(), &runtime),
    ] {
        if !group.is_empty() {
            r.without_effect(&path, NO_MOVES);
        }
    }
    Cgroups {
        driver,
        root,
        per_qos: r.flag(&at("cgroupsPerQOS"), true),
        kubelet,
        system,
        runtime,
        cpu_cfs_quota: r.flag(&at("cpuCFSQuota"), true),
        cpu_cfs_quota_period: r.go_duration_in(&at("cpuCFSQuotaPeriod"), Duration::from_millis(100), period),
        memory_throttling_factor: r.fraction(&at("memoryThrottlingFactor"), 0.9),
        swap: swap(r),
        single_process_oom_kill: oom_kill_said.then_some(single_process_oom_kill),
    }
}

fn swap(r: &mut Reader) -> Swap {
    let path = at("memorySwap.swapBehavior");
    let words = [
        ("", Swap::None),
        ("NoSwap", Swap::None),
        ("LimitedSwap", Swap::Limited),
    ];
    r.word(&path, &words)
}

pub(super) fn reserved(r: &mut Reader) -> Reserved {
    let system_cgroup = r.text(&at("systemReservedCgroup"), "");
    let kube_cgroup = r.text(&at("kubeReservedCgroup"), "");
    let cpus = r.text(&at("reservedSystemCPUs"), "");
    if !cpus.is_empty() {
        let path = at("reservedSystemCPUs");
        if !is_cpu_set(&cpus) {
            r.mistake(&path, format!("CPUs such as 0-1,3 are expected, not {cpus:?}"));
        }
        if !system_cgroup.is_empty() || !kube_cgroup.is_empty() {
            r.mistake(
                &path,
                "cannot be combined with systemReservedCgroup or kubeReservedCgroup",
            );
        }
    }
    let path = "modules.edged.experimentalNodeAllocatableIgnoreEvictionThreshold";
    Reserved {
        system: quantities(r, "systemReserved"),
        kube: quantities(r, "kubeReserved"),
        enforce: enforcements(r, &system_cgroup, &kube_cgroup),
        cpus,
        system_cgroup,
        kube_cgroup,
        eviction_counts: !r.flag(path, false),
    }
}

/// `0-1,3`: no more CPUs than Linux knows.
fn is_cpu_set(text: &str) -> bool {
    let cpu = |text: &str| text.parse::<u16>().ok().filter(|cpu| *cpu < 8192);
    text.split(',').all(|part| match part.split_once('-') {
        Some((first, last)) => matches!((cpu(first), cpu(last)), (Some(first), Some(last)) if first <= last),
        None => cpu(part).is_some(),
    })
}

fn quantities(r: &mut Reader, key: &str) -> Vec<(String, Quantity)> {
    let path = at(key);
    let mut quantities = Vec::new();
    for (name, text) in r.text_map(&path) {
        let path = format!("{path}.{name}");
        if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pid")
            && !name.starts_with("hugepages-")
        {
            r.mistake(
                &path,
                "cannot be reserved; there are cpu, memory, ephemeral-storage, pid and hugepages-*",
            );
            continue;
        }
        match Quantity::parse(&text) {
            Ok(quantity) if quantity.milli() >= 0 => quantities.push((name, quantity)),
            Ok(_) => r.mistake(&path, format!("{text} is negative")),
            Err(invalid) => r.mistake(&path, invalid.to_string()),
        }
    }
    quantities
}

fn enforcements(r: &mut Reader, system_cgroup: &str, kube_cgroup: &str) -> Vec<Enforcement> {
    use Enforcement::{
        KubeReserved, KubeReservedCompressible, Pods, SystemReserved, SystemReservedCompressible,
    };
    const WORDS: [(&str, Enforcement); 5] = [
        ("pods", Pods),
        ("system-reserved", SystemReserved),
        ("system-reserved-compressible", SystemReservedCompressible),
        ("kube-reserved", KubeReserved),
        ("kube-reserved-compressible", KubeReservedCompressible),
    ];
    let path = at("enforceNodeAllocatable");
    let texts = r.texts(&path, &["pods".to_owned()]);
    let mut enforce = Vec::new();
    for text in &texts {
        if text == "none" {
            if texts.len() > 1 {
                r.mistake(&path, "none stands alone");
            }
            continue;
        }
        let Some((_, word)) = WORDS.iter().find(|(word, _)| word == text) else {
            let known: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
            r.mistake(
                &path,
                format!("{} or none are expected, not {text:?}", known.join(", ")),
            );
            continue;
        };
        if enforce.contains(word) {
            r.mistake(&path, format!("{text} stands twice"));
            continue;
        }
        let needed = match word {
            Pods => None,
            SystemReserved | SystemReservedCompressible => Some(("systemReservedCgroup", system_cgroup)),
            KubeReserved | KubeReservedCompressible => Some(("kubeReservedCgroup", kube_cgroup)),
        };
        if let Some((needed, "")) = needed {
            r.mistake(&path, format!("{text} needs {needed}"));
        }
        enforce.push(*word);
    }
    for [whole, part] in [
        [SystemReserved, SystemReservedCompressible],
        [KubeReserved, KubeReservedCompressible],
    ] {
        if enforce.contains(&whole) && enforce.contains(&part) {
            r.mistake(&path, "a reserve and its compressible part exclude each other");
        }
    }
    if !enforce.is_empty() && !r.flag(&at("cgroupsPerQOS"), true) {
        r.mistake(&path, "needs cgroupsPerQOS: true; write [none] here without it");
    }
    enforce
}

pub(super) fn security(r: &mut Reader) -> Security {
    let path = at("allowedUnsafeSysctls");
    let allowed_unsafe_sysctls = r.texts(&path, &[]);
    for pattern in &allowed_unsafe_sysctls {
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if name.is_empty() || !name.chars().all(plain) {
            r.mistake(
                &path,
                format!("a sysctl such as net.core.somaxconn or net.* is expected, not {pattern:?}"),
            );
        }
    }
    let (inner, outer) = (
        r.flag(&at("seccompDefault"), false),
        r.flag("modules.edged.seccompDefault", false),
    );
    Security {
        seccomp_default: inner || outer,
        allowed_unsafe_sysctls,
        protect_kernel_defaults: r.flag(&at("protectKernelDefaults"), false),
    }
}

pub(super) fn static_pods(r: &mut Reader) -> StaticPods {
    StaticPods {
        path: absolute_or_none(r, "staticPodPath", "/etc/kubeedge/manifests"),
        check_interval: interval(r, "fileCheckFrequency", 20),
    }
}

pub(super) fn server(r: &mut Reader) -> LocalServer {
    let port = r.number(&at("readOnlyPort"), 10350, 0, u64::from(u16::MAX));
    let idle_path = at("streamingConnectionIdleTimeout");
    let idle = r.go_duration(&idle_path, STREAMS_IDLE);
    if idle != STREAMS_IDLE {
        r.without_effect(&idle_path, NO_STREAMS);
    }
    LocalServer {
        address: r.ip(&at("address"), IpAddr::V4(Ipv4Addr::LOCALHOST)),
        port: u16::try_from(port).ok().filter(|port| *port > 0),
        streaming_idle_timeout: idle,
        debugging_handlers: r.flag(&at("enableDebuggingHandlers"), true),
    }
}

pub(super) fn events(r: &mut Reader) -> Events {
    Events {
        per_second: count(r, "eventRecordQPS", 50),
        burst: count(r, "eventBurst", 100),
    }
}

pub(super) fn shutdown(r: &mut Reader) -> Shutdown {
    let mut grace = |key: &str| {
        let path = at(key);
        let grace = r.go_duration(&path, Duration::ZERO);
        if !grace.is_zero() && grace < Duration::from_secs(1) {
            r.mistake(&path, format!("0 or at least 1s is expected, not {grace:?}"));
        }
        grace
    };
    let (whole, critical) = (
        grace("shutdownGracePeriod"),
        grace("shutdownGracePeriodCriticalPods"),
    );
    if critical > whole {
        r.mistake(
            &at("shutdownGracePeriodCriticalPods"),
            format!("{critical:?} is more than shutdownGracePeriod, of which it is a part: {whole:?}"),
        );
    }
    let by_priority = grace_by_priority(r);
    if !by_priority.is_empty() && whole.max(critical) > Duration::ZERO {
        r.mistake(
            &at("shutdownGracePeriodByPodPriority"),
            "excludes shutdownGracePeriod and shutdownGracePeriodCriticalPods",
        );
    }
    Shutdown {
        grace: whole,
        critical,
        by_priority,
    }
}

fn grace_by_priority(r: &mut Reader) -> Vec<(i32, Duration)> {
    let path = at("shutdownGracePeriodByPodPriority");
    let mut graces = Vec::new();
    for (index, item) in r.list(&path).into_iter().enumerate() {
        let number = |key: &str| item.get(key).map_or(Some(0), serde_json::Value::as_i64);
        let priority = number("priority").and_then(|number| i32::try_from(number).ok());
        let seconds = number("shutdownGracePeriodSeconds").and_then(|number| u64::try_from(number).ok());
        match (priority, seconds) {
            (Some(priority), Some(seconds)) if item.is_object() => {
                graces.push((priority, Duration::from_secs(seconds)));
            }
            (Some(_) | None, Some(_) | None) => r.mistake(
                &format!("{path}[{index}]"),
                "{priority, shutdownGracePeriodSeconds} is expected, with whole numbers",
            ),
        }
    }
    graces.sort_by_key(|(priority, _)| *priority);
    graces
}

/// Gates are Kubernetes' own names; which there are changes with every release, so any is taken.
pub(super) fn feature_gates(r: &mut Reader) -> Vec<(String, bool)> {
    let gates = r.flags(&at("featureGates"));
    let silent = |gate: &str| gate != CRASH_GATE && !pinning::GATES.contains(&gate);
    for (gate, _) in gates.iter().filter(|(gate, _)| silent(gate)) {
        r.without_effect(&at(&format!("featureGates.{gate}")), GATES);
    }
    checked_only(r);
    gates
}

/// The longest wait before a container that ended is started again, if the file says.
pub(super) fn crash_wait_max(r: &mut Reader, gates: &[(String, bool)]) -> Option<Duration> {
    let path = at("crashLoopBackOff.maxContainerRestartPeriod");
    let says = r.has(&path);
    let longest = r.go_duration_in(&path, *CRASH_WAIT.end(), CRASH_WAIT);
    let open = gates.iter().any(|(gate, on)| gate == CRASH_GATE && *on);
    if says && !open {
        r.without_effect(&path, NO_CRASH_GATE);
    }
    (says && open).then_some(longest)
}

/// Values that a kubelet refuses when they are wrong and that mean nothing here.
fn checked_only(r: &mut Reader) {
    let strategy = at("configMapAndSecretChangeDetectionStrategy");
    if r.word(&strategy, &[("Get", false), ("Cache", true), ("Watch", true)]) {
        r.without_effect(&strategy, INSIDE);
    }
    for (key, default_s) in [("syncFrequency", 60), ("volumeStatsAggPeriod", 60)] {
        let default = Duration::from_secs(default_s);
        if r.go_duration(&at(key), default) != default {
            r.without_effect(&at(key), INSIDE);
        }
    }
    if r.number(&at("maxOpenFiles"), 1_000_000, 0, i64::MAX.unsigned_abs()) != 1_000_000 {
        r.without_effect(&at("maxOpenFiles"), INSIDE);
    }
    for (key, default) in [("iptablesDropBit", 15), ("iptablesMasqueradeBit", 14)] {
        if r.number(&at(key), default, 0, 31) != default {
            r.without_effect(&at(key), NETWORK);
        }
    }
    let hairpin = [
        ("promiscuous-bridge", false),
        ("hairpin-veth", true),
        ("none", true),
    ];
    if r.word(&at("hairpinMode"), &hairpin) {
        r.without_effect(&at("hairpinMode"), NETWORK);
    }
}
