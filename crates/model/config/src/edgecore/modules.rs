//! The modules around edged and the hub. What this version does not have is read and checked all the same, so that a
//! file is judged once and for all versions, and answered with one word when it is switched on in the file.

use super::absolute;
use super::hub::Hub;
use crate::reader::Reader;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// `modules.edgeStream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub enable: bool,
    /// `host:port` of CloudStream's tunnel.
    pub server: String,
    /// How long the tunnel may take to be made.
    pub handshake_timeout: Duration,
}

/// `modules.metaManager.metaServer`: the local Kubernetes API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaServer {
    pub enable: bool,
    pub server: SocketAddr,
    pub dummy_server: SocketAddr,
    pub tls: TlsFiles,
    pub service_account_issuers: Vec<String>,
    pub api_audiences: Vec<String>,
    pub service_account_key_files: Vec<String>,
}

/// `modules.eventBus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventBus {
    pub enable: bool,
    pub mode: MqttMode,
    pub mqtt: Mqtt,
    /// `eventBusTLS`, when it is enabled.
    pub tls: Option<TlsFiles>,
}

/// `modules.eventBus.mqttMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttMode {
    /// 0: the broker of EdgeCore.
    Internal,
    /// 1.
    Both,
    /// 2: a broker beside EdgeCore. The default.
    External,
}

/// The brokers and how to speak with them.
#[derive(Clone, PartialEq, Eq)]
pub struct Mqtt {
    pub server_internal: String,
    pub server_external: String,
    pub qos: u8,
    pub retain: bool,
    pub session_queue_size: u32,
    pub sub_client_id: String,
    pub pub_client_id: String,
    pub username: String,
    pub password: String,
}

/// A password never prints itself.
impl std::fmt::Debug for Mqtt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mqtt")
            .field("server_internal", &self.server_internal)
            .field("server_external", &self.server_external)
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("session_queue_size", &self.session_queue_size)
            .field("sub_client_id", &self.sub_client_id)
            .field("pub_client_id", &self.pub_client_id)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A certificate with its key and the authority of the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

/// `modules.deviceTwin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTwin {
    pub enable: bool,
    /// `dmiSockPath`: the folder of `dmi.sock`.
    pub dmi_socket_dir: String,
}

/// `modules.serviceBus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceBus {
    pub enable: bool,
    pub server: String,
    pub port: u16,
    pub timeout: Duration,
}

/// `modules.taskManager`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskManager {
    pub enable: bool,
}

const NOT_YET: &str = "these modules are read and checked, but this version does not act on them";

pub(super) fn stream(r: &mut Reader) -> Stream {
    Stream {
        enable: r.flag("modules.edgeStream.enable", true),
        server: r.address("modules.edgeStream.server", "127.0.0.1:10004"),
        handshake_timeout: r.seconds("modules.edgeStream.handshakeTimeout", 30, 3600),
    }
}

/// Warns of a module that the file switches on. One that is on by default and not named gets no word.
fn announced(r: &mut Reader, section: &str, by_default: bool) -> bool {
    let enable = r.flag(&format!("{section}.enable"), by_default);
    if enable && r.has(section) {
        r.without_effect(section, NOT_YET);
    }
    enable
}

pub(super) fn meta_server(r: &mut Reader, hub: &Hub) -> MetaServer {
    let section = "modules.metaManager.metaServer";
    let at = |key: &str| format!("{section}.{key}");
    let socket = |ip: [u8; 4]| SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), 10550);
    MetaServer {
        enable: announced(r, section, false),
        server: r.socket(&at("server"), socket([127, 0, 0, 1])),
        dummy_server: r.socket(&at("dummyServer"), socket([169, 254, 30, 10])),
        tls: tls_files(r, &at("tls"), ["CaFile", "CertFile", "PrivateKeyFile"], hub),
        service_account_issuers: r.texts(
            &at("serviceAccountIssuers"),
            &["https://kubernetes.default.svc.cluster.local".to_owned()],
        ),
        api_audiences: r.texts(&at("apiAudiences"), &[]),
        service_account_key_files: r.texts(&at("serviceAccountKeyFiles"), &[]),
    }
}

fn tls_files(r: &mut Reader, prefix: &str, keys: [&str; 3], hub: &Hub) -> TlsFiles {
    let [authority, certificate, key] = keys.map(|key| format!("{prefix}{key}"));
    TlsFiles {
        authority: r.text(&authority, &hub.ca_file),
        certificate: r.text(&certificate, &hub.cert_file),
        key: r.text(&key, &hub.key_file),
    }
}

pub(super) fn event_bus(r: &mut Reader, hub: &Hub) -> EventBus {
    let section = "modules.eventBus";
    let at = |key: &str| format!("{section}.{key}");
    let enable = announced(r, section, true);
    let mode = match r.number(&at("mqttMode"), 2, 0, 2) {
        0 => MqttMode::Internal,
        1 => MqttMode::Both,
        _two => MqttMode::External,
    };
    let qos = r.number(&at("mqttQOS"), 0, 0, 2);
    let queue = r.number(&at("mqttSessionQueueSize"), 100, 0, u64::from(u16::MAX));
    let files = ["CAFile", "CertFile", "PrivateKeyFile"];
    let tls = tls_files(r, &at("eventBusTLS.tlsMqtt"), files, hub);
    EventBus {
        enable,
        mode,
        mqtt: Mqtt {
            server_internal: r.text(&at("mqttServerInternal"), "tcp://127.0.0.1:1884"),
            server_external: r.text(&at("mqttServerExternal"), "tcp://127.0.0.1:1883"),
            qos: u8::try_from(qos).unwrap_or(0),
            retain: r.flag(&at("mqttRetain"), false),
            session_queue_size: u32::try_from(queue).unwrap_or(100),
            sub_client_id: r.text(&at("mqttSubClientID"), ""),
            pub_client_id: r.text(&at("mqttPubClientID"), ""),
            username: r.text(&at("mqttUsername"), ""),
            password: r.text(&at("mqttPassword"), ""),
        },
        tls: r.flag(&at("eventBusTLS.enable"), false).then_some(tls),
    }
}

/// A value that names the socket means its folder.
pub(super) fn device_twin(r: &mut Reader) -> DeviceTwin {
    let section = "modules.deviceTwin";
    let enable = announced(r, section, true);
    let path = absolute(r, &format!("{section}.dmiSockPath"), "/etc/kubeedge/");
    let dir = match path.strip_suffix(".sock").and(path.rsplit_once('/')) {
        Some((dir, _socket)) => format!("{dir}/"),
        None => path,
    };
    DeviceTwin {
        enable,
        dmi_socket_dir: dir,
    }
}

pub(super) fn service_bus(r: &mut Reader) -> ServiceBus {
    let section = "modules.serviceBus";
    ServiceBus {
        enable: announced(r, section, false),
        server: r.text(&format!("{section}.server"), "127.0.0.1"),
        port: r.port(&format!("{section}.port"), 9060),
        timeout: r.seconds(&format!("{section}.timeout"), 60, 3600),
    }
}

pub(super) fn task_manager(r: &mut Reader) -> TaskManager {
    TaskManager {
        enable: announced(r, "modules.taskManager", false),
    }
}
