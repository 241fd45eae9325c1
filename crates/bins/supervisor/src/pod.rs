//! The pod: its containers, its clients, and the loop that waits for the next of them.

use crate::client::{Client, Role};
use crate::container::{Container, Exit, Making, Root, SAVE_PAUSE, Stage};
use crate::streams::Heard;
use crate::watch::{Happened, Interest, Token, Watch};
use crate::{Failure, durable, hold, process};
use kedge_containerlog::Moment;
use kedge_supervision::talk::FromProcess;
use kedge_supervision::{
    Adopted, Beginning, Process, RECORD, Reply, SOCKET, SupervisorRecord, VERSION, encode,
};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, WaitOptions};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes taken from an output at once: a busy container does not keep the others waiting.
const READ_BYTES: usize = 16 * 1024;
/// What may be left in the pipes of a container that has ended: they hold 64 KiB, unless somebody made them larger.
const LAST_WORDS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Connections of the agent, most of which wait for one answer.
const CLIENTS_MAX: usize = 64;
/// Buffers that grew are given back above this size.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// When the machine goes off, containers have been told to end by whoever sends it off, and this is their time for it:
/// long beside a program's own work, short beside the 90 seconds that systemd would wait for us.
const MACHINE_GRACE: Duration = Duration::from_secs(10);

pub(crate) struct Pod {
    pub(crate) me: Process,
    directory: PathBuf,
    pub(crate) watch: Watch,
    listener: OwnedFd,
    signals: SignalFd,
    pub(crate) containers: Vec<Container>,
    pub(crate) clients: Vec<Client>,
    keys: u32,
    /// Everything shall end; this client waits for it.
    pub(crate) ending: Option<u32>,
    /// The machine goes off; from then on nobody is waited for.
    machine_off: Option<Instant>,
    process_pin: Option<PathBuf>,
    records: Vec<u8>,
    message: Vec<u8>,
    _lock: File,
}

