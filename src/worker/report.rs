//! What a run leaves for those who asked: outcome, report, figures.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::Success;
use super::cap::Cap;
use super::failure::Failure;
use super::options::Options;
use super::pace::Pace;
use super::progress::Counters;
use crate::handoff::{ExitCode, Figures, Marker, Outcome, Plan, Report, ShardOf};
use crate::lock::lock;
use crate::store::Meter;
use crate::telemetry::chain;

/// The most samples of the concurrency that a report keeps: one a second for an hour, then the
/// last hour.
const MOST_SAMPLES: usize = 3600;

/// Sees what happens in a run, from outside.
#[derive(Debug)]
pub(crate) struct Watch {
    started: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    counters: Arc<Counters>,
    meter: Option<Arc<Meter>>,
    cap: Option<Arc<Cap>>,
    listed: Option<Duration>,
    fetched: Option<Duration>,
    syncing: Duration,
    concurrency: Vec<(u32, u32)>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), seen: Mutex::default() }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// A filling begins: counters from zero.
    pub(crate) fn begin(&self) -> Arc<Counters> {
        let counters = Arc::<Counters>::default();
        self.seen().counters = Arc::clone(&counters);
        counters
    }

    pub(crate) fn reads(&self, meter: Arc<Meter>) {
        self.seen().meter = Some(meter);
    }

    pub(crate) fn caps(&self, cap: Arc<Cap>) {
        self.seen().cap = Some(cap);
    }

    pub(crate) fn listed(&self) {
        self.seen().listed = Some(self.started.elapsed());
    }

    pub(crate) fn fetched(&self) {
        self.seen().fetched = Some(self.started.elapsed());
    }

    pub(crate) fn synced(&self, took: Duration) {
        self.seen().syncing = took;
    }

    /// Notes the concurrency once a second until dropped.
    pub(crate) async fn sample(self: Arc<Self>, pace: Arc<Pace>) {
        loop {
            let second = u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX);
            {
                let mut seen = self.seen();
                if seen.concurrency.len() == MOST_SAMPLES {
                    seen.concurrency.remove(0);
                }
                seen.concurrency.push((second, pace.level()));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn figures(&self) -> Figures {
        let seen = self.seen();
        let seconds = |span: Option<Duration>| span.unwrap_or_default().as_secs_f64();
        let counters = &seen.counters;
        let meter = |read: fn(&Meter) -> u64| seen.meter.as_deref().map_or(0, read);
        Figures {
            seconds: self.started.elapsed().as_secs_f64(),
            seconds_listing: seconds(seen.listed),
            seconds_fetching: seconds(seen.fetched),
            seconds_capped: seen.cap.as_ref().map_or(0.0, |cap| cap.waited_seconds()),
            seconds_writing: counters.writing_ns.load(Relaxed) as f64 / 1e9,
            seconds_syncing: seen.syncing.as_secs_f64(),
            objects_listed: counters.listed_objects.load(Relaxed),
            bytes_listed: counters.listed_bytes.load(Relaxed),
            objects_fetched: counters.fetched_objects.load(Relaxed),
            bytes_fetched: counters.fetched_bytes.load(Relaxed),
            objects_kept: counters.kept_objects.load(Relaxed),
            objects_removed: counters.removed_objects.load(Relaxed),
            parts_kept: counters.kept_parts.load(Relaxed),
            refetched: counters.refetched.load(Relaxed),
            requests_list: meter(|meter| meter.list.load(Relaxed)),
            requests_get: meter(|meter| meter.get.load(Relaxed)),
            requests_head: meter(|meter| meter.head.load(Relaxed)),
            retries: meter(|meter| meter.retries.load(Relaxed)),
            hedged: meter(|meter| meter.hedged.load(Relaxed)),
            throttled: meter(|meter| meter.throttled.load(Relaxed)),
            concurrency: seen.concurrency.clone(),
            cpu_seconds: cpu_seconds(),
            peak_rss_bytes: peak_rss_bytes(),
        }
    }
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// `VmHWM` of proc(5), 0 where there is no such file.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code.
    pub code: ExitCode,
    /// Why, if it failed.
    pub failure: Option<Failure>,
    /// The marker, if the volume is complete.
    pub marker: Option<Marker>,
    /// Whether it was complete before.
    pub already_complete: bool,
    /// The plan of a dry run.
    pub plan: Option<Plan>,
    /// What it took.
    pub figures: Figures,
}

/// Writes outcome and report, and says how the run ended.
pub(crate) fn ended(options: &Options, watch: &Watch, result: Result<Success, Failure>) -> Ended {
    let mut ended = Ended {
        code: ExitCode::Complete,
        failure: None,
        marker: None,
        already_complete: false,
        plan: None,
        figures: watch.figures(),
    };
    match result {
        Ok(Success::Filled(marker)) => ended.marker = Some(*marker),
        Ok(Success::AlreadyComplete(marker)) => {
            ended.marker = Some(*marker);
            ended.already_complete = true;
        }
        Ok(Success::Planned(plan)) => ended.plan = Some(plan),
        Err(failure) => {
            ended.code = failure.exit_code();
            ended.failure = Some(failure);
        }
    }
    let report = Report {
        ossvp: "report".to_owned(),
        v: 1,
        outcome: outcome(options, watch, &ended),
        marker: ended.marker.clone(),
        plan: ended.plan.clone(),
        figures: ended.figures.clone(),
    };
    let mut report = serde_json::to_string_pretty(&report).expect("plain values always serialise");
    report.push('\n');
    ended.owes(options.report.as_deref().map_or(Ok(()), |path| write(path, &report)));
    // last, so that it says what the exit code says
    let outcome = outcome(options, watch, &ended).to_json();
    ended.owes(options.outcome.as_deref().map_or(Ok(()), |path| write(path, &outcome)));
    ended
}

fn outcome(options: &Options, watch: &Watch, ended: &Ended) -> Outcome {
    let message = match (&ended.failure, &ended.marker, &ended.plan) {
        (Some(failure), ..) => chain(failure),
        (None, Some(marker), _) => format!(
            "{}complete: {} objects, {} bytes, {} verified{}",
            share(marker),
            marker.objects,
            marker.bytes,
            marker.verified.verified(),
            if ended.already_complete { ", before this run" } else { "" },
        ),
        (None, None, Some(plan)) => {
            format!("planned: {} objects, {} bytes", plan.objects, plan.bytes)
        }
        (None, None, None) => "nothing was done".to_owned(),
    };
    let seen = watch.seen();
    let counters = &seen.counters;
    let figures = &ended.figures;
    let outcome = Outcome::new(ended.code, message, options.identity.to_string());
    match &ended.marker {
        Some(marker) => Outcome {
            whole: ended.code == ExitCode::Complete && marker.shard == ShardOf::WHOLE,
            objects: marker.objects,
            bytes: marker.bytes,
            verified: marker.verified.verified(),
            unverified: marker.verified.unverified + marker.verified.off,
            bytes_per_s: marker.bytes_per_s,
            ..outcome
        },
        None => Outcome {
            objects: counters.done_objects.load(Relaxed),
            bytes: counters.done_bytes.load(Relaxed),
            bytes_per_s: (figures.bytes_fetched as f64 / figures.seconds.max(1e-3)) as u64,
            ..outcome
        },
    }
}

/// Whose marker it is, if it is not the whole volume's.
fn share(marker: &Marker) -> String {
    match marker.shard {
        ShardOf::WHOLE => String::new(),
        shard => format!("shard {shard} "),
    }
}

impl Ended {
    /// Fails a complete run whose files for others could not be written; of a run that failed
    /// already, the first cause says more.
    fn owes(&mut self, written: Result<(), Failure>) {
        if let (Err(failure), ExitCode::Complete) = (written, self.code) {
            self.code = failure.exit_code();
            self.failure = Some(failure);
        }
    }

    /// Why the run failed: one line with the whole chain of causes.
    pub fn message(&self) -> Option<String> {
        self.failure.as_ref().map(|failure| chain(failure))
    }
}

/// Makes sure that outcome and report can be written: terabytes later is late to hear that they
/// cannot.
pub(crate) fn check_writable(options: &Options) -> Result<(), Failure> {
    for path in [&options.report, &options.outcome].into_iter().flatten() {
        if !is_stdout(path) {
            // what an earlier run wrote stays until there is something new
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.map_err(unwritable(path))?;
        }
    }
    Ok(())
}

/// Writes in place, as a termination log must be: it is mounted, so it cannot be renamed over.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let written = match is_stdout(path) {
        true => std::io::stdout().write_all(text.as_bytes()),
        false => std::fs::write(path, text),
    };
    written.map_err(unwritable(path))
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

