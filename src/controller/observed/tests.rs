//! From Kubernetes' objects to facts.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

mod shared;

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_claim_is_reduced_to_what_counts() {
    let bare = Target::of(&of(json!({"metadata": {"uid": "u"}})));
    assert_eq!(bare, Target { uid: "u".to_owned(), ..Target::default() });
    let full = Target::of(&of(json!({
        "metadata": {
            "uid": "u",
            "deletionTimestamp": "1970-01-01T00:00:09Z",
            "finalizers": ["kubernetes.io/pvc-protection", "storage.alibabacloud.com/populate-target-protection"],
            "annotations": {"volume.kubernetes.io/selected-node": "node"},
        },
        "spec": {
            "volumeName": "pv",
            "volumeMode": "Block",
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
        },
        "status": {"phase": "Bound"},
    })));
    assert_eq!(
        full,
        Target {
            uid: "u".to_owned(),
            deleting: Some(Timestamp::from_second(9).unwrap()),
            finalizer: true,
            in_use: true,
            volume: Some("pv".to_owned()),
            bound: true,
            lost: false,
            selected_node: Some("node".to_owned()),
            block: true,
            shared: true,
        }
    );
    let lost = Target::of(&of(json!({"status": {"phase": "Lost"}, "spec": {"volumeName": ""}})));
    assert_eq!((lost.lost, lost.bound, lost.volume), (true, false, None));
}

#[test]
fn a_class_makes_volumes_if_a_csi_driver_does() {
    let class = |class: Value| Class::of(Some("disk"), Some(&of(class)));
    let dynamic = |waits_for_consumer| Class::Dynamic { waits_for_consumer, cpfs: false };
    let named = || "disk".to_owned();
    for (class, expected) in [
        (Class::of(None, None), Class::Unnamed),
        (Class::of(Some(""), None), Class::Unnamed),
        (Class::of(Some("disk"), None), Class::Missing(named())),
        (class(json!({"provisioner": "diskplugin.csi.alibabacloud.com"})), dynamic(false)),
        (class(json!({"provisioner": "x", "volumeBindingMode": "Immediate"})), dynamic(false)),
        (
            class(json!({"provisioner": "x", "volumeBindingMode": "WaitForFirstConsumer"})),
            dynamic(true),
        ),
        (class(json!({"provisioner": "kubernetes.io/no-provisioner"})), Class::Static(named())),
        (class(json!({"provisioner": "kubernetes.io/aws-ebs"})), Class::Static(named())),
        (
            class(json!({
                "metadata": {"annotations": {"pv.kubernetes.io/migrated-to": "ebs.csi.aws.com"}},
                "provisioner": "kubernetes.io/aws-ebs",
            })),
            dynamic(false),
        ),
    ] {
        assert_eq!(class, expected);
    }
}

#[test]
fn a_prime_pvc_carries_its_digest_and_its_failure() {
    let failure = Failure {
        code: Some(3),
        message: "no such bucket".to_owned(),
        access: "secret/oss-secret/7".to_owned(),
        time: Timestamp::UNIX_EPOCH,
    };
    let text = serde_json::to_string(&failure).unwrap();
    assert_eq!(
        text,
        r#"{"code":3,"message":"no such bucket","access":"secret/oss-secret/7","time":"1970-01-01T00:00:00Z"}"#
    );
    let prime = |text: &str, phase: &str| {
        Prime::of(&of(json!({
            "metadata": {"uid": "p", "annotations": {
                "storage.alibabacloud.com/spec-digest": "d",
                "storage.alibabacloud.com/failure": text,
                "storage.alibabacloud.com/made-for-node": "node",
                "volume.kubernetes.io/selected-node": "node",
            }},
            "spec": {"volumeName": "pv"},
            "status": {"phase": phase},
        })))
    };
    assert_eq!(
        prime(&text, "Bound"),
        Prime {
            uid: "p".to_owned(),
            deleting: false,
            phase: PrimePhase::Bound,
            volume: Some("pv".to_owned()),
            selected_node: Some("node".to_owned()),
            made_for_node: Some("node".to_owned()),
            digest: "d".to_owned(),
            failure: Some(failure),
            ..Prime::default()
        }
    );
    // what someone else wrote there is written over by the next pass
    assert_eq!(prime("not ours", "Lost").failure, None);
    assert_eq!(prime("", "Lost").phase, PrimePhase::Lost);
    assert_eq!(prime("", "Pending").phase, PrimePhase::Pending);
    assert_eq!(Prime::of(&of(json!({}))), Prime::default());
}

