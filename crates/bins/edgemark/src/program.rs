//! From the command line to the summary.

use crate::cli::{Bench, Cli, Command, Load, Run, Scenario, Transport};
use crate::conductor::Places;
use crate::plan::{self, Plan};
use crate::stage::{Stage, find_cloudcore};
use crate::summary::Summary;
use crate::watch::{Target, follow_nodes, join_token};
use crate::{api, crew, proc, processes, scenario};
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use kedge_cluster::Cluster;
use kedge_telemetry::channel::latest;
use kedge_telemetry::{Scope, logs, signals};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Memory that looks like a folder. What hollow edges write there costs no disk, which ten thousand real nodes would
/// not share either.
const FOLDER_IN_MEMORY: &str = "/dev/shm";
const HUB_PORT: u16 = 10_000;
const QUIC_PORT: u16 = 10_001;
const HTTPS_PORT: u16 = 10_002;

/// Runs the program.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgemark: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Crew => crew::main(),
        Command::Api { dir } => api::main(&dir),
        Command::Tethered { program, arguments } => processes::become_tethered(&program, &arguments),
        Command::Run(run) => conduct(run.scenario, &run.load, against(&run)),
        Command::Bench(bench) => conduct(bench.scenario, &bench.load, own(&bench)),
    }
}

/// Whom the edges shall dial.
enum Against {
    Given {
        hubs: Vec<String>,
        https: String,
        token: Option<String>,
        kubeconfig: Option<PathBuf>,
        cloudcore_pid: Option<u32>,
        metrics: Option<String>,
    },
    Own {
        cloudcore: Option<PathBuf>,
    },
}

fn against(run: &Run) -> Against {
    let port = match run.load.transport {
        Transport::Websocket => HUB_PORT,
        Transport::Quic => QUIC_PORT,
    };
    let hubs: Vec<String> = run.cloud.iter().map(|text| plan::address(text, port)).collect();
    let https = match (&run.https, hubs.first()) {
        (Some(text), _) => plan::address(text.trim_start_matches("https://"), HTTPS_PORT),
        (None, Some(hub)) => format!("{}:{HTTPS_PORT}", plan::host(hub)),
        (None, None) => String::new(),
    };
    Against::Given {
        hubs,
        https: format!("https://{https}"),
        token: run.token.clone(),
        kubeconfig: run.kubeconfig.clone(),
        cloudcore_pid: run.cloudcore_pid,
        metrics: run.metrics.clone(),
    }
}

fn own(bench: &Bench) -> Against {
    Against::Own {
        cloudcore: bench.cloudcore.clone(),
    }
}

/// Checks everything that can be checked before anything is started, then plays.
fn conduct(scenario: Scenario, load: &Load, against: Against) -> Result<()> {
    proc::raise_descriptor_limit().context("raise the limit of file descriptors")?;
    let machine = proc::machine();
    let plan = Plan::new(scenario, load, &machine)?;
    if let Against::Given {
        token, kubeconfig, ..
    } = &against
    {
        plan.check_given(token.is_some(), kubeconfig.is_some())?;
    }
    logs::install("warn", logs::Format::Text, logs::stderr());
    eprintln!("edgemark: {}", plan.needs(&machine));
    let folder = Folder::create(load.keep)?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let summary = tokio.block_on(async {
        let stop = signals::stop_requested();
        let scope = Scope::new();
        tokio::select! {
            biased;
            // The processes of hollow edges and of CloudCore end with this one.
            signal = stop => Err(anyhow!("ended by {:?}; nothing was measured", signal.context("wait for signals")?)),
            summary = perform(&plan, against, &folder, &scope) => summary,
        }
    })?;
    eprint!("{}", summary.verdict());
    let text = serde_json::to_string_pretty(&summary).context("write the summary")?;
    if let Some(path) = &load.json {
        std::fs::write(path, format!("{text}\n")).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{text}");
    Ok(())
}

async fn perform(plan: &Plan, against: Against, folder: &Folder, scope: &Scope) -> Result<Summary> {
    let places = Places {
        state: plan
            .state
            .clone()
            .unwrap_or_else(|| folder.path.join("certificates")),
        scratch: folder.path.join("nodes"),
    };
    let mut stage = None;
    let target = match against {
        Against::Own { cloudcore } => {
            let cloudcore = cloudcore.map_or_else(find_cloudcore, Ok)?;
            let clouds = if plan.scenario == Scenario::Replica { 2 } else { 1 };
            let started = Stage::start(&folder.path, &cloudcore, clouds, plan).await?;
            stage.insert(started).target.clone()
        }
        given @ Against::Given { .. } => given_target(given).await?,
    };
    let nodes = target.cluster.clone().map(|cluster| {
        let (tx, rx) = latest::channel(crate::watch::Seen::default());
        let follow = follow_nodes(cluster, scenario::prefixes(plan), tx);
        scope.spawn_until_cancelled("nodes", follow);
        rx
    });
    // Nobody shall tidy up an API that ends with the run.
    let plan = &Plan {
        keep: plan.keep || stage.is_some(),
        ..plan.clone()
    };
    let played = scenario::play(plan, target, &places, nodes, stage.as_mut(), scope).await;
    // Whoever follows the API stops before it goes.
    scope.cancel();
    if let Some(stage) = stage {
        stage.stop().await;
    }
    played
}

async fn given_target(against: Against) -> Result<Target> {
    let Against::Given {
        hubs,
        https,
        token,
        kubeconfig,
        cloudcore_pid,
        metrics,
    } = against
    else {
        bail!("a CloudCore of its own is started, not given");
    };
    let cluster = match &kubeconfig {
        Some(path) => Some(Cluster::from_kubeconfig(path).await?),
        None => None,
    };
    let token = match (token, &cluster) {
        (Some(token), _) => token,
        (None, Some(cluster)) => join_token(cluster).await?,
        (None, None) => bail!("edges need a join token"),
    };
    Ok(Target {
        hubs,
        https,
        token,
        cluster,
        cloudcore_pids: cloudcore_pid.into_iter().collect(),
        api_pid: None,
        metrics: metrics.into_iter().collect(),
    })
}

/// A folder for this run, readable by its owner only, removed at the end.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn create(keep: bool) -> Result<Self> {
        let name = format!("edgemark-{}", std::process::id());
        let make = |parent: &Path| {
            let path = parent.join(&name);
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .map(|()| path)
        };
        let path = make(Path::new(FOLDER_IN_MEMORY)).or_else(|_| {
            let parent = std::env::temp_dir();
            make(&parent).with_context(|| format!("create a folder in {}", parent.display()))
        })?;
        Ok(Self { path, keep })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("edgemark: files are kept in {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("edgemark: {} is not removed: {error}", self.path.display());
        }
    }
}
