//! Connections to ports: each is a pair of streams, one for the bytes and one on which trouble is told.
//!
//! **Who waits for whom.** SPDY as Kubernetes speaks it has no windows, so nobody can tell a client to say no more on one
//! stream. A connection whose port reads slower than its client writes has a buffer; when that is full, nothing more is
//! read of this client, as it is with every server of this protocol. Where the port goes on reading, that is how an upload
//! gets the pace of its reader, and nothing is lost. A port that takes nothing at all would hold up the client's other
//! ports for ever: after [`STALLED_MAX`] its connection is reset, and the others go on. The sentence about it is in the log
//! of this node and not on the stream for trouble: kubectl ends all of its connections when it reads anything there.

use crate::answer::Refusal;
use crate::spdy::{self, Headers, Heard, Out, PIECE_BYTES_MAX, Reset, Said};
use crate::upgrade::Carrier;
use crate::{Error, Io, PIPE_BYTES, STREAMS_TIMEOUT, web_socket};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kedge_wire::tunnel::NodeConnect;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Connections at one time within one `kubectl port-forward`: a browser opens some ten.
const CONNECTIONS_MAX: usize = 128;
/// Pieces that wait for one connection, at most 32 KiB each, so that all of them together are 32 MiB.
const WAITING_MAX: usize = 8;
/// A port that took nothing for so long, while its buffer is full and others wait, does not read. A kernel asks for more in
/// steps of some 64 KiB, so that one that reads two kilobytes a second is still known to read.
pub(crate) const STALLED_MAX: Duration = Duration::from_secs(30);

const OVER_SPDY: &[(&str, ())] = &[("portforward.k8s.io", ())];
const OVER_WEB_SOCKET: &[(&str, ())] = &[("SPDY/3.1+portforward.k8s.io", ())];

/// What both sides have agreed on, before anything was said.
#[derive(Debug)]
pub struct ForwardDoor {
    carrier: Carrier,
    protocol: Option<&'static str>,
}

impl ForwardDoor {
    /// Reads what a request wants, or why it cannot have it.
    pub fn of(request: &NodeConnect) -> Result<Self, Refusal> {
        let carrier = Carrier::of(request)?;
        let (protocol, ()) = match &carrier {
            Carrier::Spdy => carrier.agree(request, OVER_SPDY, Some(()))?,
            Carrier::WebSocket { .. } => carrier.agree(request, OVER_WEB_SOCKET, None)?,
        };
        Ok(Self { carrier, protocol })
    }

    /// The protocol that both sides know; `None` when the client named none.
    pub fn protocol(&self) -> Option<&'static str> {
        self.protocol
    }

    /// Agrees, and carries connections. `carry` connects to a port and moves the bytes until both sides are done, or says
    /// why there is no connection.
    pub async fn serve<F>(
        self,
        mut io: impl Io + 'static,
        carry: impl Fn(u16, DuplexStream) -> F + Send,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.carrier.welcome(&mut io, self.protocol).await?;
        match self.carrier {
            Carrier::Spdy => serve(io, carry).await,
            Carrier::WebSocket { .. } => {
                let (inner, drive) = web_socket::unwrapped(io);
                let (served, driven) = tokio::join!(serve(inner, carry), drive);
                served.and(driven)
            }
        }
    }
}

/// What is known of a connection before both its streams are there.
#[derive(Debug)]
struct Half {
    port: u16,
    error: Option<u32>,
    data: Option<u32>,
    since: Instant,
}

impl Half {
    fn ids(&self) -> impl Iterator<Item = u32> {
        [self.error, self.data].into_iter().flatten()
    }
}

/// A data stream.
#[derive(Debug)]
struct Open {
    /// `None` after the client's end.
    pieces: Option<mpsc::Sender<Bytes>>,
    /// Taken by whoever carries it.
    taken: Option<mpsc::Receiver<Bytes>>,
    /// Dropping it ends the connection at once. There is none before both streams are there.
    alive: Option<oneshot::Sender<()>>,
    port: u16,
    /// Bytes that the port has taken.
    written: Arc<AtomicU64>,
}

struct Forwarder<C> {
    carry: C,
    out: Out,
    /// By request id.
    halves: HashMap<String, Half>,
    open: HashMap<u32, Open>,
    /// Each gives the id of its data stream when it is over.
    carried: FuturesUnordered<BoxFuture<'static, u32>>,
    /// Data that finds no room. Until it does nothing more is read; the connections go on, which makes the room.
    stuck: Option<Stuck>,
}

/// A piece for a connection that does not read.
#[derive(Debug)]
struct Stuck {
    id: u32,
    bytes: Bytes,
    last: bool,
    /// Whether the port reads is looked at then, by what it had taken before.
    look_at: Instant,
    written: u64,
}

