//! The part of `decide` for volumes that CPFS fills by itself.
//!
//! ```text
//!  PlanDataflow --> ProtectPrime --> CreateFlow --> flow Running --> CreateTask --> task Completed
//!                                                                                        |
//!                   ReleasePrime <-- DeletePrime <-- flow gone <-- DeleteFlow <-- Rebind-+
//!                                                                      ^
//!                                                  CancelTask ---------+-- deletion, at any moment
//! ```
//!
//! The prime PVC's finalizer stands for "CPFS may have something of ours": it is there before CPFS is
//! asked for anything, and goes when CPFS says that nothing is left.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::super::crd::Phase;
use super::super::observed::dataflow::{Dataflow, Known, Noted, Plan, TaskSeen};
use super::super::observed::{Failure, Observed, Prime, Volume};
use super::super::policy::Access;
use super::super::words;
use super::{Action, Decision, Notice, progress, replace};

/// Data flows that a file system may have.
const MOST_FLOWS: usize = 10;
/// How long CPFS may take to list what it has made, before it counts as gone.
const LISTED_WITHIN: Duration = Duration::from_secs(300);
/// As long for a data flow that was asked for without an answer that says which.
const ANSWERED: Duration = Duration::from_secs(60);
/// How long there may be no file system, before what was made for a claim went with it.
const GONE_FOR: Duration = Duration::from_secs(600);

/// There is a volume to fill, and CPFS is to do it.
pub(super) fn populate(
    seen: &Observed,
    prime: &Prime,
    volume: &Volume,
    now: Timestamp,
) -> Decision {
    let under_way = |message: &str| Decision::new(Phase::Populating, message);
    let Some(plan) = &prime.plan else {
        if prime.protected {
            return under_way(words::UNREADABLE).warn("PopulatorDataflowError").look_again();
        }
        if volume.cpfs.is_none() {
            let message = format!("volume {} is none of CPFS for Lingjun", volume.name);
            return Decision::new(Phase::Failed, message).warn("PopulatorUnsupportedClaim");
        }
        return under_way("finding the volume's place in CPFS").act(Action::PlanDataflow);
    };
    let known = match &seen.dataflow {
        Dataflow::Known(known) => known,
        Dataflow::Unasked => return under_way("asking CPFS").look_again(),
        Dataflow::Unknown(why) | Dataflow::NoFileSystem(why) => {
            let message = format!("CPFS cannot be asked: {why}");
            return under_way(&message).warn_of("PopulatorDataflowError", why).look_again();
        }
    };
    if !prime.protected {
        return under_way("protecting the data flow").act(Action::ProtectPrime);
    }
    let Some(noted) = &plan.flow else { return find_flow(plan, known) };
    let Some(flow) = &known.flow else {
        let message = format!("data flow {} is gone; filling a fresh volume", noted.id);
        return missing(seen, noted, &message, now);
    };
    if let Some(error) = flow.error.as_deref().filter(|_| flow.status != "Running") {
        let message = words::flow_error(&flow.id, error);
        return under_way(&message).warn("PopulatorDataflowError").look_again();
    }
    match flow.status.as_str() {
        "Running" => {}
        "Starting" | "Creating" | "Updating" => {
            let message = format!("data flow {} is {}", flow.id, flow.status);
            return under_way(&message).look_again();
        }
        status => {
            let message = words::flow_waits(&flow.id, status);
            return under_way(&message).warn("PopulatorDataflowWaiting").look_again();
        }
    }
    let Some(noted) = &plan.task else {
        if let Some(id) = &known.import {
            let message = format!("using task {id}");
            return under_way(&message).act(Action::NoteTask(id.clone()));
        }
        let message = format!("asking CPFS for the import by data flow {}", flow.id);
        return under_way(&message).act(Action::CreateTask);
    };
    let Some(task) = &known.task else {
        let message = format!("task {} is gone; filling a fresh volume", noted.id);
        return missing(seen, noted, &message, now);
    };
    let created = Notice {
        warning: false,
        reason: "PopulatorCreated",
        message: format!(
            "volume {} is being filled by task {} of data flow {}",
            volume.name, task.id, flow.id
        ),
        key: task.id.clone(),
        happened: Some(noted.time),
    };
    import(plan, known, task, created, now)
}

fn find_flow(plan: &Plan, known: &Known) -> Decision {
    match &known.flow {
        Some(flow) => {
            let message = format!("using data flow {}", flow.id);
            Decision::new(Phase::Populating, message).act(Action::NoteFlow(flow.id.clone()))
        }
        None if known.flows >= MOST_FLOWS => {
            let message = format!(
                "file system {} has {} data flows, and {MOST_FLOWS} are the most; waiting for one to go",
                plan.file_system, known.flows
            );
            Decision::new(Phase::Waiting, message).warn("PopulatorQueued").look_again()
        }
        None => {
            Decision::new(Phase::Populating, "asking CPFS for a data flow").act(Action::CreateFlow)
        }
    }
}

