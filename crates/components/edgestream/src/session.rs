//! One tunnel from its upgrade to its end.

use crate::NodeAnswer;
use crate::stream::{self, Work};
use bytes::Bytes;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_transport::{Close, CloseCode, Connection, Sender};
use kedge_wire::tunnel::{Frame, FrameBody, NodeGet};
use std::collections::HashMap;
use std::time::Duration;

/// Streams at one time: several people reading logs of every pod of a node.
pub(crate) const STREAMS_MAX: usize = 64;
/// Frames that wait for the socket, together at most half a megabyte.
const OUT_MAX: usize = 16;
/// Official edges ping this often.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Serves the tunnel; returns why it ended.
pub(crate) async fn run(
    connection: Connection,
    gets: ask::Sender<NodeGet, NodeAnswer>,
    scope: &Scope,
) -> String {
    let session = scope.child();
    let (sender, mut receiver) = connection.split();
    let (out, frames) = queue::channel("edgestream.out", OUT_MAX);
    let (ended, mut endings) = queue::channel("edgestream.ended", STREAMS_MAX);
    scope.spawn("edgestream-writer", write(sender, frames, session.clone()));
    let mut streams = Streams {
        open: HashMap::new(),
        gets,
        out,
        ended,
        session: session.clone(),
    };
    let why = loop {
        tokio::select! {
            biased;
            () = session.cancelled() => break "the connection broke".to_owned(),
            Some(id) = endings.recv() => streams.remove(id),
            received = receiver.recv_binary() => match received {
                Err(error) => break error.to_string(),
                Ok(bytes) => match Frame::decode(&bytes) {
                    Err(error) => break format!("the cloud sent a frame that is none: {error}"),
                    Ok(frame) => if let Some(why) = streams.frame(frame) { break why },
                },
            },
        }
    };
    session.cancel();
    why
}

/// Owns the sender. A failed or late write ends the session.
async fn write(mut sender: Sender, mut frames: queue::Receiver<Bytes>, session: Scope) {
    let mut pings = tokio::time::interval(PING_INTERVAL);
    loop {
        let sent = tokio::select! {
            biased;
            () = session.cancelled() => break,
            _ = pings.tick() => sender.ping().await,
            frame = frames.recv() => match frame {
                Some(frame) => sender.send_text(frame).await,
                None => break,
            },
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "tunnel not writable");
            session.cancel();
            return;
        }
    }
    sender
        .close(&Close {
            code: CloseCode::Away,
            reason: "the edge ends the tunnel".to_owned(),
        })
        .await;
}

struct Streams {
    open: HashMap<u64, Scope>,
    gets: ask::Sender<NodeGet, NodeAnswer>,
    out: queue::Sender<Bytes>,
    ended: queue::Sender<u64>,
    session: Scope,
}

impl Streams {
    /// Follows a frame; the reason when it ends the tunnel.
    fn frame(&mut self, Frame { connection: id, body }: Frame) -> Option<String> {
        if let Some(work) = Work::of(&body) {
            self.start(id, work);
            return None;
        }
        match body {
            FrameBody::Remove => self.remove(id),
            FrameBody::Close(text) => {
                return Some(format!(
                    "the cloud closed the tunnel: {}",
                    String::from_utf8_lossy(&text)
                ));
            }
            // Nothing here reads from the cloud: logs and metrics go one way.
            FrameBody::Data(_)
            | FrameBody::LogsConnect(_)
            | FrameBody::ExecConnect(_)
            | FrameBody::MetricsConnect(_)
            | FrameBody::AttachConnect(_) => {}
        }
        None
    }

    fn start(&mut self, id: u64, work: Work) {
        if self.open.contains_key(&id) {
            tracing::warn!(id, "stream asked for twice; the first goes on");
            return;
        }
        if self.open.len() >= STREAMS_MAX {
            return self.refuse(id);
        }
        let stream = self.session.child();
        let (gets, out, ended) = (self.gets.clone(), self.out.clone(), self.ended.clone());
        stream.spawn_until_cancelled(format!("edgestream-{id}"), async move {
            stream::run(id, work, gets, out).await;
            // Room for every open stream, so this never waits.
            let _ = ended.send(id).await;
        });
        self.open.insert(id, stream);
    }

    /// Says why there is no stream, if there is room to say it: refusing must not wait.
    fn refuse(&self, id: u64) {
        let why = format!("this edge already serves {STREAMS_MAX} streams; end one and try again");
        let said = self
            .out
            .try_send(stream::encode(id, FrameBody::Data(stream::line(&why))));
        if said
            .and_then(|()| self.out.try_send(stream::encode(id, FrameBody::Remove)))
            .is_err()
        {
            tracing::warn!(id, "too many streams, and no room to say so");
        }
    }

    /// Ends a stream; edged sees that nobody reads any more.
    fn remove(&mut self, id: u64) {
        if let Some(stream) = self.open.remove(&id) {
            stream.cancel();
        }
    }
}