impl Pod {
    pub(crate) fn open(beginning: Beginning, lock: File) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new("start the supervisor", error);
        let boot_id = process::boot_id().map_err(failed)?;
        let me = process::identify(std::process::id(), &boot_id).map_err(failed)?;
        let directory = beginning.directory;
        let record = SupervisorRecord {
            version: VERSION,
            process: me.clone(),
        };
        durable::write_for_boot(&directory.join(RECORD), &record).map_err(failed)?;
        let signals = signals().map_err(failed)?;
        if let Some(pin) = &beginning.process_pin
            && !pin.exists()
        {
            hold::start(pin, &boot_id)?;
        }
        let watch = Watch::new().map_err(failed)?;
        let listener = kedge_packets::listen(&directory, SOCKET).map_err(failed)?;
        watch
            .add(&listener, Token::Listener, Interest::Read)
            .map_err(failed)?;
        watch
            .add(&signals, Token::Signals, Interest::Read)
            .map_err(failed)?;
        let mut pod = Self {
            me,
            directory,
            watch,
            listener,
            signals,
            containers: Vec::new(),
            clients: Vec::new(),
            keys: 0,
            ending: None,
            machine_off: None,
            process_pin: beginning.process_pin,
            records: Vec::new(),
            message: Vec::new(),
            _lock: lock,
        };
        beginning
            .adopted
            .into_iter()
            .for_each(|adopted| pod.adopt(adopted));
        Ok(pod)
    }

    /// Follows the pod to its end.
    pub(crate) fn serve(&mut self) -> Result<(), Failure> {
        let mut happened = Vec::new();
        while !self.is_over() {
            self.watch
                .wait(self.patience(), &mut happened)
                .map_err(|error| Failure::new("wait for an event", error))?;
            for event in &happened {
                self.handle(*event);
            }
            self.look_at_the_clock();
        }
        Ok(())
    }

    /// Ends at once, before there was anything.
    pub(crate) fn abandon(&mut self) {
        drop(kedge_files::remove(&self.directory.join(SOCKET)));
        drop(kedge_files::remove(&self.directory.join(RECORD)));
    }

    pub(crate) fn next_key(&mut self) -> u32 {
        self.keys += 1;
        self.keys
    }

    pub(crate) fn container(&mut self, id: &str) -> Option<&mut Container> {
        self.containers
            .iter_mut()
            .find(|container| container.spec.id == id)
    }

    pub(crate) fn by_key(&mut self, key: u32) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.key == key)
    }

    /// Answers a client and lets it go.
    pub(crate) fn answer(&mut self, key: u32, reply: &Reply) {
        let Some(at) = self.clients.iter().position(|client| client.key == key) else {
            return;
        };
        let client = self.clients.swap_remove(at);
        // A client that is gone needs no answer.
        drop(encode(reply).map(|bytes| kedge_packets::send(&client.socket, &bytes, None)));
    }

    /// Waits for what an output says, if it can still say something.
    pub(crate) fn watch_outputs(&self, container: &Container) -> std::io::Result<()> {
        for (number, output) in container.outputs.iter().enumerate() {
            if let Some(fd) = &output.fd {
                self.watch
                    .add(fd, container.output_token(number), Interest::Read)?;
            }
        }
        Ok(())
    }

    /// Waits for the end of the process that serves its root, if there is one. The container's own is held: our child, or
    /// by its descriptor.
    fn watch_root(&self, container: &mut Container) -> std::io::Result<()> {
        match &container.root {
            Root::Served(server) => self.watch.add(server, Token::Root(container.key), Interest::Read),
            Root::Lasting => Ok(()),
            Root::Lost => {
                container.lose_root();
                Ok(())
            }
        }
    }

    fn adopt(&mut self, adopted: Adopted) {
        let id = adopted.container.id.clone();
        let key = self.next_key();
        let taken = Container::adopt(key, adopted).and_then(|mut container| {
            let failed = |error: std::io::Error| Failure::new("watch it", error);
            self.watch_outputs(&container).map_err(failed)?;
            match &container.pidfd {
                Some(pidfd) => {
                    self.watch
                        .add(pidfd, Token::Process(key), Interest::Read)
                        .map_err(failed)?;
                    self.watch_root(&mut container).map_err(failed)?;
                }
                None => container.begin_ending(Exit::Unseen),
            }
            container.save(&self.me).map_err(failed)?;
            Ok(container)
        });
        match taken {
            Ok(container) => self.containers.push(container),
            // The agent sees its process end, and says so in our place.
            Err(failure) => crate::say(format_args!("container {id} was not taken over: {}", failure.0)),
        }
    }

    fn is_over(&mut self) -> bool {
        if self
            .machine_off
            .is_some_and(|deadline| self.containers.is_empty() || deadline <= Instant::now())
        {
            self.leave_nothing_running();
            return true;
        }
        let Some(client) = self.ending else {
            return false;
        };
        if !self.containers.is_empty() {
            return false;
        }
        self.abandon();
        self.answer(client, &Reply::Done);
        true
    }

    /// Nothing is written down: after the next boot whoever ran before is known to have ended.
    fn leave_nothing_running(&self) {
        self.containers.iter().for_each(Container::kill);
        if let Some(Err(Failure(why))) = self.process_pin.as_deref().map(hold::end) {
            crate::say(format_args!("{why}"));
        }
    }

    /// How long may be waited at most; without end while nothing is being made or ended.
    fn patience(&self) -> Option<Duration> {
        let deadlines = self.containers.iter().filter_map(Container::deadline);
        let next = deadlines.chain(self.machine_off).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self, event: Happened) {
        match event.token {
            Token::Listener => self.accept(),
            Token::Signals => self.collect(),
            Token::Client(key) => self.serve_client(key, event),
            Token::Stdout(key) => {
                if event.writable {
                    self.feed(key);
                }
                self.copy_output(key, 0);
            }
            Token::Stderr(key) => {
                self.copy_output(key, 1);
            }
            Token::Stdin(key) => self.feed(key),
            Token::Made(key) => self.take_made(key),
            Token::Process(key) => self.adopted_has_ended(key),
            Token::Root(key) => {
                if let Some(container) = self.by_key(key) {
                    container.lose_root();
                }
            }
        }
    }

    /// The first process of a container that was taken over has ended.
    fn adopted_has_ended(&mut self, key: u32) {
        let Some(at) = self.containers.iter().position(|container| container.key == key) else {
            return;
        };
        let container = &mut self.containers[at];
        let told = container.ask_for_exit(Instant::now());
        // That it has ended the kernel would tell again and again; that it was collected comes as a hang-up.
        if !told
            && let Some(pidfd) = &container.pidfd
            && let Err(error) = self.watch.change(pidfd, Token::Process(key), Interest::HangUp)
        {
            crate::say(format_args!(
                "the end of container {} is not watched: {error}",
                container.spec.id
            ));
            container.pidfd = None;
            container.begin_ending(Exit::Unseen);
        }
    }

    fn accept(&mut self) {
        while let Ok(Some(socket)) = kedge_packets::accept(&self.listener) {
            if self.clients.len() >= CLIENTS_MAX {
                let refusal = Reply::Failed("its supervisor has too many clients".to_owned());
                drop(encode(&refusal).map(|bytes| kedge_packets::send(&socket, &bytes, None)));
                continue;
            }
            let key = self.next_key();
            if self
                .watch
                .add(&socket, Token::Client(key), Interest::Read)
                .is_ok()
            {
                self.clients.push(Client {
                    key,
                    socket,
                    role: Role::Asking,
                });
            }
        }
    }

    /// Collects what has ended: makers of containers, their first processes, and orphans.
    fn collect(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo == Signal::SIGTERM as u32 && process::machine_goes_off() {
                self.machine_off
                    .get_or_insert_with(|| Instant::now() + MACHINE_GRACE);
            }
        }
        // What makers have said is heard before they are collected.
        let making: Vec<u32> = self
            .containers
            .iter()
            .filter(|container| matches!(container.stage, Stage::Creating(_)))
            .map(|container| container.key)
            .collect();
        making.iter().for_each(|key| self.take_made(*key));
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.has_ended(pid, Exit::of(status.as_raw()));
        }
        making.into_iter().for_each(|key| self.take_made(key));
    }

    fn has_ended(&mut self, pid: Pid, exit: Exit) {
        for container in &mut self.containers {
            if let Stage::Creating(making) = &mut container.stage
                && making.maker == Some(pid)
            {
                // Its number may mean another from now on.
                making.maker = None;
            }
            let first = container.process.as_ref().and_then(process::number);
            if first == Some(pid) && container.pidfd.is_none() {
                container.begin_ending(exit);
            }
        }
    }

    /// Hears from the program that makes a container. What it made is ours when it has ended, and not before.
    fn take_made(&mut self, key: u32) {
        let Some(Container {
            stage: Stage::Creating(making),
            ..
        }) = self.by_key(key)
        else {
            return;
        };
        let client = making.client;
        if let Err(why) = making.hear() {
            return self.was_not_made(key, client, &why);
        }
        if making.maker.is_some() {
            return;
        }
        let Some((pid, terminal)) = making.made.take() else {
            return;
        };
        let made = process::identify(pid, &self.me.boot_id)
            .map_err(|error| Failure::new("identify the container's process", error))
            .and_then(|process| self.is_made(key, process, terminal));
        match made {
            Ok(()) => self.answer(client, &Reply::Done),
            Err(Failure(why)) => self.was_not_made(key, client, &why),
        }
    }

    fn is_made(&mut self, key: u32, process: Process, terminal: Option<OwnedFd>) -> Result<(), Failure> {
        let me = self.me.clone();
        let has_terminal = terminal.is_some();
        let Some(container) = self.by_key(key) else {
            return Ok(());
        };
        container.is_made(process, terminal)?;
        if container.forgotten.is_some() {
            container.kill();
            return Ok(());
        }
        container
            .save(&me)
            .map_err(|error| Failure::new("write the container's state", error))?;
        let Some(at) = self.containers.iter().position(|container| container.key == key) else {
            return Ok(());
        };
        // Outputs that are pipes are watched from the beginning.
        if has_terminal {
            self.watch_outputs(&self.containers[at])
                .map_err(|error| Failure::new("watch the terminal", error))?;
        }
        let mut container = self.containers.swap_remove(at);
        let watched = self.watch_root(&mut container);
        self.containers.push(container);
        watched.map_err(|error| Failure::new("watch who serves the container's root", error))
    }

    /// A container came to nothing; what there is of it goes, and then its creator is told.
    fn was_not_made(&mut self, key: u32, client: u32, why: &str) {
        let Some(container) = self.by_key(key) else {
            return;
        };
        if let Stage::Creating(Making {
            maker: Some(maker), ..
        }) = container.stage
        {
            process::kill(maker);
        }
        container.kill();
        container.forgotten.get_or_insert_default().failure = Some((client, why.to_owned()));
        container.begin_ending(Exit::Unseen);
    }

    /// Moves what an output has to say to the log and to those who listen.
    fn copy_output(&mut self, key: u32, number: usize) -> usize {
        let mut buffer = [0; READ_BYTES];
        let Some(at) = self.containers.iter().position(|container| container.key == key) else {
            return 0;
        };
        let container = &mut self.containers[at];
        match container.outputs[number].read(&mut buffer) {
            Heard::Nothing => 0,
            Heard::Ended => {
                self.end_output(at, number);
                0
            }
            Heard::Bytes(bytes) => {
                let said = &buffer[..bytes];
                self.records.clear();
                container.outputs[number]
                    .lines
                    .push(said, Moment::now(), &mut self.records);
                container.log.write(&self.records);
                self.records.shrink_to(KEPT_BYTES_MAX);
                self.tell_listeners(key, number, said);
                bytes
            }
        }
    }

    fn end_output(&mut self, at: usize, number: usize) {
        let container = &mut self.containers[at];
        let output = &mut container.outputs[number];
        output.fd = None;
        self.records.clear();
        output.lines.finish(Moment::now(), &mut self.records);
        container.log.write(&self.records);
    }

    fn tell_listeners(&mut self, key: u32, number: usize, said: &[u8]) {
        let wants = |client: &Client| {
            client
                .talk()
                .is_some_and(|talk| talk.container == key && talk.wants[number])
        };
        if !self.clients.iter().any(wants) {
            return;
        }
        let mut message = std::mem::take(&mut self.message);
        match number {
            0 => FromProcess::Stdout(said).write(&mut message),
            _ => FromProcess::Stderr(said).write(&mut message),
        }
        self.tell(key, |client| wants(client), &message, false);
        self.message = message;
    }

    /// Tells clients of a container something, and lets go of those who are gone.
    fn tell(&mut self, key: u32, whom: impl Fn(&Client) -> bool, message: &[u8], last: bool) {
        let behind = self.is_behind(key);
        let watch = &self.watch;
        let told = self.clients.iter_mut().filter(|client| whom(client));
        let (mut gone, mut over) = (Vec::new(), Vec::new());
        for client in told {
            let told = client
                .tell(message, last)
                .and_then(|()| client.rewatch(watch, behind));
            if told.is_err() {
                gone.push(client.key);
            } else if client.talk().is_some_and(crate::client::Talk::is_over) {
                over.push(client.key);
            }
        }
        // What they said before they went counts.
        gone.into_iter().for_each(|key| self.hear_talk(key, true));
        over.into_iter().for_each(|key| self.hang_up(key));
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> = self
            .containers
            .iter()
            .filter(|container| container.deadline().is_some_and(|deadline| deadline <= now))
            .map(|container| container.key)
            .collect();
        let mut cleared = Vec::new();
        for key in due {
            match self.by_key(key) {
                Some(Container {
                    stage: Stage::Creating(making),
                    ..
                }) => {
                    let client = making.client;
                    self.was_not_made(key, client, "making it took too long");
                }
                Some(container) if container.uncollected.is_some() => {
                    container.ask_for_exit(now);
                }
                Some(container) => cleared.extend(container.is_cleared(now).then_some(key)),
                None => {}
            }
        }
        cleared.into_iter().for_each(|key| self.finish(key));
    }

    /// Everything of the container has ended: takes its last words and says how it ended.
    fn finish(&mut self, key: u32) {
        let mut left = LAST_WORDS_BYTES_MAX;
        for number in 0..2 {
            loop {
                match self.copy_output(key, number) {
                    0 => break,
                    bytes if bytes >= left => break,
                    bytes => left -= bytes,
                }
            }
        }
        let Some(at) = self.containers.iter().position(|container| container.key == key) else {
            return;
        };
        (0..2).for_each(|number| self.end_output(at, number));
        if self.containers[at].forgotten.is_none()
            && let Err(error) = self.containers[at].save(&self.me)
        {
            crate::say(format_args!(
                "the end of container {} is not written down: {error}",
                self.containers[at].spec.id
            ));
            // Nobody shall wait for a disk.
            for client in std::mem::take(&mut self.containers[at].awaited) {
                self.answer(client, &Reply::Done);
            }
            if self.ending.is_none() {
                if let Stage::Ending(ending) = &mut self.containers[at].stage {
                    ending.next = Instant::now() + SAVE_PAUSE;
                }
                return;
            }
        }
        let container = self.containers.swap_remove(at);
        let mut message = Vec::new();
        FromProcess::Ended(container.exit_code().unwrap_or_default()).write(&mut message);
        self.tell(key, |client| client.talks_with(key), &message, true);
        if let Some(forgotten) = container.forgotten {
            drop(kedge_files::remove(&container.spec.state_path));
            if let Some((client, why)) = forgotten.failure {
                self.answer(client, &Reply::Failed(why));
            }
            for client in forgotten.asked {
                self.answer(client, &Reply::Done);
            }
        }
        for client in container.awaited {
            self.answer(client, &Reply::Done);
        }
    }
}

/// Ends of children, and the signals with which people end programs. They are not meant for us, since pods outlive the
/// agent, unless everything is told to end because the machine goes off.
fn signals() -> std::io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}
