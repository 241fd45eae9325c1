//! A root file system that a program serves, `fuse-overlayfs`: where the kernel stacks no layers.
//!
//! ```text
//!   this helper --- /dev/fuse, layers ---> the program, on the node, beside the container:
//!        |                                  reads the layers, writes `upper` and `work`
//!        '--- the mount ---> in its own mounts, and the container's, as the root
//! ```
//!
//! The mount is in nobody's mounts but the container's, so it goes with the container, whoever is killed. Then the kernel
//! tells the program that nobody can ask any more, and it ends by itself. It is the supervisor's child, and holds the
//! container's directory ([`kedge_supervision::MAKERS`]) until then. The other way round the supervisor ends a container
//! whose program has ended ([`kedge_supervision::ROOT_SERVER`]).

use super::Failure;
use super::privileges::Privileges;
use super::room::refusal;
use super::rootfs::{make_directory, own_mounts};
use crate::cgroup;
use crate::durable;
use crate::kernel::{map_owners, mount_read_only};
use kedge_host::process::Identity;
use kedge_host::program::last_line;
use kedge_supervision::ROOT_SERVER;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, statat};
use rustix::io::FdFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const DEVICE: &str = "/dev/fuse";
/// What the mount is called where mounts are listed.
const NAME: &str = "fuse-overlayfs";
/// It reads what every user of the container owns, gives files to them, makes their devices, and writes attributes that
/// only the administrator may write. It may do nothing else.
const RIGHTS: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_SETFCAP",
    "CAP_SYS_ADMIN",
];
/// In its group it is the last that the kernel kills for want of memory, but not spared: it can be the one that takes it.
const KILLED_LAST: &str = "-999";

/// It opens some directories and answers. A slow card needs seconds for the layers of a large image.
const SERVED_WAIT_MAX: Duration = Duration::from_secs(30);
/// It ends as soon as it hears that it is not needed.
const END_WAIT_MAX: Duration = Duration::from_secs(5);
/// What it says before it gives up is a sentence or two.
const WORDS_BYTES_MAX: u64 = 4096;

/// What the program is given.
pub(super) struct Terms<'a> {
    pub(super) program: &'a Path,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
    /// The container's, which has `upper` and `work`.
    pub(super) directory: &'a Path,
    /// The container's control group; without one there is no container, and nobody to be told.
    pub(super) group: Option<&'a str>,
}

/// A layer that cannot be written to, seen through a mount of its own that nobody else sees.
pub(super) struct Layer(OwnedFd);

impl Layer {
    /// `users` are those to whose ids the owners of its files are mapped.
    pub(super) fn open(path: &Path, users: Option<&File>) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(&format!("hold {}", path.display()), error);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, path, flags).map_err(|errno| failed(errno.into()))?;
        mount_read_only(&tree, Path::new(""), libc::AT_EMPTY_PATH).map_err(failed)?;
        users
            .map_or(Ok(()), |users| map_owners(&tree, users, 0))
            .map_err(|error| refusal(path, &error))?;
        Ok(Self(tree))
    }
}

/// A root file system that is served, and not mounted anywhere yet.
pub(super) struct Served {
    mount: OwnedFd,
    program: Child,
}

