//! Conversations: with a command, with a container's own process, and with a port.

use super::launch::Talking;
use super::records::{Phase, identity};
use super::supervisors::{done, request};
use super::{Embedded, Inner};
use crate::helper::connect::{ConnectOrder, addresses};
use crate::{Error, Input, Output, Session, SocketInPod};
use bytes::Bytes;
use kedge_containers::{ContainerId, SandboxId, Talk};
use kedge_supervision::Order;
use kedge_supervision::talk::{FromProcess, MESSAGE_BYTES_MAX, PIECE_BYTES_MAX, ToProcess};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

const ATTACH: &str = "attach to container";
const CONNECT: &str = "connect to sandbox";

/// The supervisor answers at once.
const ATTACH_WAIT_MAX: Duration = Duration::from_secs(10);
/// The node's own loopback answers at once, unless nobody takes connections.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);

impl Embedded {
    pub(super) async fn talk_with_command(&self, id: &ContainerId, talk: &Talk) -> Result<Session, Error> {
        let (of, wanted) = (id.clone(), talk.clone());
        let talking = self
            .blocking("run a command in container", move |inner| {
                let order = inner.exec_order(&of, &wanted, Duration::ZERO)?;
                inner.launcher.talk(&of.0, &order)
            })
            .await?;
        let Talking { child, socket } = talking;
        let session = carry(socket, talk, &id.0, move || {
            let mut child = child;
            // It kills the command when we hang up, and ends.
            drop(child.wait());
        });
        session.map_err(|error| Error::failed("run a command in container", &id.0, error))
    }

    pub(super) async fn talk_with_container(&self, id: &ContainerId, talk: &Talk) -> Result<Session, Error> {
        let (of, wanted) = (id.clone(), talk.clone());
        let socket = self
            .blocking(ATTACH, move |inner| inner.attach(&of, &wanted))
            .await?;
        carry(socket, talk, &id.0, || {}).map_err(|error| Error::failed(ATTACH, &id.0, error))
    }

