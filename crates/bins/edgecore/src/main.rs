//! `edgecore`: EdgeCore alone, for KubeEdge's or kedge's CloudCore.

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use kedge_config::{EdgeCore, EdgeFacts};
use kedge_edgecore::{runtime, wiring};
use kedge_telemetry::{Scope, logs, signals};
use kedge_transport::Plug;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs pods and devices on an edge node, with or without the cloud.
#[derive(Debug, Parser)]
#[command(name = "edgecore", version)]
struct Cli {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/kubeedge/config/edgecore.yaml"
    )]
    config: PathBuf,
}

fn main() -> ExitCode {
    if let Some(code) = kedge_runtime::helper::main_if_called() {
        return code;
    }
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgecore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let text =
        std::fs::read_to_string(&cli.config).with_context(|| format!("read {}", cli.config.display()))?;
    let facts = kedge_host::facts()?;
    let primary_ip = facts
        .addresses
        .first()
        .map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string);
    let facts = EdgeFacts {
        hostname: facts.hostname,
        primary_ip,
    };
    let (config, warnings) =
        EdgeCore::from_yaml(&text, &facts).with_context(|| cli.config.display().to_string())?;
    logs::install(&config.log_filter, logs::Format::Text, logs::stderr());
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    tokio.block_on(async {
        let stop = signals::stop_requested();
        let scope = Scope::new();
        let runtime = runtime::open(&config.edged).await?;
        let node = config.edged.node_name.clone();
        wiring::start(config, runtime, Plug::new(), &scope).await?;
        tracing::info!(node, "EdgeCore runs");
        let outcome = tokio::select! {
            signal = stop => signal.map(|signal| tracing::info!(?signal, "draining")).context("wait for signals"),
            failure = scope.failed() => Err(anyhow!("{failure}; the log says more")),
        };
        let report = scope.drain(wiring::DRAIN_DEADLINE).await;
        if !report.left.is_empty() {
            tracing::warn!(left = ?report.left, "tasks did not end in time");
        }
        outcome
    })
}

/// EdgeCore waits most of the time; two threads keep one busy task from holding up the other parts.
const WORKER_THREADS: usize = 2;
