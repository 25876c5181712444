//! Volumes that CPFS fills by itself.

use super::*;
use crate::controller::crd::DataType;
use crate::controller::observed::dataflow::{
    Dataflow, FlowSeen, Known, Noted, Place, Share, TaskSeen, Unfinished,
};

fn noted(id: &str, seconds_ago: i64) -> Option<Noted> {
    let time = Timestamp::from_second(NOW.as_second() - seconds_ago).unwrap();
    Some(Noted { id: id.to_owned(), time })
}

fn planned() -> Plan {
    Plan {
        region: "cn-hangzhou".to_owned(),
        file_system: "bmcpfs-1".to_owned(),
        fileset: Some("fset-1".to_owned()),
        path: "/pv/".to_owned(),
        source: "oss://bucket".to_owned(),
        source_path: "/models/".to_owned(),
        throughput: None,
        security: None,
        data_type: DataType::MetadataAndData,
        time: NOW,
        asked: noted("df-1", 60).map(|noted| noted.time),
        flow: noted("df-1", 60),
        made: true,
        task: noted("task-1", 60),
        shown: false,
    }
}

/// A volume is there, and CPFS is at it: a task of ten files, of which six are done.
fn importing(change: impl FnOnce(&mut Observed)) -> Observed {
    let mut seen = filling();
    seen.worker = None;
    seen.source = Source::Usable { digest: "digest".to_owned(), access: Access::Cpfs, workers: 1 };
    seen.class = Class::Dynamic { waits_for_consumer: false, cpfs: true };
    let prime = seen.prime.as_mut().unwrap();
    (prime.plan, prime.protected) = (Some(planned()), true);
    seen.volume.as_mut().unwrap().cpfs =
        Some(Place { file_system: "bmcpfs-1".to_owned(), ..Place::default() });
    seen.dataflow = Dataflow::Known(Box::new(Known {
        flow: Some(FlowSeen {
            id: "df-1".to_owned(),
            ours: true,
            status: "Running".to_owned(),
            error: None,
        }),
        task: Some(TaskSeen {
            id: "task-1".to_owned(),
            status: "Executing".to_owned(),
            files: Share { done: 6, total: 10 },
            ..TaskSeen::default()
        }),
        import: Some("task-1".to_owned()),
        unfinished: vec![Unfinished { id: "task-1".to_owned(), canceling: false }],
        flows: 1,
    }));
    change(&mut seen);
    seen
}

fn known(seen: &mut Observed) -> &mut Known {
    match &mut seen.dataflow {
        Dataflow::Known(known) => known,
        _ => panic!("nothing is known"),
    }
}

fn flow(seen: &mut Observed) -> &mut FlowSeen {
    known(seen).flow.as_mut().unwrap()
}

fn plan(seen: &mut Observed) -> &mut Plan {
    seen.prime.as_mut().unwrap().plan.as_mut().unwrap()
}

/// The task has ended, as `status` says, with this many of ten files.
fn ended(status: &str, done: u64) -> Observed {
    importing(|seen| {
        let known = known(seen);
        known.unfinished.clear();
        let task = known.task.as_mut().unwrap();
        (task.status, task.files.done) = (status.to_owned(), done);
    })
}

/// All is done, but for what `change` makes of it.
fn done(change: impl FnOnce(&mut TaskSeen)) -> Observed {
    let mut seen = ended("Completed", 10);
    change(known(&mut seen).task.as_mut().unwrap());
    seen
}

/// Nothing is noted of CPFS yet.
fn before(change: impl FnOnce(&mut Observed)) -> Observed {
    importing(|seen| {
        (plan(seen).flow, plan(seen).task) = (None, None);
        seen.dataflow = Dataflow::Known(Box::default());
        change(seen);
    })
}

