//! Making one container with libcontainer. This process has one thread, as libcontainer needs it; when it ends, the
//! container's first process is its parent's, the supervisor's.

use super::bundle::Bundle;
use super::hooks::{self, StartHooks};
use super::interpreter::Interpreter;
use super::privileges::{Privileges, own_keyring};
use super::room::{self, Room};
use super::{Failure, foreign, lookup, rootfs};
use crate::durable;
use crate::embedded::records::{LAUNCH_RECORD, LaunchRecord};
use crate::seccomp::{self, Filter};
use kedge_supervision::{Made, STDERR, STDIN, STDOUT};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::signal::Signal;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use std::cell::Cell;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

/// Below the container's directory.
const LIBCONTAINER: &str = "oci";
pub(super) const CONSOLE_SOCKET: &str = "console.sock";
/// What comes with the terminal of a container is a name.
const CONSOLE_BYTES_MAX: usize = 256;

/// What shells and runtimes report for a program that could not be executed.
const EXIT_CODE_NOT_EXECUTED: i32 = 126;

/// The socket on which a container's first process waits for its start.
pub(crate) fn start_socket(directory: &Path, id: &str) -> std::path::PathBuf {
    directory.join(LIBCONTAINER).join(id).join("notify.sock")
}

/// Makes the container in `directory` and says so on standard output, which is a socket of the supervisor.
pub(super) fn run(directory: &Path) -> ExitCode {
    let made = follow_supervisor()
        .and_then(|()| Held::take())
        .and_then(|held| make(directory, held));
    let (said, mut container, terminal) = match made {
        Ok((container, terminal)) => (
            Made::Container { pid: container.pid() },
            Some(container),
            terminal,
        ),
        Err(Failure(why)) => (Made::Failed(why), None, None),
    };
    if let Made::Failed(why) = &said {
        say(why);
    }
    let told = kedge_supervision::encode(&said)
        .map_err(std::io::Error::other)
        .and_then(|bytes| {
            let terminal = terminal.as_ref().map(AsFd::as_fd);
            kedge_packets::send(std::io::stdout(), &bytes, terminal)
        });
    match (told, &mut container) {
        (Ok(()), Some(_)) => ExitCode::SUCCESS,
        (Ok(()), None) => ExitCode::FAILURE,
        // Nobody waits for the answer, so nobody would know the container.
        (Err(error), container) => {
            say(&format!("nobody was told: {error}"));
            if let Some(container) = container {
                container.undo();
            }
            ExitCode::FAILURE
        }
    }
}

/// For whoever looks for a reason. A disk that does not take it is no reason to end.
fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Without a supervisor there is nobody for whom to make a container.
fn follow_supervisor() -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Failure::new("follow the supervisor", errno))
}

/// A container that has been made, and by whom.
enum MadeBy {
    Libcontainer(Box<Container>, u32),
    AnotherRuntime(u32),
}

impl MadeBy {
    fn pid(&self) -> u32 {
        match self {
            Self::Libcontainer(_, pid) | Self::AnotherRuntime(pid) => *pid,
        }
    }

