//! One `kedge up` with everything around it.

use crate::kubectl::{Output, kubectl};
use crate::{ports, proc, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A binary of the release build.
pub fn binary(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    let path = target.join("release").join(name);
    assert!(
        path.exists(),
        "{} is missing; `cargo xtask e2e` builds it",
        path.display()
    );
    path
}

/// How to start.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub demo: bool,
    pub hollow: bool,
    /// Otherwise a new one below the system's folder for temporary files.
    pub data_dir: Option<PathBuf>,
    /// An ordinary user and what it executes; otherwise root executes the release build.
    pub user: Option<User>,
}

/// Who runs `kedge`, when it is not root.
#[derive(Debug, Clone)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// A copy of the program where this user may execute it.
    pub program: PathBuf,
}

impl Options {
    /// The program, as whoever shall run it.
    fn program(&self) -> Command {
        match &self.user {
            None => Command::new(binary("kedge")),
            Some(user) => {
                let mut command = Command::new(&user.program);
                command.uid(user.uid).gid(user.gid);
                command
            }
        }
    }
}

/// A running `kedge up`.
#[derive(Debug)]
pub struct Kedge {
    pub data_dir: PathBuf,
    pub api_port: u16,
    pub hub_port: u16,
    pub node_name: String,
    /// How the next [`Kedge::start`] starts.
    pub options: Options,
    child: Option<Child>,
    lines: Receiver<String>,
    seen: Vec<Value>,
}

impl Kedge {
    /// Starts in a new data directory and waits until the node is ready.
    pub fn up(name: &str, options: Options) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let data_dir = options.data_dir.clone().unwrap_or_else(|| {
            std::env::temp_dir().join(format!("kedge-e2e-{name}-{}-{number}", std::process::id()))
        });
        let (api_port, hub_port) = free_ports();
        let (_, lines) = mpsc::channel();
        let node_name = format!("edge-{name}");
        let mut kedge = Self {
            data_dir,
            api_port,
            hub_port,
            node_name,
            options,
            child: None,
            lines,
            seen: Vec::new(),
        };
        kedge.start();
        kedge.wait_ready();
        kedge
    }

    /// Starts the process on the data directory as it is.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = self.options.program();
        command
            .args(["--json", "--data-dir"])
            .arg(&self.data_dir)
            .arg("up");
        command.args(["--node-name", &self.node_name]);
        command.args([
            "--api-port",
            &self.api_port.to_string(),
            "--hub-port",
            &self.hub_port.to_string(),
        ]);
        if self.options.demo {
            command.arg("--demo");
        }
        if self.options.hollow {
            command.arg("--hollow");
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kedge starts");
        let stdout = child.stdout.take().expect("stdout was piped");
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        self.lines = rx;
        self.seen.clear();
        self.child = Some(child);
    }

    /// Waits for the line that says that the node is ready.
    pub fn wait_ready(&mut self) -> Value {
        self.wait_line("node ready", |line| line["step"] == "node ready")
    }

    /// Waits for a line of progress.
    pub fn wait_line(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        if let Some(line) = self.seen.iter().find(|line| fits(line)) {
            return line.clone();
        }
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    eprintln!("kedge: {line}");
                    let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    self.seen.push(value.clone());
                    if fits(&value) {
                        return value;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("waited in vain for {what}; log:\n{}", self.log_tail())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("kedge ended before {what}; log:\n{}", self.log_tail())
                }
            }
        }
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.data_dir.join("kedge.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    /// kubectl against this API.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        kubectl(&self.kubeconfig(), args, "")
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, yaml: &str) -> Output {
        kubectl(&self.kubeconfig(), &["apply", "-f", "-"], yaml)
    }

    /// `kedge` itself on this data directory.
    pub fn kedge(&self, args: &[&str]) -> Output {
        let output = self
            .options
            .program()
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(args)
            .output();
        Output::from(output.expect("kedge starts"))
    }

    /// SIGKILL, as a power cut would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
    }

    /// SIGINT, as Ctrl-C would; waits until it has drained.
    pub fn interrupt(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let sent = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success());
        child.wait().expect("our own child can be waited for").code()
    }

    /// Waits until `count` pods of `selector` are Running, and gives their names.
    pub fn wait_running(&self, selector: &str, count: usize) -> Vec<String> {
        wait_for(&format!("{count} running pods of {selector}"), || {
            let output = self.kubectl(&[
                "get",
                "pods",
                "-l",
                selector,
                "--field-selector=status.phase=Running",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}",
            ]);
            let names: Vec<String> = output.stdout.lines().map(str::to_owned).collect();
            if names.len() == count {
                Ok(names)
            } else {
                Err(format!("{names:?} {}", output.stderr))
            }
        })
    }

    /// Pids of the supervisors of this kedge's pods.
    pub fn supervisors(&self) -> Vec<u32> {
        proc::supervisors(&self.data_dir)
    }
}

impl Drop for Kedge {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill")
                .args(["-TERM", &child.id().to_string()])
                .status();
            let _ = child.wait();
        }
        let down = self
            .options
            .program()
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("down")
            .output();
        if let Ok(output) = down
            && !output.status.success()
        {
            eprintln!("kedge down: {}", String::from_utf8_lossy(&output.stderr));
        }
        if std::env::var_os("KEDGE_E2E_KEEP").is_none() {
            // Volumes in memory of pods that a test left running.
            let _ = kedge_host::mounts::detach_below(&self.data_dir);
            let _ = std::fs::remove_dir_all(&self.data_dir);
        }
    }
}

/// A port for the API, and one for the hub with the two others that belong to it.
pub fn free_ports() -> (u16, u16) {
    // The others are two and four above the hub's.
    let api = ports::block(6);
    (api, api + 1)
}
