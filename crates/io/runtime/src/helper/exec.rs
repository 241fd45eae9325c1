//! One command in a container that runs.
//!
//! This process stays outside and waits; its child enters the container's namespaces and control groups, gives up its
//! rights and becomes the command. Nothing is written to a disk.

use super::Failure;
use super::privileges::Privileges;
use super::tracked::Tracked;
use crate::seccomp;
use kedge_containers::{ExecOutput, Seccomp};
use kedge_host::process::Identity;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The first of these that is there is used. Only version 1 has one for single threads, and takes them in at once; before
/// the kernel moves a whole process, it waits some milliseconds for all processors.
const ENTRANCES: [&str; 2] = ["tasks", "cgroup.procs"];

/// What a shell says of a program that is there and cannot be executed, and of one that is not there.
const EXIT_CODE_NOT_EXECUTED: i32 = 126;
const EXIT_CODE_NOT_FOUND: i32 = 127;
/// A shell says 128 and the number of the signal.
const EXIT_CODE_SIGNAL: i32 = 128;
const EXIT_CODE_UNKNOWN: i32 = 255;
/// The child could not become the command: its sentence is on the other pipe.
const EXIT_CODE_FAILED: i32 = 250;
/// A sentence.
const SENTENCE_BYTES_MAX: u64 = 4096;
const READ_BYTES: usize = 4096;
/// Nobody has more users than fit here.
const PASSWD_BYTES_MAX: u64 = 1024 * 1024;
/// Where programs are looked for when the container does not say.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a program behind a terminal is told about it.
const TERM: &str = "TERM=xterm";
/// As every runtime sets it; the container's own processes change theirs as they like.
const UMASK: u32 = 0o022;

/// What shall be run, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    /// The container's first process.
    pub(crate) process: Identity,
    /// Below each control group tree.
    pub(crate) cgroup: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) privileges: Privileges,
    pub(crate) seccomp: Seccomp,
    pub(crate) oom_score_adj: i32,
    /// It has a terminal.
    pub(crate) tty: bool,
    /// It has an input; without one it reads the end at once.
    pub(crate) stdin: bool,
    /// Nobody waits longer; who talks with it waits as long as he likes.
    pub(crate) timeout_ms: u64,
}

/// The line before the outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExecReply {
    Ended {
        exit_code: i32,
        stdout_bytes: usize,
        stderr_bytes: usize,
    },
    /// It was killed.
    TimedOut,
    Failed(String),
}

/// Runs the command and prints what came of it.
pub(super) fn run(order: &ExecOrder) -> std::io::Result<()> {
    let (reply, output) = match execute(order) {
        Ok(Some(output)) => (
            ExecReply::Ended {
                exit_code: output.exit_code,
                stdout_bytes: output.stdout.len(),
                stderr_bytes: output.stderr.len(),
            },
            output,
        ),
        Ok(None) => (ExecReply::TimedOut, ExecOutput::default()),
        Err(Failure(why)) => (ExecReply::Failed(why), ExecOutput::default()),
    };
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &reply)?;
    out.write_all(b"\n")?;
    out.write_all(&output.stdout)?;
    out.write_all(&output.stderr)?;
    out.flush()
}

/// A command that runs.
pub(super) struct Running {
    pub(super) child: Pid,
    pub(super) ends: Ends,
    pub(super) tracked: Tracked,
}

/// Our ends of a command's streams.
pub(super) enum Ends {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal(OwnedFd),
}

/// The command's own ends.
enum Streams {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// It makes its terminal in the container, and sends the other end here.
    Terminal { to: OwnedFd },
}

/// The descriptors through which the container is entered, opened while the node's files can still be seen.
struct Doors {
    namespaces: Vec<(File, CloneFlags)>,
    groups: Vec<File>,
}

fn execute(order: &ExecOrder) -> Result<Option<ExecOutput>, Failure> {
    let running = begin(order, Tracked::none())?;
    let Ends::Pipes { stdout, stderr, .. } = running.ends else {
        return Err(Failure::new(
            "run the command",
            "nobody is there for its terminal",
        ));
    };
    let limit = Duration::from_millis(order.timeout_ms);
    let output = follow(running.child, stdout, stderr, limit, &running.tracked)?;
    running.tracked.release();
    Ok(output)
}

