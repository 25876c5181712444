use super::*;
use crate::controller::observed::dataflow::{Dataflow, Known, Share, TaskSeen};
use crate::controller::observed::{Ended, Prime, Target, Worker, WorkerPod};
use crate::handoff::Progress;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn decision(phase: Phase, message: &str) -> Decision {
    Decision { phase, message: message.to_owned(), notices: vec![], action: None, wait: None }
}

fn seen(uid: &str) -> Observed {
    Observed {
        target: Some(Target { uid: uid.to_owned(), finalizer: true, ..Target::default() }),
        ..Observed::default()
    }
}

fn working(bytes: u64, bytes_total: u64, listing_done: bool) -> Observed {
    Observed {
        prime: Some(Prime::default()),
        worker: Some(Worker {
            created: Some(at(5)),
            pod: Some(WorkerPod {
                name: "pod-1".to_owned(),
                running: true,
                ..WorkerPod::default()
            }),
            progress: Some(Progress {
                ossvp: "progress".to_owned(),
                v: 1,
                objects: 3,
                bytes,
                bytes_total,
                listing_done,
                bytes_per_s: 9,
                eta_s: None,
            }),
            ..Worker::default()
        }),
        ..seen("a")
    }
}

fn shown(seen: &Observed, decision: &Decision, before: Option<&Population>) -> Population {
    match update("claim", seen, decision, before, at(100)) {
        Some(Update::Show(entry, _)) => *entry,
        other => panic!("not shown: {other:?}"),
    }
}

fn entry(uid: &str, phase: Phase) -> Population {
    let mut entry = shown(&seen(uid), &decision(phase, &format!("message of {uid}")), None);
    entry.pvc_name = format!("claim-{uid}");
    entry
}

fn done(uid: &str, second: i64) -> Population {
    Population { completion_time: Some(Time(at(second))), ..entry(uid, Phase::Finished) }
}

fn status(populations: impl IntoIterator<Item = Population>) -> OSSVolumePopulatorStatus {
    OSSVolumePopulatorStatus {
        populations: populations.into_iter().collect(),
        ..OSSVolumePopulatorStatus::default()
    }
}

fn after(
    populations: impl IntoIterator<Item = Population>,
    update: Option<&Update>,
) -> OSSVolumePopulatorStatus {
    next(&status(populations), Some(3), None, update, at(100))
}

#[test]
fn an_entry_follows_its_claim() {
    let waiting = shown(&seen("a"), &decision(Phase::Waiting, "waiting"), None);
    assert_eq!(
        serde_json::to_value(&waiting).unwrap(),
        serde_json::json!({"pvcUID": "a", "pvcName": "claim", "phase": "Waiting", "message": "waiting"})
    );
    let populating = decision(Phase::Populating, "going on");
    let listing = shown(&working(10, 50, false), &populating, Some(&waiting));
    assert_eq!((listing.progress.as_deref(), listing.bytes_total), (None, None));
    assert_eq!(
        (listing.bytes, listing.objects, listing.bytes_per_second),
        (Some(10), Some(3), Some(9))
    );
    assert_eq!(listing.start_time, Some(Time(at(5))));
    assert_eq!(listing.pod_name.as_deref(), Some("pod-1"));

    let half = shown(&working(50, 100, true), &populating, Some(&listing));
    assert_eq!((half.progress.as_deref(), half.bytes_total), (Some("50%"), Some(100)));

    // a look at the API server reads no log
    let mut silent = working(0, 0, false);
    silent.worker.as_mut().unwrap().progress = None;
    assert_eq!(shown(&silent, &populating, Some(&half)), half);

    // a fresh volume has nothing of the last one
    let fresh = shown(&seen("a"), &decision(Phase::Provisioning, "again"), Some(&half));
    assert_eq!((fresh.progress, fresh.bytes, fresh.bytes_total), (None, None, None));
    assert_eq!((fresh.objects, fresh.pod_name, fresh.failed_pods), (None, None, None));

    silent.worker.as_mut().unwrap().ended =
        Some(Ended { figures: Some((7, 100, 20)), code: Some(0), ..Ended::default() });
    let finished = decision(Phase::Finished, "Populated successfully");
    let whole = shown(&silent, &finished, Some(&half));
    assert_eq!(
        (whole.progress.as_deref(), whole.bytes, whole.bytes_total),
        (Some("100%"), Some(100), Some(100))
    );
    assert_eq!((whole.objects, whole.completion_time.clone()), (Some(7), Some(Time(at(100)))));

    // what is seen when the Job is gone keeps the figures, and the time
    let mut jobless = silent.clone();
    jobless.worker = None;
    assert_eq!(
        match update("claim", &jobless, &finished, Some(&whole), at(200)) {
            Some(Update::Show(entry, _)) => *entry,
            other => panic!("{other:?}"),
        },
        whole
    );
}

