//! A node of an ordinary user.
//!
//! **Duty.** Who is not root becomes root of a user namespace, for the whole node at once: [`enter`] moves this process
//! there, and everything after it runs as it does for root. The namespaces are held by a process of their own, so that
//! an agent that was killed finds them again, and with them its containers.
//!
//! ```text
//!   kedge up (1000) ---- starts ----> kedge-node: users, mounts, IPC, control groups, with pasta also the network
//!        |                                  ^  ^
//!        |<-- newuidmap, newgidmap ---------+  +--- pasta carries packets between this network and the machine's
//!        +--- moves to its namespaces; the next agent does the same, and so does `kedge down`, which ends it
//!
//!   <directory>/node.json    who holds the namespaces, and who carries packets
//!   <directory>/node.lock    held while somebody enters
//! ```
//!
//! **Never.** It asks for no right that the machine does not give to every user, and does not go on with less than was
//! promised: what is missing is said with the package or the setting that brings it.

mod groups;
mod ids;
mod pasta;
mod programs;

use crate::embedded::records::Reply;
use crate::helper::node::Order;
use crate::helper::{self, Verb};
use crate::lock::{FileLock, Sharing};
use crate::{Error, durable};
use groups::Delegated;
use ids::Ids;
use kedge_host::process::{Identity, ProcessHandle};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
pub(crate) use pasta::ADVICE as NETWORK_ADVICE;
use pasta::Pasta;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) const ACT: &str = "start without root";
pub(crate) const OBJECT: &str = "the node";

/// Making namespaces takes milliseconds; pasta looks at the machine's network before it answers.
const ENTER_WAIT_MAX: Duration = Duration::from_secs(60);
/// The kernel makes namespaces and mounts, and nothing else, in this time.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(20);
/// An answer is one sentence.
const ANSWER_BYTES_MAX: usize = 4096;

/// What people see in a list of processes.
const HOLDER_NAME: &str = "kedge-node";

/// What a process needs of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It runs containers. The node stays when the process has ended.
    Everything,
    /// It ends containers and starts none, so it need not be where they are started: in version 2 of control groups nobody
    /// gets there from the session in which a user types.
    Ending,
    /// It unpacks or removes files of images, which belong to several users.
    Users,
}

/// Who holds the namespaces of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    holder: Identity,
    /// `None`: the node is on the machine's network.
    pasta: Option<Identity>,
    /// Where the node's own processes are, in version 2 of control groups: who is elsewhere may move nobody in there.
    group: Option<PathBuf>,
}

/// The node that this process has moved to.
#[derive(Debug)]
pub struct Node {
    directory: PathBuf,
    /// `None`: it goes with this process.
    record: Option<Record>,
    _passing: Option<Holder>,
}

/// Whether this process has to call [`enter`] before it can run containers.
pub fn is_needed() -> bool {
    !kedge_host::is_root()
}

/// Whether this process is root of a user namespace, but on a network that is not its own.
pub fn is_on_the_machines_network() -> bool {
    kedge_host::users::in_namespace() && !crate::kernel::owns_network()
}

/// What that means for people, in one sentence.
pub fn without_network() -> String {
    format!("without a network of its own this node runs only pods with hostNetwork: true; {NETWORK_ADVICE}")
}

/// Whether a node was ever made in this directory and not ended since.
pub fn is_there(directory: &Path) -> bool {
    record_path(directory).exists()
}

/// Whether the node of this directory lives, so that [`enter`] makes none.
pub fn lives(directory: &Path) -> bool {
    matches!(living(directory), Ok((_, Some(_))))
}