impl Served {
    /// Starts the program and waits until it serves. The node's own mounts are the program's, so this comes before the
    /// helper has mounts of its own.
    pub(super) fn start(terms: &Terms<'_>) -> Result<Self, Failure> {
        if terms.layers.is_empty() {
            return Err(Failure::new(&act(), "the image has no layers"));
        }
        let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Failure::new(&format!("open {DEVICE}"), errno))?;
        let mount = make_mount(&device)?;
        let (heard, says) = words().map_err(|error| Failure::new(&act(), error))?;
        let mut program = spawn(terms, &device, &heard, says)?;
        // From here on it is the only one that has the device: when it ends, everybody hears.
        drop(device);
        let told = tell(terms, &program).and_then(|()| wait_until_served(&mount, &program));
        match told {
            Ok(()) => Ok(Self { mount, program }),
            Err(Failure(why)) => {
                end(&mut program);
                Err(Failure(match last_words(heard) {
                    Some(words) => format!("{why}: {words}"),
                    None => why,
                }))
            }
        }
    }

    /// Mounts it, in the mounts of this process.
    pub(super) fn attach(&self, at: &Path) -> Result<(), Failure> {
        move_mount(&self.mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| Failure::new("mount what fuse-overlayfs serves", errno))
    }

    /// Takes it away from where it was mounted, and sees that the program hears of it.
    pub(super) fn detach(mut self, at: &Path) -> Result<(), Failure> {
        unmount(at, UnmountFlags::DETACH)
            .map_err(|errno| Failure::new("unmount what fuse-overlayfs serves", errno))?;
        drop(self.mount);
        let ended = descriptor(&self.program)
            .and_then(|program| Ok(is_ready(&[&program], END_WAIT_MAX)?.is_some()))
            .map_err(|error| Failure::new("wait for the end of fuse-overlayfs", error))?;
        end(&mut self.program);
        if ended {
            Ok(())
        } else {
            Err(Failure::new(
                "wait for the end of fuse-overlayfs",
                "it stays though nobody needs it",
            ))
        }
    }
}

/// Tries all of it in `directory`.
pub(super) fn probe(directory: &Path, program: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("use what fuse-overlayfs serves", error);
    let path = |name: &str| directory.join(name);
    for name in ["layers/a", "layers/b", "upper", "work", "rootfs"] {
        make_directory(&path(name))?;
    }
    std::fs::write(path("layers/a/file"), b"lower").map_err(failed)?;
    let layers = ["layers/a", "layers/b"].map(|name| Layer::open(&path(name), None));
    let served = Served::start(&Terms {
        program,
        layers: layers.into_iter().collect::<Result<_, _>>()?,
        directory,
        group: None,
    })?;
    own_mounts()?;
    let root = path("rootfs");
    served.attach(&root)?;
    let tried = std::fs::write(root.join("written"), b"")
        .and_then(|()| std::fs::read(root.join("file")))
        .and_then(|_| std::fs::remove_file(root.join("file")));
    let left = root.join("file").exists();
    served.detach(&root)?;
    tried.map_err(failed)?;
    if left {
        return Err(Failure::new(
            "delete a file that fuse-overlayfs serves",
            "it is still there",
        ));
    }
    Ok(())
}

fn act() -> String {
    format!("start {NAME}")
}

/// A mount of what answers on the device. The kernel checks who may do what, as in every other file system.
fn make_mount(device: &OwnedFd) -> Result<OwnedFd, Failure> {
    let failed = |errno: rustix::io::Errno| Failure::new("make a file system that is served", errno);
    let file_system = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    let set = |key: &str, value: &str| fsconfig_set_string(&file_system, key, value).map_err(failed);
    set("source", NAME)?;
    set("subtype", NAME)?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", &format!("{:o}", FileType::Directory.as_raw_mode()))?;
    set("user_id", "0")?;
    set("group_id", "0")?;
    for flag in ["allow_other", "default_permissions"] {
        fsconfig_set_flag(&file_system, flag).map_err(failed)?;
    }
    fsconfig_create(&file_system).map_err(failed)?;
    fsmount(
        &file_system,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(failed)
}

/// A pipe for what the program says. The program holds both ends: what nobody reads fills it and is lost, and neither ends
/// the program nor takes more room.
fn words() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?)
}

