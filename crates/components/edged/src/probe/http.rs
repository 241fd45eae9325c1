//! One request by HTTP/1.1, of which little more than the status is wanted.

use super::HttpGet;
use super::tls::Connector;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The head of an answer; a server that sends more is not asked for the rest.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How much of a bad answer is shown.
const MESSAGE_CHARS_MAX: usize = 200;
/// A server that sends the asker on and on has no answer.
const REDIRECTS_MAX: u32 = 10;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    location: Option<String>,
    /// As much of it as came with the head.
    pub(super) body: String,
}

/// Where the next request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// Asks, and follows where the server sends, as long as it stays on the same host: elsewhere is another server's health,
/// so being sent there counts as the answer.
pub(super) async fn get(tls: &Connector, get: &HttpGet<'_>) -> Result<Answer, String> {
    let mut place = Place {
        tls: get.tls,
        host: get.host.to_owned(),
        port: get.port,
        path: get.path.to_owned(),
    };
    for _ in 0..=REDIRECTS_MAX {
        let answer = ask(tls, &place, get).await?;
        let moved = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let next = answer
            .location
            .as_deref()
            .filter(|_| moved)
            .and_then(|to| place.resolve(to));
        match next {
            Some(next) if next.host == place.host => place = next,
            Some(_) | None => return Ok(answer),
        }
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

async fn ask(tls: &Connector, place: &Place, get: &HttpGet<'_>) -> Result<Answer, String> {
    let stream = TcpStream::connect((place.host.as_str(), place.port)).await;
    let stream = stream.map_err(|error| {
        let at = authority(&place.host, place.port);
        format!("dial tcp {at}: {}", connect_words(&error))
    })?;
    let request = request(place, get);
    let head = if place.tls {
        let stream = tls.connect(&place.host, stream).await;
        exchange(stream.map_err(|error| error.to_string())?, &request).await
    } else {
        exchange(stream, &request).await
    };
    parse(&head.map_err(|error| error.to_string())?)
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> std::io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    let mut buffer = [0_u8; 1024];
    while head.len() < HEAD_BYTES_MAX && !ends_head(&head) {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => head.extend_from_slice(&buffer[..count]),
            // A server that closes hard after its answer has answered.
            Err(_) if !head.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

fn ends_head(head: &[u8]) -> bool {
    head.windows(4).any(|end| end == b"\r\n\r\n")
}

fn request(place: &Place, get: &HttpGet<'_>) -> String {
    let named = |name: &str| get.headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    let clean = |text: &str| text.replace(['\r', '\n'], " ");
    let mut lines = vec![format!("GET {} HTTP/1.1", clean(&place.path))];
    if !named("host") {
        lines.push(format!("Host: {}", authority(&place.host, place.port)));
    }
    if !named("user-agent") {
        lines.push("User-Agent: kube-probe/1.32".to_owned());
    }
    if !named("accept") {
        lines.push("Accept: */*".to_owned());
    }
    // An empty value means that the header is left out.
    let given = get.headers.iter().filter(|h| !h.value.is_empty());
    lines.extend(given.map(|h| format!("{}: {}", clean(&h.name), clean(&h.value))));
    lines.push("Connection: close".to_owned());
    format!("{}\r\n\r\n", lines.join("\r\n"))
}

fn parse(head: &[u8]) -> Result<Answer, String> {
    let text = String::from_utf8_lossy(head);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let status: Option<u16> = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok());
    let Some(status) = status else {
        let shown: String = line.chars().take(MESSAGE_CHARS_MAX).collect();
        return Err(format!("malformed HTTP response {shown:?}"));
    };
    let location = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("location"))
        .map(|(_, value)| value.trim().to_owned());
    Ok(Answer {
        status,
        location,
        body: body.chars().take(MESSAGE_CHARS_MAX).collect(),
    })
}

impl Place {
    /// Where `location` leads from here; nothing when it is no place that can be asked.
    fn resolve(&self, location: &str) -> Option<Self> {
        let bare = location.split('#').next().unwrap_or_default();
        let (tls, rest) = if let Some(rest) = bare.strip_prefix("http://") {
            (false, rest)
        } else if let Some(rest) = bare.strip_prefix("https://") {
            (true, rest)
        } else if bare.contains("://") {
            return None;
        } else {
            let (dir, _) = self.path.rsplit_once('/').unwrap_or_default();
            let path = if bare.starts_with('/') {
                bare.to_owned()
            } else {
                format!("{dir}/{bare}")
            };
            return Some(Self { path, ..self.clone() });
        };
        let (at, path) = rest.split_once('/').unwrap_or((rest, ""));
        let default = if tls { 443 } else { 80 };
        let (host, port) = match at.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            Some(_) | None => (at, default),
        };
        Some(Self {
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            path: format!("/{path}"),
        })
    }
}

/// As it is written in messages and headers.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

pub(super) fn url(get: &HttpGet<'_>) -> String {
    let scheme = if get.tls { "https" } else { "http" };
    format!("{scheme}://{}{}", authority(get.host, get.port), get.path)
}

/// The words that people know from a kubelet's events; the operating system's own for what is rare.
pub(super) fn connect_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _other => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_api::HttpHeader;

    #[test]
    fn answers() {
        let status = |head: &str| parse(head.as_bytes()).map(|answer| answer.status);
        assert_eq!(status("HTTP/1.1 200 OK\r\n\r\n"), Ok(200));
        assert_eq!(status("HTTP/1.0 503 No\r\n"), Ok(503));
        assert!(status("SSH-2.0").unwrap_err().contains("malformed HTTP response"));
        assert!(status("").is_err());
        let moved = parse(b"HTTP/1.1 302 Found\r\nLOCATION: /b\r\n\r\n").unwrap();
        assert_eq!(moved.location.as_deref(), Some("/b"));
    }

    #[test]
    fn places() {
        let here = Place {
            tls: false,
            host: "10.0.0.1".to_owned(),
            port: 8080,
            path: "/a/b".to_owned(),
        };
        let to = |location: &str| {
            here.resolve(location)
                .map(|place| format!("{} {}:{}{}", place.tls, place.host, place.port, place.path))
        };
        let table = [
            ("/x?y", Some("false 10.0.0.1:8080/x?y")),
            ("c", Some("false 10.0.0.1:8080/a/c")),
            ("https://10.0.0.1/x", Some("true 10.0.0.1:443/x")),
            ("http://other:90", Some("false other:90/")),
            ("http://[::1]:90/x", Some("false ::1:90/x")),
            ("ftp://x/y", None),
        ];
        for (location, wanted) in table {
            assert_eq!(to(location).as_deref(), wanted, "{location}");
        }
    }

    #[test]
    fn a_header_cannot_smuggle_lines() {
        let headers = [HttpHeader {
            name: "X".into(),
            value: "1\r\nEvil: 2".into(),
        }];
        let get = HttpGet {
            tls: false,
            host: "h",
            port: 1,
            path: "/",
            headers: &headers,
        };
        let place = Place {
            tls: false,
            host: "h".into(),
            port: 1,
            path: "/\r\nEvil: 3".into(),
        };
        assert!(!request(&place, &get).contains("\nEvil"));
    }

    /// Answers each connection with the next text, and says what was asked.
    async fn server(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0_u8; 1024];
                let count = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                asked.push(text.lines().next().unwrap_or_default().to_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (port, served)
    }

    #[tokio::test]
    async fn it_goes_where_the_server_sends_on_the_same_host() {
        let moved = "HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n";
        let (port, served) = server(vec![moved, "HTTP/1.1 500 No\r\n\r\n"]).await;
        let asks = |port| HttpGet {
            tls: false,
            host: "127.0.0.1",
            port,
            path: "/a",
            headers: &[],
        };
        let answer = get(&Connector::default(), &asks(port)).await.unwrap();
        assert_eq!(answer.status, 500);
        assert_eq!(served.await.unwrap(), ["GET /a HTTP/1.1", "GET /b HTTP/1.1"]);

        let elsewhere = "HTTP/1.1 302 Found\r\nLocation: http://other.example/\r\n\r\n";
        let (port, served) = server(vec![elsewhere]).await;
        let answer = get(&Connector::default(), &asks(port)).await.unwrap();
        assert_eq!(answer.status, 302, "another host is not asked");
        served.await.unwrap();

        let refused = get(&Connector::default(), &asks(port)).await.unwrap_err();
        assert_eq!(
            refused,
            format!("dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
    }

    proptest::proptest! {
        /// A server may answer anything.
        #[test]
        fn nothing_that_comes_back_does_harm(head: Vec<u8>, location in ".*") {
            let _ = parse(&head);
            let here = Place { tls: true, host: "h".to_owned(), port: 1, path: "/a".to_owned() };
            if let Some(place) = here.resolve(&location) {
                proptest::prop_assert!(place.path.starts_with('/'));
            }
        }
    }
}
