//! A program that ends with its owner.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to end after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks at a program that ends.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 30;

/// A running program; its output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    tells: bool,
}

impl Process {
    /// Starts it; what it says is appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log can be written");
        let errors = file.try_clone().expect("a descriptor can be copied");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = child
            .unwrap_or_else(|error| panic!("{} does not start: {error}", command.get_program().display()));
        Self {
            child,
            log: log.to_owned(),
            tells: false,
        }
    }

    /// A failed story shows the end of its log.
    #[must_use]
    pub fn telling(mut self) -> Self {
        self.tells = true;
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a fact that comes true only while the program runs.
    ///
    /// # Panics
    /// When it ends first, or the fact does not come true.
    #[track_caller]
    pub fn wait_for<T>(&mut self, fact: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
        crate::wait_for(fact, || {
            assert!(
                matches!(self.child.try_wait(), Ok(None)),
                "it ended before {fact}:\n{}",
                self.tail()
            );
            look()
        })
    }

    /// Resident memory in KiB.
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn rss_kib(&self) -> u64 {
        let bytes = kedge_e2e::proc::rss_bytes(self.pid());
        bytes.unwrap_or_else(|| panic!("it ended:\n{}", self.tail())) / 1024
    }

    /// SIGKILL, as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// SIGTERM, and the end of the program.
    pub fn stop(self) {
        drop(self);
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn ended_within(&mut self, deadline: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::park_timeout(LOOK_INTERVAL),
                Ok(Some(_)) | Err(_) => return true,
            }
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status();
        if !self.ended_within(STOP_DEADLINE) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if self.tells && std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.tail());
        }
    }
}