#[test]
fn cpfs_is_led_from_the_plan_to_the_import() {
    check([
        (
            "a volume",
            importing(|it| {
                let prime = it.prime.as_mut().unwrap();
                (prime.plan, prime.protected) = (None, false);
            }),
            "Populating PlanDataflow",
        ),
        (
            "not CPFS's",
            importing(|it| {
                let prime = it.prime.as_mut().unwrap();
                (prime.plan, prime.protected) = (None, false);
                it.volume.as_mut().unwrap().cpfs = None;
            }),
            "Failed - UnsupportedClaim",
        ),
        (
            "a plan",
            before(|it| it.prime.as_mut().unwrap().protected = false),
            "Populating ProtectPrime",
        ),
        ("protected", before(|_| {}), "Populating CreateFlow"),
        ("ten are the most", before(|it| known(it).flows = 10), "Waiting - Queued"),
        (
            "one that can be used",
            before(|it| *known(it) = known(&mut importing(|_| {})).clone()),
            "Populating NoteFlow",
        ),
        (
            "not shown yet",
            importing(|it| (known(it).flow, known(it).task) = (None, None)),
            "Populating -",
        ),
        (
            "not shown any more",
            importing(|it| {
                (plan(it).flow, plan(it).task) = (noted("df-1", 3600), noted("task-1", 3600));
                *known(it) = Known::default();
            }),
            "Provisioning DeletePrime Replaced",
        ),
        ("being made", importing(|it| flow(it).status = "Starting".into()), "Populating -"),
        (
            "stopped",
            importing(|it| flow(it).status = "Stopped".into()),
            "Populating - DataflowWaiting",
        ),
        (
            "a status of the future",
            importing(|it| flow(it).status = "Levitating".into()),
            "Populating - DataflowWaiting",
        ),
        (
            "its bucket has lost its tag",
            importing(|it| {
                flow(it).status = "Misconfigured".into();
                flow(it).error = Some("SourceStorageUnreachable".into());
            }),
            "Populating - DataflowError",
        ),
        (
            "running",
            importing(|it| (plan(it).task, known(it).import) = (None, None)),
            "Populating CreateTask",
        ),
        ("a task of ours", importing(|it| plan(it).task = None), "Populating NoteTask"),
        ("a task not shown yet", importing(|it| known(it).task = None), "Populating -"),
        (
            "a task not shown any more",
            importing(|it| {
                plan(it).task = noted("task-1", 3600);
                known(it).task = None;
            }),
            "Provisioning CancelTask Replaced",
        ),
        ("at it", importing(|_| {}), "Populating - Created Progress"),
        ("at what the future knows", ended("Pondering", 6), "Populating - DataflowWaiting Created"),
        ("done", ended("Completed", 10), "Rebinding Rebind Created"),
        ("done with some", ended("Completed", 9), "Failed RecordFailure Created"),
        (
            "done with nothing",
            done(|task| task.files = Share::default()),
            "Failed RecordFailure Created",
        ),
        (
            "done with some bytes",
            done(|task| task.bytes = Share { done: 1, total: 2 }),
            "Failed RecordFailure Created",
        ),
        (
            "done with an error",
            done(|task| task.error = Some("ReadFailed".to_owned())),
            "Failed RecordFailure Created",
        ),
        (
            "done while another task writes",
            importing(|it| {
                known(it).task.as_mut().unwrap().status = "Completed".to_owned();
                known(it).task.as_mut().unwrap().files.done = 10;
                known(it).unfinished[0].id = "task-2".to_owned();
            }),
            "Rebinding - Created",
        ),
        (
            "no file system, or none for these credentials",
            importing(|it| it.dataflow = Dataflow::NoFileSystem("not found".to_owned())),
            "Populating - DataflowError",
        ),
        (
            "a note that cannot be read",
            importing(|it| it.prime.as_mut().unwrap().plan = None),
            "Populating - DataflowError",
        ),
        ("failed", ended("Failed", 3), "Failed RecordFailure Created"),
        ("canceled by someone", ended("Canceled", 3), "Failed RecordFailure Created"),
        (
            "no answer",
            importing(|it| it.dataflow = Dataflow::Unknown("no connection".to_owned())),
            "Populating - DataflowError",
        ),
        (
            "the resource is gone",
            importing(|it| it.source = Source::Missing),
            "Populating - Created Progress",
        ),
    ]);
}

/// A population that failed for good.
fn failed(change: impl FnOnce(&mut Observed)) -> Observed {
    let mut seen = ended("Failed", 3);
    let failure = Failure {
        code: None,
        message: "task-1 failed".to_owned(),
        access: "cpfs".to_owned(),
        time: NOW,
    };
    seen.prime.as_mut().unwrap().failure = Some(failure);
    change(&mut seen);
    seen
}

/// The claim is being deleted while CPFS is at it.
fn leaving(change: impl FnOnce(&mut Observed)) -> Observed {
    importing(|it| {
        target(it).deleting = Some(NOW);
        change(it);
    })
}

