//! Pods whose containers are plain processes: everything of a supervisor but the terminals, and no rights are needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use kedge_supervision::talk::{FromProcess, MESSAGE_BYTES_MAX as PIECE_MAX, ToProcess};
use kedge_supervision::{
    Adopted, Beginning, Container, MESSAGE_BYTES_MAX, Order, Phase, RECORD, Reply, Request, SOCKET,
    StateRecord, SupervisorRecord, VERSION, decode, encode,
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// No fact that a test waits for takes this long on a working machine.
const FACT_WAIT_MAX: Duration = Duration::from_secs(60);

/// A sandbox's directory with its supervisor.
struct Pod {
    directory: PathBuf,
}

impl Pod {
    fn begin(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("kedge-supervisor-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let pod = Self { directory };
        assert_eq!(pod.supervise(Vec::new()), Reply::Done);
        pod
    }

    fn supervise(&self, adopted: Vec<Adopted>) -> Reply {
        let beginning = Beginning {
            version: VERSION,
            directory: self.directory.clone(),
            process_pin: None,
            adopted,
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_kedge-supervisor"))
            .arg("supervise")
            .arg(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let bytes = serde_json::to_vec(&beginning).unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let said = child.wait_with_output().unwrap().stdout;
        decode(&said).unwrap()
    }

    fn send(&self, bytes: &[u8], descriptor: Option<&File>) -> OwnedFd {
        let socket = kedge_packets::connect(&self.directory, SOCKET).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(FACT_WAIT_MAX)).unwrap();
        kedge_packets::send(&socket, bytes, descriptor.map(AsFd::as_fd)).unwrap();
        socket
    }

    fn ask(&self, order: Order) -> (OwnedFd, Reply) {
        let request = Request {
            version: VERSION,
            order,
        };
        let socket = self.send(&encode(&request).unwrap(), None);
        let reply = answer(&socket);
        (socket, reply)
    }

    /// Makes and starts a container that runs a program.
    fn run(&self, id: &str, stdin: bool, program: &[&str]) -> Container {
        let container = self.container(id, stdin);
        std::fs::create_dir_all(&container.directory).unwrap();
        let mut arguments = vec!["maker".to_owned(), "make".to_owned()];
        arguments.push(container.directory.to_string_lossy().into_owned());
        arguments.extend(program.iter().map(|word| (*word).to_owned()));
        let request = Request {
            version: VERSION,
            order: Order::Create {
                container: Box::new(container.clone()),
                arguments,
            },
        };
        let socket = self.send(&encode(&request).unwrap(), Some(&File::open(maker()).unwrap()));
        assert_eq!(answer(&socket), Reply::Done);
        assert!(matches!(state(&container).phase, Phase::Created));
        assert_eq!(self.ask(Order::Start { id: id.to_owned() }).1, Reply::Done);
        container
    }

    fn container(&self, id: &str, stdin: bool) -> Container {
        let directory = self.directory.join(id);
        Container {
            id: id.to_owned(),
            state_path: self.directory.join(format!("{id}.json")),
            log_path: self.directory.join(format!("{id}.log")),
            log_bytes_max: 1_000_000,
            groups: Vec::new(),
            memory_events: None,
            start_socket: directory.join("start.sock"),
            stdin,
            stdin_once: stdin,
            tty: false,
            directory,
        }
    }

    fn ended(&self, container: &Container) -> (i32, String) {
        let id = container.id.clone();
        assert_eq!(self.ask(Order::Await { id }).1, Reply::Done);
        match state(container).phase {
            Phase::Exited {
                exit_code, message, ..
            } => (exit_code, message),
            other => panic!("it has ended: {other:?}"),
        }
    }

    fn attach(&self, id: &str, stdin: bool) -> OwnedFd {
        let (socket, reply) = self.ask(Order::Attach {
            id: id.to_owned(),
            stdin,
            stdout: true,
            stderr: true,
        });
        assert_eq!(reply, Reply::Done);
        socket
    }

    fn supervisor(&self) -> u32 {
        let bytes = std::fs::read(self.directory.join(RECORD)).unwrap();
        decode::<SupervisorRecord>(&bytes).unwrap().process.pid
    }

    /// Ends everything, and proves that the supervisor is gone.
    fn end(self) {
        let process = handle(self.supervisor());
        assert_eq!(self.ask(Order::End).1, Reply::Done);
        wait_for_end(&process);
        assert!(!self.directory.join(SOCKET).exists() && !self.directory.join(RECORD).exists());
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn maker() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("examples/maker")
}

fn answer(socket: &OwnedFd) -> Reply {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let received = kedge_packets::receive(socket, &mut buffer).unwrap();
    decode(&buffer[..received.bytes]).unwrap()
}

fn state(container: &Container) -> StateRecord {
    decode(&std::fs::read(&container.state_path).unwrap()).unwrap()
}

/// The texts of a log's lines, each with its stream.
fn log(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .map(|words| format!("{} {}", words[1], words[3..].join(" ")))
        .collect()
}

fn handle(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap()
}

fn wait_for_end(process: &OwnedFd) {
    let mut fds = [rustix::event::PollFd::new(process, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
}

fn say(socket: &OwnedFd, what: ToProcess<'_>) {
    let mut message = Vec::new();
    what.write(&mut message);
    kedge_packets::send(socket, &message, None).unwrap();
}

/// What is said until a text or the end comes.
fn hear(socket: &OwnedFd, until: &str) -> (String, Option<i32>) {
    let mut heard = String::new();
    let mut buffer = vec![0; PIECE_MAX];
    while until.is_empty() || !heard.contains(until) {
        let received = kedge_packets::receive(socket, &mut buffer).unwrap();
        match FromProcess::read(&buffer[..received.bytes]) {
            Some(FromProcess::Stdout(bytes) | FromProcess::Stderr(bytes)) => {
                heard.push_str(&String::from_utf8_lossy(bytes));
            }
            Some(FromProcess::Ended(code)) => return (heard, Some(code)),
            other => panic!("{other:?} after {heard:?}"),
        }
    }
    (heard, None)
}

#[test]
fn what_a_container_says_and_how_it_ends_is_written_down() {
    let pod = Pod::begin("ends");
    let container = pod.run(
        "one",
        false,
        &["/bin/sh", "-c", "echo out; echo err >&2; printf tail; exit 3"],
    );
    assert_eq!(pod.ended(&container), (3, String::new()));
    let mut lines = log(&container.log_path);
    lines.sort();
    assert_eq!(lines, ["stderr err", "stdout out", "stdout tail"]);
    let killed = pod.run("two", false, &["/bin/sh", "-c", "kill -9 $$"]);
    assert_eq!(pod.ended(&killed).0, 137);
    let (_, again) = pod.ask(Order::Start { id: "one".into() });
    assert!(
        matches!(&again, Reply::Failed(why) if why.contains("does not know it")),
        "{again:?}"
    );
    pod.end();
}

#[test]
fn people_listen_and_one_of_them_speaks() {
    let pod = Pod::begin("talk");
    let container = pod.run("cat", true, &["/bin/cat"]);
    let (speaker, listener) = (pod.attach("cat", true), pod.attach("cat", false));
    let long = "x".repeat(20_000);
    say(&speaker, ToProcess::Bytes(format!("{long}\n").as_bytes()));
    for socket in [&speaker, &listener] {
        assert_eq!(hear(socket, "\n").0.len(), 20_001);
    }
    // Only who was let in to speak is heard.
    say(&listener, ToProcess::Bytes(b"not heard\n"));
    say(&speaker, ToProcess::Bytes(b"last\n"));
    say(&speaker, ToProcess::End);
    assert_eq!(
        hear(&listener, ""),
        ("last\n".to_owned(), Some(0)),
        "its input has ended, so it does"
    );
    assert_eq!(hear(&speaker, ""), ("last\n".to_owned(), Some(0)));
    assert_eq!(pod.ended(&container).0, 0);
    pod.end();
}

#[test]
fn who_hangs_up_is_missed_only_where_he_alone_had_the_input() {
    let pod = Pod::begin("hangs-up");
    let container = pod.run("cat", true, &["/bin/cat"]);
    let listener = pod.attach("cat", false);
    drop(pod.attach("cat", false));
    let speaker = pod.attach("cat", true);
    // He does not listen to what he is told himself.
    say(&speaker, ToProcess::Bytes(b"first\n"));
    hear(&listener, "first\n");
    // More than the pipe holds, and he is gone before it is read.
    let text = "y".repeat(30_000);
    for _ in 0..5 {
        say(&speaker, ToProcess::Bytes(text.as_bytes()));
    }
    drop(speaker);
    let (heard, code) = hear(&listener, "");
    assert_eq!((heard.len(), code), (150_000, Some(0)));
    assert_eq!(pod.ended(&container).0, 0);
    pod.end();
}

#[test]
fn a_killed_supervisor_is_replaced() {
    let pod = Pod::begin("replaced");
    let script = "while read word; do echo \"heard $word\"; done; exec sleep 1000";
    let container = pod.run(
        "one",
        true,
        &[
            "/bin/sh",
            "-c",
            "echo up; while :; do echo more; sleep 0.01; done",
        ],
    );
    let quiet = pod.run("two", true, &["/bin/sh", "-c", script]);
    assert_eq!(
        pod.supervise(Vec::new()),
        Reply::Failed("lock the sandbox: it has a supervisor".into())
    );
    let supervisor = handle(pod.supervisor());
    rustix::process::pidfd_send_signal(&supervisor, Signal::KILL).unwrap();
    wait_for_end(&supervisor);
    let adopted = [&container, &quiet].map(|container| Adopted {
        container: container.clone(),
        state: state(container),
    });
    assert_eq!(pod.supervise(adopted.to_vec()), Reply::Done);
    let listener = pod.attach("one", false);
    hear(&listener, "more\nmore\n");
    let process = handle(state(&container).process.pid);
    rustix::process::pidfd_send_signal(&process, Signal::TERM).unwrap();
    let sentence = "its supervisor was killed; the exit code is not known";
    // Kernels from 6.15 on tell it to the next supervisor, if anybody collects the process.
    let known = [(143, String::new()), (255, sentence.to_owned())];
    let ended = pod.ended(&container);
    assert!(known.contains(&ended), "{ended:?}");
    let process = handle(state(&quiet).process.pid);
    pod.end();
    wait_for_end(&process);
}

#[test]
fn a_container_is_forgotten_whatever_it_does() {
    let pod = Pod::begin("forgotten");
    let container = pod.run("one", false, &["/bin/sh", "-c", "exec sleep 1000"]);
    let process = handle(state(&container).process.pid);
    let discard = || pod.ask(Order::Discard { id: "one".into() }).1;
    assert_eq!(discard(), Reply::Done);
    wait_for_end(&process);
    assert!(!container.state_path.exists());
    assert_eq!(discard(), Reply::Done, "it is forgotten already");
    // What makes containers may fail, or not even be a program.
    let broken = pod.container("broken", false);
    std::fs::create_dir_all(&broken.directory).unwrap();
    for (program, why) in [
        ("/bin/false", "ended without an answer"),
        ("/dev/null", "start the program"),
    ] {
        let order = Order::Create {
            container: Box::new(broken.clone()),
            arguments: vec!["maker".into()],
        };
        let request = Request {
            version: VERSION,
            order,
        };
        let socket = pod.send(&encode(&request).unwrap(), Some(&File::open(program).unwrap()));
        let reply = answer(&socket);
        assert!(
            matches!(&reply, Reply::Failed(told) if told.contains(why)),
            "{reply:?}"
        );
    }
    assert!(!broken.state_path.exists());
    pod.end();
}

#[test]
fn what_is_not_understood_is_refused() {
    let pod = Pod::begin("hostile");
    for bytes in [&b"{"[..], b"[]", b"\0\xff", &[b'x'; 20_000]] {
        let reply = answer(&pod.send(bytes, None));
        assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    }
    let newer = Request {
        version: VERSION + 1,
        order: Order::End,
    };
    assert_eq!(
        answer(&pod.send(&encode(&newer).unwrap(), None)),
        Reply::Version(VERSION)
    );
    // Who says nothing, or leaves, disturbs nobody.
    let silent: Vec<OwnedFd> = (0..40)
        .map(|_| kedge_packets::connect(&pod.directory, SOCKET).unwrap())
        .collect();
    let attached = pod.ask(Order::Attach {
        id: "nobody".into(),
        stdin: true,
        stdout: true,
        stderr: true,
    });
    assert!(matches!(attached.1, Reply::Failed(_)));
    drop(silent);
    pod.end();
}

/// In a process namespace of its own, whose first process is this test under the name that systemd has at the very end.
#[test]
fn a_machine_that_goes_off_waits_for_no_supervisor() {
    // There the numbers of processes, which names of directories are made of, begin anew.
    let directory = std::env::temp_dir().join(format!("kedge-island-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let island = Command::new("unshare")
        .env("TMPDIR", &directory)
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_machine_goes_off", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&island.stdout);
    assert!(
        island.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&island.stderr)
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
#[ignore = "on an island"]
fn the_machine_goes_off() {
    assert_eq!(std::process::id(), 1, "on an island");
    // One has nothing to end, one ends with its container, and one has a container that does not listen.
    let pods = ["idle", "obedient", "deaf"].map(Pod::begin);
    let obedient = pods[1].run("a", false, &["/bin/sleep", "1000000"]);
    let deaf = pods[2].run(
        "b",
        true,
        &[
            "/bin/sh",
            "-c",
            "trap '' TERM; while read -r line; do echo \"deaf to $line\"; done",
        ],
    );
    // What it says before anybody listens is not heard, so it is asked.
    let listener = pods[2].attach("b", true);
    say(&listener, ToProcess::Bytes(b"all\n"));
    hear(&listener, "deaf to all\n");
    let supervisors = pods.each_ref().map(|pod| handle(pod.supervisor()));
    let containers = [obedient, deaf].map(|container| match state(&container).phase {
        Phase::Running { .. } => handle(state(&container).process.pid),
        other => panic!("it runs: {other:?}"),
    });

    // A service that ends tells its processes, too; pods outlive it.
    tell_everybody(&supervisors);
    // Whoever has answered twice has heard of it.
    for pod in pods.iter().chain(&pods) {
        let id = "none".to_owned();
        assert_eq!(pod.ask(Order::Await { id }).1, Reply::Done);
    }
    std::fs::write("/proc/1/comm", "systemd-shutdown").unwrap();
    tell_everybody(&supervisors);
    tell_everybody(&containers);
    supervisors.iter().chain(&containers).for_each(wait_for_end);
    for pod in pods {
        std::fs::remove_dir_all(pod.directory).unwrap();
    }
}

fn tell_everybody(processes: &[OwnedFd]) {
    for process in processes {
        rustix::process::pidfd_send_signal(process, Signal::TERM).unwrap();
    }
}
