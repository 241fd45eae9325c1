//! `cloudcore`: CloudCore alone, beside an existing Kubernetes API.

use clap::Parser;
use kedge_cloudcore::cli::{Cli, run};
use kedge_flags::told;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloudcore: {}", told(error.chain()));
            ExitCode::FAILURE
        }
    }
}
