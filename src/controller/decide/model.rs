//! `decide` against a small model of a cluster: whatever users, vandals, slow controllers and stale
//! caches do in between, no claim gets a volume that is not filled, and everything comes to an end.
//!
//! More cases: `PROPTEST_CASES=200000 cargo test --lib a_claim_gets_a_filled_volume`.
//!
//! Only one claim is modelled: the names of what is made for it hold its UID, and a claim that is
//! made anew under its name has another.

mod world;

use std::collections::VecDeque;

use proptest::prelude::*;

use self::world::{Broken, Cpfs, CpfsMove, Move, Snapshot, World};
use super::*;

/// One step of a case.
#[derive(Debug, Clone)]
enum Step {
    World(Move),
    /// A pass of the controller, and a round of everyone who is not a user.
    Round,
    /// A pass of the controller, with caches of these ages (of claim and resource, of prime PVC, of
    /// the Job, of the volume), and with what happens between its reads and before its change.
    Pass {
        ages: [usize; 4],
        between: [Option<Move>; 5],
    },
}

/// A cluster, what happens in it, and how it goes on when nobody interferes any more.
#[derive(Debug, Clone)]
struct Case {
    world: World,
    steps: Vec<Step>,
}

/// As many of the last observations as caches may lag behind.
const OLDEST: usize = 4;
/// A case that ends does so within this many rounds of all controllers.
const ROUNDS: usize = 120;
/// From anywhere to the end: a volume given up, another one filled, handed over and cleaned up.
const ACTIONS: usize = 40;

