//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use crate::Error;

/// How often a condition is looked at: often enough not to be felt, seldom enough to cost nothing.
const EVERY: Duration = Duration::from_millis(50);

/// How long what a test waits for may take. Everything here takes seconds; a machine that is busy
/// with a build takes some of them several times.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// What a look at a condition found.
#[derive(Debug)]
pub(crate) enum Look<T> {
    /// It holds.
    Done(T),
    /// It does not yet; what is there instead.
    NotYet(String),
}

/// Looks until the condition holds, for `limit` at most. `tails` is asked for the logs to show if
/// it never did.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Look<T>, Error>,
    tails: impl FnOnce() -> String,
) -> Result<T, Error> {
    let start = Instant::now();
    loop {
        match look()? {
            Look::Done(found) => return Ok(found),
            Look::NotYet(last) if start.elapsed() >= limit => {
                let (what, seconds) = (what.to_owned(), limit.as_secs());
                return Err(Error::Late { what, seconds, last, tails: tails() });
            }
            Look::NotYet(_) => std::thread::sleep(EVERY),
        }
    }
}

/// Waits until `look` finds something, for two minutes at most.
///
/// # Errors
///
/// [`Error::Late`] if it never does.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Error> {
    let look = || Ok(look().map_or_else(|| Look::NotYet("nothing".to_owned()), Look::Done));
    until(what, LIMIT, look, String::new)
}