/// What was noted is not listed: not yet, or not any more.
fn missing(seen: &Observed, noted: &Noted, message: &str, now: Timestamp) -> Decision {
    if now.duration_since(noted.time).unsigned_abs() > LISTED_WITHIN {
        return replace(seen, message, now);
    }
    let message = format!("waiting for CPFS to show {}", noted.id);
    Decision::new(Phase::Populating, message).look_again()
}

fn import(
    plan: &Plan,
    known: &Known,
    task: &TaskSeen,
    created: Notice,
    now: Timestamp,
) -> Decision {
    let failed = |message: String| {
        let failure =
            Failure { code: None, message, access: words::access(&Access::Cpfs), time: now };
        Decision::new(Phase::Failed, &failure.message)
            .tell(created.clone())
            .act(Action::RecordFailure(failure))
    };
    match task.status.as_str() {
        "Pending" | "Executing" => {
            let mut decision = Decision::new(Phase::Populating, words::task_progress(task));
            decision.notices.push(created);
            decision.notices.extend(
                task.percent()
                    .and_then(|percent| progress(&task.id, percent, words::task_progress(task))),
            );
            decision.look_again()
        }
        "Completed" => match words::incomplete(plan, task) {
            Some(why) => failed(why),
            // nothing may write to a volume that was handed over
            None if !known.unfinished.is_empty() => {
                let message = "the volume is filled; waiting for the end of another task";
                Decision::new(Phase::Rebinding, message).tell(created).look_again()
            }
            None => Decision::new(Phase::Rebinding, "the volume is filled; handing it over")
                .tell(created)
                .act(Action::Rebind),
        },
        "Failed" | "Canceled" => failed(words::task_ended(task)),
        status => {
            let message = words::task_waits(&task.id, status);
            Decision::new(Phase::Populating, message)
                .warn("PopulatorDataflowWaiting")
                .tell(created)
                .look_again()
        }
    }
}

/// What is left in CPFS of a prime PVC.
pub(super) enum Left {
    Nothing,
    /// Something that is to be undone.
    Undo(Action),
    /// Something that goes by itself, or cannot be undone now: what, and a reason to warn of it.
    Wait(String, Option<&'static str>),
}

/// What is left in CPFS of `prime`.
pub(super) fn left(seen: &Observed, prime: &Prime, now: Timestamp) -> Left {
    if !prime.protected {
        return Left::Nothing;
    }
    let Some(plan) = &prime.plan else {
        return Left::Wait(words::UNREADABLE.to_owned(), Some("PopulatorDataflowError"));
    };
    let since = |then: Timestamp| now.duration_since(then).unsigned_abs();
    let leaving = seen.target.as_ref().and_then(|target| target.deleting);
    let known = match &seen.dataflow {
        Dataflow::Known(known) => known,
        Dataflow::Unasked => return Left::Wait("asking CPFS".to_owned(), None),
        // with credentials of another account, or in another region, there is none either
        Dataflow::NoFileSystem(_)
            if seen.target.is_none() || leaving.is_some_and(|then| since(then) > GONE_FOR) =>
        {
            return Left::Nothing;
        }
        Dataflow::Unknown(why) | Dataflow::NoFileSystem(why) => {
            let message = format!("CPFS cannot be asked what is left there: {why}");
            return Left::Wait(message, Some("PopulatorDataflowError"));
        }
    };
    if let Some(task) = known.unfinished.iter().find(|task| !task.canceling) {
        return Left::Undo(Action::CancelTask(task.id.clone()));
    }
    if let Some(task) = known.unfinished.first() {
        return Left::Wait(format!("waiting for the end of task {}", task.id), None);
    }
    // what was made a moment ago may not be listed yet
    let unlisted = [
        plan.flow.as_ref().filter(|_| known.flow.is_none()),
        plan.task.as_ref().filter(|_| known.task.is_none()),
    ];
    let young = |noted: &&Noted| since(noted.time) < LISTED_WITHIN && !plan.shown;
    if let Some(noted) = unlisted.into_iter().flatten().find(young) {
        return Left::Wait(format!("waiting for CPFS to show {}", noted.id), None);
    }
    let asked = plan.asked.filter(|then| plan.flow.is_none() && since(*then) < ANSWERED);
    match &known.flow {
        None if asked.is_some() => {
            Left::Wait("waiting for CPFS to show a data flow".to_owned(), None)
        }
        Some(flow) if flow.ours => match flow.status.as_str() {
            // refused until that is over
            "Starting" | "Creating" | "Updating" | "Stopping" | "Deleting" => {
                let message =
                    format!("waiting for data flow {}, which is {}", flow.id, flow.status);
                Left::Wait(message, None)
            }
            _ => Left::Undo(Action::DeleteFlow(flow.id.clone())),
        },
        // others' may serve others
        _ => Left::Nothing,
    }
}
