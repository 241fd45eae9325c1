//! Processes that end with this one: our own executable as a crew, and CloudCore.
//!
//! They are started by argument vectors, talk over pipes, and are ended by their pid. The kernel ends them when this
//! process dies, however it dies.

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// Standard input and output of this process, which are pipes.
pub fn standard_pipes() -> Result<(pipe::Receiver, pipe::Sender)> {
    let not_a_pipe = "this command is for edgemark itself: its standard input and output must be pipes";
    let input = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("take standard input")?;
    let output = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .context("take standard output")?;
    Ok((
        pipe::Receiver::from_owned_fd(input).context(not_a_pipe)?,
        pipe::Sender::from_owned_fd(output).context(not_a_pipe)?,
    ))
}

/// Asks the kernel to end this process when the one that started it ends.
pub fn end_with_parent() -> Result<()> {
    let parent = rustix::process::getppid();
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("tie to the parent process")?;
    // It may have ended just before: then the signal never comes.
    if rustix::process::getppid() != parent {
        bail!("the process that started this one has ended");
    }
    Ok(())
}

/// Becomes another program, which ends with our parent.
pub fn become_tethered(program: &Path, arguments: &[OsString]) -> Result<()> {
    end_with_parent()?;
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}

/// Starts this executable with `arguments`: its standard input and output are pipes, its errors go where ours go.
pub fn start_self(arguments: &[&str]) -> Result<Child> {
    let own = std::env::current_exe().context("find this program")?;
    Command::new(own)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start edgemark {}", arguments.join(" ")))
}

/// Starts another program that ends with this process; what it writes goes to a file.
pub fn start_tethered(program: &Path, arguments: &[&std::ffi::OsStr], log: &Path) -> Result<Child> {
    let own = std::env::current_exe().context("find this program")?;
    let file = std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
    let errors = file.try_clone().context("share the log file")?;
    Command::new(own)
        .arg("tethered")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

/// JSON values, one a line, of bounded length.
#[derive(Debug)]
pub struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    bytes_max: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(reader: R, bytes_max: usize) -> Self {
        Self {
            reader: BufReader::new(reader),
            line: Vec::new(),
            bytes_max,
        }
    }

    /// The next value; `None` at the end. Cancel safe: a part of a line that was read is kept.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let room = u64::try_from(self.bytes_max.saturating_sub(self.line.len())).unwrap_or(u64::MAX);
        (&mut self.reader)
            .take(room)
            .read_until(b'\n', &mut self.line)
            .await
            .context("read a line")?;
        if self.line.is_empty() {
            return Ok(None);
        }
        if self.line.len() >= self.bytes_max {
            bail!("a line is longer than {} bytes", self.bytes_max);
        }
        let value = serde_json::from_slice(&self.line).context("a line is not what was agreed");
        self.line.clear();
        value.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_read_one_by_one_and_bounded() {
        let mut lines = Lines::new(&b"1\n22\n\"a long one\"\n"[..], 8);
        assert_eq!(lines.next::<u32>().await.expect("a number"), Some(1));
        assert_eq!(lines.next::<u32>().await.expect("a number"), Some(22));
        let error = lines.next::<String>().await.expect_err("too long");
        assert_eq!(error.to_string(), "a line is longer than 8 bytes");
        let mut empty = Lines::new(&b""[..], 8);
        assert_eq!(empty.next::<u32>().await.expect("the end is no error"), None);
    }
}
