//! What people type, and what they read when it does not work.

use crate::database::{self, DatabaseAct};
use crate::{node, rest, runtime, settings, wiring};
use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand};
use kedge_config::{EdgeCore, EdgeFacts, LogFormat, Warning};
use kedge_flags::{OfficialLogs, OfficialVersion, version};
use kedge_host::Root;
use kedge_telemetry::channel::latest;
use kedge_telemetry::service::{Environment, Manager};
use kedge_telemetry::{Scope, logs, signals};
use kedge_transport::Plug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CONFIG_FILE: &str = "/etc/kubeedge/config/edgecore.yaml";
/// What went well is said on standard output.
const DATABASE_LOG: &str = "warn";
/// EdgeCore waits most of the time; two threads keep one busy task from holding up the other parts.
const WORKER_THREADS: usize = 2;

/// Runs pods on an edge node, with or without the cloud.
#[derive(Debug, Parser)]
#[command(
    name = "edgecore",
    disable_version_flag = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE, global = true)]
    config: PathBuf,

    /// Print every key of the configuration with its default, and exit.
    #[arg(long, value_name = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true)]
    defaultconfig: bool,

    /// Print the keys to begin with, and exit.
    #[arg(long, value_name = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true)]
    minconfig: bool,

    #[command(flatten)]
    version: OfficialVersion,

    #[command(flatten)]
    official_logs: OfficialLogs,

    /// Without one EdgeCore runs.
    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// What the node holds: take it over, hand it back, seal it anew
    #[command(subcommand, disable_help_subcommand = true)]
    Database(DatabaseAct),
}

/// Does what the command line says. What it prints goes to standard output; what fails is the error.
pub fn run(cli: &Cli) -> Result<()> {
    if let Some(version) = cli.version.asked() {
        return print(&version);
    }
    if cli.defaultconfig {
        return print(&EdgeCore::default_yaml(&facts()?));
    }
    if cli.minconfig {
        return print(&EdgeCore::minimal_yaml(&facts()?));
    }
    match &cli.act {
        Some(Act::Database(act)) => of_database(cli, *act),
        None => start(cli),
    }
}

fn of_database(cli: &Cli, act: DatabaseAct) -> Result<()> {
    let (config, _) = read(&cli.config)?;
    logs::install(DATABASE_LOG, logs::Format::Text, logs::stderr());
    let told = database::run(act, &settings::store(&config))?;
    print(&format!("{told}\n"))
}

fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("write to standard output")
}

/// A machine without network has no address, and starts all the same.
fn facts() -> Result<EdgeFacts> {
    let host = kedge_host::facts()?;
    let address = host.addresses.first();
    Ok(EdgeFacts {
        hostname: host.hostname,
        primary_ip: address.map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string),
    })
}

/// Reads the file; every mistake in it is in the error.
fn read(path: &Path) -> Result<(EdgeCore, Vec<Warning>)> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        anyhow!(
            "read {}: {error}; `edgecore --minconfig` prints a configuration to begin with, and --config names another \
             file",
            path.display()
        )
    })?;
    EdgeCore::from_yaml(&text, &facts()?).with_context(|| path.display().to_string())
}

fn start(cli: &Cli) -> Result<()> {
    let (mut config, warnings) = read(&cli.config)?;
    let format = match config.log_format {
        LogFormat::Text => logs::Format::Text,
        LogFormat::Json => logs::Format::Json,
    };
    let filter = cli.official_logs.filter().unwrap_or(&config.log_filter);
    logs::install(filter, format, logs::stderr());
    tracing::info!(version = version(), config = %cli.config.display(), "EdgeCore starts");
    runtime::enter_node(&config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if cli.official_logs.without_effect() {
        tracing::warn!("flags of klog other than -v have no effect in kedge: the log goes to standard error");
    }
    let check_kubelet = std::env::var_os("CHECK_EDGECORE_ENVIRONMENT").is_none_or(|check| check != "false");
    node::check(&config, &Root::machine(), check_kubelet)?;
    node::settle_address(&mut config);
    node::settle_oom_score(config.edged.oom_score_adj);
    let manager = Arc::new(Manager::find(&Environment::of_this_process()));
    rest::prepare();
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    tokio.block_on(serve(config, manager))
}

async fn serve(config: EdgeCore, manager: Arc<Manager>) -> Result<()> {
    let stop = signals::stop_requested();
    let scope = Scope::new();
    let containers = runtime::open(&config).await?;
    let node = config.edged.node_name.clone();
    let running = wiring::start(config, containers, Plug::new(), &scope).await?;
    tracing::info!(node, "EdgeCore runs");
    manager.ready(&status(&node, false));
    scope.spawn("watchdog", {
        let (manager, scope) = (Arc::clone(&manager), scope.clone());
        async move { manager.feed_watchdog(&scope).await }
    });
    scope.spawn_until_cancelled("service status", tell(Arc::clone(&manager), node, running.online));
    scope.spawn_until_cancelled("memory", rest::keep_small());
    let outcome = tokio::select! {
        signal = stop => signal.map(|signal| tracing::info!(?signal, "draining")).context("wait for signals"),
        failure = scope.failed() => Err(anyhow!("{failure}; the log says more")),
    };
    if let Some(shutdown) = &running.shutdown
        && tokio::task::spawn_blocking(kedge_host::start::machine_stops)
            .await
            .unwrap_or(false)
    {
        manager.stopping("the machine shuts down: pods are ended");
        manager.extend_timeout(shutdown.limit + wiring::DRAIN_DEADLINE);
        shutdown.end_pods().await;
    }
    manager.stopping("draining; containers go on");
    let report = scope.drain(wiring::DRAIN_DEADLINE).await;
    if !report.left.is_empty() {
        tracing::warn!(left = ?report.left, "tasks did not end in time");
    }
    outcome
}

/// What `systemctl status` shows.
fn status(node: &str, online: bool) -> String {
    match online {
        true => format!("{node}: connected to the cloud"),
        false => format!("{node}: without the cloud; pods go on"),
    }
}

async fn tell(manager: Arc<Manager>, node: String, mut online: latest::Receiver<bool>) {
    while online.changed().await.is_ok() {
        let now = *online.borrow_and_update();
        manager.status(&status(&node, now));
    }
}
