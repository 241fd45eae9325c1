//! `modules.edged`: its own keys, and what they are with those of the kubelet inside.

use super::eviction::{self, Eviction};
use super::kubelet::{
    self, Cgroups, ContainerGc, Events, Images, LocalServer, Logs, Reserved, Security, Shutdown, StaticPods,
};
use super::pinning::{self, Pinning};
use super::{EdgeFacts, absolute};
use crate::reader::Reader;
use kedge_wire::NodeName;
use serde_json::Value;
use std::net::IpAddr;
use std::time::Duration;

/// `modules.edged`; keys below `tailoredKubeletConfig` unless said otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Edged {
    /// `hostnameOverride` of `modules.edged`; a valid node name.
    pub node_name: String,
    /// `nodeIP` of `modules.edged`: an IP address. Empty: found at start.
    pub node_ip: String,
    /// `customInterfaceName` of `modules.edged`: the network interface whose address is the node's, before
    /// `node_ip`. Empty: none.
    pub interface: String,
    /// `nodeLabels` of `modules.edged`.
    pub node_labels: Vec<(String, String)>,
    /// Kubernetes taints as in the file: `{key, value, effect}`. Each has a key and a known effect.
    pub taints: Vec<Value>,
    /// `rootDirectory` of `modules.edged`.
    pub root_directory: String,
    /// `reportEvent` of `modules.edged`.
    pub report_event: bool,
    pub register_node: bool,
    /// `registerSchedulable` of `modules.edged`.
    pub register_schedulable: bool,
    /// `maxPods`.
    pub pods_max: usize,
    /// `podsPerCore`; 0 sets no limit.
    pub pods_per_core: u32,
    /// `podPidsLimit`; `None` when it is negative.
    pub pod_pids_max: Option<u64>,
    /// `podCIDR`: the networks of pods of the built-in runtime, one of each kind of addresses at most, the first that of
    /// the address by which pods are usually called. A CRI runtime has its own.
    pub pod_cidrs: Vec<(IpAddr, u8)>,
    pub cluster_domain: String,
    pub cluster_dns: Vec<String>,
    /// `resolvConf`. Empty: pods get no resolver of the node.
    pub resolv_conf: String,
    /// `nodeStatusUpdateFrequency`: how often the node is looked at.
    pub status_check_interval: Duration,
    /// `nodeStatusReportFrequency`: the status is said at least this often.
    pub status_report_interval: Duration,
    /// `nodeLeaseDurationSeconds`.
    pub lease_duration: Duration,
    /// `containerRuntimeEndpoint` and `imageServiceEndpoint`.
    pub container_runtime: ContainerRuntime,
    /// `runtimeRequestTimeout`: of every call of the runtime but pulls, logs and exec.
    pub runtime_timeout: Duration,
    /// `podSandboxImage` of `modules.edged`: is not collected as garbage.
    pub sandbox_image: String,
    /// `podLogsDir`.
    pub pod_logs_dir: String,
    /// `containerLogMaxSize`.
    pub log_bytes_max: u64,
    /// `containerLogMaxFiles`.
    pub log_files_max: usize,
    pub logs: Logs,
    pub images: Images,
    pub container_gc: ContainerGc,
    /// `crashLoopBackOff.maxContainerRestartPeriod`, where its gate is open.
    pub crash_wait_max: Option<Duration>,
    pub eviction: Eviction,
    pub reserved: Reserved,
    pub pinning: Pinning,
    pub cgroups: Cgroups,
    pub security: Security,
    pub static_pods: StaticPods,
    /// `address` and `readOnlyPort`: what the kubelet serves on the node.
    pub server: LocalServer,
    pub events: Events,
    pub shutdown: Shutdown,
    /// `oomScoreAdj` of EdgeCore itself.
    pub oom_score_adj: i32,
    /// `failSwapOn`: do not start on a node with swap.
    pub fail_swap_on: bool,
    /// `failCgroupV1`: do not start on a node with control groups of version 1.
    pub fail_cgroup_v1: bool,
    /// `localStorageCapacityIsolation`: local disk is a resource of the node, and its limits are kept.
    pub local_storage: bool,
    /// `enableControllerAttachDetach`.
    pub controller_attach_detach: bool,
    /// The whole section as JSON, with the defaults of what the file leaves out, as `/configz` shows it.
    pub effective: String,
    /// Gates of Kubernetes that the file sets. But for that of [`Edged::crash_wait_max`] none changes anything here.
    pub feature_gates: Vec<(String, bool)>,
    /// `kedge.runtimeDirectory`: images and containers of the built-in runtime.
    pub runtime_directory: String,
    /// `kedge.bridge`: the network bridge of the built-in runtime.
    pub bridge: String,
    /// Plug-ins that connect the pods of the built-in runtime, instead of the bridge.
    pub cni: Cni,
    /// `kedge.cgroupRoot`: the control group below which the built-in runtime puts its pods.
    pub cgroup_root: String,
    /// `kedge.registries`: where the built-in runtime pulls images from.
    pub registries: Registries,
    /// `kedge.devicePlugins`: the folder in which device plug-ins find the kubelet. Empty: they do not.
    pub device_plugins: String,
    /// `kedge.cdiSpecDirs`: where the built-in runtime finds devices described by name; the later count more.
    pub cdi_directories: Vec<String>,
}

