//! What the command lines of the programs that stand for official ones have in common.
//!
//! **Duty.** The flags of the official logger, the version as scripts look for it, and how an error is told. **Inputs.**
//! What people type. **Outputs.** Text for the terminal. **Never.** It starts nothing, and neither reads nor
//! writes.

use clap::{ArgAction, Args};
use std::error::Error;

/// The release of KubeEdge that our programs stand for.
const KUBEEDGE_VERSION: &str = "v1.23.1";

/// Flags of the official binaries' logger. They are taken, so that a unit file or a chart need not change.
#[derive(Debug, Args)]
pub struct OfficialLogs {
    /// How much the log says; from 4 on it says all that kedge.logFilter would.
    #[arg(short, long = "v", value_name = "LEVEL")]
    verbosity: Option<u8>,

    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, action = ArgAction::Append,
        aliases = ["alsologtostderr", "add-dir-header", "add_dir_header", "one-output", "one_output", "skip-headers",
            "skip_headers", "skip-log-headers", "skip_log_headers"])]
    logtostderr: Vec<String>,

    #[arg(long, hide = true, value_name = "VALUE", action = ArgAction::Append,
        aliases = ["log-dir", "log_dir", "log-file", "log_file", "log-file-max-size", "log_file_max_size",
            "log-backtrace-at", "log_backtrace_at", "log-flush-frequency", "log_flush_frequency", "stderrthreshold"])]
    vmodule: Vec<String>,
}

impl OfficialLogs {
    /// The filter that stands for `-v`, if it asks for more than the file.
    pub fn filter(&self) -> Option<&'static str> {
        match self.verbosity {
            None | Some(0..=3) => None,
            Some(4..=5) => Some("debug"),
            Some(_) => Some("trace"),
        }
    }

    /// Whether there are flags among them that change nothing.
    pub fn without_effect(&self) -> bool {
        !self.logtostderr.is_empty() || !self.vmodule.is_empty()
    }
}

/// `--version`, as scripts ask the official binaries.
#[derive(Debug, Args)]
pub struct OfficialVersion {
    /// Print the version, and exit; `--version=raw` prints all there is to say.
    #[arg(
        long,
        value_name = "raw",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = ["true", "false", "raw"]
    )]
    version: Option<String>,
}

impl OfficialVersion {
    /// What to print instead of a start, if somebody asked.
    pub fn asked(&self) -> Option<String> {
        match self.version.as_deref() {
            Some("raw") => Some(raw_version()),
            Some("true") => Some(format!("{}\n", version())),
            Some(_) | None => None,
        }
    }
}

/// An error with its causes, outermost first, each said once: some libraries repeat the cause in their own words.
pub fn told<'a>(chain: impl IntoIterator<Item = &'a (dyn Error + 'static)>) -> String {
    let mut whole = String::new();
    for cause in chain {
        let cause = cause.to_string();
        if whole.is_empty() {
            whole = cause;
        } else if !whole.contains(&cause) {
            whole = format!("{whole}: {cause}");
        }
    }
    whole
}

/// `KubeEdge v1.23.1-kedge.0.1.0`: what scripts that ask the official binaries look for stands first.
pub fn version() -> String {
    format!("KubeEdge {KUBEEDGE_VERSION}-kedge.{}", env!("CARGO_PKG_VERSION"))
}

/// All there is to say about the version, a line each.
fn raw_version() -> String {
    format!(
        "gitVersion: {KUBEEDGE_VERSION}-kedge.{}\nkubeedge: {KUBEEDGE_VERSION}\nkedge: {}\nplatform: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}
