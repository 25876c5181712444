//! What is seen of one claim, reduced to what decisions depend on. Pure: from Kubernetes' objects to
//! facts.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use self::dataflow::{Dataflow, Place, Plan};
use self::shards::{Rounds, Shards, Share, index, shares};
use super::names;
use super::policy::{Access, Refusal};
use crate::handoff::{ExitCode, Outcome, Progress};

pub(crate) mod dataflow;
pub(crate) mod shards;

/// One claim, and everything that is there for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// The user's claim; `None`: it is gone, and what was made for it is left.
    pub(crate) target: Option<Target>,
    /// The resource that it names.
    pub(crate) source: Source,
    /// Its storage class.
    pub(crate) class: Class,
    /// The prime PVC.
    pub(crate) prime: Option<Prime>,
    /// The volume that target or prime PVC names.
    pub(crate) volume: Option<Volume>,
    /// The Job.
    pub(crate) worker: Option<Worker>,
    /// Worker Pods of no Job that is there: someone deleted it, and they may go on writing.
    pub(crate) strays: Vec<Stray>,
    /// What CPFS has of the prime PVC's plan.
    pub(crate) dataflow: Dataflow,
    /// The newest warning of others about prime PVC, Job or Pod, with its reason.
    pub(crate) warning: Option<String>,
}

impl Observed {
    /// Whether nothing is there that was made for the claim.
    pub(crate) fn is_untouched(&self) -> bool {
        self.prime.is_none() && self.worker.is_none() && self.strays.is_empty()
    }
}

/// The user's claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) uid: String,
    /// Since when it is being deleted.
    pub(crate) deleting: Option<Timestamp>,
    /// Whether it has our finalizer.
    pub(crate) finalizer: bool,
    /// The volume it names.
    pub(crate) volume: Option<String>,
    /// Whether the PV controller says that it is bound.
    pub(crate) bound: bool,
    /// Whether it says that the volume is gone, or another's.
    pub(crate) lost: bool,
    pub(crate) selected_node: Option<String>,
    /// Whether Kubernetes holds it for Pods, once it is being deleted.
    pub(crate) in_use: bool,
    /// `volumeMode: Block`.
    pub(crate) block: bool,
    /// Whether Pods of many nodes may write to it: `ReadWriteMany`.
    pub(crate) shared: bool,
}

/// The resource, as far as it concerns this claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// There is none by the name.
    #[default]
    Missing,
    /// It may not be served.
    Refused(Refusal),
    /// It may be served.
    Usable {
        /// Digest of its spec.
        digest: String,
        /// With what the worker proves itself.
        access: Access,
        /// How many workers it asks for.
        workers: u32,
    },
}

/// The storage class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Class {
    /// The claim names none.
    #[default]
    Unnamed,
    /// There is none by the name.
    Missing(String),
    /// It makes no volumes by itself.
    Static(String),
    /// It makes volumes.
    Dynamic {
        /// `WaitForFirstConsumer`.
        waits_for_consumer: bool,
        /// Whether they are CPFS for Lingjun's.
        cpfs: bool,
    },
}

/// The prime PVC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prime {
    pub(crate) uid: String,
    pub(crate) deleting: bool,
    pub(crate) phase: PrimePhase,
    pub(crate) volume: Option<String>,
    pub(crate) selected_node: Option<String>,
    /// The node that its volume was asked for.
    pub(crate) made_for_node: Option<String>,
    /// Digest of the spec it was made for.
    pub(crate) digest: String,
    /// How the population failed for good.
    pub(crate) failure: Option<Failure>,
    /// How often all workers had to look again.
    pub(crate) rounds: Option<Rounds>,
    /// What CPFS is asked for.
    pub(crate) plan: Option<Plan>,
    /// Whether it has the finalizer for what CPFS has.
    pub(crate) protected: bool,
}

/// What the PV controller says of the prime PVC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PrimePhase {
    #[default]
    Pending,
    Bound,
    /// Its volume is gone, or another's.
    Lost,
}

