//! The operator's files, as they write them, and the settled values that components want.
//!
//! **Duty.** Read `cloudcore.yaml` and `edgecore.yaml` of KubeEdge v1.23 (both API versions) with KubeEdge's
//! defaults, and print files with them that the official programs read as well. Report *every* mistake at once, each
//! with its YAML path; warn once about each group of keys that mean nothing here, with the reason, and about keys that
//! nobody knows. The file is never rewritten.
//!
//! **Inputs.** YAML text and the facts of the host that a default needs. **Outputs.** [`CloudCore`], [`EdgeCore`]
//! and their [`Warning`]s, or [`Mistakes`].
//!
//! **Never.** No file access, no environment, no globals. YAML is parsed only in [`yaml`].

pub mod cloudcore;
pub mod edgecore;
mod reader;
pub mod yaml;

pub use cloudcore::{CloudCore, CloudFacts, Hub as CloudHub, LogFormat};
pub use edgecore::{ContainerRuntime, EdgeCore, EdgeFacts, Edged, Hub as EdgeHub, Transport};
pub use reader::{Mistake, Mistakes, Warning, parse_go_duration};
