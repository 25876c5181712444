//! `decide` by tables, one row a situation.

mod dataflow;
mod guards;
mod shards;
mod worker;

use super::*;
use crate::controller::observed::shards::Rounds;
use crate::controller::observed::{Stray, WorkerPod};
use crate::controller::policy::{Access, KeyPair, Refusal};
use crate::handoff::Progress;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Situation, what is seen, and what is made of it: phase, action, and reasons without their prefix.
fn check<const N: usize>(rows: [(&str, Observed, &str); N]) {
    for (situation, seen, expected) in rows {
        let Decision { phase, message, notices, action, wait } = decide(&seen, NOW);
        assert!(action.is_none() || wait.is_none(), "{situation}: waits for what it does");
        assert!(!message.is_empty() && !message.ends_with('.'), "{situation}: {message}");
        let mut decided = format!("{phase:?} {}", action.map_or("-", |action| action.name()));
        for notice in notices {
            decided = format!("{decided} {}", notice.reason.trim_start_matches("Populator"));
        }
        assert_eq!(decided, expected, "{situation}: {message}");
    }
}

fn usable(version: &str) -> Source {
    Source::Usable {
        digest: "digest".to_owned(),
        access: Access::Secret {
            name: "oss-secret".to_owned(),
            keys: KeyPair { id: String::new(), secret: String::new(), token: None },
            version: version.to_owned(),
        },
        workers: 1,
    }
}

fn refused() -> Source {
    Source::Refused(Refusal { reason: "PopulatorNotGranted", message: "not granted".to_owned() })
}

/// A claim that nothing was done for yet.
fn fresh() -> Observed {
    Observed {
        target: Some(Target { uid: "claim".to_owned(), ..Target::default() }),
        source: usable("1"),
        class: Class::Dynamic { waits_for_consumer: false, cpfs: false },
        ..Observed::default()
    }
}

/// The volume is there, and is being filled.
fn filling() -> Observed {
    let mut seen = fresh();
    target(&mut seen).finalizer = true;
    seen.prime = Some(Prime {
        uid: "prime".to_owned(),
        phase: PrimePhase::Bound,
        volume: Some("pv".to_owned()),
        digest: "digest".to_owned(),
        ..Prime::default()
    });
    seen.volume = Some(Volume {
        name: "pv".to_owned(),
        claim: Some("prime".to_owned()),
        bound: true,
        ..Volume::default()
    });
    seen.worker = Some(Worker {
        uid: "job".to_owned(),
        prime: "prime".to_owned(),
        access: "secret/oss-secret/1".to_owned(),
        pod: Some(WorkerPod { name: "pod".to_owned(), running: true, ..WorkerPod::default() }),
        ..Worker::default()
    });
    seen
}

/// The volume was filled and handed over, and the claim is bound to it.
fn handed_over() -> Observed {
    let mut seen = filling();
    prime(&mut seen).phase = PrimePhase::Lost;
    let volume = volume(&mut seen);
    (volume.claim, volume.populated) = (Some("claim".to_owned()), true);
    let target = target(&mut seen);
    (target.volume, target.bound) = (Some("pv".to_owned()), true);
    worker(&mut seen).state = WorkerState::Complete;
    seen
}

fn failure() -> Failure {
    let access = "secret/oss-secret/1".to_owned();
    Failure { code: Some(3), message: "no such bucket".to_owned(), access, time: NOW }
}

fn failed(ended: Option<Ended>) -> Observed {
    let mut seen = filling();
    worker(&mut seen).state = WorkerState::Failed;
    worker(&mut seen).ended = ended;
    seen
}

fn target(seen: &mut Observed) -> &mut Target {
    seen.target.as_mut().unwrap()
}

fn prime(seen: &mut Observed) -> &mut Prime {
    seen.prime.as_mut().unwrap()
}

fn volume(seen: &mut Observed) -> &mut Volume {
    seen.volume.as_mut().unwrap()
}

fn worker(seen: &mut Observed) -> &mut Worker {
    seen.worker.as_mut().unwrap()
}

fn but(mut seen: Observed, change: impl FnOnce(&mut Observed)) -> Observed {
    change(&mut seen);
    seen
}