/// Where the built-in runtime finds the Container Network Interface; a CRI runtime has its own file for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cni {
    /// `kedge.cniConfDir`: without a configuration in it, pods are on the bridge. Empty: always on the bridge.
    pub configurations: String,
    /// `kedge.cniBinDirs`.
    pub programs: Vec<String>,
}

/// What the built-in runtime knows about registries; a CRI runtime has its own file for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registries {
    /// Hosts, with their port, that are spoken to without TLS.
    pub plain_http: Vec<String>,
    /// Hosts that are asked before a registry, by the registry's name.
    pub mirrors: Vec<(String, Vec<String>)>,
    /// Files with authorities in PEM, besides those of the system.
    pub authorities: Vec<String>,
}

/// `modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerRuntime {
    /// A runtime behind CRI, by default containerd. Both are paths of sockets.
    Cri {
        socket: String,
        /// Of the image service; usually the same.
        image_socket: String,
    },
    /// `kedge://embedded`: the built-in OCI runtime.
    Embedded,
    /// `kedge://hollow`: containers that exist in memory only, for load and for machines without root.
    Hollow,
}

const CONTAINERD: &str = "unix:///run/containerd/containerd.sock";
/// Of the name of a network interface in Linux.
const INTERFACE_BYTES_MAX: usize = 15;
/// More pods than any node runs.
const PODS_MAX: u64 = 10_000;

pub(super) fn read(r: &mut Reader, facts: &EdgeFacts) -> Edged {
    let own = |key: &str| format!("modules.edged.{key}");
    let at = kubelet::at;
    let pods_max = r.number(&at("maxPods"), 110, 0, PODS_MAX);
    let pods_per_core = r.number(&at("podsPerCore"), 0, 0, PODS_MAX);
    let oom_score_adj = r.integer(&at("oomScoreAdj"), -999, -1000, 1000);
    let log_files_max = r.number(&at("containerLogMaxFiles"), 5, 2, 1000);
    let eviction = eviction::read(r);
    let feature_gates = kubelet::feature_gates(r);
    let reserved = kubelet::reserved(r);
    Edged {
        node_name: node_name(r, facts),
        node_ip: node_ip(r),
        interface: interface(r),
        node_labels: labels(r),
        taints: taints(r),
        root_directory: absolute(r, &own("rootDirectory"), "/var/lib/kubelet"),
        report_event: r.flag(&own("reportEvent"), false),
        register_node: r.flag(&at("registerNode"), true),
        register_schedulable: r.flag(&own("registerSchedulable"), true),
        pods_max: usize::try_from(pods_max).unwrap_or(110),
        pods_per_core: u32::try_from(pods_per_core).unwrap_or(0),
        pod_pids_max: r.limit(&at("podPidsLimit"), -1),
        pod_cidrs: pod_cidrs(r),
        cluster_domain: r.text(&at("clusterDomain"), "cluster.local"),
        cluster_dns: cluster_dns(r),
        resolv_conf: kubelet::absolute_or_none(r, "resolvConf", "/etc/resolv.conf"),
        status_check_interval: kubelet::interval(r, "nodeStatusUpdateFrequency", 10),
        status_report_interval: kubelet::interval(r, "nodeStatusReportFrequency", 300),
        lease_duration: r.seconds(&at("nodeLeaseDurationSeconds"), 40, 3600),
        container_runtime: container_runtime(r),
        runtime_timeout: kubelet::interval(r, "runtimeRequestTimeout", 120),
        sandbox_image: r.text(&own("podSandboxImage"), "kubeedge/pause:3.6"),
        pod_logs_dir: kubelet::pod_logs_dir(r),
        log_bytes_max: kubelet::log_bytes_max(r),
        log_files_max: usize::try_from(log_files_max).unwrap_or(5),
        logs: kubelet::logs(r),
        images: kubelet::images(r),
        container_gc: container_gc(r),
        pinning: pinning::read(r, &reserved, &feature_gates),
        reserved,
        cgroups: kubelet::cgroups(r),
        security: kubelet::security(r),
        static_pods: kubelet::static_pods(r),
        server: kubelet::server(r),
        events: kubelet::events(r),
        shutdown: kubelet::shutdown(r),
        oom_score_adj: i32::try_from(oom_score_adj).unwrap_or(-999),
        fail_swap_on: r.flag(&at("failSwapOn"), false),
        fail_cgroup_v1: r.flag(&at("failCgroupV1"), false),
        local_storage: r.flag(&at("localStorageCapacityIsolation"), true),
        effective: r.with_defaults("modules.edged.tailoredKubeletConfig").to_string(),
        controller_attach_detach: r.flag(&at("enableControllerAttachDetach"), true),
        crash_wait_max: kubelet::crash_wait_max(r, &feature_gates),
        feature_gates,
        runtime_directory: absolute(r, "kedge.runtimeDirectory", "/var/lib/kedge/runtime"),
        bridge: r.text("kedge.bridge", "kedge0"),
        cni: cni(r),
        cgroup_root: absolute(r, "kedge.cgroupRoot", "/kedge"),
        registries: registries(r),
        device_plugins: device_plugins(r),
        cdi_directories: cdi_directories(r),
        eviction,
    }
}

