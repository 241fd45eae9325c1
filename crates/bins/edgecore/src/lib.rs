//! EdgeCore: its wiring as a library, so that `kedge` and tests start the same process parts that ship.
//!
//! [`cli`] is what people type (`database`: what they do with the metadata); [`node`] what is looked at before anything starts; [`runtime`] the containers;
//! [`settings`] what each part wants to know of the file; `rest` what is given back when there is nothing to do;
//! [`wiring`] every channel and every task.

pub mod cli;
mod database;
pub mod node;
mod rest;
pub mod runtime;
pub mod settings;
pub mod wiring;
