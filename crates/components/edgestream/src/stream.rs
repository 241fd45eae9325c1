//! One stream: ask edged, cut its bytes into frames, say that it is over.

use crate::{NodeAnswer, request};
use bytes::Bytes;
use kedge_telemetry::channel::{Closed, ask, queue};
use kedge_wire::tunnel::{Frame, FrameBody, NodeGet};
use std::time::Duration;

/// Bytes of one DATA frame. Official edges send 256; a larger frame costs less, and this size still lets other
/// streams through in between.
pub(crate) const DATA_BYTES_MAX: usize = 32 * 1024;
/// How long edged may take to open a log.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What a stream shall do.
#[derive(Debug)]
pub(crate) enum Work {
    Get(NodeGet),
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
            FrameBody::ExecConnect(_) => Some(Self::Say(not_implemented("exec"))),
            FrameBody::AttachConnect(_) => Some(Self::Say(not_implemented("attach"))),
            FrameBody::Data(_) | FrameBody::Remove | FrameBody::Close(_) => None,
        }
    }
}

/// Runs one stream to its end. Dropping it ends the stream without a word.
pub(crate) async fn run(
    id: u64,
    work: Work,
    gets: ask::Sender<NodeGet, NodeAnswer>,
    out: queue::Sender<Bytes>,
) {
    let sent = match work {
        Work::Say(text) => say(id, &text, &out).await,
        Work::Get(get) => match gets.ask(get, ANSWER_MAX).await {
            Ok(Ok(bytes)) => copy(id, bytes, &out).await,
            // Status and headers do not travel: the text is all the reader gets.
            Ok(Err(why)) => say(id, &line(&why), &out).await,
            Err(error) => say(id, &line(&format!("the edge does not answer: {error}")), &out).await,
        },
    };
    if sent.is_ok() {
        // If the tunnel ends now, the cloud knows anyway.
        let _ = out.send(encode(id, FrameBody::Remove)).await;
    }
}

async fn copy(id: u64, mut bytes: queue::Receiver<Bytes>, out: &queue::Sender<Bytes>) -> Result<(), Closed> {
    while let Some(chunk) = bytes.recv().await {
        say(id, &chunk, out).await?;
    }
    Ok(())
}

async fn say(id: u64, bytes: &[u8], out: &queue::Sender<Bytes>) -> Result<(), Closed> {
    for part in bytes.chunks(DATA_BYTES_MAX) {
        out.send(encode(id, FrameBody::Data(part.to_vec()))).await?;
    }
    Ok(())
}

pub(crate) fn encode(connection: u64, body: FrameBody) -> Bytes {
    Bytes::from(Frame { connection, body }.encode())
}

pub(crate) fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

/// In exec and attach the bytes are those of an HTTP connection, so a refusal is an HTTP answer.
fn not_implemented(what: &str) -> Vec<u8> {
    let text = format!("{what} is not available on this edge: it serves logs and metrics\n");
    let length = text.len();
    let head = "HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close";
    format!("{head}\r\nContent-Length: {length}\r\n\r\n{text}").into_bytes()
}
