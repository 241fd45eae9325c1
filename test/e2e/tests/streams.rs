//! Talking with containers by the real kubectl: exec, attach, port-forward and cp, over WebSocket and over SPDY.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

use kedge_e2e::containerd::Containerd;
use kedge_e2e::daemons::{CloudPorts, Daemon, EdgeOptions, edgecore_yaml, node_is, shared_token};
use kedge_e2e::{FACT_DEADLINE, Kedge, Options, images, wait_for};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

/// `box` serves pages, `talker` says what it hears, `dead` has a container that has ended beside one that runs.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {app: streams}}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - name: main
      image: {image}
      command: [/bin/sh, -c, 'mkdir -p /www && echo page > /www/index.html && httpd -p 127.0.0.1:8080 -h /www; while :; do sleep 1000; done']
---
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: streams}}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - name: main
      image: {image}
      stdin: true
      command: [/bin/sh, -c, 'while read line; do echo \"heard $line\"; done; sleep 1000']
---
apiVersion: v1
kind: Pod
metadata: {name: dead, labels: {app: streams}}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - {name: gone, image: {image}, command: [/bin/true]}
    - {name: stays, image: {image}, command: [/bin/sleep, '100000']}
";

/// How kubectl carries streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    WebSocket,
    Spdy,
}

/// A cluster with one edge that runs real containers.
struct World {
    /// Ends before the cloud, so that it can say good-bye.
    _edge: Option<Daemon>,
    kedge: Kedge,
    _containerd: Option<Containerd>,
}

impl World {
    fn apply(&self, node: &str) {
        let pods = PODS.replace("{node}", node).replace("{image}", images::BUSYBOX);
        self.kedge.apply(&pods).ok();
        self.kedge.wait_running("app=streams", 3);
        wait_for("the container that ends", || {
            let state = "jsonpath={.status.containerStatuses[?(@.name==\"gone\")].state}";
            let shown = self.kedge.kubectl(&["get", "pod", "dead", "-o", state]).stdout;
            if shown.contains("terminated") {
                Ok(())
            } else {
                Err(shown)
            }
        });
        wait_for("a way to the node", || {
            let told = self.run(Carrier::Spdy, &["exec", "box", "--", "true"]);
            if told.code == Some(0) {
                Ok(())
            } else {
                Err(told.stderr)
            }
        });
    }

    fn command(&self, carrier: Carrier, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        self.prepare(&mut command, carrier, args);
        command
    }

    fn prepare(&self, command: &mut Command, carrier: Carrier, args: &[&str]) {
        let web_sockets = (carrier == Carrier::WebSocket).to_string();
        command
            .arg("--kubeconfig")
            .arg(self.kedge.kubeconfig())
            .args(args)
            .env("HOME", &self.kedge.data_dir)
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", &web_sockets)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", &web_sockets)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    fn run(&self, carrier: Carrier, args: &[&str]) -> Told {
        Told::from(self.command(carrier, args).output().unwrap())
    }

    /// With bytes on standard input.
    fn pipe(&self, carrier: Carrier, args: &[&str], input: &[u8]) -> Told {
        let mut child = self.command(carrier, args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writing = std::thread::spawn(move || stdin.write_all(&input));
        let told = Told::from(child.wait_with_output().unwrap());
        writing.join().unwrap().unwrap();
        told
    }
}

#[derive(Debug)]
struct Told {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl From<Output> for Told {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Told {
    #[track_caller]
    fn ok(self) -> Vec<u8> {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }
}

/// A process of ours that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes without a pattern that a stream could repeat by mistake.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn commands_and_their_endings(world: &World, carrier: Carrier) {
    let told = world.run(
        carrier,
        &["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"],
    );
    assert_eq!(
        (told.code, told.stdout.as_slice()),
        (Some(7), b"out\n".as_slice()),
        "{told:?}"
    );
    assert!(told.stderr.starts_with("err\n"), "{told:?}");
    assert!(
        told.stderr.contains("command terminated with exit code 7"),
        "{told:?}"
    );
    assert_eq!(world.run(carrier, &["exec", "box", "--", "true"]).ok(), b"");

