//! One tunnel of one node, from its arrival to its end.

use crate::NodeAnswer;
use crate::request::{self, Kind};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures_util::stream::FuturesUnordered;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_transport::{Close, CloseCode, Connection, Receiver, SendError, Sender};
use kedge_wire::tunnel::{Frame, FrameBody, NodeGet};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Streams at one time in one tunnel: several people reading logs of every pod of a node.
const STREAMS_MAX: usize = 64;
/// DATA frames that wait for one reader.
const WAITING_MAX: usize = 16;
/// A reader that is full holds the tunnel for this long, so that a slow one slows its node down instead of losing bytes;
/// then its stream is cut and the others of this node go on.
const STALL_MAX: Duration = Duration::from_secs(3);

/// Opens a stream.
pub(crate) struct Order {
    pub(crate) get: NodeGet,
    pub(crate) reply: ask::Reply<NodeAnswer>,
}

/// A stream that a reader takes.
struct Stream {
    kind: Kind,
    bytes: queue::Sender<Bytes>,
    /// Ends the watch over the reader.
    watch: AbortHandle,
}

/// A frame that found its reader full.
struct Stalled {
    id: u64,
    data: Bytes,
    until: Instant,
}

struct Tunnel {
    sender: Sender,
    streams: HashMap<u64, Stream>,
    /// Completes with the id of a stream whose reader has gone.
    leaving: FuturesUnordered<BoxFuture<'static, Result<u64, Aborted>>>,
    stalled: Option<Stalled>,
    /// From 1, never reused within a tunnel: a late frame of an old stream must not reach a new one.
    last_id: u64,
    scope: Scope,
}

/// Serves the tunnel; returns why it ended.
pub(crate) async fn run(connection: Connection, mut orders: queue::Receiver<Order>, scope: Scope) -> String {
    let (sender, mut receiver) = connection.split();
    let mut tunnel = Tunnel {
        sender,
        streams: HashMap::new(),
        leaving: FuturesUnordered::new(),
        stalled: None,
        last_id: 0,
        scope: scope.clone(),
    };
    let close = loop {
        let step = tokio::select! {
            biased;
            // The end comes before any work.
            () = scope.cancelled() => {
                break Close { code: CloseCode::Away, reason: "the cloud stops, or a newer tunnel of this node came".into() };
            }
            // Readers that go make room.
            Some(left) = tunnel.leaving.next(), if !tunnel.leaving.is_empty() => tunnel.left(left).await,
            cut = deliver(&mut tunnel.stalled, &tunnel.streams) => tunnel.delivered(cut).await,
            Some(order) = orders.recv() => tunnel.open(order).await,
            step = receive(&mut receiver), if tunnel.stalled.is_none() => match step {
                Ok(frame) => tunnel.frame(frame).await,
                Err(close) => break close,
            },
        };
        if let Err(error) = step {
            return error.to_string();
        }
    };
    let why = close.reason.clone();
    // Readers see the end now; the last words may take a moment.
    tunnel.streams.clear();
    tunnel.leaving.clear();
    tunnel.sender.close(&close).await;
    why
}

async fn receive(receiver: &mut Receiver) -> Result<Frame, Close> {
    let bytes = receiver.recv_binary().await.map_err(|error| {
        error.verdict().unwrap_or_else(|| Close {
            code: CloseCode::Normal,
            reason: error.to_string(),
        })
    })?;
    Frame::decode(&bytes).map_err(|error| Close {
        code: CloseCode::Policy,
        reason: error.to_string(),
    })
}

/// Waits until the stalled frame is delivered; gives the stream to cut when that takes too long. Cancel safe: the frame
/// stays where it is until it is delivered.
async fn deliver(stalled: &mut Option<Stalled>, streams: &HashMap<u64, Stream>) -> Option<u64> {
    let Some(Stalled { id, data, until }) = stalled else {
        return std::future::pending().await;
    };
    let cut = match streams.get(id) {
        Some(stream) => {
            let sent = tokio::time::timeout_at(*until, stream.bytes.send(data.clone())).await;
            sent.is_err().then_some(*id)
        }
        // Its reader has gone meanwhile.
        None => None,
    };
    *stalled = None;
    cut
}

impl Tunnel {
    async fn open(&mut self, order: Order) -> Result<(), SendError> {
        let Order { get, reply } = order;
        let kind = match Kind::of(&get) {
            Ok(kind) => kind,
            Err(why) => {
                reply.send(Err(why));
                return Ok(());
            }
        };
        if self.streams.len() >= STREAMS_MAX {
            reply.send(Err(format!(
                "{STREAMS_MAX} streams of this node are open already; end one first"
            )));
            return Ok(());
        }
        self.last_id += 1;
        let id = self.last_id;
        self.send(request::connect(id, kind, get)).await?;
        let (bytes, reader) = queue::channel("node stream", WAITING_MAX);
        let (watch, registration) = AbortHandle::new_pair();
        let watched = bytes.clone();
        let gone = async move {
            watched.closed().await;
            id
        };
        self.leaving.push(Box::pin(Abortable::new(gone, registration)));
        self.streams.insert(id, Stream { kind, bytes, watch });
        // An asker that gave up drops the reader, which ends the stream.
        reply.send(Ok(reader));
        Ok(())
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), SendError> {
        let id = frame.connection;
        match frame.body {
            FrameBody::Data(data) => self.data(id, Bytes::from(data)),
            FrameBody::Remove => {
                if let Some(stream) = self.streams.remove(&id) {
                    stream.watch.abort();
                }
            }
            FrameBody::LogsConnect(_)
            | FrameBody::ExecConnect(_)
            | FrameBody::MetricsConnect(_)
            | FrameBody::AttachConnect(_)
            | FrameBody::Close(_) => {
                tracing::debug!(id, "a frame that only the cloud sends came from the edge")
            }
        }
        Ok(())
    }

    fn data(&mut self, id: u64, data: Bytes) {
        // Frames of a stream that was ended here are still on their way for a moment.
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        // A reader that has gone is noticed by its watch.
        if let Err(data) = stream.bytes.try_send(data)
            && !stream.bytes.is_closed()
        {
            self.stalled = Some(Stalled {
                id,
                data,
                until: Instant::now() + STALL_MAX,
            });
        }
    }

    async fn left(&mut self, left: Result<u64, Aborted>) -> Result<(), SendError> {
        match left {
            Ok(id) if self.streams.remove(&id).is_some() => {
                self.send(Frame {
                    connection: id,
                    body: FrameBody::Remove,
                })
                .await
            }
            // Ended by the edge, or cut.
            Ok(_) | Err(Aborted) => Ok(()),
        }
    }

    async fn delivered(&mut self, cut: Option<u64>) -> Result<(), SendError> {
        let Some((id, stream)) = cut.and_then(|id| Some((id, self.streams.remove(&id)?))) else {
            return Ok(());
        };
        stream.watch.abort();
        tracing::warn!(id, "a stream was cut because its reader did not take it");
        if stream.kind == Kind::Logs {
            let last =
                Bytes::from_static(b"\nthe log was cut here: its reader did not take it for too long\n");
            self.scope
                .spawn_until_cancelled("last words of a cut stream", async move {
                    let _ = stream.bytes.send(last).await;
                });
        }
        self.send(Frame {
            connection: id,
            body: FrameBody::Remove,
        })
        .await
    }

    async fn send(&mut self, frame: Frame) -> Result<(), SendError> {
        self.sender.send_text(Bytes::from(frame.encode())).await
    }
}
