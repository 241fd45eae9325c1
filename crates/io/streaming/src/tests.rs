//! Whole conversations on loopback: our server with our SPDY client, and with a WebSocket client of others.

use crate::forward::STALLED_MAX;
use crate::spdy::{self, Headers, Heard, PIECE_BYTES_MAX, Reset, Said};
use crate::upgrade::tests::request;
use crate::{CommandDoor, ForwardDoor, FromProcess, Process, Status, ToProcess, Wanted, remote};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kedge_wire::tunnel::NodeConnect;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as PeerError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const SOON: Duration = Duration::from_secs(30);
const ALL: Wanted = Wanted {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};

async fn in_time<T>(fact: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, fact).await.expect("in time")
}

/// Reads a request as whoever owns the connection would.
async fn read_request(stream: &mut TcpStream) -> NodeConnect {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(&head).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    NodeConnect {
        method: parsed.method.unwrap().to_owned(),
        path: parsed.path.unwrap().to_owned(),
        query: String::new(),
        headers: parsed
            .headers
            .iter()
            .map(|header| (header.name.to_owned(), text(header.value)))
            .collect(),
    }
}

/// Serves each connection with `serve`; gives the address.
async fn listen<F>(serve: impl Fn(NodeConnect, TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = read_request(&mut stream).await;
            tokio::spawn(serve(request, stream));
        }
    });
    address.to_string()
}

/// A process that says what it is told in capitals, its size as it is told, and ends with 3 after its input.
fn shouting() -> Process {
    let (process, mut inputs, outputs) = Process::pair();
    tokio::spawn(async move {
        outputs
            .send(FromProcess::Stderr(Bytes::from_static(b"listening")))
            .await
            .unwrap();
        while let Some(input) = inputs.recv().await {
            let said = match input {
                ToProcess::Bytes(bytes) => Bytes::from(bytes.to_ascii_uppercase()),
                ToProcess::Resize { width, height } => Bytes::from(format!("{width}x{height}")),
                ToProcess::End => break,
            };
            if outputs.send(FromProcess::Stdout(said)).await.is_err() {
                return;
            }
        }
        let status = Status::exited(&["shout".to_owned()], 3);
        let _ = outputs.send(FromProcess::Ended(status)).await;
    });
    process
}

async fn command_server(wanted: Wanted, process: fn() -> Result<Process, String>) -> String {
    listen(move |request, mut stream| async move {
        match CommandDoor::of(&request) {
            Ok(door) => {
                let _ = door.serve(stream, wanted, process()).await;
            }
            Err(refusal) => crate::refuse(&mut stream, &refusal).await.unwrap(),
        }
    })
    .await
}

/// Talks as the SPDY client of a runtime does; gives all that came.
async fn talk_spdy(url: &str, wanted: Wanted, says: Vec<ToProcess>) -> (Vec<u8>, Vec<u8>, Option<Status>) {
    let (process, drive) = remote::command(url, wanted).await.unwrap();
    let Process { input, mut output } = process;
    let says = async move {
        for said in says {
            input.send(said).await.unwrap();
        }
        input
    };
    let hears = async move {
        let (mut stdout, mut stderr, mut status) = (Vec::new(), Vec::new(), None);
        while let Some(said) = output.recv().await {
            match said {
                FromProcess::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                FromProcess::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                FromProcess::Ended(ended) => status = Some(ended),
            }
        }
        (stdout, stderr, status)
    };
    let (_input, all, _) = in_time(async { tokio::join!(says, hears, drive) }).await;
    all
}

#[tokio::test]
async fn a_command_over_spdy() {
    let address = command_server(ALL, || Ok(shouting())).await;
    let megabyte = vec![b'a'; 1 << 20];
    let mut says: Vec<ToProcess> = megabyte
        .chunks(10_000)
        .map(|chunk| ToProcess::Bytes(Bytes::copy_from_slice(chunk)))
        .collect();
    says.push(ToProcess::End);
    let (stdout, stderr, status) = talk_spdy(&format!("http://{address}/exec/x"), ALL, says).await;
    assert!(stdout == vec![b'A'; 1 << 20], "{} bytes", stdout.len());
    assert_eq!(stderr, b"listening");
    assert_eq!(status, Some(Status::exited(&["shout".to_owned()], 3)));
}

