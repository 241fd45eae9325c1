//! `edgecore`: EdgeCore alone, for KubeEdge's or kedge's CloudCore.

use clap::Parser;
use kedge_edgecore::cli::{Cli, run};
use kedge_flags::told;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = kedge_runtime::helper::main_if_called() {
        return code;
    }
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgecore: {}", told(error.chain()));
            ExitCode::FAILURE
        }
    }
}
