//! Made by `cargo xtask grpc`; do not edit the files beside this one.

pub mod containerd_events;
pub mod cri;
pub mod csi;
pub mod device_plugin;
pub mod health;
pub mod plugin_registration;
