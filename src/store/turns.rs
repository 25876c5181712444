//! A limit on the requests of a second, over all connections.

use crate::lock::lock;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How much of the past may be made up for: twenty times the timer's grain, so that no turn is lost to a
/// late wake-up. That many requests may be sent at once.
const DEPTH: Duration = Duration::from_millis(100);

/// Turns to send a request, so many in a second.
#[derive(Debug)]
pub(super) struct Turns {
    interval: Duration,
    /// When the next turn is. Each that is given moves it on; nobody holds it while waiting.
    next: Mutex<Instant>,
}

impl Turns {
    /// `rate`: requests in a second.
    pub(super) fn new(rate: NonZeroU32) -> Self {
        Self::from(rate, Instant::now())
    }

    fn from(rate: NonZeroU32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / rate.get(), next: Mutex::new(now) }
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self) {
        let wait = self.take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes the next turn, and says how long it is until then.
    fn take(&self, now: Instant) -> Duration {
        let mut next = lock(&self.next);
        // within the machine's first tenth of a second there is no past to make up for
        let turn = now.checked_sub(DEPTH).map_or(*next, |earliest| earliest.max(*next));
        *next = turn + self.interval;
        turn.saturating_duration_since(now)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn so_many_requests_are_sent_in_a_second() {
        for rate in [1, 7, 100, 2_000, 10_000] {
            let start = Instant::now();
            let turns = Turns::from(NonZeroU32::new(rate).unwrap(), start);
            let (mut now, mut sent) = (Duration::ZERO, 0_u32);
            while now < Duration::from_secs(10) {
                let wait = turns.take(start + now);
                sent += 1;
                if !wait.is_zero() {
                    // tokio's timer has a grain of a millisecond and is never early
                    now += wait.max(Duration::from_millis(1));
                }
            }
            // the first comes at once; the last is on its way, or a millisecond's wait for the timer
            let (least, most) = (rate * 10 - rate / 1000, rate * 10 + 2);
            assert!((least..=most).contains(&sent), "{sent} at {rate}");
            // after a pause a few at once, and no more
            let later = start + now + Duration::from_secs(5);
            let at_once = (0..rate).take_while(|_| turns.take(later).is_zero()).count();
            let most = (DEPTH.as_secs_f64() * f64::from(rate)) as usize;
            assert!((most..=most + 1).contains(&at_once), "{at_once} at {rate}");
        }
    }
}
