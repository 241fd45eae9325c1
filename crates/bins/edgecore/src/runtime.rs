//! Builds the container runtime that the configuration names.

use anyhow::{Context, Result};
use kedge_config::{ContainerRuntime, Edged};
use kedge_runtime::Runtime;
use kedge_runtime::embedded::{Config, Embedded, HelperProgram, NetworkConfig, RootfsChoice};
use kedge_runtime::hollow::Hollow;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Opens the runtime and learns what it holds.
pub async fn open(config: &Edged) -> Result<Arc<dyn Runtime>> {
    match config.container_runtime {
        ContainerRuntime::Embedded => Ok(Arc::new(open_embedded(config).await?)),
        ContainerRuntime::Hollow => Ok(Arc::new(Hollow::new())),
    }
}

/// The built-in runtime, as itself: `kedge image` and `kedge down` need more than the trait.
pub async fn open_embedded(config: &Edged) -> Result<Embedded> {
    let network = NetworkConfig {
        bridge: config.bridge.clone(),
        pod_cidr: parse_cidr(&config.pod_cidr)?,
    };
    let config = Config {
        root: config.runtime_directory.clone().into(),
        helper: HelperProgram::this_program(),
        cgroup_root: config.cgroup_root.clone(),
        network: Some(network),
        rootfs: RootfsChoice::Automatic,
        log_bytes_max: config.log_bytes_max,
    };
    Ok(Embedded::open(config).await?)
}

fn parse_cidr(text: &str) -> Result<(Ipv4Addr, u8)> {
    let (address, length) = text
        .split_once('/')
        .with_context(|| format!("podCIDR {text:?} has no prefix length"))?;
    let address = address
        .parse()
        .with_context(|| format!("podCIDR {text:?} is not an IPv4 network"))?;
    let length = length.parse().ok().filter(|length| (8..=30).contains(length));
    Ok((
        address,
        length.with_context(|| format!("podCIDR {text:?} needs a prefix length from 8 to 30"))?,
    ))
}
