//! What must be true before anything is started; each refusal says the way out.

use crate::cli::Up;
use anyhow::{Result, bail};
use std::net::{Ipv4Addr, TcpListener};

/// Ports that follow from `--hub-port`, by KubeEdge's convention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HubPorts {
    pub(crate) link: u16,
    pub(crate) bootstrap: u16,
    pub(crate) tunnel: u16,
}

impl HubPorts {
    pub(crate) fn from(hub_port: u16) -> Self {
        Self {
            link: hub_port,
            bootstrap: hub_port + 2,
            tunnel: hub_port + 4,
        }
    }
}

/// Looks at the machine; what it returns is worth a word to the person.
pub(crate) fn check(up: &Up) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if !up.hollow {
        if !kedge_host::is_root() {
            bail!(
                "real containers need root; run `kedge up` as root, or add --hollow to run everything but real \
                 containers (and --data-dir to keep the data where you may write)"
            );
        }
        kedge_host::cgroups::layout()
            .and_then(|layout| layout.require_controllers())
            .map_err(|error| {
                anyhow::anyhow!(
                    "{error}; mount the control groups, or add --hollow to run without real containers"
                )
            })?;
        if kedge_runtime::rootless::is_on_the_machines_network() {
            notes.push(kedge_runtime::rootless::without_network());
        }
        if !kedge_host::mounts::knows_file_system(&kedge_host::Root::machine(), "overlay").unwrap_or(false) {
            notes.push(
                "this kernel has no overlay file system: images are copied, which is slower and larger"
                    .into(),
            );
        }
    }
    require_ports(up)?;
    Ok(notes)
}

/// Refuses ports that another program has.
pub(crate) fn require_ports(up: &Up) -> Result<()> {
    for (port, option) in wanted_ports(up) {
        if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    bail!(
                        "port {port} is in use by another program; stop it or choose another port with {option}"
                    )
                }
                _ => bail!("port {port} cannot be used ({error}); choose another port with {option}"),
            }
        }
    }
    Ok(())
}

fn wanted_ports(up: &Up) -> [(u16, &'static str); 4] {
    let hub = HubPorts::from(up.hub_port);
    [
        (up.api_port, "--api-port"),
        (hub.link, "--hub-port"),
        (hub.bootstrap, "--hub-port (certificates are served two above it)"),
        (hub.tunnel, "--hub-port (log streams are served four above it)"),
    ]
}
