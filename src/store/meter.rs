//! What the client counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of everything the client did, shared with whoever paces and reports.
///
/// All of them only grow; reads need no order between them.
#[derive(Debug, Default)]
pub struct Meter {
    /// Listing requests sent, retries included.
    pub list: AtomicU64,
    /// GET requests of objects sent, retries and resumes included.
    pub get: AtomicU64,
    /// HEAD requests sent, retries included.
    pub head: AtomicU64,
    /// Fetches of credentials (RRSA, instance role, files).
    pub credentials: AtomicU64,
    /// Requests that were sent again after a failure, and bodies that were resumed.
    pub retries: AtomicU64,
    /// Requests that were sent beside one that was waited for too long.
    pub hedged: AtomicU64,
    /// Answers by which the source asked to slow down: 429, 503 or `x-oss-qos-delay-time`.
    pub throttled: AtomicU64,
    /// GETs and HEADs that were answered with what was asked for.
    pub granted: AtomicU64,
    /// GETs and HEADs by whose answer the source asked to slow down.
    pub refused: AtomicU64,
    /// Bytes of object bodies handed out.
    pub bytes: AtomicU64,
    /// Time from sending a GET to its answer's headers, summed, in microseconds.
    pub first_byte_us: AtomicU64,
    /// How many answers [`Meter::first_byte_us`] sums.
    pub first_byte_count: AtomicU64,
}

/// As many hedges may be made before anything was granted, and one more for every so many grants: a
/// source that is slow as a whole must not be asked for everything twice.
const FIRST_HEDGES: u64 = 8;
const GRANTS_FOR_ONE: u64 = 20;

impl Meter {
    /// Takes leave for a hedge, if there is any.
    pub(super) fn hedge(&self) -> bool {
        let most = FIRST_HEDGES + self.granted.load(Ordering::Relaxed) / GRANTS_FOR_ONE;
        let one_more = |hedged| (hedged < most).then_some(hedged + 1);
        self.hedged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_first_byte(&self, elapsed: Duration) {
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.first_byte_us.fetch_add(us, Ordering::Relaxed);
        self.first_byte_count.fetch_add(1, Ordering::Relaxed);
    }
}
