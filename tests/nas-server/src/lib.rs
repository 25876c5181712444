//! CPFS's data flows in memory, behind the NAS API (version 2017-06-26): real signatures, states that
//! change with a clock of its own, and faults on request.
//!
//! ```
//! use std::time::Duration;
//! use nas_server::{Fault, NasServer, Outcome};
//! # fn main() -> std::io::Result<()> {
//! let server = NasServer::builder()
//!     .credentials("id", "secret")
//!     .file_system("bmcpfs-1", &["/data/"])
//!     .bucket("models")
//!     .start_blocking()?;
//! server.fault("CreateDataFlow", Fault::throttle());
//! server.outcome(Outcome { files_total: 10, files_done: 9, ..Outcome::default() });
//! // a data flow that was asked for is running by now
//! server.advance(Duration::from_secs(180));
//! println!("{}", server.endpoint());
//! # Ok(())
//! # }
//! ```
//!
//! In the order a request passes them: `server` takes connections, `sign` says who asks, `faults`
//! what goes wrong, `operations` (with `parameters` and `page`) does what is asked in `world`, whose
//! states change by `time`. What was asked is kept in `log`. Codes of errors are those that the API's
//! description names; where it names none, `error` says so.

mod builder;
mod error;
mod faults;
mod handle;
mod log;
mod operations;
mod page;
mod parameters;
mod server;
mod sign;
mod time;
mod world;

pub use builder::Builder;
pub use faults::Fault;
pub use handle::NasServer;
pub use log::Call;
pub use time::Times;
pub use world::{Flow, Import, Outcome, Task};
