//! One container, as its supervisor knows it.

use crate::process::Told;
use crate::streams::{Input, Log, Output, Terminal};
use crate::watch::Token;
use crate::{Failure, durable, groups, process, streams};
use kedge_containerlog::{Moment, Stream};
use kedge_containers::ExitReason;
use kedge_supervision::{self as supervision, Made, Phase, Process, StateRecord};
use nix::libc;
use nix::sys::signal::SigSet;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Making a container takes milliseconds; copying a large image without overlayfs on a slow card takes a minute. It ends
/// before the agent's patience does, so that the agent hears why.
pub(crate) const MAKE_MAX: Duration = Duration::from_secs(110);

/// What was killed keeps its control group for a moment.
pub(crate) const CLEAR_PAUSE: Duration = Duration::from_millis(10);
/// A process that hangs in the kernel keeps it; then the agent removes it with the container.
pub(crate) const CLEAR_MAX: Duration = Duration::from_secs(10);
/// Who was killed while it waits for a program that serves its root waits on, until that ends, too.
const ROOT_PATIENCE: Duration = Duration::from_secs(2);
/// A disk that did not take a state is asked again: without it nobody learns that the container has ended.
pub(crate) const SAVE_PAUSE: Duration = Duration::from_secs(1);

/// Whose child a process has become collects it at once, unless he collects nobody: then nobody learns how it ended.
const COLLECT_MAX: Duration = Duration::from_secs(2);

/// A shell that was ended by a signal says 128 and its number.
const EXIT_CODE_SIGNAL: i32 = 128;
const EXIT_CODE_UNKNOWN: i32 = 255;

/// What the program that makes the container says to whoever looks for a reason.
const MAKER_LOG: &str = "create.log";

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) key: u32,
    pub(crate) spec: supervision::Container,
    pub(crate) stage: Stage,
    pub(crate) process: Option<Process>,
    /// For a process that is not our child.
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) root: Root,
    /// It has ended, and until then we wait for whose child it is to collect it.
    pub(crate) uncollected: Option<Instant>,
    pub(crate) log: Log,
    pub(crate) outputs: [Output; 2],
    pub(crate) input: Option<Input>,
    pub(crate) terminal: Option<Terminal>,
    /// Clients that wait for its end.
    pub(crate) awaited: Vec<u32>,
    /// It shall leave no state behind.
    pub(crate) forgotten: Option<Forgotten>,
}

/// Its root file system.
#[derive(Debug)]
pub(crate) enum Root {
    /// The kernel's, or nobody has said yet.
    Lasting,
    /// A process serves it, which this descriptor means.
    Served(OwnedFd),
    /// That process has ended before the container.
    Lost,
}

impl Root {
    /// What the program that made the container has left in its `directory`.
    fn find(directory: &Path) -> std::io::Result<Self> {
        let record = match std::fs::read(directory.join(supervision::ROOT_SERVER)) {
            Ok(record) => record,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::Lasting),
            Err(error) => return Err(error),
        };
        let server: Process = serde_json::from_slice(&record)?;
        Ok(process::open(&server)?.map_or(Self::Lost, Self::Served))
    }
}

/// Why nobody shall know of a container, and who waits for that.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    /// What its creator is told; nothing if he is gone.
    pub(crate) failure: Option<(u32, String)>,
    pub(crate) asked: Vec<u32>,
}

#[derive(Debug)]
pub(crate) enum Stage {
    Creating(Making),
    Created,
    Running { started_ms: u64 },
    Ending(Ending),
}

/// The program that makes it.
#[derive(Debug)]
pub(crate) struct Making {
    pub(crate) maker: Option<Pid>,
    /// Where it says that it is done.
    pub(crate) said: OwnedFd,
    pub(crate) client: u32,
    /// What it said: the process that it made, and its terminal. That is our child when the maker has ended.
    pub(crate) made: Option<(u32, Option<OwnedFd>)>,
    pub(crate) deadline: Instant,
}

impl Making {
    /// Takes what the maker says, once.
    pub(crate) fn hear(&mut self) -> Result<(), String> {
        if self.made.is_some() {
            return Ok(());
        }
        let mut buffer = vec![0; supervision::MESSAGE_BYTES_MAX];
        let received = match kedge_packets::receive(&self.said, &mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        match supervision::decode(&buffer[..received.bytes]) {
            Ok(Made::Container { pid }) => {
                self.made = Some((pid, received.descriptor));
                Ok(())
            }
            Ok(Made::Failed(why)) => Err(why),
            Err(_) => Err("the program that makes containers ended without an answer".to_owned()),
        }
    }
}

/// The first process has ended; what is left of the container is taken away.
#[derive(Debug)]
pub(crate) struct Ending {
    exit: Exit,
    started_ms: u64,
    finished_ms: u64,
    killed_for_memory: bool,
    cleared: bool,
    deadline: Instant,
    pub(crate) next: Instant,
}

/// How the first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
    /// It was another supervisor's child, and the kernel does not say.
    Unseen,
}

