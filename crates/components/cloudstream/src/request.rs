//! From a question to the frame that opens its stream.

use kedge_wire::tunnel::{Connect, ConnectUrl, Frame, FrameBody, NodeGet};

/// What official clouds put there; edges use their own address whatever it says.
const KUBELET: &str = "127.0.0.1:10350";
const USER_AGENT: &str = "kube-apiserver";

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Logs,
    Metrics,
}

impl Kind {
    /// By the paths of the official stream server.
    pub(crate) fn of(get: &NodeGet) -> Result<Self, String> {
        let under = |prefix: &str| {
            get.path
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if under("/containerLogs") {
            Ok(Self::Logs)
        } else if under("/metrics") || under("/stats") {
            Ok(Self::Metrics)
        } else {
            let shown: String = get.path.chars().take(80).collect();
            Err(format!(
                "the tunnel carries /containerLogs, /metrics and /stats, not {shown}"
            ))
        }
    }
}

/// The frame that opens stream `id`.
pub(crate) fn connect(id: u64, kind: Kind, get: NodeGet) -> Frame {
    let unescaped = unescape(&get.path);
    // Go writes the escaped form only when it says more than the plain one.
    let raw_path = if unescaped == get.path {
        String::new()
    } else {
        get.path
    };
    let url = ConnectUrl {
        scheme: "http".into(),
        host: KUBELET.into(),
        path: unescaped,
        raw_path,
        raw_query: get.query,
        ..ConnectUrl::default()
    };
    let header = [("User-Agent".to_owned(), vec![USER_AGENT.to_owned()])].into();
    let connect = Connect {
        id,
        url,
        header,
        method: String::new(),
    }
    .encode();
    let body = match kind {
        Kind::Logs => FrameBody::LogsConnect(connect),
        Kind::Metrics => FrameBody::MetricsConnect(connect),
    };
    Frame { connection: id, body }
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

    fn get(path: &str) -> NodeGet {
        NodeGet {
            path: path.into(),
            query: "follow=true".into(),
        }
    }

    #[test]
    fn a_log_opens_with_the_official_frame() {
        let frame = connect(1, Kind::Logs, get("/containerLogs/default/nginx/nginx"));
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
        let frame = connect(2, Kind::Logs, get("/containerLogs/a/b%20c/%C3%BC%2"));
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
            assert_eq!(Kind::of(&get(path)), kind);
        }
    }
}
