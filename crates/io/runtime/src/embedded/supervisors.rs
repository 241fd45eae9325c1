//! The supervisors of pods: the program is written where it can be executed, started for each sandbox, asked, and
//! replaced when it was killed.

use super::Inner;
use super::carried::Carried;
use super::launch::{Launcher, Program};
use super::processes;
use super::records::{LAUNCH_RECORD, LaunchRecord, Phase, SandboxRecord, identity};
use crate::{Error, durable};
use kedge_host::process::Identity;
use kedge_supervision::{
    Adopted, Beginning, MESSAGE_BYTES_MAX, Order, RECORD, Reply, Request, SOCKET, SupervisorRecord, VERSION,
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const PROGRAM: Carried = Carried {
    name: "the supervisor of pods",
    packed: include_bytes!(concat!(env!("OUT_DIR"), "/kedge-supervisor.gz")),
    file_prefix: "supervisor-",
    // The first process of a pod with users of its own is nobody on the node, and executes it without reading it: so the
    // kernel keeps the pod's other processes out of it, whatever rights they have there.
    file_mode: 0o511,
};

const NAME: &str = "kedge-supervisor";
const VERB: &str = "supervise";

/// What a supervisor says to itself.
const LOG: &str = "supervisor.log";

/// It kills what is left, and waits for that.
const END_WAIT_MAX: Duration = Duration::from_secs(30);
/// Between its last word and its end is nothing that takes time.
const EXIT_WAIT_MAX: Duration = Duration::from_secs(2);
/// It forgets a container when that is gone.
const DISCARD_WAIT_MAX: Duration = Duration::from_secs(20);

/// Starts supervisors.
#[derive(Debug)]
pub(super) struct Supervisors {
    program: Program,
    /// Held while one is replaced, so that it is replaced once.
    replacing: Mutex<()>,
}

impl Supervisors {
    /// Writes the program below `root`, unless it is there, and opens it.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        Ok(Self {
            program: Program::open(&PROGRAM.write(root)?)?,
            replacing: Mutex::new(()),
        })
    }
}

/// Asks the supervisor of the sandbox in `directory`, and waits for its answer at most `limit`; that it does not come is
/// told as [`ErrorKind::WouldBlock`].
pub(super) fn ask(
    directory: &Path,
    order: Order,
    descriptor: Option<BorrowedFd<'_>>,
    limit: Duration,
) -> std::io::Result<Reply> {
    request(directory, order, descriptor, limit).map(|(_, reply)| reply)
}

/// The same, and keeps the connection.
pub(super) fn request(
    directory: &Path,
    order: Order,
    descriptor: Option<BorrowedFd<'_>>,
    limit: Duration,
) -> std::io::Result<(OwnedFd, Reply)> {
    let request = Request {
        version: VERSION,
        order,
    };
    let bytes = kedge_supervision::encode(&request).map_err(std::io::Error::other)?;
    let socket = kedge_packets::connect(directory, SOCKET)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(limit))?;
    kedge_packets::send(&socket, &bytes, descriptor)?;
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let received = kedge_packets::receive(&socket, &mut buffer)?;
    if received.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let reply = kedge_supervision::decode(&buffer[..received.bytes]).map_err(std::io::Error::other)?;
    Ok((socket, reply))
}

/// What an answer means for whoever asked.
pub(super) fn done(act: &'static str, id: &str, reply: std::io::Result<Reply>) -> Result<(), Error> {
    match reply {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Failed(reason)) => Err(Error::failed(act, id, reason)),
        Ok(Reply::Version(theirs)) => Err(Error::failed(
            act,
            id,
            format!("its supervisor is of version {theirs}, and understands nothing of version {VERSION}"),
        )),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => Err(Error::failed(act, id, "its supervisor does not answer")),
            ErrorKind::UnexpectedEof => Err(Error::failed(act, id, "its supervisor ended without an answer")),
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => {
                Err(Error::failed(act, id, "its supervisor is gone"))
            }
            _ => Err(Error::failed(act, id, format!("ask its supervisor: {error}"))),
        },
    }
}

/// Who supervises the sandbox in `directory`; `None` when nobody does any more.
fn supervisor_of(directory: &Path) -> Result<Option<Identity>, Error> {
    // Only a power cut tears it, and that ended the supervisor as well.
    let record: Option<SupervisorRecord> =
        durable::read_record(&directory.join(RECORD)).unwrap_or_else(|error| {
            tracing::warn!(%error, "the record of a supervisor is not understood");
            None
        });
    let Some(process) = record.map(|record| identity(&record.process)) else {
        return Ok(None);
    };
    let alive = process
        .is_alive()
        .map_err(|error| Error::failed("look at process", process.pid.to_string(), error))?;
    Ok(alive.then_some(process))
}

