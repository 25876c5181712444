//! Fetching: the plan's actions are carried out with as many requests at once as pay.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::commit::Committed;
use super::failure::Failure;
use super::lanes::Lanes;
use super::pace::Pace;
use super::queue::Queue;
use super::transfer::{Step, Transfers};

/// Carries out everything that `queue` brings; `transfers` are those of each lane.
///
/// # Errors
/// The first failure of the plan or of any request; what is under way is dropped, what is
/// committed stays.
pub(crate) async fn carry_out(
    lanes: &Lanes,
    transfers: &[Arc<Transfers>],
    queue: &Arc<Queue>,
    pace: &Arc<Pace>,
) -> Result<Committed, Failure> {
    let mut slots = JoinSet::new();
    let result = serve(lanes, transfers, queue, pace, &mut slots).await;
    // no request goes on behind a failure's back
    slots.shutdown().await;
    // file calls are counted for all lanes together
    if let Some(lane) = transfers.first() {
        lane.settled().await;
    }
    result
}

/// Keeps as many slots at work as the pace allows, on the lanes that have the fewest.
async fn serve(
    lanes: &Lanes,
    transfers: &[Arc<Transfers>],
    queue: &Arc<Queue>,
    pace: &Arc<Pace>,
    slots: &mut JoinSet<Result<(usize, Committed), Failure>>,
) -> Result<Committed, Failure> {
    let mut committed = Committed::default();
    let mut on_lane = vec![0_u32; lanes.count()];
    loop {
        while !queue.is_done() && pace.admit() {
            let lane = (0..lanes.count()).min_by_key(|lane| on_lane[*lane]).unwrap_or_default();
            on_lane[lane] += 1;
            let (transfers, queue) = (Arc::clone(&transfers[lane]), Arc::clone(queue));
            let serving = slot(lane, transfers, queue, Arc::clone(pace));
            slots.spawn_on(async move { Ok((lane, serving.await?)) }, lanes.handle(lane));
        }
        tokio::select! {
            biased;
            ended = slots.join_next() => match ended {
                Some(ended) => {
                    let (lane, more) = ended.map_err(|error| {
                        Failure::Unexpected(format!("a request did not finish: {error}"))
                    })??;
                    on_lane[lane] -= 1;
                    committed = committed.and(more);
                }
                None => return Ok(committed),
            },
            () = pace.raised() => {}
        }
    }
}

/// Makes one request after the other, until there is nothing more to do or the pace wants fewer.
async fn slot(
    lane: usize,
    transfers: Arc<Transfers>,
    queue: Arc<Queue>,
    pace: Arc<Pace>,
) -> Result<Committed, Failure> {
    let mut committed = Committed::default();
    while !pace.retire() {
        let next = queue.next(lane, &transfers, &pace, &mut committed).await?;
        let Some((mut unit, _taken)) = next else {
            pace.leave();
            break;
        };
        loop {
            if unit.asks() {
                pace.turn().await;
            }
            match transfers.perform(unit).await? {
                Step::Nothing => {}
                Step::Committed(more) => committed = committed.and(more),
                Step::Large(large) => queue.open(large),
                Step::Unit(again) => {
                    unit = again;
                    continue;
                }
            }
            break;
        }
    }
    Ok(committed)
}
