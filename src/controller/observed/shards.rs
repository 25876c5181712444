//! Several workers that fill one volume, each its share, as an Indexed Job has them. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use super::super::names;
use super::{Ended, WorkerPod, WorkerState};
use crate::handoff::{ExitCode, Progress, Verdict};

/// How a volume is divided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shards {
    /// Into how many shares.
    pub(crate) count: u32,
    /// How often all may have to look again before the population fails: as often as the Pods of one
    /// share may fail.
    pub(crate) rounds: u32,
}

/// Where the progress of one share is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nowhere: its Pod does not run.
    Unknown,
    /// In the log of this Pod.
    Log(String),
    /// It is done, with these objects and bytes, and at this rate.
    Done(u64, u64, u64),
}

/// How often the shares of a volume did not add up to it, so that all workers look again; kept on the
/// prime PVC, since each time is a Job of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rounds {
    /// How often.
    pub(crate) count: u32,
    /// The UID of the last Job whose workers did not agree.
    pub(crate) job: String,
    /// When that was found.
    pub(crate) time: Timestamp,
}

impl Shards {
    pub(super) fn of(job: &Job) -> Option<Self> {
        let spec = job.spec.as_ref()?;
        let indexed = spec.completion_mode.as_deref() == Some("Indexed");
        let count = spec.completions.filter(|count| indexed && *count > 1)?;
        // the Job's limit is the shares' together, and every cluster keeps that one
        let rounds = spec.backoff_limit.unwrap_or_default() / count;
        // once at least: it takes no more than a look where nobody is left to say that all is there
        Some(Self { count: count as u32, rounds: rounds.max(1) as u32 })
    }
}

/// Which share a Pod fills; 0 of one that fills the whole.
pub(super) fn index(pod: &Pod) -> u32 {
    let index = pod.annotations().get(names::INDEX);
    index.and_then(|index| index.parse().ok()).unwrap_or_default()
}

/// Where to find the progress of `count` shares. What the last one says of the whole volume, it says
/// of all.
pub(super) fn shares(count: u32, latest: &BTreeMap<u32, WorkerPod>, ended: &[Ended]) -> Vec<Share> {
    let done = |ended: &Ended| {
        let figures = ended.figures.filter(|_| ended.code == Some(0));
        figures.map(|(objects, bytes, rate)| Share::Done(objects, bytes, rate))
    };
    if let Some(whole) = ended.iter().rev().find(|ended| ended.whole).and_then(done) {
        return vec![whole];
    }
    let share = |index: u32| {
        let Some(pod) = latest.get(&index) else { return Share::Unknown };
        let end = ended.iter().find(|ended| ended.pod == pod.name);
        match (end, pod.running) {
            (Some(end), _) => done(end).unwrap_or(Share::Unknown),
            (None, true) => Share::Log(pod.name.clone()),
            (None, false) => Share::Unknown,
        }
    };
    (0..count).map(share).collect()
}

/// The progress of a share that is done.
pub(crate) fn done(objects: u64, bytes: u64, bytes_per_s: u64) -> Progress {
    Progress {
        ossvp: "progress".to_owned(),
        v: 1,
        objects,
        bytes,
        bytes_total: bytes,
        listing_done: true,
        bytes_per_s,
        eta_s: None,
    }
}

/// The progress of all shares together; `None` where it is not known. The listing is done when it is
/// for each, since none knows how much another has.
pub(crate) fn summed(shares: &[Option<Progress>]) -> Option<Progress> {
    let known = || shares.iter().flatten();
    let first = known().next()?;
    let sum = |part: fn(&Progress) -> u64| known().map(part).fold(0, u64::saturating_add);
    let listing_done = shares.iter().all(|it| it.as_ref().is_some_and(|it| it.listing_done));
    Some(Progress {
        objects: sum(|it| it.objects),
        bytes: sum(|it| it.bytes),
        bytes_total: sum(|it| it.bytes_total),
        listing_done,
        bytes_per_s: sum(|it| it.bytes_per_s),
        // which is shown nowhere
        eta_s: None,
        ..first.clone()
    })
}

/// Whether an end is one that ends all workers.
pub(crate) fn ends_all(ended: &Ended) -> bool {
    let code = ended.code.and_then(ExitCode::of);
    code == Some(ExitCode::Changed) || code.map(ExitCode::verdict) == Some(Verdict::Stop)
}

/// How much the end of one of several workers says about all of them, once the Job is in `state`.
pub(crate) fn weight(ended: &Ended, state: WorkerState) -> u8 {
    if state == WorkerState::Complete {
        return u8::from(ended.whole);
    }
    let code = ended.code.and_then(ExitCode::of);
    match code.map(ExitCode::verdict) {
        // it ended all others
        Some(Verdict::Stop) => 4,
        _ if code == Some(ExitCode::Changed) => 3,
        // as those end that were stopped
        Some(Verdict::RetryAtOnce) => 1,
        _ if ended.disrupted => 1,
        Some(Verdict::Retry) | None => 2,
        Some(Verdict::Done) => 0,
    }
}
