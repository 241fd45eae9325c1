//! Talking with processes in containers.

use bytes::Bytes;
use kedge_containers::TerminalSize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Who carries the bytes of a conversation.
#[derive(Debug)]
pub enum Served<T> {
    /// This process: here are its ends.
    Here(T),
    /// The runtime itself: whoever asked connects to this URL, in the protocol that he speaks anyway.
    At(String),
}

/// One end of a conversation; the runtime has the other. Dropping it hangs up: a command that was run for it is killed,
/// a container's own process goes on.
#[derive(Debug)]
pub struct Session {
    pub input: mpsc::Sender<Input>,
    /// Closes after [`Output::Ended`], or without it when nobody can say how it ended.
    pub output: mpsc::Receiver<Output>,
}

impl Session {
    /// Pieces that may wait in each direction; who sends more waits, so that a slow reader slows the writer.
    pub const WAITING_MAX: usize = 16;
    /// The largest piece in either direction, in bytes.
    pub const PIECE_BYTES_MAX: usize = 32 * 1024;
}

/// What is said to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Bytes(Bytes),
    /// Nothing more comes: its standard input ends.
    End,
    Resize(TerminalSize),
}

/// What a process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Everything, when it has a terminal.
    Stdout(Bytes),
    Stderr(Bytes),
    /// The exit code; 128 and the signal's number when a signal ended it. Everything it said came before.
    Ended(i32),
}

/// A connection to a port in a pod.
pub type SocketInPod = Box<dyn ByteStream>;

/// Bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> ByteStream for T {}