#[test]
fn a_volume_tells_whose_it_is() {
    let bare: PersistentVolume = of(json!({"metadata": {"name": "pv", "resourceVersion": "7"}}));
    let expected =
        Volume { name: "pv".to_owned(), resource_version: "7".to_owned(), ..Volume::default() };
    assert_eq!(Volume::of(&bare), expected);
    let full: PersistentVolume = of(json!({
        "metadata": {
            "name": "pv",
            "resourceVersion": "7",
            "deletionTimestamp": "1970-01-01T00:00:09Z",
            "annotations": {"storage.alibabacloud.com/populated-from": "argo/demo"},
        },
        "spec": {"claimRef": {"uid": "u", "name": "x"}},
        "status": {"phase": "Bound"},
    }));
    let expected = Volume {
        claim: Some("u".to_owned()),
        bound: true,
        deleting: true,
        populated: true,
        ..expected
    };
    assert_eq!(Volume::of(&full), expected);
    let reserved: PersistentVolume =
        of(json!({"spec": {"claimRef": {"name": "x"}}, "status": {"phase": "Available"}}));
    assert_eq!((Volume::of(&reserved).claim, Volume::of(&reserved).bound), (None, false));
}

fn pod(name: &str, second: u8, status: Value) -> Arc<Pod> {
    Arc::new(of(json!({
        "metadata": {
            "name": name,
            "uid": format!("uid of {name}"),
            "creationTimestamp": format!("1970-01-01T00:00:{second:02}Z"),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "x", "uid": "j"}],
        },
        "status": status,
    })))
}

fn job() -> Job {
    of(json!({"metadata": {"uid": "j"}}))
}

#[test]
fn pods_of_another_job_or_of_none_are_strays() {
    let mut orphan = (*pod("b", 2, json!({}))).clone();
    orphan.metadata.owner_references = None;
    orphan.metadata.deletion_timestamp = orphan.metadata.creation_timestamp.clone();
    let pods = [pod("a", 1, json!({})), Arc::new(orphan)];
    let names = |strays: Vec<Stray>| {
        strays.into_iter().map(|it| (it.name, it.uid, it.deleting)).collect::<Vec<_>>()
    };
    let (a, b) = (
        ("a".to_owned(), "uid of a".to_owned(), false),
        ("b".to_owned(), "uid of b".to_owned(), true),
    );
    assert_eq!(
        names(Stray::among(&pods, Some(&job()))),
        [("b".to_owned(), "uid of b".to_owned(), true)]
    );
    assert_eq!(names(Stray::among(&pods, None)), [a.clone(), b.clone()]);
    let other: Job = of(json!({"metadata": {"uid": "k"}}));
    assert_eq!(names(Stray::among(&pods, Some(&other))), [a, b]);
    assert_eq!(Worker::of(&other, &pods).pod, None);
}

fn container(state: Value) -> Value {
    json!({"phase": "Running", "containerStatuses": [
        {"name": "sidecar", "state": {"terminated": {"exitCode": 9}}, "image": "", "imageID": "", "ready": true, "restartCount": 0},
        {"name": "populate", "state": state, "image": "", "imageID": "", "ready": true, "restartCount": 0},
    ]})
}

fn ended(code: i32, reason: &str, message: &str) -> Value {
    let mut status = container(json!({"terminated": {
        "exitCode": code, "reason": reason, "message": message, "finishedAt": "1970-01-01T00:00:30Z",
    }}));
    status["phase"] = if code == 0 { "Succeeded" } else { "Failed" }.into();
    status
}

#[test]
fn a_job_is_what_its_conditions_say() {
    let state = |conditions: Value| {
        let job: Job = of(json!({"status": {"conditions": conditions, "failed": 2}}));
        let worker = Worker::of(&job, &[] as &[Arc<Pod>]);
        assert_eq!((worker.failed_pods, worker.pod, worker.ended), (2, None, None));
        worker.state
    };
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
    assert_eq!(state(json!([])), WorkerState::Active);
    assert_eq!(state(json!([condition("Complete", "True")])), WorkerState::Complete);
    assert_eq!(state(json!([condition("Failed", "True")])), WorkerState::Failed);
    assert_eq!(state(json!([condition("Complete", "False")])), WorkerState::Active);
    // its Pods may still run then
    assert_eq!(state(json!([condition("FailureTarget", "True")])), WorkerState::Active);
    assert_eq!(state(json!([condition("SuccessCriteriaMet", "True")])), WorkerState::Active);
    let job: Job = of(json!({"metadata": {
        "uid": "j",
        "deletionTimestamp": "1970-01-01T00:00:09Z",
        "annotations": {"storage.alibabacloud.com/prime-uid": "p"},
    }}));
    let worker = Worker::of(&job, &[] as &[Arc<Pod>]);
    assert_eq!((worker.uid.as_str(), worker.prime.as_str(), worker.deleting), ("j", "p", true));
}

