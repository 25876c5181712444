//! How many requests are in flight, and how many are sent in a second: both find themselves.
//!
//! The level (requests in flight) climbs while climbing pays. What pays is measured over short spans,
//! as bytes and objects together, so that one rule serves many small objects (bound by latency) and few
//! large ones (bound by bandwidth). The tempo (requests in a second) is free until the source answers
//! that it wants fewer; then it is what the source was seen to grant, and grows again little by little.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::progress::Counters;
use crate::lock::lock;
use crate::store::Meter;

/// Where the climb begins: enough to see what more brings, little enough for any source.
const FIRST: u32 = 64;
/// The highest level. At 20 ms to the first byte, 512 requests of small objects are 25,000 a
/// second, above what OSS grants an account (10,000).
const HIGHEST: u32 = 512;
/// The longest span of one measurement: long enough to tell 5 % from noise.
const SPAN: Duration = Duration::from_millis(200);
/// The shortest, at the start: what is looked for there is a doubling, which noise is not.
const FIRST_SPAN: Duration = Duration::from_millis(20);
/// What an object counts in bytes when bytes and objects are added up.
const OBJECT_BYTES: u64 = 64 << 10;
/// A climb must bring this much more to be kept, in percent; at the start, when a doubled level shows
/// in half of the span that follows.
const WORTH_PERCENT: u64 = 5;
const WORTH_PERCENT_FIRST: u64 = 20;
/// Spans of rest after a climb that brought nothing, before the next try: twice as many after each, up
/// to 2 to this power. One that failed at the start may have met a listing that had nothing yet.
const MOST_FAILED: u32 = 4;
/// As many failures in, the start is over.
const START_FAILED: u32 = 2;

/// The time in which the granted tempo is measured at the first refusal; at each further one it is
/// twice as long, up to [`SPAN`].
const GRANTED_SPAN: Duration = Duration::from_millis(20);
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
const TEMPO_GROWTH: f64 = 0.05;
/// The same until it was refused often enough to be known: the first measure is of a moment in which
/// most of those who ask had just been refused.
const TEMPO_GROWTH_FIRST: f64 = 0.5;
/// The most by which it grows at once.
const TEMPO_LEAP: f64 = 0.5;
/// The slowest tempo, and the least that one refusal leaves of it.
const SLOWEST: f64 = 16.0;
const LEFT: f64 = 0.5;
/// How far ahead requests are given their turns.
const LOOK_AHEAD: Duration = Duration::from_millis(100);
/// A tempo this many times above what is asked for holds nothing, and is forgotten.
const ABOVE_ASKED: f64 = 4.0;
/// Waiting for less than this is not worth a timer, whose grain it is.
const GRAIN: Duration = Duration::from_millis(1);

/// What was seen in one span.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Bytes and objects done, an object counted as [`OBJECT_BYTES`].
    pub(crate) work: u64,
    /// Whether every permitted request was in flight, and none waited for its turn.
    pub(crate) full: bool,
    /// How long the span was.
    pub(crate) span: Duration,
}

/// The rule by which the level moves. Pure.
#[derive(Debug)]
pub(crate) struct Climb {
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
    pub(crate) fn new() -> Self {
        Self { level: FIRST, fresh: true, before: None, rest: 0, failed: 0 }
    }

    fn starting(&self) -> bool {
        self.failed < START_FAILED
    }

    /// How long to look next, where an answer takes `first_byte` to begin.
    pub(crate) fn span(&self, first_byte: Duration) -> Duration {
        match self.starting() {
            true => (first_byte * 2).clamp(FIRST_SPAN, SPAN),
            false => SPAN,
        }
    }

