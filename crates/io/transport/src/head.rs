//! The two heads of an upgrade, as HTTP/1.1 writes them; on a QUIC stream the same heads open our own protocol.

use crate::accept::Refusal;
use crate::frame::Carrier;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{StatusCode, Uri};
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A head of an official edge has 300 bytes; proxies on the way may add some headers.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// How much of a refusal's text is read.
const REFUSAL_BYTES_MAX: u64 = 4096;
/// RFC 6455, section 1.3.
const ACCEPT_SALT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The protocol after the upgrade.
const WEB_SOCKET: &str = "websocket";
const OWN_PROTOCOL: &str = "kedge";

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("its head is longer than {HEAD_BYTES_MAX} bytes")]
    TooLong,
    #[error("{0}")]
    Malformed(String),
}

/// What a peer asks for.
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

/// What a server answers.
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// Reads up to the empty line and not a byte further: what follows belongs to the frames.
async fn read_head(io: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, HeadError> {
    const END: &[u8; 4] = b"\r\n\r\n";
    let mut head = Vec::with_capacity(512);
    loop {
        // So many bytes of the end are there already; at least the others are still to come, so they can be read at
        // once.
        let there = (1..END.len())
            .rev()
            .find(|&count| head.ends_with(&END[..count]))
            .unwrap_or(0);
        let mut next = [0; 4];
        let count = io.read(&mut next[..END.len() - there]).await?;
        if count == 0 {
            return Err(HeadError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        head.extend_from_slice(&next[..count]);
        if head.ends_with(END) {
            return Ok(head);
        }
        if head.len() > HEAD_BYTES_MAX {
            return Err(HeadError::TooLong);
        }
    }
}

fn malformed(what: impl ToString) -> HeadError {
    HeadError::Malformed(what.to_string())
}

fn header_map(headers: &[httparse::Header<'_>]) -> Result<HeaderMap, HeadError> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for header in headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(malformed)?;
        map.append(name, HeaderValue::from_bytes(header.value).map_err(malformed)?);
    }
    Ok(map)
}

/// Reads a request.
pub(crate) async fn read_request(io: &mut (impl AsyncRead + Unpin)) -> Result<Asked, HeadError> {
    let head = read_head(io).await?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&head).map_err(malformed)?;
    if request.method != Some("GET") || request.version != Some(1) {
        return Err(malformed("it is not a GET of HTTP/1.1"));
    }
    let target: Uri = request.path.unwrap_or_default().parse().map_err(malformed)?;
    Ok(Asked {
        path: target.path().to_owned(),
        headers: header_map(request.headers)?,
    })
}

/// Whether a header that is a list has this word in it.
fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// The headers with which a server agrees, or why this request is no upgrade to what the carrier needs.
pub(crate) fn agree(carrier: Carrier, headers: &HeaderMap) -> Result<String, Refusal> {
    let refuse = |text: &str| Refusal {
        status: 400,
        text: text.to_owned(),
    };
    if headers
        .get(CONTENT_LENGTH)
        .is_some_and(|length| length.as_bytes() != b"0")
        || headers.contains_key("transfer-encoding")
    {
        return Err(refuse("an upgrade has no body"));
    }
    let protocol = match carrier {
        Carrier::Stream => OWN_PROTOCOL,
        Carrier::WebSocketServer | Carrier::WebSocketClient => WEB_SOCKET,
    };
    if !lists(headers, &UPGRADE, protocol) || !lists(headers, &CONNECTION, "upgrade") {
        return Err(refuse(&format!("this port serves {protocol} only")));
    }
    let mut answer = format!("Upgrade: {protocol}\r\nConnection: Upgrade\r\n");
    if protocol == WEB_SOCKET {
        if !lists(headers, &HeaderName::from_static("sec-websocket-version"), "13") {
            return Err(refuse("only version 13 of WebSocket is served"));
        }
        let key = headers
            .get("sec-websocket-key")
            .filter(|key| key.len() == 24)
            .ok_or_else(|| refuse("header Sec-WebSocket-Key is missing"))?;
        answer.push_str(&format!(
            "Sec-WebSocket-Accept: {}\r\n",
            accept_of(key.as_bytes())
        ));
    }
    Ok(answer)
}

/// What a server answers to a client's key.
pub(crate) fn accept_of(key: &[u8]) -> String {
    // The protocol fixes SHA-1; nothing secret depends on it.
    let mut digest = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(ACCEPT_SALT);
    STANDARD.encode(digest.finish())
}

/// Says yes: the headers of the agreement, then those of the owner.
pub(crate) async fn write_agreement(
    io: &mut (impl AsyncWrite + Unpin),
    agreed: &str,
    headers: &[(&'static str, &'static str)],
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 101 Switching Protocols\r\n{agreed}");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    io.write_all(head.as_bytes()).await?;
    io.flush().await
}

/// Says no, and ends the connection.
pub(crate) async fn write_refusal(io: &mut (impl AsyncWrite + Unpin), refusal: &Refusal) -> io::Result<()> {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
    let reason = status.canonical_reason().unwrap_or("Refused");
    let body = format!("{}\n", refusal.text);
    let head = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n{body}",
        status.as_u16(),
        body.len()
    );
    io.write_all(head.as_bytes()).await?;
    io.shutdown().await
}

/// A request and what its answer must hold.
pub(crate) struct Request {
    head: String,
    /// The accept header of WebSocket.
    accept: Option<String>,
}

impl Request {
    pub(crate) fn new(carrier: Carrier, address: &str, path: &str, headers: &HeaderMap) -> io::Result<Self> {
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n");
        let accept = match carrier {
            Carrier::Stream => {
                head.push_str(&format!("Upgrade: {OWN_PROTOCOL}\r\n"));
                None
            }
            Carrier::WebSocketClient | Carrier::WebSocketServer => {
                let mut key = [0; 16];
                SystemRandom::new()
                    .fill(&mut key)
                    .map_err(|_| io::Error::other("the system gives no random bytes"))?;
                let key = STANDARD.encode(key);
                head.push_str(&format!(
                    "Upgrade: {WEB_SOCKET}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                ));
                Some(accept_of(key.as_bytes()))
            }
        };
        for (name, value) in headers {
            // A value that is not ASCII has no business in our headers.
            let value = value.to_str().map_err(io::Error::other)?;
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Ok(Self { head, accept })
    }

    /// Sends the request and reads the head of the answer.
    pub(crate) async fn exchange(
        &self,
        io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<Answered, HeadError> {
        io.write_all(self.head.as_bytes()).await?;
        io.flush().await?;
        let head = read_head(io).await?;
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(&head).map_err(malformed)?;
        let answered = Answered {
            status: StatusCode::from_u16(response.code.unwrap_or_default()).map_err(malformed)?,
            headers: header_map(response.headers)?,
        };
        if answered.status == StatusCode::SWITCHING_PROTOCOLS {
            self.check(&answered.headers)?;
        }
        Ok(answered)
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), HeadError> {
        let protocol = if self.accept.is_some() {
            WEB_SOCKET
        } else {
            OWN_PROTOCOL
        };
        if !lists(headers, &UPGRADE, protocol) || !lists(headers, &CONNECTION, "upgrade") {
            return Err(malformed("it switches to something else"));
        }
        let accepted = headers.get("sec-websocket-accept").map(HeaderValue::as_bytes);
        if accepted != self.accept.as_deref().map(str::as_bytes) {
            return Err(malformed("its Sec-WebSocket-Accept does not fit the request"));
        }
        if headers.contains_key("sec-websocket-extensions") {
            return Err(malformed("it uses an extension that nobody offered"));
        }
        Ok(())
    }
}

/// The text of a refusal, after its head.
pub(crate) async fn read_refusal(io: &mut (impl AsyncRead + Unpin), headers: &HeaderMap) -> String {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(REFUSAL_BYTES_MAX);
    let mut text = Vec::new();
    // A server that hangs up early has said what it wanted.
    let _ = io
        .take(length.min(REFUSAL_BYTES_MAX))
        .read_to_end(&mut text)
        .await;
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_key_is_that_of_the_rfc() {
        assert_eq!(
            accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn a_head_ends_where_it_ends() {
        let all = b"GET / HTTP/1.1\r\na: \r\r\n\r\nframes";
        let mut io = &all[..];
        assert_eq!(read_head(&mut io).await.unwrap(), &all[..all.len() - 6]);
        assert_eq!(io, b"frames");
        let mut endless = tokio::io::repeat(b'x');
        assert!(matches!(read_head(&mut endless).await, Err(HeadError::TooLong)));
    }
}