    let told = world.run(carrier, &["exec", "box", "--", "/no/such/program"]);
    assert_ne!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.contains("/no/such/program"), "{told:?}");
    let told = world.run(carrier, &["exec", "dead", "-c", "gone", "--", "true"]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stderr.contains("container not found (\"gone\")"), "{told:?}");
    let told = world.run(carrier, &["exec", "nobody", "--", "true"]);
    assert!(told.stderr.contains("pods \"nobody\" not found"), "{told:?}");
}

fn a_megabyte_both_ways(world: &World, carrier: Carrier) {
    let bytes = noise(1 << 20);
    let back = world
        .pipe(carrier, &["exec", "-i", "box", "--", "cat"], &bytes)
        .ok();
    assert!(back == bytes, "{} bytes came back", back.len());
    let sum = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    sum.stdin.as_ref().unwrap().write_all(&bytes).unwrap();
    let wanted = sum.wait_with_output().unwrap().stdout;
    let sum = world.pipe(
        carrier,
        &["exec", "-i", "box", "--", "sh", "-c", "md5sum"],
        &bytes,
    );
    assert_eq!(sum.ok(), wanted);
}

/// A terminal that the test holds the other end of.
struct Terminal {
    master: File,
    shown: mpsc::Receiver<Vec<u8>>,
    all: String,
}

impl Terminal {
    fn open(columns: u16, rows: u16) -> (Self, OwnedFd) {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let path = Path::new(name.to_str().unwrap());
        let slave = File::options().read(true).write(true).open(path).unwrap();
        let master = File::from(master);
        let (tx, shown) = mpsc::channel();
        let mut reader = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // It fails when nobody has the other end any more.
            while let Ok(count) = reader.read(&mut piece) {
                if count == 0 || tx.send(piece[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let all = String::new();
        let terminal = Self { master, shown, all };
        terminal.resize(columns, rows);
        (terminal, slave.into())
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until this was shown, from now on.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        while !self.all.contains(text) {
            match self.shown.recv_timeout(FACT_DEADLINE) {
                Ok(bytes) => self.all.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("waited in vain for {text:?} in {:?}", self.all),
            }
        }
        let end = self.all.find(text).unwrap() + text.len();
        self.all.drain(..end);
    }
}

fn a_terminal(world: &World, carrier: Carrier) {
    let (mut terminal, slave) = Terminal::open(100, 30);
    // It makes the terminal the one of a session of its own, as a login does.
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", "kubectl"]);
    world.prepare(&mut command, carrier, &["exec", "-it", "box", "--", "sh"]);
    let end = || Stdio::from(slave.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end());
    let mut kubectl = Running(command.spawn().unwrap());
    drop(command);
    drop(slave);
    terminal.shows("# ");
    // A size is told as soon as there is one, which may be after the prompt.
    terminal.types("until [ \"$(stty size)\" = '30 100' ]; do :; done; echo first-$((1 + 1))\n");
    terminal.shows("first-2");
    terminal.resize(120, 40);
    terminal.types("until [ \"$(stty size)\" = '40 120' ]; do :; done; echo second-$((1 + 1))\n");
    terminal.shows("second-2");
    terminal.types("exit 5\n");
    assert_eq!(kubectl.0.wait().unwrap().code(), Some(5));
}

fn attach(world: &World, carrier: Carrier) {
    let mut command = world.command(carrier, &["attach", "-i", "talker"]);
    let mut child = Running(command.stdin(Stdio::piped()).spawn().unwrap());
    let mut stdin = child.0.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.0.stdout.take().unwrap()).lines();
    for word in ["one", "two"] {
        writeln!(stdin, "{word}").unwrap();
        let line = stdout.next().unwrap().unwrap();
        assert_eq!(line, format!("heard {word}"));
    }
}

/// A `kubectl port-forward` to one port of `box`.
struct Forward {
    port: u16,
    stderr: mpsc::Receiver<String>,
    _kubectl: Running,
}

impl Forward {
    fn start(world: &World, carrier: Carrier, port: u16) -> Self {
        let mut command = world.command(carrier, &["port-forward", "pod/box", &format!(":{port}")]);
        let mut kubectl = Running(command.spawn().unwrap());
        let mut stdout = BufReader::new(kubectl.0.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(kubectl.0.stderr.take().unwrap()).lines();
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        let Some(Ok(first)) = stdout.next() else {
            panic!("{:?}", rx.iter().collect::<Vec<_>>())
        };
        // `Forwarding from 127.0.0.1:33333 -> 8080`
        let address = first.split(' ').nth(2).unwrap();
        let port = address.rsplit(':').next().unwrap().parse().unwrap();
        std::thread::spawn(move || stdout.for_each(drop));
        Self {
            port,
            stderr: rx,
            _kubectl: kubectl,
        }
    }

    fn get(port: u16) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(FACT_DEADLINE)).unwrap();
        let _ = stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n");
        let mut answer = Vec::new();
        // A refused connection is reset.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn ports(world: &World, carrier: Carrier) {
    let pages = Forward::start(world, carrier, 8080);
    let port = pages.port;
    let readers: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || Forward::get(port)))
        .collect();
    for reader in readers {
        let page = reader.join().unwrap();
        assert!(page.ends_with("page\n"), "{page:?}");
    }
    assert!(Forward::get(port).ends_with("page\n"), "it goes on");

