//! Connections to ports: each is a pair of streams, one for the bytes and one on which trouble is told.

use crate::answer::Refusal;
use crate::spdy::{self, Headers, Heard, Out, PIECE_BYTES_MAX, Reset, Said};
use crate::upgrade::Carrier;
use crate::{Error, Io, PIPE_BYTES, STREAMS_TIMEOUT, web_socket};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kedge_wire::tunnel::NodeConnect;
use std::collections::HashMap;
use std::convert::Infallible;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Connections at one time within one `kubectl port-forward`: a browser opens some ten.
const CONNECTIONS_MAX: usize = 128;
/// Pieces that wait for one connection, at most 32 KiB each, so that all of them together are 32 MiB. SPDY as it is spoken
/// here keeps no windows, so beyond that all connections of this client wait for the one that does not read.
const WAITING_MAX: usize = 8;

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
    /// Dropping it ends the connection at once.
    alive: Option<oneshot::Sender<()>>,
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
            let (taken, alive) = (Some(taken), None);
            self.open.insert(id, Open { pieces, taken, alive });
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
                _ = connection.run(near, pieces, carried) => {}
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
            self.stuck = Some(Stuck { id, bytes, last });
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
        if let Some(Stuck { id, bytes, last }) = self.stuck.take() {
            self.data(id, bytes, last);
        }
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
        carried: impl Future<Output = Result<(), String>>,
    ) -> Result<(), Error> {
        let (mut from, mut to) = tokio::io::split(near);
        let inward = async {
            while let Some(bytes) = pieces.recv().await {
                if to.write_all(&bytes).await.is_err() {
                    // The port has hung up; what still comes is for nobody.
                    pieces.close();
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
