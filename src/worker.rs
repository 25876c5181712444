//! The worker: fills a volume.
//!
//! ```text
//! list -> layout -> plan -> fetch -> verify -> write -> commit -> marker
//! ```
//!
//! The listing comes page by page in key order, each key gets its place, the plan merges it with
//! what the volume holds, requests fetch what is missing, and a file gets its name only once it is
//! whole and checked. Nothing here grows with the number or the size of objects.

mod at;
mod audit;
mod cap;
mod combine;
mod commit;
mod failure;
mod fetch;
#[cfg(fuzzing)]
pub mod fuzzing;
mod inspect;
mod lanes;
mod large;
pub mod layout;
mod list;
mod manifest;
#[doc(hidden)]
pub mod measuring;
mod options;
mod own;
mod pace;
mod plan;
mod progress;
mod queue;
mod report;
mod shards;
mod sort;
mod staging;
mod sums;
mod transfer;
mod verify;
mod volume;
mod write;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use crate::aside::Aside;
use crate::handoff::{ExitCode, MARKER_VERSION, Marker, Plan, ShardOf, VerifyMode};
use crate::store::Source;
use crate::telemetry::chain;

pub use audit::{Audit, audit};
pub use cap::{Cap, Capped};
pub use failure::Failure;
pub use options::{Options, OptionsError};
pub use report::{Ended, print_plan};

use commit::{Committed, Ledger};
use inspect::{Capacity, Held, History, Past};
use lanes::Lanes;
use list::{Listing, Order};
use own::Own;
use pace::Pace;
use plan::{Action, Look, Needs, Planner};
use progress::{Counters, Display};
use queue::Queue;
use report::Watch;
use sort::SpillFile;
use staging::Staging;
use sums::Sums;
use transfer::Transfers;
use volume::Volume;
use write::{Calls, blocking};

/// The file that says that the source lists in another order than by bytes.
const UNORDERED: &str = "unordered";
/// How often the file system is synced during a run, so that a power cut costs at most this much
/// work. The kernel writes dirty pages back after 30 s anyway (`vm.dirty_expire_centisecs`).
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// Tells a run to stop, and with which exit code.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<Option<ExitCode>>);

