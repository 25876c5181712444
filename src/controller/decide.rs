//! From what is seen of one claim to what is done next. Pure, and the only place with policy.
//!
//! ```text
//!                      +-------------- spec or Secret changed, volume lost -------------+
//!                      v                                                                |
//!  Waiting --> AddFinalizer --> CreatePrime --> Provisioning --> CreateJob --> Populating
//!                                                                                |    |
//!                               Failed  <-- RecordFailure <------ Job failed ----+    | complete
//!                                                                                     v
//!  Finished <-- RemoveFinalizer <-- DeletePrime <-- DeleteJob <-- claim bound <-- Rebind
//!                      ^
//!                      +-- DeletePrime <-- DeleteJob <-- claim being deleted, at any moment
//! ```
//!
//! The phase is derived at each pass and stored nowhere. Every action is idempotent, at most one is
//! asked for at a time, and each leaves a state from which the next pass goes on, so that a
//! controller that dies between any two converges.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

pub(crate) use self::decision::{Action, Decision, Notice};
use super::crd::Phase;
use super::names;
use super::observed::dataflow::Plan;
use super::observed::{
    Class, Ended, Failure, Observed, Prime, PrimePhase, Source, Target, Volume, Worker, WorkerState,
};
use super::policy::Access;
use super::words;

mod dataflow;
mod decision;
#[cfg(test)]
mod model;
mod shards;
#[cfg(test)]
mod tests;

/// How old a Pod is that does not run before the kubelet's warnings count as what holds it: many are
/// over with the next attempt, or speak of something else.
const STARTS_WITHIN: Duration = Duration::from_secs(20);
/// How long after the deletion of a claim it is said what holds it.
const CLEANUP_STICKS: Duration = Duration::from_secs(300);

/// What to do next about one claim.
pub(crate) fn decide(seen: &Observed, now: Timestamp) -> Decision {
    let Some(target) = &seen.target else {
        let gone =
            Decision::new(Phase::Deleting, "the claim is gone; removing what was made for it");
        return gone.tear_down(seen, None, now);
    };
    if let Some(since) = target.deleting {
        return clean_up(seen, target, since, now);
    }
    // a claim may name the prime PVC's volume by itself; it gets it when it is filled, as any other
    match target.volume.as_deref().filter(|volume| !is_primes(seen, volume)) {
        Some(volume) => hand_over(seen, target, volume, now),
        None => fill(seen, target, now),
    }
}

fn clean_up(seen: &Observed, target: &Target, since: Timestamp, now: Timestamp) -> Decision {
    let left = match (&seen.worker, &seen.prime) {
        (None, Some(prime)) if prime.protected => "its data flow",
        (None, _) if !seen.strays.is_empty() => "its worker's Pods",
        (Some(_), _) => "its worker",
        (None, Some(_)) => "its prime PVC",
        (None, None) => "nothing",
    };
    let message = format!("the claim is being deleted; waiting for {left} to be gone");
    let decision = Decision::new(Phase::Deleting, message);
    if target.bound && target.in_use && seen.prime.as_ref().is_some_and(is_lazy) {
        let message = "the claim is being deleted; waiting for the Pods that read by its data flow";
        return Decision::new(Phase::Deleting, message).look_again();
    }
    let decision =
        decision.tear_down(seen, target.finalizer.then_some(Action::RemoveFinalizer), now);
    if now.duration_since(since).unsigned_abs() > CLEANUP_STICKS && left != "nothing" {
        // what is waited for may be told in figures
        return decision.warn_of("PopulatorCleanupStuck", left);
    }
    decision
}

