//! What people type, and what they read when it does not work.

use crate::tokens::{one_time, shared};
use crate::{connect, material, wiring};
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use kedge_config::{CloudCore, CloudFacts, LogFormat, Warning};
use kedge_flags::{OfficialLogs, OfficialVersion, version};
use kedge_pki::UnixTime;
use kedge_telemetry::{Scope, logs, signals};
use kedge_wire::NodeName;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONFIG_FILE: &str = "/etc/kubeedge/config/cloudcore.yaml";
/// How long sessions may take to say good-bye.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Carries pods and their configuration between the Kubernetes API and edge nodes.
#[derive(Debug, Parser)]
#[command(
    name = "cloudcore",
    disable_version_flag = true,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,

    /// Print every key of the configuration with its default, and exit.
    #[arg(long)]
    defaultconfig: bool,

    /// Print the keys to begin with, and exit.
    #[arg(long, conflicts_with = "defaultconfig")]
    minconfig: bool,

    #[command(flatten)]
    version: OfficialVersion,

    #[command(flatten)]
    official_logs: OfficialLogs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a join token: the shared one, or with --node a new one for that node alone.
    Token(TokenArgs),
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// The node that may join with the token, once and with one key.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    /// How long a token of one node lives, for example 30m or 24h.
    #[arg(long, value_name = "TIME", default_value = "1h", requires = "node")]
    ttl: String,

    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
}

/// Does what the command line says. What it prints goes to standard output; what fails is the error.
pub fn run(cli: &Cli) -> Result<()> {
    if let Some(version) = cli.version.asked() {
        return print(&version);
    }
    if cli.defaultconfig {
        return print(&CloudCore::default_yaml(&facts()?));
    }
    if cli.minconfig {
        return print(&CloudCore::minimal_yaml(&facts()?));
    }
    match &cli.command {
        Some(Command::Token(args)) => token(args),
        None => start(cli),
    }
}

fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("write to standard output")
}

fn facts() -> Result<CloudFacts> {
    let host = kedge_host::facts()?;
    let address = host.addresses.first();
    Ok(CloudFacts {
        primary_ip: address.map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string),
        hostname: host.hostname,
    })
}

/// Reads the file; every mistake in it is in the error.
fn read(path: &Path) -> Result<(CloudCore, Vec<Warning>)> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        anyhow!(
            "read {}: {error}; `cloudcore --minconfig` prints a configuration to begin with, and --config names \
             another file",
            path.display()
        )
    })?;
    let (config, warnings) =
        CloudCore::from_yaml(&text, &facts()?).with_context(|| path.display().to_string())?;
    let kubeconfig = &config.kube_api.kube_config;
    if !kubeconfig.is_empty() && !Path::new(kubeconfig).is_file() {
        bail!(
            "{}: kubeAPIConfig.kubeConfig: there is no file {kubeconfig}; name the kubeconfig of the cluster, or leave \
             the key out inside a cluster",
            path.display()
        );
    }
    Ok((config, warnings))
}

fn start(cli: &Cli) -> Result<()> {
    let (config, warnings) = read(&cli.config)?;
    let format = match config.log.format {
        LogFormat::Text => logs::Format::Text,
        LogFormat::Json => logs::Format::Json,
    };
    let filter = cli.official_logs.filter().unwrap_or(&config.log.filter);
    logs::install(filter, format, logs::stderr());
    tracing::info!(version = version(), config = %cli.config.display(), "CloudCore starts");
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if cli.official_logs.without_effect() {
        tracing::warn!("flags of klog other than -v have no effect in kedge: the log goes to standard error");
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(serve(config))
}

async fn serve(config: CloudCore) -> Result<()> {
    let stop = signals::stop_requested();
    let scope = Scope::new();
    let cluster = connect::connect(&config.kube_api).await?;
    // Nobody asks nodes anything here: there is no kubelet endpoint on 10003.
    let running = wiring::start(config, cluster, wiring::NodePorts::closed(), &scope).await?;
    // A door that is closed has no field.
    let shown = |address: Option<SocketAddr>| address.map(tracing::field::display);
    tracing::info!(
        hub = shown(running.hub),
        quic = shown(running.quic),
        https = %running.https,
        tunnel = shown(running.tunnel),
        "CloudCore runs"
    );
    let outcome = tokio::select! {
        signal = stop => signal.map(|signal| tracing::info!(?signal, "draining")).context("wait for signals"),
        failure = scope.failed() => Err(anyhow!("{failure}; the log says more")),
    };
    let report = scope.drain(DRAIN_DEADLINE).await;
    if !report.left.is_empty() {
        tracing::warn!(left = ?report.left, "tasks did not end in time");
    }
    outcome
}

/// Only the token goes to standard output, so that a script can take it.
fn token(args: &TokenArgs) -> Result<()> {
    let wanted = args
        .node
        .as_deref()
        .map(|node| wanted(node, &args.ttl))
        .transpose()?;
    let (config, _) = read(&args.config)?;
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let token = tokio.block_on(async {
        let cluster = connect::connect(&config.kube_api).await?;
        let authority = material::load_authority(&cluster, &config.hub).await?;
        match wanted {
            Some((node, ttl)) => one_time::issue(&cluster, &authority, &node, ttl, UnixTime::now()).await,
            None => shared::stored(&cluster, &authority, UnixTime::now()).await,
        }
    })?;
    print(&format!("{}\n", token.text()))
}

fn wanted(node: &str, ttl: &str) -> Result<(NodeName, Duration)> {
    let node = NodeName::new(node).context("--node")?;
    let lifetime = kedge_config::parse_go_duration(ttl)
        .with_context(|| format!("--ttl: a time such as 30m or 24h is expected, not {ttl:?}"))?;
    if !one_time::LIFETIME.contains(&lifetime) {
        bail!("--ttl: {ttl} is not between 1m and 720h");
    }
    Ok((node, lifetime))
}