/// Moves this process to the node of this directory, which is made if it does not live. The process must have one
/// thread, as the kernel wants it.
pub fn enter(directory: &Path, need: Need) -> Result<Node, Error> {
    durable::make_directory(directory)?;
    let lock = FileLock::take(&directory.join("node.lock"), Sharing::Exclusive, ENTER_WAIT_MAX)?;
    let _alone = lock.ok_or_else(|| failed("another process is at it and does not come to an end"))?;
    let (record, handle) = living(directory)?;
    let (mut node, handle) = match (handle, need) {
        (Some(handle), _) => {
            let group = record.as_ref().and_then(|record| record.group.as_deref());
            group
                .filter(|_| need == Need::Everything)
                .map_or(Ok(()), groups::join)?;
            (Node::of(directory, record), handle)
        }
        (None, Need::Everything | Need::Ending) => {
            // Nobody is connected by it any more.
            record.and_then(|record| record.pasta).iter().try_for_each(end)?;
            make(directory)?
        }
        (None, Need::Users) => {
            let holder = Holder::begin(&Order::default())?;
            let handle = holder.handle()?;
            let node = Node {
                directory: directory.to_owned(),
                record: None,
                _passing: Some(holder),
            };
            (node, handle)
        }
    };
    if need == Need::Everything {
        node.replace_lost_pasta()?;
    }
    let network = node.record.as_ref().is_some_and(|record| record.pasta.is_some());
    move_to(&handle, need, network)?;
    Ok(node)
}

impl Node {
    fn of(directory: &Path, record: Option<Record>) -> Self {
        Self {
            directory: directory.to_owned(),
            record,
            _passing: None,
        }
    }

    /// Ends the node: its namespaces go with the last process in them, which should be this one.
    pub fn end(self) -> Result<(), Error> {
        if let Some(record) = &self.record {
            record.pasta.iter().try_for_each(end)?;
            end(&record.holder)?;
        }
        durable::remove_directory(&self.directory)
    }

    /// Without it the node is cut off; its interface has gone with it.
    fn replace_lost_pasta(&mut self) -> Result<(), Error> {
        let Some(record) = &mut self.record else {
            return Ok(());
        };
        let Some(pasta) = &record.pasta else {
            return Ok(());
        };
        if pasta.is_alive().map_err(failed)? {
            return Ok(());
        }
        record.pasta = Some(Pasta::require()?.connect(record.holder.pid, &self.directory)?);
        durable::write_record_for_boot(&record_path(&self.directory), record)
    }
}

/// Makes the node, with all that it holds.
fn make(directory: &Path) -> Result<(Node, ProcessHandle), Error> {
    let groups = Delegated::find()?;
    let group = groups.own();
    let pasta = Pasta::find();
    let mut holder = Holder::begin(&Order {
        mounts: Some(groups.mounts),
        busy: groups.busy,
        network: pasta.is_some(),
    })?;
    let handle = holder.handle()?;
    let pasta = pasta
        .map(|pasta| pasta.connect(holder.child.id(), directory))
        .transpose()?;
    let record = Record {
        holder: holder.identity.clone(),
        pasta,
        group,
    };
    durable::write_record_for_boot(&record_path(directory), &record)?;
    holder.let_stay()?;
    Ok((Node::of(directory, Some(record)), handle))
}

/// What is written down of the node, and who holds it if somebody does.
fn living(directory: &Path) -> Result<(Option<Record>, Option<ProcessHandle>), Error> {
    // Only a power cut tears it, and that ended the node as well.
    let record: Option<Record> = durable::read_record(&record_path(directory)).unwrap_or_default();
    let Some(found) = &record else {
        return Ok((None, None));
    };
    let Some(handle) = found.holder.open().map_err(failed)? else {
        return Ok((record, None));
    };
    // While the descriptor is held, the number means this process.
    let pid = found.holder.pid;
    let owner = std::fs::metadata(format!("/proc/{pid}")).map(|meta| meta.uid());
    match owner.is_ok_and(|owner| owner == rustix::process::geteuid().as_raw()) {
        true => Ok((record, Some(handle))),
        false => Err(failed(format!(
            "process {pid}, which holds it, is another user's"
        ))),
    }
}