/// The claim has a volume: ours, if all went well, and then only the scaffolding is left to remove.
fn hand_over(seen: &Observed, target: &Target, volume: &str, now: Timestamp) -> Decision {
    if !target.finalizer && seen.is_untouched() {
        return Decision::new(Phase::Finished, words::BOUND);
    }
    if target.lost {
        let message = format!(
            "volume {volume} is lost, and the claim with it; delete the claim, and make it anew"
        );
        return Decision::new(Phase::Failed, message).warn("PopulatorVolumeLost");
    }
    let named = seen.volume.as_ref().filter(|seen| seen.name == volume);
    let primes = seen.prime.as_ref().and_then(|prime| prime.volume.as_deref());
    // what was populated once may be for another claim
    let ours = match primes {
        Some(primes) => primes == volume,
        None => seen.prime.is_none() && named.is_some_and(|named| named.populated),
    };
    let claimed = is_targets(named, target);
    if !target.bound && !claimed {
        let message = format!("the claim names volume {volume}, which is not bound to it yet");
        return Decision::new(Phase::Waiting, message).warn("PopulatorNotUsed").look_again();
    }
    if !target.bound || ours && !claimed {
        // the binder writes the claim's side after the volume's: what we see is on its way
        return Decision::new(Phase::Rebinding, "the volume is being bound to the claim")
            .look_again();
    }
    let finished = match (ours, &seen.worker) {
        (true, Some(worker)) => {
            let message = words::finished(worker);
            Decision::new(Phase::Finished, words::POPULATED).tell(Notice {
                warning: false,
                reason: "PopulatorFinished",
                key: worker.uid.clone(),
                message,
                happened: Some(now),
            })
        }
        (true, None) => {
            let finished = Decision::new(Phase::Finished, words::POPULATED);
            match seen.dataflow.task() {
                None => finished,
                Some(task) => finished.tell(Notice {
                    warning: false,
                    reason: "PopulatorFinished",
                    key: task.id.clone(),
                    message: words::imported(task),
                    happened: Some(now),
                }),
            }
        }
        (false, _) => {
            let message = format!("the claim was bound to volume {volume}, which is not populated");
            Decision::new(Phase::Finished, message).warn("PopulatorNotUsed")
        }
    };
    if ours && seen.prime.as_ref().is_some_and(|prime| !prime.deleting && is_lazy(prime)) {
        // files are read by way of the data flow: it stays for as long as the claim does
        return match target.finalizer {
            true => finished,
            false => finished.act(Action::AddFinalizer),
        };
    }
    finished.tear_down(seen, target.finalizer.then_some(Action::RemoveFinalizer), now)
}

/// Whether files bring their data by way of the data flow when they are read.
fn is_lazy(prime: &Prime) -> bool {
    prime.plan.as_ref().is_some_and(Plan::is_lazy)
}

fn is_targets(volume: Option<&Volume>, target: &Target) -> bool {
    volume.is_some_and(|volume| volume.claim.as_deref() == Some(&target.uid))
}

fn is_primes(seen: &Observed, name: &str) -> bool {
    let (Some(prime), Some(volume)) = (&seen.prime, &seen.volume) else { return false };
    volume.name == name && volume.claim.as_deref() == Some(&prime.uid)
}

/// The claim has no volume yet.
fn fill(seen: &Observed, target: &Target, now: Timestamp) -> Decision {
    if let Some(volume) = seen.volume.as_ref().filter(|volume| is_targets(Some(volume), target)) {
        if volume.deleting {
            // the binder passes by a volume that someone deletes, and it waits for the claim
            let message = format!(
                "volume {} was deleted while it was handed over; delete the claim, and make it anew",
                volume.name
            );
            return Decision::new(Phase::Failed, message).warn("PopulatorVolumeLost");
        }
        return Decision::new(Phase::Rebinding, "the volume is being bound to the claim")
            .look_again();
    }
    if let Source::Refused(refusal) = &seen.source {
        // whatever is there is kept, and not handed over while it is not allowed
        return Decision::new(Phase::Failed, &refusal.message).warn(refusal.reason).look_again();
    }
    let Some(prime) = &seen.prime else { return begin(seen, target, now) };
    // before what follows: a prime PVC that goes for one of these reasons was not deleted by someone
    if let Source::Usable { digest, access, .. } = &seen.source {
        if *digest != prime.digest {
            return replace(seen, "the resource was changed; filling a fresh volume", now);
        }
        if let Some(failure) = &prime.failure
            && failure.access != words::access(access)
        {
            return replace(seen, "the credentials were changed; filling a fresh volume", now);
        }
    }
    if prime.deleting {
        return replace(seen, "the prime PVC was deleted; its volume is given up", now);
    }
    // while the prime PVC is bound to it, a volume that someone deletes stays, but for nothing
    let going = |volume: &Volume| volume.deleting && volume.claim.as_deref() == Some(&prime.uid);
    if prime.phase == PrimePhase::Lost || seen.volume.as_ref().is_some_and(going) {
        return replace(seen, "the volume is lost; filling a fresh one", now);
    }
    if !target.finalizer {
        return Decision::new(Phase::Provisioning, "protecting the claim")
            .act(Action::AddFinalizer);
    }
    if let Some(failure) = &prime.failure {
        // what it did in CPFS is of no use, and a file system has few data flows
        return Decision::new(Phase::Failed, &failure.message)
            .warn("PopulatorFailed")
            .undo(dataflow::left(seen, prime, now));
    }
    if prime.phase == PrimePhase::Pending {
        return provision(seen, target, prime, now);
    }
    let Some(volume) = seen.volume.as_ref().filter(|volume| usable(volume, prime)) else {
        let message = "the prime PVC's volume is not bound to it; waiting for the PV controller";
        return Decision::new(Phase::Provisioning, message).look_again();
    };
    if prime.plan.is_some() || by_cpfs(&seen.source) {
        return dataflow::populate(seen, prime, volume, now);
    }
    populate(seen, target, prime, volume, now)
}