/// How a population failed for good; kept on the prime PVC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Failure {
    /// The worker's exit code, if it is known.
    pub(crate) code: Option<i32>,
    /// One line.
    pub(crate) message: String,
    /// What the worker proved itself with: another may fare better.
    pub(crate) access: String,
    /// When it was found.
    pub(crate) time: Timestamp,
}

/// The volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) name: String,
    /// The UID of the claim it is for.
    pub(crate) claim: Option<String>,
    /// Whether its phase is Bound.
    pub(crate) bound: bool,
    pub(crate) deleting: bool,
    /// Whether it was handed over by us once.
    pub(crate) populated: bool,
    pub(crate) resource_version: String,
    /// Its place in CPFS, if it is there.
    pub(crate) cpfs: Option<Place>,
}

/// The Job and its newest Pods.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Worker {
    pub(crate) uid: String,
    /// The UID of the prime PVC whose volume it fills.
    pub(crate) prime: String,
    pub(crate) deleting: bool,
    pub(crate) state: WorkerState,
    pub(crate) created: Option<Timestamp>,
    /// How many Pods fill the volume side by side, if it is more than one.
    pub(crate) shards: Option<Shards>,
    /// Pods that failed.
    pub(crate) failed_pods: i32,
    /// With what its Pods prove themselves.
    pub(crate) access: String,
    /// Its Pods that have not ended. Before Kubernetes 1.31 a Job may be complete while an evicted Pod
    /// still runs.
    pub(crate) unfinished: usize,
    /// Its newest Pod; of the newest of each share, one that does not run yet, else one that runs.
    pub(crate) pod: Option<WorkerPod>,
    /// Whether the end of one Pod ended all of several workers, and that Pod is not there any more.
    pub(crate) unexplained: bool,
    /// How the newest Pod that ended did so; of several shares', the end that decides.
    pub(crate) ended: Option<Ended>,
    /// Where the progress of each share is found.
    pub(crate) shares: Vec<Share>,
    /// The progress of all shares together.
    pub(crate) progress: Option<Progress>,
}

/// What the Job controller says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum WorkerState {
    #[default]
    Active,
    Complete,
    Failed,
}

/// A worker Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WorkerPod {
    pub(crate) name: String,
    pub(crate) running: bool,
    pub(crate) ended: bool,
    pub(crate) created: Option<Timestamp>,
    /// Why it does not run: unschedulable, no image, and the like.
    pub(crate) held_by: Option<String>,
}

/// A worker Pod of a Job that is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stray {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) deleting: bool,
}

impl Stray {
    /// Those of `pods` that are not `job`'s.
    pub(crate) fn among(pods: &[impl AsRef<Pod>], job: Option<&Job>) -> Vec<Self> {
        let pods = pods.iter().map(AsRef::as_ref).filter(|pod| !belongs(pod, job));
        let stray = |pod: &Pod| Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        };
        pods.map(stray).collect()
    }
}

fn belongs(pod: &Pod, job: Option<&Job>) -> bool {
    let uid = job.and_then(ResourceExt::uid);
    pod.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref())
}

/// How a worker Pod ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) pod: String,
    pub(crate) code: Option<i32>,
    /// The kernel's out-of-memory killer.
    pub(crate) out_of_memory: bool,
    /// It was evicted, or its node went away.
    pub(crate) disrupted: bool,
    /// The worker's own message, or the kubelet's.
    pub(crate) message: String,
    /// Whether the worker said that the whole volume is complete.
    pub(crate) whole: bool,
    /// Objects and bytes in the volume, by the worker's outcome, and bytes a second.
    pub(crate) figures: Option<(u64, u64, u64)>,
    pub(crate) time: Option<Timestamp>,
}