#[test]
fn a_claim_that_goes_takes_everything_with_it_in_order() {
    let gone = |change: fn(&mut Observed)| but(filling(), |it| (it.target, _) = (None, change(it)));
    let deleting = |minutes: i64, change: fn(&mut Observed)| {
        but(filling(), |it| {
            target(it).deleting = Some(NOW - k8s_openapi::jiff::Span::new().minutes(minutes));
            change(it);
        })
    };
    check([
        ("gone, all there", gone(|_| ()), "Deleting DeleteJob"),
        ("gone, Job going", gone(|it| worker(it).deleting = true), "Deleting -"),
        ("gone, prime left", gone(|it| it.worker = None), "Deleting DeletePrime"),
        (
            "gone, prime going",
            gone(|it| (it.worker, prime(it).deleting) = (None, true)),
            "Deleting -",
        ),
        ("gone, nothing left", gone(|it| (it.worker, it.prime) = (None, None)), "Deleting -"),
        ("all there", deleting(1, |_| ()), "Deleting DeleteJob"),
        ("refused", deleting(1, |it| it.source = refused()), "Deleting DeleteJob"),
        ("resource gone", deleting(1, |it| it.source = Source::Missing), "Deleting DeleteJob"),
        ("Job going", deleting(1, |it| worker(it).deleting = true), "Deleting -"),
        ("prime left", deleting(1, |it| it.worker = None), "Deleting DeletePrime"),
        (
            "prime going",
            deleting(1, |it| (it.worker, prime(it).deleting) = (None, true)),
            "Deleting -",
        ),
        (
            "nothing left",
            deleting(6, |it| (it.worker, it.prime, it.volume) = (None, None, None)),
            "Deleting RemoveFinalizer",
        ),
        (
            "someone else's finalizer",
            deleting(6, |it| {
                (it.worker, it.prime, it.volume) = (None, None, None);
                target(it).finalizer = false;
            }),
            "Deleting -",
        ),
        ("Job stuck", deleting(6, |it| worker(it).deleting = true), "Deleting - CleanupStuck"),
        (
            "prime stuck",
            deleting(6, |it| (it.worker, prime(it).deleting) = (None, true)),
            "Deleting - CleanupStuck",
        ),
        (
            "handed over and deleted at once",
            but(handed_over(), |it| target(it).deleting = Some(NOW)),
            "Deleting DeleteJob",
        ),
    ]);
}

#[test]
fn a_claim_that_has_a_volume_is_left_alone_and_the_scaffolding_is_removed() {
    let elsewhere = |change: fn(&mut Observed)| {
        but(filling(), |it| {
            (target(it).volume, target(it).bound) = (Some("other".to_owned()), true);
            change(it);
        })
    };
    let nothing_else = |it: &mut Observed| (it.worker, it.prime) = (None, None);
    check([
        (
            "never ours",
            but(fresh(), |it| target(it).volume = Some("other".to_owned())),
            "Finished -",
        ),
        ("just bound", handed_over(), "Finished DeleteJob Finished"),
        ("Job going", but(handed_over(), |it| worker(it).deleting = true), "Finished - Finished"),
        ("prime left", but(handed_over(), |it| it.worker = None), "Finished DeletePrime"),
        (
            "prime going",
            but(handed_over(), |it| (it.worker, prime(it).deleting) = (None, true)),
            "Finished -",
        ),
        ("all removed", but(handed_over(), nothing_else), "Finished RemoveFinalizer"),
        (
            "done",
            but(handed_over(), |it| {
                nothing_else(it);
                target(it).finalizer = false;
            }),
            "Finished -",
        ),
        (
            "the finalizer was taken away before",
            but(handed_over(), |it| (it.worker, target(it).finalizer) = (None, false)),
            "Finished DeletePrime",
        ),
        (
            "the resource was changed in the last moment",
            but(handed_over(), |it| prime(it).digest = "older".to_owned()),
            "Finished DeleteJob Finished",
        ),
        (
            "the binder has not written the claim yet",
            but(handed_over(), |it| (target(it).volume, target(it).bound) = (None, false)),
            "Rebinding -",
        ),
        (
            "the binder has written half of the claim",
            but(handed_over(), |it| target(it).bound = false),
            "Rebinding -",
        ),
        (
            "refused after the rebind",
            but(handed_over(), |it| {
                (target(it).volume, target(it).bound) = (None, false);
                it.source = refused();
            }),
            "Rebinding -",
        ),
        (
            "the volume vanished after the claim was bound to it",
            but(handed_over(), |it| it.volume = None),
            "Rebinding -",
        ),
        (
            "the volume is lost",
            but(handed_over(), |it| (target(it).bound, target(it).lost) = (false, true)),
            "Failed - VolumeLost",
        ),
        ("another volume", elsewhere(|_| ()), "Finished DeleteJob NotUsed"),
        (
            "another volume, while ours was not there yet",
            elsewhere(|it| {
                (it.worker, it.volume) = (None, None);
                (prime(it).volume, prime(it).phase) = (None, PrimePhase::Pending);
            }),
            "Finished DeletePrime NotUsed",
        ),
        (
            "another volume, not bound yet",
            elsewhere(|it| target(it).bound = false),
            "Waiting - NotUsed",
        ),
        (
            "another volume, before anything was made",
            elsewhere(|it| {
                (it.worker, it.prime) = (None, None);
                *volume(it) = Volume {
                    name: "other".to_owned(),
                    claim: Some("claim".to_owned()),
                    ..Volume::default()
                };
            }),
            "Finished RemoveFinalizer NotUsed",
        ),
        (
            "a user names the volume that is being filled",
            but(filling(), |it| target(it).volume = Some("pv".to_owned())),
            "Populating - Created",
        ),
    ]);
}

