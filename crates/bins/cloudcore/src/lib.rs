//! CloudCore: its wiring as a library, so that `kedge` and tests start the same process parts that ship.
//!
//! [`cli`] is what people type; [`connect`] the way to the API; [`material`] who this cloud is; [`tokens`] who may join;
//! [`wiring`] every channel and every task.

pub mod cli;
pub mod connect;
pub mod material;
mod own_files;
mod secrets;
pub mod tokens;
pub mod wiring;