#[test]
fn an_entry_is_closed_or_removed_with_its_claim() {
    let mut bound = seen("a");
    bound.target.as_mut().unwrap().finalizer = false;
    let finished = decision(Phase::Finished, "the claim is bound");
    let close = update("claim", &bound, &finished, None, at(1));
    assert_eq!(close, Some(Update::Close("a".to_owned())));
    assert_eq!(after([], close.as_ref()).populations, [], "never ours");
    let closed = after([entry("a", Phase::Rebinding)], close.as_ref()).populations;
    assert_eq!(
        (closed[0].phase, closed[0].message.as_str()),
        (Phase::Finished, "the claim is bound")
    );
    assert_eq!(after([done("a", 1)], close.as_ref()).populations, [done("a", 1)]);

    let mut deleting = decision(Phase::Deleting, "going");
    assert!(matches!(
        update("claim", &working(1, 1, true), &deleting, None, at(1)),
        Some(Update::Show(entry, _)) if entry.phase == Phase::Deleting
    ));
    deleting.action = Some(Action::RemoveFinalizer);
    let remove = update("claim", &seen("a"), &deleting, None, at(1));
    assert_eq!(remove, Some(Update::Remove("a".to_owned())));
    let left = after([entry("a", Phase::Deleting), entry("b", Phase::Waiting)], remove.as_ref());
    assert_eq!(left.populations, [entry("b", Phase::Waiting)]);
    assert_eq!(after([done("a", 1)], remove.as_ref()).populations, [done("a", 1)], "it was filled");

    assert_eq!(update("claim", &Observed::default(), &deleting, None, at(1)), None);
}

#[test]
fn the_list_is_bounded_and_keeps_what_goes_on_and_the_newest() {
    let finished = (0..60).map(|n| done(&format!("{n:03}"), n));
    let kept = after(finished.clone(), None).populations;
    let uids: Vec<&str> = kept.iter().map(|it| it.pvc_uid.as_str()).collect();
    assert_eq!((kept.len(), uids[0], uids[49]), (50, "059", "010"));

    let open = (0..240).map(|n| entry(&format!("open-{n:03}"), Phase::Waiting));
    let kept = after(finished.clone().chain(open), None).populations;
    assert_eq!(kept.len(), 250);
    assert!(kept[..240].iter().all(|it| it.phase == Phase::Waiting));
    assert_eq!(kept[240].pvc_uid, "059");

    let open = (0..300).map(|n| entry(&format!("open-{n:03}"), Phase::Waiting));
    assert_eq!(after(finished.chain(open), None).populations.len(), 250);
}

#[test]
fn a_full_list_fits_into_an_object() {
    for long in ["\u{9810}\"\\\n", "\u{1}", "x"].map(|text| text.repeat(5000)) {
        let entries = (0..250).map(|n| {
            let mut seen = working(u64::MAX, u64::MAX, true);
            seen.target.as_mut().unwrap().uid = format!("62a4e7ec-fae1-4f11-848f-b57c0000{n:04}");
            seen.worker.as_mut().unwrap().pod.as_mut().unwrap().name = "p".repeat(253);
            let entry = shown(&seen, &decision(Phase::Failed, &long), None);
            Population { pvc_name: "n".repeat(253), ..entry }
        });
        let refusal = Refusal { reason: "PopulatorRefused", message: long.clone() };
        let status = next(&status(entries), Some(1), Some(&refusal), None, at(1));
        assert_eq!(status.populations.len(), 250);
        let bytes = serde_json::to_vec(&status).unwrap().len();
        assert!(bytes < 1_000_000, "{bytes} bytes");
        let message = &status.populations[0].message;
        assert!(message.ends_with('…') && long.starts_with(message.trim_end_matches('…')));
        let messages = status.conditions.iter().map(|it| &it.message).chain(&status.message);
        assert!(messages.into_iter().all(|message| message.len() < 1100));
    }
}

