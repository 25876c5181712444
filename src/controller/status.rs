//! What the resource shows of its volumes. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::crd::{DataflowStatus, OSSVolumePopulatorStatus, Phase, Population};
use super::decide::{Action, Decision};
use super::observed::Observed;
use super::observed::dataflow::TaskSeen;
use super::policy::Refusal;
use super::words;

/// Finished volumes that are shown, the newest first.
const MOST_FINISHED: usize = 50;
/// Volumes that are shown in all: an object of the API server has at most 1.5 MB, an entry less than
/// 2 KiB: a message, two names of at most 253 bytes, and figures.
const MOST: usize = 250;
/// Bytes of a message, as JSON has it.
const LONGEST: usize = 1024;

/// What changes about one claim's entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Update {
    /// The entry is there, or comes; with what CPFS has, while it fills the volume.
    Show(Box<Population>, Option<DataflowStatus>),
    /// The entry, if there is one that is not finished, is finished.
    Close(String),
    /// The claim is gone.
    Remove(String),
}

/// The entry of one claim.
pub(crate) fn update(
    name: &str,
    seen: &Observed,
    decision: &Decision,
    shown: Option<&Population>,
    now: Timestamp,
) -> Option<Update> {
    let target = seen.target.as_ref()?;
    let uid = target.uid.clone();
    let untouched = !target.finalizer && seen.is_untouched();
    match decision.phase {
        Phase::Finished if untouched => return Some(Update::Close(uid)),
        Phase::Deleting if decision.action == Some(Action::RemoveFinalizer) || untouched => {
            return Some(Update::Remove(uid));
        }
        _ => {}
    }
    let worker = seen.worker.as_ref();
    let live = worker.and_then(|worker| worker.progress.as_ref());
    let figures = worker.and_then(|worker| worker.ended.as_ref()?.figures);
    let done = decision.phase == Phase::Finished;
    let task = seen.dataflow.task();
    let percent = worker.and_then(words::percent).or_else(|| task.and_then(TaskSeen::percent));
    let live_progress = percent.map(|percent| format!("{percent}%"));
    let (objects, bytes, rate) = match (figures.filter(|_| done), live, task) {
        (Some((objects, bytes, rate)), ..) => (Some(objects), Some(bytes), Some(rate)),
        (None, Some(live), _) => (Some(live.objects), Some(live.bytes), Some(live.bytes_per_s)),
        (None, None, Some(task)) => (Some(task.files.done), Some(task.bytes.done), Some(task.rate)),
        (None, None, None) => (
            shown.and_then(|it| it.objects),
            shown.and_then(|it| it.bytes),
            shown.and_then(|it| it.bytes_per_second),
        ),
    };
    // of a fresh volume nothing is there, whatever was there of the last one
    let plan = seen.prime.as_ref().and_then(|prime| prime.plan.as_ref());
    let fresh = worker.is_none() && plan.is_none() && !done;
    let kept = shown.filter(|_| !fresh);
    let population = Population {
        pvc_uid: uid,
        pvc_name: name.to_owned(),
        phase: decision.phase,
        message: shortened(&decision.message),
        progress: match done {
            true => Some("100%".to_owned()),
            false => live_progress.or_else(|| kept.and_then(|it| it.progress.clone())),
        },
        objects: objects.filter(|_| !fresh),
        bytes: bytes.filter(|_| !fresh),
        bytes_total: match (done, live, task) {
            (true, ..) => bytes,
            (false, Some(live), _) => live.listing_done.then_some(live.bytes_total),
            (false, None, Some(task)) => Some(task.bytes.total).filter(|total| *total > 0),
            (false, None, None) => kept.and_then(|it| it.bytes_total),
        },
        bytes_per_second: rate.filter(|_| !fresh),
        pod_name: worker
            .and_then(|worker| worker.pod.as_ref())
            .map(|pod| pod.name.clone())
            .or_else(|| kept.and_then(|it| it.pod_name.clone())),
        failed_pods: worker
            .map(|worker| worker.failed_pods)
            .filter(|failed| *failed > 0)
            .or_else(|| kept.and_then(|it| it.failed_pods)),
        start_time: shown
            .and_then(|it| it.start_time.clone())
            .or_else(|| worker.and_then(|worker| worker.created).map(Time))
            .or_else(|| plan.map(|plan| Time(plan.time))),
        completion_time: match done {
            true => shown.and_then(|it| it.completion_time.clone()).or(Some(Time(now))),
            false => None,
        },
    };
    let dataflow = plan.filter(|_| !done).map(|plan| DataflowStatus {
        data_flow_id: plan.flow.as_ref().map(|flow| flow.id.clone()),
        data_flow_task_id: plan.task.as_ref().map(|task| task.id.clone()),
        file_set_id: plan.fileset.clone(),
        file_system_id: Some(plan.file_system.clone()),
        progress: population.progress.clone(),
    });
    Some(Update::Show(Box::new(population), dataflow))
}

/// `message`, or as much of it as has its place.
fn shortened(message: &str) -> String {
    let mut bytes = 0;
    let end = message.char_indices().find(|(_, c)| {
        bytes += match c {
            '"' | '\\' | '\n' => 2,
            c if c.is_control() => 6,
            c => c.len_utf8(),
        };
        bytes > LONGEST
    });
    end.map_or_else(|| message.to_owned(), |(end, _)| format!("{}…", &message[..end]))
}

