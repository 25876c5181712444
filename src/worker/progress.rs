//! What a run has done so far, and how it is shown.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle as BarStyle};

use crate::aside::Aside;
use crate::handoff::{Progress, ProgressStyle};

/// How often a machine-readable line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How often the bar is drawn anew.
const BAR_EVERY: Duration = Duration::from_millis(200);
/// The span over which the shown rate is averaged, in samples of [`BAR_EVERY`].
const RATE_SAMPLES: usize = 25;

/// Counted as it happens, read by whoever shows or reports it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Under the prefix, as listed.
    pub(crate) listed_objects: AtomicU64,
    pub(crate) listed_bytes: AtomicU64,
    pub(crate) listing_done: AtomicBool,
    /// That pass the filters, other shards' included.
    pub(crate) taken: AtomicU64,
    /// Left out by filters.
    pub(crate) skipped: AtomicU64,
    /// Left out because they are no safe path.
    pub(crate) unmappable: AtomicU64,
    /// This run's to have in the volume at the end.
    pub(crate) wanted_objects: AtomicU64,
    pub(crate) wanted_bytes: AtomicU64,
    /// In the volume: committed, or part of an unfinished object.
    pub(crate) done_objects: AtomicU64,
    pub(crate) done_bytes: AtomicU64,
    /// Over the wire, what was fetched twice included.
    pub(crate) fetched_objects: AtomicU64,
    pub(crate) fetched_bytes: AtomicU64,
    pub(crate) kept_objects: AtomicU64,
    pub(crate) kept_parts: AtomicU64,
    pub(crate) removed_objects: AtomicU64,
    pub(crate) refetched: AtomicU64,
    /// Nanoseconds of file calls, summed.
    pub(crate) writing_ns: AtomicU64,
}

/// Adds what a source states, which may add up to more than there can be.
pub(crate) fn add_stated(counter: &AtomicU64, bytes: u64) {
    let add = |now: u64| Some(now.saturating_add(bytes));
    // the closure always gives a value
    let _ = counter.fetch_update(Relaxed, Relaxed, add);
}

impl Counters {
    fn snapshot(&self, bytes_per_s: u64) -> Progress {
        let (bytes, bytes_total) = (self.done_bytes.load(Relaxed), self.wanted_bytes.load(Relaxed));
        let listing_done = self.listing_done.load(Relaxed);
        let left = bytes_total.saturating_sub(bytes);
        Progress {
            ossvp: "progress".to_owned(),
            v: 1,
            objects: self.done_objects.load(Relaxed),
            bytes,
            bytes_total,
            listing_done,
            bytes_per_s,
            eta_s: (listing_done && (bytes_per_s > 0 || left == 0))
                .then(|| left.div_ceil(bytes_per_s.max(1))),
        }
    }
}

/// Shows `counters` until dropped.
#[derive(Debug)]
pub(crate) struct Display {
    shown: Option<Aside<()>>,
    bar: Option<ProgressBar>,
    /// What a last line is made of, and since when.
    lines: Option<(Arc<Counters>, Instant)>,
}

impl Display {
    /// Starts to show in the asked style; `auto` is a bar on a terminal, else lines.
    pub(crate) fn start(style: ProgressStyle, counters: Arc<Counters>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        match style {
            ProgressStyle::None => Self { shown: None, bar: None, lines: None },
            ProgressStyle::Auto if !terminal => Self::lines(counters),
            ProgressStyle::Json => Self::lines(counters),
            ProgressStyle::Auto | ProgressStyle::Bar => Self::bar(counters),
        }
    }

    fn lines(counters: Arc<Counters>) -> Self {
        let counted = Arc::clone(&counters);
        let shown = Aside::spawn(async move {
            let mut rate = Rate::default();
            loop {
                tokio::time::sleep(LINE_EVERY).await;
                line(&counted, rate.sample(counted.done_bytes.load(Relaxed)));
            }
        });
        Self { shown: Some(shown), bar: None, lines: Some((counters, Instant::now())) }
    }

    fn bar(counters: Arc<Counters>) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template = "{bar:30.cyan/blue} {decimal_bytes} of {prefix}{decimal_total_bytes}  {msg}";
        if let Ok(style) = BarStyle::with_template(template) {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
        let drawn = bar.clone();
        let shown = Aside::spawn(async move {
            let mut rate = Rate::default();
            loop {
                let bytes_per_s = rate.sample(counters.done_bytes.load(Relaxed));
                draw(&drawn, &counters, bytes_per_s);
                tokio::time::sleep(BAR_EVERY).await;
            }
        });
        Self { shown: Some(shown), bar: Some(bar), lines: None }
    }
}

fn line(counters: &Counters, bytes_per_s: u64) {
    // stderr gone is no reason to stop filling the volume
    let _ = writeln!(std::io::stderr(), "{}", counters.snapshot(bytes_per_s).to_json());
}

fn draw(bar: &ProgressBar, counters: &Counters, bytes_per_s: u64) {
    let Progress { objects, bytes, bytes_total, listing_done, eta_s, .. } =
        counters.snapshot(bytes_per_s);
    bar.set_length(bytes_total.max(1));
    bar.set_position(bytes);
    bar.set_prefix(if listing_done { "" } else { "at least " });
    let wanted = counters.wanted_objects.load(Relaxed);
    let rate = indicatif::DecimalBytes(bytes_per_s);
    let eta = match eta_s {
        Some(seconds) => {
            format!("  {} left", indicatif::HumanDuration(Duration::from_secs(seconds)))
        }
        None => String::new(),
    };
    let listing = if listing_done { "" } else { ", listing" };
    bar.set_message(format!("{rate}/s  {objects} of {wanted} objects{listing}{eta}"));
}

impl Drop for Display {
    fn drop(&mut self) {
        self.shown = None;
        if let Some((counters, started)) = &self.lines {
            let bytes = counters.done_bytes.load(Relaxed) as f64;
            line(counters, (bytes / started.elapsed().as_secs_f64().max(1e-3)) as u64);
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes a second over the last samples.
#[derive(Debug, Default)]
struct Rate {
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    fn sample(&mut self, bytes: u64) -> u64 {
        let now = Instant::now();
        self.samples.push_back((now, bytes));
        if self.samples.len() > RATE_SAMPLES {
            self.samples.pop_front();
        }
        match self.samples.front() {
            Some((then, before)) if now > *then => {
                (bytes.saturating_sub(*before) as f64 / (now - *then).as_secs_f64()) as u64
            }
            _ => 0,
        }
    }
}
