//! A limit on the requests of a second, over all connections.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::Mutex;

/// What may be sent at once, as a part of a second's requests: twenty times the timer's grain, so that
/// no turn is lost to a late wake-up.
const DEPTH: u32 = 10;

/// Turns to send a request, so many in a second.
#[derive(Debug)]
pub(super) struct Turns<C: Clock = DefaultClock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    /// Held by whoever is next. The lock is fair: requests are sent in the order in which they came.
    next: Mutex<()>,
}

impl Turns {
    /// `rate`: requests in a second.
    pub(super) fn new(rate: NonZeroU32) -> Self {
        Self::with_clock(rate, DefaultClock::default())
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self) {
        let _next = self.next.lock().await;
        while let Err(wait) = self.take() {
            tokio::time::sleep(wait).await;
        }
    }
}

impl<C: Clock + Clone> Turns<C> {
    fn with_clock(rate: NonZeroU32, clock: C) -> Self {
        let burst = NonZeroU32::new(rate.get() / DEPTH).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(rate).allow_burst(burst);
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        Self { limiter, clock, next: Mutex::default() }
    }

    /// Takes a turn, or says how long it is until there is one.
    fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    #[test]
    fn so_many_requests_are_sent_in_a_second() {
        for rate in [1, 7, 100, 2_000, 10_000] {
            let clock = FakeRelativeClock::default();
            let turns = Turns::with_clock(NonZeroU32::new(rate).unwrap(), clock.clone());
            let (mut now, mut sent) = (Duration::ZERO, 0_u32);
            while now < Duration::from_secs(10) {
                match turns.take() {
                    Ok(()) => sent += 1,
                    Err(wait) => {
                        // tokio's timer has a grain of a millisecond and is never early
                        let wait = wait.max(Duration::from_millis(1));
                        clock.advance(wait);
                        now += wait;
                    }
                }
            }
            let most = rate * 10 + rate / DEPTH + 1;
            assert!((rate * 10..=most).contains(&sent), "{sent} at {rate}");
        }
    }
}
