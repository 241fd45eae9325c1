//! What the node agent and the supervisor of a pod say to each other, and what they leave on the disk for each other.
//!
//! **Duty.** The vocabulary of one socket and of a few files. The two ends are different programs, and an old supervisor
//! goes on serving a newer agent: every request carries [`VERSION`], and what a version said once it says for ever.
//!
//! **Inputs and outputs.** Values and bytes. A request and its answer are one message each, in JSON; a conversation
//! ([`talk`]) is made of messages of one kind byte and its content.
//!
//! **Never.** It opens nothing and waits for nothing.

pub mod talk;

use kedge_containers::{ExitReason, TerminalSize};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version of everything in this crate. Fields may be added with a default; anything else needs another number.
pub const VERSION: u32 = 1;

/// A request or an answer in one message: a few paths.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024;

/// The socket in the sandbox's directory on which a supervisor takes requests.
pub const SOCKET: &str = "control.sock";

/// The record in the sandbox's directory that says who its supervisor is.
pub const RECORD: &str = "supervisor.json";

/// The streams of a container in its directory. They have names so that a new supervisor finds them again.
pub const STDIN: &str = "stdin";
pub const STDOUT: &str = "stdout";
pub const STDERR: &str = "stderr";

/// A pipe in a container's directory into which nobody writes: whoever makes the container, or still writes there for
/// another reason, holds it open for writing. The kernel says when the last of them has ended, however he ended.
pub const MAKERS: &str = "makers";

/// The record in a container's directory that says which [`Process`] serves its root file system, if one does. A container
/// cannot go on without it.
pub const ROOT_SERVER: &str = "root.json";

/// A process, told apart from others that had or will have its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_ticks: u64,
    pub boot_id: String,
}

/// `supervisor.json`: who supervises a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorRecord {
    pub version: u32,
    pub process: Process,
}

/// `states/<id>.json`: what became of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    pub supervisor: Process,
    pub process: Process,
    pub phase: Phase,
}

/// How far a container has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Created,
    Running {
        started_ms: u64,
    },
    Exited {
        started_ms: u64,
        finished_ms: u64,
        exit_code: i32,
        reason: ExitReason,
        message: String,
    },
}

/// What a supervisor needs to know of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    /// Its bundle, its streams, and what the program that makes it leaves behind.
    pub directory: PathBuf,
    pub state_path: PathBuf,
    pub log_path: PathBuf,
    /// Files above this size are turned over.
    pub log_bytes_max: u64,
    /// Its control groups: one directory in each tree.
    pub groups: Vec<PathBuf>,
    /// The file in which the kernel counts whom it killed for want of memory.
    pub memory_events: Option<PathBuf>,
    /// The socket on which the container's first process waits for its start.
    pub start_socket: PathBuf,
    /// Its input stays open, so that reading it waits instead of ending.
    pub stdin: bool,
    /// Its input ends with the first conversation that had it.
    pub stdin_once: bool,
    pub tty: bool,
}

/// In a sandbox's directory: where the namespace of the pod's own users is held, if it has its own.
pub const USER_PIN: &str = "user";

/// What a supervisor gets on its standard input when it is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    pub version: u32,
    /// The sandbox's own directory.
    pub directory: PathBuf,
    /// Where the namespace of the pod's processes shall be held, when the containers share one.
    pub process_pin: Option<PathBuf>,
    /// Containers whose supervisor was lost.
    pub adopted: Vec<Adopted>,
}

/// A container that has been made by an earlier supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    pub container: Container,
    pub state: StateRecord,
}

/// What is asked of a supervisor; one request a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    pub order: Order,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Have a container made by the program whose descriptor comes with this message, called as `arguments` say.
    Create {
        container: Box<Container>,
        arguments: Vec<String>,
    },
    Start {
        id: String,
    },
    /// Answered when the container has ended and its state says so, or the disk does not take it yet; at once for one
    /// that is not known.
    Await {
        id: String,
    },
    /// Kill the container and forget it, whatever it was doing. One that is not known is forgotten already.
    Discard {
        id: String,
    },
    /// Once answered with [`Reply::Done`] the connection carries a conversation.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Resize {
        id: String,
        size: TerminalSize,
    },
    ReopenLog {
        id: String,
    },
    /// Kill everything and end.
    End,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Failed(String),
    /// The supervisor is of another version, and says which.
    Version(u32),
}

/// What the program that makes a container says when it is done. With a terminal, its descriptor comes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Made {
    Container { pid: u32 },
    Failed(String),
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let bytes = serde_json::to_vec(message).map_err(Error::NotJson)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Error::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// Understands a message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Error::TooLarge(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(Error::NotJson)
}

/// Why bytes are no message, or a message has no bytes.
#[derive(Debug)]
pub enum Error {
    NotJson(serde_json::Error),
    TooLarge(usize),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotJson(error) => write!(f, "understand a message: {error}"),
            Self::TooLarge(bytes) => {
                write!(f, "a message of {bytes} bytes is larger than {MESSAGE_BYTES_MAX}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotJson(error) => Some(error),
            Self::TooLarge(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_understood_as_it_was_meant() {
        let request = Request {
            version: VERSION,
            order: Order::Attach {
                id: "a".into(),
                stdin: true,
                stdout: true,
                stderr: false,
            },
        };
        let bytes = encode(&request).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            r#"{"version":1,"order":{"Attach":{"id":"a","stdin":true,"stdout":true,"stderr":false}}}"#
        );
        assert_eq!(decode::<Request>(&bytes).unwrap(), request);
    }

    #[test]
    fn what_is_too_large_is_neither_sent_nor_read() {
        let long = Reply::Failed("x".repeat(MESSAGE_BYTES_MAX));
        assert!(matches!(encode(&long), Err(Error::TooLarge(_))));
        assert!(matches!(
            decode::<Reply>(&vec![b' '; MESSAGE_BYTES_MAX + 1]),
            Err(Error::TooLarge(_))
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(decode::<Request>(&bytes));
            drop(decode::<Beginning>(&bytes));
            drop(decode::<Made>(&bytes));
        }
    }
}