fn registries(r: &mut Reader) -> Registries {
    let path = "kedge.registries.mirrors";
    let mut mirrors = Vec::new();
    for (registry, hosts) in r.entries(path) {
        let hosts: Option<Vec<String>> = hosts.as_array().and_then(|hosts| {
            let hosts = hosts.iter().map(|host| host.as_str().map(str::to_owned));
            hosts.collect()
        });
        match hosts {
            Some(hosts) => mirrors.push((registry, hosts)),
            None => r.mistake(&format!("{path}.{registry}"), "a list of hosts is expected"),
        }
    }
    Registries {
        plain_http: r.texts("kedge.registries.plainHTTP", &[]),
        mirrors,
        authorities: r.texts("kedge.registries.authorities", &[]),
    }
}

fn device_plugins(r: &mut Reader) -> String {
    folder_or_none(r, "kedge.devicePlugins", "/var/lib/kubelet/device-plugins")
}

fn cni(r: &mut Reader) -> Cni {
    Cni {
        configurations: folder_or_none(r, "kedge.cniConfDir", "/etc/cni/net.d"),
        programs: folders(r, "kedge.cniBinDirs", ["/opt/cni/bin", "/usr/lib/cni"]),
    }
}

fn cdi_directories(r: &mut Reader) -> Vec<String> {
    folders(r, "kedge.cdiSpecDirs", ["/etc/cdi", "/var/run/cdi"])
}

fn folders(r: &mut Reader, path: &str, default: [&str; 2]) -> Vec<String> {
    let folders = r.texts(path, &default.map(str::to_owned));
    for folder in folders.iter().filter(|folder| !folder.starts_with('/')) {
        r.mistake(path, format!("absolute paths are expected, not {folder:?}"));
    }
    folders
}

/// A folder, or nothing where the operator wants none.
fn folder_or_none(r: &mut Reader, path: &str, default: &str) -> String {
    let folder = r.text(path, default);
    if !folder.is_empty() && !folder.starts_with('/') {
        r.mistake(path, format!("an absolute path is expected, not {folder:?}"));
    }
    folder
}

fn node_name(r: &mut Reader, facts: &EdgeFacts) -> String {
    let path = "modules.edged.hostnameOverride";
    let name = r.text(path, &facts.hostname);
    if let Err(invalid) = NodeName::new(name.clone()) {
        r.mistake(path, invalid.to_string());
    }
    name
}

fn node_ip(r: &mut Reader) -> String {
    let path = "modules.edged.nodeIP";
    let text = r.text(path, "");
    if !text.is_empty() && text.parse::<IpAddr>().is_err() {
        r.mistake(path, format!("an IP address is expected, not {text:?}"));
    }
    text
}

fn interface(r: &mut Reader) -> String {
    let path = "modules.edged.customInterfaceName";
    let name = r.text(path, "");
    if name.len() > INTERFACE_BYTES_MAX || name.contains(|c: char| c == '/' || c.is_whitespace()) {
        r.mistake(
            path,
            format!("the name of a network interface is expected, not {name:?}"),
        );
    }
    name
}

/// One that the API would refuse keeps the node from being registered, which is noticed late.
fn labels(r: &mut Reader) -> Vec<(String, String)> {
    let path = "modules.edged.nodeLabels";
    let labels = r.text_map(path);
    for (key, value) in &labels {
        if !is_label_key(key) {
            r.mistake(
                path,
                format!("a label such as example.org/site is expected, not {key:?}"),
            );
        }
        if !value.is_empty() && !is_label_word(value) {
            let path = format!("{path}.{key}");
            r.mistake(&path, format!("{LABEL_WORD} are expected, not {value:?}"));
        }
    }
    labels
}

const LABEL_WORD: &str = "at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends,";

/// A word, or behind a domain and `/` one.
fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, word)) => NodeName::new(domain).is_ok() && is_label_word(word),
        None => is_label_word(key),
    }
}

