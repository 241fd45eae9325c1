//! One tunnel of one node, from its arrival to its end.

use crate::request::{self, Kind};
use crate::{ConnectAnswer, NodeAnswer};
use bytes::Bytes;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_transport::tunnel::{Credit, Frames, Inlets, Outlet, carry, has_credit};
use kedge_transport::{Close, CloseCode, Connection, Receiver, Sender};
use kedge_wire::tunnel::{Frame, FrameBody, NodeConnect, NodeGet};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;

/// Streams at one time in one tunnel: several people reading logs of every pod of a node.
const STREAMS_MAX: usize = 64;
/// Pieces that wait for one reader.
const WAITING_MAX: usize = 16;
/// Frames that wait for the socket, together at most half a megabyte.
const OUT_MAX: usize = 16;
/// Bytes that wait in each direction of a connection.
const CONNECTION_BYTES_MAX: usize = 64 * 1024;
/// After the end of a tunnel its readers still get what came, and are told; one that does not read by then is left.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// Opens a stream.
#[derive(Debug)]
pub(crate) enum Order {
    Get {
        get: NodeGet,
        reply: ask::Reply<NodeAnswer>,
    },
    Connect {
        connect: NodeConnect,
        reply: ask::Reply<ConnectAnswer>,
    },
}

impl Order {
    pub(crate) fn refuse(self, why: String) {
        match self {
            Self::Get { reply, .. } => reply.send(Err(why)),
            Self::Connect { reply, .. } => reply.send(Err(why)),
        }
    }
}

/// A stream whose task has not ended.
struct Stream {
    kind: Kind,
    credit: Credit,
    /// Says why nothing more comes; whoever does not hear it knows that the tunnel has ended.
    end: Option<oneshot::Sender<End>>,
}

/// Why nothing more comes on a stream.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The edge has said everything.
    Done,
    /// Its reader did not read.
    Cut,
}

impl End {
    /// Half an answer must not pass for a whole one.
    fn last_words(end: Option<Self>) -> Option<&'static str> {
        match end {
            Some(Self::Done) => None,
            Some(Self::Cut) => Some("\ncut here: the reader did not take it for too long\n"),
            None => Some("\ncut here: the tunnel to the node ended\n"),
        }
    }
}

impl Stream {
    fn end(&mut self, end: End) {
        if let Some(tell) = self.end.take() {
            let _ = tell.send(end);
        }
    }
}

/// The way out of this tunnel.
#[derive(Debug, Clone)]
struct Out(queue::Sender<Bytes>);

impl Frames for Out {
    async fn send(&self, frame: Frame) -> bool {
        self.0.send(Bytes::from(frame.encode())).await.is_ok()
    }
}

struct Tunnel {
    agreed: bool,
    inlets: Inlets,
    streams: HashMap<u64, Stream>,
    out: Out,
    /// Takes the id of a stream whose task has ended.
    ended: queue::Sender<u64>,
    /// From 1, never reused within a tunnel: a late frame of an old stream must not reach a new one.
    last_id: u64,
    session: Scope,
}

/// Serves the tunnel; returns why it ended.
pub(crate) async fn run(connection: Connection, mut orders: queue::Receiver<Order>, scope: Scope) -> String {
    let agreed = has_credit(&connection);
    let (sender, mut receiver) = connection.split();
    let session = scope.child();
    let (out, frames) = queue::channel("tunnel frames", OUT_MAX);
    let (ended, mut endings) = queue::channel("tunnel streams ended", STREAMS_MAX);
    let (last_words, last) = oneshot::channel();
    let writer = write(sender, frames, last, session.clone());
    let mut tunnel = Tunnel {
        agreed,
        inlets: Inlets::new(agreed),
        streams: HashMap::new(),
        out: Out(out),
        ended,
        last_id: 0,
        session: session.clone(),
    };
    let serve = async move {
        let close = loop {
            tokio::select! {
                biased;
                // The end comes before any work.
                () = session.cancelled() => break Close {
                    code: CloseCode::Away,
                    reason: "the cloud stops, or a newer tunnel of this node came".into(),
                },
                // Streams that end make room.
                Some(id) = endings.recv() => {
                    tunnel.streams.remove(&id);
                    tunnel.inlets.close(id);
                }
                cut = tunnel.inlets.unstall() => {
                    if let Some(id) = cut {
                        tunnel.cut(id);
                    }
                }
                Some(order) = orders.recv() => tunnel.open(order),
                step = receive(&mut receiver), if !tunnel.inlets.is_stalled() => match step {
                    Ok(frame) => tunnel.frame(frame),
                    Err(close) => break close,
                },
            }
        };
        let why = close.reason.clone();
        // Readers see the end now; the last words may take a moment.
        let _ = last_words.send(close);
        tunnel.session.cancel();
        why
    };
    let (why, broken) = tokio::join!(serve, writer);
    broken.unwrap_or(why)
}

