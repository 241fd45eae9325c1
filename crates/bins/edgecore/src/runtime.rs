//! Builds the container runtime that the configuration names.

use crate::settings;
use anyhow::{Context, Result};
use kedge_config::{ContainerRuntime, EdgeCore};
use kedge_runtime::Runtime;
use kedge_runtime::cri::Cri;
use kedge_runtime::embedded::{CniDirectories, Config, Embedded, HelperProgram, NetworkConfig, RootfsChoice};
use kedge_runtime::hollow::Hollow;
use kedge_runtime::rootless;
use std::sync::Arc;

/// Below the runtime's directory: where an ordinary user's node is written down.
pub const NODE: &str = "node";

/// An ordinary user has the built-in runtime in a node of its own, which goes on when EdgeCore has ended. Before there is
/// a second thread: the kernel lets only a process with one change its users.
pub fn enter_node(config: &EdgeCore) -> Result<()> {
    let built_in = match config.edged.container_runtime {
        ContainerRuntime::Embedded => true,
        ContainerRuntime::Cri { .. } | ContainerRuntime::Hollow => false,
    };
    if !built_in || !rootless::is_needed() {
        return Ok(());
    }
    let directory = std::path::Path::new(&config.edged.runtime_directory).join(NODE);
    rootless::enter(&directory, rootless::Need::Everything)
        .context("the built-in runtime needs root, or what an ordinary user needs for it")?;
    if rootless::is_on_the_machines_network() {
        tracing::warn!("{}", rootless::without_network());
    }
    Ok(())
}

/// Opens the runtime. The built-in one learns what it holds; one behind a socket may be away until later.
pub async fn open(config: &EdgeCore) -> Result<Arc<dyn Runtime>> {
    match &config.edged.container_runtime {
        ContainerRuntime::Cri { socket, image_socket } => Ok(Arc::new(Cri::connect(settings::cri(
            config,
            socket,
            image_socket,
        ))?)),
        ContainerRuntime::Embedded => Ok(Arc::new(open_embedded(config).await?)),
        ContainerRuntime::Hollow => Ok(Arc::new(Hollow::new())),
    }
}

/// The built-in runtime, as itself: `kedge image` and `kedge down` need more than the trait.
pub async fn open_embedded(config: &EdgeCore) -> Result<Embedded> {
    let edged = &config.edged;
    let network = NetworkConfig {
        bridge: edged.bridge.clone(),
        pod_cidrs: edged.pod_cidrs.clone(),
        cni: (!edged.cni.configurations.is_empty()).then(|| CniDirectories {
            configurations: edged.cni.configurations.clone().into(),
            programs: edged.cni.programs.iter().map(Into::into).collect(),
        }),
    };
    let config = Config {
        root: edged.runtime_directory.clone().into(),
        helper: HelperProgram::this_program(),
        cgroup_root: edged.cgroup_root.clone(),
        network: Some(network),
        rootfs: RootfsChoice::Automatic,
        device_directories: edged.cdi_directories.iter().map(Into::into).collect(),
        log_bytes_max: edged.log_bytes_max,
        registries: settings::registries(config),
    };
    Ok(Embedded::open(config).await?)
}
