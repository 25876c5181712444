//! ossvp fills a volume with the objects of an Alibaba Cloud OSS prefix, before any workload mounts
//! it, and vouches for every byte.
//!
//! The modules, in the order in which data passes them:
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | the top of the command line |
//! | [`handoff`] | what is asked of a worker and what it answers: arguments, exit codes, marker, outcome |
//! | [`keys`] | the names of things: bucket, prefix, key, path in the volume |
//! | [`store`] | the source: OSS and S3 over HTTP, or a local directory |
//! | [`worker`] | list, plan, fetch, verify, write, commit, mark |
//! | [`controller`] | the resource of a cluster: claims get volumes that a worker, or CPFS, has filled |
//! | [`telemetry`] | logs |
//!
//! Dependencies point one way: `main -> cli -> {worker, controller} -> {handoff, store} -> keys`, and
//! neither role knows the other: what they agree on is [`handoff`]. That, [`keys`], and the files of
//! the roles that say so are pure: no clock, no environment, no I/O. `aside` (a task that ends with its
//! owner) and `lock` are small things that store and roles use.

mod aside;
pub mod cli;
pub mod controller;
pub mod handoff;
pub mod keys;
mod lock;
pub mod store;
pub mod telemetry;
pub mod worker;
