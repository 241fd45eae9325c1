//! The server in a process of its own, and what it uses.

use anyhow::{Context, Result};
use kedge_apiserver::{ApiServer, Config, Limits, Ports, StorageAt};
use kedge_telemetry::Scope;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};

/// Serves until its standard input ends.
pub(crate) async fn serve(directory: PathBuf) -> Result<()> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name));
    let config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        storage: StorageAt::Directory(directory.join("objects")),
        server_certificate_pem: read("server.crt")?,
        server_key_pem: read("server.key")?,
        client_ca_pem: read("ca.crt")?,
        client_ca_key_pem: None,
        service_account_key_pem: read("account.key")?,
        service_account_issuer: "https://kubernetes.default.svc".to_owned(),
        root_ca_pem: read("ca.crt")?,
        cluster_cidr: None,
        trusted_groups: Vec::new(),
        limits: Limits::default(),
    };
    let server = ApiServer::open(config, Ports::default()).await?;
    println!("{}", server.address());
    let scope = Scope::new();
    let inner = scope.clone();
    scope.spawn("apiserver", async move { server.run(inner).await });
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    scope.drain(std::time::Duration::from_secs(10)).await;
    Ok(())
}

/// A directory that goes with the run. It lies where the build's own files lie: on a disk, not in memory.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Result<Self> {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("apiserver-load-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Process {
    pub(crate) address: SocketAddr,
    /// Killed when dropped.
    child: tokio::process::Child,
}

impl Process {
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        let mut child = tokio::process::Command::new(std::env::current_exe()?)
            .arg("--serve")
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let out = child.stdout.take().context("standard output of the server")?;
        let address = BufReader::new(out)
            .lines()
            .next_line()
            .await?
            .context("the server says where it listens")?;
        Ok(Self {
            address: address.parse()?,
            child,
        })
    }

    fn proc(&self, file: &str) -> String {
        let id = self.child.id().unwrap_or_default();
        std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default()
    }

    pub(crate) fn rss_mb(&self) -> f64 {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap_or_default();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
        kib / 1024.0
    }

    /// Time on processors since it started.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        const TICKS_A_SECOND: f64 = 100.0; // USER_HZ, the same on every Linux
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks = |place: usize| {
            fields
                .get(place)
                .and_then(|t| t.parse::<f64>().ok())
                .unwrap_or_default()
        };
        (ticks(11) + ticks(12)) / TICKS_A_SECOND
    }
}
