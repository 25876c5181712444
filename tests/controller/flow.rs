//! From a claim to a filled volume.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use ossvp::controller::crd::{OSSVolumePopulator, Phase};
use serde_json::{Value, json};

use crate::case::Case;
use crate::world::{POPULATORS, shared};

#[test]
fn a_claim_of_an_immediate_class_is_filled_and_bound_and_nothing_is_left() {
    shared(|world| async move {
        let case = Case::new(&world, "immediate").await;
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        let uid = claim.uid().unwrap();

        case.filled("data").await;

        let events = case.events("PersistentVolumeClaim", "data").await;
        let told = BTreeSet::from(["PopulatorCreated", "PopulatorFinished"].map(str::to_owned));
        assert_eq!(case.reasons("data").await, told);
        let finished = "Populated successfully: 5 objects, 10.00 kB";
        assert!(events.iter().any(|it| it.contains(finished)), "{events:?}");
        assert_eq!(case.events("OSSVolumePopulator", "models").await, events);

        let entry = case.entry("data", "there", |_| true).await;
        assert_eq!((entry.phase, entry.pvc_uid), (Phase::Finished, uid));
        assert_eq!(entry.progress.as_deref(), Some("100%"));
        assert_eq!((entry.objects, entry.bytes), (Some(5), Some(10_000)));
        let source = case.api::<OSSVolumePopulator>().get("models").await.unwrap();
        let status = source.status.unwrap();
        assert_eq!(status.message.as_deref(), Some("Populated successfully"));
        assert_eq!(status.phase, Some(Phase::Finished));
        assert_eq!(status.observed_generation, Some(1));
        let conditions: Vec<_> =
            status.conditions.iter().map(|it| (it.type_.as_str(), it.status.as_str())).collect();
        assert_eq!(conditions, [("Ready", "True"), ("Reconciling", "False"), ("Stalled", "False")]);

        let volume = case.bound("data").await.spec.unwrap().volume_name.unwrap();
        let volume = Api::<PersistentVolume>::all(world.client.clone()).get(&volume).await.unwrap();
        let from = volume.annotations().get("storage.alibabacloud.com/populated-from");
        assert_eq!(from, Some(&format!("{}/models", case.namespace)));
    });
}

#[test]
fn a_claim_that_waits_for_its_consumer_is_filled_for_the_node_that_the_scheduler_chose() {
    shared(|world| async move {
        let case = Case::new(&world, "consumer").await;
        case.source("models", case.spec(json!({}))).await;
        case.claim("data", "models", "consumer", json!({})).await;
        case.entry("data", "waiting", |entry| {
            entry.phase == Phase::Waiting && entry.message.contains("first Pod")
        })
        .await;
        // as a user sees it before anything is begun
        println!("{}", world.kubectl(&["-n", &case.namespace, "describe", "pvc", "data"]));
        println!("{}", world.kubectl(&["-n", &case.namespace, "describe", "ossvp", "models"]));
        let primes = case.populators::<PersistentVolumeClaim>();
        let uid = case.api::<PersistentVolumeClaim>().get("data").await.unwrap().uid().unwrap();
        assert!(primes.get_opt(&format!("prime-{uid}")).await.unwrap().is_none());

        let pod =
            consumer(json!({"persistentVolumeClaim": {"claimName": "data"}}), json!({"zone": "b"}));
        case.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap();

        case.filled("data").await;
        reads(&case, "reader").await;
        let selected = case.api::<PersistentVolumeClaim>().get("data").await.unwrap();
        assert_eq!(selected.annotations()["volume.kubernetes.io/selected-node"], "node-b");
    });
}

