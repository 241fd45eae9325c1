//! Stories of the cloud's end: what is said to it, and what it says.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

mod model;
mod scale;
mod sessions;
mod story;
mod takeover;
mod trouble;