/// Starts the command. It has become what it shall be when this returns.
pub(super) fn begin(order: &ExecOrder, tracked: Tracked) -> Result<Running, Failure> {
    let doors = Doors::open(order, &tracked)?;
    let filters = seccomp::filters(&order.seccomp, &order.privileges.bounding)
        .map_err(|error| Failure::new("read the seccomp profile", error))?;
    let (streams, ends) = streams(order)?;
    let (failure_read, failure_write) = pipe()?;
    // The node's own programs stay out of the container's reach, also while our child is in it.
    nix::sys::prctl::set_dumpable(false).map_err(|errno| Failure::new("close this process", errno))?;
    doors.enter_pid()?;
    // SAFETY: this process has one thread, so the child finds every lock and allocator as they were.
    #[allow(unsafe_code)]
    let forked = unsafe { fork() }.map_err(|errno| Failure::new("start a process", errno))?;
    let child = match forked {
        ForkResult::Child => {
            let Err(Failure(why)) = become_command(order, &doors, &filters, streams);
            drop(File::from(failure_write).write_all(why.as_bytes()));
            leave(EXIT_CODE_FAILED)
        }
        ForkResult::Parent { child } => child,
    };
    drop((streams, failure_write, doors));
    let ends = match ends {
        OurEnds::There(ends) => Ok(ends),
        OurEnds::Awaited(from) => receive_terminal(&from),
    };
    let mut why = String::new();
    let said = File::from(failure_read)
        .take(SENTENCE_BYTES_MAX)
        .read_to_string(&mut why);
    let ends = match (said, ends) {
        (Ok(bytes), _) if bytes > 0 => Err(Failure(why)),
        (_, ends) => ends,
    };
    match ends {
        Ok(ends) => Ok(Running { child, ends, tracked }),
        Err(failure) => {
            tracked.kill(child);
            let _ = waitpid(child, None);
            tracked.release();
            Err(failure)
        }
    }
}

enum OurEnds {
    There(Ends),
    Awaited(OwnedFd),
}

fn streams(order: &ExecOrder) -> Result<(Streams, OurEnds), Failure> {
    if order.tty {
        let (from, to) =
            kedge_packets::pair().map_err(|error| Failure::new("wait for the terminal", error))?;
        return Ok((Streams::Terminal { to }, OurEnds::Awaited(from)));
    }
    let (stdin, kept) = if order.stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        let null = File::open("/dev/null").map_err(|error| Failure::new("open /dev/null", error))?;
        (null.into(), None)
    };
    let (out_read, stdout) = pipe()?;
    let (err_read, stderr) = pipe()?;
    let theirs = Streams::Pipes {
        stdin,
        stdout,
        stderr,
    };
    let ours = Ends::Pipes {
        stdin: kept,
        stdout: out_read,
        stderr: err_read,
    };
    Ok((theirs, OurEnds::There(ours)))
}

/// It comes, or the command ends without having had one.
fn receive_terminal(from: &OwnedFd) -> Result<Ends, Failure> {
    let failed = |cause: &dyn std::fmt::Display| Failure::new("make a terminal", cause);
    let received = kedge_packets::receive(from, &mut [0; 1]).map_err(|error| failed(&error))?;
    received
        .descriptor
        .map(Ends::Terminal)
        .ok_or_else(|| failed(&"the command ended before it had one"))
}