async fn serve<C, F>(io: impl Io, carry: C) -> Result<(), Error>
where
    C: Fn(u16, DuplexStream) -> F + Send,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let (reader, writer) = tokio::io::split(io);
    let (talked, written) = spdy::converse(reader, writer, async |mut incoming, out| {
        let mut forwarder = Forwarder {
            carry,
            out,
            halves: HashMap::new(),
            open: HashMap::new(),
            carried: FuturesUnordered::new(),
            stuck: None,
        };
        loop {
            let half = forwarder.halves.values().map(|half| half.since).min();
            let late = async {
                match half {
                    Some(since) => tokio::time::sleep_until(since + STREAMS_TIMEOUT).await,
                    None => std::future::pending().await,
                }
            };
            let full = forwarder.full();
            let is_stuck = full.is_some();
            let look_at = forwarder.stuck.as_ref().map(|stuck| stuck.look_at);
            let stalled = async {
                match look_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let room = async {
                match full {
                    // Nobody who reads is as good as room.
                    Some(pieces) => drop(pieces.reserve().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(id) = forwarder.carried.next(), if !forwarder.carried.is_empty() => {
                    forwarder.open.remove(&id);
                }
                () = room => forwarder.unstick(),
                () = stalled => forwarder.give_up_stalled().await?,
                heard = incoming.next(), if !is_stuck => match heard? {
                    // The client has gone: whatever it had open ends with it.
                    None => return Ok(()),
                    Some(heard) => forwarder.heard(heard).await?,
                },
                () = late => forwarder.give_up_halves().await?,
            }
        }
    })
    .await;
    talked.and(written)
}

impl<C, F> Forwarder<C>
where
    C: Fn(u16, DuplexStream) -> F + Send,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    async fn heard(&mut self, heard: Heard) -> Result<(), Error> {
        match heard {
            Heard::Open { id, headers, last } => self.opened(id, &headers, last).await,
            Heard::Data { id, bytes, last } => {
                self.data(id, bytes, last);
                Ok(())
            }
            Heard::Reset { id } => self.reset(id).await,
            Heard::Ping { id } => self.out.say(Said::Pong { id }).await,
            Heard::Reply { .. } | Heard::GoAway | Heard::Nothing => Ok(()),
        }
    }

    async fn opened(&mut self, id: u32, headers: &Headers, last: bool) -> Result<(), Error> {
        let refused = Said::Reset {
            id,
            why: Reset::Refused,
        };
        let port = headers.get("port").and_then(|port| port.parse().ok());
        let is_data = match headers.get("streamtype") {
            Some("data") => true,
            Some("error") => false,
            Some(_) | None => return self.out.say(refused).await,
        };
        let Some(port) = port.filter(|port| *port != 0) else {
            return self.out.say(refused).await;
        };
        // Clients of old days name no request: their data stream is the next one after its error stream.
        let request = headers.get("requestid").map_or_else(
            || if is_data { id.wrapping_sub(2) } else { id }.to_string(),
            str::to_owned,
        );
        if !self.halves.contains_key(&request) && self.carried.len() + self.halves.len() >= CONNECTIONS_MAX {
            return self.out.say(refused).await;
        }
        let half = self.halves.entry(request.clone()).or_insert_with(|| Half {
            port,
            error: None,
            data: None,
            since: Instant::now(),
        });
        let place = if is_data { &mut half.data } else { &mut half.error };
        if place.is_some() || half.port != port || self.open.contains_key(&id) {
            return self.out.say(refused).await;
        }
        *place = Some(id);
        self.out.say(Said::Reply { id }).await?;
        if is_data {
            let (pieces, taken) = mpsc::channel(WAITING_MAX);
            let pieces = (!last).then_some(pieces);
            let open = Open {
                pieces,
                taken: Some(taken),
                alive: None,
                port,
                written: Arc::default(),
            };
            self.open.insert(id, open);
        }
        self.begin(&request);
        Ok(())
    }

    /// The client gives up a stream; its partner, whether it has come or not, is of no use then.
    async fn reset(&mut self, id: u32) -> Result<(), Error> {
        self.open.remove(&id);
        let halves = self
            .halves
            .extract_if(|_, half| half.ids().any(|known| known == id));
        let halves: Vec<Half> = halves.map(|(_, half)| half).collect();
        self.give_up(halves).await
    }

    /// Ends streams whose partner did not come.
    async fn give_up_halves(&mut self) -> Result<(), Error> {
        let is_late = |half: &Half| half.since.elapsed() >= STREAMS_TIMEOUT;
        let late = self.halves.extract_if(|_, half| is_late(half));
        let late: Vec<Half> = late.map(|(_, half)| half).collect();
        self.give_up(late).await
    }

    async fn give_up(&mut self, halves: Vec<Half>) -> Result<(), Error> {
        for id in halves.iter().flat_map(Half::ids) {
            self.open.remove(&id);
            let why = Reset::Cancel;
            self.out.say(Said::Reset { id, why }).await?;
        }
        Ok(())
    }

    /// Connects, when both streams are there.
    fn begin(&mut self, request: &str) {
        let Some(&Half {
            port,
            error: Some(error),
            data: Some(data),
            ..
        }) = self.halves.get(request)
        else {
            return;
        };
        self.halves.remove(request);
        let Some(open) = self.open.get_mut(&data) else {
            return;
        };
        let Some(pieces) = open.taken.take() else { return };
        let (alive, gone) = oneshot::channel();
        open.alive = Some(alive);
        let written = open.written.clone();
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let carried = (self.carry)(port, far);
        let connection = Connection {
            error,
            data,
            out: self.out.clone(),
        };
        self.carried.push(Box::pin(async move {
            tokio::select! {
                biased;
                // The client gave this connection up, and waits to hear that it is over.
                _ = gone => drop(connection.out.end(error, Bytes::new()).await),
                // A broken client is noticed by whoever reads from it.
                _ = connection.run(near, pieces, &written, carried) => {}
            }
            data
        }));
    }

    fn data(&mut self, id: u32, bytes: Bytes, last: bool) {
        // The client's end of an error stream, or of a connection that is over.
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        if let Some(pieces) = &open.pieces
            && !bytes.is_empty()
            // Somebody who reads no more is not waited for.
            && let Err(TrySendError::Full(bytes)) = pieces.try_send(bytes)
        {
            self.stuck = Some(Stuck {
                id,
                bytes,
                last,
                look_at: Instant::now() + STALLED_MAX,
                written: open.written.load(Ordering::Relaxed),
            });
            return;
        }
        if last {
            open.pieces = None;
        }
    }

    /// Where the stuck piece wants to go. When that is over, there is nowhere, and it is gone.
    fn full(&mut self) -> Option<mpsc::Sender<Bytes>> {
        let id = self.stuck.as_ref()?.id;
        let pieces = self.open.get(&id).and_then(|open| open.pieces.clone());
        if pieces.is_none() {
            self.stuck = None;
        }
        pieces
    }

    fn unstick(&mut self) {
        if let Some(stuck) = self.stuck.take() {
            self.data(stuck.id, stuck.bytes, stuck.last);
        }
    }

    /// Ends the connection that holds the others up, if its port has taken nothing since the last look.
    async fn give_up_stalled(&mut self) -> Result<(), Error> {
        let Some(stuck) = &mut self.stuck else {
            return Ok(());
        };
        let Some(open) = self.open.get(&stuck.id) else {
            self.stuck = None;
            return Ok(());
        };
        let written = open.written.load(Ordering::Relaxed);
        // One that has not begun has its own time to.
        if written != stuck.written || open.alive.is_none() {
            stuck.written = written;
            stuck.look_at = Instant::now() + STALLED_MAX;
            return Ok(());
        }
        let (id, port) = (stuck.id, open.port);
        tracing::warn!(
            port,
            seconds = STALLED_MAX.as_secs(),
            "a forwarded port takes nothing, and its client's other connections wait for it: it is reset"
        );
        self.stuck = None;
        self.open.remove(&id);
        let why = Reset::Cancel;
        self.out.say(Said::Reset { id, why }).await
    }
}

/// One connection between its two streams and the port.
struct Connection {
    error: u32,
    data: u32,
    out: Out,
}

impl Connection {
    async fn run(
        &self,
        near: DuplexStream,
        mut pieces: mpsc::Receiver<Bytes>,
        written: &AtomicU64,
        carried: impl Future<Output = Result<(), String>>,
    ) -> Result<(), Error> {
        let (mut from, mut to) = tokio::io::split(near);
        let inward = async {
            while let Some(mut bytes) = pieces.recv().await {
                while bytes.has_remaining() {
                    let Ok(count @ 1..) = to.write_buf(&mut bytes).await else {
                        // The port has hung up; what still comes is for nobody.
                        pieces.close();
                        break;
                    };
                    written.fetch_add(count as u64, Ordering::Relaxed);
                }
            }
            let _ = to.shutdown().await;
            std::future::pending::<Infallible>().await
        };
        let outward = async {
            let mut piece = vec![0; PIECE_BYTES_MAX];
            loop {
                let count = from.read(&mut piece).await?;
                if count == 0 {
                    return self.out.end(self.data, Bytes::new()).await;
                }
                let bytes = Bytes::copy_from_slice(&piece[..count]);
                self.out.data(self.data, bytes).await?;
            }
        };
        let both = async { tokio::join!(carried, outward) };
        let (carried, sent) = tokio::select! {
            ended = both => ended,
            never = inward => match never {},
        };
        sent?;
        let told = carried.err().unwrap_or_default();
        self.out.end(self.error, Bytes::from(told)).await
    }
}