/// A Pod that reads what it finds in its volume.
fn consumer(volume: Value, node_selector: Value) -> Pod {
    let mut volume = volume;
    volume["name"] = "data".into();
    serde_json::from_value(json!({
        "metadata": {"name": "reader"},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": node_selector,
            "containers": [{
                "name": "reader",
                "image": "busybox",
                "command": ["/bin/sh", "-c", "cd /data && cat dir-0/file-4 | wc -c"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [volume],
        },
    }))
    .unwrap()
}

/// Waits until the Pod has read what the volume was filled with.
async fn reads(case: &Case, pod: &str) {
    let phase = |pod: &Pod| {
        let phase = pod.status.as_ref()?.phase.clone()?;
        matches!(phase.as_str(), "Succeeded" | "Failed").then_some(phase)
    };
    let phase = case.object(&case.api::<Pod>(), pod, "done", phase).await;
    let log = case.api::<Pod>().logs(pod, &Default::default()).await.unwrap();
    assert_eq!((phase.as_str(), log.trim()), ("Succeeded", "4000"));
}

#[test]
fn a_generic_ephemeral_volume_is_filled_for_its_pod_and_goes_with_it() {
    shared(|world| async move {
        let case = Case::new(&world, "ephemeral").await;
        case.source("models", case.spec(json!({}))).await;
        let template = json!({"volumeClaimTemplate": {"spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "consumer",
            "dataSourceRef": {
                "apiGroup": "storage.alibabacloud.com", "kind": "OSSVolumePopulator", "name": "models",
            },
        }}});
        let pod = consumer(json!({"ephemeral": template}), json!({}));
        case.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap();

        reads(&case, "reader").await;

        case.filled("reader-data").await;
        let claim = case.bound("reader-data").await;
        let volume = claim.spec.clone().unwrap().volume_name.unwrap();
        case.delete(&case.api::<Pod>(), "reader").await;
        case.gone(&case.api::<PersistentVolumeClaim>(), "reader-data").await;
        case.gone(&Api::<PersistentVolume>::all(world.client.clone()), &volume).await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
    });
}

#[test]
fn a_claim_for_a_single_pod_is_filled() {
    shared(|world| async move {
        let case = Case::new(&world, "single").await;
        case.source("models", case.spec(json!({}))).await;
        case.claim("data", "models", "immediate", json!({"accessModes": ["ReadWriteOncePod"]}))
            .await;
        case.filled("data").await;
    });
}

#[test]
fn several_claims_are_filled_from_one_resource() {
    shared(|world| async move {
        let case = Case::new(&world, "several").await;
        case.source("models", case.spec(json!({}))).await;
        for name in ["a", "b", "c"] {
            case.claim(name, "models", "immediate", json!({})).await;
        }
        for name in ["a", "b", "c"] {
            case.filled(name).await;
        }
        let source = case.api::<OSSVolumePopulator>().get("models").await.unwrap();
        let status = source.status.unwrap();
        assert_eq!(status.populations.len(), 3);
        assert_eq!(status.message.as_deref(), Some("Populated successfully"));
    });
}

#[test]
fn a_claim_waits_for_a_resource_that_does_not_exist_yet_and_says_so() {
    shared(|world| async move {
        let case = Case::new(&world, "early").await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", None, &["PopulatorDataSourceNotFound", "does not exist yet"]).await;
        assert!(claim.finalizers().iter().all(|it| !it.contains("alibabacloud")));
        case.no_scaffolding(&claim.uid().unwrap()).await;
        case.source("models", case.spec(json!({}))).await;
        case.filled("data").await;
    });
}

#[test]
fn a_claim_waits_for_a_storage_class_that_does_not_exist_yet_and_says_so() {
    shared(|world| async move {
        let case = Case::new(&world, "classless").await;
        case.source("models", case.spec(json!({}))).await;
        let class = format!("{}-later", case.namespace);
        case.claim("data", "models", &class, json!({})).await;
        case.event("data", Some("models"), &["PopulatorStorageClassNotFound", &class]).await;
        let classes = Api::<StorageClass>::all(world.client.clone());
        world.class(&classes, &class, "Immediate", json!({})).await;
        case.filled("data").await;
    });
}

#[test]
fn a_block_volume_cannot_be_filled_and_the_claim_says_so() {
    shared(|world| async move {
        let case = Case::new(&world, "block").await;
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({"volumeMode": "Block"})).await;
        case.event("data", Some("models"), &["PopulatorUnsupportedClaim", "use Filesystem"]).await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
    });
}

#[test]
fn claims_of_other_populators_and_without_any_are_left_alone() {
    shared(|world| async move {
        let case = Case::new(&world, "others").await;
        case.source("models", case.spec(json!({}))).await;
        let plain = case.claim("plain", "", "immediate", json!({"dataSourceRef": null})).await;
        let group = json!({"dataSourceRef": {"apiGroup": "other.example.com"}});
        let group = case.claim("group", "models", "immediate", group).await;
        let kind = json!({"dataSourceRef": {"kind": "OtherPopulator"}});
        let kind = case.claim("kind", "models", "immediate", kind).await;
        // behind them in every queue
        case.claim("ours", "models", "immediate", json!({})).await;
        case.filled("ours").await;
        case.bound("plain").await;
        for claim in [plain, group, kind] {
            case.no_scaffolding(&claim.uid().unwrap()).await;
            let claim = case.api::<PersistentVolumeClaim>().get(&claim.name_any()).await.unwrap();
            assert!(claim.finalizers().iter().all(|it| !it.contains("alibabacloud")));
            assert!(case.events("PersistentVolumeClaim", &claim.name_any()).await.is_empty());
        }
    });
}

#[test]
fn a_custom_data_source_without_its_ref_is_dropped_by_kubernetes_itself() {
    shared(|world| async move {
        let case = Case::new(&world, "legacy").await;
        let source = json!({
            "apiGroup": "storage.alibabacloud.com", "kind": "OSSVolumePopulator", "name": "models",
        });
        let more = json!({"dataSourceRef": null, "dataSource": source});
        let claim = case.claim("data", "models", "immediate", more).await;
        // the API server lets only claims and snapshots through in this field
        let spec = claim.spec.unwrap();
        assert_eq!((spec.data_source, spec.data_source_ref), (None, None));
    });
}