impl Doors {
    fn open(order: &ExecOrder, tracked: &Tracked) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new("enter the container", error);
        let pid = order.process.pid;
        // The mounts come last: with them the node's files are out of sight. The others belong to the users, if to any.
        let kinds = [
            ("user", CloneFlags::CLONE_NEWUSER),
            ("pid", CloneFlags::CLONE_NEWPID),
            ("ipc", CloneFlags::CLONE_NEWIPC),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("net", CloneFlags::CLONE_NEWNET),
            ("cgroup", CloneFlags::CLONE_NEWCGROUP),
            ("mnt", CloneFlags::CLONE_NEWNS),
        ];
        let mut namespaces = Vec::with_capacity(kinds.len());
        for (name, flag) in kinds {
            match File::open(format!("/proc/{pid}/ns/{name}")) {
                Ok(file) if is_own(&file, name).map_err(failed)? => {}
                Ok(file) => namespaces.push((file, flag)),
                // A kernel without this kind.
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound
                        && (name == "cgroup" || name == "user") => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let layout =
            kedge_host::cgroups::layout().map_err(|error| Failure::new("find control groups", error))?;
        let mut groups = Vec::new();
        for tree in layout.trees() {
            let group = tree.join(order.cgroup.trim_start_matches('/'));
            groups.extend(entrance(&tracked.inside(&group)).map_err(failed)?);
        }
        // What was opened belongs to this very process, not to one that got its number since.
        match order.process.is_alive() {
            Ok(true) => Ok(Self { namespaces, groups }),
            Ok(false) => Err(Failure::new("enter the container", "it has ended")),
            Err(error) => Err(Failure::new("enter the container", error)),
        }
    }

    /// For our children; this process stays where it is.
    fn enter_pid(&self) -> Result<(), Failure> {
        self.enter(|flag| flag == CloneFlags::CLONE_NEWPID)
    }

    fn enter(&self, wanted: impl Fn(CloneFlags) -> bool) -> Result<(), Failure> {
        for (file, flag) in self.namespaces.iter().filter(|(_, flag)| wanted(*flag)) {
            setns(file, *flag).map_err(|errno| Failure::new("enter the container", errno))?;
            if *flag == CloneFlags::CLONE_NEWUSER {
                super::users::become_root()?;
                // A change of users lets go of the parent.
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
                    .map_err(|errno| Failure::new("follow its parent", errno))?;
            }
        }
        Ok(())
    }
}

/// The file by which a process of one thread enters a group; `None` when there is no such group in this tree.
fn entrance(group: &Path) -> std::io::Result<Option<File>> {
    for name in ENTRANCES {
        match File::options().write(true).open(group.join(name)) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether this process is in the namespace already. The kernel lets nobody enter one that belongs to others than its own
/// users, though it is the own one.
fn is_own(namespace: &File, kind: &str) -> std::io::Result<bool> {
    let place = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let own = std::fs::metadata(format!("/proc/self/ns/{kind}"))?;
    Ok(place(own) == place(namespace.metadata()?))
}

/// Returns only when something fails.
fn become_command(
    order: &ExecOrder,
    doors: &Doors,
    filters: &[seccomp::Filter],
    streams: Streams,
) -> Result<std::convert::Infallible, Failure> {
    let failed = |act: &'static str| move |errno: Errno| Failure::new(act, errno);
    // Who waits for us may be killed; the command must not stay behind.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("follow its parent"))?;
    nix::unistd::setsid().map_err(failed("begin a session"))?;
    // Without the right to lower it, it stays as it is.
    let _ = std::fs::write("/proc/self/oom_score_adj", order.oom_score_adj.to_string());
    for mut group in &doors.groups {
        group
            .write_all(b"0")
            .map_err(|error| Failure::new("enter the container's control group", error))?;
    }
    doors.enter(|flag| flag != CloneFlags::CLONE_NEWPID)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(UMASK));
    match streams {
        Streams::Pipes {
            stdin,
            stdout,
            stderr,
        } => take_streams(&stdin, &stdout, &stderr)?,
        Streams::Terminal { to } => {
            let terminal = super::terminal::make(order.uid, &to)?;
            take_streams(&terminal, &terminal, &terminal)?;
        }
    }
    nix::unistd::chdir(order.cwd.as_str())
        .map_err(|errno| Failure::new("enter its working directory", errno))?;
    super::container::expect_signals();
    let mut env = with_home(&order.env, order.uid);
    if order.tty && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push(TERM.to_owned());
    }
    order
        .privileges
        .take_as(order.uid, order.gid, &order.groups, filters)?;
    let code = execute_program(&order.args, &env);
    leave(code)
}

fn take_streams(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<(), Failure> {
    let failed = |act: &'static str| move |errno: Errno| Failure::new(act, errno);
    nix::unistd::dup2_stdin(stdin).map_err(failed("set its input"))?;
    nix::unistd::dup2_stdout(stdout).map_err(failed("set its output"))?;
    nix::unistd::dup2_stderr(stderr).map_err(failed("set its error output"))
}

/// Programs expect to know their user's home: the container's own files tell it, else it is the root.
fn with_home(env: &[String], uid: u32) -> Vec<String> {
    let mut env = env.to_vec();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        let mut passwd = String::new();
        // A container without the file is no error.
        let _ = File::open("/etc/passwd")
            .and_then(|file| file.take(PASSWD_BYTES_MAX).read_to_string(&mut passwd));
        let uid = uid.to_string();
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let home = fields
            .filter(|fields| fields.get(2) == Some(&uid.as_str()))
            .find_map(|fields| fields.get(5).map(|home| (*home).to_owned()));
        env.push(format!(
            "HOME={}",
            home.filter(|home| !home.is_empty())
                .unwrap_or_else(|| "/".to_owned())
        ));
    }
    env
}

/// Becomes the program, or tells why not, as a shell does.
fn execute_program(args: &[String], env: &[String]) -> i32 {
    let cut = |text: &String| CString::new(text.as_bytes());
    let texts: Result<(Vec<CString>, Vec<CString>), _> = args
        .iter()
        .map(cut)
        .collect::<Result<_, _>>()
        .and_then(|args| Ok((args, env.iter().map(cut).collect::<Result<_, _>>()?)));
    let (Ok((args, env)), Some(name)) = (texts, args.first()) else {
        eprintln!("the command or its environment has a zero byte");
        return EXIT_CODE_NOT_EXECUTED;
    };
    let mut worst = Errno::ENOENT;
    for path in candidates(name, &env) {
        let Ok(path) = CString::new(path.into_os_string().into_encoded_bytes()) else {
            continue;
        };
        let Err(errno) = nix::unistd::execve(&path, &args, &env);
        if errno != Errno::ENOENT && errno != Errno::ENOTDIR {
            worst = errno;
        }
    }
    match worst {
        Errno::ENOENT => {
            eprintln!("exec: \"{name}\": executable file not found in $PATH");
            EXIT_CODE_NOT_FOUND
        }
        other => {
            eprintln!("exec: \"{name}\": {}", other.desc());
            EXIT_CODE_NOT_EXECUTED
        }
    }
}

fn candidates(name: &str, env: &[CString]) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![PathBuf::from(name)];
    }
    let path = env
        .iter()
        .filter_map(|variable| variable.to_str().ok()?.strip_prefix("PATH="))
        .next_back()
        .unwrap_or(PATH_DEFAULT);
    let directories = path.split(':').filter(|directory| directory.starts_with('/'));
    directories
        .map(|directory| Path::new(directory).join(name))
        .collect()
}