fn a_move() -> impl Strategy<Value = Move> {
    use Move::{
        BindStatic, ChangeObjects, Collect, Cpfs, DeleteClaim, DeleteJob, DeletePod, DeletePrime,
        DeleteSource, DeleteVolume, DropFinalizer, EndPod, GiveUpNode, Later, LoseVolume,
        MakeClass, NameVolume, Protect, Provision, Refuse, RotateSecret, SelectNode, SyncClaim,
        SyncJob, SyncPrime, SyncVolumes, TakeVolume, WriteSource,
    };
    prop_oneof![
        30 => proptest::sample::select(vec![Provision, SyncPrime, SyncPrime, SyncPrime, SyncClaim,
            SyncVolumes, SyncJob, SyncJob, SyncJob, Protect, Collect, MakeClass]),
        10 => proptest::sample::select(vec![0, 0, 0, 1, 3, 4, 5, 6, 7, 8, 130, 137, 143]).prop_map(EndPod),
        4 => (0u8..3).prop_map(SelectNode),
        2 => Just(GiveUpNode),
        3 => (0u8..3).prop_map(WriteSource),
        1 => Just(DeleteSource),
        2 => Just(RotateSecret),
        3 => proptest::sample::select(vec![ChangeObjects, ChangeObjects, Later]),
        1 => any::<bool>().prop_map(Refuse),
        2 => Just(DeletePod),
        2 => any::<bool>().prop_map(DeleteJob),
        1 => proptest::sample::select(vec![DeletePrime, DeleteVolume, LoseVolume, TakeVolume, DropFinalizer, BindStatic]),
        1 => any::<bool>().prop_map(NameVolume),
        1 => Just(DeleteClaim),
        12 => proptest::sample::select(vec![CpfsMove::GoOn, CpfsMove::GoOn, CpfsMove::GoOn,
            CpfsMove::Reach(false), CpfsMove::Reach(true), CpfsMove::Deafen(true),
            CpfsMove::Deafen(false), CpfsMove::DeleteFlow,
            CpfsMove::CancelTask, CpfsMove::Stop(true), CpfsMove::Stop(false)]).prop_map(Cpfs),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    let between = || proptest::option::weighted(0.1, a_move());
    prop_oneof![
        20 => a_move().prop_map(Step::World),
        2 => proptest::sample::select(vec![Move::PrimeAgain, Move::JobAgain]).prop_map(Step::World),
        20 => Just(Step::Round),
        20 => (
            [0..OLDEST, 0..OLDEST, 0..OLDEST, 0..OLDEST],
            [between(), between(), between(), between(), between()]
        )
            .prop_map(|(ages, between)| Step::Pass { ages, between }),
    ]
}

prop_compose! {
    fn a_case()(waits: bool, consumer in prop::bool::weighted(0.9), class in prop::bool::weighted(0.9),
        spec in proptest::option::weighted(0.9, 0u8..3), bad_node: bool,
        provisioner_broken in prop::bool::weighted(0.05),
        code in proptest::sample::select(vec![0, 0, 0, 0, 1, 3, 7]),
        cpfs in proptest::option::weighted(0.4, any::<bool>()),
        shared in proptest::option::weighted(0.5, prop::bool::weighted(0.95)),
        steps in proptest::collection::vec(a_step(), 0..80)) -> Case {
        Case { world: World::new(waits, class, consumer, spec, bad_node, provisioner_broken, (code, cpfs.map(|lazy| Cpfs::new(lazy, code)))).shared(shared), steps }
    }
}

/// What matters where several workers fill a volume: whose end is seen when, and what each has listed.
fn a_move_of_several() -> impl Strategy<Value = Move> {
    use Move::{ChangeObjects, DeleteJob, DeletePod, EndPod, Later, SyncJob, WriteSource};
    prop_oneof![
        8 => Just(EndPod(0)),
        6 => Just(SyncJob),
        4 => Just(ChangeObjects),
        4 => Just(DeletePod),
        1 => proptest::sample::select(vec![Later, EndPod(1), EndPod(5), EndPod(143),
            DeleteJob(true), DeleteJob(false), WriteSource(0), WriteSource(2)]),
    ]
}

prop_compose! {
    fn a_case_of_several()(spec in proptest::sample::select(vec![0u8, 2]),
        code in proptest::sample::select(vec![0, 0, 0, 1, 3]),
        steps in proptest::collection::vec(prop_oneof![
            8 => a_move_of_several().prop_map(Step::World),
            2 => Just(Step::Round),
            1 => (
                [0..OLDEST, 0..OLDEST, 0..OLDEST, 0..OLDEST],
                proptest::array::uniform5(proptest::option::weighted(0.3, a_move_of_several())),
            )
                .prop_map(|(ages, between)| Step::Pass { ages, between }),
        ], 0..60)) -> Case {
        let world = World::new(false, true, true, Some(spec), false, false, (code, None)).shared(Some(true));
        // to where the Job is
        let steps = std::iter::repeat_n(Step::Round, 6).chain(steps).collect();
        Case { world, steps }
    }
}

/// One pass: from the caches, and if that asks for an action, again from what there is by now.
fn pass(
    world: &mut World,
    cached: &Observed,
    between: [Option<Move>; 5],
) -> Result<Option<Action>, Broken> {
    if decide(cached, world.now()).action.is_none() {
        return Ok(None);
    }
    let seen = world.read(between);
    let Some(action) = decide(&seen.facts, world.now()).action else { return Ok(None) };
    world.act(&seen, &action)?;
    Ok(Some(action))
}

fn run(case: Case) -> Result<(), Broken> {
    let Case { mut world, steps } = case;
    let mut caches: VecDeque<Snapshot> = VecDeque::new();
    for step in steps {
        caches.push_front(world.read([None; 5]));
        caches.truncate(OLDEST);
        match step {
            Step::World(happens) => world.happen(happens),
            Step::Round => {
                let cached = world.read([None; 5]).facts;
                pass(&mut world, &cached, [None; 5])?;
                world.go_on();
            }
            Step::Pass { ages, between } => {
                let of = |age: usize| &caches[age.min(caches.len() - 1)].facts;
                let cached = Observed {
                    target: of(ages[0]).target.clone(),
                    source: of(ages[0]).source.clone(),
                    class: of(0).class.clone(),
                    prime: of(ages[1]).prime.clone(),
                    worker: of(ages[2]).worker.clone(),
                    strays: of(ages[2]).strays.clone(),
                    volume: of(ages[3]).volume.clone(),
                    dataflow: of(ages[1]).dataflow.clone(),
                    warning: None,
                };
                pass(&mut world, &cached, between)?;
            }
        }
        world.check()?;
    }
    settle(&mut world)
}

/// Everyone does what they are there for, and nobody interferes: it ends, and well.
fn settle(world: &mut World) -> Result<(), Broken> {
    world.happen(Move::Cpfs(CpfsMove::Reach(true)));
    world.happen(Move::Cpfs(CpfsMove::Deafen(false)));
    let mut actions = Vec::new();
    let mut waited = false;
    for _ in 0..ROUNDS {
        let before = world.clone();
        while let Some(action) = {
            let cached = world.read([None; 5]).facts;
            pass(world, &cached, [None; 5])?
        } {
            // which CPFS may refuse for a while
            let refusable = matches!(action, Action::DeleteFlow(_) | Action::CancelTask(_));
            actions.push(action);
            world.check()?;
            if refusable {
                break;
            }
            if actions.len() > ACTIONS {
                return Err(Broken(format!("does the same again and again: {actions:?}")));
            }
        }
        world.go_on();
        world.check()?;
        if *world != before {
            waited = false;
        } else if !waited {
            // what is only waited for is over by then
            world.wait();
            waited = true;
        } else {
            let seen = world.read([None; 5]).facts;
            return world.ended(&decide(&seen, world.now()));
        }
    }
    Err(Broken(format!("does not end: {actions:?}")))
}

/// Some seconds of a build without optimisation, unless more is asked for.
fn cases() -> ProptestConfig {
    let config = ProptestConfig::default();
    let cases = std::env::var_os("PROPTEST_CASES").map_or(10_000, |_| config.cases);
    ProptestConfig { cases, max_shrink_iters: 200_000, ..config }
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn a_volume_of_several_workers_is_handed_over_when_it_is_whole(case in a_case_of_several()) {
        if let Err(Broken(what)) = run(case) {
            return Err(TestCaseError::fail(what));
        }
    }

    #[test]
    fn a_claim_gets_a_filled_volume_or_none_and_nothing_is_left_behind(case in a_case()) {
        if let Err(Broken(what)) = run(case) {
            return Err(TestCaseError::fail(what));
        }
    }
}
