//! An OSS endpoint in memory: both dialects, real signatures, and faults on request.
//!
//! ```
//! use oss_server::{Fault, OssServer};
//! # fn main() -> std::io::Result<()> {
//! let server = OssServer::builder().bucket("b").credentials("id", "secret").start_blocking()?;
//! server.put("b", "data/a", "hello");
//! server.fault(Fault::get("data/a").times(1).flip_byte(1));
//! println!("{}", server.endpoint());
//! # Ok(())
//! # }
//! ```
//!
//! In the order a request passes them: `server` takes connections and sends every request through
//! `request` (what is asked for), `faults` (what goes wrong), `sign` (who asks), `buckets`,
//! `objects` and `listing` (what `store` holds and `synthetic` computes), and out through `reply`
//! and `body`. `error` has the refusals, `stats` the counters, `admin` both over HTTP.

mod admin;
mod body;
mod buckets;
mod error;
mod faults;
mod handle;
mod listing;
mod objects;
mod reply;
mod request;
mod server;
mod sign;
mod stats;
mod store;
mod synthetic;
mod tls;

pub use faults::{Action, Fault, Matcher};
pub use handle::{Builder, OssServer};
pub use request::Operation;
pub use stats::{Logged, Stats};
pub use store::PutOptions;
pub use synthetic::{Generated, Sizes};
