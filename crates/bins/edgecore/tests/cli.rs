//! Whole transcripts of the command line.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use expect_test::{Expect, expect, expect_file};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgecore"));
    // A kubelet of the machine that tests run on is no concern of theirs.
    command.env("CHECK_EDGECORE_ENVIRONMENT", "false");
    command
}

/// Exit code, standard output, standard error.
fn edgecore(args: &[&str]) -> (i32, String, String) {
    let out = program().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn transcript(args: &[&str]) -> String {
    let (code, stdout, stderr) = edgecore(args);
    format!("$ edgecore {}\n{stdout}{stderr}[{code}]\n", args.join(" "))
}

fn check(args: &[&str], expect: Expect) {
    expect.assert_eq(&transcript(args));
}

/// Name and address are all that differs from one machine to another.
fn of_any_machine(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines() {
        let line = match line.split_once(": ") {
            Some((key, value)) if value.contains(":1000") && !value.contains("127.0.0.1:10004") => {
                let port = value.trim_end_matches('"').rsplit_once(':').unwrap().1;
                format!("{key}: THIS_MACHINE:{port}")
            }
            Some((key, _)) if key.ends_with("hostnameOverride") => format!("{key}: THIS_MACHINE"),
            Some(_) | None => line.to_owned(),
        };
        shown.push_str(&line);
        shown.push('\n');
    }
    shown
}

/// A folder that goes with its owner.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kedge-edgecore-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_printed_configurations() {
    for flag in ["--defaultconfig", "--defaultconfig=true"] {
        let (_, printed, _) = edgecore(&[flag]);
        expect_file!["snapshots/defaultconfig.yaml"].assert_eq(&of_any_machine(&printed));
    }
    let (_, printed, _) = edgecore(&["--minconfig"]);
    expect_file!["snapshots/minconfig.yaml"].assert_eq(&of_any_machine(&printed));
}

#[test]
fn help_and_versions() {
    check(
        &["--help"],
        expect![[r#"
            $ edgecore --help
            Runs pods on an edge node, with or without the cloud

            Usage: edgecore [OPTIONS] [COMMAND]

            Commands:
              database  What the node holds: take it over, hand it back, seal it anew

            Options:
                  --config <FILE>           The configuration file [default: /etc/kubeedge/config/edgecore.yaml]
                  --defaultconfig[=<true>]  Print every key of the configuration with its default, and exit
                  --minconfig[=<true>]      Print the keys to begin with, and exit
                  --version[=<raw>]         Print the version, and exit; `--version=raw` prints all there is to say [possible values: true, false, raw]
              -v, --v <LEVEL>               How much the log says; from 4 on it says all that kedge.logFilter would
              -h, --help                    Print help
            [0]
        "#]],
    );
    check(
        &["--version"],
        expect![[r#"
        $ edgecore --version
        KubeEdge v1.23.1-kedge.0.1.0
        [0]
    "#]],
    );
    let (code, raw, _) = edgecore(&["--version=raw"]);
    assert!(
        code == 0 && raw.starts_with("gitVersion: v1.23.1-kedge."),
        "{raw}"
    );
}

#[test]
fn a_file_that_is_not_there_or_wrong_is_told_with_the_way_out() {
    check(
        &["--config", "/nonexistent/edgecore.yaml"],
        expect![[r#"
        $ edgecore --config /nonexistent/edgecore.yaml
        edgecore: read /nonexistent/edgecore.yaml: No such file or directory (os error 2); `edgecore --minconfig` prints a configuration to begin with, and --config names another file
        [1]
    "#]],
    );
    let directory = Directory::new("wrong");
    let text = "modules: {edgeHub: {heartbeat: soon}, edged: {nodeIP: here}}\n";
    let file = directory.file("edgecore.yaml", text);
    let shown = transcript(&["--config", &file]).replace(&file, "FILE");
    expect![[r#"
        $ edgecore --config FILE
        edgecore: FILE: the configuration has 2 mistakes:
          modules.edgeHub.heartbeat: a whole number from 1 to 3600 is expected, not "soon"
          modules.edged.nodeIP: an IP address is expected, not "here"
        [1]
    "#]]
    .assert_eq(&shown);
    // The operator's file is never rewritten.
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

/// Ends what it holds.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// No cloud, no token, no certificate, no containers, not even the network interface: it starts, says so to the service
/// manager, feeds its watchdog, and ends when it is asked to.
#[test]
fn it_starts_with_nothing_and_tells_the_service_manager() {
    starts_and_ends("TERM");
}

#[test]
fn it_drains_for_the_other_signals_that_end_a_process() {
    for signal in ["INT", "QUIT"] {
        starts_and_ends(signal);
    }
}

fn starts_and_ends(signal: &str) {
    let directory = Directory::new(signal);
    let dir = directory.0.display();
    let file = directory.file(
        "edgecore.yaml",
        &format!(
            "database: {{dataSource: {dir}/edgecore.db}}
modules:
  edgeHub:
    httpServer: https://127.0.0.1:1
    websocket: {{server: '127.0.0.1:1'}}
    tlsCaFile: {dir}/ca.crt
    tlsCertFile: {dir}/server.crt
    tlsPrivateKeyFile: {dir}/server.key
  edged:
    hostnameOverride: edge-1
    customInterfaceName: kedge-none
    rootDirectory: {dir}/kubelet
    tailoredKubeletConfig:
      containerRuntimeEndpoint: kedge://hollow
      podLogsDir: {dir}/logs
      staticPodPath: {dir}/manifests
      readOnlyPort: 0
kedge: {{runtimeDirectory: {dir}/runtime}}
"
        ),
    );
    let socket = directory.0.join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let began = Instant::now();
    let child = program()
        .args([
            "--config",
            &file,
            "-v",
            "0",
            "--logtostderr=true",
            "--log-flush-frequency",
            "5s",
        ])
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "1000000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let heard = || {
        let mut words = [0; 512];
        let length = manager.recv(&mut words).unwrap();
        String::from_utf8_lossy(&words[..length]).into_owned()
    };
    assert_eq!(heard(), "READY=1\nSTATUS=edge-1: without the cloud; pods go on");
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(heard(), "WATCHDOG=1");
    assert_eq!(heard(), "WATCHDOG=1");
    let pid = running.0.id().to_string();
    let sent = Command::new("kill").args(["-s", signal, &pid]).status();
    assert!(sent.unwrap().success());
    let last = loop {
        let words = heard();
        if words != "WATCHDOG=1" {
            break words;
        }
    };
    assert_eq!(last, "STOPPING=1\nSTATUS=draining; containers go on");
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}
