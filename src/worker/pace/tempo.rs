//! The rule by which the tempo moves, and whose turn it is. Pure: the caller brings the clock.

use std::time::Duration;

/// The window in which the granted tempo is measured at the first refusal; at each further one it is
/// twice as long, up to the longest.
const FIRST_WINDOW: Duration = Duration::from_millis(20);
const LONGEST_WINDOW: Duration = Duration::from_millis(200);
/// The share of what the source was seen to grant at first that is asked for: the rest is for what is
/// on its way when it says no.
const FIRST_SHARE: f64 = 0.95;
/// The same later, less the share that was refused, up to so much: that is asked for again besides, and
/// would be refused for ever.
const GRANTED_SHARE: f64 = 0.98;
const MOST_REFUSED: f64 = 0.05;
/// A smaller share that is refused says nothing about the tempo: requests that were held up on their
/// way come together, and would slow it down each time.
const BORNE: f64 = 0.01;
/// By how much the tempo grows in the first second in which the source does not mind. In each further
/// second it is twice as many percent: a source that was away for a moment is soon asked for all it has.
const GROWTH: f64 = 0.05;
/// The same until it was refused often enough to be known: the first measure is of a moment in which
/// most of those who ask had just been refused.
const GROWTH_FIRST: f64 = 0.5;
/// The most by which it grows at once.
const LEAP: f64 = 0.5;
/// The slowest tempo, and the least that one refusal leaves of it.
const SLOWEST: f64 = 16.0;
const LEFT: f64 = 0.5;
/// How far ahead requests are given their turns.
const LOOK_AHEAD: Duration = Duration::from_millis(100);
/// A tempo this many times above what is asked for holds nothing, and is forgotten.
const ABOVE_ASKED: f64 = 4.0;

/// When a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// After so long.
    In(Duration),
    /// Not foreseen yet: the tempo may be another by then.
    AskAgain(Duration),
}

/// What the source is believed to grant, and the turns that follow from it.
#[derive(Debug)]
pub(super) struct Tempo {
    /// Requests in a second; `None` while the source has not minded.
    rate: Option<f64>,
    /// Since when, and from which counts on, what the source grants is measured.
    since: Duration,
    granted: u64,
    refused: u64,
    /// How long at least, where it refuses any.
    window: Duration,
    /// When the source last minded.
    minded: Duration,
    /// When the next request has its turn.
    next: Duration,
}

impl Tempo {
    pub(super) fn new() -> Self {
        Self {
            rate: None,
            since: Duration::ZERO,
            granted: 0,
            refused: 0,
            window: FIRST_WINDOW,
            minded: Duration::ZERO,
            next: Duration::ZERO,
        }
    }

    /// Learns from how many requests were granted by `now`, and how many refused.
    pub(super) fn learn(&mut self, now: Duration, granted: u64, refused: u64) {
        if self.granted + self.refused == 0 {
            // while nothing is answered there is nothing to measure
            (self.since, self.granted, self.refused) = (now, granted, refused);
            return;
        }
        let span = now.saturating_sub(self.since);
        let no = refused.saturating_sub(self.refused);
        if span < if no > 0 { self.window } else { LONGEST_WINDOW } {
            return;
        }
        let yes = granted.saturating_sub(self.granted);
        let seconds = span.as_secs_f64();
        let measured = yes as f64 / seconds;
        if no > 0 {
            let refusals = no as f64 / (yes + no) as f64;
            let rate = match self.rate {
                None => measured * FIRST_SHARE,
                Some(rate) if refusals > BORNE => {
                    let lower = measured * (GRANTED_SHARE - refusals.min(MOST_REFUSED));
                    lower.clamp(rate * LEFT, rate)
                }
                Some(rate) => rate,
            };
            self.rate = Some(rate.max(SLOWEST));
            self.minded = now;
            self.window = (self.window * 2).min(LONGEST_WINDOW);
        } else if let Some(rate) = self.rate {
            let calm = (now - self.minded).as_secs_f64();
            let starting = self.window < LONGEST_WINDOW;
            let first_second = if starting { GROWTH_FIRST } else { GROWTH };
            let growth = first_second * seconds * (calm - 1.0).max(0.0).exp2();
            let rate = rate * (1.0 + growth.min(LEAP));
            self.rate = (rate <= measured.max(SLOWEST) * ABOVE_ASKED).then_some(rate);
        }
        (self.since, self.granted, self.refused) = (now, granted, refused);
    }

