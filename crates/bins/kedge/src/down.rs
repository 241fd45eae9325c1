//! `kedge down`.

use crate::data_dir::DataDir;
use crate::edge_file;
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use kedge_config::ContainerRuntime;
use kedge_runtime::rootless::{self, Node};
use std::path::Path;
use std::time::{Duration, Instant};

/// The drain of `kedge up` has three parts of ten seconds at most.
const STOP_MAX: Duration = Duration::from_secs(40);
/// Pause between two looks at the process.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Stops the process, then the containers and their network. Data, images and certificates stay.
pub(crate) async fn down(dir: &DataDir, node: Option<Node>, json: bool) -> Result<()> {
    let mut progress = Progress::new(json);
    end_pods(dir, &mut progress).await?;
    if let Some(node) = node {
        node.end().context("end the node")?;
        progress.step("node ended", "its namespaces go with this process");
    }
    Ok(())
}

async fn end_pods(dir: &DataDir, progress: &mut Progress) -> Result<()> {
    match dir.run()? {
        Some(run) => {
            stop(dir, run.pid).await?;
            progress.step("stopped", &format!("process {}", run.pid));
        }
        None => progress.note("kedge does not run"),
    }
    let file = edge_file::path(dir);
    if !file.exists() {
        return Ok(());
    }
    let _held = dir.hold()?;
    let config = edge_file::read(&file)?;
    match config.edged.container_runtime {
        // An ordinary user whose node was ended has no containers.
        ContainerRuntime::Embedded if rootless::is_needed() => {}
        ContainerRuntime::Embedded => {
            let runtime = kedge_edgecore::runtime::open_embedded(&config).await?;
            runtime.purge().await.context("stop the containers")?;
            // Secrets and other volumes in memory: mounted, they would keep the data directory from being removed.
            kedge_host::mounts::detach_below(Path::new(&config.edged.root_directory))
                .context("unmount the volumes of pods")?;
            progress.step(
                "containers stopped",
                "sandboxes, bridge and control groups are gone; data and images stay",
            );
        }
        ContainerRuntime::Cri { .. } | ContainerRuntime::Hollow => {}
    }
    Ok(())
}

async fn stop(dir: &DataDir, pid: u32) -> Result<()> {
    let identity = kedge_host::process::Identity::of(pid).with_context(|| format!("find process {pid}"))?;
    // The record is only valid while its writer holds the lock, which it does at this moment: the pid is the writer's.
    if dir.run()?.is_none_or(|run| run.pid != pid) {
        return Ok(());
    }
    if let Some(process) = identity.open()? {
        process.signal(kedge_host::process::signal_named("SIGTERM")?)?;
    }
    let began = Instant::now();
    while dir.run()?.is_some() {
        if began.elapsed() > STOP_MAX {
            bail!(
                "process {pid} has not ended within {STOP_MAX:?}; its log is {}",
                dir.log_file().display()
            );
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}
