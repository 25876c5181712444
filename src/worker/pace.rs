//! How many requests are in flight, and how many are sent in a second: both find themselves.
//!
//! The level (requests in flight) climbs while climbing pays. What pays is measured over short spans,
//! as bytes and objects together, so that one rule serves many small objects (bound by latency) and few
//! large ones (bound by bandwidth). The tempo (requests in a second) is free until the source answers
//! that it wants fewer; then it is what the source was seen to grant, and grows again little by little.

mod climb;
mod tempo;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::climb::{Climb, FIRST, Seen};
use self::tempo::{Tempo, Turn};
use super::progress::Counters;
use crate::lock::lock;
use crate::store::Meter;

/// What an object counts in bytes when bytes and objects are added up.
const OBJECT_BYTES: u64 = 64 << 10;
/// Waiting for less than this is not worth a timer, whose grain it is.
const GRAIN: Duration = Duration::from_millis(1);

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
            let seen = Seen { work: now.0 - last.0, full, span: begun.elapsed(), first_byte };
            last = now;
            let level = climb.next(seen);
            if level != self.level() {
                tracing::trace!(level, work = seen.work, ?first_byte, "concurrency");
                self.set(level);
            }
        }
    }
}