#[test]
fn the_newest_pod_counts_and_the_newest_that_ended() {
    let job: Job = job();
    let running = || container(json!({"running": {}}));
    let pods = [
        pod("b", 20, ended(4, "Error", "second")),
        pod("c", 30, running()),
        pod("a", 10, ended(5, "Error", "first")),
    ];
    let worker = Worker::of(&job, &pods);
    assert_eq!(worker.pod.as_ref().map(|pod| (pod.name.as_str(), pod.running)), Some(("c", true)));
    let last = worker.ended.unwrap();
    assert_eq!((last.pod.as_str(), last.code, last.message.as_str()), ("b", Some(4), "second"));
}

#[test]
fn a_pod_that_does_not_run_says_why() {
    let held = |status: Value| Worker::of(&job(), &[pod("a", 1, status)]).pod.unwrap();
    let waiting = |reason: &str, message: &str| {
        held(container(json!({"waiting": {"reason": reason, "message": message}})))
    };
    assert_eq!(waiting("ContainerCreating", "").held_by, None);
    assert_eq!(waiting("PodInitializing", "").held_by, None);
    assert_eq!(waiting("ImagePullBackOff", "no").held_by.as_deref(), Some("ImagePullBackOff: no"));
    assert_eq!(
        waiting("CreateContainerConfigError", "").held_by.as_deref(),
        Some("CreateContainerConfigError")
    );
    let unscheduled = held(json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"},
    ]}));
    assert_eq!(unscheduled.held_by.as_deref(), Some("Unschedulable: 0/3 nodes"));
    assert_eq!(
        held(json!({"phase": "Pending"})),
        WorkerPod {
            name: "a".to_owned(),
            created: Some(Timestamp::from_second(1).unwrap()),
            ..WorkerPod::default()
        }
    );
}

#[test]
fn an_end_is_told_by_the_worker_or_by_the_kubelet() {
    let end = |status: Value| Worker::of(&job(), &[pod("a", 1, status)]).ended;
    let mut outcome = Outcome::new(crate::handoff::ExitCode::Source, "no such bucket", "oss://b/");
    (outcome.objects, outcome.bytes, outcome.bytes_per_s) = (3, 40, 5);
    let said = end(ended(3, "Error", &outcome.to_json())).unwrap();
    assert_eq!((said.code, said.message.as_str()), (Some(3), "no such bucket"));
    assert_eq!(said.figures, Some((3, 40, 5)));
    assert_eq!(said.time, Some(Timestamp::from_second(30).unwrap()));
    assert!(!said.out_of_memory && !said.disrupted);

    // the end of the log, where there is no outcome
    let panicked = end(ended(101, "Error", "thread main panicked")).unwrap();
    assert_eq!((panicked.message.as_str(), panicked.figures), ("thread main panicked", None));
    assert!(end(ended(137, "OOMKilled", "")).unwrap().out_of_memory);
    assert!(!end(ended(137, "Error", "")).unwrap().out_of_memory);
    assert_eq!(end(ended(0, "Completed", &outcome.to_json())).unwrap().code, Some(0));

    // a node that is gone leaves no state of a container
    let evicted = end(json!({
        "phase": "Failed",
        "reason": "Evicted",
        "message": "The node was low on resource: memory",
        "conditions": [{"type": "DisruptionTarget", "status": "True"}],
    }));
    let evicted = evicted.unwrap();
    assert_eq!((evicted.code, evicted.disrupted), (None, true));
    assert_eq!(evicted.message, "The node was low on resource: memory");
    let gone = end(json!({"phase": "Failed", "reason": "NodeLost"})).unwrap();
    assert_eq!((gone.message.as_str(), gone.disrupted), ("NodeLost", false));

    assert_eq!(end(container(json!({"running": {}}))), None);
    assert_eq!(end(json!({})), None);
    // the Pod decides, and not one of its containers
    assert_eq!(end(container(json!({"terminated": {"exitCode": 0}}))), None);
}
