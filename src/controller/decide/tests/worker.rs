//! From the worker on: what it says, how it ends, and what is made of that.

use super::*;

#[test]
fn other_credentials_replace_nothing_but_a_failure() {
    let rotated = but(filling(), |it| it.source = usable("2"));
    let complete = but(rotated.clone(), |it| worker(it).state = WorkerState::Complete);
    check([
        ("in progress", rotated, "Populating - Created"),
        ("complete", complete, "Rebinding Rebind Created"),
    ]);
}

#[test]
fn a_failure_for_good_stays_until_something_is_changed() {
    let recorded = |change: fn(&mut Observed)| {
        let mut seen = failed(None);
        prime(&mut seen).failure = Some(failure());
        but(seen, change)
    };
    check([
        ("recorded", recorded(|_| ()), "Failed - Failed"),
        ("its Job was deleted", recorded(|it| it.worker = None), "Failed - Failed"),
        ("its resource went", recorded(|it| it.source = Source::Missing), "Failed - Failed"),
        (
            "a Job of an earlier volume is there",
            recorded(|it| worker(it).prime = "earlier".to_owned()),
            "Failed - Failed",
        ),
        ("refused", recorded(|it| it.source = refused()), "Failed - NotGranted"),
    ]);
    let seen = recorded(|_| ());
    assert_eq!(decide(&seen, NOW).message, "no such bucket");
}

#[test]
fn the_worker_decides_what_comes_next() {
    let complete = || but(filling(), |it| worker(it).state = WorkerState::Complete);
    check([
        ("active", filling(), "Populating - Created"),
        ("refused", but(filling(), |it| it.source = refused()), "Failed - NotGranted"),
        ("no resource", but(filling(), |it| it.source = Source::Missing), "Populating - Created"),
        ("going", but(filling(), |it| worker(it).deleting = true), "Populating -"),
        (
            "of an earlier volume",
            but(filling(), |it| worker(it).prime = "earlier".to_owned()),
            "Populating DeleteJob",
        ),
        (
            "complete, of an earlier volume",
            but(complete(), |it| worker(it).prime = "earlier".to_owned()),
            "Populating DeleteJob",
        ),
        ("complete", complete(), "Rebinding Rebind Created"),
        (
            "complete, and the resource went",
            but(complete(), |it| it.source = Source::Missing),
            "Rebinding Rebind Created",
        ),
        ("complete, refused", but(complete(), |it| it.source = refused()), "Failed - NotGranted"),
        (
            "complete, unprotected",
            but(complete(), |it| target(it).finalizer = false),
            "Provisioning AddFinalizer",
        ),
        (
            "complete, of a volume that is another claim's",
            but(complete(), |it| volume(it).claim = Some("third".to_owned())),
            "Provisioning -",
        ),
        ("failed", failed(None), "Failed RecordFailure Created"),
    ]);
}

fn progress(bytes: u64, listing_done: bool) -> Option<Progress> {
    Some(Progress {
        ossvp: "progress".to_owned(),
        v: 1,
        objects: 7,
        bytes,
        bytes_total: 1000,
        listing_done,
        bytes_per_s: 10,
        eta_s: None,
    })
}

#[test]
fn progress_is_told_once_a_quarter() {
    for (bytes, key) in [
        (0, None),
        (249, None),
        (250, Some("job 25")),
        (499, Some("job 25")),
        (500, Some("job 50")),
        (750, Some("job 75")),
        (999, Some("job 75")),
        // that is the end, which has an event of its own
        (1000, None),
        (2000, None),
    ] {
        let seen = but(filling(), |it| worker(it).progress = progress(bytes, true));
        let decision = decide(&seen, NOW);
        let told = decision.notices.iter().find(|notice| notice.reason == "PopulatorProgress");
        assert_eq!(told.map(|notice| notice.key.as_str()), key, "{bytes}");
        assert!(decision.wait.is_some());
    }
    let listing = but(filling(), |it| worker(it).progress = progress(999, false));
    check([("still listing", listing, "Populating - Created")]);
}

#[test]
fn another_try_is_told_with_the_reason_of_the_last() {
    let ended = Ended {
        pod: "pod-1".to_owned(),
        code: Some(4),
        message: "the source does not answer".to_owned(),
        ..Ended::default()
    };
    let retrying = but(filling(), |it| {
        (worker(it).failed_pods, worker(it).ended) = (2, Some(ended.clone()));
    });
    let between = |code| {
        but(retrying.clone(), |it| {
            let ended = Ended { code: Some(code), ..ended.clone() };
            let pod = WorkerPod { name: ended.pod.clone(), ..WorkerPod::default() };
            (worker(it).pod, worker(it).ended) = (Some(pod), Some(ended));
        })
    };
    check([
        ("retrying", retrying.clone(), "Populating - Created Retrying"),
        ("not replaced yet", between(4), "Populating - Created"),
        ("succeeded, before its Job says so", between(0), "Populating - Created"),
    ]);
    assert_eq!(decide(&between(4), NOW).message, "a worker has failed: the source does not answer");
    assert_eq!(decide(&between(0), NOW).message, "the worker has filled the volume");
    let told = &decide(&retrying, NOW).notices[1];
    assert_eq!(told.message, "trying again (2 failed so far): the source does not answer");
    assert_eq!((told.key.as_str(), told.warning), ("pod-1", true));
}

