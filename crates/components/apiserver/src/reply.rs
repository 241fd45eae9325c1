//! Answers as HTTP.

use bytes::Bytes;
use futures_util::Stream;
use http::header::{CONTENT_TYPE, HeaderValue, WARNING};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kedge_apimachinery::status::{Reason, Status};
use serde_json::Value;
use std::convert::Infallible;

pub(crate) type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Most warnings in one answer: clients show all of them.
const WARNINGS_MAX: usize = 32;
/// Longest warning: some clients cut header lines at 4 KiB in all.
const WARNING_CHARS_MAX: usize = 256;

/// A body that is there as a whole.
pub(crate) fn bytes(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()).boxed_unsync());
    *reply.status_mut() = status;
    let value =
        HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    reply.headers_mut().insert(CONTENT_TYPE, value);
    reply.headers_mut().insert(
        http::header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    reply
}

pub(crate) fn json(status: StatusCode, value: &Value) -> Reply {
    bytes(status, "application/json", value.to_string())
}

pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Reply {
    bytes(status, "text/plain; charset=utf-8", body.into())
}

/// A refusal.
pub(crate) fn refuse(status: &Status) -> Reply {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = json(code, &status.to_value());
    if status.reason == Reason::TooManyRequests {
        reply
            .headers_mut()
            .insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    reply
}

/// A body that comes piece by piece; each piece is sent at once.
pub(crate) fn stream(
    content_type: &'static str,
    pieces: impl Stream<Item = Bytes> + Send + 'static,
) -> Reply {
    use futures_util::StreamExt;
    let frames = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let mut reply = Response::new(StreamBody::new(frames).boxed_unsync());
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(
        http::header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    reply
}

/// Adds Warning headers, which kubectl prints.
pub(crate) fn warn(reply: &mut Reply, warnings: &[String]) {
    for warning in warnings.iter().take(WARNINGS_MAX) {
        let printable = |c: char| {
            if c == '"' || c == '\\' {
                '\''
            } else if c.is_ascii_graphic() {
                c
            } else {
                ' '
            }
        };
        let text: String = warning.chars().take(WARNING_CHARS_MAX).map(printable).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            reply.headers_mut().append(WARNING, value);
        }
    }
}
