//! `modules.edgeHub`.

use super::{EdgeFacts, absolute, in_url};
use crate::reader::Reader;
use std::time::Duration;

/// `modules.edgeHub`.
#[derive(Clone, PartialEq, Eq)]
pub struct Hub {
    pub project_id: String,
    /// Which of `websocket` and `quic` is enabled; exactly one is.
    pub transport: Transport,
    /// `server` of that transport: `host:port` of each CloudHub, in the file separated by commas. Not empty.
    pub servers: Vec<String>,
    /// How long a connection may take to be made.
    pub handshake_timeout: Duration,
    /// `readDeadline`: how long the cloud may be silent while an answer is due.
    pub read_deadline: Duration,
    /// `https://host:port` for the CA and certificates; several are separated by commas.
    pub http_server: String,
    /// Join token; empty when the node has its certificate already.
    pub token: String,
    pub ca_file: String,
    pub cert_file: String,
    pub key_file: String,
    pub heartbeat_interval: Duration,
    pub rotate_certificates: bool,
    pub rates: Rates,
}

/// A token never prints itself.
impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("project_id", &self.project_id)
            .field("transport", &self.transport)
            .field("servers", &self.servers)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("read_deadline", &self.read_deadline)
            .field("http_server", &self.http_server)
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("heartbeat_interval", &self.heartbeat_interval)
            .field("rotate_certificates", &self.rotate_certificates)
            .field("rates", &self.rates)
            .finish_non_exhaustive()
    }
}

/// What the edge says of its own accord, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// `messageQPS`. The official edge loses messages at 0; here it is one a second.
    pub messages_per_second: u32,
    /// `messageBurst`.
    pub messages_burst: u32,
    /// `kedge.bytesPerSecond`.
    pub bytes_per_second: u32,
    /// `kedge.bytesBurst`.
    pub bytes_burst: u32,
}

/// How the edge dials the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TLS over TCP, official port 10000.
    WebSocket,
    /// RFC 9000, port 10001; kedge's hub speaks it, an official hub does not.
    Quic,
}

/// Clouds that stand behind one key. More cannot be meant.
const SERVERS_MAX: usize = 16;
/// A second and a day.
const SECONDS_MAX: u64 = 24 * 3600;
/// A message may have 32 MiB, so less a second would make one last for ever.
const BYTES_RATE_MIN: u64 = 64 * 1024;
const BYTES_RATE_MAX: u64 = 1 << 30;

struct Way {
    servers: Vec<String>,
    handshake_timeout: Duration,
    read_deadline: Duration,
}

pub(super) fn read(r: &mut Reader, facts: &EdgeFacts) -> Hub {
    let ip = in_url(&facts.primary_ip);
    let transport = transport(r);
    // Both are read, so that a mistake in the one that rests is found before it is needed.
    let websocket = way(r, "modules.edgeHub.websocket", &format!("{ip}:10000"));
    let quic = way(r, "modules.edgeHub.quic", &format!("{ip}:10001"));
    let way = match transport {
        Transport::WebSocket => websocket,
        Transport::Quic => quic,
    };
    Hub {
        project_id: project_id(r),
        transport,
        servers: way.servers,
        handshake_timeout: way.handshake_timeout,
        read_deadline: way.read_deadline,
        http_server: http_server(r, &format!("https://{ip}:10002")),
        token: r.text("modules.edgeHub.token", "").trim().to_owned(),
        ca_file: absolute(r, "modules.edgeHub.tlsCaFile", "/etc/kubeedge/ca/rootCA.crt"),
        cert_file: absolute(r, "modules.edgeHub.tlsCertFile", "/etc/kubeedge/certs/server.crt"),
        key_file: absolute(
            r,
            "modules.edgeHub.tlsPrivateKeyFile",
            "/etc/kubeedge/certs/server.key",
        ),
        heartbeat_interval: r.seconds("modules.edgeHub.heartbeat", 15, 3600),
        rotate_certificates: r.flag("modules.edgeHub.rotateCertificates", true),
        rates: rates(r),
    }
}

/// It becomes a part of the path that the cloud takes apart.
fn project_id(r: &mut Reader) -> String {
    let path = "modules.edgeHub.projectID";
    let id = r.text(path, "e632aba927ea4ac2b575ec1603d56f10");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || !id.chars().all(plain) {
        r.mistake(
            path,
            format!("letters, digits, '-', '_' and '.' are expected, not {id:?}"),
        );
    }
    id
}

fn http_server(r: &mut Reader, default: &str) -> String {
    let path = "modules.edgeHub.httpServer";
    let text = r.text(path, default);
    for url in text.split(',') {
        if !url.trim().starts_with("https://") || url.trim().len() == "https://".len() {
            r.mistake(path, format!("https://host:port is expected, not {url:?}"));
        }
    }
    text
}

fn rates(r: &mut Reader) -> Rates {
    let largest = u64::from(i32::MAX.unsigned_abs());
    let mut rate = |path, default: u32, min, max| {
        let number = r.number(path, u64::from(default), min, max);
        u32::try_from(number).unwrap_or(default)
    };
    Rates {
        messages_per_second: rate("modules.edgeHub.messageQPS", 30, 0, largest),
        messages_burst: rate("modules.edgeHub.messageBurst", 60, 0, largest),
        bytes_per_second: rate("kedge.bytesPerSecond", 2 << 20, BYTES_RATE_MIN, BYTES_RATE_MAX),
        bytes_burst: rate("kedge.bytesBurst", 8 << 20, BYTES_RATE_MIN, BYTES_RATE_MAX),
    }
}

/// Exactly one, as officially: an edge that could choose would hide a broken way.
fn transport(r: &mut Reader) -> Transport {
    let path = "modules.edgeHub.websocket.enable";
    let websocket = r.flag(path, true);
    match (websocket, r.flag("modules.edgeHub.quic.enable", false)) {
        (true, false) => Transport::WebSocket,
        (false, true) => Transport::Quic,
        (true, true) => {
            r.mistake(path, "is true and so is quic.enable; set one of them to false");
            Transport::WebSocket
        }
        (false, false) => {
            r.mistake(path, "is false and so is quic.enable; set one of them to true");
            Transport::WebSocket
        }
    }
}

fn way(r: &mut Reader, path: &str, server: &str) -> Way {
    let server_path = format!("{path}.server");
    let text = r.text(&server_path, server);
    let mut servers: Vec<String> = Vec::new();
    for server in text.split(',').map(str::trim) {
        if !is_address(server) {
            r.mistake(&server_path, format!("host:port is expected, not {server:?}"));
        } else if !servers.iter().any(|known| known == server) {
            servers.push(server.to_owned());
        }
    }
    if servers.len() > SERVERS_MAX {
        r.mistake(
            &server_path,
            format!(
                "{} addresses are more than the limit of {SERVERS_MAX}",
                servers.len()
            ),
        );
    }
    Way {
        servers,
        handshake_timeout: r.seconds(&format!("{path}.handshakeTimeout"), 30, SECONDS_MAX),
        read_deadline: r.seconds(&format!("{path}.readDeadline"), 15, SECONDS_MAX),
    }
}

/// `host:port`, where an IPv6 address stands in brackets.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let host_fine = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            !host.is_empty() && host.chars().all(plain)
        }
    };
    host_fine && port.parse::<u16>().is_ok_and(|port| port > 0)
}
