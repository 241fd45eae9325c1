//! One tunnel from its upgrade to its end.

use crate::Node;
use crate::stream::{Out, Stream, Work};
use bytes::Bytes;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::queue;
use kedge_transport::tunnel::{Credit, Inlets, has_credit};
use kedge_transport::{Close, CloseCode, Connection, Sender};
use kedge_wire::tunnel::{Frame, FrameBody};
use std::collections::HashMap;
use std::time::Duration;

/// Streams at one time: several people reading logs of every pod of a node.
pub(crate) const STREAMS_MAX: usize = 64;
/// Frames that wait for the socket, together at most half a megabyte.
const OUT_MAX: usize = 16;
/// Official edges ping this often.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Serves the tunnel; returns why it ended.
pub(crate) async fn run(connection: Connection, node: Node, scope: &Scope) -> String {
    let agreed = has_credit(&connection);
    let session = scope.child();
    let (sender, mut receiver) = connection.split();
    let (out, frames) = queue::channel("edgestream.out", OUT_MAX);
    let (ended, mut endings) = queue::channel("edgestream.ended", STREAMS_MAX);
    scope.spawn("edgestream-writer", write(sender, frames, session.clone()));
    let mut streams = Streams {
        agreed,
        inlets: Inlets::new(agreed),
        open: HashMap::new(),
        node,
        out: Out(out),
        ended,
        session: session.clone(),
    };
    let why = loop {
        tokio::select! {
            biased;
            () = session.cancelled() => break "the connection broke".to_owned(),
            Some(id) = endings.recv() => streams.forget(id),
            cut = streams.inlets.unstall() => {
                if let Some(id) = cut {
                    streams.cut(id);
                }
            }
            received = receiver.recv_binary(), if !streams.inlets.is_stalled() => match received {
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

/// A stream whose task has not ended.
struct Open {
    scope: Scope,
    credit: Credit,
}

struct Streams {
    agreed: bool,
    inlets: Inlets,
    open: HashMap<u64, Open>,
    node: Node,
    out: Out,
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
            // The cloud is done with it: nobody hears any more what this node says.
            FrameBody::Remove => self.forget(id),
            FrameBody::Close(text) => {
                return Some(format!(
                    "the cloud closed the tunnel: {}",
                    String::from_utf8_lossy(&text)
                ));
            }
            FrameBody::Data(data) => {
                if !self.inlets.data(id, Bytes::from(data)) {
                    self.cut(id);
                }
            }
            FrameBody::Window(more) => {
                let stream = self.open.get(&id);
                if stream.is_some_and(|stream| !stream.credit.give(more)) {
                    return Some("the cloud has taken more of a stream than it was sent".to_owned());
                }
            }
            // Work, each of them.
            FrameBody::LogsConnect(_)
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
            return self.refuse(id, &work);
        }
        let scope = self.session.child();
        let credit = Credit::new(self.agreed);
        let stream = Stream {
            id,
            // Nothing is read where nothing is said.
            outlet: work.is_connection().then(|| self.inlets.open(id)),
            credit: credit.clone(),
            out: self.out.clone(),
        };
        let (node, ended) = (self.node.clone(), self.ended.clone());
        scope.spawn_until_cancelled(format!("edgestream-{id}"), async move {
            stream.run(work, node).await;
            // Room for every open stream, so this never waits.
            let _ = ended.send(id).await;
        });
        self.open.insert(id, Open { scope, credit });
    }

    /// Says why there is no stream, if there is room to say it: refusing must not wait.
    fn refuse(&self, id: u64, work: &Work) {
        let why = format!("this edge already serves {STREAMS_MAX} streams; end one and try again");
        let said = self
            .out
            .try_say(id, FrameBody::Data(work.refusal(&why)))
            .and_then(|()| self.out.try_say(id, FrameBody::Remove));
        if said.is_none() {
            tracing::warn!(id, "too many streams, and no room to say so");
        }
    }

    /// Its reader on this node did not take what the cloud sent.
    fn cut(&mut self, id: u64) {
        tracing::warn!(id, "a stream was cut because nobody on this node took it");
        let _ = self.out.try_say(id, FrameBody::Remove);
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        self.inlets.close(id);
        if let Some(stream) = self.open.remove(&id) {
            stream.scope.cancel();
        }
    }
}
