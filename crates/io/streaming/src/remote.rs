//! The streaming server of a container runtime, on this machine: who has its URL may connect once.
//!
//! Runtimes serve it on a loopback address, without encryption unless somebody asked for it; then with a certificate that
//! they have made for themselves and nobody can verify, so such a URL is refused with the way out of it.

use crate::answer::{Answer, Refusal};
use crate::command::{FromProcess, Process, ToProcess, Wanted};
use crate::spdy::{self, Headers, Heard, Incoming, Out, PIECE_BYTES_MAX, Said};
use crate::status::Status;
use crate::upgrade::{SPDY, STREAM_PROTOCOL};
use crate::{Error, Io};
use bytes::{Bytes, BytesMut};
use http::Uri;
use kedge_wire::tunnel::NodeConnect;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// The runtime listens on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to agree.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How a command ended, or why there is no connection to a port.
const TOLD_BYTES_MAX: usize = 64 * 1024;

/// Of a request's headers, those that its upgrade is about.
const PASSED_ON: [&str; 8] = [
    "Connection",
    "Upgrade",
    STREAM_PROTOCOL,
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
    "Content-Length",
];

/// Where a URL of a runtime leads.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// As a URL writes it: an address of IPv6 in brackets.
    host: String,
    port: u16,
    target: String,
}

impl Place {
    fn parse(url: &str) -> Result<Self, Refusal> {
        let refuse = |why: &str| {
            Refusal::new(
                502,
                format!("the container runtime says where it serves streams as {why}"),
            )
        };
        let uri: Uri = url.parse().map_err(|_| refuse("something that is no URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(refuse(
                    "an https URL, whose self-made certificate nobody can verify; it listens on this machine only, so \
                     switch its TLS off (containerd: enable_tls_streaming = false; CRI-O: stream_enable_tls = false)",
                ));
            }
            Some(_) | None => return Err(refuse("a URL of a kind that is not known")),
        }
        let host = uri.host().ok_or_else(|| refuse("a URL without a host"))?;
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            target: uri
                .path_and_query()
                .map_or("/", |target| target.as_str())
                .to_owned(),
        })
    }

    async fn connect(&self) -> Result<TcpStream, Refusal> {
        let refuse = |why: String| {
            let Self { host, port, .. } = self;
            Refusal::new(
                502,
                format!("connect to the container runtime at {host}:{port}: {why}"),
            )
        };
        let host = self.host.trim_matches(['[', ']']);
        let connecting = TcpStream::connect((host, self.port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(refuse(error.to_string())),
            Err(_elapsed) => return Err(refuse(format!("no answer within {}s", CONNECT_TIMEOUT.as_secs()))),
        };
        // Keystrokes shall not wait for company.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    fn request(&self, method: &str, headers: &[(&str, &str)]) -> String {
        let Self { host, port, target } = self;
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}:{port}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    /// A connection that carries SPDY with this protocol on it.
    async fn upgraded(&self, protocol: &str) -> Result<TcpStream, Refusal> {
        let mut stream = self.connect().await?;
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", SPDY),
            (STREAM_PROTOCOL, protocol),
            ("Content-Length", "0"),
        ];
        let request = self.request("POST", &headers);
        let asking = async {
            stream.write_all(request.as_bytes()).await?;
            Answer::read(&mut stream).await
        };
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(Refusal::new(
                    502,
                    format!("ask the container runtime for a stream: {error}"),
                ));
            }
            Err(_elapsed) => {
                let seconds = ANSWER_TIMEOUT.as_secs();
                let why = format!("the container runtime gives no stream within {seconds}s");
                return Err(Refusal::new(504, why));
            }
        };
        if !answer.is_agreed() {
            return Err(answer.refusal(&mut stream).await);
        }
        match answer.header(STREAM_PROTOCOL) {
            Some(agreed) if agreed == protocol => Ok(stream),
            Some(_) | None => Err(Refusal::new(
                502,
                format!("the container runtime does not speak {protocol}"),
            )),
        }
    }
}