#[test]
fn a_claim_that_cannot_be_served_yet_says_what_it_waits_for() {
    let named = |class: fn(String) -> Class| but(fresh(), |it| it.class = class("disk".to_owned()));
    let waits = Class::Dynamic { waits_for_consumer: true, cpfs: false };
    check([
        ("refused", but(fresh(), |it| it.source = refused()), "Failed - NotGranted"),
        ("block", but(fresh(), |it| target(it).block = true), "Failed - UnsupportedClaim"),
        (
            "no resource",
            but(fresh(), |it| it.source = Source::Missing),
            "Waiting - DataSourceNotFound",
        ),
        (
            "no class named",
            but(fresh(), |it| it.class = Class::Unnamed),
            "Waiting - StorageClassNotFound",
        ),
        ("no such class", named(Class::Missing), "Waiting - StorageClassNotFound"),
        ("static class", named(Class::Static), "Failed - UnsupportedClaim"),
        ("no consumer", but(fresh(), |it| it.class = waits.clone()), "Waiting -"),
        (
            "a consumer",
            but(fresh(), |it| {
                (it.class, target(it).selected_node) = (waits.clone(), Some("node".to_owned()));
            }),
            "Provisioning AddFinalizer",
        ),
        ("all there", fresh(), "Provisioning AddFinalizer"),
        ("protected", but(fresh(), |it| target(it).finalizer = true), "Provisioning CreatePrime"),
        (
            "protected, and then the resource went",
            but(fresh(), |it| (target(it).finalizer, it.source) = (true, Source::Missing)),
            "Waiting - DataSourceNotFound",
        ),
    ]);
}

