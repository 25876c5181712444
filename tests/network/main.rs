//! The network and the source misbehave, in every way that a server or what stands before it can:
//! each fault alone, for a listing, a whole object and a part, once and always, in both dialects,
//! with the real binary. However a run ends, there is no wrong byte under an object's name and no
//! marker without all objects; and once the fault is gone, running again finishes.
//!
//! `OSSVP_TEST_ONLY` runs the cases whose name holds it. `OSSVP_TEST_SEED` and `OSSVP_TEST_ROUNDS`
//! set what the mixture draws, and how often.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod faults;
mod midrun;
mod mixtures;
mod reach;
#[path = "../support/mod.rs"]
mod support;
