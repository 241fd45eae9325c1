//! What clients ask for, and what they say to containers.

use crate::Failure;
use crate::client::{Role, Talk};
use crate::container::{Container, Exit, Stage};
use crate::pod::Pod;
use crate::watch::{Happened, Interest, Token};
use kedge_containers::TerminalSize;
use kedge_supervision::talk::{self, ToProcess};
use kedge_supervision::{self as supervision, Order, Reply, Request, VERSION, decode};
use std::os::fd::OwnedFd;

/// A pod has a few containers; those that were replaced are forgotten.
const CONTAINERS_MAX: usize = 256;
/// People who listen to one container at once.
const LISTENERS_MAX: usize = 16;

impl Pod {
    /// A client has said something, can be told something, or is gone.
    pub(crate) fn serve_client(&mut self, key: u32, event: Happened) {
        let Some(client) = self.clients.iter_mut().find(|client| client.key == key) else {
            return;
        };
        match &client.role {
            Role::Asking => self.hear_request(key),
            // Nothing more is expected of it.
            Role::Waiting => self.hang_up(key),
            Role::Talking(_) => {
                if event.writable && client.flush().is_err() {
                    // It does not listen any more; what it said before counts.
                    return self.hear_talk(key, true);
                }
                if client.talk().is_some_and(Talk::is_over) {
                    return self.hang_up(key);
                }
                self.hear_talk(key, event.hung_up);
            }
        }
    }

    /// Whether a container has yet to take what it was told.
    pub(crate) fn is_behind(&self, container: u32) -> bool {
        let mut all = self.containers.iter();
        all.find(|found| found.key == container)
            .and_then(|found| found.input.as_ref())
            .is_some_and(crate::streams::Input::is_behind)
    }

    /// A client is gone. What it waited for may be of no use any more.
    pub(crate) fn hang_up(&mut self, key: u32) {
        let Some(at) = self.clients.iter().position(|client| client.key == key) else {
            return;
        };
        let client = self.clients.swap_remove(at);
        for container in &mut self.containers {
            container.awaited.retain(|waiting| *waiting != key);
            // The agent was killed, and will not know what it ordered.
            if matches!(&container.stage, Stage::Creating(making) if making.client == key) {
                container.forget();
            }
        }
        if let Some(talk) = client.talk().filter(|talk| talk.stdin) {
            self.end_input_once(talk.container);
        }
    }

    /// Gives a container what it did not take before.
    pub(crate) fn feed(&mut self, key: u32) {
        let Some(at) = self.containers.iter().position(|container| container.key == key) else {
            return;
        };
        if let Some(mut input) = self.containers[at].input.take() {
            input.flush(self.containers[at].terminal());
            self.containers[at].input = Some(input);
        }
        self.after_input(key);
        // Nobody else tells us that those who hung up meanwhile can be read.
        let gone = |client: &&crate::client::Client| {
            client.talks_with(key) && client.talk().is_some_and(|talk| talk.gone)
        };
        let gone: Vec<u32> = self
            .clients
            .iter()
            .filter(gone)
            .map(|client| client.key)
            .collect();
        gone.into_iter().for_each(|client| self.hear_talk(client, true));
    }

    fn hear_request(&mut self, key: u32) {
        let Some(client) = self.clients.iter_mut().find(|client| client.key == key) else {
            return;
        };
        let mut buffer = vec![0; supervision::MESSAGE_BYTES_MAX];
        let received = match kedge_packets::receive(&client.socket, &mut buffer) {
            Ok(received) if received.bytes > 0 => received,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => return self.hang_up(key),
        };
        client.role = Role::Waiting;
        let reply = match decode::<Request>(&buffer[..received.bytes]) {
            Ok(request) if request.version == VERSION => {
                match self.obey(key, request.order, received.descriptor) {
                    Ok(true) => Reply::Done,
                    Ok(false) => return,
                    Err(Failure(why)) => Reply::Failed(why),
                }
            }
            Ok(_) => Reply::Version(VERSION),
            Err(error) => Reply::Failed(error.to_string()),
        };
        self.answer(key, &reply);
    }

