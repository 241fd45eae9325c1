//! From a connect frame to a question for edged: only path and query of its URL are taken.

use kedge_wire::tunnel::{Connect, ConnectUrl, NodeGet};

/// A log path with names of full length has less than 800 bytes.
const URL_BYTES_MAX: usize = 8 * 1024;

/// The question in the data of a connect frame, or why it is none.
pub(crate) fn read(data: &[u8]) -> Result<NodeGet, String> {
    let connect = Connect::decode(data).map_err(|error| format!("the request is not understood: {error}"))?;
    let ConnectUrl {
        path,
        raw_path,
        raw_query,
        ..
    } = connect.url;
    let path = if raw_path.is_empty() {
        escape(&path)
    } else {
        raw_path
    };
    if path.len() + raw_query.len() > URL_BYTES_MAX {
        return Err(format!("the request's URL is longer than {URL_BYTES_MAX} bytes"));
    }
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !path.starts_with('/') || !plain(&path) || !plain(&raw_query) {
        return Err("the request's path or query has characters that a URL cannot have".to_owned());
    }
    Ok(NodeGet {
        path,
        query: raw_query,
    })
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
}