fn move_to(holder: &ProcessHandle, need: Need, network: bool) -> Result<(), Error> {
    let kinds = match need {
        Need::Users => CloneFlags::CLONE_NEWUSER,
        Need::Everything | Need::Ending => {
            let mut kinds = CloneFlags::CLONE_NEWUSER | KINDS;
            kinds.set(CloneFlags::CLONE_NEWNET, network);
            kinds
        }
    };
    // Its mounts begin with the machine's: the same path leads to the same place.
    let directory = std::env::current_dir();
    setns(holder.as_fd(), kinds).map_err(|errno| failed(format!("move to its namespaces: {errno}")))?;
    if let Ok(directory) = directory
        && let Err(error) = std::env::set_current_dir(&directory)
    {
        return Err(failed(format!("go back to {}: {error}", directory.display())));
    }
    Ok(())
}

/// What a node has of its own besides users and, where something carries its packets, the network. Containers on the
/// node's IPC share it with the node and not with the machine.
pub(crate) const KINDS: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWCGROUP);

fn record_path(directory: &Path) -> PathBuf {
    directory.join("node.json")
}

fn end(process: &Identity) -> Result<(), Error> {
    match process.open().map_err(failed)? {
        Some(handle) => handle.signal(Signal::KILL).map_err(failed),
        None => Ok(()),
    }
}

fn failed(reason: impl std::fmt::Display) -> Error {
    Error::failed(ACT, OBJECT, reason)
}

/// The process that holds the namespaces, as its parent knows it. It ends when this is dropped, unless it was told to
/// stay.
#[derive(Debug)]
struct Holder {
    child: Child,
    identity: Identity,
    stays: bool,
}

impl Holder {
    /// Starts it, gives it its users, and has it make what is ordered.
    fn begin(order: &Order) -> Result<Self, Error> {
        let ids = Ids::of_this_user()?;
        let child = Command::new("/proc/self/exe")
            .arg0(HOLDER_NAME)
            .args([helper::WORD, Verb::HoldNode.name(), HOLDER_NAME])
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let identity = Identity::of(child.id()).map_err(failed)?;
        let mut holder = Self {
            child,
            identity,
            stays: false,
        };
        holder.listen()?;
        ids.give_to(holder.child.id())?;
        let order = serde_json::to_vec(order).map_err(failed)?;
        holder.say(&order)?;
        holder.listen()?;
        Ok(holder)
    }

    fn handle(&self) -> Result<ProcessHandle, Error> {
        let handle = self.identity.open().map_err(failed)?;
        handle.ok_or_else(|| failed("the process that holds it has ended"))
    }

    /// From now on it does not end with this process.
    fn let_stay(&mut self) -> Result<(), Error> {
        self.say(b"stay")?;
        self.stays = true;
        Ok(())
    }

    fn say(&mut self, line: &[u8]) -> Result<(), Error> {
        let input = self
            .child
            .stdin
            .as_mut()
            .ok_or_else(|| failed("its input is closed"))?;
        input.write_all(&[line, b"\n"].concat()).map_err(failed)
    }

    fn listen(&mut self) -> Result<(), Error> {
        let output = self
            .child
            .stdout
            .as_mut()
            .ok_or_else(|| failed("its output is closed"))?;
        let limit = PollTimeout::try_from(ANSWER_WAIT_MAX).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], limit).map_err(failed)?;
        if ready == 0 {
            return Err(failed("the process that holds it does not answer"));
        }
        // An answer is written at once, and is shorter than what a pipe keeps in one piece.
        let mut answer = [0; ANSWER_BYTES_MAX];
        let read = output.read(&mut answer).map_err(failed)?;
        match serde_json::from_slice(&answer[..read]) {
            Ok(Reply::Done) => Ok(()),
            Ok(Reply::Failed(reason)) => Err(failed(reason)),
            Err(_) => Err(failed("the process that holds it ended without an answer")),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if !self.stays {
            // It ends when it reads the end.
            drop(self.child.wait());
        }
    }
}
