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
//! `objects`, `uploads` and `listing` (what `store` holds and `synthetic` computes), and out
//! through `reply` and `body`. `sts` issues credentials. `error` has the refusals, `stats` the counters, `admin` both over HTTP.

mod admin;
mod body;
mod buckets;
mod builder;
mod error;
mod faults;
mod handle;
mod listing;
mod objects;
mod put;
mod reply;
mod request;
mod server;
mod sign;
mod spec;
mod stats;
mod store;
mod sts;
mod synthetic;
mod tls;
mod uploads;

pub use builder::Builder;
pub use faults::{Action, Fault, Matcher};
pub use handle::OssServer;
pub use put::PutOptions;
pub use request::Operation;
pub use spec::{parse_rate, parse_size};
pub use stats::{Logged, Stats};
pub use synthetic::{Generated, Sizes};
