//! What must survive a power cut, on SQLite, each with an in-memory twin behind the same contract tests.
//!
//! **Duty.** [`meta`] keeps what an edge was told and what it still has to say; [`revisions`] keeps the objects of the
//! embedded Kubernetes API with their resource versions. Both answer only after their transaction is on the disk.
//!
//! **Inputs.** Keys and bytes. **Outputs.** The same bytes, also after kill -9; or an error that names the act.
//!
//! **Never.** No decisions about content, no network, no tasks on the caller's runtime: each store has one writer
//! thread that owns its connection.

pub mod meta;
pub mod revisions;
