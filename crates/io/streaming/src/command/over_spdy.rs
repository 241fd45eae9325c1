//! Over SPDY: a stream for each of error, input, outputs and size, which the client opens and names.

use super::size::Sizes;
use super::{FromProcess, LOST, Process, ToProcess, Version, Wanted, pieces};
use crate::spdy::{self, Heard, Incoming, Out, Reset, Said};
use crate::status::Status;
use crate::{Error, Io, STREAMS_TIMEOUT};
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

/// Streams by what they are for.
#[derive(Debug, Clone, Copy, Default)]
struct Streams {
    error: Option<u32>,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
}

impl Streams {
    /// The place of a stream with this name; `None` for one that nobody asked for.
    fn place(&mut self, name: &str, version: Version, wanted: Wanted) -> Option<&mut Option<u32>> {
        match name {
            "error" => Some(&mut self.error),
            "stdin" if wanted.stdin => Some(&mut self.stdin),
            "stdout" if wanted.stdout => Some(&mut self.stdout),
            "stderr" if wanted.stderr && !wanted.tty => Some(&mut self.stderr),
            "resize" if wanted.tty && version >= Version::V3 => Some(&mut self.resize),
            _ => None,
        }
    }

    fn are_complete(&self, version: Version, wanted: Wanted) -> bool {
        self.error.is_some()
            && self.stdin.is_some() == wanted.stdin
            && self.stdout.is_some() == wanted.stdout
            && self.stderr.is_some() == (wanted.stderr && !wanted.tty)
            && self.resize.is_some() == (wanted.tty && version >= Version::V3)
    }
}

pub(super) async fn serve(
    io: impl Io,
    version: Version,
    wanted: Wanted,
    process: Process,
) -> Result<(), Error> {
    let (reader, writer) = tokio::io::split(io);
    let (talked, written) = spdy::converse(reader, writer, async |mut incoming, out| {
        let Process { input, output } = process;
        let mut client = Client {
            version,
            wanted,
            streams: Streams::default(),
            sizes: Sizes::default(),
            input,
            out: out.clone(),
        };
        let opening = client.open_streams(&mut incoming);
        let opened = tokio::time::timeout(STREAMS_TIMEOUT, opening).await;
        if !opened.map_err(|_elapsed| Error::NoStreams)?? {
            return Ok(());
        }
        let streams = client.streams;
        tokio::select! {
            // It has ended: that is the end, whatever the client still says.
            biased;
            talked = speak(&out, streams, version, output) => talked,
            heard = client.hear(&mut incoming) => heard,
        }
    })
    .await;
    talked.and(written)
}

/// What the client says, on its way to the process.
struct Client {
    version: Version,
    wanted: Wanted,
    streams: Streams,
    sizes: Sizes,
    input: mpsc::Sender<ToProcess>,
    out: Out,
}

impl Client {
    /// Waits for the streams that the request announced; `false` when the client leaves before.
    async fn open_streams(&mut self, incoming: &mut Incoming<impl AsyncRead + Unpin>) -> Result<bool, Error> {
        while !self.streams.are_complete(self.version, self.wanted) {
            match incoming.next().await? {
                Some(Heard::GoAway) | None => return Ok(false),
                Some(heard) => self.heard(heard).await?,
            }
        }
        Ok(true)
    }

    /// Until it hangs up.
    async fn hear(&mut self, incoming: &mut Incoming<impl AsyncRead + Unpin>) -> Result<(), Error> {
        while let Some(heard) = incoming.next().await? {
            self.heard(heard).await?;
        }
        Ok(())
    }

    async fn heard(&mut self, heard: Heard) -> Result<(), Error> {
        match heard {
            Heard::Open { id, headers, last } => {
                let name = headers.get("streamtype").unwrap_or_default();
                let place = self.streams.place(name, self.version, self.wanted);
                let Some(place @ None) = place else {
                    let why = Reset::Refused;
                    return self.out.say(Said::Reset { id, why }).await;
                };
                *place = Some(id);
                self.out.say(Said::Reply { id }).await?;
                if last {
                    self.data(id, Bytes::new(), last).await?;
                }
            }
            Heard::Data { id, bytes, last } => self.data(id, bytes, last).await?,
            Heard::Reset { id } => self.data(id, Bytes::new(), true).await?,
            Heard::Ping { id } => self.out.say(Said::Pong { id }).await?,
            // A client that goes away hangs up next.
            Heard::Reply { .. } | Heard::GoAway | Heard::Nothing => {}
        }
        Ok(())
    }

    async fn data(&mut self, id: u32, bytes: Bytes, last: bool) -> Result<(), Error> {
        // A process that reads no more is not in the way of its output.
        if Some(id) == self.streams.stdin {
            if !bytes.is_empty() {
                let _ = self.input.send(ToProcess::Bytes(bytes)).await;
            }
            if last {
                let _ = self.input.send(ToProcess::End).await;
            }
        } else if Some(id) == self.streams.resize
            && let Some(size) = self.sizes.push(&bytes).map_err(Error::Protocol)?
        {
            let _ = self.input.send(size).await;
        }
        // Others are the ends of streams that only this side writes.
        Ok(())
    }
}

/// What the process says, until it has ended.
async fn speak(
    out: &Out,
    streams: Streams,
    version: Version,
    mut output: mpsc::Receiver<FromProcess>,
) -> Result<(), Error> {
    let status = loop {
        let (stream, bytes) = match output.recv().await {
            Some(FromProcess::Stdout(bytes)) => (streams.stdout, bytes),
            Some(FromProcess::Stderr(bytes)) => (streams.stderr, bytes),
            Some(FromProcess::Ended(status)) => break status,
            None => break Status::failed(LOST),
        };
        if let Some(id) = stream {
            for bytes in pieces(bytes) {
                out.data(id, bytes).await?;
            }
        }
    };
    for id in [streams.stdout, streams.stderr].into_iter().flatten() {
        out.end(id, Bytes::new()).await?;
    }
    if let Some(id) = streams.error {
        out.end(id, version.told(&status).unwrap_or_default()).await?;
    }
    out.say(Said::GoAway).await
}
