//! What someone else does at the worst moment.

use super::*;

#[test]
fn pods_whose_job_someone_deleted_are_gone_before_anything_else_is_done() {
    let stray = |deleting| Stray { name: "pod".to_owned(), deleting, ..Stray::default() };
    let with = |seen: Observed, deleting| but(seen, |it| it.strays = vec![stray(deleting)]);
    let jobless = || but(filling(), |it| it.worker = None);
    let complete = || {
        but(filling(), |it| {
            it.worker.as_mut().unwrap().state = WorkerState::Complete;
        })
    };
    check([
        ("no Job", with(jobless(), false), "Populating DeletePods"),
        ("they are going", with(jobless(), true), "Populating -"),
        ("another Job", with(filling(), false), "Populating DeletePods"),
        ("another Job is complete", with(complete(), true), "Populating -"),
        (
            "the claim goes, too",
            with(but(jobless(), |it| target(it).deleting = Some(NOW)), false),
            "Deleting DeletePods",
        ),
        (
            "they are all that is left",
            with(
                but(jobless(), |it| {
                    (it.prime, it.volume) = (None, None);
                    target(it).deleting = Some(NOW);
                }),
                true,
            ),
            "Deleting -",
        ),
        (
            "the claim is bound",
            with(but(handed_over(), |it| it.worker = None), false),
            "Finished DeletePods",
        ),
    ]);
}

#[test]
fn a_volume_that_someone_still_writes_to_or_deletes_is_not_handed_over() {
    let complete = |change: fn(&mut Observed)| {
        but(filling(), |it| {
            worker(it).state = WorkerState::Complete;
            change(it);
        })
    };
    check([
        ("complete", complete(|_| ()), "Rebinding Rebind Created"),
        (
            "an evicted Pod still runs",
            complete(|it| worker(it).unfinished = 1),
            "Rebinding - Created",
        ),
        (
            "the volume is deleted after the rebind, and before the binder saw it",
            complete(|it| {
                volume(it).claim = Some("claim".to_owned());
                volume(it).deleting = true;
            }),
            "Failed - VolumeLost",
        ),
        (
            "the claim got a volume that was populated for another one before",
            but(handed_over(), |it| {
                prime(it).phase = PrimePhase::Pending;
                prime(it).volume = None;
            }),
            "Finished DeleteJob NotUsed",
        ),
    ]);
}

#[test]
fn what_others_say_is_told_once_for_each_of_their_reasons() {
    let key = |warning: &str| {
        let seen = but(filling(), |it| {
            worker(it).pod = None;
            it.warning = Some(warning.to_owned());
        });
        decide(&seen, NOW).notices.last().unwrap().key.clone()
    };
    assert_eq!(key("FailedCreate: quota, request 1"), key("FailedCreate: quota, request 2"));
    assert_ne!(key("FailedCreate: quota"), key("FailedMount: no"));
}

#[test]
fn a_failure_is_of_the_credentials_that_the_worker_had() {
    let mended = but(filling(), |it| {
        (worker(it).state, worker(it).access) = (WorkerState::Failed, "secret/oss-secret/0".into());
    });
    let Some(Action::RecordFailure(failure)) = decide(&mended, NOW).action else {
        panic!("no failure is recorded");
    };
    let noted = but(filling(), |it| prime(it).failure = Some(failure));
    check([("mended meanwhile", noted, "Provisioning DeleteJob Replaced")]);
}
