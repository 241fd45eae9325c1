//! Turns the interface definitions of `crates/model/grpc/proto` into the committed Rust beside them.
//!
//! The parser is `protox`, so that no protoc need be installed. Each file that it writes begins with the digest of the
//! definition it came from; a test of the crate compares them, so that a definition is not changed alone.

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The definitions, and the package that each declares: the name of the file that the generator writes.
const DEFINITIONS: &[(&str, &str)] = &[
    ("containerd_events", "containerd.services.events.v1"),
    ("cri", "runtime.v1"),
    ("csi", "csi.v1"),
    ("device_plugin", "v1beta1"),
    ("health", "grpc.health.v1"),
    ("plugin_registration", "pluginregistration"),
];

fn main() -> Result<()> {
    let house = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/model/grpc");
    let work = std::env::temp_dir().join(format!("kedge-xtask-grpc-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let check = std::env::args()
        .nth(1)
        .is_some_and(|argument| argument == "--check");
    let done = DEFINITIONS.iter().try_for_each(|(name, package)| {
        let text = generate(&house, &work, name, package)?;
        let target = house.join(format!("src/generated/{name}.rs"));
        if !check {
            return fs::write(&target, text).with_context(|| format!("write {}", target.display()));
        }
        let committed = fs::read_to_string(&target).with_context(|| format!("read {}", target.display()))?;
        ensure!(
            committed == text,
            "{name}.rs is not what {name}.proto says; run `cargo xtask grpc`"
        );
        Ok(())
    });
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    done
}

/// The text of the Rust file of one definition.
fn generate(house: &Path, work: &Path, name: &str, package: &str) -> Result<String> {
    let folder = house.join("proto");
    let definition = folder.join(format!("{name}.proto"));
    let digest = digest(&definition)?;
    let parsed = protox::compile([&definition], [&folder])
        .with_context(|| format!("parse {}", definition.display()))?;
    let mut config = prost_build::Config::new();
    // Sorted maps: what is sent is the same bytes each time, and what is printed in a test too.
    config.btree_map(["."]).out_dir(work);
    // No transport of tonic's: kedge-sockets carries the calls, with the HTTP/2 that kedge has anyhow.
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(work)
        .compile_fds_with_config(parsed, config)
        .with_context(|| format!("generate the code of {name}"))?;
    let made = work.join(format!("{package}.rs"));
    let code = fs::read_to_string(&made).with_context(|| format!("read {}", made.display()))?;
    Ok(format!(
        "// Made by `cargo xtask grpc`; do not edit.\n// sha256 of the definition: {digest}\n{code}"
    ))
}

fn digest(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a string takes every text");
    }
    Ok(text)
}
