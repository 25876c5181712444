//! What is planned and not yet begun: the planner puts in, the lanes take out.
//!
//! Actions are begun in their order and one after the other, because a removal may make room for the
//! file that follows; only where the file system is slow and nothing but fetches is waiting are they
//! taken from many directories at once. Of a large object each part is work of its own.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::commit::Committed;
use super::failure::Failure;
use super::large::Large;
use super::list::Entry;
use super::pace::Pace;
use super::plan::Action;
use super::transfer::{Step, Transfers, Unit};
use crate::lock::lock;

/// How far the plan may run ahead of the requests: enough that there are several directories in it,
/// little enough to be a MB.
const AHEAD: usize = 2048;
/// A step that visits all of a queue of any length in use evenly: the golden section of [`AHEAD`], and a
/// prime.
const STEP: usize = 1277;
/// How many large objects may be open at once while small ones are waiting.
const OPEN_LARGE: usize = 4;

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Held while an action is begun.
    turn: tokio::sync::Mutex<()>,
    /// There may be something to take, or nothing ever again.
    more: Notify,
    /// There is room for the planner.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    planned: VecDeque<Action>,
    /// Of these, the ones that are no fetch.
    others: usize,
    /// Actions that were taken.
    taken: usize,
    /// How the plan ended, once it has.
    ended: Option<Result<(), Failure>>,
    /// Large objects of which there are parts that nobody has taken.
    larges: Vec<Open>,
    /// Units that were taken and are not done.
    units: u32,
    /// Of these, parts.
    parts: u32,
}

/// A large object whose parts are being taken.
#[derive(Debug)]
struct Open {
    large: Arc<Large>,
    /// The first part that nobody has taken.
    next: usize,
    /// The lane that took the first.
    lane: Option<usize>,
}

impl Open {
    fn left(&self) -> usize {
        self.large.parts() - self.next
    }
}

impl State {
    /// A part for `lane`: of an object that no other lane writes if there is one, or is next in the
    /// plan, because a file is locked while it is written; else of the one that has most to do.
    fn part(&mut self, lane: usize, is_large: impl Fn(&Entry) -> bool) -> Option<Unit> {
        let of = |lane| self.larges.iter().position(|open| open.lane == lane);
        let at = match of(Some(lane)).or_else(|| of(None)) {
            Some(at) => at,
            None => match self.planned.front() {
                Some(Action::Fetch { entry, .. }) if is_large(entry) => return None,
                _ => (0..self.larges.len()).max_by_key(|at| self.larges[*at].left())?,
            },
        };
        let open = &mut self.larges[at];
        open.lane.get_or_insert(lane);
        let unit = Unit::Part { large: Arc::clone(&open.large), index: open.next };
        open.next += 1;
        if open.left() == 0 {
            self.larges.remove(at);
        }
        self.parts += 1;
        self.units += 1;
        Some(unit)
    }

    fn plan(&mut self, action: Action) {
        self.others += usize::from(!is_fetch(&action));
        self.planned.push_back(action);
    }

    /// The next action, if there is one now; where names are `slow`, any of those whose order does not
    /// matter.
    ///
    /// # Errors
    /// The plan's failure, once: for the others there is nothing more to do.
    fn action(&mut self, slow: bool) -> Result<Option<Action>, Failure> {
        // names in one directory are made one by one, and keys come directory by directory: far steps
        // through what is planned lead through as many as there are
        let at = match self.planned.len() {
            length @ 1.. if slow && self.others == 0 => self.taken.wrapping_mul(STEP) % length,
            _ => 0,
        };
        if let Some(action) = self.planned.swap_remove_front(at) {
            self.others -= usize::from(!is_fetch(&action));
            self.taken = self.taken.wrapping_add(1);
            self.units += 1;
            return Ok(Some(action));
        }
        if let Some(Err(failure)) = self.ended.take_if(|ended| ended.is_err()) {
            self.ended = Some(Ok(()));
            return Err(failure);
        }
        Ok(None)
    }

    /// Nothing is left, and nothing that is under way can bring more.
    fn is_done(&self) -> bool {
        matches!(self.ended, Some(Ok(())))
            && self.planned.is_empty()
            && self.larges.is_empty()
            && self.units == 0
    }
}

/// Whether it matters to no other action when this one is begun.
fn is_fetch(action: &Action) -> bool {
    matches!(action, Action::Fetch { replaces: false, .. })
}