    /// Does what is asked; false when the answer comes later.
    fn obey(&mut self, client: u32, order: Order, descriptor: Option<OwnedFd>) -> Result<bool, Failure> {
        match order {
            Order::Create { container, arguments } => {
                let maker = descriptor
                    .ok_or_else(|| Failure::new("make the container", "no program came with it"))?;
                self.create(client, *container, &maker, &arguments)?;
                Ok(false)
            }
            Order::Start { id } => {
                let me = self.me.clone();
                let container = self.known("start the container", &id)?;
                container.start()?;
                // A container of which nobody will know that it runs shall not run.
                let saved = container.save(&me).inspect_err(|_| container.kill());
                saved.map_err(|error| Failure::new("write the container's state", error))?;
                Ok(true)
            }
            Order::Await { id } => Ok(match self.container(&id) {
                Some(container) => {
                    container.awaited.push(client);
                    false
                }
                None => true,
            }),
            Order::Discard { id } => Ok(match self.container(&id) {
                Some(container) => {
                    container.forget().asked.push(client);
                    false
                }
                None => true,
            }),
            Order::Attach {
                id,
                stdin,
                stdout,
                stderr,
            } => {
                self.attach(client, &id, stdin, [stdout, stderr])?;
                Ok(false)
            }
            Order::Resize { id, size } => {
                let container = self.known("resize the terminal", &id)?;
                resize(container, size)?;
                Ok(true)
            }
            Order::ReopenLog { id } => {
                let container = self.known("reopen the log", &id)?;
                let reopened = container.log.reopen();
                reopened.map_err(|error| Failure::new("reopen the log", error))?;
                Ok(true)
            }
            Order::End => {
                self.ending = Some(client);
                for container in &mut self.containers {
                    container.kill();
                    if matches!(container.stage, Stage::Creating(_)) {
                        container.forget();
                    }
                }
                Ok(false)
            }
        }
    }

    fn known(&mut self, act: &str, id: &str) -> Result<&mut Container, Failure> {
        self.container(id)
            .ok_or_else(|| Failure::new(act, "its supervisor does not know it"))
    }

    fn create(
        &mut self,
        client: u32,
        spec: supervision::Container,
        maker: &OwnedFd,
        arguments: &[String],
    ) -> Result<(), Failure> {
        let refuse = |why| Err(Failure::new("make the container", why));
        if self.ending.is_some() {
            return refuse("its pod ends");
        }
        if self.container(&spec.id).is_some() {
            return refuse("there is one of this name");
        }
        if self.containers.len() >= CONTAINERS_MAX {
            return refuse("its pod has too many containers");
        }
        let key = self.next_key();
        let container = Container::make(key, spec, client, maker, arguments)?;
        let watched = self
            .watch_outputs(&container)
            .and_then(|()| match &container.stage {
                Stage::Creating(making) => self.watch.add(&making.said, Token::Made(key), Interest::Read),
                Stage::Created | Stage::Running { .. } | Stage::Ending(_) => Ok(()),
            });
        self.containers.push(container);
        if let Err(error) = watched
            && let Some(container) = self.by_key(key)
        {
            container.forget();
            container.begin_ending(Exit::Unseen);
            return Err(Failure::new("make the container", error));
        }
        Ok(())
    }

    fn attach(&mut self, client: u32, id: &str, stdin: bool, wants: [bool; 2]) -> Result<(), Failure> {
        let act = "attach to the container";
        let container = self.known(act, id)?;
        match container.stage {
            Stage::Created | Stage::Running { .. } => {}
            Stage::Creating(_) => return Err(Failure::new(act, "it is not made yet")),
            Stage::Ending(_) => return Err(Failure::new(act, "it has ended")),
        }
        let key = container.key;
        let stdin = stdin && container.input.is_some();
        if self
            .clients
            .iter()
            .filter(|client| client.talks_with(key))
            .count()
            >= LISTENERS_MAX
        {
            return Err(Failure::new(act, "too many listen to it already"));
        }
        let Some(found) = self.clients.iter_mut().find(|found| found.key == client) else {
            return Ok(());
        };
        let failed = |error: &dyn std::fmt::Display| Failure::new(act, error);
        let done = supervision::encode(&Reply::Done).map_err(|error| failed(&error))?;
        kedge_packets::send(&found.socket, &done, None).map_err(|error| failed(&error))?;
        found.role = Role::Talking(Talk::new(key, stdin, wants));
        Ok(())
    }

