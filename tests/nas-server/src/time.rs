//! When states change. The server's time stands still unless a test advances it, a call that
//! describes does, or it runs with the true one.

use std::time::{Duration, Instant};

/// How long everything takes, in the server's time. The defaults are what the documentation says, as
/// far as it does. [`Duration::MAX`] is never: the test says when.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A data flow, from `Starting` to `Running`: 2 to 5 minutes.
    pub create_flow: Duration,
    /// A data flow, from `Deleting` to nothing.
    pub delete_flow: Duration,
    /// A task, from `Pending` to `Executing`.
    pub start_task: Duration,
    /// A task, from `Executing` to `Completed` or `Failed`.
    pub run_task: Duration,
    /// A task, from `Canceling` to `Canceled`: 5 to 10 minutes.
    pub cancel_task: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            create_flow: Duration::from_secs(180),
            delete_flow: Duration::from_secs(60),
            start_task: Duration::from_secs(10),
            run_task: Duration::from_secs(100),
            cancel_task: Duration::from_secs(300),
        }
    }
}

/// The server's time, since it started.
#[derive(Debug)]
pub(crate) struct Clock {
    advanced: Duration,
    /// How much passes in a true second.
    speed: f64,
    started: Instant,
    per_describe: Duration,
}

impl Clock {
    pub(crate) fn new(speed: f64, per_describe: Duration) -> Self {
        Self { advanced: Duration::ZERO, speed, started: Instant::now(), per_describe }
    }

    pub(crate) fn now(&self) -> Duration {
        self.advanced.saturating_add(self.started.elapsed().mul_f64(self.speed))
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.advanced = self.advanced.saturating_add(time);
    }

    pub(crate) fn described(&mut self) {
        self.advance(self.per_describe);
    }
}
