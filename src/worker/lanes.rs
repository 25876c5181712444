//! Lanes: the threads that serve requests.
//!
//! One for each core, with a runtime and connections of its own: bytes are received, checked and
//! written on one core, and nothing is handed from thread to thread on the way. Work reaches a lane
//! because the lane asks for it.

use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::failure::Failure;

/// A timer that is set earlier than all others wakes the thread that sets it, which costs a system
/// call: with one that is always nearer, the deadline of a request does not.
const NEAR: Duration = Duration::from_secs(1);

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Vec<(Handle, oneshot::Sender<()>)>,
}

impl Lanes {
    /// Starts one lane for each core that this process may use.
    pub(crate) fn start() -> Result<Self, Failure> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let lanes = (0..cores).map(start).collect::<std::io::Result<_>>();
        let lanes = lanes
            .map_err(|error| Failure::Unexpected(format!("cannot start a thread: {error}")))?;
        Ok(Self { lanes })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// The runtime of lane `index`.
    pub(crate) fn handle(&self, index: usize) -> &Handle {
        &self.lanes[index].0
    }
}

fn start(index: usize) -> std::io::Result<(Handle, oneshot::Sender<()>)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (owner, gone) = oneshot::channel();
    // nobody waits for the thread: a file call that hangs there must not hold the process
    thread::Builder::new().name(format!("lane-{index}")).spawn(move || {
        runtime.block_on(async {
            let near = async {
                loop {
                    tokio::time::sleep(NEAR).await;
                }
            };
            // an error means the same: the owner is gone
            tokio::select! {
                _ = gone => {}
                () = near => {}
            }
        });
        runtime.shutdown_background();
    })?;
    Ok((handle, owner))
}
