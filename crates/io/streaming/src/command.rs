//! Talking with a process: exec and attach.

mod over_spdy;
mod over_web_socket;
mod size;

pub(crate) use size::print as print_size;

use crate::answer::{self, Refusal};
use crate::spdy::PIECE_BYTES_MAX;
use crate::status::Status;
use crate::upgrade::Carrier;
use crate::{Error, Io, remote};
use bytes::Bytes;
use kedge_wire::tunnel::NodeConnect;
use over_web_socket::Coding;
use tokio::sync::mpsc;

/// Of what there is: a process with a terminal has no standard error of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What is said to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToProcess {
    Bytes(Bytes),
    /// Nothing more comes on its standard input.
    End,
    Resize {
        width: u16,
        height: u16,
    },
}

/// What a process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromProcess {
    Stdout(Bytes),
    Stderr(Bytes),
    /// Everything it said came before.
    Ended(Status),
}

/// The ends of a process. Dropping them hangs up.
#[derive(Debug)]
pub struct Process {
    pub input: mpsc::Sender<ToProcess>,
    /// Closes after [`FromProcess::Ended`], or without it when nobody can say how it ended.
    pub output: mpsc::Receiver<FromProcess>,
}

impl Process {
    /// Pieces that may wait in each direction.
    pub const WAITING_MAX: usize = 4;

    /// A pair: the ends of a process, and the other ends of these.
    pub fn pair() -> (Self, mpsc::Receiver<ToProcess>, mpsc::Sender<FromProcess>) {
        let (input, inputs) = mpsc::channel(Self::WAITING_MAX);
        let (outputs, output) = mpsc::channel(Self::WAITING_MAX);
        (Self { input, output }, inputs, outputs)
    }

    /// A process that never was.
    fn failed(why: &str) -> Self {
        let (process, _, outputs) = Self::pair();
        // The first piece always has room.
        let _ = outputs.try_send(FromProcess::Ended(Status::failed(why)));
        process
    }
}

/// What an end without a word means to who waits for one.
const LOST: &str = "the runtime does not say how it ended";

/// How endings and sizes are told: a step of the protocol `channel.k8s.io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    /// Endings are sentences, and there is nothing for sizes.
    V1,
    V2,
    /// Sizes have a stream.
    V3,
    /// Endings are objects.
    V4,
    /// WebSocket clients can say that a channel has ended.
    V5,
}

impl Version {
    /// The bytes of the error stream.
    fn told(self, status: &Status) -> Option<Bytes> {
        match self {
            Self::V1 | Self::V2 | Self::V3 => status.sentence(),
            Self::V4 | Self::V5 => Some(status.json()),
        }
    }
}

const OVER_SPDY: &[(&str, Version)] = &[
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];
const OVER_WEB_SOCKET: &[(&str, (Version, Coding))] = &[
    ("v5.channel.k8s.io", (Version::V5, Coding::Binary)),
    ("v4.channel.k8s.io", (Version::V4, Coding::Binary)),
    ("v4.base64.channel.k8s.io", (Version::V4, Coding::Base64)),
    ("channel.k8s.io", (Version::V1, Coding::Binary)),
    ("base64.channel.k8s.io", (Version::V1, Coding::Base64)),
];

/// What both sides have agreed on, before anything was said.
#[derive(Debug)]
pub struct CommandDoor {
    carrier: Carrier,
    protocol: Option<&'static str>,
    speech: Speech,
}

#[derive(Debug, Clone, Copy)]
enum Speech {
    Spdy(Version),
    WebSocket(Version, Coding),
}

impl CommandDoor {
    /// Reads what a request wants, or why it cannot have it.
    pub fn of(request: &NodeConnect) -> Result<Self, Refusal> {
        let carrier = Carrier::of(request)?;
        let (protocol, speech) = match &carrier {
            Carrier::Spdy => {
                let (name, version) = carrier.agree(request, OVER_SPDY, Some(Version::V1))?;
                (name, Speech::Spdy(version))
            }
            Carrier::WebSocket { .. } => {
                let otherwise = Some((Version::V1, Coding::Binary));
                let (name, (version, coding)) = carrier.agree(request, OVER_WEB_SOCKET, otherwise)?;
                (name, Speech::WebSocket(version, coding))
            }
        };
        Ok(Self {
            carrier,
            protocol,
            speech,
        })
    }

    /// Agrees, and carries a process; one that could not be had is told as its ending, because who asks reads endings.
    pub async fn serve(
        self,
        mut io: impl Io + 'static,
        wanted: Wanted,
        process: Result<Process, String>,
    ) -> Result<(), Error> {
        self.carrier.welcome(&mut io, self.protocol).await?;
        let process = process.unwrap_or_else(|why| Process::failed(&why));
        match self.speech {
            Speech::Spdy(version) => over_spdy::serve(io, version, wanted, process).await,
            Speech::WebSocket(version, coding) => {
                over_web_socket::serve(io, version, coding, wanted, process).await
            }
        }
    }

    /// Has the runtime serve it, at its own URL. Who speaks SPDY gets its very bytes; who speaks WebSocket gets what it
    /// means, because runtimes know no version 5, without which a client cannot end its input.
    pub async fn serve_at(
        self,
        mut io: impl Io + 'static,
        wanted: Wanted,
        url: &str,
        request: &NodeConnect,
    ) -> Result<(), Error> {
        match self.speech {
            Speech::Spdy(_) => match remote::splice(url, request, &mut io).await? {
                Ok(()) => Ok(()),
                Err(refusal) => Ok(answer::refuse(&mut io, &refusal).await?),
            },
            Speech::WebSocket(..) => match remote::command(url, wanted).await {
                Ok((process, drive)) => {
                    let serve = self.serve(io, wanted, Ok(process));
                    let drive = async {
                        if let Err(error) = drive.await {
                            tracing::debug!(%error, "the runtime's end of a conversation broke");
                        }
                    };
                    // The runtime's end ends when ours does.
                    let (served, ()) = tokio::join!(serve, drive);
                    served
                }
                Err(refusal) => Ok(answer::refuse(&mut io, &refusal).await?),
            },
        }
    }
}

/// Cuts what a process says into pieces that a frame may have.
fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
        (!piece.is_empty()).then_some(piece)
    })
}
