//! Chores of this repository: `cargo xtask <chore>`.

mod layers;
mod shape;
mod sources;

use anyhow::{Context, Result, bail};
use std::process::{Command, ExitCode};

const HELP: &str = "\
usage: cargo xtask <chore>

  check    format, clippy with warnings as errors, layers, shape
  test     every test that needs neither root nor other programs
  layers   fails with the reason where a crate imports what its layer must not
  golden   runs the golden tests; with --update rewrites their expectations
  shape    fails where a file or function has grown too large; lists the largest
  grpc     makes the Rust of crates/model/grpc from its definitions; `--check` fails where it is not what they say
  city     draws the workspace: layers, crates, lines
  e2e      end-to-end tests with real containers and the real kubectl (root)
  bench    offline_power_on | all_in_one | cri_start | pod_start | edge_at_rest [SECONDS] | embedded_start [RUNS] |
           embedded_memory | image_unpack [RUNS], in release builds (root)
           edgemark SCENARIO [FLAGS]: hollow edges against CloudCore; `edgemark bench --help` lists both
";

/// What end-to-end tests and benchmarks start.
const RELEASE_BINARIES: &[&str] = &[
    "build",
    "--release",
    "--package",
    "kedge",
    "--package",
    "kedge-cloudcore",
    "--package",
    "kedge-edgecore",
];

fn main() -> ExitCode {
    match chore(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["check"] => {
            cargo(&["fmt", "--all", "--check"])?;
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ])?;
            layers::check()?;
            shape::check()
        }
        ["test"] => cargo(&["test", "--workspace"]),
        ["layers"] => layers::check(),
        ["golden"] => cargo(&["test", "--package", "kedge-wire"]),
        ["golden", "--update"] => cargo_with(
            &["test", "--workspace", "--no-fail-fast"],
            &[("UPDATE_EXPECT", "1")],
        ),
        ["shape"] => shape::check(),
        ["grpc", rest @ ..] => {
            // Its own workspace and target folder: nobody else builds the forty crates of the generator.
            let run = [
                "run",
                "--quiet",
                "--manifest-path",
                "xtask/grpc/Cargo.toml",
                "--target-dir",
                "target/xtask-grpc",
                "--",
            ];
            cargo(&[&run[..], rest].concat())
        }
        ["city"] => layers::city(),
        ["e2e"] => {
            cargo(RELEASE_BINARIES)?;
            let test = ["test", "--package", "kedge-e2e", "--features", "real"];
            cargo(&[&test[..], &["--", "--test-threads=1", "--nocapture"]].concat())
        }
        [
            "bench",
            name @ ("offline_power_on" | "all_in_one" | "edge_at_rest" | "cri_start" | "pod_start"
            | "embedded_start" | "embedded_memory" | "image_unpack"),
            args @ ..,
        ] => {
            cargo(RELEASE_BINARIES)?;
            let bench = ["bench", "--package", "kedge-e2e", "--features", "real", "--bench"];
            cargo(&[&bench[..], &[name, "--"], args].concat())
        }
        ["bench", "edgemark", scenario @ ..] => {
            cargo(&[
                "build",
                "--release",
                "--package",
                "kedge-edgemark",
                "--package",
                "kedge-cloudcore",
            ])?;
            let run = [
                "run",
                "--release",
                "--quiet",
                "--package",
                "kedge-edgemark",
                "--",
                "bench",
            ];
            cargo(&[&run[..], scenario].concat())
        }
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("no chore {:?}; `cargo xtask help` lists them", other.join(" ")),
    }
}

fn cargo(args: &[&str]) -> Result<()> {
    cargo_with(args, &[])
}

fn cargo_with(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(sources::root())
        .status()
        .with_context(|| format!("run cargo {}", args.join(" ")))?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}