impl Stop {
    /// A way to stop a run: send the exit code that it shall end with.
    pub fn channel() -> (watch::Sender<Option<ExitCode>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    async fn asked(&mut self) -> ExitCode {
        match self.0.wait_for(Option::is_some).await.map(|code| *code) {
            Ok(Some(code)) => code,
            // no one is left who could ask
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// Does what `options` ask for, until it is done or `stop` is asked for.
pub async fn run(options: Options, mut stop: Stop) -> Ended {
    let options = Arc::new(options);
    let watch = Arc::new(Watch::new());
    // on a task of its own: a file call that hangs there does not keep us from hearing the stop
    let mut performing = Aside::spawn({
        let (options, watch) = (Arc::clone(&options), Arc::clone(&watch));
        async move { perform(&options, &watch).await }
    });
    let result = tokio::select! {
        biased;
        code = stop.asked() => Err(Failure::Interrupted(code)),
        result = &mut performing => result.unwrap_or_else(|error| {
            Err(Failure::Unexpected(format!("the run did not finish: {error}")))
        }),
    };
    report::ended(&options, &watch, result)
}

/// What a run that did not fail has to show.
#[derive(Debug)]
pub(crate) enum Success {
    Filled(Box<Marker>),
    AlreadyComplete(Box<Marker>),
    Planned(Plan),
}

async fn perform(options: &Arc<Options>, watch: &Arc<Watch>) -> Result<Success, Failure> {
    let asked = Arc::clone(options);
    blocking(move || report::check_writable(&asked)).await?;
    let source = open_source(options, watch)?;
    if options.dry_run {
        return Ok(Success::Planned(dry_run(options, watch, &source).await?));
    }
    let Some(path) = options.volume.clone() else {
        return Err(Failure::Unexpected("a volume is needed".to_owned()));
    };
    let shard = options.shard;
    let volume = blocking(move || Ok(Arc::new(Volume::open(&path, shard)?))).await?;
    let standing = blocking({
        let (options, volume) = (Arc::clone(options), Arc::clone(&volume));
        move || {
            // or another shard marks the volume by a marker of ours that goes meanwhile
            let _alone = match options.shard {
                ShardOf::WHOLE => None,
                _ => shards::alone(volume.base())?,
            };
            match standing(&options, volume.base())? {
                Some(marker) => Ok(Standing::Whole(marker)),
                None => Ok(Standing::Share(standing(&options, volume.own())?)),
            }
        }
    })
    .await?;
    let share = match standing {
        Standing::Whole(marker) => return Ok(Success::AlreadyComplete(Box::new(marker))),
        Standing::Share(share) => share,
    };
    let sort_first = options.plan_first || volume.own().read(UNORDERED)?.is_some();
    let marker = match share {
        Some(marker) => marker,
        None => match fill(options, watch, &source, &volume, sort_first).await {
            Err(Failure::OutOfOrder { previous, key }) if !sort_first => {
                tracing::warn!(%previous, %key, "listing out of order: sorting it first");
                // a merge with an unordered listing takes what comes late for gone, and removes it:
                // once is enough
                volume.own().write(UNORDERED, b"")?;
                fill(options, watch, &source, &volume, true).await?
            }
            filled => filled?,
        },
    };
    let whole = if options.shard == ShardOf::WHOLE {
        None
    } else {
        let (volume, marker) = (Arc::clone(&volume), marker.clone());
        blocking(move || shards::join(&volume, &marker)).await?
    };
    Ok(Success::Filled(Box::new(whole.unwrap_or(marker))))
}

fn open_source(options: &Options, watch: &Watch) -> Result<Source, Failure> {
    let source = Source::open(&options.source, &options.connection)?;
    watch.reads(source.meter());
    Ok(match options.throughput {
        None => source,
        Some(rate) => {
            let cap = Arc::new(Cap::new(rate));
            watch.caps(Arc::clone(&cap));
            source.decorate(move |objects| Arc::new(Capped::new(objects, Arc::clone(&cap))))
        }
    })
}

fn needs(options: &Options, capacity: Option<Capacity>, folds_names: bool) -> Needs {
    let not_empty = (!options.allow_empty).then(|| options.source.to_string());
    Needs { demands: options.demands(), capacity, not_empty, folds_names }
}

/// The markers that were found.
enum Standing {
    /// The volume is complete.
    Whole(Marker),
    /// It is not; of a shard, its share may be.
    Share(Option<Marker>),
}

/// The marker that stands, if it says everything that is asked for. One that says less is removed:
/// what is missing will be done.
fn standing(options: &Options, own: &Own) -> Result<Option<Marker>, Failure> {
    let marker = match inspect::marker(own) {
        Ok(Some(marker)) => marker,
        Ok(None) => return Ok(None),
        Err(Failure::Version { .. }) if options.force => {
            own.remove(inspect::MARKER)?;
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    };
    let same = marker.source == options.identity;
    if !same && !options.force {
        return Err(Failure::Foreign {
            partial: false,
            held: marker.source.told_from(&options.identity),
            asked: options.identity.told_from(&marker.source),
        });
    }
    let verified = options.demands().met_by(&marker.verified);
    if same && verified && (marker.sha256 || !options.sha256) && !options.force {
        return Ok(Some(marker));
    }
    own.remove(inspect::MARKER)?;
    Ok(None)
}

/// Removes every file and directory of `history`. Among `shards` a file that is not as it was
/// committed may be another's, who has discarded its own share already and put a new file there.
fn discard(volume: &Volume, history: &mut History, shards: ShardOf) -> Result<(), Failure> {
    while let Some(held) = history.next()? {
        let is_ours = match &held {
            Held::File { record, .. } if shards != ShardOf::WHOLE => {
                plan::look(volume, record)? == Look::AsCommitted
            }
            Held::File { .. } | Held::Directory { .. } => true,
        };
        if is_ours {
            held.remove_from(volume)?;
        }
    }
    Ok(())
}

/// Refuses a volume that another number of workers has begun: their files are in manifests that
/// this worker does not keep. A whole run, which has the volume alone, discards them with `--force`.
fn same_division(options: &Options, volume: &Volume) -> Result<(), Failure> {
    let base = volume.base();
    let others: Vec<ShardOf> = base
        .shards()?
        .into_iter()
        .filter(|shard| shard.count != options.shard.count)
        .chain((options.shard != ShardOf::WHOLE).then_some(ShardOf::WHOLE))
        .collect();
    for shard in others {
        let Some(own) = base.shard(shard)? else { continue };
        let Some(past) = inspect::past(&own, volume.own().spill())? else { continue };
        if !(options.force && options.shard == ShardOf::WHOLE) {
            let workers = |count| match count {
                1 => "one worker".to_owned(),
                count => format!("{count} workers"),
            };
            return Err(Failure::Division {
                held: workers(shard.count),
                asked: workers(options.shard.count),
            });
        }
        let mut history = past.history;
        // no shard is there: this run has the volume alone
        discard(volume, &mut history, ShardOf::WHOLE)?;
        own.remove(inspect::MARKER)?;
        own.remove(inspect::MANIFEST)?;
        Staging::open(&own)?.clean(|_| false)?;
    }
    Ok(())
}

/// What earlier runs of the same source left. Another source's files are removed with `--force`,
/// else they are an error.
fn remaining(options: &Options, volume: &Arc<Volume>) -> Result<History, Failure> {
    let past = match inspect::past(volume.own(), volume.own().spill()) {
        Ok(Some(past)) => past,
        Ok(None) => return Ok(History::none()),
        Err(Failure::Version { .. }) if options.force => return Ok(History::none()),
        Err(failure) => return Err(failure),
    };
    let Past { identity, mut history } = past;
    if identity == options.identity {
        return Ok(history);
    }
    // a run that failed before its first commit (a bucket's name mistyped) leaves nothing to protect
    let holds_nothing = history.is_empty() && volume.staging().clean(resumable)? == 0;
    if !options.force && !holds_nothing {
        return Err(Failure::Foreign {
            partial: true,
            held: identity.told_from(&options.identity),
            asked: options.identity.told_from(&identity),
        });
    }
    discard(volume, &mut history, options.shard)?;
    volume.own().remove(inspect::MANIFEST)?;
    volume.own().remove(UNORDERED)?;
    volume.staging().clean(|_| false)?;
    Ok(History::none())
}

/// Whether a staged file may be of use to this run: those of large objects, which are named by
/// their key.
fn resumable(name: &str) -> bool {
    let name = name.strip_suffix(large::PARTS).unwrap_or(name);
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Fills the volume: the pipeline.
async fn fill(
    options: &Arc<Options>,
    watch: &Arc<Watch>,
    source: &Source,
    volume: &Arc<Volume>,
    sort_first: bool,
) -> Result<Marker, Failure> {
    let started = Utc::now();
    let counters = watch.begin();
    let (history, capacity, ledger, probed) = blocking({
        let (options, volume) = (Arc::clone(options), Arc::clone(volume));
        let counters = Arc::clone(&counters);
        move || {
            // before there is a manifest: the one worker that this asks for shall find none
            let probed = volume.probe()?;
            if probed.folds_names && options.shard != ShardOf::WHOLE {
                return Err(Failure::FoldsNames);
            }
            same_division(&options, &volume)?;
            let history = remaining(&options, &volume)?;
            let reserved = volume.staging().clean(resumable)?;
            let capacity = Capacity::of(&volume, &history, reserved)?;
            let identity = &options.identity;
            let ledger = Ledger::open(&volume, &counters, identity, &history, probed.folds_names)?;
            Ok((history, capacity, Arc::new(ledger), probed))
        }
    })
    .await?;

    let _display = Display::start(options.progress, Arc::clone(&counters));
    let pace = Pace::new(options.concurrency, source.meter());
    let _steering = Aside::spawn(Arc::clone(&pace).steer(Arc::clone(&counters)));
    let _sampling = Aside::spawn(Arc::clone(watch).sample(Arc::clone(&pace)));

    let order = if sort_first {
        Order::Sorted(volume.own().spill(), Some(capacity))
    } else {
        Order::Source
    };
    let listing = Listing::open(source, options, Arc::clone(&counters), order).await?;
    let sums = stated_sums(options, source, volume.own().spill()).await?;
    let planner = Planner::new(
        listing,
        history,
        sums,
        needs(options, Some(capacity), probed.folds_names),
        Some(Arc::clone(volume)),
        Arc::clone(&counters),
    );
    let queue = Arc::<Queue>::default();
    let planning = plan_ahead(planner, Arc::clone(&queue), Arc::clone(watch));
    let lanes = Lanes::start()?;
    let naming = Calls::new(&counters, probed.naming_takes);
    let transfers =
        Transfers::for_lanes(lanes.count(), source, volume, &ledger, &naming, &counters, options);
    // a failed checkpoint is a failed run
    let committed = tokio::select! {
        committed = fetch::carry_out(&lanes, &transfers, &queue, &pace) => committed,
        failure = checkpoints(&ledger) => Err(failure),
    };
    let closing = Arc::clone(&ledger);
    blocking(move || {
        closing.close();
        Ok(())
    })
    .await?;
    let committed = committed?;
    let planner = planning.await.ok().flatten();
    let listing_digest = planner.ok_or_else(plan_unfinished)?.listing_digest();
    watch.fetched();
    let done = Done { ledger, volume: Arc::clone(volume), listing_digest, started, committed };
    complete(options, watch, &counters, done).await
}

async fn stated_sums(
    options: &Options,
    source: &Source,
    spill: SpillFile,
) -> Result<Sums, Failure> {
    if !options.sha256 || options.verify == VerifyMode::Off {
        return Ok(Sums::default());
    }
    Sums::fetch(source, &options.source.prefix(), spill).await
}

/// Plans on a task of its own, so that the listing goes on while requests are under way.
fn plan_ahead(
    mut planner: Planner,
    queue: Arc<Queue>,
    watch: Arc<Watch>,
) -> Aside<Option<Planner>> {
    Aside::spawn(async move {
        let planning = Planning(queue);
        loop {
            match planner.next().await {
                Ok(Some(action)) => planning.0.push(action).await,
                Ok(None) => break,
                Err(failure) => {
                    planning.0.end(Err(failure));
                    return None;
                }
            }
        }
        watch.listed();
        planning.0.end(Ok(()));
        Some(planner)
    })
}

/// A plan that is made. One that is given up ends the queue, too: else the lanes would wait for ever.
struct Planning(Arc<Queue>);

impl Drop for Planning {
    fn drop(&mut self) {
        self.0.end(Err(plan_unfinished()));
    }
}

fn plan_unfinished() -> Failure {
    Failure::Unexpected("the plan was not finished".to_owned())
}

/// Syncs from time to time, until that fails.
async fn checkpoints(ledger: &Arc<Ledger>) -> Failure {
    loop {
        tokio::time::sleep(CHECKPOINT_EVERY).await;
        let ledger = Arc::clone(ledger);
        if let Err(failure) = blocking(move || ledger.checkpoint()).await {
            return failure;
        }
    }
}

struct Done {
    ledger: Arc<Ledger>,
    volume: Arc<Volume>,
    listing_digest: String,
    started: DateTime<Utc>,
    committed: Committed,
}

/// Settles the manifest, syncs, and writes the marker, in this order.
async fn complete(
    options: &Arc<Options>,
    watch: &Arc<Watch>,
    counters: &Arc<Counters>,
    done: Done,
) -> Result<Marker, Failure> {
    let Done { ledger, volume, listing_digest, started, committed } = done;
    let (options, watch, counters) = (Arc::clone(options), Arc::clone(watch), Arc::clone(counters));
    let conclude = move |volume: &Volume| {
        volume.staging().clean(|_| false)?;
        let settled = ledger.settle(options.sha256)?;
        let syncing = Instant::now();
        let manifest_sha256 = ledger.conclude(settled)?;
        watch.synced(syncing.elapsed());
        let totals = ledger.totals();
        let finished = Utc::now();
        let seconds = (finished - started).as_seconds_f64().max(1e-3);
        let marker = Marker {
            version: MARKER_VERSION,
            source: options.identity.clone(),
            objects: totals.objects,
            bytes: totals.bytes,
            directories: totals.directories,
            skipped: counters.skipped.load(Relaxed),
            unmappable: counters.unmappable.load(Relaxed),
            verified: totals.tally,
            sha256: options.sha256,
            manifest_sha256,
            listing_digest,
            shard: options.shard,
            shards: 1,
            started: started.to_rfc3339(),
            finished: finished.to_rfc3339(),
            bytes_per_s: (counters.fetched_bytes.load(Relaxed) as f64 / seconds) as u64,
            ossvp_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        ledger.mark(&marker, &committed)?;
        Ok(marker)
    };
    blocking(move || {
        conclude(&volume).inspect_err(|_| {
            // of a write that was lost the kernel tells the file and once the file system: it shall
            // not be the next run that hears it
            let _ = volume.sync();
        })
    })
    .await
}

/// Lists and plans, and writes nothing.
async fn dry_run(
    options: &Arc<Options>,
    watch: &Arc<Watch>,
    source: &Source,
) -> Result<Plan, Failure> {
    let planned = dry_run_in(options, watch, source, Order::Early(sort::temporary())).await;
    let planned = match planned {
        Err(error) if list::is_in_parts(&error) => {
            tracing::warn!(error = %chain(&error), "listing again, page by page");
            dry_run_in(options, watch, source, Order::Source).await
        }
        planned => planned,
    };
    match planned {
        Err(error @ Failure::OutOfOrder { .. }) => {
            tracing::warn!(error = %chain(&error), "listing again: sorting it first");
            dry_run_in(options, watch, source, Order::Sorted(sort::temporary(), None)).await
        }
        planned => planned,
    }
}

async fn dry_run_in(
    options: &Arc<Options>,
    watch: &Arc<Watch>,
    source: &Source,
    order: Order,
) -> Result<Plan, Failure> {
    let counters = watch.begin();
    let (history, capacity) = blocking({
        let options = Arc::clone(options);
        move || what_is_there(&options)
    })
    .await?;
    let _display = Display::start(options.progress, Arc::clone(&counters));
    let listing = Listing::open(source, options, Arc::clone(&counters), order).await?;
    let sums = stated_sums(options, source, sort::temporary()).await?;
    let mut planner = Planner::new(
        listing,
        history,
        sums,
        // the plan says whether it fits; it does not stop there
        needs(options, None, false),
        None,
        Arc::clone(&counters),
    );
    let mut plan = Plan::default();
    while let Some(action) = planner.next().await? {
        match action {
            Action::Fetch { entry, .. } => {
                plan.count(entry.size);
                plan.fetch_objects += 1;
                plan.fetch_bytes += entry.size;
            }
            Action::Keep(record) | Action::Reread { record, .. } => plan.count(record.size),
            Action::MakeDirectory { .. } => plan.directories += 1,
            Action::Remove(_) => plan.remove_objects += 1,
            // without a volume opened nothing is adopted
            Action::Adopt(_) | Action::Forget(_) => {}
        }
    }
    watch.listed();
    plan.skipped = counters.skipped.load(Relaxed);
    plan.unmappable = counters.unmappable.load(Relaxed);
    if let Some(Capacity { bytes, files }) = capacity {
        plan.capacity = Some(bytes);
        plan.fits = Some(plan.bytes <= bytes && files.is_none_or(|files| plan.objects <= files));
    }
    Ok(plan)
}

/// What a dry run finds on the volume: history and capacity, if there is a volume.
fn what_is_there(options: &Options) -> Result<(History, Option<Capacity>), Failure> {
    let Some(path) = &options.volume else { return Ok((History::none(), None)) };
    if let Some(volume) = Volume::look(path)? {
        let past = inspect::past(volume.base(), sort::temporary())?;
        let history = match past {
            Some(Past { identity, history }) if identity == options.identity => history,
            Some(Past { identity, .. }) if !options.force => {
                return Err(Failure::Foreign {
                    partial: inspect::marker(volume.base())?.is_none(),
                    held: identity.told_from(&options.identity),
                    asked: options.identity.told_from(&identity),
                });
            }
            _ => History::none(),
        };
        let capacity = Capacity::of(&volume, &history, 0)?;
        return Ok((history, Some(capacity)));
    }
    // not made yet: it will be where its parent is
    let there = [Some(path.as_path()), path.parent()].into_iter().flatten();
    let there = there.map(|at| if at.as_os_str().is_empty() { ".".as_ref() } else { at });
    let room = there.filter_map(|at| std::fs::File::open(at).ok()).map(at::room).next();
    let capacity =
        room.transpose()?.map(|room| Capacity { bytes: room.available, files: room.files });
    Ok((History::none(), capacity))
}
