//! The server as its clients meet it: real TLS, real HTTP, port 0.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod certificates;
mod client;
mod connections;
mod controllers;
mod manifests;
mod objects;
mod rights;
mod server;
mod watches;
