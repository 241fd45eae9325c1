//! The words of the gRPC interfaces that an edge node speaks: container runtime (CRI v1), storage plug-ins (CSI v1),
//! registration of plug-ins, device plug-ins (v1beta1), and health checks.
//!
//! * Input: the definitions in `proto`, our own subsets of the public interfaces: what kedge uses, with the field
//!   numbers that everybody has. `cargo xtask grpc` makes the Rust from them, which is committed, so that no build
//!   needs a generator.
//! * Output: one module an interface with its messages, the stub of a client and the frame of a server.
//! * Never: opens a socket. A client is built over any carrier of gRPC, for example a channel of `kedge-sockets`:
//!   `RuntimeServiceClient::with_origin(channel, origin)`.

pub use tonic;

#[allow(clippy::all, clippy::unwrap_used, unreachable_pub, dead_code)]
#[rustfmt::skip]
mod generated;

pub use generated::{containerd_events, cri, csi, device_plugin, health, plugin_registration};

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    #[test]
    fn the_code_is_that_of_the_definitions() {
        let pairs = [
            (
                "cri",
                include_str!("../proto/cri.proto"),
                include_str!("generated/cri.rs"),
            ),
            (
                "csi",
                include_str!("../proto/csi.proto"),
                include_str!("generated/csi.rs"),
            ),
            (
                "device_plugin",
                include_str!("../proto/device_plugin.proto"),
                include_str!("generated/device_plugin.rs"),
            ),
            (
                "health",
                include_str!("../proto/health.proto"),
                include_str!("generated/health.rs"),
            ),
            (
                "plugin_registration",
                include_str!("../proto/plugin_registration.proto"),
                include_str!("generated/plugin_registration.rs"),
            ),
        ];
        for (name, definition, code) in pairs {
            let digest = Sha256::digest(definition);
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let noted = code.lines().nth(1).unwrap_or_default();
            assert!(
                noted.ends_with(&digest),
                "{name}.proto changed; run `cargo xtask grpc` (the code says {noted:?})"
            );
        }
    }
}
