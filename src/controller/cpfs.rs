//! CPFS's data flows: what the controller asks of Alibaba Cloud's NAS API (version 2017-06-26).
//!
//! A data flow ties a directory of a CPFS file system to one of a bucket; a task of it moves the
//! data, and CPFS does the work. [`Nas`] (`client`) signs (`acs3`), sends and tries again; what each
//! operation is asked with and answers is in `flows`, `tasks` and `filesets`, pure.
//!
//! An account may make 120 calls a minute of each operation in a region, as the documentation of CPFS
//! for Lingjun says: what is described for one claim is best described for all of a file system.
//!
//! Names are those of the official SDK's models (alibabacloud-nas20170626 3.7.5). A status stays the
//! word that the API says: one that nobody has heard of is to be seen.

mod acs3;
mod client;
mod described;
mod error;
mod filesets;
mod flows;
mod page;
mod tasks;
#[cfg(test)]
mod tests;

pub(crate) use self::client::Nas;
pub(crate) use self::described::{Described, Descriptions};
pub(crate) use self::error::NasError;
pub(crate) use self::flows::{DataFlow, NewDataFlow};
pub(crate) use self::tasks::{NewTask, Task};