fn by_cpfs(source: &Source) -> bool {
    matches!(source, Source::Usable { access: Access::Cpfs, .. })
}

fn usable(volume: &Volume, prime: &Prime) -> bool {
    volume.claim.as_deref() == Some(&prime.uid) && volume.bound && !volume.deleting
}

/// Whether there can be a volume, and then the first steps to it.
fn begin(seen: &Observed, target: &Target, now: Timestamp) -> Decision {
    if !seen.is_untouched() {
        // it filled a volume that is gone
        return replace(seen, "the prime PVC is gone; its volume is given up", now);
    }
    let waiting = |message: &str| Decision::new(Phase::Waiting, message);
    if target.block {
        let message = "volumeMode Block cannot be filled with objects; use Filesystem";
        return Decision::new(Phase::Failed, message).warn("PopulatorUnsupportedClaim");
    }
    if seen.source == Source::Missing {
        let message =
            "the OSSVolumePopulator that dataSourceRef names does not exist yet; waiting for it";
        return waiting(message).warn("PopulatorDataSourceNotFound");
    }
    if let Source::Usable { workers: workers @ 2.., .. } = seen.source
        && !target.shared
    {
        let message = words::not_shared(workers);
        return Decision::new(Phase::Failed, message).warn("PopulatorUnsupportedClaim");
    }
    let waits_for_consumer = match &seen.class {
        Class::Dynamic { cpfs, .. } if *cpfs != by_cpfs(&seen.source) => {
            let message = words::other_mode(*cpfs);
            return Decision::new(Phase::Failed, message).warn("PopulatorUnsupportedClaim");
        }
        Class::Dynamic { waits_for_consumer, .. } => *waits_for_consumer,
        Class::Unnamed => {
            let message = "the claim names no storageClassName, and the cluster gave it no default; waiting for one";
            return waiting(message).warn("PopulatorStorageClassNotFound");
        }
        Class::Missing(name) => {
            let message = format!("StorageClass {name} does not exist; waiting for it");
            return waiting(&message).warn("PopulatorStorageClassNotFound");
        }
        Class::Static(name) => {
            let message =
                format!("StorageClass {name} makes no volumes by a CSI driver; use one that does");
            return Decision::new(Phase::Failed, message).warn("PopulatorUnsupportedClaim");
        }
    };
    if waits_for_consumer && target.selected_node.is_none() {
        return waiting(
            "waiting for the first Pod that uses the claim, since its StorageClass does",
        );
    }
    let making = Decision::new(Phase::Provisioning, "making the volume");
    match target.finalizer {
        false => making.act(Action::AddFinalizer),
        true => making.act(Action::CreatePrime),
    }
}

/// Removes Job and prime PVC, so that the next pass begins anew.
fn replace(seen: &Observed, message: &str, now: Timestamp) -> Decision {
    Decision::new(Phase::Provisioning, message).warn("PopulatorReplaced").tear_down(seen, None, now)
}

/// The prime PVC has no volume yet.
fn provision(seen: &Observed, target: &Target, prime: &Prime, now: Timestamp) -> Decision {
    let waits = matches!(seen.class, Class::Dynamic { waits_for_consumer: true, .. });
    // one that was made for no node is of a class that did not wait then
    if waits && (prime.made_for_node.is_none() || prime.made_for_node != target.selected_node) {
        return replace(seen, "the scheduler chose another node", now);
    }
    if waits && prime.selected_node.is_none() {
        // the provisioner takes it away when the node can have no volume
        let message = "no volume can be made for the chosen node; the scheduler must choose again";
        return Decision::new(Phase::Provisioning, message)
            .warn("PopulatorNodeGivenUp")
            .act(Action::UnselectNode);
    }
    match &seen.warning {
        None => {
            let message = "waiting for the StorageClass's driver to make the volume";
            Decision::new(Phase::Provisioning, message).look_again()
        }
        Some(warning) => {
            let message = format!("the volume cannot be made yet: {warning}");
            Decision::new(Phase::Provisioning, message)
                .warn_of("PopulatorProvisioning", warning)
                .look_again()
        }
    }
}

