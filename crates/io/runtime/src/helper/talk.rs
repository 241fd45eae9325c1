//! A command in a container, and somebody who talks with it: bytes go to and fro until it ends, or until he hangs up.
//!
//! The other end of the conversation is a socket, our standard output. Who reads slowly slows the command.

use super::Failure;
use super::exec::{self, Ends, ExecOrder, Running};
use super::tracked::Tracked;
use kedge_supervision::Reply;
use kedge_supervision::talk::{FromProcess, MESSAGE_BYTES_MAX, ToProcess};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

const READ_BYTES: usize = 16 * 1024;

/// Runs the command and talks about it.
pub(super) fn run(order: Result<ExecOrder, Failure>) -> ExitCode {
    let begun = order.and_then(|order| exec::begin(&order, Tracked::make(&order.cgroup)));
    let (reply, running) = match begun {
        Ok(running) => (Reply::Done, Some(running)),
        Err(Failure(why)) => (Reply::Failed(why), None),
    };
    let told = kedge_supervision::encode(&reply)
        .map_err(std::io::Error::other)
        .and_then(|bytes| kedge_packets::send(std::io::stdout(), &bytes, None));
    let Some(running) = running else {
        return ExitCode::FAILURE;
    };
    let talked = told
        .map_err(|error| Failure::new("answer", error))
        .and_then(|()| Conversation::begin(running));
    match talked.and_then(Conversation::follow) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is left to whom it could be told.
        Err(_) => ExitCode::FAILURE,
    }
}

struct Conversation {
    socket: OwnedFd,
    running: Running,
    end: OwnedFd,
    /// Which outputs may still say something.
    open: [bool; 2],
    /// What the command did not take yet, and whether that is the last.
    to_process: Vec<u8>,
    input_ends: bool,
    /// A message that the other end did not take yet.
    unsent: Vec<u8>,
    phase: Phase,
}

/// How far the command has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Runs,
    /// With this exit code; it may still have something to say.
    Ended(i32),
    Told,
}

/// Why a round ended.
enum Round {
    GoOn,
    /// Everything is said.
    Over,
    /// Nobody listens any more.
    HungUp,
}