/// The resource's status once `update` is in it.
pub(crate) fn next(
    current: &OSSVolumePopulatorStatus,
    generation: Option<i64>,
    refusal: Option<&Refusal>,
    update: Option<&Update>,
    now: Timestamp,
) -> OSSVolumePopulatorStatus {
    let mut populations = current.populations.clone();
    let mut flows = current.bmcpfs_dataflow.clone();
    match update {
        None => {}
        Some(Update::Show(entry, flow)) => {
            flows.remove(&entry.pvc_uid);
            flows.extend(flow.clone().map(|flow| (entry.pvc_uid.clone(), flow)));
            match populations.iter_mut().find(|it| it.pvc_uid == entry.pvc_uid) {
                Some(shown) => *shown = (**entry).clone(),
                None => populations.push((**entry).clone()),
            }
        }
        Some(Update::Close(uid)) => {
            let open = |it: &&mut Population| it.pvc_uid == *uid && it.phase != Phase::Finished;
            if let Some(shown) = populations.iter_mut().find(open) {
                shown.phase = Phase::Finished;
                shown.message = words::BOUND.to_owned();
            }
        }
        Some(Update::Remove(uid)) => {
            populations.retain(|it| it.pvc_uid != *uid || it.phase == Phase::Finished);
        }
    }
    let populations = bounded(populations);
    flows.retain(|uid, _| {
        populations.iter().any(|it| it.pvc_uid == *uid && it.phase != Phase::Finished)
    });
    let open: Vec<&Population> =
        populations.iter().filter(|it| it.phase != Phase::Finished).collect();
    let phase = populations.iter().map(|it| it.phase).max();
    OSSVolumePopulatorStatus {
        observed_generation: generation,
        phase,
        progress: progress(&populations, &open),
        message: message(refusal, &populations, &open),
        bmcpfs_dataflow: flows,
        conditions: conditions(&current.conditions, generation, refusal, &open, now),
        populations,
    }
}

fn bounded(mut populations: Vec<Population>) -> Vec<Population> {
    // those in progress first, in the order of their names; then the newest of the finished
    let finished = |it: &Population| it.phase == Phase::Finished;
    populations.sort_by(|a, b| {
        let newest =
            b.completion_time.as_ref().map(|t| t.0).cmp(&a.completion_time.as_ref().map(|t| t.0));
        let name = a.pvc_name.cmp(&b.pvc_name).then_with(|| a.pvc_uid.cmp(&b.pvc_uid));
        finished(a).cmp(&finished(b)).then(newest).then(name)
    });
    let open = populations.iter().filter(|it| !finished(it)).count();
    populations.truncate(MOST.min(open + MOST_FINISHED));
    populations
}

fn progress(populations: &[Population], open: &[&Population]) -> Option<String> {
    if populations.is_empty() {
        return None;
    }
    if open.is_empty() {
        return Some("100%".to_owned());
    }
    let known: Option<Vec<(u64, u64)>> =
        open.iter().map(|it| Some((it.bytes?, it.bytes_total?))).collect();
    let known = known?;
    let sum =
        |part: fn(&(u64, u64)) -> u64| known.iter().map(|it| u128::from(part(it))).sum::<u128>();
    let (done, total) = (sum(|it| it.0.min(it.1)), sum(|it| it.1));
    Some(format!("{}%", (done * 100).checked_div(total).unwrap_or(100)))
}

fn message(
    refusal: Option<&Refusal>,
    populations: &[Population],
    open: &[&Population],
) -> Option<String> {
    if let Some(refusal) = refusal {
        return Some(shortened(&refusal.message));
    }
    let worst = open.iter().max_by_key(|it| it.phase);
    match (worst, open.len()) {
        (None, _) => (!populations.is_empty()).then(|| words::POPULATED.to_owned()),
        (Some(only), 1) => Some(only.message.clone()),
        (Some(worst), n) => {
            let (name, total) = (&worst.pvc_name, populations.len());
            Some(format!("{n} of {total} volumes are not filled yet; {name}: {}", worst.message))
        }
    }
}

/// Ready says whether the spec can be used; the other two, by the names that kstatus knows, whether
/// something goes on or is stuck.
fn conditions(
    current: &[Condition],
    generation: Option<i64>,
    refusal: Option<&Refusal>,
    open: &[&Population],
    now: Timestamp,
) -> Vec<Condition> {
    let failed = open.iter().find(|it| it.phase == Phase::Failed);
    let moving = open.iter().find(|it| it.phase != Phase::Failed);
    let condition = |kind: &str, on: bool, reason: &str, message: &str| {
        let status = if on { "True" } else { "False" };
        let before = current.iter().find(|it| it.type_ == kind && it.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: shortened(message),
            observed_generation: generation,
            last_transition_time: before
                .map_or_else(|| Time(now), |before| before.last_transition_time.clone()),
        }
    };
    let ready = match refusal {
        None => condition("Ready", true, "Valid", "the resource can be used"),
        Some(refusal) => condition("Ready", false, refusal.reason, &refusal.message),
    };
    let reconciling = match moving {
        None => condition("Reconciling", false, "Idle", ""),
        Some(it) => {
            let message = format!("{}: {}", it.pvc_name, it.message);
            condition("Reconciling", true, "Populating", &message)
        }
    };
    let stalled = match (failed, refusal) {
        (Some(it), _) => {
            let message = format!("{}: {}", it.pvc_name, it.message);
            condition("Stalled", true, "PopulatorFailed", &message)
        }
        (None, Some(refusal)) => condition("Stalled", true, refusal.reason, &refusal.message),
        (None, None) => condition("Stalled", false, "Idle", ""),
    };
    vec![ready, reconciling, stalled]
}

#[cfg(test)]
mod tests;