#[test]
fn the_whole_is_as_far_as_its_volumes() {
    let none = after([], None);
    assert_eq!((none.phase, none.progress, none.message), (None, None, None));

    let all = after([done("a", 1), done("b", 2)], None);
    assert_eq!(all.phase, Some(Phase::Finished));
    assert_eq!(all.progress.as_deref(), Some("100%"));
    assert_eq!(all.message.as_deref(), Some("Populated successfully"));

    let part = |uid: &str, bytes, total| Population {
        bytes: Some(bytes),
        bytes_total: Some(total),
        ..entry(uid, Phase::Populating)
    };
    let one = after([part("a", 59, 100), done("b", 1)], None);
    assert_eq!((one.phase, one.progress.as_deref()), (Some(Phase::Populating), Some("59%")));
    assert_eq!(one.message.as_deref(), Some("message of a"));

    let two = after([part("a", 1, 100), part("b", 199, 100), done("c", 1)], None);
    assert_eq!(two.progress.as_deref(), Some("50%"), "by bytes, none counted twice");
    let told = two.message.unwrap();
    assert!(told.starts_with("2 of 3 volumes are not filled yet; claim-"), "{told}");
    assert_eq!(after([part("a", 0, 0)], None).progress.as_deref(), Some("100%"));
    assert_eq!(after([part("a", 1, 2), entry("b", Phase::Waiting)], None).progress, None);
    let huge = after([part("a", u64::MAX, u64::MAX), part("b", 0, u64::MAX)], None);
    assert_eq!(huge.progress.as_deref(), Some("50%"));

    let failed =
        after([part("a", 1, 2), entry("b", Phase::Failed), entry("c", Phase::Waiting)], None);
    assert_eq!(failed.phase, Some(Phase::Failed));
    assert_eq!(
        failed.message.as_deref(),
        Some("3 of 3 volumes are not filled yet; claim-b: message of b")
    );
    let refusal = Refusal { reason: "PopulatorRefused", message: "endpoint: no".to_owned() };
    let refused = next(&status([done("a", 1)]), None, Some(&refusal), None, at(1));
    assert_eq!(refused.message.as_deref(), Some("endpoint: no"));
}

#[test]
fn the_status_of_the_document_is_kept() {
    let told = serde_json::json!({
        "message": "Populated successfully",
        "bmcpfsDataflow": {"62a4e7ec": {
            "dataFlowId": "df-1", "dataFlowTaskId": "task-1", "fileSetId": "fset-1",
            "fileSystemId": "bmcpfs-1", "progress": "59%",
        }},
        "populations": [{
            "pvcUID": "62a4e7ec", "pvcName": "a", "phase": "Populating", "message": "59%",
        }],
    });
    let status: OSSVolumePopulatorStatus = serde_json::from_value(told.clone()).unwrap();
    assert_eq!(serde_json::to_value(&status).unwrap(), told);
    let next = next(&status, Some(1), None, None, at(1));
    assert_eq!(next.bmcpfs_dataflow, status.bmcpfs_dataflow);
}

