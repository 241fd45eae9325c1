//! Kubernetes API semantics without a server.
//!
//! Duty: everything that can be decided about Kubernetes objects from the objects alone. Which kinds exist and how
//! they announce themselves ([`kinds`]), what a selector selects ([`selector`]), what a patch does ([`patch`]), whether
//! an object is well formed and what its defaults are ([`schema`]), what may change and how things are deleted
//! ([`strategy`]), how objects look in a table ([`table`]), how refusals are worded ([`status`]), what a watcher is told
//! ([`watch`]), who may do what ([`rbac`]), the OpenAPI documents ([`openapi`]), the definitions of KubeEdge's own kinds
//! ([`kubeedge`]) and the decisions of the built-in controllers ([`controllers`]).
//!
//! Inputs: objects as [`serde_json::Value`], the moment ([`jiff::Timestamp`]), chance (a seed or a suffix).
//! Outputs: objects, refusals ([`status::Status`]) and lists of writes. Objects travel as JSON values, not as typed
//! structs, so that fields newer than this crate survive.
//!
//! It never reads a clock, draws a random number, starts a task or talks to anything.
//!
//! ```text
//!   body ──> schema::check ──> schema::default ──> strategy::{create, update, ..} ──> store
//!                                                            │
//!   store ──> watch::Window ──> selector ──> watcher         └──> status::Status (refusal)
//!        └──> controllers::World ──> controllers::decide ──> Vec<Write>
//! ```

pub mod controllers;
pub mod kinds;
pub mod kubeedge;
pub mod meta;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod rbac;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
pub mod watch;

pub use serde_json::Value;
