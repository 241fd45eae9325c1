//! The query of a log request.

use kedge_api::Timestamp;
use kedge_wire::Time;
use std::time::Duration;

/// What of the log is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Query {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail_lines: Option<usize>,
    pub(super) limit_bytes: Option<usize>,
    /// Lines before it are left out.
    pub(super) since: Option<Time>,
}

/// Reads `a=b&c=d`. Unknown parameters are ignored, as a kubelet does.
pub(super) fn parse(text: &str, now: Time) -> Result<Query, String> {
    let mut query = Query::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value);
        match name {
            "follow" => query.follow = flag(name, &value)?,
            "previous" => query.previous = flag(name, &value)?,
            "timestamps" => query.timestamps = flag(name, &value)?,
            "tailLines" => query.tail_lines = Some(number(name, &value)?),
            "limitBytes" => query.limit_bytes = Some(number(name, &value)?),
            "sinceSeconds" => {
                let seconds: usize = number(name, &value)?;
                let back = Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
                query.since = Some(now - back);
            }
            "sinceTime" => {
                let time = Timestamp::parse(&value).ok_or_else(|| wrong(name, &value))?;
                query.since = Some(Time::from_ms(time.as_ms()));
            }
            _ => {}
        }
    }
    Ok(query)
}

fn flag(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(wrong(name, value)),
    }
}

fn number(name: &str, value: &str) -> Result<usize, String> {
    value.parse().map_err(|_| wrong(name, value))
}

fn wrong(name: &str, value: &str) -> String {
    format!("query parameter {name}={value:?} cannot be read")
}

/// Undoes percent encoding; a broken escape stays as it is.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let now = Time::from_ms(1_767_225_611_000);
        let query = parse(
            "follow=true&tailLines=10&sinceTime=2026-01-01T00%3A00%3A01Z&x=y",
            now,
        )
        .unwrap();
        let since = Some(Time::from_ms(1_767_225_601_000));
        assert_eq!(
            query,
            Query {
                follow: true,
                tail_lines: Some(10),
                since,
                ..Query::default()
            }
        );
        assert_eq!(parse("sinceSeconds=10", now).unwrap().since, since);
        assert!(parse("tailLines=-1", now).unwrap_err().contains("tailLines"));
        assert_eq!(decode("a%2Fb%zz%"), "a/b%zz%");
    }
}