fn is_label_word(word: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    word.len() <= 63
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && edge(word.chars().next())
        && edge(word.chars().next_back())
}

fn taints(r: &mut Reader) -> Vec<Value> {
    let path = kubelet::at("registerWithTaints");
    let taints = r.list(&path);
    for (index, taint) in taints.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Ok(taint) = serde_json::from_value::<kedge_api::Taint>(taint.clone()) else {
            r.mistake(&path, "a taint {key, value, effect} is expected");
            continue;
        };
        if !is_label_key(&taint.key) {
            r.mistake(
                &path,
                format!("a key such as example.org/site is expected, not {:?}", taint.key),
            );
        }
        if let Some(value) = taint
            .value
            .filter(|value| !value.is_empty() && !is_label_word(value))
        {
            r.mistake(
                &path,
                format!("{LABEL_WORD} are expected as value, not {value:?}"),
            );
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !effects.contains(&taint.effect.as_str()) {
            let known = effects.join(" or ");
            r.mistake(
                &path,
                format!("{known} is expected as effect, not {:?}", taint.effect),
            );
        }
        if taint.time_added.is_some() {
            r.mistake(&path, "timeAdded is not the operator's to set");
        }
    }
    taints
}

/// Officially empty, because a CRI runtime has its own; ours needs one.
fn pod_cidrs(r: &mut Reader) -> Vec<(IpAddr, u8)> {
    let path = kubelet::at("podCIDR");
    let default = "10.234.0.0/24";
    let text = match r.text(&path, default) {
        empty if empty.is_empty() => default.to_owned(),
        text => text,
    };
    let networks: Option<Vec<_>> = text.split(',').map(network).collect();
    match networks.as_deref() {
        Some([one]) => vec![*one],
        Some([one, other]) if one.0.is_ipv4() != other.0.is_ipv4() => vec![*one, *other],
        Some(_) | None => {
            r.mistake(
                &path,
                format!(
                    "a network such as {default}, or two such as {default},fd00:234::/64 of both kinds, are expected, \
                     not {text:?}"
                ),
            );
            Vec::new()
        }
    }
}

/// An address that a machine can have, with the length of its network's prefix.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.trim().split_once('/')?;
    let (address, prefix) = (address.parse().ok()?, prefix.parse().ok()?);
    let (bits, is_local) = match address {
        IpAddr::V4(address) => (32, address.is_link_local()),
        IpAddr::V6(address) => (
            128,
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
        ),
    };
    let is_usable = !(address.is_multicast() || address.is_loopback() || is_local);
    (prefix <= bits && is_usable).then_some((address, prefix))
}

fn cluster_dns(r: &mut Reader) -> Vec<String> {
    let path = kubelet::at("clusterDNS");
    let addresses = r.texts(&path, &[]);
    for address in &addresses {
        if address.parse::<IpAddr>().is_err() {
            r.mistake(&path, format!("IP addresses are expected, not {address:?}"));
        }
    }
    addresses
}

fn container_gc(r: &mut Reader) -> ContainerGc {
    let count = |number: Option<u64>| number.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    ContainerGc {
        age_min: r.go_duration("modules.edged.minimumGCAge", Duration::ZERO),
        per_pod_max: count(r.limit("modules.edged.maxPerPodContainerCount", 1)),
        total_max: count(r.limit("modules.edged.maxContainerCount", -1)),
    }
}

fn container_runtime(r: &mut Reader) -> ContainerRuntime {
    let path = kubelet::at("containerRuntimeEndpoint");
    let image_path = kubelet::at("imageServiceEndpoint");
    let endpoint = r.text(&path, CONTAINERD);
    // The image service is the runtime's unless it is named.
    let image_endpoint = match r.text(&image_path, &endpoint) {
        empty if empty.is_empty() => endpoint.clone(),
        text => text,
    };
    match endpoint.as_str() {
        "kedge://embedded" => ContainerRuntime::Embedded,
        "kedge://hollow" => ContainerRuntime::Hollow,
        _cri => {
            let socket = socket(r, &path, &endpoint);
            let image_socket = match image_endpoint == endpoint {
                true => socket.clone(),
                false => self::socket(r, &image_path, &image_endpoint),
            };
            ContainerRuntime::Cri { socket, image_socket }
        }
    }
}

/// `unix:///run/x.sock`, or the bare path, which a kubelet takes as well.
fn socket(r: &mut Reader, path: &str, endpoint: &str) -> String {
    let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !socket.starts_with('/') || socket.len() == 1 {
        r.mistake(
            path,
            format!(
                "{CONTAINERD} or another socket of a CRI runtime is expected, or kedge://embedded for the built-in \
                 runtime, not {endpoint:?}"
            ),
        );
    }
    socket.to_owned()
}