    /// When the request that asks at `now` has its turn.
    pub(super) fn turn(&mut self, now: Duration) -> Turn {
        let Some(rate) = self.rate else { return Turn::In(Duration::ZERO) };
        let wait = self.next.saturating_sub(now);
        if wait > LOOK_AHEAD {
            return Turn::AskAgain(LOOK_AHEAD);
        }
        self.next = self.next.max(now) + Duration::from_secs_f64(1.0 / rate);
        Turn::In(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::super::GRAIN;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A source that grants `limit` requests a second, asked by as many as get their turn, each of
    /// which takes a millisecond: what was granted and what was refused in `seconds`.
    fn ask(tempo: &mut Tempo, limit: u64, seconds: u64) -> (u64, u64) {
        let (mut granted, mut refused) = (0, 0);
        let (from, mut second) = (tempo.since, 0);
        for ms in 0..seconds * 1000 {
            let now = from + Duration::from_millis(ms + 1);
            second = if ms % 1000 == 0 { 0 } else { second };
            // 16 requests in flight
            for _ in 0..16 {
                tempo.learn(now, granted, refused);
                if tempo.next > now + GRAIN {
                    break;
                }
                tempo.turn(now);
                // a leaky bucket: what is asked evenly is granted evenly
                if second * 1000 < limit * (ms % 1000 + 1) {
                    second += 1;
                    granted += 1;
                } else {
                    refused += 1;
                }
            }
        }
        (granted, refused)
    }

    #[test]
    fn it_asks_for_what_is_granted() {
        let mut tempo = Tempo::new();
        let (granted, refused) = ask(&mut tempo, 2000, 20);
        assert!(granted > 36_000, "{granted} of 40,000");
        assert!(refused < 2_000, "{refused} refused");
    }

    /// One that was granted 40 requests in 20 ms, after a second without an answer.
    fn told_to_slow_down() -> Tempo {
        let mut tempo = Tempo::new();
        for (ms, granted, refused) in [(1, 0, 0), (980, 1, 0), (1000, 41, 10)] {
            tempo.learn(Duration::from_millis(ms), granted, refused);
        }
        tempo
    }

    #[test]
    fn requests_that_come_together_do_not_slow_it_down() {
        let mut tempo = told_to_slow_down();
        let rate = tempo.rate.unwrap();
        assert_eq!(rate.round(), 1900.0);
        for window in 1..50 {
            // a little less than the source grants, of which a few came at once
            let (granted, refused) = (378 * u64::from(window), 3 * u64::from(window));
            tempo.learn(SECOND + LONGEST_WINDOW * window, 41 + granted, 10 + refused);
        }
        assert_eq!(tempo.rate, Some(rate));
    }

    #[test]
    fn what_is_asked_for_again_has_its_room() {
        let mut tempo = told_to_slow_down();
        // all that the source grants, and some more that were refused before
        tempo.learn(SECOND + LONGEST_WINDOW, 41 + 400, 10 + 30);
        assert!(tempo.rate.unwrap() < 1900.0, "{:?}", tempo.rate);
    }

    #[test]
    fn a_source_that_was_away_is_soon_asked_for_all_it_has() {
        let mut tempo = Tempo::new();
        for ms in 0..2000 {
            tempo.learn(Duration::from_millis(ms), 0, ms);
        }
        let mut seconds = 0;
        // as many as it lets are asked, and granted
        let mut granted = 0.0;
        while let Some(rate) = tempo.rate
            && rate < 2000.0
        {
            seconds += 1;
            for fifth in 0..5 {
                granted += tempo.rate.map_or(0.0, |rate| rate / 5.0);
                let now = Duration::from_millis(2000 + seconds * 1000 + fifth * 200);
                tempo.learn(now, granted as u64, 1999);
            }
        }
        assert!(seconds <= 12, "{seconds}");
        // and what nobody asks for any more holds nobody
        for second in 0..100 {
            tempo.learn(Duration::from_secs(60 + second), granted as u64, 1999);
        }
        assert_eq!(tempo.rate, None);
    }

    #[test]
    fn nobody_waits_at_a_source_that_does_not_mind() {
        let mut tempo = Tempo::new();
        tempo.learn(SECOND, 100_000, 0);
        assert_eq!(tempo.turn(SECOND), Turn::In(Duration::ZERO));
        assert_eq!(tempo.turn(SECOND), Turn::In(Duration::ZERO));
    }
}
