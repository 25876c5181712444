//! The part of `decide` for volumes that several workers fill, each its share.
//!
//! ```text
//!  CreateJob --> Job complete, and a worker saw the whole --> Rebind
//!      ^          |
//!      |          | none did, or what they listed differs
//!      |          v
//!  DeleteJob <-- pause <-- NoteRound --> RecordFailure, once there were too many
//! ```
//!
//! Workers that agree with each other find their shares done, and end at once.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::super::crd::Phase;
use super::super::observed::shards::Rounds;
use super::super::observed::{Prime, Worker};
use super::super::words;
use super::{Action, Decision, Notice, failed};

/// The pause before all workers look again, doubled each time: as long as the Job controller waits
/// before another Pod.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(360);

/// The shares do not add up to the volume: all workers look again, as another Job.
pub(super) fn again(prime: &Prime, worker: &Worker, created: Notice, now: Timestamp) -> Decision {
    let message = words::again(worker);
    let Some(noted) = prime.rounds.as_ref().filter(|rounds| rounds.job == worker.uid) else {
        let count = prime.rounds.as_ref().map_or(0, |rounds| rounds.count).saturating_add(1);
        if worker.shards.is_none_or(|shards| count > shards.rounds) {
            return failed(worker, words::never_agreed(worker, count), created, now);
        }
        let round = Rounds { count, job: worker.uid.clone(), time: now };
        return Decision::new(Phase::Populating, message)
            .tell(created)
            .act(Action::NoteRound(round));
    };
    let told = Notice {
        warning: true,
        reason: "PopulatorRetrying",
        message: message.clone(),
        key: worker.uid.clone(),
        happened: Some(noted.time),
    };
    let decision = Decision::new(Phase::Populating, message).tell(created).tell(told);
    let pause =
        (FIRST_PAUSE * 2_u32.saturating_pow(noted.count.saturating_sub(1))).min(LONGEST_PAUSE);
    match now.duration_since(noted.time).unsigned_abs() < pause {
        true => decision.look_again(),
        false => decision.act(Action::DeleteJob),
    }
}
