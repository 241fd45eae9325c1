//! The head of an answer, as HTTP/1.1 writes it.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The head of an answer: containerd's has 150 bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// How much of a refusal's text is passed on.
const TEXT_BYTES_MAX: u64 = 4 * 1024;
/// How long is waited for it: whoever asked waits as well.
const TEXT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection is not upgraded, as the asker reads it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// An HTTP status of 400 or more.
    pub status: u16,
    pub text: String,
}

impl Refusal {
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { status, text }
    }

    /// As HTTP/1.1 writes it.
    pub fn print(&self) -> String {
        let Self { status, text } = self;
        let reason = http::StatusCode::from_u16(*status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("Refused");
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
    }
}

/// Says no, and that nothing follows.
pub async fn refuse(io: &mut (impl AsyncWrite + Unpin), refusal: &Refusal) -> io::Result<()> {
    io.write_all(refusal.print().as_bytes()).await?;
    io.shutdown().await
}

/// Says yes, with these headers.
pub(crate) async fn agree(io: &mut (impl AsyncWrite + Unpin), headers: &[(&str, &str)]) -> io::Result<()> {
    let mut head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n".to_owned();
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    io.write_all(head.as_bytes()).await?;
    io.flush().await
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Answer {
    /// Whether the connection carries another protocol from here on.
    pub fn is_agreed(&self) -> bool {
        self.status == 101
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Reads the head of an answer, and not a byte of what follows.
    pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == HEAD_BYTES_MAX {
                return Err(io::Error::other("the head of the answer is longer than 8 KiB"));
            }
            // One by one: what follows belongs to somebody else. It happens once a connection.
            head.push(io.read_u8().await?);
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        answer.parse(&head).map_err(io::Error::other)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = answer.headers.iter();
        Ok(Self {
            status: answer.code.unwrap_or_default(),
            headers: headers
                .map(|header| (header.name.to_owned(), text(header.value)))
                .collect(),
        })
    }

    /// The refusal that this answer is, with its text.
    pub async fn refusal(&self, io: impl AsyncRead + Unpin) -> Refusal {
        let length = self
            .header("content-length")
            .and_then(|length| length.trim().parse().ok());
        let mut text = Vec::new();
        // A server that hangs up early, or stays and says nothing, has said what it wanted.
        let mut io = io.take(length.unwrap_or(TEXT_BYTES_MAX).min(TEXT_BYTES_MAX));
        let _ = tokio::time::timeout(TEXT_TIMEOUT, io.read_to_end(&mut text)).await;
        let status = if self.status >= 400 { self.status } else { 502 };
        let text = String::from_utf8_lossy(&text);
        Refusal::new(status, text.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_to_its_last_byte_and_no_further() {
        let bytes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\n\r\n\x80\x03";
        let mut io = &bytes[..];
        let answer = Answer::read(&mut io).await.unwrap();
        assert!(answer.is_agreed());
        assert_eq!(answer.header("upgrade"), Some("SPDY/3.1"));
        assert_eq!(io, b"\x80\x03");
    }

    #[tokio::test]
    async fn a_refusal_is_read_as_it_was_written() {
        let refusal = Refusal::new(404, "pod does not exist");
        let mut bytes = Vec::new();
        refuse(&mut bytes, &refusal).await.unwrap();
        let mut io = &bytes[..];
        let answer = Answer::read(&mut io).await.unwrap();
        assert_eq!(answer.refusal(io).await, refusal);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_without_an_end_is_not_waited_for() {
        let (mut server, client) = tokio::io::duplex(1024);
        server
            .write_all(b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\nwhy")
            .await
            .unwrap();
        let mut client = client;
        let answer = Answer::read(&mut client).await.unwrap();
        let refusal = answer.refusal(&mut client).await;
        assert_eq!((refusal.status, refusal.text.as_str()), (500, "why"));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_refused() {
        assert!(
            Answer::read(&mut &b"nothing of the kind\r\n\r\n"[..])
                .await
                .is_err()
        );
        assert!(Answer::read(&mut &b"HTTP/1.1 200"[..]).await.is_err());
        let mut endless = tokio::io::repeat(b'x');
        let told = Answer::read(&mut endless).await.unwrap_err().to_string();
        assert!(told.contains("longer than 8 KiB"), "{told}");
    }
}
