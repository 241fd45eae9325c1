//! Over WebSocket: the first byte of a message says which channel it belongs to.

use super::size::Sizes;
use super::{FromProcess, LOST, Process, ToProcess, Version, Wanted, pieces};
use crate::status::Status;
use crate::{Error, Io, web_socket};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kedge_transport::{Receiver, Sender};
use tokio::sync::mpsc;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// From version 5 on: the channel in the next byte has ended.
const END: u8 = 255;

/// How a channel's bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Binary,
    /// A digit, then base64: for browsers that know only text.
    Base64,
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    On(u8, Bytes),
    Ended(u8),
    Nothing,
}

impl Coding {
    fn read(self, version: Version, message: Bytes) -> Result<Said, &'static str> {
        let Some(&channel) = message.first() else {
            return Ok(Said::Nothing);
        };
        match self {
            Self::Binary if version == Version::V5 && channel == END => match message[..] {
                [_, channel] => Ok(Said::Ended(channel)),
                _ => Err("the end of a channel without saying which"),
            },
            Self::Binary => Ok(Said::On(channel, message.slice(1..))),
            Self::Base64 => {
                let channel = channel
                    .checked_sub(b'0')
                    .filter(|number| *number < 10)
                    .ok_or("a message that begins with no digit")?;
                let bytes = STANDARD.decode(&message[1..]);
                let bytes = bytes.map_err(|_| "a message that is no base64")?;
                Ok(Said::On(channel, Bytes::from(bytes)))
            }
        }
    }

    async fn write(self, sender: &mut Sender, channel: u8, bytes: &[u8]) -> Result<(), Error> {
        let sent = match self {
            Self::Binary => {
                let message = [&[channel], bytes].concat();
                sender.send_binary(Bytes::from(message)).await
            }
            Self::Base64 => {
                let message = format!("{channel}{}", STANDARD.encode(bytes));
                sender.send_text(Bytes::from(message)).await
            }
        };
        sent.map_err(web_socket::broken)
    }
}

pub(super) async fn serve(
    io: impl Io + 'static,
    version: Version,
    coding: Coding,
    wanted: Wanted,
    process: Process,
) -> Result<(), Error> {
    let (mut sender, mut receiver) = web_socket::open(io);
    let Process { input, output } = process;
    let talked = tokio::select! {
        // It has ended: that is the end, whatever the client still says.
        biased;
        talked = speak(&mut sender, version, coding, wanted, output) => talked,
        heard = hear(&mut receiver, version, coding, wanted, input) => heard,
    };
    web_socket::end(sender).await;
    talked
}

/// What the client says, until it hangs up.
async fn hear(
    receiver: &mut Receiver,
    version: Version,
    coding: Coding,
    wanted: Wanted,
    input: mpsc::Sender<ToProcess>,
) -> Result<(), Error> {
    let mut sizes = Sizes::default();
    while let Some(message) = web_socket::receive(receiver).await? {
        let said = coding.read(version, message).map_err(Error::Protocol)?;
        let said = match said {
            Said::On(STDIN, bytes) if wanted.stdin && !bytes.is_empty() => Some(ToProcess::Bytes(bytes)),
            Said::Ended(STDIN) if wanted.stdin => Some(ToProcess::End),
            Said::On(RESIZE, bytes) if wanted.tty => sizes.push(&bytes).map_err(Error::Protocol)?,
            Said::On(..) | Said::Ended(_) | Said::Nothing => None,
        };
        if let Some(said) = said {
            // A process that reads no more is not in the way of its output.
            let _ = input.send(said).await;
        }
    }
    Ok(())
}

/// What the process says, until it has ended.
async fn speak(
    sender: &mut Sender,
    version: Version,
    coding: Coding,
    wanted: Wanted,
    mut output: mpsc::Receiver<FromProcess>,
) -> Result<(), Error> {
    // Clients take an empty message as the sign that they are connected, as a kubelet sends it.
    let first = match wanted {
        Wanted { stdout: true, .. } => STDOUT,
        Wanted {
            stderr: true,
            tty: false,
            ..
        } => STDERR,
        _ => ERROR,
    };
    coding.write(sender, first, &[]).await?;
    let status = loop {
        let (channel, bytes) = match output.recv().await {
            Some(FromProcess::Stdout(bytes)) => (wanted.stdout.then_some(STDOUT), bytes),
            Some(FromProcess::Stderr(bytes)) => (wanted.stderr.then_some(STDERR), bytes),
            Some(FromProcess::Ended(status)) => break status,
            None => break Status::failed(LOST),
        };
        if let Some(channel) = channel {
            for piece in pieces(bytes) {
                coding.write(sender, channel, &piece).await?;
            }
        }
    };
    match version.told(&status) {
        Some(told) => coding.write(sender, ERROR, &told).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages() {
        let read = |coding: Coding, version, message: &'static [u8]| {
            coding.read(version, Bytes::from_static(message))
        };
        let on = |channel, bytes: &'static [u8]| Ok(Said::On(channel, Bytes::from_static(bytes)));
        use Coding::{Base64, Binary};
        assert_eq!(read(Binary, Version::V4, b""), Ok(Said::Nothing));
        assert_eq!(read(Binary, Version::V4, b"\0ls"), on(0, b"ls"));
        assert_eq!(read(Binary, Version::V4, b"\xff\0"), on(255, b"\0"));
        assert_eq!(read(Binary, Version::V5, b"\xff\0"), Ok(Said::Ended(0)));
        assert!(read(Binary, Version::V5, b"\xff").is_err());
        assert_eq!(read(Base64, Version::V4, b"0bHM="), on(0, b"ls"));
        assert!(read(Base64, Version::V4, b"x").is_err());
        assert!(read(Base64, Version::V4, b"0*").is_err());
    }

    proptest! {
        #[test]
        fn no_message_makes_the_reader_fall(message: Vec<u8>) {
            for version in [Version::V1, Version::V4, Version::V5] {
                for coding in [Coding::Binary, Coding::Base64] {
                    let _ = coding.read(version, Bytes::from(message.clone()));
                }
            }
        }
    }
}
