//! An API and one or two CloudCores of our own, each a process, so that each is measured alone.

use crate::api::Listening;
use crate::budget;
use crate::cli::Transport;
use crate::plan::Plan;
use crate::proc;
use crate::processes::{self, Lines};
use crate::watch::{Target, join_token};
use anyhow::{Context, Result, bail};
use kedge_cluster::Cluster;
use std::ffi::OsStr;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin};
use tokio::time::Instant;

/// How long a part may take until it serves.
const START_MAX: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The API says one short line.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Listeners stay below the ports that the kernel gives to those who dial.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// What is shown of a log when a process did not start.
const LOG_LINES_SHOWN: usize = 10;
/// More than any run has.
const NODE_LIMIT: u32 = 100_000;

/// What runs for a bench.
pub struct Stage {
    pub target: Target,
    clouds: Vec<Child>,
    _api: Child,
    /// The API ends when this is closed.
    _api_input: ChildStdin,
}

struct Ports {
    hub: u16,
    quic: u16,
    https: u16,
    monitor: u16,
}

impl Stage {
    /// Starts everything. Each CloudCore must be able to hold all edges of the plan.
    pub async fn start(dir: &Path, cloudcore: &Path, clouds: usize, plan: &Plan) -> Result<Self> {
        let (api, api_input, listening) = start_api(dir).await?;
        let mut stage = Self {
            target: Target {
                hubs: Vec::new(),
                https: String::new(),
                token: String::new(),
                cluster: Some(Cluster::from_kubeconfig(&listening.admin_kubeconfig).await?),
                cloudcore_pids: Vec::new(),
                api_pid: api.id(),
                metrics: Vec::new(),
            },
            clouds: Vec::new(),
            _api: api,
            _api_input: api_input,
        };
        for number in 0..clouds {
            stage
                .start_cloud(dir, cloudcore, &listening, number, plan)
                .await?;
        }
        let cluster = stage.target.cluster.as_ref().context("the API has a client")?;
        stage.target.token = join_token(cluster).await?;
        Ok(stage)
    }

    async fn start_cloud(
        &mut self,
        dir: &Path,
        program: &Path,
        api: &Listening,
        number: usize,
        plan: &Plan,
    ) -> Result<()> {
        let ports = free_ports()?;
        let (config, log) = (
            dir.join(format!("cloudcore-{number}.yaml")),
            dir.join(format!("cloudcore-{number}.log")),
        );
        std::fs::write(&config, cloudcore_yaml(api, &ports, plan.transport))
            .with_context(|| format!("write {}", config.display()))?;
        let arguments = [OsStr::new("--config"), config.as_os_str()];
        let mut child = processes::start_tethered(program, &arguments, &log)?;
        let pid = child.id().context("CloudCore ended at once")?;
        // Only now: before it has become CloudCore the limit is ours anyway.
        for port in [ports.hub, ports.https] {
            await_listener(port, &mut child, &log).await?;
        }
        // All QUIC connections share one socket.
        if let (Some(limit), Transport::Websocket) = (proc::descriptor_limit(pid), plan.transport) {
            budget::check_cloudcore(pid, plan.edges(), limit)?;
        }
        self.clouds.push(child);
        self.target.cloudcore_pids.push(pid);
        let hub = match plan.transport {
            Transport::Websocket => ports.hub,
            Transport::Quic => ports.quic,
        };
        self.target.hubs.push(format!("127.0.0.1:{hub}"));
        if number == 0 {
            self.target.https = format!("https://127.0.0.1:{}", ports.https);
        }
        self.target
            .metrics
            .push(format!("http://127.0.0.1:{}/metrics", ports.monitor));
        Ok(())
    }

    /// Kills the first CloudCore, as a power cut would.
    pub async fn kill_first_cloud(&mut self) -> Result<()> {
        let child = self.clouds.first_mut().context("there is a CloudCore")?;
        child.kill().await.context("kill CloudCore")
    }

    /// Ends what is left.
    pub async fn stop(mut self) {
        for child in &mut self.clouds {
            // One that was killed before is gone.
            let _ = child.kill().await;
        }
    }
}

/// `cloudcore` beside this program.
pub fn find_cloudcore() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let path = own.with_file_name("cloudcore");
    if !path.exists() {
        bail!(
            "{} is missing: build it with `cargo build --release -p kedge-cloudcore`, or name one with --cloudcore",
            path.display()
        );
    }
    Ok(path)
}

async fn start_api(dir: &Path) -> Result<(Child, ChildStdin, Listening)> {
    let path = dir.to_str().context("the folder's name is not UTF-8")?;
    let mut child = processes::start_self(&["api", path])?;
    let input = child.stdin.take().context("the API has no input")?;
    let output = child.stdout.take().context("the API has no output")?;
    let mut lines = Lines::new(output, LINE_BYTES_MAX);
    let listening = tokio::time::timeout(START_MAX, lines.next())
        .await
        .with_context(|| format!("the embedded API did not serve within {START_MAX:?}"))??
        .context("the embedded API ended; its last words are above")?;
    Ok((child, input, listening))
}

async fn await_listener(port: u16, child: &mut Child, log: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait().context("look at CloudCore")? {
            bail!("CloudCore ended at its start ({status}):\n{}", tail(log));
        }
        if began.elapsed() > START_MAX {
            bail!(
                "CloudCore did not listen on port {port} within {START_MAX:?}:\n{}",
                tail(log)
            );
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

fn cloudcore_yaml(api: &Listening, ports: &Ports, transport: Transport) -> String {
    format!(
        "apiVersion: cloudcore.config.kubeedge.io/v1alpha2
kind: CloudCore
commonConfig:
  monitorServer: {{bindAddress: '127.0.0.1:{monitor}'}}
kubeAPIConfig: {{kubeConfig: '{kubeconfig}'}}
modules:
  cloudHub:
    advertiseAddress: [127.0.0.1]
    nodeLimit: {NODE_LIMIT}
    websocket: {{enable: true, address: 127.0.0.1, port: {hub}}}
    quic: {{enable: {quic_enabled}, address: 127.0.0.1, port: {quic}}}
    https: {{address: 127.0.0.1, port: {https}}}
  cloudStream: {{enable: false}}
kedge: {{logFilter: warn}}
",
        monitor = ports.monitor,
        kubeconfig = api.cloudcore_kubeconfig.display(),
        hub = ports.hub,
        quic_enabled = transport == Transport::Quic,
        quic = ports.quic,
        https = ports.https,
    )
}

/// Neighbouring ports that nobody listens on. Another program may take one before CloudCore does; then CloudCore
/// says so.
fn free_ports() -> Result<Ports> {
    let free = |port: &u16| {
        TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok()
    };
    // Two benches at one time begin to look at different places.
    let places = usize::from(PORTS.end - PORTS.start) / 4;
    let begin = usize::try_from(std::process::id()).unwrap_or(0) % places;
    for place in (begin..places).chain(0..begin) {
        let hub = PORTS.start + u16::try_from(place * 4).context("ports are 16 bits")?;
        if [hub, hub + 1, hub + 2, hub + 3].iter().all(free) {
            return Ok(Ports {
                hub,
                quic: hub + 1,
                https: hub + 2,
                monitor: hub + 3,
            });
        }
    }
    bail!("no four free ports from {} to {}", PORTS.start, PORTS.end)
}
