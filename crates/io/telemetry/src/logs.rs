//! Log output: one line an event, fields instead of prose.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// The Kubernetes client logs an error for every answer that is not a success, also for those that its caller expects
/// and handles.
const QUIET: &str = "kube_client=off";

/// Installs the subscriber for this process, writing to `writer`. `filter` is a level, or levels by module, for example
/// `info,kedge_link=debug`; a filter that cannot be read falls back to `info` and says so.
pub fn install(filter: &str, format: Format, writer: BoxMakeWriter) {
    let (targets, complaint) = match format!("{QUIET},{filter}").parse::<Targets>() {
        Ok(targets) => (targets, None),
        Err(error) => (Targets::new().with_default(LevelFilter::INFO), Some(error)),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry().with(targets);
    let installed = match format {
        Format::Text => registry.with(lines.with_ansi(false)).try_init(),
        Format::Json => registry.with(lines.json()).try_init(),
    };
    if installed.is_err() {
        tracing::debug!("a log subscriber was installed before; it stays");
    }
    if let Some(error) = complaint {
        tracing::warn!(filter, %error, "log filter not understood; using info");
    }
}

/// Log lines to standard error.
pub fn stderr() -> BoxMakeWriter {
    BoxMakeWriter::new(std::io::stderr)
}

/// Log lines to a file that is open for appending.
pub fn file(file: std::fs::File) -> BoxMakeWriter {
    BoxMakeWriter::new(std::sync::Mutex::new(file))
}
