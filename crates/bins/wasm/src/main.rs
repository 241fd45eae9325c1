//! The program that a container of a WebAssembly module runs.
//!
//! **Duty.** Interpret one module whose system interface is WASI preview 1, as the first process of a container that
//! is made like every other: its namespaces, limits, user, rights, filter of system calls, root and streams hold for
//! this program, and so for the module.
//!
//! ```text
//!   kedge-wasm MODULE [ARGUMENT...]
//!     signals   whatever asks a process to end, ends this one, although it is the first of its namespace
//!     machine   reads, checks and runs the module -- calls --> wasi: its arguments, files, clocks, sockets
//! ```
//!
//! **Inputs.** The module's file, arguments, environment and working directory as the container has them. `/` is the
//! one directory that the module is given; what it opened is a root of its own for what it opens below. TCP sockets
//! that listen come from the variable [`wasi::LISTEN`].
//!
//! **Outputs.** What the module writes; its exit code, [`Ended::TRAPPED`] after a trap and [`Ended::NOT_BEGUN`] for a
//! file that is no program, each with a sentence on standard error.
//!
//! **Never.** It starts no process and no thread, loads no native code, and lets the module see nothing of `/proc`,
//! where this program itself could be reached.

mod limits;
mod machine;
mod signals;
mod wasi;

use machine::Ended;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    signals::end_when_asked();
    let arguments: Vec<Vec<u8>> = std::env::args_os().skip(1).map(OsString::into_vec).collect();
    let Some(module) = arguments.first().cloned() else {
        say("this is started by kedge itself; on a command line: kedge-wasm MODULE [ARGUMENT...]");
        return ExitCode::from(Ended::NOT_BEGUN);
    };
    let path = OsString::from_vec(module);
    let ended = wasi::World::new(arguments)
        .map_err(Into::into)
        .and_then(|world| machine::run(Path::new(&path), world));
    match ended {
        Ok(ended) => ExitCode::from(ended.0),
        Err(error) => {
            say(&format!("{}: {}", path.to_string_lossy(), sentence(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

/// For the container's log. One that cannot be written to is no reason to end otherwise.
fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// An error with its causes, in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.trim().replace('\n', "; ")
}
