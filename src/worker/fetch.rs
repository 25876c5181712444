//! Fetching: the plan's actions are carried out with as many requests at once as pay.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::commit::Committed;
use super::failure::Failure;
use super::large::Large;
use super::pace::Pace;
use super::plan::Action;
use super::transfer::{Step, Transfers, Unit};

/// Carries out everything that `actions` brings.
///
/// # Errors
/// The first failure of the plan or of any request; what is under way is dropped, what is
/// committed stays.
pub(crate) async fn carry_out(
    transfers: &Arc<Transfers>,
    mut actions: mpsc::Receiver<Result<Action, Failure>>,
    pace: &Pace,
) -> Result<Committed, Failure> {
    let mut requests = JoinSet::new();
    let result = dispatch(transfers, &mut actions, pace, &mut requests).await;
    // no request goes on behind a failure's back
    requests.shutdown().await;
    result
}

async fn dispatch(
    transfers: &Arc<Transfers>,
    actions: &mut mpsc::Receiver<Result<Action, Failure>>,
    pace: &Pace,
    requests: &mut JoinSet<Result<Step, Failure>>,
) -> Result<Committed, Failure> {
    let mut waiting: VecDeque<Unit> = VecDeque::new();
    let mut larges: VecDeque<(Arc<Large>, usize)> = VecDeque::new();
    let mut planned = false;
    let mut committed = Committed::default();
    loop {
        if waiting.is_empty()
            && let Some((large, next)) = larges.front_mut()
        {
            waiting.push_back(Unit::Part { large: Arc::clone(large), index: *next });
            *next += 1;
            if *next == large.parts() {
                larges.pop_front();
            }
        }
        if planned && waiting.is_empty() && requests.is_empty() {
            return Ok(committed);
        }
        let step = tokio::select! {
            biased;
            Some(done) = requests.join_next() => done.map_err(|error| {
                Failure::Unexpected(format!("a request did not finish: {error}"))
            })??,
            permit = pace.permit(), if !waiting.is_empty() => {
                if let Some(unit) = waiting.pop_front() {
                    let transfers = Arc::clone(transfers);
                    requests.spawn(async move {
                        let step = transfers.perform(unit).await;
                        drop(permit);
                        step
                    });
                }
                Step::Nothing
            }
            action = actions.recv(), if !planned && waiting.is_empty() => match action {
                Some(action) => transfers.begin(action?)?,
                None => {
                    planned = true;
                    Step::Nothing
                }
            }
        };
        match step {
            Step::Nothing => {}
            Step::Committed(more) => committed = committed.and(more),
            Step::Unit(unit) => waiting.push_back(unit),
            Step::Large(large) => larges.push_back((large, 0)),
        }
    }
}