    /// Takes what somebody says to a container, as long as the container keeps up. Of one that hung up it is the rest.
    pub(crate) fn hear_talk(&mut self, key: u32, hung_up: bool) {
        let mut buffer = vec![0; talk::MESSAGE_BYTES_MAX];
        loop {
            let Some(client) = self.clients.iter_mut().find(|client| client.key == key) else {
                return;
            };
            let Some(talk) = client.talk() else { return };
            let container = talk.container;
            if talk.stdin && self.is_behind(container) {
                break;
            }
            let Some(client) = self.clients.iter_mut().find(|client| client.key == key) else {
                return;
            };
            let bytes = match kedge_packets::receive(&client.socket, &mut buffer) {
                Ok(received) => received.bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !hung_up => return,
                Err(_) => 0,
            };
            if bytes == 0 {
                return self.hang_up(key);
            }
            self.hear_word(key, container, &buffer[..bytes]);
        }
        let Some(client) = self.clients.iter_mut().find(|client| client.key == key) else {
            return;
        };
        if let Role::Talking(talk) = &mut client.role
            && hung_up
            && !talk.gone
        {
            // The kernel would tell again and again; what it said is read when the container has taken the rest.
            talk.gone = true;
            drop(self.watch.remove(&client.socket));
        }
    }

    fn hear_word(&mut self, client: u32, container: u32, message: &[u8]) {
        let may_speak = self
            .clients
            .iter()
            .find(|found| found.key == client)
            .and_then(|found| found.talk())
            .is_some_and(|talk| talk.stdin);
        match ToProcess::read(message) {
            Some(ToProcess::Bytes(bytes)) if may_speak => {
                let Some(found) = self.by_key(container) else {
                    return;
                };
                if let Some(mut input) = found.input.take() {
                    if !input.last {
                        input.write(found.terminal(), bytes);
                    }
                    found.input = Some(input);
                }
                self.after_input(container);
            }
            Some(ToProcess::End) if may_speak => self.end_input_once(container),
            Some(ToProcess::Resize(size)) => {
                if let Some(found) = self.by_key(container) {
                    // A container without a terminal has no size.
                    drop(resize(found, size));
                }
            }
            // It may not speak, or says what nobody understands.
            Some(ToProcess::Bytes(_) | ToProcess::End) | None => {}
        }
    }

    /// The one conversation that had the input is over, where there shall be one only.
    fn end_input_once(&mut self, container: u32) {
        let Some(found) = self.by_key(container) else {
            return;
        };
        if found.spec.stdin_once
            && !found.spec.tty
            && let Some(input) = &mut found.input
        {
            input.last = true;
            self.after_input(container);
        }
    }

    /// Waits until a container that is behind takes more, or lets those go on who speak to it.
    fn after_input(&mut self, key: u32) {
        let Some(at) = self.containers.iter().position(|container| container.key == key) else {
            return;
        };
        let container = &self.containers[at];
        let Some(input) = &container.input else { return };
        let behind = input.is_behind();
        let watched = match (&input.pipe, container.terminal(), behind) {
            (Some(pipe), _, true) => self.watch.set(pipe, Token::Stdin(key), Interest::Write),
            (Some(pipe), _, false) => self.watch.remove(pipe),
            (None, Some(terminal), true) => {
                self.watch
                    .set(terminal, Token::Stdout(key), Interest::ReadAndWrite)
            }
            (None, Some(terminal), false) => self.watch.set(terminal, Token::Stdout(key), Interest::Read),
            (None, None, _) => Ok(()),
        };
        if let Err(error) = watched {
            crate::say(format_args!(
                "the input of container {} is not watched: {error}",
                container.spec.id
            ));
        }
        if !behind && input.last {
            self.containers[at].input = None;
        }
        for client in self.clients.iter().filter(|client| client.talks_with(key)) {
            drop(client.rewatch(&self.watch, behind));
        }
    }
}

fn resize(container: &Container, size: TerminalSize) -> Result<(), Failure> {
    let act = "resize the terminal";
    let terminal = container
        .terminal()
        .ok_or_else(|| Failure::new(act, "the container has none"))?;
    let size = rustix::termios::Winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size).map_err(|errno| Failure::new(act, errno))
}