/// There is a volume to fill.
fn populate(
    seen: &Observed,
    target: &Target,
    prime: &Prime,
    volume: &Volume,
    now: Timestamp,
) -> Decision {
    if !seen.strays.is_empty() {
        let message = "removing Pods of a worker that was deleted";
        return Decision::new(Phase::Populating, message).remove(&seen.strays);
    }
    let Some(worker) = &seen.worker else {
        return match &seen.source {
            Source::Usable { .. } => {
                Decision::new(Phase::Populating, "starting the worker").act(Action::CreateJob)
            }
            Source::Missing | Source::Refused(_) => {
                let message = "the OSSVolumePopulator that dataSourceRef names was deleted before its worker started; waiting for it";
                Decision::new(Phase::Waiting, message).warn("PopulatorDataSourceNotFound")
            }
        };
    };
    if worker.deleting {
        return Decision::new(Phase::Populating, "the worker was deleted; starting another")
            .look_again();
    }
    if worker.prime != prime.uid {
        // it filled an earlier volume
        return Decision::new(Phase::Populating, "replacing a worker of an earlier volume")
            .act(Action::DeleteJob);
    }
    let created = Notice {
        warning: false,
        reason: "PopulatorCreated",
        message: words::created(&volume.name, &names::job(&target.uid), worker),
        key: worker.uid.clone(),
        happened: worker.created,
    };
    match worker.state {
        // before Kubernetes 1.31, an evicted Pod may still write then
        WorkerState::Complete if worker.unfinished > 0 => {
            let message = "the volume is filled; waiting for the end of another worker Pod";
            Decision::new(Phase::Rebinding, message).tell(created).look_again()
        }
        WorkerState::Complete if !worker.is_whole() => shards::again(prime, worker, created, now),
        WorkerState::Complete => {
            Decision::new(Phase::Rebinding, "the volume is filled; handing it over")
                .tell(created)
                .act(Action::Rebind)
        }
        WorkerState::Failed if worker.disagrees() || worker.unexplained => {
            shards::again(prime, worker, created, now)
        }
        WorkerState::Failed => failed(worker, words::why(worker), created, now),
        WorkerState::Active => under_way(seen, worker, created, now),
    }
}

/// The worker has failed for good.
fn failed(worker: &Worker, message: String, created: Notice, now: Timestamp) -> Decision {
    let failure = Failure {
        code: worker.ended.as_ref().and_then(|ended| ended.code),
        message,
        // what it proved itself with, which may have been mended since
        access: worker.access.clone(),
        time: now,
    };
    Decision::new(Phase::Failed, &failure.message).tell(created).act(Action::RecordFailure(failure))
}

fn under_way(seen: &Observed, worker: &Worker, created: Notice, now: Timestamp) -> Decision {
    let newest = worker.pod.as_ref();
    let last = |ended: &&Ended| newest.is_some_and(|pod| pod.name == ended.pod);
    let held = match newest {
        None => seen.warning.clone(),
        Some(pod) if pod.running => None,
        Some(pod) => pod.held_by.clone().or_else(|| {
            let starting = |created| now.duration_since(created).unsigned_abs() < STARTS_WITHIN;
            seen.warning.clone().filter(|_| !pod.created.is_some_and(starting))
        }),
    };
    let mut decision = match (worker.ended.as_ref().filter(last), held) {
        // whether there will be another is for the Job controller to say
        (Some(ended), _) => Decision::new(Phase::Populating, words::between(ended)),
        (None, Some(held)) => {
            let message = format!("{} cannot start: {held}", words::one_of(worker));
            Decision::new(Phase::Populating, message).warn_of("PopulatorStalled", &held)
        }
        (None, None) => Decision::new(Phase::Populating, words::progress(worker)),
    };
    decision.notices.insert(0, created);
    let has_failed = |ended: &&Ended| !last(ended) && ended.code != Some(0);
    if let Some(ended) = worker.ended.as_ref().filter(has_failed) {
        decision.notices.push(retrying(worker, ended));
    }
    decision.notices.extend(
        words::percent(worker)
            .and_then(|percent| progress(&worker.uid, percent, words::progress(worker))),
    );
    decision.look_again()
}

/// Each quarter of the way is told.
fn progress(of: &str, percent: u64, message: String) -> Option<Notice> {
    let quarter = percent / 25 * 25;
    (25..100).contains(&quarter).then(|| Notice {
        warning: false,
        reason: "PopulatorProgress",
        message,
        key: format!("{of} {quarter}"),
        // a transfer of hours tells again where it is
        happened: None,
    })
}

fn retrying(worker: &Worker, ended: &Ended) -> Notice {
    Notice {
        warning: true,
        reason: "PopulatorRetrying",
        message: words::retrying(worker, ended),
        key: ended.pod.clone(),
        happened: ended.time.or(worker.created),
    }
}