impl Target {
    pub(crate) fn of(claim: &PersistentVolumeClaim) -> Self {
        let spec = claim.spec.clone().unwrap_or_default();
        Self {
            uid: claim.uid().unwrap_or_default(),
            deleting: claim.metadata.deletion_timestamp.as_ref().map(|time| time.0),
            finalizer: claim.finalizers().iter().any(|it| it == names::FINALIZER),
            in_use: claim.finalizers().iter().any(|it| it == names::IN_USE),
            volume: spec.volume_name.filter(|name| !name.is_empty()),
            bound: phase(claim) == "Bound",
            lost: phase(claim) == "Lost",
            selected_node: claim.annotations().get(names::SELECTED_NODE).cloned(),
            block: spec.volume_mode.as_deref() == Some("Block"),
            shared: spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteMany"),
        }
    }
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

impl Class {
    /// Of the class that a claim names, as it was found.
    pub(crate) fn of(name: Option<&str>, class: Option<&StorageClass>) -> Self {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Self::Unnamed };
        let Some(class) = class else { return Self::Missing(name.to_owned()) };
        // volumes of Kubernetes' own drivers cannot be populated, unless a CSI driver makes them
        let migrated = class.annotations().contains_key("pv.kubernetes.io/migrated-to");
        if class.provisioner.starts_with("kubernetes.io/") && !migrated {
            return Self::Static(name.to_owned());
        }
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        let cpfs = class.provisioner == dataflow::DRIVER;
        Self::Dynamic { waits_for_consumer: waits, cpfs }
    }
}

impl Prime {
    pub(crate) fn of(claim: &PersistentVolumeClaim) -> Self {
        let annotations = claim.annotations();
        let spec = claim.spec.clone().unwrap_or_default();
        Self {
            uid: claim.uid().unwrap_or_default(),
            deleting: claim.metadata.deletion_timestamp.is_some(),
            phase: match phase(claim) {
                "Bound" => PrimePhase::Bound,
                "Lost" => PrimePhase::Lost,
                _ => PrimePhase::Pending,
            },
            volume: spec.volume_name.filter(|name| !name.is_empty()),
            selected_node: annotations.get(names::SELECTED_NODE).cloned(),
            made_for_node: annotations.get(names::MADE_FOR_NODE).cloned(),
            digest: annotations.get(names::SPEC_DIGEST).cloned().unwrap_or_default(),
            failure: annotations
                .get(names::FAILURE)
                .and_then(|failure| serde_json::from_str(failure).ok()),
            rounds: annotations
                .get(names::ROUNDS)
                .and_then(|rounds| serde_json::from_str(rounds).ok()),
            plan: annotations
                .get(names::DATA_FLOW)
                .and_then(|plan| serde_json::from_str(plan).ok()),
            protected: claim.finalizers().iter().any(|it| it == names::DATA_FLOW_FINALIZER),
        }
    }
}

impl Volume {
    pub(crate) fn of(volume: &PersistentVolume) -> Self {
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        Self {
            name: volume.name_any(),
            claim: claim.and_then(|claim| claim.uid.clone()),
            bound: phase == Some("Bound"),
            deleting: volume.metadata.deletion_timestamp.is_some(),
            populated: volume.annotations().contains_key(names::POPULATED_FROM),
            resource_version: volume.resource_version().unwrap_or_default(),
            cpfs: Place::of(volume),
        }
    }
}

