//! Builds the program that supervises pods, so that it can be carried in this library: small, without shared libraries,
//! whatever this library itself is built like.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "kedge-supervisor";
const PACKED: &str = "kedge-supervisor.gz";

/// What the program is made of, below `crates`. A change of anything else does not build it again.
const SOURCES: [&str; 5] = [
    "bins/supervisor",
    "io/containerlog",
    "io/packets",
    "model/containers",
    "model/supervision",
];

/// As small as it can be made: there is one of it for each pod.
const PROFILE: [&str; 6] = [
    "profile.release.opt-level=\"z\"",
    "profile.release.lto=\"fat\"",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    "profile.release.strip=true",
    "profile.release.debug=false",
];

/// What the build around this one has set for itself: wrappers of the compiler (clippy is one), flags, and folders.
const NOT_OURS: [&str; 5] = [
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
];

fn main() {
    let crates = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    for source in SOURCES {
        for part in ["src", "Cargo.toml"] {
            println!(
                "cargo::rerun-if-changed={}",
                crates.join(source).join(part).display()
            );
        }
    }
    println!(
        "cargo::rerun-if-changed={}",
        crates.join("../Cargo.lock").display()
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = env::var("TARGET").expect("cargo sets TARGET");
    // A folder of its own: the build around this one holds the lock on its folder until we are done.
    let folder = target_folder(&out).join("supervisor");
    build(&crates.join("bins/supervisor/Cargo.toml"), &folder, &target);
    let built = folder.join(&target).join("release").join(PACKAGE);
    let program = std::fs::read(&built).expect("the supervisor was just built and can be read");
    // Packed, it takes a third.
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let packed = packed.write_all(&program).and_then(|()| packed.finish());
    let packed = packed.expect("memory takes what is written to it");
    std::fs::write(out.join(PACKED), packed).expect("OUT_DIR can be written to");
}

fn build(manifest: &Path, folder: &Path, target: &str) {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    // Everything it needs was fetched for the build around this one, which needs it as well.
    cargo.args(["build", "--release", "--offline", "--quiet"]);
    cargo.arg("--manifest-path").arg(manifest);
    cargo.arg("--target-dir").arg(folder).args(["--target", target]);
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    for name in NOT_OURS {
        cargo.env_remove(name);
    }
    if env::var_os("RUSTC_WRAPPER").is_some_and(|wrapper| is_clippy(&wrapper)) {
        cargo.env_remove("RUSTC_WRAPPER");
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let status = cargo.status().expect("cargo can be started: it started us");
    assert!(status.success(), "the supervisor of pods could not be built");
}

fn is_clippy(wrapper: &OsString) -> bool {
    wrapper.to_string_lossy().contains("clippy")
}

/// Cargo marks the folder below which it builds; without the mark our own folder will do.
fn target_folder(out: &Path) -> &Path {
    out.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .unwrap_or(out)
}