impl Exit {
    /// From what the kernel says of a process that was collected.
    pub(crate) fn of(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            Self::Code(libc::WEXITSTATUS(status))
        } else {
            Self::Signal(libc::WTERMSIG(status))
        }
    }

    fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => EXIT_CODE_SIGNAL + signal,
            Self::Unseen => EXIT_CODE_UNKNOWN,
        }
    }
}

impl Container {
    /// Begins to make a container with the program behind `maker`.
    pub(crate) fn make(
        key: u32,
        spec: supervision::Container,
        client: u32,
        maker: &OwnedFd,
        arguments: &[String],
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new("make the container's streams", error);
        let log = Log::open(&spec.log_path, spec.log_bytes_max)?;
        let path = |name: &str| spec.directory.join(name);
        let mut outputs = [None, None];
        let mut input = None;
        if !spec.tty {
            for (name, output) in [supervision::STDOUT, supervision::STDERR]
                .into_iter()
                .zip(&mut outputs)
            {
                streams::make(&path(name)).map_err(failed)?;
                *output = Some(streams::open_output(&path(name)).map_err(failed)?);
            }
        }
        if spec.stdin && !spec.tty {
            streams::make(&path(supervision::STDIN)).map_err(failed)?;
            let early = streams::open_input_early(&path(supervision::STDIN)).map_err(failed)?;
            input = Some(Input::new(Some(early)));
        }
        let makers = path(supervision::MAKERS);
        let makers = streams::make(&makers)
            .and_then(|()| streams::open_as_maker(&makers))
            .map_err(failed)?;
        let (maker, said) = start_maker(&spec, maker, arguments, makers)?;
        let [stdout, stderr] = outputs;
        Ok(Self {
            key,
            spec,
            stage: Stage::Creating(Making {
                maker: Some(maker),
                said,
                client,
                made: None,
                deadline: Instant::now() + MAKE_MAX,
            }),
            process: None,
            pidfd: None,
            root: Root::Lasting,
            uncollected: None,
            log,
            outputs: [
                Output::new(Stream::Stdout, stdout),
                Output::new(Stream::Stderr, stderr),
            ],
            input,
            terminal: None,
            awaited: Vec::new(),
            forgotten: None,
        })
    }

    /// Takes over a container whose supervisor was lost. A terminal was hung up with it.
    pub(crate) fn adopt(key: u32, adopted: supervision::Adopted) -> Result<Self, Failure> {
        let supervision::Adopted {
            container: spec,
            state,
        } = adopted;
        let failed = |error: std::io::Error| Failure::new(&format!("take over container {}", spec.id), error);
        let pidfd = process::open(&state.process).map_err(failed)?;
        let root = Root::find(&spec.directory).map_err(failed)?;
        let open = |name: &str| {
            let wanted = !spec.tty && pidfd.is_some();
            wanted
                .then(|| streams::open_output(&spec.directory.join(name)))
                .transpose()
        };
        let stdout = open(supervision::STDOUT).map_err(failed)?;
        let stderr = open(supervision::STDERR).map_err(failed)?;
        let input = if spec.stdin && !spec.tty && pidfd.is_some() {
            streams::open_input(&spec.directory.join(supervision::STDIN)).map_err(failed)?
        } else {
            None
        };
        let stage = match state.phase {
            Phase::Running { started_ms } => Stage::Running { started_ms },
            Phase::Created | Phase::Exited { .. } => Stage::Created,
        };
        Ok(Self {
            key,
            log: Log::open(&spec.log_path, spec.log_bytes_max)?,
            spec,
            stage,
            process: Some(state.process),
            pidfd,
            root,
            uncollected: None,
            outputs: [
                Output::new(Stream::Stdout, stdout),
                Output::new(Stream::Stderr, stderr),
            ],
            input: input.map(|pipe| Input::new(Some(pipe))),
            terminal: None,
            awaited: Vec::new(),
            forgotten: None,
        })
    }