/// A unit that was taken; dropped, it is done.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    queue: &'a Queue,
    is_part: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.units -= 1;
        state.parts -= u32::from(self.is_part);
        if state.is_done() {
            self.queue.more.notify_waiters();
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // a panic elsewhere ends the run
        lock(&self.state)
    }

    /// Puts an action behind the others, once there is room.
    pub(crate) async fn push(&self, action: Action) {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            {
                let mut state = self.state();
                if state.planned.len() < AHEAD {
                    state.plan(action);
                    break;
                }
            }
            room.await;
        }
        self.more.notify_one();
    }

    /// Nothing more will come, because the plan is complete or has failed. What is said first counts.
    pub(crate) fn end(&self, how: Result<(), Failure>) {
        self.state().ended.get_or_insert(how);
        self.more.notify_waiters();
    }

    /// Whether everything was done.
    pub(crate) fn is_done(&self) -> bool {
        self.state().is_done()
    }

    /// Takes the next unit for `lane`, waiting if need be; `None` if there will be none. What needs no
    /// request is done on the way, and counted in `committed`.
    ///
    /// # Errors
    /// The plan's failure, or an action's.
    pub(crate) async fn next<'a>(
        &'a self,
        lane: usize,
        transfers: &Transfers,
        pace: &Pace,
        committed: &mut Committed,
    ) -> Result<Option<(Unit, Taken<'a>)>, Failure> {
        loop {
            let mut more = pin!(self.more.notified());
            more.as_mut().enable();
            if let Some(taken) = self.part(lane, transfers, pace) {
                return Ok(Some(taken));
            }
            let turn = self.turn.lock().await;
            // whoever had the turn before may have opened a large object
            if let Some(taken) = self.part(lane, transfers, pace) {
                return Ok(Some(taken));
            }
            let action = {
                let mut state = self.state();
                if state.is_done() {
                    return Ok(None);
                }
                let action = state.action(transfers.names_are_slow())?;
                if state.planned.len() == AHEAD / 2 {
                    self.room.notify_waiters();
                }
                action
            };
            let Some(action) = action else {
                drop(turn);
                let _waiting = pace.waiting();
                more.await;
                continue;
            };
            let taken = Taken { queue: self, is_part: false };
            self.wake_another(pace);
            match transfers.begin(action).await? {
                Step::Nothing => {}
                Step::Committed(more) => *committed = std::mem::take(committed).and(more),
                Step::Unit(unit) => return Ok(Some((unit, taken))),
                Step::Large(large) => self.open(large),
            }
        }
    }

    /// An action wakes one slot; where that one took something else, or there is more, it wakes the next.
    fn wake_another(&self, pace: &Pace) {
        if pace.is_waiting() {
            let state = self.state();
            if !state.planned.is_empty() || !state.larges.is_empty() {
                self.more.notify_one();
            }
        }
    }

    /// A part, if it is a part's turn: parts want bandwidth and small objects want requests, so
    /// while there are both, each gets half of the requests.
    fn part<'a>(
        &'a self,
        lane: usize,
        transfers: &Transfers,
        pace: &Pace,
    ) -> Option<(Unit, Taken<'a>)> {
        let unit = {
            let mut state = self.state();
            let small_waits = !state.planned.is_empty() && state.larges.len() < OPEN_LARGE;
            if small_waits && state.parts >= pace.level().div_ceil(2) {
                return None;
            }
            state.part(lane, |entry| transfers.is_large(entry))?
        };
        self.wake_another(pace);
        Some((unit, Taken { queue: self, is_part: true }))
    }

    /// The parts of a large object are there to be taken.
    pub(crate) fn open(&self, large: Arc<Large>) {
        self.state().larges.push(Open { large, next: 0, lane: None });
        self.more.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::super::large::Opening;
    use super::super::list::Target;
    use super::super::verify::Wanted;
    use super::super::volume::Volume;
    use super::super::write::Calls;
    use super::*;
    use crate::handoff::{Direct, ShardOf};
    use crate::keys::Key;

    /// In bytes; what is longer is large.
    const PART_SIZE: u64 = 100;

    fn entry(number: usize, size: u64) -> Entry {
        let name = number.to_string();
        Entry {
            key: Key::new(name.clone()).unwrap(),
            parent_len: 0,
            target: Target::File(name.parse().unwrap()),
            size,
            etag: None,
            modified_ms: 0,
            symlink: false,
            sha256: None,
            mine: true,
        }
    }

    /// The action `number`: a fetch, or one whose place among them matters.
    fn action(number: usize, is_fetch: bool) -> Action {
        let entry = entry(number, 0);
        if is_fetch {
            return Action::Fetch { entry, replaces: false };
        }
        let target = Target::Directory(entry.relative().parse().unwrap());
        Action::MakeDirectory { entry: Entry { target, ..entry }, kept: false }
    }

    fn number(action: &Action) -> usize {
        let (Action::Fetch { entry, .. } | Action::MakeDirectory { entry, .. }) = action else {
            panic!("{action:?}");
        };
        entry.relative().parse().unwrap()
    }

    proptest! {
        #[test]
        fn what_is_planned_is_taken_once_and_never_past_what_is_no_fetch(
            planned in prop::collection::vec((prop::bool::weighted(0.9), 0usize..4), 0..300),
            slow: bool,
        ) {
            let mut state = State::default();
            let mut taken = Vec::new();
            for (at, (is_fetch, takes)) in planned.iter().enumerate() {
                state.plan(action(at, *is_fetch));
                for _ in 0..*takes {
                    taken.extend(state.action(slow).unwrap().as_ref().map(number));
                }
            }
            while let Some(action) = state.action(slow).unwrap() {
                taken.push(number(&action));
            }
            let mut sorted = taken.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &(0..planned.len()).collect::<Vec<_>>());
            for (place, number) in taken.iter().enumerate() {
                if !planned[*number].0 || !slow {
                    prop_assert!(taken[..place].iter().all(|before| before < number));
                }
            }
        }
    }

    #[test]
    fn where_names_are_slow_what_follows_one_another_is_far_apart() {
        let mut state = State::default();
        (0..AHEAD).for_each(|at| state.plan(action(at, true)));
        let first: Vec<usize> =
            (0..64).map(|_| number(&state.action(true).unwrap().unwrap())).collect();
        let hundreds: std::collections::BTreeSet<usize> = first.iter().map(|at| at / 100).collect();
        assert!(hundreds.len() > 18, "{first:?}");
    }

    #[test]
    fn lanes_write_large_objects_of_their_own_while_there_are_any() {
        let place = tempfile::tempdir().unwrap();
        let volume = Arc::new(Volume::open(&place.path().join("volume"), ShardOf::WHOLE).unwrap());
        let calls = Calls::new(&Arc::default(), std::time::Duration::ZERO);
        let open = |entry: Entry| {
            let opening = Opening {
                volume: &volume,
                calls: &calls,
                part_size: PART_SIZE,
                direct: Direct::Off,
                wanted: Wanted::COMBINING,
            };
            let size = entry.size;
            let large = Large::open(opening, entry, false, size, None).unwrap();
            Open { large, next: 0, lane: None }
        };
        let part = |state: &mut State, lane| {
            let unit = state.part(lane, |entry| entry.size > PART_SIZE)?;
            let Unit::Part { large, index } = unit else { panic!("{unit:?}") };
            Some((large.path().as_str().to_owned(), index))
        };
        let taken = |path: &str, index| Some((path.to_owned(), index));

        let mut state = State::default();
        for number in [1, 2] {
            let entry = entry(number, 3 * PART_SIZE);
            state.plan(Action::Fetch { entry, replaces: false });
        }
        state.plan(action(3, true));
        state.larges.push(open(entry(0, 3 * PART_SIZE)));
        assert_eq!(part(&mut state, 0), taken("0", 0));
        assert_eq!(part(&mut state, 1), None, "it opens the next one");
        assert_eq!(part(&mut state, 0), taken("0", 1));

        let Some(Action::Fetch { entry, .. }) = state.action(false).unwrap() else { panic!() };
        state.larges.push(open(entry));
        assert_eq!(part(&mut state, 0), taken("0", 2));
        assert_eq!(part(&mut state, 1), taken("1", 0));
        assert_eq!(part(&mut state, 0), None, "it opens the next one");

        state.action(false).unwrap();
        // no large one is next: what another lane has is better than nothing
        assert_eq!(part(&mut state, 0), taken("1", 1));
    }
}
