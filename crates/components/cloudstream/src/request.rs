//! From a question to the frame that opens its stream.

use kedge_wire::tunnel::{Connect, ConnectUrl, Frame, FrameBody, NodeConnect, NodeGet};
use std::collections::BTreeMap;

/// What official clouds put there; edges use their own address whatever it says.
const KUBELET: &str = "127.0.0.1:10350";
const USER_AGENT: &str = "kube-apiserver";

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Logs,
    Metrics,
    /// Bytes both ways.
    Exec,
    Attach,
}

impl Kind {
    /// By the paths of the official stream server.
    pub(crate) fn of(get: &NodeGet) -> Result<Self, String> {
        if under(&get.path, "/containerLogs") {
            Ok(Self::Logs)
        } else if under(&get.path, "/metrics") || under(&get.path, "/stats") {
            Ok(Self::Metrics)
        } else {
            let shown: String = get.path.chars().take(80).collect();
            Err(format!(
                "the tunnel carries /containerLogs, /metrics and /stats, not {shown}"
            ))
        }
    }

    /// A connection. Forwarding has no frame of its own; an edge does the same with a connection for exec, whatever its
    /// path is, and its kubelet port serves this one, too.
    pub(crate) fn of_connection(connect: &NodeConnect) -> Result<Self, String> {
        if under(&connect.path, "/exec") || under(&connect.path, "/portForward") {
            Ok(Self::Exec)
        } else if under(&connect.path, "/attach") {
            Ok(Self::Attach)
        } else {
            let shown: String = connect.path.chars().take(80).collect();
            Err(format!(
                "the tunnel carries connections for /exec, /attach and /portForward, not {shown}"
            ))
        }
    }

    fn body(self, connect: &Connect) -> FrameBody {
        let data = connect.encode();
        match self {
            Self::Logs => FrameBody::LogsConnect(data),
            Self::Metrics => FrameBody::MetricsConnect(data),
            Self::Exec => FrameBody::ExecConnect(data),
            Self::Attach => FrameBody::AttachConnect(data),
        }
    }
}

fn under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The frame that opens stream `id`.
pub(crate) fn get(id: u64, kind: Kind, get: NodeGet) -> Frame {
    let connect = Connect {
        id,
        url: url(get.path, get.query),
        header: [user_agent()].into(),
        method: String::new(),
    };
    let body = kind.body(&connect);
    Frame { connection: id, body }
}

/// The same for a connection.
pub(crate) fn connect(id: u64, kind: Kind, asked: NodeConnect) -> Frame {
    let mut header: BTreeMap<String, Vec<String>> = [user_agent()].into();
    for (name, value) in asked.headers {
        header.entry(name).or_default().push(value);
    }
    let connect = Connect {
        id,
        url: url(asked.path, asked.query),
        header,
        method: asked.method,
    };
    let body = kind.body(&connect);
    Frame { connection: id, body }
}

fn user_agent() -> (String, Vec<String>) {
    ("User-Agent".to_owned(), vec![USER_AGENT.to_owned()])
}

fn url(path: String, query: String) -> ConnectUrl {
    let unescaped = unescape(&path);
    // Go writes the escaped form only when it says more than the plain one.
    let raw_path = if unescaped == path { String::new() } else { path };
    ConnectUrl {
        scheme: "http".into(),
        host: KUBELET.into(),
        path: unescaped,
        raw_path,
        raw_query: query,
        ..ConnectUrl::default()
    }
}

/// Percent-decoding; what is not a valid escape, or not UTF-8 afterwards, stays as it is.
fn unescape(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match after {
            [high, low, ..] if byte == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| path.to_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str) -> NodeGet {
        NodeGet {
            path: path.into(),
            query: "follow=true".into(),
        }
    }

    #[test]
    fn a_log_opens_with_the_official_frame() {
        let frame = get(1, Kind::Logs, asked("/containerLogs/default/nginx/nginx"));
        let FrameBody::LogsConnect(data) = &frame.body else {
            panic!("{frame:?}")
        };
        let official = r#"{"MessID":1,"url":{"Scheme":"http","Opaque":"","User":null,"Host":"127.0.0.1:10350","Path":"/containerLogs/default/nginx/nginx","RawPath":"","OmitHost":false,"ForceQuery":false,"RawQuery":"follow=true","Fragment":"","RawFragment":""},"header":{"User-Agent":["kube-apiserver"]}}"#;
        assert_eq!(
            Connect::decode(data).unwrap(),
            Connect::decode(official.as_bytes()).unwrap()
        );
    }

    #[test]
    fn an_escaped_path_travels_in_both_forms() {
        let frame = get(2, Kind::Logs, asked("/containerLogs/a/b%20c/%C3%BC%2"));
        let url = Connect::decode(frame.body.data()).unwrap().url;
        assert_eq!(url.path, "/containerLogs/a/b c/ü%2");
        assert_eq!(url.raw_path, "/containerLogs/a/b%20c/%C3%BC%2");
    }

    #[test]
    fn the_path_says_what_is_carried() {
        for (path, kind) in [
            ("/containerLogs/d/p/c", Ok(Kind::Logs)),
            ("/metrics/cadvisor", Ok(Kind::Metrics)),
            ("/metrics", Ok(Kind::Metrics)),
            ("/stats/summary", Ok(Kind::Metrics)),
            (
                "/metricsX",
                Err("the tunnel carries /containerLogs, /metrics and /stats, not /metricsX".to_owned()),
            ),
        ] {
            assert_eq!(Kind::of(&asked(path)), kind);
        }
    }

    #[test]
    fn a_command_opens_with_the_recorded_frame() {
        let vectors = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../../test/fixtures/vectors/tunnel.jsonl"
        );
        let recorded = std::fs::read_to_string(vectors).unwrap();
        let lines = recorded.lines().filter_map(|line| {
            use base64::Engine;
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let bytes = line["base64"].as_str()?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
            Some(Frame::decode(&bytes).unwrap())
        });
        let mut compared = 0;
        for frame in lines {
            let FrameBody::ExecConnect(data) = &frame.body else {
                continue;
            };
            let official = Connect::decode(data).unwrap();
            let headers = official.header.iter().filter(|(name, _)| *name != "User-Agent");
            let headers = headers
                .flat_map(|(name, values)| values.iter().map(move |value| (name.clone(), value.clone())));
            let asked = NodeConnect {
                method: official.method.clone(),
                path: official.url.path.clone(),
                query: official.url.raw_query.clone(),
                headers: headers.collect(),
            };
            let kind = Kind::of_connection(&asked).unwrap();
            let ours = connect(frame.connection, kind, asked);
            let mut ours = Connect::decode(ours.body.data()).unwrap();
            ours.header
                .insert("User-Agent".to_owned(), official.header["User-Agent"].clone());
            assert_eq!(ours, official);
            compared += 1;
        }
        assert_eq!(compared, 3);
    }

    #[test]
    fn connections_are_told_by_their_path() {
        let kind = |path: &str| {
            Kind::of_connection(&NodeConnect {
                method: "GET".into(),
                path: path.into(),
                query: String::new(),
                headers: Vec::new(),
            })
        };
        assert_eq!(kind("/exec/d/p/c"), Ok(Kind::Exec));
        assert_eq!(kind("/attach/d/p/c"), Ok(Kind::Attach));
        assert_eq!(kind("/portForward/d/p"), Ok(Kind::Exec));
        assert!(kind("/run/d/p/c").unwrap_err().ends_with("not /run/d/p/c"));
        assert!(kind("/containerLogs/d/p/c").is_err());
    }
}