    /// Its first process is there and waits to be started. With a terminal, this is it.
    pub(crate) fn is_made(&mut self, process: Process, terminal: Option<OwnedFd>) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::new("take the container's streams", error);
        self.process = Some(process);
        self.stage = Stage::Created;
        self.root = Root::find(&self.spec.directory)
            .map_err(|error| Failure::new("find who serves the container's root", error))?;
        if let Some(master) = terminal {
            self.terminal = Some(streams::take_terminal(&master).map_err(failed)?);
            self.outputs[0].fd = Some(master);
            if self.spec.stdin {
                self.input = Some(Input::new(None));
            }
        } else if self.input.is_some() {
            let path = self.spec.directory.join(supervision::STDIN);
            self.input = streams::open_input(&path)
                .map_err(failed)?
                .map(|pipe| Input::new(Some(pipe)));
        }
        Ok(())
    }

    /// The terminal, if it has one: its one output.
    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal.as_ref().and(self.outputs[0].fd.as_ref())
    }

    /// Lets the first process go on.
    pub(crate) fn start(&mut self) -> Result<(), Failure> {
        let act = "start the container";
        match self.stage {
            Stage::Created => {}
            Stage::Creating(_) => return Err(Failure::new(act, "it is not made yet")),
            Stage::Running { .. } => return Err(Failure::new(act, "it was started before")),
            Stage::Ending(_) => return Err(Failure::new(act, "it has ended")),
        }
        notify(&self.spec.start_socket).map_err(|error| Failure::new(act, error))?;
        self.stage = Stage::Running {
            started_ms: Moment::now().milliseconds(),
        };
        Ok(())
    }

    /// The process that served its root has ended. Then the container cannot go on: whatever it opens or executes fails.
    /// One that is ending lets go of its root before that is known.
    pub(crate) fn lose_root(&mut self) {
        if self.is_alive() {
            self.root = Root::Lost;
            self.kill();
        } else {
            self.root = Root::Lasting;
        }
    }

    /// Whether its first process has begun and not ended.
    fn is_alive(&self) -> bool {
        match &self.stage {
            Stage::Created | Stage::Running { .. } => {
                self.process.as_ref().is_some_and(|of| process::is_alive(of.pid))
            }
            Stage::Creating(_) | Stage::Ending(_) => false,
        }
    }

    pub(crate) fn kill(&self) {
        if let Some(pidfd) = &self.pidfd {
            // It may have ended by itself.
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        } else if let Some(pid) = self.process.as_ref().and_then(process::number) {
            process::kill(pid);
        }
    }

    /// Kills whatever there is of it and leaves no state.
    pub(crate) fn forget(&mut self) -> &mut Forgotten {
        match &self.stage {
            // When it is gone, what it made is in the container's groups.
            Stage::Creating(making) => making.maker.into_iter().for_each(process::kill),
            Stage::Ending(_) => {}
            Stage::Created | Stage::Running { .. } => self.kill(),
        }
        self.forgotten.get_or_insert_default()
    }

    /// The first process, which is not our child, has ended: asks the kernel how. False when that is said only after
    /// somebody has collected it.
    pub(crate) fn ask_for_exit(&mut self, now: Instant) -> bool {
        let told = self.pidfd.as_ref().map_or(Told::Nothing, process::exit_of);
        let exit = match told {
            Told::Status(status) => Exit::of(status),
            Told::NotYet if self.uncollected.is_none_or(|until| now < until) => {
                self.uncollected.get_or_insert(now + COLLECT_MAX);
                return false;
            }
            Told::NotYet | Told::Nothing => Exit::Unseen,
        };
        self.uncollected = None;
        self.pidfd = None;
        self.begin_ending(exit);
        true
    }

    /// Its first process has ended.
    pub(crate) fn begin_ending(&mut self, exit: Exit) {
        let started_ms = match self.stage {
            Stage::Running { started_ms } => started_ms,
            Stage::Creating(_) | Stage::Created => 0,
            Stage::Ending(_) => return,
        };
        let events = self.spec.memory_events.as_deref();
        // A shell that lost its child for want of memory ends with a code, not by a signal.
        let killed = exit != Exit::Code(0);
        let now = Instant::now();
        self.stage = Stage::Ending(Ending {
            exit,
            started_ms,
            finished_ms: Moment::now().milliseconds(),
            killed_for_memory: killed && events.is_some_and(|events| groups::memory_kills(events) > 0),
            cleared: false,
            deadline: now + CLEAR_MAX,
            next: now,
        });
    }

    /// Takes the control groups away; says whether nothing more is to be waited for.
    pub(crate) fn is_cleared(&mut self, now: Instant) -> bool {
        let Stage::Ending(ending) = &mut self.stage else {
            return false;
        };
        if !ending.cleared && now >= ending.next {
            if let Root::Served(server) = &self.root
                && now + (CLEAR_MAX - ROOT_PATIENCE) >= ending.deadline
            {
                // It may have ended by itself.
                let _ = rustix::process::pidfd_send_signal(server, rustix::process::Signal::KILL);
            }
            ending.cleared = groups::clear(&self.spec.groups) || now >= ending.deadline;
            ending.next = now + CLEAR_PAUSE;
        }
        ending.cleared
    }

    /// What becomes of it, when it is ending.
    pub(crate) fn last_phase(&self) -> Option<Phase> {
        let Stage::Ending(ending) = &self.stage else {
            return None;
        };
        let exit_code = ending.exit.code();
        let reason = match exit_code {
            _ if ending.killed_for_memory => ExitReason::OomKilled,
            0 => ExitReason::Completed,
            _ => ExitReason::Error,
        };
        let message = match (ending.exit, &self.root) {
            (Exit::Signal(libc::SIGKILL), Root::Lost) => {
                "its root file system was lost: the program that serves it has ended".to_owned()
            }
            (Exit::Code(_) | Exit::Signal(_), _) => String::new(),
            (Exit::Unseen, _) => "its supervisor was killed; the exit code is not known".to_owned(),
        };
        Some(Phase::Exited {
            started_ms: ending.started_ms,
            finished_ms: ending.finished_ms,
            exit_code,
            reason,
            message,
        })
    }

    pub(crate) fn exit_code(&self) -> Option<i32> {
        match &self.stage {
            Stage::Ending(ending) => Some(ending.exit.code()),
            Stage::Creating(_) | Stage::Created | Stage::Running { .. } => None,
        }
    }

    /// Writes its state down.
    pub(crate) fn save(&self, me: &Process) -> std::io::Result<()> {
        let phase = match (&self.stage, self.last_phase()) {
            (_, Some(phase)) => phase,
            (Stage::Running { started_ms }, None) => Phase::Running {
                started_ms: *started_ms,
            },
            (Stage::Creating(_) | Stage::Created | Stage::Ending(_), None) => Phase::Created,
        };
        let Some(process) = self.process.clone() else {
            return Ok(());
        };
        let state = StateRecord {
            supervisor: me.clone(),
            process,
            phase,
        };
        match &state.phase {
            // That it does not run after a power cut is known anyhow; how it had ended before is not.
            Phase::Exited { .. } => durable::write(&self.spec.state_path, &state),
            Phase::Created | Phase::Running { .. } => durable::write_for_boot(&self.spec.state_path, &state),
        }
    }

    /// When it wants to be looked at, whatever happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Creating(making) => Some(making.deadline),
            Stage::Created | Stage::Running { .. } => self.uncollected,
            Stage::Ending(ending) => Some(ending.next),
        }
    }

    /// Ours are the tokens of its outputs.
    pub(crate) fn output_token(&self, number: usize) -> Token {
        if number == 0 {
            Token::Stdout(self.key)
        } else {
            Token::Stderr(self.key)
        }
    }
}

