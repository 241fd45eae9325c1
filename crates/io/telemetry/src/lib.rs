//! What every process of kedge needs around its components: logs, signals, the shutdown scope, the clock, and the
//! five kinds of channel.
//!
//! **Duty.** Give each task a name and one place where it ends ([`Scope`]); give each channel a name, a size and a
//! depth that can be read ([`channel`]); turn tracing into log lines ([`logs`]); turn SIGINT and SIGTERM into a
//! drain ([`signals`]); tell the service manager how the process is ([`service`]); read the clock for logic ([`clock`]); count ([`metrics`]), say how the parts are ([`health`]),
//! and show both to operators ([`monitor`]) by a bounded server that others may use, too ([`http`]).
//!
//! **Never.** No decisions, no globals besides the tracing subscriber that a binary installs once.

pub mod channel;
pub mod clock;
pub mod health;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod monitor;
mod scope;
pub mod service;
pub mod signals;

pub use scope::{DrainReport, Name, Scope};
