//! What is decided: an action at most, and what is told of it.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::super::crd::Phase;
use super::super::observed::shards::Rounds;
use super::super::observed::{Failure, Observed, Stray};
use super::dataflow::{self, Left};

/// How often something is looked at again that makes no events: progress, warnings of others.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// The claim must not go before what is made for it.
    AddFinalizer,
    /// A claim of the same shape in the populator namespace, whose volume is filled.
    CreatePrime,
    /// The provisioner has given the node up: the scheduler must choose again.
    UnselectNode,
    /// The worker.
    CreateJob,
    /// Pods of a Job that someone deleted: nothing may write to the volume unseen.
    DeletePods(Vec<Stray>),
    /// Notes on the prime PVC that the population failed for good.
    RecordFailure(Failure),
    /// Notes on the prime PVC that all workers look again.
    NoteRound(Rounds),
    /// Notes on the prime PVC what CPFS is to be asked for.
    PlanDataflow,
    /// The prime PVC must not go before what CPFS makes for it.
    ProtectPrime,
    /// CPFS is asked for a data flow.
    CreateFlow,
    /// Notes on the prime PVC which data flow is used.
    NoteFlow(String),
    /// Notes on the prime PVC which task moves the data.
    NoteTask(String),
    /// CPFS is asked to import.
    CreateTask,
    CancelTask(String),
    DeleteFlow(String),
    /// CPFS has nothing of ours any more.
    ReleasePrime,
    /// The filled volume becomes the claim's: the one step that hands data over.
    Rebind,
    DeleteJob,
    DeletePrime,
    /// Nothing of ours is left.
    RemoveFinalizer,
}

impl Action {
    /// For metrics and logs.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "AddFinalizer",
            Self::CreatePrime => "CreatePrime",
            Self::UnselectNode => "UnselectNode",
            Self::CreateJob => "CreateJob",
            Self::DeletePods(_) => "DeletePods",
            Self::RecordFailure(_) => "RecordFailure",
            Self::NoteRound(_) => "NoteRound",
            Self::PlanDataflow => "PlanDataflow",
            Self::ProtectPrime => "ProtectPrime",
            Self::CreateFlow => "CreateFlow",
            Self::NoteFlow(_) => "NoteFlow",
            Self::NoteTask(_) => "NoteTask",
            Self::CreateTask => "CreateTask",
            Self::CancelTask(_) => "CancelTask",
            Self::DeleteFlow(_) => "DeleteFlow",
            Self::ReleasePrime => "ReleasePrime",
            Self::Rebind => "Rebind",
            Self::DeleteJob => "DeleteJob",
            Self::DeletePrime => "DeletePrime",
            Self::RemoveFinalizer => "RemoveFinalizer",
        }
    }

    /// What users are told when the API server refuses it: an event's reason, and what failed.
    pub(crate) fn failure(&self) -> (&'static str, &'static str) {
        match self {
            Self::CreatePrime => {
                ("PopulatorPVCPrimeCreationError", "the volume's own claim cannot be made")
            }
            Self::CreateJob => ("PopulatorCreationError", "the worker cannot be started"),
            Self::Rebind => ("PopulatorRebindError", "the filled volume cannot be handed over"),
            Self::PlanDataflow => {
                ("PopulatorDataflowError", "the volume's place in CPFS cannot be found")
            }
            Self::CreateFlow => ("PopulatorDataflowError", "CPFS makes no data flow"),
            Self::CreateTask => ("PopulatorDataflowError", "CPFS does not begin the import"),
            Self::CancelTask(_) => ("PopulatorDataflowError", "CPFS does not cancel the import"),
            Self::DeleteFlow(_) => ("PopulatorDataflowError", "CPFS does not delete the data flow"),
            Self::AddFinalizer
            | Self::ProtectPrime
            | Self::NoteFlow(_)
            | Self::NoteTask(_)
            | Self::ReleasePrime
            | Self::UnselectNode
            | Self::DeletePods(_)
            | Self::RecordFailure(_)
            | Self::NoteRound(_)
            | Self::DeleteJob
            | Self::DeletePrime
            | Self::RemoveFinalizer => ("PopulatorError", "the API server refuses a change"),
        }
    }
}

/// An event, on the claim and on the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// What makes it another event than the last one of this reason.
    pub(crate) key: String,
    /// When what it tells happened, if it happened once; `None`: it still lasts.
    pub(crate) happened: Option<Timestamp>,
}

/// What is done next, and what is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) phase: Phase,
    /// Why, or what is waited for.
    pub(crate) message: String,
    pub(crate) notices: Vec<Notice>,
    pub(crate) action: Option<Action>,
    /// When to look again, if nothing changes before.
    pub(crate) wait: Option<Duration>,
}

impl Decision {
    pub(super) fn new(phase: Phase, message: impl Into<String>) -> Self {
        Self { phase, message: message.into(), notices: vec![], action: None, wait: None }
    }

    pub(super) fn act(self, action: Action) -> Self {
        Self { action: Some(action), ..self }
    }

    pub(super) fn look_again(self) -> Self {
        Self { wait: Some(LOOK_AGAIN), ..self }
    }

    /// Says the message as an event, for as long as it lasts.
    pub(super) fn warn(mut self, reason: &'static str) -> Self {
        let message = self.message.clone();
        self.notices.push(Notice {
            warning: true,
            reason,
            key: message.clone(),
            message,
            happened: None,
        });
        self
    }

    /// As [`Decision::warn`], of what others say, by a reason and a text that may be new each time:
    /// one event for each of their reasons.
    pub(super) fn warn_of(self, reason: &'static str, said: &str) -> Self {
        let mut decision = self.warn(reason);
        let key = said.split(':').next().unwrap_or_default().to_owned();
        decision.notices.iter_mut().rev().take(1).for_each(|notice| notice.key.clone_from(&key));
        decision
    }

    pub(super) fn tell(mut self, notice: Notice) -> Self {
        self.notices.push(notice);
        self
    }

    /// Deletes Pods that are not being deleted yet, and waits until they are gone.
    pub(super) fn remove(self, strays: &[Stray]) -> Self {
        let left: Vec<Stray> = strays.iter().filter(|stray| !stray.deleting).cloned().collect();
        match left.is_empty() {
            true => self.look_again(),
            false => self.act(Action::DeletePods(left)),
        }
    }

    /// Deletes the Job, what CPFS has, then the prime PVC, each after the other is gone; `last` is done
    /// when nothing is left.
    pub(super) fn tear_down(self, seen: &Observed, last: Option<Action>, now: Timestamp) -> Self {
        match (&seen.worker, &seen.prime) {
            (Some(worker), _) if worker.deleting => self.look_again(),
            (Some(_), _) => self.act(Action::DeleteJob),
            _ if !seen.strays.is_empty() => self.remove(&seen.strays),
            (None, Some(prime)) => match dataflow::left(seen, prime, now) {
                Left::Nothing if !prime.deleting => self.act(Action::DeletePrime),
                Left::Nothing if prime.protected => self.act(Action::ReleasePrime),
                Left::Nothing => self.look_again(),
                left => self.undo(left),
            },
            (None, None) => Self { action: last, ..self },
        }
    }

    /// Undoes what is left in CPFS, a step at a time.
    pub(super) fn undo(mut self, left: Left) -> Self {
        match left {
            Left::Nothing => self,
            Left::Undo(action) => self.act(action),
            Left::Wait(what, reason) => {
                self.message = format!("{}: {what}", self.message);
                match reason {
                    Some(reason) => self.warn_of(reason, &what),
                    None => self,
                }
                .look_again()
            }
        }
    }
}