fn start_maker(
    spec: &supervision::Container,
    maker: &OwnedFd,
    arguments: &[String],
    makers: OwnedFd,
) -> Result<(Pid, OwnedFd), Failure> {
    let failed = |error: std::io::Error| Failure::new("start the program that makes containers", error);
    let [name, rest @ ..] = arguments else {
        return Err(failed(std::io::ErrorKind::InvalidInput.into()));
    };
    let (ours, theirs) = kedge_packets::pair().map_err(failed)?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| failed(errno.into()))?;
    let log = std::fs::File::create(spec.directory.join(MAKER_LOG)).map_err(failed)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", maker.as_raw_fd()));
    command
        .arg0(name)
        .args(rest)
        .current_dir("/")
        .env_clear()
        // From its first moment on it is known to be there.
        .stdin(makers)
        .stdout(theirs)
        .stderr(log);
    // SAFETY: changing the signal mask is one call of the kernel, which takes no lock and no memory.
    #[allow(unsafe_code)]
    unsafe {
        // The container inherits what we block, and would not hear that it shall stop.
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    let child = command.spawn().map_err(failed)?;
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))?;
    Ok((pid, ours))
}

/// Connecting and a word is what the first process waits for.
fn notify(socket: &std::path::Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, Mode, OFlags};
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let (directory, name) = socket.parent().zip(socket.file_name()).ok_or_else(invalid)?;
    // A socket's path may have 107 bytes; through a descriptor it is always short enough.
    let held = rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{}", held.as_raw_fd(), name.to_string_lossy());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(path)?)?;
    rustix::net::send(&stream, b"start container", rustix::net::SendFlags::NOSIGNAL)?;
    Ok(())
}
