//! Asking containers for their health.

use kedge_api::HttpHeader;
use kedge_pods::{ProbeResult, ProbeTarget};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The status line and some of the body, for the message.
const ANSWER_BYTES_MAX: usize = 1024;
/// How much of a bad answer is shown.
const MESSAGE_CHARS_MAX: usize = 200;

/// Asks, at most `timeout`.
pub(crate) async fn ask(target: &ProbeTarget, timeout: Duration) -> ProbeResult {
    match tokio::time::timeout(timeout, ask_now(target)).await {
        Ok(result) => result,
        Err(_) => ProbeResult::Failure(format!("no answer within {}s", timeout.as_secs())),
    }
}

async fn ask_now(target: &ProbeTarget) -> ProbeResult {
    match target {
        ProbeTarget::Tcp { host, port } => match TcpStream::connect((host.as_str(), *port)).await {
            Ok(_) => ProbeResult::Success,
            Err(error) => ProbeResult::Failure(format!("dial tcp {host}:{port}: {error}")),
        },
        ProbeTarget::Http { tls: true, .. } => {
            ProbeResult::Unsupported("this version does not probe by HTTPS; use HTTP or tcpSocket".to_owned())
        }
        ProbeTarget::Http {
            host,
            port,
            path,
            headers,
            tls: false,
        } => match get(host, *port, path, headers).await {
            Ok(answer) => judge(&answer),
            Err(error) => ProbeResult::Failure(format!("Get \"http://{host}:{port}{path}\": {error}")),
        },
    }
}

/// One request with HTTP/1.1 and `Connection: close`; only the first bytes of the answer are read.
async fn get(host: &str, port: u16, path: &str, headers: &[HttpHeader]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream
        .write_all(request(host, port, path, headers).as_bytes())
        .await?;
    let mut answer = Vec::new();
    let mut buffer = [0_u8; ANSWER_BYTES_MAX];
    while answer.len() < ANSWER_BYTES_MAX {
        let room = ANSWER_BYTES_MAX - answer.len();
        match stream.read(&mut buffer[..room]).await {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            // A server that closes hard after its answer has answered.
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error),
        }
        if answer.windows(2).any(|pair| pair == b"\r\n") {
            break;
        }
    }
    Ok(answer)
}

fn request(host: &str, port: u16, path: &str, headers: &[HttpHeader]) -> String {
    let named = |name: &str| headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    let clean = |text: &str| text.replace(['\r', '\n'], " ");
    let mut lines = vec![format!("GET {} HTTP/1.1", clean(path))];
    if !named("host") {
        lines.push(format!("Host: {host}:{port}"));
    }
    if !named("user-agent") {
        lines.push("User-Agent: kube-probe/1.32".to_owned());
    }
    if !named("accept") {
        lines.push("Accept: */*".to_owned());
    }
    lines.extend(
        headers
            .iter()
            .map(|h| format!("{}: {}", clean(&h.name), clean(&h.value))),
    );
    lines.push("Connection: close".to_owned());
    format!("{}\r\n\r\n", lines.join("\r\n"))
}

fn judge(answer: &[u8]) -> ProbeResult {
    let text = String::from_utf8_lossy(answer);
    let line = text.lines().next().unwrap_or_default();
    let status: Option<u16> = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok());
    match status {
        Some(200..=399) => ProbeResult::Success,
        Some(code) => ProbeResult::Failure(format!("HTTP probe failed with statuscode: {code}")),
        None => {
            let shown: String = line.chars().take(MESSAGE_CHARS_MAX).collect();
            ProbeResult::Failure(format!("the answer is not HTTP: {shown:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        assert_eq!(judge(b"HTTP/1.1 200 OK\r\n"), ProbeResult::Success);
        assert_eq!(judge(b"HTTP/1.0 301 Moved\r\n"), ProbeResult::Success);
        assert!(matches!(judge(b"HTTP/1.1 503 No\r\n"), ProbeResult::Failure(m) if m.contains("503")));
        assert!(matches!(judge(b"SSH-2.0"), ProbeResult::Failure(_)));
        assert!(matches!(judge(b""), ProbeResult::Failure(_)));
    }

    #[test]
    fn a_header_cannot_smuggle_lines() {
        let header = HttpHeader {
            name: "X".into(),
            value: "1\r\nEvil: 2".into(),
        };
        assert!(!request("h", 1, "/", &[header]).contains("\nEvil"));
    }
}
