//! How many requests are in flight: a level that finds itself.
//!
//! The level climbs while climbing pays and falls when the source says so. What pays is measured
//! over short spans, as bytes and objects together, so that one rule serves many small objects
//! (bound by latency) and few large ones (bound by bandwidth).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;

use super::progress::Counters;
use crate::store::Meter;

/// Where the climb begins: enough to see what more brings, little enough for any source.
const FIRST: u32 = 16;
/// The highest level. At 20 ms to the first byte, 512 requests of small objects are 25,000 a
/// second, above what OSS grants an account (10,000); each may hold a frame of 128 KiB.
const HIGHEST: u32 = 512;
/// The lowest level after being told to slow down.
const LOWEST: u32 = 4;
/// The span of one measurement. Several round trips, and several climbs within two seconds.
const SPAN: Duration = Duration::from_millis(200);
/// What an object counts in bytes when bytes and objects are added up.
const OBJECT_BYTES: u64 = 64 << 10;
/// A climb must bring this much more to be kept, in percent.
const WORTH_PERCENT: u64 = 5;
/// Spans of rest after a climb that brought nothing, before the next try.
const REST: u32 = 15;

/// What was seen in one span.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Bytes and objects done, an object counted as [`OBJECT_BYTES`].
    pub(crate) work: u64,
    /// Whether every permitted request was in flight.
    pub(crate) full: bool,
    /// Answers that asked for fewer requests.
    pub(crate) throttled: u64,
}

/// The rule by which the level moves. Pure.
#[derive(Debug)]
pub(crate) struct Climb {
    level: u32,
    /// Level and work per span before the last climb, while it is judged.
    before: Option<(u32, u64)>,
    rest: u32,
}

impl Climb {
    pub(crate) fn new() -> Self {
        Self { level: FIRST, before: None, rest: 0 }
    }

    /// The level for the next span.
    pub(crate) fn next(&mut self, seen: Seen) -> u32 {
        let Seen { work, full, throttled } = seen;
        if throttled > 0 {
            self.level = (self.level * 7 / 10).max(LOWEST);
            self.before = None;
            self.rest = REST;
            return self.level;
        }
        if !full {
            // what was not asked for says nothing about what more would bring
            self.before = None;
            return self.level;
        }
        match self.before.take() {
            Some((level, base)) if work < base + base * WORTH_PERCENT / 100 => {
                self.level = level;
                self.rest = REST;
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
    pub(crate) fn new(fixed: Option<u32>) -> Arc<Self> {
        Arc::new(Self {
            level: AtomicU32::new(fixed.unwrap_or(FIRST)),
            slots: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            raised: Notify::new(),
            fixed: fixed.is_some(),
        })
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

    /// Steers until dropped, by what `counters` and `meter` show.
    pub(crate) async fn steer(self: Arc<Self>, counters: Arc<Counters>, meter: Arc<Meter>) {
        if self.fixed {
            return;
        }
        let mut climb = Climb::new();
        let work = |counters: &Counters| {
            counters.fetched_bytes.load(Relaxed)
                + counters.fetched_objects.load(Relaxed) * OBJECT_BYTES
        };
        let (mut last_work, mut last_throttled) = (work(&counters), meter.throttled.load(Relaxed));
        let mut every = tokio::time::interval(SPAN);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        every.tick().await;
        loop {
            every.tick().await;
            let (work, throttled) = (work(&counters), meter.throttled.load(Relaxed));
            let seen = Seen {
                work: work - last_work,
                full: self.is_full(),
                throttled: throttled - last_throttled,
            };
            (last_work, last_throttled) = (work, throttled);
            let level = climb.next(seen);
            if level != self.level() {
                tracing::trace!(level, work = seen.work, "concurrency");
                self.set(level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source that serves `per_request` a span for each request, up to `ceiling` in all.
    fn settle(per_request: u64, ceiling: u64, spans: u32) -> u32 {
        let mut climb = Climb::new();
        let mut level = FIRST;
        for _ in 0..spans {
            let work = (u64::from(level) * per_request).min(ceiling);
            level = climb.next(Seen { work, full: true, throttled: 0 });
        }
        level
    }

    #[test]
    fn it_climbs_to_the_top_within_two_seconds_while_climbing_pays() {
        assert_eq!(settle(1000, u64::MAX, 10), HIGHEST);
    }

    #[test]
    fn it_stays_where_more_brings_nothing() {
        let level = settle(1000, 40_000, 10);
        assert!((32..=64).contains(&level), "{level}");
    }

    #[test]
    fn it_falls_when_told_to_and_rests() {
        let mut climb = Climb::new();
        let told = Seen { work: 1000, full: true, throttled: 3 };
        assert_eq!(climb.next(told), FIRST * 7 / 10);
        for _ in 0..20 {
            climb.next(told);
        }
        assert_eq!(climb.level, LOWEST);
        let calm = Seen { throttled: 0, ..told };
        assert_eq!(climb.next(calm), LOWEST);
    }

    #[test]
    fn an_idle_level_does_not_move() {
        let mut climb = Climb::new();
        for work in [0, 10, 1_000_000] {
            assert_eq!(climb.next(Seen { work, full: false, throttled: 0 }), FIRST);
        }
    }
}