    let nothing = Forward::start(world, carrier, 81);
    assert_eq!(Forward::get(nothing.port), "");
    let mut told = String::new();
    while !told.contains("refused") {
        match nothing.stderr.recv_timeout(FACT_DEADLINE) {
            Ok(line) => told.push_str(&line),
            Err(_) => panic!("not told why there is no connection: {told:?}"),
        }
    }
    assert!(told.contains("error forwarding port 81 to pod"), "{told}");
}

fn files(world: &World, carrier: Carrier) {
    let dir = world.kedge.data_dir.join(format!("cp-{carrier:?}"));
    std::fs::create_dir(&dir).unwrap();
    let (here, back) = (dir.join("here"), dir.join("back"));
    let bytes = noise(300_000);
    std::fs::write(&here, &bytes).unwrap();
    let there = format!("box:/file-{carrier:?}");
    world.run(carrier, &["cp", here.to_str().unwrap(), &there]).ok();
    world.run(carrier, &["cp", &there, back.to_str().unwrap()]).ok();
    assert!(std::fs::read(&back).unwrap() == bytes);
}

fn everything(world: &World) {
    for carrier in [Carrier::WebSocket, Carrier::Spdy] {
        eprintln!("over {carrier:?}");
        commands_and_their_endings(world, carrier);
        a_megabyte_both_ways(world, carrier);
        a_terminal(world, carrier);
        attach(world, carrier);
        ports(world, carrier);
        files(world, carrier);
    }
    a_talk_that_nobody_reads(world);
}

/// A command whose output nobody takes holds up neither logs nor another command of its node.
fn a_talk_that_nobody_reads(world: &World) {
    let flood = [
        "exec",
        "box",
        "--",
        "sh",
        "-c",
        "echo $$ >/flood; echo begun; while :; do echo xxxxxxxxxxxxxxxx; done",
    ];
    let mut child = Running(world.command(Carrier::WebSocket, &flood).spawn().unwrap());
    let mut first = [0; 5];
    child.0.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"begun");
    let other = |carrier, script| {
        world
            .run(carrier, &["exec", "box", "--", "sh", "-c", script])
            .ok()
    };
    let mut before = Vec::new();
    wait_for("everything on the way is full", || {
        let said = other(Carrier::WebSocket, "grep wchar /proc/$(cat /flood)/io");
        let is_stuck = said == before;
        let text = String::from_utf8_lossy(&said).into_owned();
        before = said;
        if is_stuck { Ok(()) } else { Err(text) }
    });
    assert_eq!(other(Carrier::Spdy, "echo here"), b"here\n");
    let log = world.kedge.kubectl(&["logs", "talker"]).ok();
    assert!(log.contains("heard two"), "{log}");
}

#[test]
fn on_the_embedded_runtime() {
    let kedge = Kedge::up("streams", Options::default());
    images::import_busybox(&kedge);
    let node = kedge.node_name.clone();
    let world = World {
        _edge: None,
        kedge,
        _containerd: None,
    };
    world.apply(&node);
    everything(&world);
}

#[test]
fn on_containerd_with_an_edgecore_of_its_own() {
    const NODE: &str = "edge-streams-cri";
    let containerd = Containerd::start("streams");
    let options = Options {
        hollow: true,
        ..Options::default()
    };
    let kedge = Kedge::up("streams-cloud", options);
    let dir = kedge.data_dir.join(NODE);
    std::fs::create_dir(&dir).unwrap();
    std::fs::create_dir(dir.join("manifests")).unwrap();
    // By KubeEdge's convention.
    let ports = CloudPorts {
        link: kedge.hub_port,
        https: kedge.hub_port + 2,
        tunnel: kedge.hub_port + 4,
        monitor: 0,
    };
    let (endpoint, token) = (containerd.endpoint(), shared_token(&kedge));
    let cgroup_root = format!("cgroupRoot: {}", containerd.cgroup_root());
    let edge = EdgeOptions {
        kubelet: &[&cgroup_root],
        ..EdgeOptions::new(NODE, &token, ports, &endpoint)
    };
    let yaml = dir.join("edgecore.yaml");
    std::fs::write(&yaml, edgecore_yaml(&dir, ports, &edge)).unwrap();
    let daemon = Daemon::start("edgecore", &yaml, &dir.join("edgecore.log"));
    node_is(&kedge, NODE, " Ready ");
    let world = World {
        _edge: Some(daemon),
        kedge,
        _containerd: Some(containerd),
    };
    world.apply(NODE);
    everything(&world);
}
