//! One stream: ask edged, or connect to it; cut its bytes into frames, say that it is over.

use crate::{Node, request};
use bytes::Bytes;
use kedge_streaming::{Connection, Refusal};
use kedge_telemetry::channel::queue;
use kedge_transport::tunnel::{Credit, Frames, Outlet, carry, send};
use kedge_wire::tunnel::{Frame, FrameBody, NodeConnect, NodeGet};
use std::time::Duration;

/// How long edged may take to open a log.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Bytes that wait in each direction of a connection.
const CONNECTION_BYTES_MAX: usize = 64 * 1024;

/// What a stream shall do.
#[derive(Debug)]
pub(crate) enum Work {
    Get(NodeGet),
    Connect(NodeConnect),
    /// Say these bytes and end.
    Say(Vec<u8>),
}

impl Work {
    /// The work of a connect frame; `None` for any other.
    pub(crate) fn of(body: &FrameBody) -> Option<Self> {
        match body {
            FrameBody::LogsConnect(data) | FrameBody::MetricsConnect(data) => {
                Some(match request::read(data) {
                    Ok(get) => Self::Get(get),
                    Err(why) => Self::Say(line(&why)),
                })
            }
            FrameBody::ExecConnect(data) | FrameBody::AttachConnect(data) => {
                Some(match request::read_connection(data) {
                    Ok(connect) => Self::Connect(connect),
                    Err(why) => Self::Say(answer(400, &why)),
                })
            }
            FrameBody::Data(_) | FrameBody::Remove | FrameBody::Close(_) | FrameBody::Window(_) => None,
        }
    }

    pub(crate) fn is_connection(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Get(_) | Self::Say(_) => false,
        }
    }

    /// How a refusal of this work is said.
    pub(crate) fn refusal(&self, why: &str) -> Vec<u8> {
        match self {
            Self::Connect(_) => answer(503, why),
            Self::Get(_) | Self::Say(_) => line(why),
        }
    }
}

/// The way out of the tunnel.
#[derive(Debug, Clone)]
pub(crate) struct Out(pub(crate) queue::Sender<Bytes>);

impl Frames for Out {
    async fn send(&self, frame: Frame) -> bool {
        self.0.send(Bytes::from(frame.encode())).await.is_ok()
    }
}

impl Out {
    /// Says it if there is room.
    pub(crate) fn try_say(&self, connection: u64, body: FrameBody) -> Option<()> {
        let frame = Frame { connection, body };
        self.0.try_send(Bytes::from(frame.encode())).ok()
    }
}

/// What a stream has to do its work.
pub(crate) struct Stream {
    pub(crate) id: u64,
    /// What the cloud says, for connections.
    pub(crate) outlet: Option<Outlet>,
    pub(crate) credit: Credit,
    pub(crate) out: Out,
}

impl Stream {
    /// Runs it to its end. Dropping this ends the stream without a word.
    pub(crate) async fn run(mut self, work: Work, node: Node) {
        let goes_on = match work {
            Work::Say(text) => self.say(&text).await,
            Work::Connect(connect) => match self.outlet.take() {
                Some(outlet) => return self.connect(connect, outlet, node).await,
                None => true,
            },
            Work::Get(get) => match node.gets.ask(get, ANSWER_MAX).await {
                Ok(Ok(bytes)) => self.copy(bytes).await,
                // Status and headers do not travel: the text is all the reader gets.
                Ok(Err(why)) => self.say(&line(&why)).await,
                Err(error) => {
                    self.say(&line(&format!("the edge does not answer: {error}")))
                        .await
                }
            },
        };
        if goes_on {
            self.end().await;
        }
    }

    async fn connect(self, connect: NodeConnect, mut outlet: Outlet, node: Node) {
        let (mut asker, connection) = Connection::pair(connect, CONNECTION_BYTES_MAX);
        if node.connects.try_send(connection).is_err() {
            let why = "this edge is busy with other connections that begin; try again";
            if self.say(&answer(503, why)).await {
                self.end().await;
            }
            return;
        }
        carry(self.id, &mut asker.stream, &mut outlet, &self.credit, &self.out).await;
    }

    async fn copy(&self, mut bytes: queue::Receiver<Bytes>) -> bool {
        while let Some(chunk) = bytes.recv().await {
            if !self.say(&chunk).await {
                return false;
            }
        }
        true
    }

    async fn say(&self, bytes: &[u8]) -> bool {
        send(self.id, bytes, &self.credit, &self.out).await
    }

    async fn end(&self) {
        let (connection, body) = (self.id, FrameBody::Remove);
        // If the tunnel ends now, the cloud knows anyway.
        let _ = self.out.send(Frame { connection, body }).await;
    }
}

fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

/// In exec and attach the bytes are those of an HTTP connection, so a refusal is an HTTP answer.
fn answer(status: u16, why: &str) -> Vec<u8> {
    Refusal::new(status, why).print().into_bytes()
}