#[tokio::test]
async fn a_terminal_over_spdy() {
    let tty = Wanted { tty: true, ..ALL };
    let address = command_server(tty, || Ok(shouting())).await;
    let says = vec![
        ToProcess::Resize {
            width: 80,
            height: 24,
        },
        ToProcess::End,
    ];
    let (stdout, stderr, status) = talk_spdy(&format!("http://{address}/exec/x"), tty, says).await;
    // The order of two streams is the client's; a terminal has one output.
    assert!(stdout == b"80x24" || stdout.is_empty(), "{stdout:?}");
    assert_eq!(stderr, b"");
    assert!(status.is_some());
}

#[tokio::test]
async fn a_process_that_cannot_be_had_is_told_as_its_ending() {
    let address = command_server(ALL, || {
        Err("error executing command in container: no such file".to_owned())
    });
    let url = format!("http://{}/exec/x", address.await);
    let (stdout, _, status) = talk_spdy(&url, ALL, Vec::new()).await;
    assert!(stdout.is_empty());
    let failed = Status::failed("error executing command in container: no such file");
    assert_eq!(status, Some(failed));
}

struct Peer(WebSocketStream<TcpStream>);

impl Peer {
    async fn open(address: &str, protocol: &str) -> Self {
        let mut request = format!("ws://{address}/exec/default/web/main")
            .into_client_request()
            .unwrap();
        let protocol = protocol.parse().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let stream = TcpStream::connect(address).await.unwrap();
        Self(in_time(client_async(request, stream)).await.unwrap().0)
    }

    async fn say(&mut self, message: &[u8]) {
        self.0.send(Message::binary(message.to_vec())).await.unwrap();
    }

    /// All messages up to the end, each channel's put together.
    async fn all(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut channels: Vec<(u8, Vec<u8>)> = Vec::new();
        loop {
            let message = match in_time(self.0.next()).await {
                Some(Ok(Message::Close(close))) => {
                    assert_eq!(close.map(|close| u16::from(close.code)), Some(1000));
                    return channels;
                }
                Some(Ok(message)) => message.into_data(),
                Some(Err(error)) => panic!("{error}"),
                None => return channels,
            };
            let (channel, bytes) = message.split_first().unwrap();
            match channels.iter_mut().find(|(known, _)| known == channel) {
                Some((_, all)) => all.extend_from_slice(bytes),
                None => channels.push((*channel, bytes.to_vec())),
            }
        }
    }
}

fn exited() -> Vec<u8> {
    Status::exited(&["shout".to_owned()], 3).json().to_vec()
}

#[tokio::test]
async fn a_command_over_web_socket() {
    let address = command_server(ALL, || Ok(shouting())).await;
    let mut peer = Peer::open(&address, "v5.channel.k8s.io, v4.channel.k8s.io").await;
    peer.say(b"\0hello").await;
    peer.say(b"\0").await;
    peer.say(&[255, 0]).await;
    let wanted = [(1, b"HELLO".to_vec()), (2, b"listening".to_vec()), (3, exited())];
    assert_eq!(peer.all().await, wanted);

    // Text for browsers, and the sentence of the first version.
    let mut peer = Peer::open(&address, "base64.channel.k8s.io").await;
    peer.0.send(Message::text("0aGk=")).await.unwrap();
    let all = in_time(async {
        let mut all = String::new();
        while !all.contains("1SEk=") {
            all.push_str(&peer.0.next().await.unwrap().unwrap().into_text().unwrap());
        }
        all
    });
    assert!(all.await.starts_with('1'));
}

