//! The helper as a program of its own, for tests and for daemons that do not want to be their own helper.

use std::process::ExitCode;

fn main() -> ExitCode {
    kedge_runtime::helper::main(std::env::args_os().skip(2).collect())
}