/// Owns the sender, until the last words. Says why when it could not write: that ends the session.
async fn write(
    mut sender: Sender,
    mut frames: queue::Receiver<Bytes>,
    mut last: oneshot::Receiver<Close>,
    session: Scope,
) -> Option<String> {
    let close = loop {
        let sent = tokio::select! {
            biased;
            close = &mut last => break close.ok(),
            sent = async {
                match frames.recv().await {
                    Some(frame) => sender.send_text(frame).await,
                    // The tunnel holds one end until it has said its last words.
                    None => std::future::pending().await,
                }
            } => sent,
        };
        if let Err(error) = sent {
            session.cancel();
            return Some(error.to_string());
        }
    };
    if let Some(close) = close {
        sender.close(&close).await;
    }
    None
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

impl Tunnel {
    fn open(&mut self, order: Order) {
        let kind = match &order {
            Order::Get { get, .. } => Kind::of(get),
            Order::Connect { connect, .. } => Kind::of_connection(connect),
        };
        let kind = match kind {
            Ok(kind) => kind,
            Err(why) => return order.refuse(why),
        };
        if self.streams.len() >= STREAMS_MAX {
            return order.refuse(format!(
                "{STREAMS_MAX} streams of this node are open already; end one first"
            ));
        }
        self.last_id += 1;
        let id = self.last_id;
        let (end, ended_so) = oneshot::channel();
        let task = Task {
            id,
            outlet: self.inlets.open(id),
            credit: Credit::new(self.agreed),
            out: self.out.clone(),
        };
        let stream = Stream {
            kind,
            credit: task.credit.clone(),
            end: Some(end),
        };
        self.streams.insert(id, stream);
        let (ended, session) = (self.ended.clone(), self.session.clone());
        let over = async move {
            session.cancelled().await;
            tokio::time::sleep(LAST_WORDS_MAX).await;
        };
        // What an asker that gave up drops ends the stream.
        let work = async move {
            match order {
                Order::Get { get, reply } => {
                    let (bytes, reader) = queue::channel("node stream", WAITING_MAX);
                    let frame = request::get(id, kind, get);
                    reply.send(Ok(reader));
                    if task.read(frame, &bytes).await
                        && let Some(last) = End::last_words(ended_so.await.ok())
                    {
                        let _ = bytes.send(Bytes::from_static(last.as_bytes())).await;
                    }
                }
                Order::Connect { connect, reply } => {
                    let (near, far) = tokio::io::duplex(CONNECTION_BYTES_MAX);
                    let frame = request::connect(id, kind, connect);
                    reply.send(Ok(far));
                    task.carry(frame, near).await;
                }
            }
            // Room for every stream, so this never waits.
            let _ = ended.send(id).await;
        };
        self.session.spawn("tunnel stream", async move {
            tokio::select! {
                biased;
                () = work => {}
                () = over => {}
            }
        });
    }

    fn frame(&mut self, frame: Frame) {
        let id = frame.connection;
        match frame.body {
            FrameBody::Data(data) => {
                if !self.inlets.data(id, Bytes::from(data)) {
                    self.cut(id);
                }
            }
            FrameBody::Remove => self.end(id),
            FrameBody::Window(more) => {
                let stream = self.streams.get(&id);
                if stream.is_some_and(|stream| !stream.credit.give(more)) {
                    tracing::warn!(id, "the edge has taken more of a stream than it was sent");
                    self.end(id);
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
    }

    /// The edge is done with it; what it said is still read.
    fn end(&mut self, id: u64) {
        self.inlets.close(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.end(End::Done);
        }
    }

    fn cut(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        tracing::warn!(id, kind = ?stream.kind, "a stream was cut because its reader did not take it");
        stream.end(End::Cut);
        // Its own task may wait for the reader, and this one for nobody.
        let out = self.out.clone();
        self.session
            .spawn_until_cancelled("end of a cut tunnel stream", async move {
                let body = FrameBody::Remove;
                out.send(Frame { connection: id, body }).await;
            });
    }
}

/// What one stream does.
struct Task {
    id: u64,
    outlet: Outlet,
    credit: Credit,
    out: Out,
}

impl Task {
    async fn say(&self, body: FrameBody) -> bool {
        let connection = self.id;
        self.out.send(Frame { connection, body }).await
    }

    /// Opens the stream and hands its bytes on, until nothing more comes. When the reader goes before that, it ends the
    /// stream, and the answer is `false`.
    async fn read(mut self, open: Frame, bytes: &queue::Sender<Bytes>) -> bool {
        if !self.out.send(open).await {
            return false;
        }
        loop {
            let next = tokio::select! {
                biased;
                () = bytes.closed() => break,
                next = self.outlet.next() => next,
            };
            let Some(piece) = next else { return true };
            let count = piece.len();
            if bytes.send(piece).await.is_err() {
                break;
            }
            if let Some(window) = self.outlet.taken(count)
                && !self.say(window).await
            {
                return false;
            }
        }
        self.say(FrameBody::Remove).await;
        false
    }

    /// Opens the stream and carries both directions.
    async fn carry(mut self, open: Frame, stream: DuplexStream) {
        if self.out.send(open).await {
            carry(self.id, stream, &mut self.outlet, &self.credit, &self.out).await;
        }
    }
}