#[test]
fn a_worker_that_cannot_start_says_what_holds_it() {
    let waiting = |held_by: Option<&str>, warning: Option<&str>| {
        but(filling(), |it| {
            let pod = worker(it).pod.as_mut().unwrap();
            (pod.running, pod.held_by) = (false, held_by.map(str::to_owned));
            it.warning = warning.map(str::to_owned);
        })
    };
    let unschedulable = "Unschedulable: 0/3 nodes are available";
    check([
        ("unschedulable", waiting(Some(unschedulable), None), "Populating - Created Stalled"),
        ("no image", waiting(Some("ErrImagePull: no"), None), "Populating - Created Stalled"),
        ("cannot mount", waiting(None, Some("FailedMount: no")), "Populating - Created Stalled"),
        ("not yet", waiting(None, None), "Populating - Created"),
        (
            "a warning while it starts",
            but(waiting(None, Some("MissingClusterDNS: no")), |it| {
                worker(it).pod.as_mut().unwrap().created = Some(NOW);
            }),
            "Populating - Created",
        ),
        (
            "no Pod, since the quota is used up",
            but(filling(), |it| {
                (worker(it).pod, it.warning) = (None, Some("FailedCreate: quota".to_owned()));
            }),
            "Populating - Created Stalled",
        ),
        (
            "a warning from before it ran",
            but(filling(), |it| it.warning = Some("FailedMount: no".to_owned())),
            "Populating - Created",
        ),
    ]);
    let told = decide(&waiting(Some(unschedulable), Some("FailedScheduling: other")), NOW).message;
    assert_eq!(told, "the worker cannot start: Unschedulable: 0/3 nodes are available");
}

#[test]
fn a_failure_names_its_cause_and_what_helps() {
    let ended = |change: fn(&mut Ended)| {
        let mut ended = Ended { pod: "pod".to_owned(), code: Some(7), ..Ended::default() };
        change(&mut ended);
        Some(ended)
    };
    for (end, code, message) in [
        (
            ended(|it| it.message = "the volume is full; --exclude what is not needed".to_owned()),
            Some(7),
            "the volume is full; generic.exclude what is not needed",
        ),
        (
            ended(|it| (it.code, it.out_of_memory) = (Some(137), true)),
            Some(137),
            "the worker ran out of memory; give it more by generic.resources.limits.memory, or lower generic.concurrency",
        ),
        (
            ended(|it| (it.code, it.disrupted) = (None, true)),
            None,
            "Pod pod was evicted or lost its node",
        ),
        (
            ended(|it| (it.disrupted, it.message) = (true, "low on memory".to_owned())),
            Some(7),
            "Pod pod was evicted or lost its node: low on memory",
        ),
        (ended(|_| ()), Some(7), "the worker ended with code 7; see the log of Pod pod"),
        (ended(|it| it.code = None), None, "Pod pod failed; see its events"),
        (None, None, "the Job failed before any of its Pods ended; see its events"),
    ] {
        let decision = decide(&failed(end), NOW);
        let Some(Action::RecordFailure(failure)) = decision.action else {
            panic!("{decision:?}");
        };
        assert_eq!((failure.code, failure.message.as_str()), (code, message));
        assert_eq!(failure.access, "secret/oss-secret/1");
        assert_eq!(failure.time, NOW);
    }
    let mut tried = failed(ended(|it| it.message = "no answer".to_owned()));
    worker(&mut tried).failed_pods = 7;
    assert_eq!(decide(&tried, NOW).message, "no answer (after 7 tries)");
}

#[test]
fn a_failure_without_its_resource_lasts_when_the_resource_is_back_as_it_was() {
    let without = but(failed(None), |it| it.source = Source::Missing);
    let Some(Action::RecordFailure(failure)) = decide(&without, NOW).action else {
        panic!("not recorded");
    };
    let back = but(failed(None), |it| prime(it).failure = Some(failure));
    check([("back", back, "Failed - Failed")]);
}

#[test]
fn the_end_is_told_with_its_figures() {
    let mut seen = handed_over();
    worker(&mut seen).ended = Some(Ended {
        code: Some(0),
        figures: Some((1200, 34_500_000, 1_000_000)),
        ..Ended::default()
    });
    let decision = decide(&seen, NOW);
    assert_eq!(decision.message, "Populated successfully");
    let told = &decision.notices[0];
    assert_eq!(told.message, "Populated successfully: 1200 objects, 34.50 MB, 1.00 MB/s");
    assert_eq!((told.key.as_str(), told.happened), ("job", Some(NOW)));
}