    /// The level for the next span.
    pub(crate) fn next(&mut self, seen: Seen) -> u32 {
        if !seen.full {
            // what was not asked for says nothing about what more would bring
            self.before = None;
            return self.level;
        }
        // what came while connections were opened is no measure of what more of them would bring
        if std::mem::take(&mut self.fresh) && seen.work > 0 {
            return self.level;
        }
        let work = seen.work as f64 / seen.span.as_secs_f64().max(1e-3);
        let percent = if self.starting() { WORTH_PERCENT_FIRST } else { WORTH_PERCENT };
        match self.before.take() {
            Some((level, base)) if work < base * (100 + percent) as f64 / 100.0 => {
                self.level = level;
                self.failed = (self.failed + 1).min(MOST_FAILED);
                self.rest = 1 << self.failed;
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

/// When a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// After so long.
    In(Duration),
    /// Not foreseen yet: the tempo may be another by then.
    AskAgain(Duration),
}

/// The rule by which the tempo moves, and whose turn it is. Pure: the caller brings the clock.
#[derive(Debug)]
struct Tempo {
    /// Requests in a second; `None` while the source has not minded.
    rate: Option<f64>,
    /// Since when, and from which counts on, what the source grants is measured.
    since: Duration,
    granted: u64,
    refused: u64,
    /// How long that takes where it refuses any.
    span: Duration,
    /// When the source last minded.
    minded: Duration,
    /// When the next request has its turn.
    next: Duration,
}

impl Tempo {
    fn new() -> Self {
        Self {
            rate: None,
            since: Duration::ZERO,
            granted: 0,
            refused: 0,
            span: GRANTED_SPAN,
            minded: Duration::ZERO,
            next: Duration::ZERO,
        }
    }

    /// Learns from how many requests were granted by `now`, and how many refused.
    fn learn(&mut self, now: Duration, granted: u64, refused: u64) {
        if self.granted + self.refused == 0 {
            // while nothing is answered there is nothing to measure
            (self.since, self.granted, self.refused) = (now, granted, refused);
            return;
        }
        let span = now.saturating_sub(self.since);
        let no = refused.saturating_sub(self.refused);
        if span < if no > 0 { self.span } else { SPAN } {
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
            self.span = (self.span * 2).min(SPAN);
        } else if let Some(rate) = self.rate {
            let calm = (now - self.minded).as_secs_f64();
            let starting = self.span < SPAN;
            let first_second = if starting { TEMPO_GROWTH_FIRST } else { TEMPO_GROWTH };
            let growth = first_second * seconds * (calm - 1.0).max(0.0).exp2();
            let rate = rate * (1.0 + growth.min(TEMPO_LEAP));
            self.rate = (rate <= measured.max(SLOWEST) * ABOVE_ASKED).then_some(rate);
        }
        (self.since, self.granted, self.refused) = (now, granted, refused);
    }

    /// When the request that asks at `now` has its turn.
    fn turn(&mut self, now: Duration) -> Turn {
        let Some(rate) = self.rate else { return Turn::In(Duration::ZERO) };
        let wait = self.next.saturating_sub(now);
        if wait > LOOK_AHEAD {
            return Turn::AskAgain(LOOK_AHEAD);
        }
        self.next = self.next.max(now) + Duration::from_secs_f64(1.0 / rate);
        Turn::In(wait)
    }
}

/// How many requests there may be, and are.
#[derive(Debug)]
pub(crate) struct Pace {
    level: AtomicU32,
    /// Slots, each of which makes one request at a time.
    slots: AtomicU32,
    /// Of these, those that wait for something to do.
    waiting: AtomicU32,
    raised: Notify,
    fixed: bool,
    meter: Arc<Meter>,
    started: Instant,
    tempo: Mutex<Tempo>,
    /// Requests that waited for their turn.
    held: AtomicU64,
}

/// A slot that waits, while this lives.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Pace {
    /// A fixed level, or one that finds itself.
    pub(crate) fn new(fixed: Option<u32>, meter: Arc<Meter>) -> Arc<Self> {
        Arc::new(Self {
            level: AtomicU32::new(fixed.unwrap_or(FIRST)),
            slots: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            raised: Notify::new(),
            fixed: fixed.is_some(),
            meter,
            started: Instant::now(),
            tempo: Mutex::new(Tempo::new()),
            held: AtomicU64::new(0),
        })
    }

    /// Waits until a request has its turn.
    pub(crate) async fn turn(&self) {
        loop {
            let turn = {
                let mut tempo = lock(&self.tempo);
                let (granted, refused) = (&self.meter.granted, &self.meter.refused);
                let now = self.started.elapsed();
                tempo.learn(now, granted.load(Relaxed), refused.load(Relaxed));
                tempo.turn(now)
            };
            let (has_turn, wait) = match turn {
                Turn::In(wait) => (true, wait),
                Turn::AskAgain(wait) => (false, wait),
            };
            if wait > GRAIN {
                self.held.fetch_add(1, Relaxed);
                tokio::time::sleep(wait).await;
            }
            if has_turn {
                return;
            }
        }
    }

    /// The level now.
    pub(crate) fn level(&self) -> u32 {
        self.level.load(Relaxed)
    }

    /// Counts one more slot, if there may be one.
    pub(crate) fn admit(&self) -> bool {
        let more = |slots: u32| (slots < self.level()).then_some(slots + 1);
        self.slots.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// Counts one slot less, if there are too many: the one that asks.
    pub(crate) fn retire(&self) -> bool {
        let fewer = |slots: u32| (slots > self.level()).then(|| slots - 1);
        self.slots.fetch_update(Relaxed, Relaxed, fewer).is_ok()
    }

    /// Counts one slot less: there is nothing more to do.
    pub(crate) fn leave(&self) {
        self.slots.fetch_sub(1, Relaxed);
    }

    /// Counts a slot as waiting for something to do.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(&self.waiting)
    }

    /// Whether any slot waits for something to do.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Waits until the level rises.
    pub(crate) async fn raised(&self) {
        self.raised.notified().await;
    }

    fn set(&self, level: u32) {
        if level > self.level.swap(level, Relaxed) {
            self.raised.notify_one();
        }
    }

    /// Whether every permitted request is in flight.
    fn is_full(&self) -> bool {
        self.waiting.load(Relaxed) == 0 && self.slots.load(Relaxed) >= self.level()
    }

    /// Steers until dropped, by what `counters` and the meter show.
    pub(crate) async fn steer(self: Arc<Self>, counters: Arc<Counters>) {
        if self.fixed {
            return;
        }
        let mut climb = Climb::new();
        let look = || {
            let bytes = counters.fetched_bytes.load(Relaxed);
            let objects = counters.fetched_objects.load(Relaxed);
            let answers = self.meter.first_byte_count.load(Relaxed);
            let waited = self.meter.first_byte_us.load(Relaxed);
            (bytes + objects * OBJECT_BYTES, answers, waited, self.held.load(Relaxed))
        };
        let mut last = look();
        let mut first_byte = Duration::ZERO;
        loop {
            let begun = Instant::now();
            tokio::time::sleep(climb.span(first_byte)).await;
            let now = look();
            if let Some(mean) = (now.2 - last.2).checked_div(now.1 - last.1) {
                first_byte = Duration::from_micros(mean);
            }
            let full = self.is_full() && now.3 == last.3;
            let seen = Seen { work: now.0 - last.0, full, span: begun.elapsed() };
            last = now;
            let level = climb.next(seen);
            if level != self.level() {
                tracing::trace!(level, work = seen.work, ?first_byte, "concurrency");
                self.set(level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A source that serves `per_request` a second for each request, up to `ceiling` in all.
    fn settle(per_request: u64, ceiling: u64, spans: u32) -> u32 {
        let mut climb = Climb::new();
        let mut level = FIRST;
        for _ in 0..spans {
            let work = (u64::from(level) * per_request).min(ceiling);
            level = climb.next(Seen { work, full: true, span: SECOND });
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
        let level = settle(1000, 80_000, 10);
        assert!((FIRST..=FIRST * 2).contains(&level), "{level}");
    }

    #[test]
    fn what_comes_while_connections_are_opened_is_no_measure() {
        let mut climb = Climb::new();
        let mut level = |work| climb.next(Seen { work, full: true, span: SECOND });
        assert_eq!(level(10_000), FIRST);
        // all that there is: to go on from the first span would have seemed to pay
        let levels = [level(20_000), level(20_000), level(20_000)];
        assert_eq!(levels, [FIRST * 2, FIRST, FIRST]);
    }

    #[test]
    fn a_stumble_at_the_start_costs_little() {
        let mut climb = Climb::new();
        let mut level = FIRST;
        for span in 0..12 {
            // nothing came in the second span, for whatever reason
            let work = if span == 1 { 0 } else { u64::from(level) * 1000 };
            level = climb.next(Seen { work, full: true, span: SECOND });
        }
        assert_eq!(level, HIGHEST);
    }

    #[test]
    fn an_idle_level_does_not_move() {
        let mut climb = Climb::new();
        for work in [0, 10, 1_000_000] {
            assert_eq!(climb.next(Seen { work, full: false, span: SECOND }), FIRST);
        }
    }

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
        for span in 1..50 {
            // a little less than the source grants, of which a few came at once
            let (granted, refused) = (378 * u64::from(span), 3 * u64::from(span));
            tempo.learn(SECOND + SPAN * span, 41 + granted, 10 + refused);
        }
        assert_eq!(tempo.rate, Some(rate));
    }

    #[test]
    fn what_is_asked_for_again_has_its_room() {
        let mut tempo = told_to_slow_down();
        // all that the source grants, and some more that were refused before
        tempo.learn(SECOND + SPAN, 41 + 400, 10 + 30);
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
