//! The volume goes wrong: full, broken, read-only, not what it seems, or shared with someone hostile.
//! Whatever it does, there is no marker before every object is there to the last byte, nothing short
//! or wrong has a final name, nothing outside is touched, and the next run on a sound volume
//! finishes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod failing;
mod folded;
mod kinds;
mod planted;
mod shared;
#[path = "../support/mod.rs"]
mod support;
