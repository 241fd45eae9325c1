//! Load for a CloudCore: thousands of hollow edges with real certificates, TLS, link and pod logic, and figures.
//!
//! **Duty.** Run many edges in few processes; let them join, rest, vanish and return; tell what they saw (times of
//! joins, lease replies and commits), what CloudCore used (memory, processor, calls on the API) and whether a node was
//! ever not ready. [`hollow`] is one edge, [`crew`] a process of them, [`conductor`] leads the crews, [`scenario`] is
//! what they play, [`stage`] an API and CloudCores to play it against.
//!
//! **Inputs.** The address of a CloudCore (ours or the official one), a join token or a kubeconfig; or nothing, for
//! `edgemark bench`. **Outputs.** Progress on standard error, one JSON summary on standard output.
//!
//! **Never.** It changes nothing in the logic that it measures: hollow edges are the components of EdgeCore with taps
//! between them. It leaves nothing behind in the cluster, unless told to.
//!
//! ```text
//!   conductor ──orders──> crew (a process) ── edges ══TLS══> CloudCore ──> API
//!       ^ <───reports────────┘                                  │ /proc, metrics
//!       └──────── watch of nodes, pods, config maps ────────────┴──────────┘
//! ```

pub mod api;
pub mod budget;
pub mod cli;
pub mod conductor;
pub mod crew;
pub mod histogram;
pub mod hollow;
pub mod meter;
pub mod orders;
pub mod plan;
pub mod proc;
pub mod processes;
mod program;
pub mod scenario;
pub mod scrape;
pub mod stage;
pub mod summary;
pub mod watch;
pub mod workload;

pub use program::main;
