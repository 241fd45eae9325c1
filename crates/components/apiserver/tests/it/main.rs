//! The server as its clients meet it: real TLS, real HTTP, port 0.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod client;
mod controllers;
mod objects;
mod server;
mod watches;