/// Waits for the end of the command and takes what it says; `None` when it had to be killed. A process that it leaves
/// in the background may keep the pipes open: nobody waits for that one.
fn follow(
    child: Pid,
    stdout: OwnedFd,
    stderr: OwnedFd,
    limit: Duration,
    tracked: &Tracked,
) -> Result<Option<ExecOutput>, Failure> {
    let failed = |errno: Errno| Failure::new("wait for the command", errno);
    let handle = handle(child)?;
    let mut streams = [Stream::new(stdout)?, Stream::new(stderr)?];
    let end = Instant::now() + limit;
    let in_time = loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
        let open = streams.iter().filter_map(|stream| stream.pipe.as_ref());
        fds.extend(open.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let ended = fds[0].any().unwrap_or(false);
        drop(fds);
        streams.iter_mut().for_each(Stream::take);
        if ended {
            break true;
        }
        if Instant::now() >= end {
            break false;
        }
    };
    if !in_time {
        tracked.kill(child);
    }
    let exit_code = collect(child);
    streams.iter_mut().for_each(Stream::take);
    let [stdout, stderr] = streams.map(|stream| stream.kept);
    Ok(in_time.then_some(ExecOutput {
        exit_code,
        stdout,
        stderr,
    }))
}

/// A descriptor that is readable when the command has ended.
pub(super) fn handle(child: Pid) -> Result<OwnedFd, Failure> {
    let pid = rustix::process::Pid::from_raw(child.as_raw())
        .ok_or_else(|| Failure::new("wait for the command", "it has no process"))?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| Failure::new("wait for the command", errno))
}

/// Waits for the end of the command.
pub(super) fn collect(child: Pid) -> i32 {
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, code)) => code,
        Ok(WaitStatus::Signaled(_, signal, _)) => EXIT_CODE_SIGNAL + signal as i32,
        Ok(_) | Err(_) => EXIT_CODE_UNKNOWN,
    }
}

/// One output: its beginning is kept, the rest is read and dropped, so that the command does not stand still.
struct Stream {
    pipe: Option<File>,
    kept: Vec<u8>,
}

impl Stream {
    fn new(pipe: OwnedFd) -> Result<Self, Failure> {
        rustix::io::ioctl_fionbio(&pipe, true)
            .map_err(|errno| Failure::new("read the command's output", errno))?;
        Ok(Self {
            pipe: Some(pipe.into()),
            kept: Vec::new(),
        })
    }

    /// Takes what is there now.
    fn take(&mut self) {
        /// A command that never stops talking must not keep us from looking at the clock.
        const ROUND_BYTES_MAX: usize = 256 * 1024;
        let mut buffer = [0; READ_BYTES];
        let mut taken = 0;
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(read) => {
                    let room = ExecOutput::BYTES_MAX.saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(&buffer[..read.min(room)]);
                    taken += read;
                    if taken >= ROUND_BYTES_MAX {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Failure::new("make a pipe", errno))
}

/// There is nobody left to report to: this is the child, and its exit code tells.
#[allow(clippy::exit)]
fn leave(code: i32) -> ! {
    std::process::exit(code)
}