    fn undo(&mut self) {
        match self {
            Self::Libcontainer(container, _) => drop(container.delete(true)),
            // The starter ends with it, and its files go with the container's.
            Self::AnotherRuntime(pid) => {
                let process = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw);
                if let Some(process) = process {
                    // It may have ended by itself.
                    let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

fn make(directory: &Path, held: Held) -> Result<(MadeBy, Option<OwnedFd>), Failure> {
    let launch: LaunchRecord = durable::read_record(&directory.join(LAUNCH_RECORD))?
        .ok_or_else(|| Failure::new("read the container's record", "there is none"))?;
    if let Some(program) = &launch.handler {
        let (pid, terminal) = foreign::make(directory, &launch, program)?;
        return Ok((MadeBy::AnotherRuntime(pid), terminal));
    }
    let interpreter = launch.interpreter.as_deref().map(Interpreter::open).transpose()?;
    let bundle = Bundle::open(directory)?;
    let workload = Workload {
        filters: seccomp::filters(&launch.seccomp, &launch.privileges.bounding)
            .map_err(|error| Failure(sentence(&error)))?,
        privileges: launch.privileges.clone(),
        interpreter,
        hooks: StartHooks::of(&launch, directory),
        held,
    };
    hooks::forget_failure(directory)?;
    let source = rootfs::begin(directory, &launch)?;
    rootfs::own_mounts()?;
    let room = match &launch.users {
        Some(own) => Some(room::enter(&source, directory, &launch, own, &bundle)?),
        None => {
            rootfs::make(&source, directory, &launch)?;
            bundle.prepare(&directory.join("rootfs"), None)?;
            None
        }
    };
    let seen = room.as_ref();
    let directory = seen.map_or(directory, |room| room.container.as_path());
    let console = launch
        .supervised
        .tty
        .then(|| listen(directory, CONSOLE_SOCKET))
        .transpose()
        .map_err(|error| Failure::new("wait for the terminal", error))?;
    let from = seen.map_or(directory, |room: &Room| room.bundle.as_path());
    let container = create(directory, from, &launch, workload)
        .map_err(|failure| hooks::failure(directory).unwrap_or(failure))?;
    let pid = container
        .pid()
        .ok_or_else(|| Failure::new("make the container", "it has no process"))?
        .as_raw()
        .unsigned_abs();
    let rest = || {
        bundle.finish(pid, &launch.cgroup)?;
        console.as_ref().map(terminal).transpose()
    };
    match rest() {
        Ok(terminal) => Ok((MadeBy::Libcontainer(Box::new(container), pid), terminal)),
        Err(failure) => {
            let mut container = container;
            drop(container.delete(true));
            Err(failure)
        }
    }
}

/// Makes the container of a bundle; its first process then waits to be started.
fn create(
    directory: &Path,
    bundle: &Path,
    launch: &LaunchRecord,
    workload: Workload,
) -> Result<Container, Failure> {
    let failed = |error: libcontainer::error::LibcontainerError| Failure(sentence(&error));
    let state = directory.join(LIBCONTAINER);
    std::fs::create_dir_all(&state).map_err(|error| Failure::new("make directory oci", error))?;
    let mut builder = ContainerBuilder::new(launch.id.clone(), SyscallType::default())
        .with_executor(workload)
        .with_root_path(&state)
        .map_err(failed)?;
    builder = if launch.supervised.tty {
        builder.with_console_socket(Some(directory.join(CONSOLE_SOCKET)))
    } else {
        let streams = streams(directory, launch)
            .map_err(|error| Failure::new("open the container's streams", error))?;
        let [stdin, stdout, stderr] = streams;
        builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
    };
    builder
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(failed)
}

/// The container's ends of its streams. It holds its outputs open in both directions: so the kernel does not end it for
/// writing while one supervisor was killed and the next is not there yet.
pub(super) fn streams(directory: &Path, launch: &LaunchRecord) -> std::io::Result<[OwnedFd; 3]> {
    let open =
        |path: &Path, flags: OFlags| rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty());
    let output = |name: &str| -> std::io::Result<OwnedFd> {
        let fd = open(&directory.join(name), OFlags::RDWR)?;
        // Programs open /dev/stdout again, under their own user.
        rustix::fs::fchown(&fd, Some(Uid::from_raw(launch.uid)), None::<Gid>)?;
        Ok(fd)
    };
    let stdin = if launch.supervised.stdin {
        // The supervisor holds the other end, but opening must not wait for it.
        let fd = open(&directory.join(STDIN), OFlags::RDONLY | OFlags::NONBLOCK)?;
        rustix::io::ioctl_fionbio(&fd, false)?;
        rustix::fs::fchown(&fd, Some(Uid::from_raw(launch.uid)), None::<Gid>)?;
        fd
    } else {
        open(Path::new("/dev/null"), OFlags::RDONLY)?
    };
    Ok([stdin, output(STDOUT)?, output(STDERR)?])
}

/// The path may be longer than a socket's may be, so it is bound from within.
pub(super) fn listen(directory: &Path, name: &str) -> std::io::Result<UnixListener> {
    std::env::set_current_dir(directory)?;
    durable::remove_file(Path::new(name)).map_err(std::io::Error::other)?;
    let listener = UnixListener::bind(name)?;
    std::env::set_current_dir("/")?;
    Ok(listener)
}

/// The container's first process has sent its terminal's other end before it said that it is ready.
pub(super) fn terminal(console: &UnixListener) -> Result<OwnedFd, Failure> {
    let failed = |error: std::io::Error| Failure::new("take the container's terminal", error);
    console.set_nonblocking(true).map_err(failed)?;
    let (connection, _) = console.accept().map_err(failed)?;
    connection.set_nonblocking(true).map_err(failed)?;
    let received = kedge_packets::receive(&connection, &mut [0; CONSOLE_BYTES_MAX]).map_err(failed)?;
    received
        .descriptor
        .ok_or_else(|| Failure::new("take the container's terminal", "none came"))
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

/// Our end of the pipe that says that somebody makes the container ([`kedge_supervision::MAKERS`]). It comes as standard
/// input, which the container's first process replaces; so that this process counts, too, until it waits for its start,
/// it has a copy.
#[derive(Clone)]
struct Held(Rc<Cell<Option<OwnedFd>>>);

impl Held {
    fn take() -> Result<Self, Failure> {
        let copied = std::io::stdin().as_fd().try_clone_to_owned();
        let copied = copied.map_err(|error| Failure::new("hold the container's directory", error))?;
        Ok(Self(Rc::new(Cell::new(Some(copied)))))
    }

    /// Of the process that calls only: those that were forked have copies of their own.
    fn let_go(&self) {
        drop(self.0.take());
    }
}

/// Executes the container's program as libcontainer does, but with the signals a program expects, and with a word in
/// its log when it cannot be executed.
#[derive(Clone)]
struct Workload {
    filters: Vec<Filter>,
    privileges: Privileges,
    interpreter: Option<Interpreter>,
    hooks: StartHooks,
    held: Held,
}

impl Workload {
    /// What is done in the container before its program is executed.
    fn prepare(&self, spec: &Spec) -> Result<(), Failure> {
        self.hooks.run(spec)?;
        self.confine()
    }

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
        own_keyring();
        match self.prepare(spec) {
            Ok(()) => match &self.interpreter {
                Some(interpreter) => eprintln!("{}", interpreter.execute(spec)),
                None => {
                    let Err(error) = (DefaultExecutor {}).exec(spec) else {
                        return Ok(());
                    };
                    eprintln!("{}", sentence(&error));
                }
            },
            Err(failure) => eprintln!("{}", failure.0),
        }
        // There is nobody left to report to: this is the container's own process, and its exit code tells.
        #[allow(clippy::exit)]
        std::process::exit(EXIT_CODE_NOT_EXECUTED)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.held.let_go();
        let checked = match &self.interpreter {
            Some(_) => Interpreter::check(spec),
            None => lookup::check(spec),
        };
        checked.map_err(ExecutorValidationError::ArgValidationError)
    }
}

/// What is ignored or blocked stays so in the program that is executed. Rust ignores SIGPIPE, and whoever started the
/// node agent may have ignored others.
pub(super) fn expect_signals() {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    for number in Signal::iterator().filter(|number| !matches!(number, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action is no function of ours, so no handler can run at a wrong moment.
        #[allow(unsafe_code)]
        let restored = unsafe { signal(number, SigHandler::SigDfl) };
        if restored.is_err() {
            eprintln!("{number} stays as it was");
        }
    }
    if SigSet::empty().thread_set_mask().is_err() {
        eprintln!("signals stay blocked");
    }
}
