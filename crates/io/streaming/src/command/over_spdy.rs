//! Over SPDY: a stream for each of error, input, outputs and size, which the client opens and names.

use super::size::Sizes;
use super::{FromProcess, LOST, Process, ToProcess, Version, Wanted, pieces};
use crate::spdy::{self, Heard, Incoming, Reset, Said};
use crate::status::Status;
use crate::{Error, Io, STREAMS_TIMEOUT};
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

/// Streams by what they are for.
#[derive(Debug, Default)]
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
    let (said, saying) = mpsc::channel(spdy::OUT_MAX);
    let talk = async {
        let mut incoming = Incoming::new(reader);
        let opening = streams(&mut incoming, &said, version, wanted);
        let streams = match tokio::time::timeout(STREAMS_TIMEOUT, opening).await {
            Ok(streams) => streams?,
            Err(_elapsed) => return Err(Error::NoStreams),
        };
        let Some(streams) = streams else { return Ok(()) };
        let Process { input, output } = process;
        let talked = tokio::select! {
            // It has ended: that is the end, whatever the client still says.
            biased;
            talked = speak(&said, &streams, version, output) => talked,
            heard = hear(&mut incoming, &said, &streams, input) => heard,
        };
        // The last frames go out, then the end.
        drop(said);
        talked
    };
    let (talked, written) = tokio::join!(talk, spdy::outgoing(writer, saying));
    talked.and(written.map_err(Error::from))
}

/// Waits for the streams that the request announced; `None` when the client leaves before.
async fn streams(
    incoming: &mut Incoming<impl AsyncRead + Unpin>,
    said: &mpsc::Sender<Said>,
    version: Version,
    wanted: Wanted,
) -> Result<Option<Streams>, Error> {
    let mut streams = Streams::default();
    while !streams.are_complete(version, wanted) {
        match incoming.next().await? {
            Some(Heard::Open { id, headers, .. }) => {
                let name = headers.get("streamtype").unwrap_or_default();
                match streams.place(name, version, wanted) {
                    Some(place @ None) => {
                        *place = Some(id);
                        say(said, Said::Reply { id }).await?;
                    }
                    Some(Some(_)) | None => {
                        let why = Reset::Refused;
                        say(said, Said::Reset { id, why }).await?;
                    }
                }
            }
            Some(Heard::Ping { id }) => say(said, Said::Pong { id }).await?,
            // kubectl writes nothing before all its streams stand.
            Some(Heard::Data { .. } | Heard::Reset { .. } | Heard::Reply { .. } | Heard::Nothing) => {}
            Some(Heard::GoAway) | None => return Ok(None),
        }
    }
    Ok(Some(streams))
}

/// What the client says, until it hangs up.
async fn hear(
    incoming: &mut Incoming<impl AsyncRead + Unpin>,
    said: &mpsc::Sender<Said>,
    streams: &Streams,
    input: mpsc::Sender<ToProcess>,
) -> Result<(), Error> {
    let mut sizes = Sizes::default();
    while let Some(heard) = incoming.next().await? {
        match heard {
            Heard::Data { id, bytes, last } if Some(id) == streams.stdin => {
                // A process that reads no more is not in the way of its output.
                if !bytes.is_empty() {
                    let _ = input.send(ToProcess::Bytes(bytes)).await;
                }
                if last {
                    let _ = input.send(ToProcess::End).await;
                }
            }
            Heard::Reset { id } if Some(id) == streams.stdin => {
                let _ = input.send(ToProcess::End).await;
            }
            Heard::Data { id, bytes, .. } if Some(id) == streams.resize => {
                if let Some(size) = sizes.push(&bytes).map_err(Error::Protocol)? {
                    let _ = input.send(size).await;
                }
            }
            Heard::Ping { id } => say(said, Said::Pong { id }).await?,
            Heard::Open { id, .. } => {
                let why = Reset::Refused;
                say(said, Said::Reset { id, why }).await?;
            }
            // The ends of streams that only this side writes; a client that goes away hangs up next.
            Heard::Data { .. }
            | Heard::Reset { .. }
            | Heard::Reply { .. }
            | Heard::GoAway
            | Heard::Nothing => {}
        }
    }
    Ok(())
}

/// What the process says, until it has ended.
async fn speak(
    said: &mpsc::Sender<Said>,
    streams: &Streams,
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
                let last = false;
                say(said, Said::Data { id, bytes, last }).await?;
            }
        }
    };
    let told = version.told(&status).unwrap_or_default();
    let outputs = [streams.stdout, streams.stderr].into_iter().flatten();
    let ends = outputs.map(|id| (id, Bytes::new()));
    for (id, bytes) in ends.chain(streams.error.map(|id| (id, told))) {
        let last = true;
        say(said, Said::Data { id, bytes, last }).await?;
    }
    say(said, Said::GoAway).await
}

async fn say(said: &mpsc::Sender<Said>, what: Said) -> Result<(), Error> {
    // Nobody takes it when the connection has broken.
    let broken = |_| Error::Io(std::io::ErrorKind::BrokenPipe.into());
    said.send(what).await.map_err(broken)
}
