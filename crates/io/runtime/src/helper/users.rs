//! Making a user namespace, and namespaces that belong to it.
//!
//! What a namespace belongs to is decided when it is made, by the user namespace of who makes it. So a child does it that
//! has moved there, and stays until we have taken hold of what it made.

use super::Failure;
use kedge_containers::{IdMapping, UserNamespace};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, pipe2, setresgid, setresuid};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

const ACT: &str = "make a user namespace";
/// The child has done its part.
const DONE: u8 = b'.';
/// What it says instead is a sentence.
const SENTENCE_BYTES_MAX: u64 = 1024;

/// A user namespace with what was made in it, for as long as this is held.
pub(super) struct Made {
    child: Pid,
    /// The child stays until this is closed.
    word: Option<File>,
    heard: File,
}

impl Made {
    /// Makes a user namespace with these ids, and with it the namespaces of the kinds `more`.
    pub(super) fn make(ids: &UserNamespace, more: CloneFlags) -> Result<Self, Failure> {
        let (heard, says) = pipe()?;
        let (waits, word) = pipe()?;
        // SAFETY: this process has one thread, so the child finds every lock and allocator as they were.
        #[allow(unsafe_code)]
        let forked = unsafe { fork() }.map_err(|errno| Failure::new(ACT, errno))?;
        let child = match forked {
            ForkResult::Child => {
                drop((heard, word));
                let mut says = File::from(says);
                if let Err(Failure(why)) = stay(more, &mut says, &mut File::from(waits)) {
                    drop(says.write_all(why.as_bytes()));
                }
                leave()
            }
            ForkResult::Parent { child } => child,
        };
        drop((says, waits));
        let mut made = Self {
            child,
            word: Some(File::from(word)),
            heard: File::from(heard),
        };
        made.listen()?;
        made.map("uid_map", &ids.uids)?;
        made.map("gid_map", &ids.gids)?;
        made.go_on()?;
        made.listen()?;
        Ok(made)
    }

    /// Where one of its namespaces can be taken hold of.
    pub(super) fn path(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.child))
    }

    fn listen(&mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::new(ACT, error);
        let mut first = [0];
        self.heard.read_exact(&mut first).map_err(failed)?;
        if first[0] == DONE {
            return Ok(());
        }
        let mut sentence = first.to_vec();
        (&mut self.heard)
            .take(SENTENCE_BYTES_MAX)
            .read_to_end(&mut sentence)
            .map_err(failed)?;
        Err(Failure(String::from_utf8_lossy(&sentence).into_owned()))
    }

    fn map(&self, file: &str, ids: &IdMapping) -> Result<(), Failure> {
        let line = format!("{} {} {}\n", ids.container_id, ids.host_id, ids.length);
        std::fs::write(format!("/proc/{}/{file}", self.child), line)
            .map_err(|error| Failure::new("give a user namespace its ids", error))
    }

    fn go_on(&mut self) -> Result<(), Failure> {
        let told = self.word.as_mut().map(|word| word.write_all(&[DONE]));
        told.unwrap_or(Ok(())).map_err(|error| Failure::new(ACT, error))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.word = None;
        // It ends when it reads the end.
        let _ = waitpid(self.child, None);
    }
}

/// The child's part.
fn stay(more: CloneFlags, says: &mut File, waits: &mut File) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(ACT, error);
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| Failure::new(ACT, errno))?;
    says.write_all(&[DONE]).map_err(failed)?;
    waits.read_exact(&mut [0]).map_err(failed)?;
    become_root()?;
    unshare(more).map_err(|errno| Failure::new("make the pod's namespaces", errno))?;
    says.write_all(&[DONE]).map_err(failed)?;
    waits.read_to_end(&mut Vec::new()).map_err(failed)?;
    Ok(())
}

/// Becomes root of the user namespace that this process has moved to; until then it is nobody there.
pub(super) fn become_root() -> Result<(), Failure> {
    let failed = |errno: nix::errno::Errno| Failure::new("become root of the pod", errno);
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group).map_err(failed)?;
    setresuid(user, user, user).map_err(failed)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe2(OFlag::O_CLOEXEC).map_err(|errno| Failure::new(ACT, errno))
}

/// There is nobody left to report to: this is the child.
#[allow(clippy::exit)]
fn leave() -> ! {
    std::process::exit(0)
}
