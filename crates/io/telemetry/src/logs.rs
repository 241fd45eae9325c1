//! Log output: one line an event, fields instead of prose.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// The Kubernetes client logs an error for every answer that is not a success, also for those that its caller expects
/// and handles.
const QUIET: &str = "kube_client=off";

/// Installs the subscriber for this process, writing to `writer`. `filter` has the syntax of `tracing`'s EnvFilter,
/// for example `info,kedge_link=debug`; a filter that cannot be read falls back to `info` and says so.
pub fn install(filter: &str, format: Format, writer: BoxMakeWriter) {
    let (parsed, complaint) = match EnvFilter::try_new(format!("{QUIET},{filter}")) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(writer);
    let installed = match format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().try_init(),
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
