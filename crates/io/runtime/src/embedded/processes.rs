//! Ending containers: a signal, patience, the last signal, and the wait for the supervisor's report.

use super::Inner;
use super::records::{Phase, StateRecord, identity};
use super::supervisors;
use crate::{Error, durable};
use kedge_containers::ContainerId;
use kedge_host::process::{Identity, ProcessHandle, signal_named};
use kedge_supervision::{Order, ROOT_SERVER};
use rustix::process::Signal;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that was killed ends as soon as it runs; one that hangs in the kernel does not, and is reported.
const KILL_WAIT_MAX: Duration = Duration::from_secs(20);
/// A process that was killed while it waits for a program that serves its root file system waits on. If that has not
/// answered by then it hangs, and is killed.
const ROOT_PATIENCE: Duration = Duration::from_secs(2);
/// The supervisor writes the last lines and a small file, and removes the control groups.
const REPORT_WAIT_MAX: Duration = Duration::from_secs(20);

/// A container that was asked to end.
#[derive(Debug)]
pub(super) struct Stopping {
    id: String,
    process: Option<Watched>,
    /// Who serves its root file system, if that is not the kernel.
    root: Option<ProcessHandle>,
    /// The directory of its sandbox.
    sandbox: PathBuf,
}

/// A process and the descriptor that says when it has ended.
#[derive(Debug)]
struct Watched {
    handle: ProcessHandle,
    end: AsyncFd<OwnedFd>,
}

impl Inner {
    /// Sends the first signal; `None` when the container has ended already.
    pub(super) fn begin_stop(&self, id: &ContainerId, grace: Duration) -> Result<Option<Stopping>, Error> {
        let Some(record) = self.container_record(&id.0)? else {
            return Err(Error::NoContainer(id.0.clone()));
        };
        // Whom a state means that nobody understands is not known: with its control group everything of it is killed.
        let state = self.state_of(id).unwrap_or_else(|error| {
            tracing::warn!(container = id.0, %error, "state of container cannot be read");
            None
        });
        let Some(state) = state else {
            return Ok(None);
        };
        let polite = match state.phase {
            Phase::Exited { .. } => return Ok(None),
            // It waits for its start and would not hear anything else.
            Phase::Created => Signal::KILL,
            Phase::Running { .. } if grace.is_zero() => Signal::KILL,
            Phase::Running { .. } => {
                signal_named(&record.stop_signal).map_err(|error| failed(&id.0, error))?
            }
        };
        let stopping = Stopping {
            id: id.0.clone(),
            process: watched(&id.0, &identity(&state.process))?,
            root: self.root_server(&id.0)?,
            sandbox: self.layout.sandbox(&record.sandbox),
        };
        stopping.signal(polite)?;
        Ok(Some(stopping))
    }

    fn root_server(&self, id: &str) -> Result<Option<ProcessHandle>, Error> {
        let path = self.layout.container(id).join(ROOT_SERVER);
        let server: Option<kedge_supervision::Process> = durable::read_record(&path)?;
        let opened = server.map(|server| identity(&server).open()).transpose();
        Ok(opened.map_err(|error| failed(id, error))?.flatten())
    }
}

impl Stopping {
    /// Waits for the end: politely for `grace`, then not.
    pub(super) async fn finish(self, grace: Duration) -> Result<(), Error> {
        if let Some(process) = &self.process
            && !ended(process, grace).await
        {
            self.signal(Signal::KILL)?;
            let hangs = self.root.is_some() && !ended(process, ROOT_PATIENCE).await;
            if let Some(root) = self.root.as_ref().filter(|_| hangs) {
                tracing::warn!(
                    container = self.id,
                    "who serves its root file system hangs, and is killed"
                );
                root.signal(Signal::KILL)
                    .map_err(|error| failed(&self.id, error))?;
            }
            if !ended(process, KILL_WAIT_MAX).await {
                return Err(failed(&self.id, "its process does not end, though it was killed"));
            }
        }
        let (sandbox, id) = (self.sandbox, self.id.clone());
        let reported = tokio::task::spawn_blocking(move || {
            supervisors::ask(&sandbox, Order::Await { id }, None, REPORT_WAIT_MAX)
        });
        match reported.await.map_err(|error| failed(&self.id, error))? {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(failed(&self.id, "its supervisor does not report its end"))
            }
            // One that was killed reports nothing: that the process has ended is seen without it.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        process
            .handle
            .signal(signal)
            .map_err(|error| failed(&self.id, error))
    }
}

/// Ends what an interrupted creation started. Blocks until it has ended.
pub(super) fn kill_now(state: &StateRecord) -> Result<(), Error> {
    end_now(&identity(&state.process), Duration::ZERO)
}

/// Waits for the end of a process, at most `patience`, and kills it then. Blocks until it has ended.
pub(super) fn end_now(process: &Identity, patience: Duration) -> Result<(), Error> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let pid = process.pid.to_string();
    let Some(handle) = process.open().map_err(|error| failed(&pid, error))? else {
        return Ok(());
    };
    let ends_within = |limit: Duration| {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], limit)
            .map(|ready| ready > 0)
            .map_err(|errno| failed(&pid, errno))
    };
    if ends_within(patience)? {
        return Ok(());
    }
    handle.signal(Signal::KILL).map_err(|error| failed(&pid, error))?;
    if ends_within(KILL_WAIT_MAX)? {
        return Ok(());
    }
    Err(failed(&pid, "it does not end, though it was killed"))
}

fn watched(id: &str, process: &Identity) -> Result<Option<Watched>, Error> {
    let Some(handle) = process.open().map_err(|error| failed(id, error))? else {
        return Ok(None);
    };
    let end = handle
        .as_fd()
        .try_clone_to_owned()
        .and_then(readable)
        .map_err(|error| failed(id, error))?;
    Ok(Some(Watched { handle, end }))
}

/// Lets tokio wait until a descriptor can be read. Must be called within a tokio runtime.
fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, stays open and stays the same until it is dropped, and it is owned by the
    // AsyncFd from here on.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(std::io::Error::from)
}

/// Whether the process ended within `limit`.
async fn ended(process: &Watched, limit: Duration) -> bool {
    tokio::time::timeout(limit, process.end.readable()).await.is_ok()
}

fn failed(id: &str, reason: impl std::fmt::Display) -> Error {
    Error::failed("stop container", id, reason)
}