impl Conversation {
    fn begin(running: Running) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new("talk with the command", error);
        let socket = std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        let nonblocking =
            |fd: &OwnedFd| rustix::io::ioctl_fionbio(fd, true).map_err(|errno| failed(errno.into()));
        nonblocking(&socket)?;
        match &running.ends {
            Ends::Terminal(terminal) => nonblocking(terminal)?,
            Ends::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                stdin.iter().chain([stdout, stderr]).try_for_each(nonblocking)?;
            }
        }
        let open = [true, matches!(running.ends, Ends::Pipes { .. })];
        Ok(Self {
            socket,
            end: exec::handle(running.child)?,
            running,
            open,
            to_process: Vec::new(),
            input_ends: false,
            unsent: Vec::new(),
            phase: Phase::Runs,
        })
    }

    fn follow(mut self) -> Result<(), Failure> {
        loop {
            match self.round()? {
                Round::GoOn => {}
                Round::Over => break,
                Round::HungUp if self.phase == Phase::Runs => {
                    self.running.tracked.kill(self.running.child);
                    exec::collect(self.running.child);
                    break;
                }
                Round::HungUp => break,
            }
        }
        self.running.tracked.release();
        Ok(())
    }

    fn round(&mut self) -> Result<Round, Failure> {
        // Only then its outputs are looked at.
        let listened = self.unsent.is_empty();
        let ready = self.wait()?;
        if ready.writable && !self.flush() {
            return Ok(Round::HungUp);
        }
        if ready.heard && !self.hear() {
            return Ok(Round::HungUp);
        }
        if ready.input {
            self.feed();
        }
        let mut said = false;
        for number in 0..2 {
            if ready.outputs[number] && self.unsent.is_empty() {
                said = true;
                if !self.pass_on(number) {
                    return Ok(Round::HungUp);
                }
            }
        }
        self.phase = match self.phase {
            Phase::Runs if ready.ended => Phase::Ended(exec::collect(self.running.child)),
            Phase::Runs => Phase::Runs,
            // What it left in the background may keep its outputs open: nobody waits for that.
            Phase::Ended(code) if listened && !said && self.unsent.is_empty() => {
                if !self.tell(FromProcess::Ended(code)) {
                    return Ok(Round::HungUp);
                }
                Phase::Told
            }
            Phase::Ended(code) => Phase::Ended(code),
            Phase::Told => Phase::Told,
        };
        let over = self.phase == Phase::Told && self.unsent.is_empty();
        Ok(if over { Round::Over } else { Round::GoOn })
    }

    /// Waits for what may be done.
    fn wait(&self) -> Result<Ready, Failure> {
        let (slots, mut fds): (Vec<Slot>, Vec<PollFd<'_>>) = self.slots().into_iter().unzip();
        // The command has ended: only what is there already is taken.
        let patience = match self.phase {
            Phase::Ended(_) if self.unsent.is_empty() => PollTimeout::ZERO,
            Phase::Runs | Phase::Ended(_) | Phase::Told => PollTimeout::NONE,
        };
        match poll(&mut fds, patience) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Failure::new("wait for the command", errno)),
        }
        let mut ready = Ready::default();
        for (slot, fd) in slots.into_iter().zip(&fds) {
            let flags = fd.revents().unwrap_or(PollFlags::empty());
            let readable = flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR);
            match slot {
                Slot::Socket => {
                    ready.heard = readable;
                    ready.writable = flags.contains(PollFlags::POLLOUT);
                }
                Slot::End => ready.ended = readable,
                Slot::Output(number) => ready.outputs[number] = readable,
                Slot::Input => ready.input = !flags.is_empty(),
                Slot::Terminal => {
                    ready.outputs[0] = readable && self.open[0];
                    ready.input = flags.contains(PollFlags::POLLOUT);
                }
            }
        }
        Ok(ready)
    }

    /// Nothing is heard while the command is behind, and nothing of it is read while the other end is.
    fn slots(&self) -> Vec<(Slot, PollFd<'_>)> {
        let writes = !self.to_process.is_empty();
        let reads = |number: usize| self.unsent.is_empty() && self.open[number];
        let mut socket = PollFlags::empty();
        socket.set(PollFlags::POLLIN, !writes);
        socket.set(PollFlags::POLLOUT, !self.unsent.is_empty());
        let slot = |slot, fd, flags| (slot, PollFd::new(fd, flags));
        let mut slots = vec![slot(Slot::Socket, self.socket.as_fd(), socket)];
        if self.phase == Phase::Runs {
            slots.push(slot(Slot::End, self.end.as_fd(), PollFlags::POLLIN));
        }
        match &self.running.ends {
            Ends::Terminal(terminal) => {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::POLLIN, reads(0));
                flags.set(PollFlags::POLLOUT, writes);
                if !flags.is_empty() {
                    slots.push(slot(Slot::Terminal, terminal.as_fd(), flags));
                }
            }
            Ends::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                for (number, output) in [stdout, stderr].into_iter().enumerate() {
                    if reads(number) {
                        slots.push(slot(Slot::Output(number), output.as_fd(), PollFlags::POLLIN));
                    }
                }
                if let Some(stdin) = stdin.as_ref().filter(|_| writes) {
                    slots.push(slot(Slot::Input, stdin.as_fd(), PollFlags::POLLOUT));
                }
            }
        }
        slots
    }

    /// Takes what the other end says; false when it hung up.
    fn hear(&mut self) -> bool {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let bytes = match kedge_packets::receive(&self.socket, &mut buffer) {
            Ok(received) => received.bytes,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
            Err(_) => 0,
        };
        if bytes == 0 {
            return false;
        }
        match ToProcess::read(&buffer[..bytes]) {
            Some(ToProcess::Bytes(bytes)) if !self.input_ends => {
                self.to_process.extend_from_slice(bytes);
                self.feed();
            }
            Some(ToProcess::End) => {
                self.input_ends = true;
                self.feed();
            }
            Some(ToProcess::Resize(size)) => {
                if let Ends::Terminal(terminal) = &self.running.ends {
                    let size = rustix::termios::Winsize {
                        ws_row: size.height,
                        ws_col: size.width,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    // A terminal that was hung up has no size.
                    let _ = rustix::termios::tcsetwinsize(terminal, size);
                }
            }
            Some(ToProcess::Bytes(_)) | None => {}
        }
        true
    }

    /// Gives the command what it takes.
    fn feed(&mut self) {
        let fd = match &self.running.ends {
            Ends::Terminal(terminal) => Some(terminal),
            Ends::Pipes { stdin, .. } => stdin.as_ref(),
        };
        while let (Some(fd), false) = (fd, self.to_process.is_empty()) {
            match rustix::io::write(fd, &self.to_process) {
                Ok(written) => drop(self.to_process.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It closed its input.
                Err(_) => self.to_process.clear(),
            }
        }
        self.to_process.clear();
        // The end of a terminal's input is a character that people type.
        if self.input_ends
            && let Ends::Pipes { stdin, .. } = &mut self.running.ends
        {
            *stdin = None;
        }
    }

    /// Passes on what an output says; false when nobody listens.
    fn pass_on(&mut self, number: usize) -> bool {
        let output = match (&self.running.ends, number) {
            (Ends::Terminal(terminal), _) => terminal,
            (Ends::Pipes { stdout, .. }, 0) => stdout,
            (Ends::Pipes { stderr, .. }, _) => stderr,
        };
        let mut buffer = [0; READ_BYTES];
        let bytes = match rustix::io::read(output, &mut buffer) {
            Ok(bytes) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            // A terminal whose other end was closed.
            Err(_) => 0,
        };
        if bytes == 0 {
            self.open[number] = false;
            return true;
        }
        self.tell(match number {
            0 => FromProcess::Stdout(&buffer[..bytes]),
            _ => FromProcess::Stderr(&buffer[..bytes]),
        })
    }

    fn tell(&mut self, message: FromProcess<'_>) -> bool {
        message.write(&mut self.unsent);
        self.flush()
    }

    /// Sends what waits; false when nobody listens.
    fn flush(&mut self) -> bool {
        if self.unsent.is_empty() {
            return true;
        }
        match kedge_packets::send(&self.socket, &self.unsent, None) {
            Ok(()) => {
                self.unsent.clear();
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

#[derive(Default)]
struct Ready {
    heard: bool,
    writable: bool,
    ended: bool,
    input: bool,
    outputs: [bool; 2],
}

enum Slot {
    Socket,
    End,
    Output(usize),
    Input,
    Terminal,
}
