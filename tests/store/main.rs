//! The source, against a server that verifies signatures and misbehaves on request.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod credentials;
mod directory;
mod faults;
mod keys;
mod listing;
mod reach;
mod refusals;
mod scripted;
mod spread;
mod support;
