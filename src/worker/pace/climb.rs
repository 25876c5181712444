//! The rule by which the level moves: up while that pays. Pure.

use std::time::Duration;

/// Where the climb begins: enough for a source that answers at once, where more would only take turns.
pub(super) const FIRST: u32 = 16;
/// Where it goes on if nothing came in the first span: enough to see what more brings, little enough
/// for any source.
const FURTHER: u32 = 64;
/// The highest level. At 20 ms to the first byte, 512 requests of small objects are 25,000 a
/// second, above what OSS grants an account (10,000).
const HIGHEST: u32 = 512;
/// The longest span of one measurement: long enough to tell 5 % from noise.
const SPAN: Duration = Duration::from_millis(200);
/// The shortest, at the start: what is looked for there is a doubling, which noise is not.
const START_SPAN: Duration = Duration::from_millis(20);
/// The first: what does not answer by then takes its time.
const FIRST_SPAN: Duration = Duration::from_millis(10);
/// By what share work must grow for a climb to be kept.
const WORTH: f64 = 0.05;
/// The same at the start, when spans are short, once the new requests are answered.
const WORTH_FIRST: f64 = 0.4;
/// After a climb that brought nothing the next try is two spans later, after each more in a row twice as
/// many, up to 2 to this power. One that failed at the start may have met a listing that had nothing yet,
/// or connections that were still being opened.
const MOST_FAILED: u32 = 4;
/// As many failures in, the start is over.
const START_FAILED: u32 = 2;

/// What was seen in one span.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// Bytes and objects done, added up by the caller.
    pub(super) work: u64,
    /// Whether every permitted request was in flight, and none waited for its turn.
    pub(super) full: bool,
    /// How long the span was.
    pub(super) span: Duration,
    /// How long an answer took to begin.
    pub(super) first_byte: Duration,
}

impl Seen {
    fn seconds(&self) -> f64 {
        self.span.as_secs_f64().max(1e-3)
    }
}

/// The level, and what the last climb brought.
#[derive(Debug)]
pub(super) struct Climb {
    level: u32,
    /// Whether no span was full yet.
    fresh: bool,
    /// Level and work in a second before the last climb, while it is judged.
    before: Option<(u32, f64)>,
    rest: u32,
    /// Climbs that brought nothing, up to [`MOST_FAILED`].
    failed: u32,
}

impl Climb {
    pub(super) fn new() -> Self {
        Self { level: FIRST, fresh: true, before: None, rest: 0, failed: 0 }
    }

    fn starting(&self) -> bool {
        self.failed < START_FAILED
    }

    /// By what share `seen` must exceed the span before for a climb to be kept.
    fn worth(&self, seen: Seen) -> f64 {
        if !self.starting() {
            return WORTH;
        }
        let unanswered = seen.first_byte.as_secs_f64() / seen.seconds();
        (WORTH_FIRST * (1.0 - unanswered)).max(WORTH)
    }

    /// How long to look next, where an answer takes `first_byte` to begin.
    pub(super) fn span(&self, first_byte: Duration) -> Duration {
        if self.fresh {
            FIRST_SPAN
        } else if self.starting() {
            (first_byte * 2).clamp(START_SPAN, SPAN)
        } else {
            SPAN
        }
    }

    /// The level for the next span.
    pub(super) fn next(&mut self, seen: Seen) -> u32 {
        if !seen.full {
            // what was not asked for says nothing about what more would bring
            self.before = None;
            return self.level;
        }
        // what came while connections were opened is no measure of what more of them would bring
        if std::mem::take(&mut self.fresh) {
            if seen.work == 0 {
                self.before = Some((self.level, 0.0));
                self.level = FURTHER;
            }
            return self.level;
        }
        let work = seen.work as f64 / seen.seconds();
        match self.before.take() {
            Some((level, base)) if work < base * (1.0 + self.worth(seen)) => {
                self.level = level;
                self.failed = (self.failed + 1).min(MOST_FAILED);
                self.rest = (1 << self.failed) - 1;
            }
            _ if self.rest > 0 => self.rest -= 1,
            _ if self.level < HIGHEST => {
                self.before = Some((self.level, work));
                self.level = (self.level * 2).min(HIGHEST);
            }
            _ => {}
        }
        self.level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(work: u64) -> Seen {
        Seen { work, full: true, span: SECOND, first_byte: Duration::ZERO }
    }

    /// A source that serves `per_request` a second for each request, up to `ceiling` in all.
    fn settle(per_request: u64, ceiling: u64, spans: u32) -> u32 {
        let mut climb = Climb::new();
        let mut level = FIRST;
        for _ in 0..spans {
            let work = (u64::from(level) * per_request).min(ceiling);
            level = climb.next(seen(work));
        }
        level
    }

    #[test]
    fn it_climbs_to_the_top_within_half_a_second_while_climbing_pays() {
        assert_eq!(settle(1000, u64::MAX, 6), HIGHEST);
        let spans = 6 * Climb::new().span(Duration::from_millis(20));
        assert!(spans < Duration::from_millis(500), "{spans:?}");
    }

    #[test]
    fn it_stays_where_more_brings_nothing() {
        assert_eq!(settle(1000, 80_000, 10), 64);
    }

    #[test]
    fn what_comes_while_connections_are_opened_is_no_measure() {
        let mut climb = Climb::new();
        let mut level = |work| climb.next(seen(work));
        assert_eq!(level(10_000), FIRST);
        // all that there is: to go on from the first span would have seemed to pay
        let levels = [level(20_000), level(20_000), level(20_000)];
        assert_eq!(levels, [FIRST * 2, FIRST, FIRST]);
    }

    #[test]
    fn a_source_that_takes_its_time_is_soon_asked_for_more() {
        let mut climb = Climb::new();
        let mut level = |work| climb.next(seen(work));
        assert_eq!([level(0), level(1000), level(1000)], [FURTHER, FURTHER * 2, FURTHER]);
        // and while nothing comes, for more still: what takes long is no sign of too much
        let mut climb = Climb::new();
        let mut level = |work| climb.next(seen(work));
        assert_eq!([level(0), level(0)], [FURTHER, FURTHER * 2]);
    }

    #[test]
    fn what_cannot_show_yet_is_not_asked_for() {
        let first_byte = SECOND / 2;
        let level = |more: u64| {
            let mut climb = Climb::new();
            let mut level = |work| climb.next(Seen { first_byte, ..seen(work) });
            assert_eq!([level(1000), level(1000)], [FIRST, FIRST * 2]);
            level(1000 + more)
        };
        // half of 40 %: the requests that are new answered in half of the span
        assert_eq!([level(190), level(210)], [FIRST, FIRST * 4]);
    }

    #[test]
    fn a_stumble_at_the_start_costs_little() {
        let mut climb = Climb::new();
        let mut level = FIRST;
        for span in 0..12 {
            // nothing came in the second span, for whatever reason
            let work = if span == 1 { 0 } else { u64::from(level) * 1000 };
            level = climb.next(seen(work));
        }
        assert_eq!(level, HIGHEST);
    }

    #[test]
    fn an_idle_level_does_not_move() {
        let mut climb = Climb::new();
        for work in [0, 10, 1_000_000] {
            assert_eq!(climb.next(Seen { full: false, ..seen(work) }), FIRST);
        }
    }
}
