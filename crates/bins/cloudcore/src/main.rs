//! `cloudcore`: CloudCore alone, beside an existing Kubernetes API.

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use kedge_cloudcore::wiring;
use kedge_cluster::Cluster;
use kedge_config::{CloudCore, CloudFacts};
use kedge_telemetry::channel::ask;
use kedge_telemetry::{Scope, logs, signals};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Carries pods, config and device state between the Kubernetes API and edge nodes.
#[derive(Debug, Parser)]
#[command(name = "cloudcore", version)]
struct Cli {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/kubeedge/config/cloudcore.yaml"
    )]
    config: PathBuf,
}

/// How long sessions may take to say good-bye.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloudcore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let text =
        std::fs::read_to_string(&cli.config).with_context(|| format!("read {}", cli.config.display()))?;
    let primary_ip = kedge_host::facts()?
        .addresses
        .first()
        .map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string);
    let (config, warnings) = CloudCore::from_yaml(&text, &CloudFacts { primary_ip })
        .with_context(|| cli.config.display().to_string())?;
    logs::install(&config.log_filter, logs::Format::Text, logs::stderr());
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(serve(config))
}

async fn serve(config: CloudCore) -> Result<()> {
    let stop = signals::stop_requested();
    let scope = Scope::new();
    let cluster = match config.kube_config.as_str() {
        "" => Cluster::in_cluster().await?,
        path => Cluster::from_kubeconfig(Path::new(path)).await?,
    };
    // Nobody asks for logs here: the kubelet endpoint on 10003 comes with its own issue.
    let (_node_get, nobody_asks) = ask::channel("node gets", 1);
    let running = wiring::start(config, cluster, nobody_asks, &scope).await?;
    tracing::info!(hub = %running.hub, https = %running.https, tunnel = ?running.tunnel, "CloudCore runs");
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
