//! Whole messages, and open files, from process to process on this machine.
//!
//! **Duty.** Sockets of the kind that keeps messages apart (`SOCK_SEQPACKET`): nothing to cut, nothing half sent. A
//! descriptor may come with a message.
//!
//! **Inputs and outputs.** Messages up to the size that the receiver allows.
//!
//! **Never.** It does not know what a message means.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;

/// Descriptors that one message may carry.
const DESCRIPTORS_MAX: usize = 1;

/// Connections that may wait to be taken.
const WAITING_MAX: i32 = 32;

/// Two ends that are connected with each other.
pub fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Listens at `name` in a directory; what was there before is replaced. Accepting does not wait.
pub fn listen(directory: &Path, name: &str) -> std::io::Result<OwnedFd> {
    let socket = socket(SocketFlags::NONBLOCK)?;
    let (_held, address) = address(directory, name)?;
    match rustix::fs::unlink(directory.join(name)) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, WAITING_MAX)?;
    Ok(socket)
}

/// Takes a waiting connection, `None` when there is none. Neither end of what it gives waits.
pub fn accept(listener: &OwnedFd) -> std::io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Connects to who listens at `name` in a directory.
pub fn connect(directory: &Path, name: &str) -> std::io::Result<OwnedFd> {
    let socket = socket(SocketFlags::empty())?;
    let (_held, address) = address(directory, name)?;
    retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}

/// Sends a message, with a descriptor if one is given. The other end may be gone: that is an error and no signal.
pub fn send(socket: impl AsFd, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    let flags = SendFlags::NOSIGNAL;
    let Some(descriptor) = descriptor else {
        retry_on_intr(|| rustix::net::send(&socket, message, flags))?;
        return Ok(());
    };
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    retry_on_intr(|| rustix::net::sendmsg(&socket, &[IoSlice::new(message)], &mut control, flags))?;
    Ok(())
}

/// A message that was received: how long it is, and the descriptor that came with it.
#[derive(Debug)]
pub struct Received {
    pub bytes: usize,
    pub descriptor: Option<OwnedFd>,
}

/// Receives a message. No bytes mean that the other end hung up; a message that does not fit is refused.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> std::io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let parts = &mut [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(&socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // The second is told once of a peer that hung up without having heard everything. What it said is still there.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            received => break received?,
        }
    };
    let mut descriptor = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            descriptor = descriptors.last();
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    Ok(Received {
        bytes: message.bytes,
        descriptor,
    })
}

fn socket(flags: SocketFlags) -> std::io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | flags,
        None,
    )?)
}

/// A socket's path may have 107 bytes; through a descriptor, which must be held until it was used, it always fits.
fn address(directory: &Path, name: &str) -> std::io::Result<(OwnedFd, SocketAddrUnix)> {
    let directory = rustix::fs::openat(
        CWD,
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
    Ok((directory, address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use std::io::Write;

    #[test]
    fn messages_stay_apart_and_carry_a_descriptor() {
        let (here, there) = pair().unwrap();
        let (read, write) = std::io::pipe().unwrap();
        send(&here, b"one", None).unwrap();
        send(&here, b"two!", Some(write.as_fd())).unwrap();
        drop((here, write));
        let mut buffer = [0; 16];
        let first = receive(&there, &mut buffer).unwrap();
        assert_eq!(
            (&buffer[..first.bytes], first.descriptor.is_some()),
            (&b"one"[..], false)
        );
        let second = receive(&there, &mut buffer).unwrap();
        assert_eq!(&buffer[..second.bytes], b"two!");
        let mut passed = std::fs::File::from(second.descriptor.unwrap());
        passed.write_all(b"through").unwrap();
        drop(passed);
        assert_eq!(std::io::read_to_string(read).unwrap(), "through");
        assert_eq!(
            receive(&there, &mut buffer).unwrap().bytes,
            0,
            "the other end hung up"
        );
        assert!(send(&there, b"x", None).is_err(), "and that is no signal");
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused() {
        let (here, there) = pair().unwrap();
        send(&here, b"longer", None).unwrap();
        let refused = receive(&there, &mut [0; 3]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        let directory = std::env::temp_dir().join(format!(
            "kedge-packets-{}-{}",
            std::process::id(),
            "x".repeat(120)
        ));
        std::fs::create_dir_all(&directory).unwrap();
        let listener = listen(&directory, "s").unwrap();
        assert!(accept(&listener).unwrap().is_none());
        let listener = {
            drop(listener);
            listen(&directory, "s").unwrap()
        };
        let client = connect(&directory, "s").unwrap();
        let served = accept(&listener).unwrap().unwrap();
        send(&client, b"hello", None).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(receive(&served, &mut buffer).unwrap().bytes, 5);
        assert_eq!(
            receive(&served, &mut buffer).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
        std::fs::remove_dir_all(directory).unwrap();
    }
}