impl Inner {
    /// Starts the supervisor of a sandbox that is being made.
    pub(super) fn begin_supervision(&self, record: &SandboxRecord) -> Result<(), Error> {
        self.start_supervisor(record, Vec::new())
    }

    /// Ends the supervisor of a sandbox, and with it everything that it supervises. One that is gone is no error.
    pub(super) fn end_supervision(&self, id: &str) -> Result<(), Error> {
        let directory = self.layout.sandbox(id);
        let Some(process) = supervisor_of(&directory)? else {
            return Ok(());
        };
        if let Err(error) = done(
            "end supervisor of",
            id,
            ask(&directory, Order::End, None, END_WAIT_MAX),
        ) {
            tracing::warn!(sandbox = id, %error, "supervisor is killed");
        }
        processes::end_now(&process, EXIT_WAIT_MAX)
    }

    /// Has a container killed and forgotten, whatever its supervisor is doing with it.
    pub(super) fn discard_supervised(&self, sandbox: &str, id: &str) -> Result<(), Error> {
        let directory = self.layout.sandbox(sandbox);
        if supervisor_of(&directory)?.is_none() {
            return Ok(());
        }
        let order = Order::Discard { id: id.to_owned() };
        done(
            "discard container",
            id,
            ask(&directory, order, None, DISCARD_WAIT_MAX),
        )
    }

    /// Replaces the supervisors that were killed while their pods run.
    pub(super) fn replace_lost_supervisors(&self, boot_id: &str) -> Result<(), Error> {
        for record in self.sandbox_records()? {
            if let Err(error) = self.require_supervisor(&record, boot_id) {
                tracing::warn!(sandbox = record.id, %error, "supervisor not replaced");
            }
        }
        Ok(())
    }

    /// Makes sure that a sandbox that runs has a supervisor.
    pub(super) fn require_supervisor(&self, record: &SandboxRecord, boot_id: &str) -> Result<(), Error> {
        let directory = self.layout.sandbox(&record.id);
        let runs = record.made && !record.stopped && record.boot_id == boot_id;
        if !runs || supervisor_of(&directory)?.is_some() {
            return Ok(());
        }
        // Nothing is left half done by a panic: the next look begins anew.
        let _once = self
            .supervisors
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let still_runs = self
            .sandbox_record(&record.id)?
            .is_some_and(|record| !record.stopped);
        if !still_runs || supervisor_of(&directory)?.is_some() {
            return Ok(());
        }
        tracing::warn!(
            sandbox = record.id,
            "its supervisor was killed; another takes over"
        );
        self.start_supervisor(record, self.left_behind(&record.id)?)
    }

    /// The containers of a sandbox that nobody supervises.
    fn left_behind(&self, sandbox: &str) -> Result<Vec<Adopted>, Error> {
        let mut left = Vec::new();
        for container in self.container_records()? {
            if container.sandbox != sandbox {
                continue;
            }
            let path = self.layout.container(&container.id).join(LAUNCH_RECORD);
            let launch: Option<LaunchRecord> = durable::read_record(&path)?;
            let state = self.state_record(&container.id);
            let (Some(launch), Some(state)) = (launch, state) else {
                continue;
            };
            if !matches!(state.phase, Phase::Exited { .. }) {
                left.push(Adopted {
                    container: launch.supervised,
                    state,
                });
            }
        }
        Ok(left)
    }

    fn start_supervisor(&self, record: &SandboxRecord, adopted: Vec<Adopted>) -> Result<(), Error> {
        let directory = self.layout.sandbox(&record.id);
        let beginning = Beginning {
            version: VERSION,
            directory: directory.clone(),
            process_pin: self.order_of(record).pid_pin,
            adopted,
        };
        let act = "start supervisor of";
        let bytes = serde_json::to_vec(&beginning).map_err(|error| Error::failed(act, &record.id, error))?;
        let path = directory.join(LOG);
        let log = std::fs::File::create(&path).map_err(|source| Error::io("make", &path, source))?;
        let arguments = [NAME.as_ref(), VERB.as_ref(), directory.as_os_str()];
        let said = Launcher::run(&self.supervisors.program, &arguments, &bytes, log.into())
            .map_err(|reason| Error::failed(act, &record.id, reason))?;
        let reply = serde_json::from_slice(&said).map_err(std::io::Error::other);
        done(act, &record.id, reply)
    }

    /// The program that makes containers, as a supervisor needs it.
    pub(super) fn maker(&self) -> BorrowedFd<'_> {
        self.launcher.program().as_fd()
    }
}