#[test]
fn a_condition_changes_its_time_only_with_its_status() {
    fn told(status: &OSSVolumePopulatorStatus) -> Vec<(&str, &str, &str, i64)> {
        let told = status.conditions.iter();
        told.map(|it| {
            let time = it.last_transition_time.0.as_second();
            (it.type_.as_str(), it.status.as_str(), it.reason.as_str(), time)
        })
        .collect()
    }
    let show = |entry: Population| Some(Update::Show(Box::new(entry), None));
    let idle = next(&OSSVolumePopulatorStatus::default(), Some(1), None, None, at(1));
    assert_eq!(
        told(&idle),
        [
            ("Ready", "True", "Valid", 1),
            ("Reconciling", "False", "Idle", 1),
            ("Stalled", "False", "Idle", 1)
        ]
    );
    assert_eq!(next(&idle, Some(1), None, None, at(2)), idle, "nothing to write");
    let moving = next(&idle, Some(1), None, show(entry("a", Phase::Populating)).as_ref(), at(3));
    assert_eq!(
        told(&moving),
        [
            ("Ready", "True", "Valid", 1),
            ("Reconciling", "True", "Populating", 3),
            ("Stalled", "False", "Idle", 1)
        ]
    );
    let failed = next(&moving, Some(1), None, show(entry("a", Phase::Failed)).as_ref(), at(4));
    assert_eq!(
        told(&failed),
        [
            ("Ready", "True", "Valid", 1),
            ("Reconciling", "False", "Idle", 4),
            ("Stalled", "True", "PopulatorFailed", 4)
        ]
    );
    assert_eq!(failed.conditions[2].message, "claim-a: message of a");
    let refusal = Refusal { reason: "PopulatorRefused", message: "no".to_owned() };
    let refused = next(&failed, Some(2), Some(&refusal), None, at(5));
    assert_eq!(
        told(&refused),
        [
            ("Ready", "False", "PopulatorRefused", 5),
            ("Reconciling", "False", "Idle", 4),
            ("Stalled", "True", "PopulatorFailed", 4)
        ]
    );
    assert!(refused.conditions.iter().all(|it| it.observed_generation == Some(2)));
    let mended = next(&refused, Some(3), None, show(done("a", 6)).as_ref(), at(6));
    assert_eq!(
        told(&mended),
        [
            ("Ready", "True", "Valid", 6),
            ("Reconciling", "False", "Idle", 4),
            ("Stalled", "False", "Idle", 6)
        ]
    );
    let alone = next(&idle, Some(2), Some(&refusal), None, at(7));
    assert_eq!(told(&alone)[2], ("Stalled", "True", "PopulatorRefused", 7));
}

#[test]
fn a_data_flow_is_shown_while_it_fills_and_not_after() {
    let plan = serde_json::json!({
        "region": "cn-hangzhou", "fileSystem": "bmcpfs-1", "fileset": "fset-1", "path": "/pv/",
        "source": "oss://bucket", "sourcePath": "/", "dataType": "metadataAndData",
        "time": "1970-01-01T00:00:07Z",
        "flow": {"id": "df-1", "time": "1970-01-01T00:00:08Z"},
        "task": {"id": "task-1", "time": "1970-01-01T00:00:09Z"},
    });
    let mut importing = seen("a");
    importing.prime =
        Some(Prime { plan: Some(serde_json::from_value(plan).unwrap()), ..Prime::default() });
    importing.dataflow = Dataflow::Known(Box::new(Known {
        task: Some(TaskSeen {
            files: Share { done: 3, total: 10 },
            bytes: Share { done: 59, total: 100 },
            ..TaskSeen::default()
        }),
        ..Known::default()
    }));
    let after = |status: &OSSVolumePopulatorStatus, phase: Phase| {
        let update = update("claim-a", &importing, &decision(phase, "m"), None, at(9));
        next(status, Some(1), None, update.as_ref(), at(9))
    };
    let filling = after(&status([]), Phase::Populating);
    let entry = &filling.populations[0];
    assert_eq!((entry.objects, entry.bytes, entry.bytes_total), (Some(3), Some(59), Some(100)));
    assert_eq!(entry.start_time, Some(Time(at(7))));
    assert_eq!(
        serde_json::to_value(&filling.bmcpfs_dataflow).unwrap(),
        serde_json::json!({"a": {
            "dataFlowId": "df-1", "dataFlowTaskId": "task-1", "fileSetId": "fset-1",
            "fileSystemId": "bmcpfs-1", "progress": "59%",
        }})
    );
    let done = after(&filling, Phase::Finished);
    assert!(done.bmcpfs_dataflow.is_empty());
    assert_eq!(done.message.as_deref(), Some("Populated successfully"));
}
