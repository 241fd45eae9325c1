//! The process beside a pod.
//!
//! **Duty.** Keep what a pod's containers need somebody for while the node agent comes and goes: their first processes
//! are its children, so it collects them and says how they ended; it reads their outputs, writes their logs and passes
//! copies on to whoever listens; it holds their inputs and terminals, and the first process of a pod whose containers
//! share their processes.
//!
//! ```text
//!   agent --- control.sock: create ---> [supervisor] --- starts ---> the program that makes a container, which ends
//!     |                                   |  ^  ^                        |
//!     |                 states/<id>.json--'  |  '--- stdout, stderr ---- container's first process, now our child
//!     '--- control.sock: attach -------------'
//!
//!   creating --> created --- start ---> running ---> ending ---> (its state says how, and it is forgotten)
//!       '-----------'----------------------'----- discard ----> (no state)
//! ```
//!
//! **Inputs.** A [`Beginning`](kedge_supervision::Beginning) on standard input, requests on its socket.
//! **Outputs.** Log files, `states/<id>.json`, `supervisor.json`.
//!
//! **Never.** It makes no container and knows nothing of images or networks. It waits for one thing only: the next
//! event. It has one thread, no timer while nothing is being made or ended, and takes no memory while nothing happens.

mod begin;
mod client;
mod container;
mod durable;
mod groups;
mod hold;
mod pod;
mod process;
mod requests;
mod streams;
mod watch;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// The verbs of the command line, which nobody but the node agent and this program itself types.
const SUPERVISE: &str = "supervise";
const HOLD: &str = "hold";
const HOLD_AS: &str = "hold-as";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [verb, directory] if verb == SUPERVISE => begin::run(Path::new(directory)),
        [verb] if verb == HOLD => hold::run(),
        [verb] if verb == HOLD_AS => hold::run_as(None),
        [verb, users] if verb == HOLD_AS => hold::run_as(Some(Path::new(users))),
        _ => {
            say(format_args!(
                "this is started by kedge itself and is of no use on a command line"
            ));
            ExitCode::FAILURE
        }
    }
}

/// Says something to whoever looks for a reason in the pod's own log. A disk that does not take it is no reason to end.
fn say(words: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Why something failed, in one sentence. Whoever asked gets it; what nobody asked for goes to the pod's own log.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    fn new(act: &str, cause: impl std::fmt::Display) -> Self {
        Self(format!("{act}: {cause}"))
    }
}
