//! From a connect frame to a question for edged: of its URL only path and query are taken.

use kedge_wire::tunnel::{Connect, ConnectUrl, NodeConnect, NodeGet};
use std::collections::BTreeMap;

/// A log path with names of full length has less than 800 bytes.
const URL_BYTES_MAX: usize = 8 * 1024;
/// A command may be long: it stands in the query of its request.
const CONNECT_URL_BYTES_MAX: usize = 128 * 1024;
/// The headers of an upgrade have some hundred bytes.
const HEADER_BYTES_MAX: usize = 8 * 1024;

/// The question in the data of a connect frame, or why it is none.
pub(crate) fn read(data: &[u8]) -> Result<NodeGet, String> {
    let connect = decode(data)?;
    let (path, query) = target(connect.url, URL_BYTES_MAX)?;
    Ok(NodeGet { path, query })
}

/// The same for a connection.
pub(crate) fn read_connection(data: &[u8]) -> Result<NodeConnect, String> {
    let connect = decode(data)?;
    let (path, query) = target(connect.url, CONNECT_URL_BYTES_MAX)?;
    let method = match connect.method.as_str() {
        "" | "GET" => "GET",
        "POST" => "POST",
        other => {
            let shown: String = other.chars().take(20).collect();
            return Err(format!("connections are made by GET and POST, not by {shown:?}"));
        }
    };
    Ok(NodeConnect {
        method: method.to_owned(),
        path,
        query,
        headers: headers(connect.header)?,
    })
}

fn decode(data: &[u8]) -> Result<Connect, String> {
    Connect::decode(data).map_err(|error| format!("the request is not understood: {error}"))
}

fn headers(all: BTreeMap<String, Vec<String>>) -> Result<Vec<(String, String)>, String> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_value = |value: &str| value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    let mut headers = Vec::new();
    let mut bytes = 0;
    for (name, values) in all {
        for value in values {
            bytes += name.len() + value.len();
            if bytes > HEADER_BYTES_MAX {
                return Err(format!(
                    "the request's headers are longer than {HEADER_BYTES_MAX} bytes"
                ));
            }
            if !is_name(&name) || !is_value(&value) {
                return Err("the request has a header that is none".to_owned());
            }
            headers.push((name.clone(), value));
        }
    }
    Ok(headers)
}

/// Path and query, escaped.
fn target(url: ConnectUrl, bytes_max: usize) -> Result<(String, String), String> {
    let ConnectUrl {
        path,
        raw_path,
        raw_query,
        ..
    } = url;
    let path = if raw_path.is_empty() {
        escape(&path)
    } else {
        raw_path
    };
    if path.len() + raw_query.len() > bytes_max {
        return Err(format!("the request's URL is longer than {bytes_max} bytes"));
    }
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !path.starts_with('/') || !plain(&path) || !plain(&raw_query) {
        return Err("the request's path or query has characters that a URL cannot have".to_owned());
    }
    Ok((path, raw_query))
}

/// Percent-encodes a path as Go does when it says that nothing special is in it.
fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: Result<(&str, &str), &str>) {
        match (read(json.as_bytes()), expected) {
            (Ok(get), Ok((path, query))) => {
                assert_eq!((get.path.as_str(), get.query.as_str()), (path, query))
            }
            (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
            (got, expected) => panic!("{json}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn only_path_and_query_are_taken() {
        check(
            r#"{"MessID":1,"url":{"Scheme":"http","Host":"10.9.9.9:80","Path":"/containerLogs/d/web/c","RawQuery":"follow=true"}}"#,
            Ok(("/containerLogs/d/web/c", "follow=true")),
        );
        check(
            r#"{"MessID":1,"url":{"Path":"/a b/ü"}}"#,
            Ok(("/a%20b/%C3%BC", "")),
        );
        check(
            r#"{"MessID":1,"url":{"Path":"/a/b","RawPath":"/a%2Fb"}}"#,
            Ok(("/a%2Fb", "")),
        );
        check(
            r#"{"MessID":1,"url":{"Path":"http://elsewhere/"}}"#,
            Err("characters that a URL cannot have"),
        );
        check(
            r#"{"MessID":1,"url":{"Path":"/a","RawQuery":"x\r\nHost: y"}}"#,
            Err("characters that a URL"),
        );
        check(
            &format!(r#"{{"MessID":1,"url":{{"Path":"/{}"}}}}"#, "x".repeat(9000)),
            Err("longer than"),
        );
        check("{", Err("not understood"));
    }

    #[test]
    fn a_connection_has_a_method_and_headers() {
        let read = |json: &str| read_connection(json.as_bytes());
        let asked = read(
            r#"{"MessID":1,"url":{"Path":"/exec/d/web/c","RawQuery":"command=ls"},"header":{"Upgrade":["SPDY/3.1"],"X-Stream-Protocol-Version":["v4.channel.k8s.io","channel.k8s.io"]},"method":"POST"}"#,
        )
        .unwrap();
        assert_eq!(
            (asked.method.as_str(), asked.path.as_str(), asked.query.as_str()),
            ("POST", "/exec/d/web/c", "command=ls")
        );
        let versions: Vec<&str> = asked.values("x-stream-protocol-version").collect();
        assert_eq!(versions, ["v4.channel.k8s.io", "channel.k8s.io"]);
        assert_eq!(
            read(r#"{"MessID":1,"url":{"Path":"/exec"}}"#).unwrap().method,
            "GET"
        );
        let long = "x".repeat(9000);
        for (json, why) in [
            (
                r#"{"MessID":1,"url":{"Path":"/exec"},"method":"DELETE"}"#,
                "by GET and POST",
            ),
            (
                r#"{"MessID":1,"url":{"Path":"/exec"},"header":{"A":["b\r\nc: d"]}}"#,
                "a header that is none",
            ),
            (
                r#"{"MessID":1,"url":{"Path":"/exec"},"header":{"a b":["c"]}}"#,
                "a header that is none",
            ),
            (
                &format!(r#"{{"MessID":1,"url":{{"Path":"/exec"}},"header":{{"A":["{long}"]}}}}"#),
                "headers are longer",
            ),
        ] {
            assert!(read(json).unwrap_err().contains(why), "{json}");
        }
    }
}