/// Hands the runtime a request as it came, and bytes both ways until either side is done. The runtime's answer is among
/// them. The inner error is why it cannot be reached; nothing was said then.
pub async fn splice(
    url: &str,
    request: &NodeConnect,
    io: &mut impl Io,
) -> Result<Result<(), Refusal>, Error> {
    let place = match Place::parse(url) {
        Ok(place) => place,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut stream = match place.connect().await {
        Ok(stream) => stream,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let passed = |name: &str| PASSED_ON.iter().any(|known| known.eq_ignore_ascii_case(name));
    let headers: Vec<(&str, &str)> = request
        .headers
        .iter()
        .filter(|(name, _)| passed(name))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let head = place.request(&request.method, &headers);
    stream.write_all(head.as_bytes()).await?;
    let (mut from_client, mut to_client) = tokio::io::split(io);
    let (mut from_runtime, mut to_runtime) = stream.split();
    tokio::select! {
        // Nothing more comes from the runtime: what it said has been passed on, so this is the end.
        copied = tokio::io::copy(&mut from_runtime, &mut to_client) => {
            copied?;
        }
        // The client has gone, and with it whoever would read an answer.
        copied = tokio::io::copy(&mut from_client, &mut to_runtime) => {
            copied?;
        }
    }
    to_client.shutdown().await?;
    Ok(Ok(()))
}

const ERROR: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const STDERR: u32 = 7;
const RESIZE: u32 = 9;
/// Of a connection to a port, beside the error stream.
const DATA: u32 = 3;

/// Begins what the URL stands for, and gives the ends of its process. The future drives them.
pub(crate) async fn command(
    url: &str,
    wanted: Wanted,
) -> Result<(Process, impl Future<Output = Result<(), Error>> + use<>), Refusal> {
    let stream = Place::parse(url)?.upgraded("v4.channel.k8s.io").await?;
    let (process, inputs, outputs) = Process::pair();
    Ok((process, talk(stream, wanted, inputs, outputs)))
}

async fn talk(
    stream: TcpStream,
    wanted: Wanted,
    inputs: mpsc::Receiver<ToProcess>,
    outputs: mpsc::Sender<FromProcess>,
) -> Result<(), Error> {
    let (reader, writer) = stream.into_split();
    let (talked, written) = spdy::converse(reader, writer, async |mut incoming, out| {
        let streams = [
            (true, ERROR, "error"),
            (wanted.stdin, STDIN, "stdin"),
            (wanted.stdout, STDOUT, "stdout"),
            (wanted.stderr && !wanted.tty, STDERR, "stderr"),
            (wanted.tty, RESIZE, "resize"),
        ];
        for (_, id, name) in streams.into_iter().filter(|(wanted, ..)| *wanted) {
            let headers = Headers::of(&[("streamtype", name)]);
            out.say(Said::Open { id, headers }).await?;
        }
        tokio::select! {
            heard = hear(&mut incoming, &out, &outputs) => heard,
            spoke = speak(&out, wanted, inputs) => spoke,
            () = outputs.closed() => Ok(()),
        }
    })
    .await;
    talked.and(written)
}

/// What the runtime says, up to how it ended.
async fn hear(
    incoming: &mut Incoming<impl AsyncRead + Unpin>,
    out: &Out,
    outputs: &mpsc::Sender<FromProcess>,
) -> Result<(), Error> {
    let mut told = BytesMut::new();
    let is_told_whole = loop {
        let output = match incoming.next().await? {
            Some(Heard::Data {
                id: ERROR,
                bytes,
                last,
            }) => {
                if told.len() + bytes.len() > TOLD_BYTES_MAX {
                    return Err(Error::Protocol("an ending of more than 64 KiB"));
                }
                told.extend_from_slice(&bytes);
                if last {
                    break true;
                }
                continue;
            }
            // Containerd ends its streams so, after what it has told; so does one that dies.
            Some(Heard::Reset { id: ERROR }) | None => break !told.is_empty(),
            Some(Heard::Data {
                id: STDOUT, bytes, ..
            }) => FromProcess::Stdout(bytes),
            Some(Heard::Data {
                id: STDERR, bytes, ..
            }) => FromProcess::Stderr(bytes),
            Some(Heard::Ping { id }) => {
                out.say(Said::Pong { id }).await?;
                continue;
            }
            Some(
                Heard::Data { .. }
                | Heard::Open { .. }
                | Heard::Reply { .. }
                | Heard::Reset { .. }
                | Heard::GoAway
                | Heard::Nothing,
            ) => continue,
        };
        if outputs.send(output).await.is_err() {
            return Ok(());
        }
    };
    // Without a word nobody knows how it ended, which is not the same as well.
    if is_told_whole {
        let status = match told.is_empty() {
            true => Status::success(),
            false => Status::verbatim(told.freeze()),
        };
        let _ = outputs.send(FromProcess::Ended(status)).await;
    }
    Ok(())
}

/// What the client says. It never ends: the runtime says when it is over.
async fn speak(out: &Out, wanted: Wanted, mut inputs: mpsc::Receiver<ToProcess>) -> Result<(), Error> {
    while let Some(input) = inputs.recv().await {
        match input {
            ToProcess::Bytes(bytes) if wanted.stdin => out.data(STDIN, bytes).await?,
            ToProcess::End if wanted.stdin => out.end(STDIN, Bytes::new()).await?,
            ToProcess::Resize { width, height } if wanted.tty => {
                let size = crate::command::print_size(width, height);
                out.data(RESIZE, Bytes::from(size)).await?;
            }
            ToProcess::Bytes(_) | ToProcess::End | ToProcess::Resize { .. } => {}
        }
    }
    std::future::pending().await
}

/// Carries one connection to a port, at the URL that the runtime gave for forwarding. Fails in the runtime's own words.
pub async fn forward(url: &str, port: u16, io: DuplexStream) -> Result<(), String> {
    let place = Place::parse(url).map_err(|refusal| refusal.text)?;
    let stream = place.upgraded("portforward.k8s.io").await;
    let stream = stream.map_err(|refusal| refusal.text)?;
    carry(stream, port, io).await.map_err(|error| match error {
        Carried::Told(told) => told,
        Carried::Broke(error) => format!("the container runtime's end of the connection: {error}"),
    })
}

enum Carried {
    Told(String),
    Broke(Error),
}

impl<E: Into<Error>> From<E> for Carried {
    fn from(error: E) -> Self {
        Self::Broke(error.into())
    }
}

async fn carry(stream: TcpStream, port: u16, io: DuplexStream) -> Result<(), Carried> {
    let (reader, writer) = stream.into_split();
    let (mut from, to) = tokio::io::split(io);
    let (talked, written) = spdy::converse(reader, writer, async |incoming, out| {
        let port = port.to_string();
        for (id, name) in [(ERROR, "error"), (DATA, "data")] {
            let headers = Headers::of(&[("port", &port), ("requestid", "0"), ("streamtype", name)]);
            out.say(Said::Open { id, headers }).await?;
        }
        // Nothing is said on the error stream from this side.
        out.end(ERROR, Bytes::new()).await?;
        let speak = async {
            let mut piece = vec![0; PIECE_BYTES_MAX];
            loop {
                let count = from.read(&mut piece).await?;
                if count == 0 {
                    out.end(DATA, Bytes::new()).await?;
                    return std::future::pending().await;
                }
                out.data(DATA, Bytes::copy_from_slice(&piece[..count])).await?;
            }
        };
        tokio::select! {
            told = hear_port(incoming, &out, to) => told,
            spoke = speak => spoke,
        }
    })
    .await;
    let told = talked?;
    // What it did not take any more was for nobody.
    if let Err(error) = written {
        tracing::debug!(%error, "the container runtime hung up first");
    }
    match told.is_empty() {
        true => Ok(()),
        false => Err(Carried::Told(String::from_utf8_lossy(&told).into_owned())),
    }
}

/// What comes from the port; gives what is told on the error stream.
async fn hear_port(
    mut incoming: Incoming<impl AsyncRead + Unpin>,
    out: &Out,
    mut to: impl AsyncWrite + Unpin,
) -> Result<BytesMut, Error> {
    let mut told = BytesMut::new();
    let (mut data_ended, mut error_ended) = (false, false);
    while !(data_ended && error_ended) {
        match incoming.next().await? {
            Some(Heard::Data {
                id: DATA,
                bytes,
                last,
            }) => {
                // Who reads no more has hung up: nothing is left to do.
                if to.write_all(&bytes).await.is_err() {
                    return Ok(told);
                }
                if last {
                    let _ = to.shutdown().await;
                }
                data_ended |= last;
            }
            Some(Heard::Data {
                id: ERROR,
                bytes,
                last,
            }) => {
                let room = TOLD_BYTES_MAX - told.len();
                told.extend_from_slice(&bytes[..bytes.len().min(room)]);
                error_ended |= last;
            }
            Some(Heard::Reset { id }) => {
                data_ended |= id == DATA;
                error_ended |= id == ERROR;
            }
            Some(Heard::Ping { id }) => out.say(Said::Pong { id }).await?,
            Some(
                Heard::Data { .. }
                | Heard::Open { .. }
                | Heard::Reply { .. }
                | Heard::GoAway
                | Heard::Nothing,
            ) => {}
            None => break,
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_runtimes() {
        let place = |url: &str| Place::parse(url).map_err(|refusal| refusal.text);
        assert_eq!(
            place("http://127.0.0.1:37223/exec/TOKEN-1"),
            Ok(Place {
                host: "127.0.0.1".to_owned(),
                port: 37223,
                target: "/exec/TOKEN-1".to_owned()
            })
        );
        let place_6 = place("http://[::1]/a").unwrap();
        let head = place_6.request("GET", &[]);
        assert_eq!(head, "GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n");
        assert!(
            place("https://127.0.0.1:1/exec/x")
                .unwrap_err()
                .contains("enable_tls_streaming")
        );
        for url in ["", "/exec/x", "unix:///run/x", "http://"] {
            assert!(place(url).is_err(), "{url}");
        }
    }
}
