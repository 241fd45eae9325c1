//! `edgemark`: thousands of hollow edges against a CloudCore.

use std::process::ExitCode;

fn main() -> ExitCode {
    kedge_edgemark::main()
}
