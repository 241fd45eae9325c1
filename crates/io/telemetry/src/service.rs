//! The service manager: what systemd is told over the socket that it names, and its watchdog.
//!
//! Each word is one datagram; there is no answer, and a manager that does not read is no trouble of ours.

use crate::Scope;
use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// A status is a line that a person reads.
const STATUS_CHARS_MAX: usize = 200;
/// A watchdog that is to be fed more often is fed this often: it would cost more than it finds.
const FEED_MIN: Duration = Duration::from_millis(100);

/// What the environment says of the manager.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `NOTIFY_SOCKET`: a path, or behind `@` a name.
    pub notify_socket: Option<OsString>,
    /// `WATCHDOG_USEC`.
    pub watchdog_us: Option<String>,
    /// `WATCHDOG_PID`: whom the watchdog watches.
    pub watchdog_pid: Option<String>,
}

impl Environment {
    /// Of this process, which only a binary reads.
    pub fn of_this_process() -> Self {
        let text = |name| std::env::var(name).ok();
        Self {
            notify_socket: std::env::var_os("NOTIFY_SOCKET"),
            watchdog_us: text("WATCHDOG_USEC"),
            watchdog_pid: text("WATCHDOG_PID"),
        }
    }
}

/// The manager of this service; nobody, where none has started it.
#[derive(Debug)]
pub struct Manager {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// Finds the manager. A socket that cannot be spoken to is logged and left.
    pub fn find(environment: &Environment) -> Self {
        let to = environment
            .notify_socket
            .as_ref()
            .and_then(|name| match open(name) {
                Ok(to) => Some(to),
                Err(error) => {
                    tracing::warn!(socket = ?name, %error, "the service manager cannot be told anything");
                    None
                }
            });
        let own = std::process::id().to_string();
        let watched = environment.watchdog_pid.as_deref().is_none_or(|pid| pid == own);
        let every = environment.watchdog_us.as_deref().and_then(|us| us.parse().ok());
        let watchdog = every.filter(|us| watched && *us > 0).map(Duration::from_micros);
        Self { to, watchdog }
    }

    /// Everything has started.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// What a person reads in `systemctl status`.
    pub fn status(&self, status: &str) {
        self.say(&format!("STATUS={}", one_line(status)));
    }

    /// Stopping takes so long, whatever the unit says.
    pub fn extend_timeout(&self, by: Duration) {
        self.say(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    /// The process ends.
    pub fn stopping(&self, status: &str) {
        self.say(&format!("STOPPING=1\nSTATUS={}", one_line(status)));
    }

    /// Feeds the watchdog until the scope is cancelled, which it is as soon as a vital task has gone. A process whose
    /// threads all hang does not come here, and is not fed either. Returns at once where no watchdog is.
    pub async fn feed_watchdog(&self, scope: &Scope) {
        let Some(within) = self.watchdog else { return };
        let mut times = tokio::time::interval((within / 2).max(FEED_MIN));
        times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = scope.cancelled() => return,
                _ = times.tick() => self.say("WATCHDOG=1"),
            }
        }
    }

    fn say(&self, words: &str) {
        let Some((socket, address)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(words.as_bytes(), address) {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }
}

fn open(name: &OsString) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => {
            let why = "neither a path nor a name behind @";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, why));
        }
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that is busy must not hold up the service.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

fn one_line(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(STATUS_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager with a path below /tmp.
    struct Listener {
        socket: UnixDatagram,
        path: std::path::PathBuf,
    }

    impl Listener {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kedge-notify-{name}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Self {
                socket: UnixDatagram::bind(&path).unwrap(),
                path,
            }
        }

        fn environment(&self, watchdog_us: &str, watchdog_pid: Option<&str>) -> Environment {
            Environment {
                notify_socket: Some(self.path.clone().into()),
                watchdog_us: Some(watchdog_us.to_owned()),
                watchdog_pid: watchdog_pid.map(str::to_owned),
            }
        }

        /// `None` when nothing was said.
        fn heard(&self) -> Option<String> {
            self.socket.set_nonblocking(true).unwrap();
            let mut words = [0; 512];
            let length = self.socket.recv(&mut words).ok()?;
            Some(String::from_utf8_lossy(&words[..length]).into_owned())
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    #[test]
    fn the_manager_hears_each_step() {
        let listener = Listener::new("steps");
        let manager = Manager::find(&listener.environment("0", None));
        manager.ready("edge-1 runs");
        manager.status("two\nlines");
        manager.stopping("draining");
        assert_eq!(listener.heard().unwrap(), "READY=1\nSTATUS=edge-1 runs");
        assert_eq!(listener.heard().unwrap(), "STATUS=twolines");
        assert_eq!(listener.heard().unwrap(), "STOPPING=1\nSTATUS=draining");
        assert_eq!(listener.heard(), None);
    }

    #[test]
    fn nobody_and_nonsense_are_no_trouble() {
        Manager::find(&Environment::default()).ready("");
        for name in ["relative", "", "/nonexistent/socket", "@kedge-nobody"] {
            let environment = Environment {
                notify_socket: Some(name.into()),
                ..Environment::default()
            };
            Manager::find(&environment).ready("");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_the_vital_tasks_live() {
        let listener = Listener::new("watchdog");
        let scope = Scope::new();
        let manager = Manager::find(&listener.environment("30000000", None));
        let inner = scope.clone();
        scope.spawn("watchdog", async move { manager.feed_watchdog(&inner).await });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(15)).await;
            assert_eq!(listener.heard().as_deref(), Some("WATCHDOG=1"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        while listener.heard().is_some() {}
        scope.spawn_vital("hub", async {});
        scope.cancelled().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(listener.heard(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watchdog_of_another_process_is_not_fed() {
        let listener = Listener::new("other");
        let scope = Scope::new();
        for environment in [
            listener.environment("30000000", Some("1")),
            listener.environment("soon", None),
        ] {
            Manager::find(&environment).feed_watchdog(&scope).await;
        }
        assert_eq!(listener.heard(), None);
    }
}
