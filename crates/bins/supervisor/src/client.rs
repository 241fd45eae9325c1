//! Who is connected with the supervisor.

use crate::watch::{Interest, Token, Watch};
use kedge_supervision::talk::FromProcess;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// What a listener may leave unread beyond what his socket holds. Who leaves more is too slow, and is told so: a
/// container never waits for who listens to it.
const UNSENT_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) key: u32,
    pub(crate) socket: OwnedFd,
    pub(crate) role: Role,
}

#[derive(Debug)]
pub(crate) enum Role {
    /// It has not yet said what it wants.
    Asking,
    /// It waits for its answer.
    Waiting,
    /// It talks with a container.
    Talking(Talk),
}

#[derive(Debug)]
pub(crate) struct Talk {
    /// The container's key.
    pub(crate) container: u32,
    pub(crate) stdin: bool,
    /// Which of the two outputs it wants.
    pub(crate) wants: [bool; 2],
    unsent: VecDeque<Vec<u8>>,
    unsent_bytes: usize,
    /// It is told nothing more, and may go when it has heard everything.
    last: bool,
    /// It hung up while the container was behind; what it had said before is read later.
    pub(crate) gone: bool,
}

impl Talk {
    pub(crate) fn new(container: u32, stdin: bool, wants: [bool; 2]) -> Self {
        Self {
            container,
            stdin,
            wants,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            last: false,
            gone: false,
        }
    }

    /// Whether it has heard everything it will ever hear.
    pub(crate) fn is_over(&self) -> bool {
        self.last && self.unsent.is_empty()
    }
}

impl Client {
    /// Whom it talks with.
    pub(crate) fn talk(&self) -> Option<&Talk> {
        match &self.role {
            Role::Talking(talk) => Some(talk),
            Role::Asking | Role::Waiting => None,
        }
    }

    pub(crate) fn talks_with(&self, container: u32) -> bool {
        self.talk().is_some_and(|talk| talk.container == container)
    }

    /// Tells a listener something; `last` when nothing comes after it. An error means that it is gone.
    pub(crate) fn tell(&mut self, message: &[u8], last: bool) -> std::io::Result<()> {
        let Role::Talking(talk) = &mut self.role else {
            return Ok(());
        };
        if talk.last {
            return Ok(());
        }
        talk.last = last;
        if talk.gone {
            return Ok(());
        }
        if talk.unsent.is_empty() {
            match kedge_packets::send(&self.socket, message, None) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                told => return told,
            }
        }
        if talk.unsent_bytes + message.len() > UNSENT_BYTES_MAX {
            talk.unsent.clear();
            talk.unsent_bytes = 0;
            talk.last = true;
            let mut refusal = Vec::new();
            FromProcess::Refused("it listens too slowly").write(&mut refusal);
            talk.unsent.push_back(refusal);
            return Ok(());
        }
        talk.unsent_bytes += message.len();
        talk.unsent.push_back(message.to_vec());
        Ok(())
    }

    /// Sends what was not sent before.
    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        let Role::Talking(talk) = &mut self.role else {
            return Ok(());
        };
        while let Some(message) = talk.unsent.front() {
            match kedge_packets::send(&self.socket, message, None) {
                Ok(()) => {
                    talk.unsent_bytes = talk.unsent_bytes.saturating_sub(message.len());
                    talk.unsent.pop_front();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        talk.unsent = VecDeque::new();
        Ok(())
    }

    /// Waits for what this client may do next; `behind` when its container has yet to take what it was told.
    pub(crate) fn rewatch(&self, watch: &Watch, behind: bool) -> std::io::Result<()> {
        let interest = match &self.role {
            Role::Talking(talk) if talk.gone => return Ok(()),
            Role::Talking(talk) => match (behind && talk.stdin, talk.unsent.is_empty()) {
                (false, true) => Interest::Read,
                (false, false) => Interest::ReadAndWrite,
                (true, true) => Interest::HangUp,
                (true, false) => Interest::Write,
            },
            Role::Asking | Role::Waiting => Interest::Read,
        };
        watch.change(&self.socket, Token::Client(self.key), interest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use kedge_supervision::talk::MESSAGE_BYTES_MAX;

    #[test]
    fn a_slow_listener_is_told_so_and_let_go() {
        let (ours, theirs) = kedge_packets::pair().unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        let mut client = Client {
            key: 1,
            socket: ours,
            role: Role::Talking(Talk::new(1, false, [true, true])),
        };
        let mut piece = Vec::new();
        FromProcess::Stdout(&[b'x'; 4096]).write(&mut piece);
        for _ in 0..1000 {
            client.tell(&piece, false).unwrap();
        }
        let talk = client.talk().unwrap();
        assert!(talk.last && talk.unsent.len() == 1, "only the reason is kept");
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let last = loop {
            client.flush().unwrap();
            let received = kedge_packets::receive(&theirs, &mut buffer).unwrap();
            if let Some(FromProcess::Refused(why)) = FromProcess::read(&buffer[..received.bytes]) {
                break why.to_owned();
            }
        };
        assert_eq!(last, "it listens too slowly");
        assert!(client.talk().unwrap().is_over());
    }
}
