//! The streaming server of a container runtime, on this machine: who has its URL may connect once.
//!
//! Runtimes serve it on a loopback address, without encryption unless somebody asked for it; then with a certificate that
//! they have made for themselves and nobody can verify, so such a URL is refused with the way out of it.

use crate::answer::{Answer, Refusal};
use crate::command::{FromProcess, Process, ToProcess, Wanted};
use crate::spdy::{self, Headers, Heard, Incoming, PIECE_BYTES_MAX, Said};
use crate::status::Status;
use crate::upgrade::{SPDY, STREAM_PROTOCOL};
use crate::{Error, Io};
use bytes::{Bytes, BytesMut};
use http::Uri;
use kedge_wire::tunnel::NodeConnect;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
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
            host: host.trim_matches(['[', ']']).to_owned(),
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
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
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
        match answer.is_agreed() {
            true => Ok(stream),
            false => Err(answer.refusal(&mut stream).await),
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
    let (said, saying) = mpsc::channel(spdy::OUT_MAX);
    let talk = async {
        let streams = [
            (true, ERROR, "error"),
            (wanted.stdin, STDIN, "stdin"),
            (wanted.stdout, STDOUT, "stdout"),
            (wanted.stderr && !wanted.tty, STDERR, "stderr"),
            (wanted.tty, RESIZE, "resize"),
        ];
        for (_, id, name) in streams.into_iter().filter(|(wanted, ..)| *wanted) {
            let headers = Headers::of(&[("streamtype", name)]);
            say(&said, Said::Open { id, headers }).await?;
        }
        let gone = outputs.clone();
        let mut incoming = Incoming::new(reader);
        let talked = tokio::select! {
            heard = hear(&mut incoming, &said, outputs) => heard,
            spoke = speak(&said, wanted, inputs) => spoke,
            () = gone.closed() => Ok(()),
        };
        drop(said);
        talked
    };
    let (talked, written) = tokio::join!(talk, spdy::outgoing(writer, saying));
    talked.and(written.map_err(Error::from))
}

/// What the runtime says, up to how it ended.
async fn hear(
    incoming: &mut Incoming<impl AsyncRead + Unpin>,
    said: &mpsc::Sender<Said>,
    outputs: mpsc::Sender<FromProcess>,
) -> Result<(), Error> {
    let mut told = BytesMut::new();
    let mut outputs_ended = false;
    loop {
        let heard = incoming.next().await?;
        let output = match heard {
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
                    break;
                }
                continue;
            }
            Some(Heard::Reset { id: ERROR }) | None => break,
            Some(Heard::Data { id, bytes, last }) => {
                outputs_ended |= last;
                match id {
                    STDOUT => FromProcess::Stdout(bytes),
                    STDERR => FromProcess::Stderr(bytes),
                    _ => continue,
                }
            }
            Some(Heard::Ping { id }) => {
                say(said, Said::Pong { id }).await?;
                continue;
            }
            Some(
                Heard::Open { .. }
                | Heard::Reply { .. }
                | Heard::Reset { .. }
                | Heard::GoAway
                | Heard::Nothing,
            ) => continue,
        };
        if outputs.send(output).await.is_err() {
            return Ok(());
        }
    }
    let status = match (told.is_empty(), outputs_ended) {
        (false, _) => Status::verbatim(told.freeze()),
        // Its outputs have ended, and it has nothing to complain of.
        (true, true) => Status::success(),
        // It died under the command.
        (true, false) => return Ok(()),
    };
    let _ = outputs.send(FromProcess::Ended(status)).await;
    Ok(())
}

/// What the client says. It never ends: the runtime says when it is over.
async fn speak(
    said: &mpsc::Sender<Said>,
    wanted: Wanted,
    mut inputs: mpsc::Receiver<ToProcess>,
) -> Result<(), Error> {
    while let Some(input) = inputs.recv().await {
        let (id, bytes, last) = match input {
            ToProcess::Bytes(bytes) if wanted.stdin => (STDIN, bytes, false),
            ToProcess::End if wanted.stdin => (STDIN, Bytes::new(), true),
            ToProcess::Resize { width, height } if wanted.tty => (
                RESIZE,
                Bytes::from(crate::command::print_size(width, height)),
                false,
            ),
            ToProcess::Bytes(_) | ToProcess::End | ToProcess::Resize { .. } => continue,
        };
        say(said, Said::Data { id, bytes, last }).await?;
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
    const DATA: u32 = 3;
    let (reader, writer) = stream.into_split();
    let (said, saying) = mpsc::channel(spdy::OUT_MAX);
    let (mut from, mut to) = tokio::io::split(io);
    let talk = async {
        let port = port.to_string();
        for (id, name) in [(ERROR, "error"), (DATA, "data")] {
            let headers = Headers::of(&[("port", &port), ("requestid", "0"), ("streamtype", name)]);
            say(&said, Said::Open { id, headers }).await?;
        }
        // Nothing is said on the error stream from this side.
        let (id, bytes, last) = (ERROR, Bytes::new(), true);
        say(&said, Said::Data { id, bytes, last }).await?;
        let speak = async {
            let mut piece = vec![0; PIECE_BYTES_MAX];
            loop {
                let count = from.read(&mut piece).await?;
                let bytes = Bytes::copy_from_slice(&piece[..count]);
                let (id, last) = (DATA, count == 0);
                say(&said, Said::Data { id, bytes, last }).await?;
                if last {
                    return std::future::pending::<Result<(), Error>>().await;
                }
            }
        };
        let hear = async {
            let mut incoming = Incoming::new(reader);
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
                    Some(Heard::Ping { id }) => say(&said, Said::Pong { id }).await?,
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
            Ok::<_, Error>(told)
        };
        let told = tokio::select! {
            told = hear => told?,
            spoke = speak => { spoke?; BytesMut::new() }
        };
        drop(said);
        match told.is_empty() {
            true => Ok(()),
            false => Err(Carried::Told(String::from_utf8_lossy(&told).into_owned())),
        }
    };
    let (talked, written) = tokio::join!(talk, spdy::outgoing(writer, saying));
    talked?;
    // What it did not take any more was for nobody.
    if let Err(error) = written {
        tracing::debug!(%error, "the container runtime hung up first");
    }
    Ok(())
}

async fn say(said: &mpsc::Sender<Said>, what: Said) -> Result<(), Error> {
    // Nobody takes it when the connection has broken.
    let broken = |_| Error::Io(std::io::ErrorKind::BrokenPipe.into());
    said.send(what).await.map_err(broken)
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
        assert_eq!(place("http://[::1]/a").unwrap().host, "::1");
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
