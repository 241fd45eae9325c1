//! Builds the program that supervises pods, so that it can be carried in this library: small, without shared libraries,
//! whatever this library itself is built like. With the feature `wasm` it does the same with the interpreter of modules.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that the library carries.
struct Carried {
    package: &'static str,
    /// What it is made of, below `crates`; the first is its own folder. A change of anything else does not build it again.
    sources: &'static [&'static str],
    optimisation: &'static str,
    /// Whether everything it needs was fetched for the build around this one, which needs it as well.
    is_fetched: bool,
}

/// As small as it can be made: there is one of it for each pod.
const SUPERVISOR: Carried = Carried {
    package: "kedge-supervisor",
    sources: &[
        "bins/supervisor",
        "io/containerlog",
        "io/files",
        "io/packets",
        "model/containers",
        "model/supervision",
    ],
    optimisation: "profile.release.opt-level=\"z\"",
    is_fetched: true,
};

/// Only with the feature `wasm`. It computes, so it is made to be fast.
const INTERPRETER: Carried = Carried {
    package: "kedge-wasm",
    sources: &["bins/wasm"],
    optimisation: "profile.release.opt-level=3",
    is_fetched: false,
};

const PROFILE: [&str; 5] = [
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
    let own = env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let crates = PathBuf::from(own).join("../..");
    println!(
        "cargo::rerun-if-changed={}",
        crates.join("../Cargo.lock").display()
    );
    SUPERVISOR.carry(&crates);
    if env::var_os("CARGO_FEATURE_WASM").is_some() {
        INTERPRETER.carry(&crates);
    }
}

impl Carried {
    /// Builds the program, and packs it: so it takes a third.
    fn carry(&self, crates: &Path) {
        for source in self.sources {
            for part in ["src", "Cargo.toml"] {
                println!(
                    "cargo::rerun-if-changed={}",
                    crates.join(source).join(part).display()
                );
            }
        }
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let target = env::var("TARGET").expect("cargo sets TARGET");
        // A folder of its own: the build around this one holds the lock on its folder until we are done.
        let folder = target_folder(&out).join("supervisor");
        self.build(&crates.join(self.sources[0]).join("Cargo.toml"), &folder, &target);
        let built = folder.join(&target).join("release").join(self.package);
        let program = std::fs::read(&built).expect("the program was just built and can be read");
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        let packed = packed.write_all(&program).and_then(|()| packed.finish());
        let packed = packed.expect("memory takes what is written to it");
        let file = out.join(format!("{}.gz", self.package));
        std::fs::write(file, packed).expect("OUT_DIR can be written to");
    }

    fn build(&self, manifest: &Path, folder: &Path, target: &str) {
        let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
        cargo.args(["build", "--release", "--quiet"]);
        if self.is_fetched {
            cargo.arg("--offline");
        }
        cargo.arg("--manifest-path").arg(manifest);
        cargo.arg("--target-dir").arg(folder).args(["--target", target]);
        for setting in PROFILE.into_iter().chain([self.optimisation]) {
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
        assert!(status.success(), "{} could not be built", self.package);
    }
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
