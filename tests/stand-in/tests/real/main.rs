//! The stand-in beside a real control plane: what it shows is what the control plane's own
//! controllers go by.

#![allow(clippy::unwrap_used, reason = "tests")]

mod configuration;
mod endings;
mod jobs;
mod nodes;
mod support;
mod volumes;