impl Worker {
    /// Of a Job and Pods, its own among them, in any order.
    pub(crate) fn of(job: &Job, pods: &[impl AsRef<Pod>]) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let has = |kind: &str| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.any(|condition| condition.type_ == kind && condition.status == "True")
        };
        let mut pods: Vec<&Pod> =
            pods.iter().map(AsRef::as_ref).filter(|pod| belongs(pod, Some(job))).collect();
        pods.sort_by_key(|pod| {
            (pod.metadata.creation_timestamp.as_ref().map(|t| t.0), pod.name_any())
        });
        let by_policy = status.conditions.iter().flatten().any(|condition| {
            condition.type_ == "Failed" && condition.reason.as_deref() == Some("PodFailurePolicy")
        });
        let state = match (has("Complete"), has("Failed")) {
            (true, _) => WorkerState::Complete,
            (false, true) => WorkerState::Failed,
            (false, false) => WorkerState::Active,
        };
        let shards = Shards::of(job);
        // from the oldest on: the newest of each share stays
        let latest: BTreeMap<u32, WorkerPod> =
            pods.iter().map(|pod| (index(pod), WorkerPod::of(pod))).collect();
        let ended: Vec<Ended> = pods.iter().filter_map(|pod| Ended::of(pod)).collect();
        let weight = |ended: &Ended| match shards {
            // the newest counts
            None => 0,
            Some(_) => shards::weight(ended, state),
        };
        let count = shards.map_or(1, |shards| shards.count);
        Self {
            shares: shares(count, &latest, &ended),
            shards,
            uid: job.uid().unwrap_or_default(),
            prime: job.annotations().get(names::PRIME_UID).cloned().unwrap_or_default(),
            deleting: job.metadata.deletion_timestamp.is_some(),
            state,
            created: job.metadata.creation_timestamp.as_ref().map(|time| time.0),
            access: job.annotations().get(names::ACCESS).cloned().unwrap_or_default(),
            unfinished: pods.iter().filter(|pod| !has_ended(pod)).count(),
            failed_pods: status.failed.unwrap_or_default(),
            pod: latest.into_values().max_by_key(|pod| (!pod.ended, !pod.running)),
            unexplained: shards.is_some() && by_policy && !ended.iter().any(shards::ends_all),
            ended: ended.into_iter().max_by_key(weight),
            progress: None,
        }
    }

    /// Whether the volume is filled, once the Job is complete: of several workers each has its share
    /// then, and one has seen that they are the whole. Who that was may be lost together with its Pod.
    pub(crate) fn is_whole(&self) -> bool {
        self.shards.is_none() || self.ended.as_ref().is_some_and(|ended| ended.whole)
    }

    /// Whether several workers failed because they did not see the same objects.
    pub(crate) fn disagrees(&self) -> bool {
        let code = self.ended.as_ref().and_then(|ended| ended.code);
        self.shards.is_some() && code == Some(i32::from(ExitCode::Changed.number()))
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == names::CONTAINER)
}

impl WorkerPod {
    fn of(pod: &Pod) -> Self {
        let state = container(pod).and_then(|status| status.state.as_ref());
        let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            // not a fault yet; if it lasts, the kubelet's events say why
            if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
                return None;
            }
            let message = waiting.message.as_deref().unwrap_or_default();
            Some(format!("{reason}: {message}").trim_end_matches(": ").to_owned())
        });
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let unscheduled = conditions
            .filter(|it| it.type_ == "PodScheduled" && it.status == "False")
            .map(|it| {
                let reason = it.reason.as_deref().unwrap_or("Unschedulable");
                format!("{reason}: {}", it.message.as_deref().unwrap_or_default())
            })
            .next();
        Self {
            name: pod.name_any(),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            running: state.is_some_and(|state| state.running.is_some()),
            ended: has_ended(pod),
            held_by: waiting.or(unscheduled),
        }
    }
}

impl Ended {
    fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let phase = status.phase.as_deref().unwrap_or_default();
        let ended = container(pod)
            .and_then(|status| status.state.as_ref()?.terminated.as_ref())
            .filter(|_| matches!(phase, "Succeeded" | "Failed"));
        if ended.is_none() && phase != "Failed" {
            return None;
        }
        let said = ended.and_then(|ended| ended.message.as_deref()).unwrap_or_default();
        let outcome = serde_json::from_str::<Outcome>(said).ok();
        let fallback = [Some(said), status.message.as_deref(), status.reason.as_deref()];
        let message = match &outcome {
            Some(outcome) => outcome.message.clone(),
            None => fallback
                .into_iter()
                .flatten()
                .find(|text| !text.is_empty())
                .unwrap_or("")
                .to_owned(),
        };
        let disrupted = status.conditions.iter().flatten();
        Some(Self {
            pod: pod.name_any(),
            code: ended.map(|ended| ended.exit_code),
            out_of_memory: ended.and_then(|it| it.reason.as_deref()) == Some("OOMKilled"),
            disrupted: disrupted
                .into_iter()
                .any(|it| it.type_ == "DisruptionTarget" && it.status == "True"),
            message,
            whole: ended.is_some_and(|ended| ended.exit_code == 0)
                && outcome.as_ref().is_some_and(|it| it.whole),
            figures: outcome.map(|it| (it.objects, it.bytes, it.bytes_per_s)),
            time: ended.and_then(|ended| ended.finished_at.as_ref()).map(|time| time.0),
        })
    }
}

#[cfg(test)]
mod tests;