fn spawn(terms: &Terms<'_>, device: &OwnedFd, heard: &OwnedFd, says: OwnedFd) -> Result<Child, Failure> {
    let failed = |error: std::io::Error| Failure::new(&act(), error);
    let mut given: Vec<RawFd> = terms.layers.iter().map(|layer| layer.0.as_raw_fd()).collect();
    given.push(device.as_raw_fd());
    let limits = Limits::of(terms.group)?;
    let mut command = Command::new(terms.program);
    command
        // As a daemon it would leave before it serves.
        .args(["-f", "-o", &options(&terms.layers)])
        .arg(format!("/dev/fd/{}", device.as_raw_fd()))
        // Its options name directories in this one; it leaves it when it has opened them.
        .current_dir(terms.directory)
        .env_clear()
        .stdin(match terms.group {
            // The pipe that says that somebody has the container's directory.
            Some(_) => Stdio::inherit(),
            None => Stdio::null(),
        })
        .stdout(heard.try_clone().map_err(failed)?)
        .stderr(says);
    // SAFETY: this process has one thread, so its copy finds every lock and allocator as they were.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            let confined = limits
                .enter()
                .and_then(|()| given.iter().try_for_each(|fd| keep(*fd)));
            // Its error is a number; these words are heard.
            confined.map_err(|Failure(why)| {
                eprintln!("{why}");
                std::io::ErrorKind::PermissionDenied.into()
            })
        });
    }
    let spawned = command.spawn();
    drop(command);
    spawned.map_err(|error| {
        let words = heard.try_clone().ok().and_then(last_words);
        Failure::new(&act(), words.unwrap_or_else(|| error.to_string()))
    })
}

/// Names without commas and colons, and short ones, whatever the paths are.
fn options(layers: &[Layer]) -> String {
    let highest_first = layers.iter().rev();
    let names: Vec<String> = highest_first
        .map(|layer| format!("/proc/self/fd/{}", layer.0.as_raw_fd()))
        .collect();
    format!("lowerdir={},upperdir=upper,workdir=work", names.join(":"))
}

/// Lets the program that is executed have a descriptor.
fn keep(fd: RawFd) -> Result<(), Failure> {
    // SAFETY: the descriptor was open when this process was forked, and nobody has closed it since.
    #[allow(unsafe_code)]
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(fd, FdFlags::empty())
        .map_err(|errno| Failure::new("give a descriptor away", errno))
}

/// What holds the program in its place.
struct Limits {
    groups: Vec<PathBuf>,
    privileges: Privileges,
}

impl Limits {
    fn of(group: Option<&str>) -> Result<Self, Failure> {
        let groups = group.map(|group| {
            let layout =
                kedge_host::cgroups::layout().map_err(|error| Failure::new("find control groups", error))?;
            cgroup::make_serving(&layout, group).map_err(Failure::from)
        });
        let rights = RIGHTS.map(str::to_owned).to_vec();
        Ok(Self {
            groups: groups.transpose()?.unwrap_or_default(),
            privileges: Privileges {
                bounding: rights.clone(),
                held: rights,
                no_new_privileges: true,
                apparmor: None,
            },
        })
    }

    /// In the process that becomes the program.
    fn enter(&self) -> Result<(), Failure> {
        for file in &self.groups {
            write_to(file, "0").map_err(|error| Failure::new("enter the control group", error))?;
        }
        // Where even root may not, it is killed as others are.
        drop(write_to(Path::new("/proc/self/oom_score_adj"), KILLED_LAST));
        super::container::expect_signals();
        ignore_signals();
        // What is meant for the supervisor's session is not meant for it.
        nix::unistd::setsid().map_err(|errno| Failure::new("begin a session", errno))?;
        self.privileges.drop_bounding()?;
        self.privileges.confine(&[])
    }
}

/// What tells everybody on a machine to end is not meant for it: the container has a time to end in, and needs its root
/// until then. The library that the program is made with leaves alone what is ignored.
fn ignore_signals() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: to ignore is no function of ours, so no handler can run at a wrong moment.
        #[allow(unsafe_code)]
        let ignored = unsafe { signal(number, SigHandler::SigIgn) };
        if ignored.is_err() {
            eprintln!("{number} is not ignored");
        }
    }
}

/// Writes to a file of the kernel, which alone can make one.
fn write_to(file: &Path, value: &str) -> std::io::Result<()> {
    File::options()
        .write(true)
        .open(file)?
        .write_all(value.as_bytes())
}