#[test]
fn a_claim_in_the_populator_namespace_itself_is_ignored() {
    shared(|world| async move {
        let case = Case::new(&world, "inside").await;
        let source = json!({
            "apiVersion": "storage.alibabacloud.com/v1beta1",
            "kind": "OSSVolumePopulator",
            "metadata": {"name": case.namespace},
            "spec": case.spec(json!({})),
        });
        let source = serde_json::from_value(source).unwrap();
        let sources = case.populators::<OSSVolumePopulator>();
        sources.create(&PostParams::default(), &source).await.unwrap();
        let inside = Case { namespace: POPULATORS.to_owned(), ..case };
        let name = source.metadata.name.unwrap();
        let claim = inside.claim(&name, &name, "immediate", json!({})).await;
        // one that comes later and is served shows that this one was seen
        let later = Case::new(&world, "inside-later").await;
        later.source("models", later.spec(json!({}))).await;
        later.claim("data", "models", "immediate", json!({})).await;
        later.filled("data").await;
        inside.no_scaffolding(&claim.uid().unwrap()).await;
        inside.delete(&inside.api::<PersistentVolumeClaim>(), &name).await;
        inside.delete(&sources, &name).await;
    });
}

#[test]
fn progress_is_shown_while_the_worker_runs() {
    shared(|world| async move {
        let case = Case::new(&world, "progress").await;
        case.hold_last_object();
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        let entry =
            case.entry("data", "60 % done", |entry| entry.progress.as_deref() == Some("60%")).await;
        assert_eq!(
            (entry.bytes, entry.bytes_total, entry.objects),
            (Some(6000), Some(10_000), Some(4))
        );
        assert_eq!(entry.phase, Phase::Populating);
        let pod = case.running_pod(&claim.uid().unwrap()).await;
        assert_eq!(entry.pod_name, Some(pod));
        case.event("data", Some("models"), &["PopulatorProgress: 60%", "6.00 kB of 10.00 kB"])
            .await;
        let described = world.kubectl(&["-n", &case.namespace, "describe", "ossvp", "models"]);
        println!("{described}");
        println!("{}", world.kubectl(&["-n", &case.namespace, "describe", "pvc", "data"]));
        let words: Vec<&str> = described.split_whitespace().collect();
        assert!(words.windows(2).any(|pair| pair == ["Progress:", "60%"]), "{described}");
        let row = world.kubectl(&["-n", &case.namespace, "get", "ossvp", "models"]);
        for column in [
            "MODE",
            "BUCKET",
            "PATH",
            "PHASE",
            "PROGRESS",
            "AGE",
            "generic",
            "/data/",
            "Populating",
            "60%",
        ] {
            assert!(row.contains(column), "{column} in {row}");
        }
        case.server.clear_faults();
        case.filled("data").await;
    });
}

#[test]
fn a_claim_bound_by_hand_to_another_volume_is_let_go() {
    shared(|world| async move {
        let case = Case::new(&world, "by-hand").await;
        case.hold_last_object();
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        let uid = claim.uid().unwrap();
        case.running_pod(&uid).await;
        let name = format!("{}-static", case.namespace);
        let volume = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "immediate",
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": case.namespace, "name": "data", "uid": uid},
                "hostPath": {"path": "/nonexistent"},
            },
        }));
        let volumes = Api::<PersistentVolume>::all(world.client.clone());
        volumes.create(&PostParams::default(), &volume.unwrap()).await.unwrap();
        let bound = case.bound("data").await;
        assert_eq!(bound.spec.unwrap().volume_name, Some(name.clone()));
        case.event("data", Some("models"), &["PopulatorNotUsed", &name]).await;
        case.cleaned(&uid).await;
        case.delete(&case.api::<PersistentVolumeClaim>(), "data").await;
        case.delete(&volumes, &name).await;
    });
}

#[test]
fn a_bound_claim_is_not_touched_again() {
    shared(|world| async move {
        let case = Case::new(&world, "again").await;
        case.source("models", case.spec(json!({}))).await;
        case.claim("data", "models", "immediate", json!({})).await;
        case.filled("data").await;
        let before = case.events("PersistentVolumeClaim", "data").await;
        world.kubectl(&["-n", &case.namespace, "label", "pvc", "data", "touched=yes"]);
        case.change_source("models", json!({"path": "/elsewhere/"})).await;
        // behind it in the queue
        case.claim("later", "models", "immediate", json!({})).await;
        case.event("later", None, &["PopulatorFailed", "elsewhere/"]).await;
        let claim = case.api::<PersistentVolumeClaim>().get("data").await.unwrap();
        assert!(claim.finalizers().iter().all(|it| !it.contains("alibabacloud")));
        assert_eq!(case.events("PersistentVolumeClaim", "data").await, before);
        case.delete(&case.api::<PersistentVolumeClaim>(), "later").await;
    });
}
