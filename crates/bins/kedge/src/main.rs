//! `kedge`: a Kubernetes API, CloudCore and EdgeCore in one process.

mod cli;
mod credentials;
mod data_dir;
mod demo;
mod down;
mod edge_file;
mod image;
mod manifest;
mod preflight;
mod progress;
mod rootless;
mod status;
mod up;
mod wiring;

use anyhow::{Context, Result};
use clap::Parser;
use cli::{Cli, Command};
use data_dir::DataDir;
use std::process::ExitCode;

/// Cloud, edge and API share these; more threads would only cost memory on a machine that has as many cores.
const WORKER_THREADS: usize = 2;

fn main() -> ExitCode {
    // A container's supervisor is this program again; it must not start a runtime with threads.
    if let Some(code) = kedge_runtime::helper::main_if_called() {
        return code;
    }
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if cli.json {
                println!("{}", serde_json::json!({"error": format!("{error:#}")}));
            }
            eprintln!("kedge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let dir = DataDir::open(&cli.data_dir)?;
    // Before there is a second thread: the kernel lets only a process with one change its users.
    let node = rootless::enter(&dir, &cli.command)?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    tokio.block_on(async {
        match &cli.command {
            Command::Up(up) => up::up(&dir, up, cli.json).await,
            Command::Down => down::down(&dir, node, cli.json).await,
            Command::Status => status::status(&dir, cli.json).await,
            Command::Image(command) => image::image(&dir, command, cli.json).await,
        }
    })
}