/// Writes down who serves the container's root.
fn tell(terms: &Terms<'_>, program: &Child) -> Result<(), Failure> {
    if terms.group.is_none() {
        return Ok(());
    }
    let of = Identity::of(program.id()).map_err(|error| Failure::new(&act(), error))?;
    let record = kedge_supervision::Process {
        pid: of.pid,
        start_ticks: of.start_ticks,
        boot_id: of.boot_id,
    };
    Ok(durable::write_record_for_boot(
        &terms.directory.join(ROOT_SERVER),
        &record,
    )?)
}

/// Looks at the root. Who looks waits in the kernel and hears nobody meanwhile, so that is another process.
fn wait_until_served(mount: &OwnedFd, program: &Child) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(&act(), error);
    let serves = descriptor(program).map_err(failed)?;
    // SAFETY: this process has one thread, so the child finds every lock and allocator as they were.
    #[allow(unsafe_code)]
    let forked = unsafe { fork() }.map_err(|errno| failed(errno.into()))?;
    let looker = match forked {
        ForkResult::Child => {
            let seen = statat(mount, "", AtFlags::EMPTY_PATH);
            // There is nobody left to report to: this is the child.
            #[allow(clippy::exit)]
            std::process::exit(i32::from(seen.is_err()))
        }
        ForkResult::Parent { child } => child,
    };
    let looks = Pid::from_raw(looker.as_raw())
        .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
        .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
    let ready = looks.and_then(|looks| is_ready(&[&looks, &serves], SERVED_WAIT_MAX));
    if !matches!(ready, Ok(Some(0))) {
        // With it the question goes, too: who asks is not to be killed before.
        kill(program.id());
    }
    let seen = waitpid(looker, None).map_err(|errno| failed(errno.into()))?;
    match ready.map_err(failed)? {
        Some(0) if matches!(seen, WaitStatus::Exited(_, 0)) => Ok(()),
        Some(_) => Err(Failure::new(
            &act(),
            "it ended before it served the container's root",
        )),
        None => {
            let limit = SERVED_WAIT_MAX.as_secs();
            let why = format!("it did not serve the container's root within {limit} s");
            Err(Failure::new(&act(), why))
        }
    }
}

fn descriptor(program: &Child) -> std::io::Result<OwnedFd> {
    let pid = i32::try_from(program.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Which of them is the first to have ended within a time.
fn is_ready(processes: &[&OwnedFd], limit: Duration) -> std::io::Result<Option<usize>> {
    let mut fds: Vec<PollFd<'_>> = processes
        .iter()
        .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
        .collect();
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // The children that end meanwhile are those that are waited for.
    while let Err(nix::errno::Errno::EINTR) = poll(&mut fds, limit) {}
    Ok(fds.iter().position(|fd| fd.any().unwrap_or(false)))
}

/// The process is our child and not collected, so its number means it.
fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn end(program: &mut Child) {
    drop(program.kill());
    drop(program.wait());
}

/// The last line that the program said.
fn last_words(heard: OwnedFd) -> Option<String> {
    let mut bytes = Vec::new();
    // The end of what there is comes as an error, since the pipe does not let one wait.
    drop(File::from(heard).take(WORDS_BYTES_MAX).read_to_end(&mut bytes));
    last_line(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_heard_and_never_wait() {
        let (heard, says) = words().unwrap();
        let mut says = File::from(says);
        says.write_all(b"first\nunknown argument ignored: x\ncannot do it\n\n")
            .unwrap();
        // A program that says more than anybody hears goes on.
        while says.write(&[b' '; 4096]).is_ok() {}
        let told = last_words(heard);
        assert_eq!(told.as_deref(), Some("cannot do it"));
    }

    #[test]
    fn layers_are_named_from_above() {
        let layers: Vec<Layer> = ["/proc", "/dev"]
            .map(|path| Layer(File::open(path).unwrap().into()))
            .into();
        let [low, high] = [&layers[0], &layers[1]].map(|layer| layer.0.as_raw_fd());
        assert_eq!(
            options(&layers),
            format!("lowerdir=/proc/self/fd/{high}:/proc/self/fd/{low},upperdir=upper,workdir=work")
        );
    }
}