fn unwritable(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.display().to_string();
    |source| Failure::Output { path, source }
}

/// Prints the plan of a dry run for people.
///
/// # Errors
/// Those of `out`.
pub fn print_plan(out: &mut dyn Write, plan: &Plan) -> std::io::Result<()> {
    let Plan {
        objects,
        bytes,
        directories,
        fetch_objects,
        fetch_bytes,
        remove_objects,
        skipped,
        unmappable,
        capacity,
        fits,
        sizes,
    } = plan;
    writeln!(out, "objects      {objects}")?;
    writeln!(out, "bytes        {bytes}")?;
    writeln!(out, "directories  {directories}")?;
    writeln!(out, "to fetch     {fetch_objects} objects, {fetch_bytes} bytes")?;
    writeln!(out, "to remove    {remove_objects}")?;
    writeln!(out, "skipped      {skipped}")?;
    writeln!(out, "unmappable   {unmappable}")?;
    if let (Some(capacity), Some(fits)) = (capacity, fits) {
        let fits = if *fits { "fits" } else { "does not fit" };
        writeln!(out, "volume       {capacity} bytes: it {fits}")?;
    }
    for (bound, objects, bytes) in sizes {
        let bound = crate::handoff::ByteSize::new(*bound).to_string();
        writeln!(out, "below {bound:>7} {objects:>12} objects {bytes:>18} bytes")?;
    }
    Ok(())
}
