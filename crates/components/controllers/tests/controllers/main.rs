//! The controllers between a small API server and the sessions of nodes.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

mod certificates;
mod edge;
mod leases;
mod queries;
mod records;
mod reports;
mod trouble;
mod world;