#[test]
fn what_cpfs_has_is_undone_before_the_prime_pvc_goes() {
    let none = |it: &mut Observed| {
        *known(it) = Known::default();
        plan(it).shown = true;
    };
    let before = |seconds: i64| Timestamp::from_second(NOW.as_second() - seconds).unwrap();
    check([
        ("made a moment ago", leaving(|it| *known(it) = Known::default()), "Deleting -"),
        (
            "made long ago",
            leaving(|it| {
                *known(it) = Known::default();
                (plan(it).flow, plan(it).task) = (noted("df-1", 3600), noted("task-1", 3600));
            }),
            "Deleting DeletePrime",
        ),
        (
            "perhaps made a moment ago",
            leaving(|it| {
                *known(it) = Known::default();
                (plan(it).flow, plan(it).task) = (None, None);
                plan(it).asked = Some(NOW);
            }),
            "Deleting -",
        ),
        (
            "never made",
            leaving(|it| {
                *known(it) = Known::default();
                (plan(it).flow, plan(it).task) = (None, None);
                plan(it).asked = Some(before(120));
            }),
            "Deleting DeletePrime",
        ),
        (
            "no file system, or none for these credentials",
            leaving(|it| it.dataflow = Dataflow::NoFileSystem("not found".to_owned())),
            "Deleting - DataflowError",
        ),
        (
            "for long",
            leaving(|it| {
                it.dataflow = Dataflow::NoFileSystem("not found".to_owned());
                target(it).deleting = Some(before(3600));
            }),
            "Deleting DeletePrime CleanupStuck",
        ),
        (
            "a note that cannot be read",
            leaving(|it| it.prime.as_mut().unwrap().plan = None),
            "Deleting - DataflowError",
        ),
        ("deleted in mid-import", leaving(|_| {}), "Deleting CancelTask"),
        ("being canceled", leaving(|it| known(it).unfinished[0].canceling = true), "Deleting -"),
        ("canceled", leaving(|it| known(it).unfinished.clear()), "Deleting DeleteFlow"),
        (
            "not made yet",
            leaving(|it| {
                known(it).unfinished.clear();
                flow(it).status = "Starting".into();
            }),
            "Deleting -",
        ),
        (
            "going",
            leaving(|it| {
                known(it).unfinished.clear();
                flow(it).status = "Deleting".into();
            }),
            "Deleting -",
        ),
        ("gone", leaving(none), "Deleting DeletePrime"),
        (
            "the prime PVC waits for it",
            leaving(|it| {
                none(it);
                it.prime.as_mut().unwrap().deleting = true;
            }),
            "Deleting ReleasePrime",
        ),
        (
            "someone else's data flow stays",
            leaving(|it| {
                known(it).unfinished.clear();
                flow(it).ours = false;
            }),
            "Deleting DeletePrime",
        ),
        (
            "CPFS does not answer",
            leaving(|it| it.dataflow = Dataflow::Unknown("no connection".to_owned())),
            "Deleting - DataflowError",
        ),
        (
            "and was never asked for anything",
            leaving(|it| {
                it.prime.as_mut().unwrap().protected = false;
                it.dataflow = Dataflow::Unknown("no credentials".to_owned());
            }),
            "Deleting DeletePrime",
        ),
        (
            "someone deletes the prime PVC",
            importing(|it| it.prime.as_mut().unwrap().deleting = true),
            "Provisioning CancelTask Replaced",
        ),
        ("failed", failed(|_| {}), "Failed DeleteFlow Failed"),
        ("failed and cleaned up", failed(none), "Failed - Failed"),
    ]);
}

/// The volume was filled by CPFS and handed over.
fn bound(change: impl FnOnce(&mut Observed)) -> Observed {
    let mut seen = ended("Completed", 10);
    let target = target(&mut seen);
    (target.volume, target.bound) = (Some("pv".to_owned()), true);
    let uid = target.uid.clone();
    seen.volume.as_mut().unwrap().claim = Some(uid);
    seen.prime.as_mut().unwrap().phase = PrimePhase::Lost;
    change(&mut seen);
    seen
}

#[test]
fn a_data_flow_goes_when_its_volume_is_filled_unless_files_are_read_by_it() {
    let lazy = |it: &mut Observed| plan(it).data_type = DataType::Metadata;
    check([
        ("filled", bound(|_| {}), "Finished DeleteFlow Finished"),
        (
            "the data flow is gone",
            bound(|it| {
                *known(it) = Known::default();
                plan(it).shown = true;
            }),
            "Finished DeletePrime",
        ),
        ("files without their data", bound(lazy), "Finished - Finished"),
        (
            "which lost its protection",
            bound(|it| {
                lazy(it);
                target(it).finalizer = false;
            }),
            "Finished AddFinalizer Finished",
        ),
        (
            "the claim goes, and Pods still read",
            bound(|it| {
                lazy(it);
                (target(it).deleting, target(it).in_use) = (Some(NOW), true);
            }),
            "Deleting -",
        ),
        (
            "the claim goes",
            bound(|it| {
                lazy(it);
                target(it).deleting = Some(NOW);
            }),
            "Deleting DeleteFlow",
        ),
    ]);
}

#[test]
fn a_class_goes_with_its_mode() {
    let of = |cpfs: bool, access: Access| {
        let mut seen = fresh();
        seen.class = Class::Dynamic { waits_for_consumer: false, cpfs };
        seen.source = Source::Usable { digest: "digest".to_owned(), access, workers: 1 };
        seen
    };
    let worker = || Access::Role { account: "ossvp-worker".to_owned() };
    check([
        ("CPFS by CPFS", of(true, Access::Cpfs), "Provisioning AddFinalizer"),
        ("a disk by CPFS", of(false, Access::Cpfs), "Failed - UnsupportedClaim"),
        ("CPFS by a worker", of(true, worker()), "Failed - UnsupportedClaim"),
        ("a disk by a worker", of(false, worker()), "Provisioning AddFinalizer"),
    ]);
}
