//! Builds the container runtime that the configuration names.

use crate::settings;
use anyhow::Result;
use kedge_config::{ContainerRuntime, EdgeCore};
use kedge_runtime::Runtime;
use kedge_runtime::cri::Cri;
use kedge_runtime::embedded::{CniDirectories, Config, Embedded, HelperProgram, NetworkConfig, RootfsChoice};
use kedge_runtime::hollow::Hollow;
use std::sync::Arc;

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