#[tokio::test]
async fn what_is_not_served_is_refused_before_anything_begins() {
    let address = command_server(ALL, || Ok(shouting())).await;
    let mut request = format!("ws://{address}/exec").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", "v9".parse().unwrap());
    let stream = TcpStream::connect(&address).await.unwrap();
    match in_time(client_async(request, stream)).await {
        Err(PeerError::Http(response)) => assert_eq!(response.status(), 403),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn a_web_socket_reaches_a_runtime_that_speaks_spdy() {
    let runtime = command_server(ALL, || Ok(shouting())).await;
    let url = format!("http://{runtime}/exec/TOKEN");
    let address = listen(move |request, stream| {
        let url = url.clone();
        async move {
            let door = CommandDoor::of(&request).unwrap();
            door.serve_at(stream, ALL, &url, &request).await.unwrap();
        }
    });
    let address = address.await;
    let mut peer = Peer::open(&address, "v5.channel.k8s.io").await;
    peer.say(&[b"\0", &vec![b'x'; 100_000][..]].concat()).await;
    peer.say(&[255, 0]).await;
    let all = peer.all().await;
    assert_eq!(all[0].1.len(), 100_000);
    assert_eq!(all.last(), Some(&(3, exited())));

    // And who speaks SPDY gets its bytes.
    let (stdout, _, status) = talk_spdy(
        &format!("http://{address}/"),
        ALL,
        vec![ToProcess::Bytes(Bytes::from_static(b"x")), ToProcess::End],
    )
    .await;
    assert_eq!(stdout, b"X");
    assert!(status.is_some());
}

#[tokio::test]
async fn a_runtime_that_is_away_is_a_refusal() {
    let address = listen(|request, stream| async move {
        let door = CommandDoor::of(&request).unwrap();
        let url = "http://127.0.0.1:1/exec/x";
        door.serve_at(stream, ALL, url, &request).await.unwrap();
    })
    .await;
    let refusal = remote::command(&format!("http://{address}/"), ALL).await;
    let refusal = refusal.map(|_| ()).unwrap_err();
    assert_eq!(refusal.status, 502);
    assert!(
        refusal.text.contains("connect to the container runtime"),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_hangs_up() {
    let (process, mut inputs, _outputs) = Process::pair();
    let process = std::sync::Mutex::new(Some(process));
    let address = listen(move |request, stream| {
        let process = process.lock().unwrap().take().unwrap();
        async move {
            let door = CommandDoor::of(&request).unwrap();
            let _ = door.serve(stream, ALL, Ok(process)).await;
        }
    });
    let mut peer = Peer::open(&address.await, "v5.channel.k8s.io").await;
    peer.say(b"\0x").await;
    assert!(in_time(inputs.recv()).await.is_some());
    drop(peer);
    assert_eq!(in_time(inputs.recv()).await, None);
}

/// Port 7 says everything back, port 9 takes everything and says how much when the client is done, others refuse.
async fn carry(port: u16, mut io: DuplexStream) -> Result<(), String> {
    let (mut from, mut to) = tokio::io::split(&mut io);
    match port {
        7 => {
            let _ = tokio::io::copy(&mut from, &mut to).await;
            Ok(())
        }
        9 => {
            let count = tokio::io::copy(&mut from, &mut tokio::io::sink()).await.unwrap();
            let _ = to.write_all(count.to_string().as_bytes()).await;
            Ok(())
        }
        port => Err(format!("port {port}: connection refused")),
    }
}

async fn forward_server() -> String {
    listen(|request, stream| async move {
        let door = ForwardDoor::of(&request).unwrap();
        let _ = door.serve(stream, carry).await;
    })
    .await
}

async fn through(url: &str, port: u16, bytes: &[u8]) -> (Vec<u8>, Result<(), String>) {
    let (near, far) = tokio::io::duplex(1024);
    let (mut from, mut to) = tokio::io::split(near);
    let writes = async {
        // A refused port does not take it.
        let _ = to.write_all(bytes).await;
        let _ = to.shutdown().await;
    };
    let reads = async {
        let mut all = Vec::new();
        from.read_to_end(&mut all).await.unwrap();
        all
    };
    let (carried, (), all) =
        in_time(async { tokio::join!(remote::forward(url, port, far), writes, reads) }).await;
    (all, carried)
}

#[tokio::test]
async fn ports() {
    let url = format!("http://{}/portforward/x", forward_server().await);
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
    let (all, carried) = through(&url, 7, &bytes).await;
    assert_eq!((all == bytes, carried), (true, Ok(())));
    assert_eq!(through(&url, 9, &bytes).await, (b"300000".to_vec(), Ok(())));
    // More than may wait for one connection.
    let bytes = bytes.repeat(12);
    let (all, carried) = through(&url, 7, &bytes).await;
    assert_eq!((all == bytes, carried), (true, Ok(())));
    let refused = Err("port 1: connection refused".to_owned());
    assert_eq!(through(&url, 1, b"x").await, (Vec::new(), refused));
}

/// Begins as a client of SPDY; gives its end of the connection.
async fn upgraded(serve: impl AsyncFnOnce(NodeConnect, DuplexStream) + 'static) -> DuplexStream {
    let (mut near, far) = tokio::io::duplex(4096);
    let web = request(&[("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), V4]);
    tokio::task::spawn_local(serve(web, far));
    let answer = in_time(crate::Answer::read(&mut near)).await.unwrap();
    assert!(answer.is_agreed());
    near
}

const V4: (&str, &str) = (
    "X-Stream-Protocol-Version",
    "v4.channel.k8s.io, portforward.k8s.io",
);

/// Says all this and hears everything until the end.
async fn say_and_hear(
    connection: DuplexStream,
    sayings: Vec<Said>,
    is_all: fn(&Heard) -> bool,
) -> Vec<Heard> {
    let (reader, writer) = tokio::io::split(connection);
    let talk = spdy::converse(reader, writer, async |mut incoming, out| {
        for said in sayings {
            out.say(said).await?;
        }
        let mut all = Vec::new();
        while let Some(heard) = incoming.next().await? {
            let is_all = is_all(&heard);
            all.push(heard);
            if is_all {
                break;
            }
        }
        Ok(all)
    });
    in_time(talk).await.0.unwrap()
}

fn open(id: u32, headers: &[(&str, &str)]) -> Said {
    let headers = Headers::of(headers);
    Said::Open { id, headers }
}

fn stream(id: u32, name: &str) -> Said {
    open(id, &[("streamtype", name)])
}

fn half(id: u32, name: &str) -> Said {
    open(id, &[("port", "7"), ("requestid", "0"), ("streamtype", name)])
}

/// Nobody has to wait for the last stream before the first one is written on.
#[tokio::test(flavor = "local")]
async fn what_is_said_before_all_streams_stand_is_heard() {
    let connection = upgraded(async |request, stream| {
        let door = CommandDoor::of(&request).unwrap();
        let _ = door.serve(stream, ALL, Ok(shouting())).await;
    });
    let data = |bytes: &'static [u8], last| Said::Data {
        id: 3,
        bytes: Bytes::from_static(bytes),
        last,
    };
    let sayings = vec![
        stream(3, "stdin"),
        data(b"early", false),
        data(b"", true),
        stream(1, "error"),
        stream(5, "stdout"),
        stream(7, "stderr"),
    ];
    let heard = say_and_hear(connection.await, sayings, |heard| *heard == Heard::GoAway).await;
    let on = |wanted: u32| -> Vec<u8> {
        let pieces = heard.iter().filter_map(|heard| match heard {
            Heard::Data { id, bytes, .. } if *id == wanted => Some(bytes.to_vec()),
            _ => None,
        });
        pieces.flatten().collect()
    };
    assert_eq!((on(5), on(1)), (b"EARLY".to_vec(), exited()));
}

/// As kubectl does when a port has said all it had to say: it resets the stream and waits for the end of the other one.
#[tokio::test(flavor = "local")]
async fn a_connection_that_is_given_up_is_over() {
    let reset = Said::Reset {
        id: 3,
        why: Reset::Cancel,
    };
    let end = Heard::Data {
        id: 1,
        bytes: Bytes::new(),
        last: true,
    };
    // The second one before its partner has come: that stream is of no use any more.
    for (sayings, last) in [
        (vec![half(1, "error"), half(3, "data"), reset.clone()], end),
        (vec![half(3, "data"), reset], Heard::Reset { id: 3 }),
    ] {
        let connection = upgraded(async |request, stream| {
            let door = ForwardDoor::of(&request).unwrap();
            let _ = door.serve(stream, carry).await;
        });
        let is_last = |heard: &Heard| !matches!(heard, Heard::Reply { .. });
        let heard = say_and_hear(connection.await, sayings, is_last).await;
        assert_eq!(heard.last(), Some(&last), "{heard:?}");
    }
}

/// Port 1 reads nothing, port 2 some bytes now and then, others say everything back.
async fn carry_slowly(port: u16, mut io: DuplexStream) -> Result<(), String> {
    match port {
        1 => std::future::pending().await,
        2 => {
            let (mut piece, mut count) = ([0; 1000], 0);
            while let Ok(read @ 1..) = io.read(&mut piece).await {
                count += read;
                tokio::time::sleep(STALLED_MAX / 3).await;
            }
            let _ = io.write_all(count.to_string().as_bytes()).await;
            Ok(())
        }
        port => carry(port, io).await,
    }
}

/// A pair of streams to a port, of which the second has the next odd number; and so much data on it.
fn upload(first: u32, port: &str, bytes: usize) -> Vec<Said> {
    let request = first.to_string();
    let stream = |id, name| {
        open(
            id,
            &[("port", port), ("requestid", &request), ("streamtype", name)],
        )
    };
    let piece = |bytes| Said::Data {
        id: first + 2,
        bytes: Bytes::from(vec![b'x'; bytes]),
        last: false,
    };
    let mut sayings = vec![stream(first, "error"), stream(first + 2, "data")];
    sayings.extend((0..bytes / PIECE_BYTES_MAX).map(|_| piece(PIECE_BYTES_MAX)));
    sayings.push(piece(bytes % PIECE_BYTES_MAX));
    let (id, bytes, last) = (first + 2, Bytes::new(), true);
    sayings.push(Said::Data { id, bytes, last });
    sayings
}

/// Says all this, on a clock that is wound by hand, and gives what came until these streams had ended: the bytes of each,
/// and which of them were reset.
async fn forwarded(sayings: Vec<Said>, until: &[u32]) -> (BTreeMap<u32, Vec<u8>>, Vec<u32>) {
    tokio::time::pause();
    let connection = upgraded(async |request, stream| {
        let door = ForwardDoor::of(&request).unwrap();
        let _ = door.serve(stream, carry_slowly).await;
    });
    let (reader, writer) = tokio::io::split(connection.await);
    let talk = spdy::converse(reader, writer, async |mut incoming, out| {
        let says = async {
            for said in sayings {
                out.say(said).await?;
            }
            Ok::<_, crate::Error>(())
        };
        let hears = async {
            let (mut bytes, mut resets, mut left) =
                (BTreeMap::<u32, Vec<u8>>::new(), Vec::new(), until.to_vec());
            while !left.is_empty() {
                match incoming.next().await?.expect("it goes on") {
                    Heard::Data {
                        id,
                        bytes: more,
                        last,
                    } => {
                        bytes.entry(id).or_default().extend(more);
                        left.retain(|wanted| !(last && *wanted == id));
                    }
                    Heard::Reset { id } => {
                        resets.push(id);
                        left.retain(|wanted| *wanted != id);
                    }
                    _ => {}
                }
            }
            Ok((bytes, resets))
        };
        tokio::try_join!(says, hears)
    });
    let limit = STALLED_MAX * 1000;
    tokio::time::timeout(limit, talk)
        .await
        .expect("in time")
        .0
        .unwrap()
        .1
}

#[tokio::test(flavor = "local")]
async fn a_port_that_does_not_read_holds_up_the_others_for_a_time_only() {
    const MUCH: usize = 2 * 1024 * 1024;
    let sayings = [upload(1, "1", MUCH), upload(5, "7", MUCH)].concat();
    let began = tokio::time::Instant::now();
    let (bytes, resets) = forwarded(sayings, &[1, 3, 5, 7]).await;
    assert_eq!(resets, [3]);
    assert_eq!(
        (bytes[&7].len(), &bytes[&5], &bytes[&1]),
        (MUCH, &Vec::new(), &Vec::new())
    );
    let took = began.elapsed();
    assert!(took >= STALLED_MAX && took < STALLED_MAX * 3, "{took:?}");
}

#[tokio::test(flavor = "local")]
async fn a_port_that_reads_slowly_is_waited_for() {
    // More than its buffers hold, and the rest takes many times as long as a port that reads nothing has.
    const MORE: usize = 400 * 1024;
    let sayings = [upload(1, "2", MORE), upload(5, "7", 1000)].concat();
    let began = tokio::time::Instant::now();
    let (bytes, resets) = forwarded(sayings, &[1, 5]).await;
    assert_eq!(resets, Vec::<u32>::new());
    assert_eq!(
        (bytes[&3].as_slice(), bytes[&7].len()),
        (MORE.to_string().as_bytes(), 1000)
    );
    assert!(began.elapsed() > STALLED_MAX * 10);
}

/// A runtime in the hands of the test: it takes the streams of a command, says this, and dies.
async fn runtime_that_says(protocol: &'static str, sayings: Vec<Said>) -> String {
    listen(move |_, mut stream| {
        let sayings = sayings.clone();
        async move {
            let headers = [("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocol)];
            crate::answer::agree(&mut stream, &headers).await.unwrap();
            let (reader, writer) = stream.into_split();
            let (talked, _) = spdy::converse(reader, writer, async |mut incoming, out| {
                for _ in 0..4 {
                    incoming.next().await?;
                }
                for said in sayings {
                    out.say(said).await?;
                }
                Ok(())
            })
            .await;
            talked.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_runtime_that_dies_in_the_middle_is_no_success() {
    let end = |id, bytes: &'static [u8]| Said::Data {
        id,
        bytes: Bytes::from_static(bytes),
        last: true,
    };
    for (sayings, status) in [
        (vec![end(5, b"out"), end(7, b"")], None),
        (
            vec![end(5, b"out"), end(7, b""), end(1, b"")],
            Some(Status::success()),
        ),
    ] {
        let address = runtime_that_says("v4.channel.k8s.io", sayings).await;
        let url = format!("http://{address}/exec/x");
        let (stdout, _, told) = talk_spdy(&url, ALL, Vec::new()).await;
        assert_eq!((stdout, told), (b"out".to_vec(), status));
    }
    let address = runtime_that_says("channel.k8s.io", Vec::new()).await;
    let refusal = remote::command(&format!("http://{address}/"), ALL).await;
    let refusal = refusal.map(|_| ()).unwrap_err();
    assert_eq!(
        refusal.text,
        "the container runtime does not speak v4.channel.k8s.io"
    );
}

#[tokio::test]
async fn a_runtime_that_forwards_ports_refuses_other_protocols() {
    let web_socket = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let told = |more: &[(&'static str, &'static str)]| {
        ForwardDoor::of(&request(&[&web_socket[..], more].concat())).map(|door| door.protocol())
    };
    assert!(told(&[]).is_err());
    assert!(told(&[("Sec-WebSocket-Protocol", "v4.channel.k8s.io")]).is_err());
    assert_eq!(
        told(&[("Sec-WebSocket-Protocol", "SPDY/3.1+portforward.k8s.io")]),
        Ok(Some("SPDY/3.1+portforward.k8s.io"))
    );
}
