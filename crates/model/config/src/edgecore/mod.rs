//! `edgecore.yaml`.

mod edged;
mod eviction;
mod hub;
mod kubelet;
mod modules;
mod pinning;
mod print;
mod silent;
#[cfg(test)]
mod tests;

pub use edged::{Cni, ContainerRuntime, Edged, Registries};
pub use eviction::{Amount, Eviction, Signal, SoftThreshold, Threshold};
pub use hub::{Hub, Rates, Transport};
pub use kubelet::{
    CgroupDriver, Cgroups, ContainerGc, Enforcement, Events, Images, LocalServer, Logs, Reserved, Security,
    Shutdown, StaticPods, Swap,
};
pub use modules::{
    DeviceTwin, EventBus, MetaServer, Mqtt, MqttMode, ServiceBus, Stream, TaskManager, TlsFiles,
};
pub use pinning::{CpuOptions, Pinning, TopologyPolicy};

use crate::cloudcore::LogFormat;
use crate::reader::{Form, Mistakes, Reader, Warning};
use std::time::Duration;

/// What EdgeCore needs from the operator's file, by consumer.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeCore {
    /// `kedge.logFilter`.
    pub log_filter: String,
    /// `kedge.logFormat`.
    pub log_format: LogFormat,
    /// SQLite file of the edge's metadata.
    pub data_source: String,
    pub hub: Hub,
    pub edged: Edged,
    pub stream: Stream,
    /// Limit of a question that the edge asks the cloud.
    pub remote_query_timeout: Duration,
    pub meta_server: MetaServer,
    pub event_bus: EventBus,
    pub device_twin: DeviceTwin,
    pub service_bus: ServiceBus,
    pub task_manager: TaskManager,
}

/// What defaults take from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeFacts {
    pub hostname: String,
    pub primary_ip: String,
}

/// Official feature gates of KubeEdge.
const GATES: [&str; 3] = ["disableNodeTaskV1alpha2", "moduleRestart", "requireAuthorization"];

impl EdgeCore {
    /// Reads the operator's file. An empty text gives the defaults.
    pub fn from_yaml(text: &str, facts: &EdgeFacts) -> Result<(Self, Vec<Warning>), Mistakes> {
        let mut r = Reader::new(text, form());
        let hub = hub::read(&mut r, facts);
        let config = Self {
            log_filter: r.text("kedge.logFilter", "info"),
            log_format: r.word(
                "kedge.logFormat",
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            ),
            data_source: absolute(&mut r, "database.dataSource", "/var/lib/kubeedge/edgecore.db"),
            edged: edged::read(&mut r, facts),
            stream: modules::stream(&mut r),
            remote_query_timeout: r.seconds("modules.metaManager.remoteQueryTimeout", 60, 3600),
            meta_server: modules::meta_server(&mut r, &hub),
            event_bus: modules::event_bus(&mut r, &hub),
            device_twin: modules::device_twin(&mut r),
            service_bus: modules::service_bus(&mut r),
            task_manager: modules::task_manager(&mut r),
            hub,
        };
        // The official EdgeCore writes its version into the file; ours leaves the file alone.
        r.text("edgecoreVersion", "");
        needed_modules(&mut r);
        feature_gates(&mut r);
        r.finish().map(|warnings| (config, warnings))
    }
}

fn form() -> Form {
    let defaults = print::defaults();
    Form {
        kind: "EdgeCore",
        api_group: "edgecore.config.kubeedge.io",
        shape: print::shape(&defaults),
        defaults,
        without_effect: silent::GROUPS,
        // The official EdgeCore writes every key back into the file; what nobody has chosen needs no word.
        defaults_are_silent: true,
    }
}

/// The official minimal file says `edgeHub.enable: false`, so this is no mistake.
fn needed_modules(r: &mut Reader) {
    for path in [
        "modules.edgeHub.enable",
        "modules.edged.enable",
        "modules.metaManager.enable",
    ] {
        if !r.flag(path, true) {
            r.without_effect(
                path,
                "an edge without this module is none, so it runs all the same",
            );
        }
    }
}

/// Unknown gates are mistakes, as officially. Of the known ones none changes anything here; one that is switched on is
/// answered with a word.
fn feature_gates(r: &mut Reader) {
    for (gate, on) in r.flags("featureGates") {
        let path = format!("featureGates.{gate}");
        let why = match gate.as_str() {
            "requireAuthorization" => "the local Kubernetes API is not part of this version",
            "moduleRestart" => "a task that fails ends the process, and whoever started it starts it again",
            "disableNodeTaskV1alpha2" => "node tasks are not part of this version",
            _unknown => {
                r.mistake(
                    &path,
                    format!("is no feature gate; there are {}", GATES.join(", ")),
                );
                continue;
            }
        };
        if on {
            r.without_effect(&path, why);
        }
    }
}

/// A path that does not depend on where the process was started.
fn absolute(r: &mut Reader, path: &str, default: &str) -> String {
    let text = r.text(path, default);
    if !text.starts_with('/') {
        r.mistake(path, format!("an absolute path is expected, not {text:?}"));
    }
    text
}

/// An IPv6 address stands in brackets before a port.
fn in_url(ip: &str) -> String {
    if ip.contains(':') {
        return format!("[{ip}]");
    }
    ip.to_owned()
}
