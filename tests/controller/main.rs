//! The controller, against a real API server and the real controllers of Kubernetes: binder, Job
//! controller, garbage collector. A stand-in plays node, scheduler and CSI driver, and runs the real
//! worker, which fetches from an OSS server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]

mod case;
mod deletion;
mod failures;
mod flow;
mod resource;
mod restart;
mod safety;
mod world;

#[path = "../support/mod.rs"]
mod support;