    pub(super) async fn connect_to_port(&self, id: &SandboxId, port: u16) -> Result<SocketInPod, Error> {
        let of = id.clone();
        let connection = self
            .blocking(CONNECT, move |inner| inner.connect(&of, port))
            .await?;
        let failed = |error: std::io::Error| Error::failed(CONNECT, &id.0, format!("port {port}: {error}"));
        if let Some(connection) = connection {
            let connection = std::net::TcpStream::from(connection);
            connection.set_nonblocking(true).map_err(failed)?;
            return Ok(Box::new(TcpStream::from_std(connection).map_err(failed)?));
        }
        let [first, second] = addresses(port);
        let connecting = async {
            match TcpStream::connect(first).await {
                Err(error) => TcpStream::connect(second).await.map_err(|_| error),
                connected => connected,
            }
        };
        match tokio::time::timeout(CONNECT_WAIT_MAX, connecting).await {
            Ok(connected) => Ok(Box::new(connected.map_err(failed)?)),
            Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

impl Inner {
    fn attach(&self, id: &ContainerId, talk: &Talk) -> Result<OwnedFd, Error> {
        let failed = |reason: &str| Err(Error::failed(ATTACH, &id.0, reason));
        let Some(record) = self.container_record(&id.0)? else {
            return Err(Error::NoContainer(id.0.clone()));
        };
        let Some(state) = self.state_of(id)? else {
            return failed("nothing is known of it");
        };
        match state.phase {
            Phase::Created | Phase::Running { .. } => {}
            Phase::Exited { .. } => return failed("it has ended"),
        }
        let boot_id = kedge_host::boot_id().map_err(|error| Error::failed(ATTACH, &id.0, error))?;
        if let Some(sandbox) = self.sandbox_record(&record.sandbox)? {
            self.require_supervisor(&sandbox, &boot_id)?;
        }
        // A terminal goes with the supervisor that held it.
        let supervised = identity(&state.supervisor)
            .is_alive()
            .map_err(|error| Error::failed(ATTACH, &id.0, error))?;
        if record.config.tty && !supervised {
            return failed("its terminal was lost with its supervisor");
        }
        let order = Order::Attach {
            id: id.0.clone(),
            stdin: talk.stdin,
            stdout: talk.stdout,
            stderr: talk.stderr && !record.config.tty,
        };
        let directory = self.layout.sandbox(&record.sandbox);
        match request(&directory, order, None, ATTACH_WAIT_MAX) {
            Ok((socket, reply)) => done(ATTACH, &id.0, Ok(reply)).map(|()| socket),
            Err(error) => done(ATTACH, &id.0, Err(error)).and_then(|()| failed("no answer")),
        }
    }

    /// A connection made in the sandbox's network; `None` when that is the node's own.
    fn connect(&self, id: &SandboxId, port: u16) -> Result<Option<OwnedFd>, Error> {
        let Some(record) = self.sandbox_record(&id.0)? else {
            return Err(Error::NoSandbox(id.0.clone()));
        };
        let boot_id = kedge_host::boot_id().map_err(|error| Error::failed(CONNECT, &id.0, error))?;
        if !self.is_ready(&record, &boot_id) {
            return Err(Error::failed(CONNECT, &id.0, "it does not run"));
        }
        let Some(network_pin) = self.order_of(&record).network_pin else {
            return Ok(None);
        };
        self.launcher
            .connect(&id.0, &ConnectOrder { network_pin, port })
            .map(Some)
    }
}

/// Carries a conversation between a socket and a session, until either end hangs up; then `afterwards`.
fn carry(
    socket: OwnedFd,
    talk: &Talk,
    id: &str,
    afterwards: impl FnOnce() + Send + 'static,
) -> std::io::Result<Session> {
    let socket = StdStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    let (input, said) = mpsc::channel(Session::WAITING_MAX);
    let (tell, output) = mpsc::channel(Session::WAITING_MAX);
    let wants = [talk.stdout || talk.tty, talk.stderr];
    let id = id.to_owned();
    tokio::spawn(async move {
        tokio::select! {
            // Whoever listened is gone, and nothing that comes is for anybody.
            biased;
            () = tell.closed() => {}
            () = listen(&socket, &tell, wants, &id) => {}
            () = speak(&socket, said) => {}
        }
        // Before it: this is what hangs up.
        drop((socket, tell));
        drop(tokio::task::spawn_blocking(afterwards).await);
    });
    Ok(Session { input, output })
}

/// Passes on what the process says, until it says nothing more.
async fn listen(socket: &UnixStream, tell: &mpsc::Sender<Output>, wants: [bool; 2], id: &str) {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let received = socket
            .async_io(Interest::READABLE, || kedge_packets::receive(socket, &mut buffer))
            .await;
        // Without an end: nobody can say how it ended.
        let Ok(received) = received else { return };
        let output = match FromProcess::read(&buffer[..received.bytes]) {
            Some(FromProcess::Stdout(bytes)) if wants[0] => Output::Stdout(Bytes::copy_from_slice(bytes)),
            Some(FromProcess::Stderr(bytes)) if wants[1] => Output::Stderr(Bytes::copy_from_slice(bytes)),
            Some(FromProcess::Stdout(_) | FromProcess::Stderr(_)) => continue,
            Some(FromProcess::Ended(code)) => Output::Ended(code),
            Some(FromProcess::Refused(why)) => {
                tracing::warn!(container = id, why, "a conversation was ended");
                return;
            }
            None => return,
        };
        let last = matches!(output, Output::Ended(_));
        if tell.send(output).await.is_err() || last {
            return;
        }
    }
}

/// Passes on what is said to the process. When nothing more can come, it goes on listening to the process.
async fn speak(socket: &UnixStream, mut said: mpsc::Receiver<Input>) {
    let mut message = Vec::new();
    while let Some(input) = said.recv().await {
        let sent = match &input {
            Input::Bytes(bytes) => {
                let mut sent = Ok(());
                for piece in bytes.chunks(PIECE_BYTES_MAX) {
                    sent = send(socket, ToProcess::Bytes(piece), &mut message).await;
                }
                sent
            }
            Input::End => send(socket, ToProcess::End, &mut message).await,
            Input::Resize(size) => send(socket, ToProcess::Resize(*size), &mut message).await,
        };
        // The other end hung up; what it said before is still to be heard.
        if sent.is_err() {
            break;
        }
    }
    std::future::pending().await
}

async fn send(socket: &UnixStream, what: ToProcess<'_>, message: &mut Vec<u8>) -> std::io::Result<()> {
    what.write(message);
    socket
        .async_io(Interest::WRITABLE, || kedge_packets::send(socket, message, None))
        .await
}
