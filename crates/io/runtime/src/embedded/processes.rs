//! Ending containers: a signal, patience, the last signal, and the wait for the supervisor's report.

use super::Inner;
use super::records::{Phase, StateRecord};
use crate::Error;
use kedge_containers::ContainerId;
use kedge_host::process::{Identity, ProcessHandle, signal_named};
use rustix::process::Signal;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that was killed ends as soon as it runs; one that hangs in the kernel does not, and is reported.
const KILL_WAIT_MAX: Duration = Duration::from_secs(20);
/// The supervisor writes the last lines, two small files, and removes the control groups.
const REPORT_WAIT_MAX: Duration = Duration::from_secs(20);

/// A container that was asked to end.
#[derive(Debug)]
pub(super) struct Stopping {
    id: String,
    process: Option<Watched>,
    supervisor: Option<Watched>,
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
        let Some(state) = self.state_of(id)? else {
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
            process: watched(&id.0, &state.process)?,
            supervisor: watched(&id.0, &state.supervisor)?,
        };
        stopping.signal(polite)?;
        Ok(Some(stopping))
    }
}

impl Stopping {
    /// Waits for the end: politely for `grace`, then not.
    pub(super) async fn finish(self, grace: Duration) -> Result<(), Error> {
        if let Some(process) = &self.process
            && !ended(process, grace).await
        {
            self.signal(Signal::KILL)?;
            if !ended(process, KILL_WAIT_MAX).await {
                return Err(failed(&self.id, "its process does not end, though it was killed"));
            }
        }
        match &self.supervisor {
            Some(supervisor) if !ended(supervisor, REPORT_WAIT_MAX).await => {
                Err(failed(&self.id, "its supervisor does not report its end"))
            }
            Some(_) | None => Ok(()),
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
    for process in [&state.process, &state.supervisor] {
        let pid = process.pid.to_string();
        let opened = process.open().map_err(|error| failed(&pid, error))?;
        let Some(handle) = opened else { continue };
        handle.signal(Signal::KILL).map_err(|error| failed(&pid, error))?;
        let mut wait = [nix::poll::PollFd::new(
            handle.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let limit = nix::poll::PollTimeout::try_from(KILL_WAIT_MAX).unwrap_or(nix::poll::PollTimeout::MAX);
        nix::poll::poll(&mut wait, limit).map_err(|error| failed(&pid, error))?;
    }
    Ok(())
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
