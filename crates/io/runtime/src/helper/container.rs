//! Making one container with libcontainer. This process has one thread, as libcontainer needs it.

use super::Failure;
use super::privileges::Privileges;
use crate::embedded::records::LaunchRecord;
use crate::seccomp::{self, Filter};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use std::os::fd::OwnedFd;
use std::path::Path;

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// What shells and runtimes report for a program that could not be executed.
const EXIT_CODE_NOT_EXECUTED: i32 = 126;

/// The container's ends of its standard streams.
pub(super) struct Streams {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Makes the container in `directory`; its first process then waits to be started.
pub(super) fn create(
    directory: &Path,
    launch: &LaunchRecord,
    streams: Streams,
) -> Result<Container, Failure> {
    let failed = |error: libcontainer::error::LibcontainerError| Failure(sentence(&error));
    let state = directory.join("oci");
    std::fs::create_dir_all(&state).map_err(|error| Failure::new("make directory oci", error))?;
    let score = std::fs::read_to_string(OOM_SCORE).unwrap_or_default();
    let workload = Workload {
        filters: seccomp::filters(&launch.seccomp, &launch.privileges.bounding)
            .map_err(|error| Failure(sentence(&error)))?,
        privileges: launch.privileges.clone(),
    };
    let built = ContainerBuilder::new(launch.id.clone(), SyscallType::default())
        .with_executor(workload)
        .with_root_path(&state)
        .map_err(failed)?
        .with_stdin(streams.stdin)
        .with_stdout(streams.stdout)
        .with_stderr(streams.stderr)
        .as_init(directory)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(failed);
    // The container inherits its score from this process, which must not keep it: it would be killed first.
    if std::fs::write(OOM_SCORE, score.trim()).is_err() {
        eprintln!("the supervisor keeps the container's OOM score");
    }
    built
}

/// An error with its causes, in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace('\n', "; ")
}

/// Executes the container's program as libcontainer does, but with the signals a program expects, and with a word in
/// its log when it cannot be executed.
#[derive(Clone)]
struct Workload {
    filters: Vec<Filter>,
    privileges: Privileges,
}

impl Workload {
    /// libcontainer has given up what is not to be held, but for what installing filters needs.
    fn confine(&self) -> Result<(), Failure> {
        if self.filters.is_empty() {
            return Ok(());
        }
        if !self.privileges.no_new_privileges {
            self.privileges.drop_bounding()?;
        }
        self.privileges.confine(&self.filters)
    }
}

impl Executor for Workload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        expect_signals();
        match self.confine() {
            Ok(()) => {
                let Err(error) = (DefaultExecutor {}).exec(spec) else {
                    return Ok(());
                };
                eprintln!("{}", sentence(&error));
            }
            Err(failure) => eprintln!("{}", failure.0),
        }
        // There is nobody left to report to: this is the container's own process, and its exit code tells.
        #[allow(clippy::exit)]
        std::process::exit(EXIT_CODE_NOT_EXECUTED)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        (DefaultExecutor {}).validate(spec)
    }
}

/// Rust ignores SIGPIPE, and what is ignored stays ignored in the program that is executed.
pub(super) fn expect_signals() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action is no function of ours, so no handler can run at a wrong moment.
    #[allow(unsafe_code)]
    let restored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    if restored.is_err() {
        eprintln!("SIGPIPE stays ignored");
    }
}
