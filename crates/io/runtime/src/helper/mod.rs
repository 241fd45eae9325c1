//! What runs in a process of its own, beside the daemon.
//!
//! **Duty.** Everything that must not happen in a threaded process: making namespaces and cloning containers. A program
//! becomes a helper by calling [`main_if_called`] as the first thing in its `main`, before it starts a thread or a
//! runtime.
//!
//! **Inputs.** A verb and a path as arguments, an order on standard input. **Outputs.** One [`Reply`] on standard
//! output.
//!
//! **Never.** It decides nothing, retries nothing, and stays beside nothing: that is the supervisor's, a program of its
//! own.

mod bundle;
pub(crate) mod connect;
pub(crate) mod container;
mod devices;
pub(crate) mod exec;
pub(crate) mod foreign;
mod hooks;
mod interpreter;
mod lookup;
mod network;
pub(crate) mod node;
pub(crate) mod privileges;
mod room;
mod rootfs;
mod sandbox;
mod served;
mod talk;
mod terminal;
mod tracked;
mod users;

use crate::embedded::records::Reply;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

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
    ProbeFuse,
    ProbeUsers,
    RemoveBridge,
    /// Makes a container for the supervisor that called.
    Create,
    /// Runs what is to be run on the node for a container that is being made.
    RuntimeHooks,
    /// The same in the container's namespaces.
    ContainerHooks,
    /// Runs what is to be run on the node when a container has started.
    StartedHooks,
    /// The same when it has gone.
    StoppedHooks,
    /// Runs one command in a container.
    Exec,
    /// Runs one command in a container for somebody who talks with it.
    Talk,
    /// Connects to a port in a sandbox.
    Connect,
    /// Holds the namespaces of a node without root.
    HoldNode,
}

impl Verb {
    const ALL: [Self; 15] = [
        Self::SandboxUp,
        Self::SandboxDown,
        Self::ProbeOverlay,
        Self::ProbeFuse,
        Self::ProbeUsers,
        Self::RemoveBridge,
        Self::Create,
        Self::RuntimeHooks,
        Self::ContainerHooks,
        Self::StartedHooks,
        Self::StoppedHooks,
        Self::Exec,
        Self::Talk,
        Self::Connect,
        Self::HoldNode,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SandboxUp => "sandbox-up",
            Self::SandboxDown => "sandbox-down",
            Self::ProbeOverlay => "probe-overlay",
            Self::ProbeFuse => "probe-fuse",
            Self::ProbeUsers => "probe-users",
            Self::RemoveBridge => "remove-bridge",
            Self::Create => "create",
            Self::RuntimeHooks => "runtime-hooks",
            Self::ContainerHooks => "container-hooks",
            Self::StartedHooks => "started-hooks",
            Self::StoppedHooks => "stopped-hooks",
            Self::Exec => "exec",
            Self::Talk => "talk",
            Self::Connect => "connect",
            Self::HoldNode => "hold-node",
        }
    }

    /// For error messages, before the object's name.
    pub(crate) fn act(self) -> &'static str {
        match self {
            Self::SandboxUp => "set up sandbox",
            Self::SandboxDown => "take down sandbox",
            Self::ProbeOverlay => "try overlayfs in",
            Self::ProbeFuse => "try fuse-overlayfs in",
            Self::ProbeUsers => "try user namespaces in",
            Self::RemoveBridge => "remove bridge",
            Self::Create | Self::RuntimeHooks | Self::ContainerHooks => "create container",
            Self::StartedHooks | Self::StoppedHooks => "run the hooks of container",
            Self::Exec | Self::Talk => "run a command in container",
            Self::Connect => "connect to sandbox",
            Self::HoldNode => "hold",
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
        Verb::Create => return container::run(&argument),
        Verb::RuntimeHooks => return hooks::run_before(&argument, hooks::Stage::Runtime),
        Verb::ContainerHooks => return hooks::run_before(&argument, hooks::Stage::Container),
        Verb::Talk => return talk::run(order()),
        Verb::Connect => return connect::run(order()),
        Verb::HoldNode => return node::run(),
        Verb::Exec => match order().map(|order| exec::run(&order)) {
            Ok(Ok(())) => return ExitCode::SUCCESS,
            // Nobody listens any more.
            Ok(Err(_)) => return ExitCode::FAILURE,
            Err(failure) => Err(failure),
        },
        Verb::StartedHooks => {
            order().and_then(|state| hooks::run_after(&argument, &state, hooks::After::Start))
        }
        Verb::StoppedHooks => {
            order().and_then(|state| hooks::run_after(&argument, &state, hooks::After::End))
        }
        Verb::SandboxUp => order().and_then(|order| sandbox::up(&order)),
        Verb::SandboxDown => order().and_then(|order| sandbox::down(&order)),
        Verb::ProbeOverlay => rootfs::probe_overlay(&argument),
        Verb::ProbeFuse => order().and_then(|program: PathBuf| served::probe(&argument, &program)),
        Verb::ProbeUsers => order().and_then(|mode| room::probe(&argument, &mode)),
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
