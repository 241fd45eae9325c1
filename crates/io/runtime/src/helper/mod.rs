//! What runs in a process of its own, beside the daemon.
//!
//! **Duty.** Everything that must not happen in a threaded process: making namespaces, cloning containers, waiting for
//! them. A program becomes a helper by calling [`main_if_called`] as the first thing in its `main`, before it starts a
//! thread or a runtime.
//!
//! **Inputs.** A verb and a path as arguments, an order on standard input. **Outputs.** One [`Reply`] on standard
//! output; of containers also their log file and `states/<id>.json`.
//!
//! **Never.** It decides nothing and retries nothing. All but the supervisor end at once.

mod container;
pub(crate) mod exec;
mod holder;
mod network;
pub(crate) mod privileges;
mod rootfs;
mod sandbox;
mod supervisor;

use crate::embedded::records::Reply;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The first argument that makes a program a helper.
pub const WORD: &str = "oci-helper";

/// An order is a few paths, or a command with the environment of its container.
const ORDER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What a helper can be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    SandboxUp,
    SandboxDown,
    ProbeOverlay,
    RemoveBridge,
    /// Starts a supervisor and ends.
    Create,
    /// Is the supervisor.
    Supervise,
    /// Runs one command in a container.
    Exec,
    /// Is the first process of a pod whose containers share their processes.
    Hold,
}

impl Verb {
    const ALL: [Self; 8] = [
        Self::SandboxUp,
        Self::SandboxDown,
        Self::ProbeOverlay,
        Self::RemoveBridge,
        Self::Create,
        Self::Supervise,
        Self::Exec,
        Self::Hold,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SandboxUp => "sandbox-up",
            Self::SandboxDown => "sandbox-down",
            Self::ProbeOverlay => "probe-overlay",
            Self::RemoveBridge => "remove-bridge",
            Self::Create => "create",
            Self::Supervise => "supervise",
            Self::Exec => "exec",
            Self::Hold => "hold",
        }
    }

    /// For error messages, before the object's name.
    pub(crate) fn act(self) -> &'static str {
        match self {
            Self::SandboxUp => "set up sandbox",
            Self::SandboxDown => "take down sandbox",
            Self::ProbeOverlay => "try overlayfs in",
            Self::RemoveBridge => "remove bridge",
            Self::Create | Self::Supervise => "create container",
            Self::Exec => "run a command in container",
            Self::Hold => "hold the processes of",
        }
    }
}

/// Why a helper failed: the sentence that its reply carries.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    fn new(act: &str, cause: impl std::fmt::Display) -> Self {
        Self(format!("{act}: {cause}"))
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        let cause = std::error::Error::source(&error)
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Self(format!("{error}{cause}"))
    }
}

/// Does a helper's work if this process was started as one, and returns how it shall end.
pub fn main_if_called() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    Some(main(arguments.collect()))
}

/// Does a helper's work; `arguments` are those after [`WORD`].
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let [verb, argument] = arguments.as_slice() else {
        return misused();
    };
    let Some(verb) = Verb::ALL.into_iter().find(|known| verb == known.name()) else {
        return misused();
    };
    let argument = PathBuf::from(argument);
    let outcome = match verb {
        Verb::Supervise => return supervisor::run(&argument),
        Verb::Hold => return holder::run(),
        Verb::Create => match spawn_supervisor(&argument) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(failure) => Err(failure),
        },
        Verb::Exec => match order().map(|order| exec::run(&order)) {
            Ok(Ok(())) => return ExitCode::SUCCESS,
            // Nobody listens any more.
            Ok(Err(_)) => return ExitCode::FAILURE,
            Err(failure) => Err(failure),
        },
        Verb::SandboxUp => order().and_then(|order| sandbox::up(&order)),
        Verb::SandboxDown => order().and_then(|order| sandbox::down(&order)),
        Verb::ProbeOverlay => rootfs::probe_overlay(&argument),
        Verb::RemoveBridge => network::remove_bridge(&argument.to_string_lossy()),
    };
    let failed = outcome.is_err();
    let said = reply(outcome);
    if failed || said.is_err() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn misused() -> ExitCode {
    eprintln!("this is started by kedge itself and is of no use on a command line");
    ExitCode::FAILURE
}

fn order<T: serde::de::DeserializeOwned>() -> Result<T, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(ORDER_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|error| Failure::new("read the order", error))?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::new("read the order", error))
}

/// Answers the daemon.
fn reply(outcome: Result<(), Failure>) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(&reply_bytes(outcome))?;
    stdout.flush()
}

fn reply_bytes(outcome: Result<(), Failure>) -> Vec<u8> {
    let reply = match outcome {
        Ok(()) => Reply::Done,
        Err(Failure(reason)) => Reply::Failed(reason),
    };
    // A reply is an enum of strings, which always has a JSON form.
    serde_json::to_vec(&reply).unwrap_or_default()
}

/// The supervisor becomes an orphan when this process ends, and so outlives the daemon. It answers in our place.
fn spawn_supervisor(directory: &Path) -> Result<(), Failure> {
    let spawned = Command::new("/proc/self/exe")
        .arg0(WORD)
        .arg(WORD)
        .arg(Verb::Supervise.name())
        .arg(directory)
        .stdin(Stdio::null())
        .spawn();
    spawned
        .map(drop)
        .map_err(|error| Failure::new("start the supervisor", error))
}
