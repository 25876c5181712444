//! Several workers for one volume.

use super::*;
use crate::controller::observed::shards::Shards;

fn shared() -> Observed {
    but(filling(), |it| {
        target(it).shared = true;
        worker(it).shards = Some(Shards { count: 4, rounds: 2 });
    })
}

fn end(code: i32, whole: bool) -> Option<Ended> {
    let message = "shard 1/4 and shards [0] saw different listings".to_owned();
    Some(Ended { pod: "pod".to_owned(), code: Some(code), whole, message, ..Ended::default() })
}

fn ended(state: WorkerState, end: Option<Ended>) -> Observed {
    but(shared(), |it| {
        (worker(it).state, worker(it).ended) = (state, end);
        worker(it).pod = None;
    })
}

fn noted(seen: Observed, job: &str, count: u32, seconds_ago: i64) -> Observed {
    but(seen, |it| {
        let time = NOW - k8s_openapi::jiff::Span::new().seconds(seconds_ago);
        prime(it).rounds = Some(Rounds { count, job: job.to_owned(), time });
    })
}

#[test]
fn several_workers_are_only_for_volumes_that_many_nodes_can_mount() {
    let asks = |workers: u32, shared: bool| {
        but(fresh(), |it| {
            target(it).shared = shared;
            if let Source::Usable { workers: asked, .. } = &mut it.source {
                *asked = workers;
            }
        })
    };
    check([
        ("one, one node", asks(1, false), "Provisioning AddFinalizer"),
        ("one, many nodes", asks(1, true), "Provisioning AddFinalizer"),
        ("two, many nodes", asks(2, true), "Provisioning AddFinalizer"),
        ("two, one node", asks(2, false), "Failed - UnsupportedClaim"),
    ]);
    let told = decide(&asks(2, false), NOW).message;
    assert!(told.contains("generic.parallelism: 2 workers") && told.contains("ReadWriteMany"));
}

#[test]
fn a_volume_is_handed_over_when_a_worker_has_seen_the_whole() {
    let complete = |end| ended(WorkerState::Complete, end);
    check([
        ("the last one says so", complete(end(0, true)), "Rebinding Rebind Created"),
        (
            "another Pod still runs",
            but(complete(end(0, true)), |it| worker(it).unfinished = 1),
            "Rebinding - Created",
        ),
        ("no Pod says so", complete(end(0, false)), "Populating NoteRound Created"),
        ("all Pods are gone", complete(None), "Populating NoteRound Created"),
        (
            "all Pods are gone but one that runs",
            but(complete(None), |it| worker(it).unfinished = 1),
            "Rebinding - Created",
        ),
    ]);
    let told = decide(&complete(None), NOW).message;
    assert_eq!(told, "all workers look again: none is left to say that the volume is whole");
}

#[test]
fn workers_that_do_not_agree_look_again_all_of_them_for_a_while() {
    let differ = || ended(WorkerState::Failed, end(5, false));
    check([
        ("found out", differ(), "Populating NoteRound Created"),
        ("noted", noted(differ(), "job", 1, 9), "Populating - Created Retrying"),
        ("after a pause", noted(differ(), "job", 1, 10), "Populating DeleteJob Created Retrying"),
        ("a longer pause", noted(differ(), "job", 2, 19), "Populating - Created Retrying"),
        ("the next Job, too", noted(differ(), "earlier", 1, 99), "Populating NoteRound Created"),
        ("and too often", noted(differ(), "earlier", 2, 99), "Failed RecordFailure Created"),
        (
            "the next Job begins",
            noted(but(shared(), |it| it.worker = None), "job", 1, 99),
            "Populating CreateJob",
        ),
        (
            "the claim is deleted meanwhile",
            but(noted(differ(), "job", 1, 9), |it| target(it).deleting = Some(NOW)),
            "Deleting DeleteJob",
        ),
        (
            "the number of workers is changed meanwhile",
            but(noted(differ(), "job", 1, 9), |it| prime(it).digest = "older".to_owned()),
            "Provisioning DeleteJob Replaced",
        ),
        (
            "what ended all of them is lost",
            but(ended(WorkerState::Failed, end(143, false)), |it| worker(it).unexplained = true),
            "Populating NoteRound Created",
        ),
        (
            "another failure stays one",
            ended(WorkerState::Failed, end(3, false)),
            "Failed RecordFailure Created",
        ),
        (
            "of one worker, the Job has tried often enough",
            but(differ(), |it| worker(it).shards = None),
            "Failed RecordFailure Created",
        ),
    ]);
    let Some(Action::NoteRound(rounds)) = decide(&noted(differ(), "earlier", 1, 99), NOW).action
    else {
        panic!("not noted");
    };
    assert_eq!(rounds, Rounds { count: 2, job: "job".to_owned(), time: NOW });
    let Some(Action::RecordFailure(failure)) =
        decide(&noted(differ(), "earlier", 2, 99), NOW).action
    else {
        panic!("not recorded");
    };
    assert_eq!(failure.code, Some(5));
    assert!(failure.message.contains("3 times"), "{}", failure.message);
    assert!(failure.message.contains("saw different listings"), "{}", failure.message);
}

#[test]
fn one_of_several_workers_is_told_as_one() {
    let held = but(shared(), |it| {
        let pod = worker(it).pod.as_mut().unwrap();
        (pod.running, pod.held_by) = (false, Some("Unschedulable: 0/3 nodes".to_owned()));
    });
    let decision = decide(&held, NOW);
    assert_eq!(decision.message, "one of 4 workers cannot start: Unschedulable: 0/3 nodes");
    let created = &decision.notices[0].message;
    assert_eq!(created, "volume pv is being filled by the 4 workers of Job populate-claim");
    let other = |code| {
        but(shared(), |it| {
            let earlier = Ended { pod: "other".to_owned(), ..end(code, false).unwrap() };
            worker(it).ended = Some(earlier);
        })
    };
    check([
        ("a share is done", other(0), "Populating - Created"),
        ("another Pod of a share has failed", other(4), "Populating - Created Retrying"),
    ]);
}