#[test]
fn the_volume_is_made_before_the_worker_is() {
    let pending = |change: fn(&mut Observed)| {
        but(filling(), |it| {
            (it.worker, it.volume) = (None, None);
            (prime(it).phase, prime(it).volume) = (PrimePhase::Pending, None);
            change(it);
        })
    };
    let nodes = |made_for: Option<&str>, chosen: Option<&str>| {
        let mut seen =
            pending(|it| it.class = Class::Dynamic { waits_for_consumer: true, cpfs: false });
        prime(&mut seen).made_for_node = made_for.map(str::to_owned);
        prime(&mut seen).selected_node = made_for.map(str::to_owned);
        target(&mut seen).selected_node = chosen.map(str::to_owned);
        seen
    };
    let given_up =
        |chosen: Option<&str>| but(nodes(Some("a"), chosen), |it| prime(it).selected_node = None);
    let bound =
        |change: fn(&mut Observed)| but(filling(), |it| (it.worker, _) = (None, change(it)));
    check([
        ("pending", pending(|_| ()), "Provisioning -"),
        (
            "pending, with a warning of the provisioner",
            pending(|it| it.warning = Some("ProvisioningFailed: quota".to_owned())),
            "Provisioning - Provisioning",
        ),
        (
            "pending, and the class went",
            pending(|it| it.class = Class::Missing("disk".to_owned())),
            "Provisioning -",
        ),
        ("pending, refused", pending(|it| it.source = refused()), "Failed - NotGranted"),
        ("the resource went", pending(|it| it.source = Source::Missing), "Provisioning -"),
        ("the chosen node", nodes(Some("a"), Some("a")), "Provisioning -"),
        ("the node was given up", given_up(Some("a")), "Provisioning UnselectNode NodeGivenUp"),
        (
            "the node was given up, and the scheduler knows",
            given_up(None),
            "Provisioning DeletePrime Replaced",
        ),
        (
            "the node was given up, and the scheduler has chosen again",
            given_up(Some("b")),
            "Provisioning DeletePrime Replaced",
        ),
        ("another node", nodes(Some("a"), Some("b")), "Provisioning DeletePrime Replaced"),
        ("no node any more", nodes(Some("a"), None), "Provisioning DeletePrime Replaced"),
        (
            "the class did not wait when it was made",
            nodes(None, None),
            "Provisioning DeletePrime Replaced",
        ),
        (
            "of an immediate class, nodes do not count",
            but(nodes(Some("a"), None), |it| {
                it.class = Class::Dynamic { waits_for_consumer: false, cpfs: false }
            }),
            "Provisioning -",
        ),
        ("bound", bound(|_| ()), "Populating CreateJob"),
        (
            "bound, unprotected",
            bound(|it| target(it).finalizer = false),
            "Provisioning AddFinalizer",
        ),
        (
            "bound, and the resource went",
            bound(|it| it.source = Source::Missing),
            "Waiting - DataSourceNotFound",
        ),
        ("bound, refused", bound(|it| it.source = refused()), "Failed - NotGranted"),
        (
            "the volume is another claim's",
            bound(|it| volume(it).claim = Some("third".to_owned())),
            "Provisioning -",
        ),
        ("the volume is no one's", bound(|it| volume(it).claim = None), "Provisioning -"),
        ("the volume is released", bound(|it| volume(it).bound = false), "Provisioning -"),
        ("the volume is not there", bound(|it| it.volume = None), "Provisioning -"),
        (
            "the volume is being deleted",
            bound(|it| volume(it).deleting = true),
            "Provisioning DeletePrime Replaced",
        ),
        (
            "the volume is lost",
            bound(|it| (it.volume, prime(it).phase) = (None, PrimePhase::Lost)),
            "Provisioning DeletePrime Replaced",
        ),
        (
            "the volume is lost, and there is no resource to fill another by",
            bound(|it| {
                (it.volume, prime(it).phase) = (None, PrimePhase::Lost);
                it.source = Source::Missing;
            }),
            "Provisioning DeletePrime Replaced",
        ),
        ("someone deletes it", bound(|it| prime(it).deleting = true), "Provisioning - Replaced"),
    ]);
}

#[test]
fn what_is_outdated_is_replaced_job_first() {
    let changed = |it: &mut Observed| prime(it).digest = "older".to_owned();
    let mut rotated = failed(None);
    (prime(&mut rotated).failure, rotated.source) = (Some(failure()), usable("2"));
    for outdated in [
        but(filling(), changed),
        but(filling(), |it| (changed(it), worker(it).state = WorkerState::Complete).1),
        but(filling(), |it| (changed(it), worker(it).state = WorkerState::Failed).1),
        but(filling(), |it| (changed(it), prime(it).failure = Some(failure())).1),
        but(filling(), |it| (changed(it), prime(it).phase = PrimePhase::Lost).1),
        but(filling(), |it| volume(it).deleting = true),
        rotated,
    ] {
        let jobless = but(outdated.clone(), |it| it.worker = None);
        let job_goes = but(outdated.clone(), |it| worker(it).deleting = true);
        let goes = but(jobless.clone(), |it| prime(it).deleting = true);
        check([
            ("all there", outdated, "Provisioning DeleteJob Replaced"),
            ("the Job goes", job_goes, "Provisioning - Replaced"),
            ("the Job is gone", jobless, "Provisioning DeletePrime Replaced"),
            ("the prime PVC goes", goes, "Provisioning - Replaced"),
        ]);
    }
    // what goes because of a change was not deleted by someone
    let gives_up = but(filling(), |it| (changed(it), prime(it).deleting = true).1);
    assert_eq!(decide(&gives_up, NOW).message, "the resource was changed; filling a fresh volume");
    let someone = but(filling(), |it| prime(it).deleting = true);
    assert!(decide(&someone, NOW).message.starts_with("the prime PVC was deleted"));
    let lonely = but(filling(), |it| (it.prime, it.volume) = (None, None));
    let goes = but(lonely.clone(), |it| worker(it).deleting = true);
    let going = but(filling(), |it| prime(it).deleting = true);
    let pending = but(filling(), |it| {
        (it.worker, it.volume, prime(it).phase) = (None, None, PrimePhase::Pending);
        changed(it);
    });
    check([
        ("someone deletes the prime PVC", going, "Provisioning DeleteJob Replaced"),
        ("someone has deleted the prime PVC", lonely, "Provisioning DeleteJob Replaced"),
        ("its Job goes", goes, "Provisioning - Replaced"),
        ("changed before there is a volume", pending, "Provisioning DeletePrime Replaced"),
    ]);
}
