//! What goes wrong is told, tried again where that helps, and ends where it does not.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, Secret};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use oss_server::{Fault, PutOptions};
use ossvp::controller::crd::Phase;
use serde_json::json;
use stand_in::ProvisionFailure;

use crate::case::Case;
use crate::support::{BUCKET, ID, SECRET};
use crate::world::{POPULATORS, World, alone, shared, until};

#[test]
fn a_refusal_by_oss_ends_the_population_with_the_workers_own_words() {
    shared(|world| async move {
        for (name, spec, words) in [
            ("bucket", json!({"bucket": "no-such-bucket"}), "no-such-bucket"),
            ("prefix", json!({"path": "/nothing/"}), "generic.allowEmpty"),
        ] {
            let case = Case::new(&world, name).await;
            let mut all = case.spec(json!({}));
            crate::case::merge(&mut all, spec);
            case.source("models", all).await;
            let claim = case.claim("data", "models", "immediate", json!({})).await;
            case.event("data", Some("models"), &["PopulatorFailed", words]).await;
            let entry = case.entry("data", "failed", |it| it.phase == Phase::Failed).await;
            assert!(entry.message.contains(words), "{entry:?}");
            stays_failed(&case, &claim).await;
        }
    });
}

#[test]
fn a_wrong_key_ends_the_population_until_the_secret_is_mended() {
    shared(|world| async move {
        let case = Case::new(&world, "secret").await;
        case.secret(&format!("{}-wrong", case.namespace), json!({"akId": ID, "akSecret": "no"}))
            .await;
        let wrong = json!({"secretRef": format!("{}-wrong", case.namespace)});
        case.source("models", case.spec(wrong)).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", Some("models"), &["PopulatorFailed", "SignatureDoesNotMatch"]).await;
        let first = stays_failed(&case, &claim).await;

        let mended = Patch::Merge(json!({"stringData": {"akSecret": SECRET}}));
        let secrets = case.populators::<Secret>();
        let name = format!("{}-wrong", case.namespace);
        secrets.patch(&name, &PatchParams::default(), &mended).await.unwrap();

        case.filled("data").await;
        let second = case.bound("data").await.spec.unwrap().volume_name;
        assert!(second.is_some() && second != first, "the same volume again: {first:?}");
    });
}

/// Checks that failed Pods are kept for their logs, and that not even the Job's deletion begins
/// another try; returns the volume.
async fn stays_failed(case: &Case, claim: &PersistentVolumeClaim) -> Option<String> {
    let uid = claim.uid().unwrap();
    assert_eq!(case.pods(&uid).await.len(), 1, "a failed Pod is kept, and there is no other");
    let primes = case.populators::<PersistentVolumeClaim>();
    let prime = case
        .object(&primes, &format!("prime-{uid}"), "failure noted", |prime| {
            prime.annotations().get("storage.alibabacloud.com/failure")?;
            Some(prime.clone())
        })
        .await;
    let jobs = case.populators::<Job>();
    case.delete(&jobs, &format!("populate-{uid}")).await;
    case.gone(&jobs, &format!("populate-{uid}")).await;
    // another claim's whole life later there is still none
    let other = Case::new(&case.world, "meanwhile").await;
    other.source("models", other.spec(json!({}))).await;
    other.claim("data", "models", "immediate", json!({})).await;
    other.filled("data").await;
    assert!(jobs.get_opt(&format!("populate-{uid}")).await.unwrap().is_none());
    prime.spec.unwrap().volume_name
}

#[test]
fn a_volume_that_is_too_small_ends_the_population_with_both_figures() {
    shared(|world| async move {
        let case = Case::new(&world, "small").await;
        case.server.put_synthetic(BUCKET, "data/large", 200 << 20, 7, PutOptions::new());
        case.source("models", case.spec(json!({}))).await;
        let small = json!({"resources": {"requests": {"storage": "64Mi"}}});
        case.claim("data", "models", "sized", small).await;
        let event = case.event("data", Some("models"), &["PopulatorFailed", "209725200"]).await;
        assert!(event.contains("the volume holds"), "{event}");
        println!("{event}");
    });
}

#[test]
fn a_secret_that_is_missing_or_has_no_keys_is_named_and_waited_for() {
    shared(|world| async move {
        let case = Case::new(&world, "keyless").await;
        let name = format!("{}-later", case.namespace);
        case.source("models", case.spec(json!({"secretRef": name}))).await;
        case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", Some("models"), &["PopulatorSecretNotFound", &name]).await;
        case.secret(&name, json!({"password": "x"})).await;
        case.event("data", Some("models"), &["PopulatorSecretInvalid", "accessKeyId"]).await;
        let keys =
            Patch::Merge(json!({"stringData": {"AccessKeyID": ID, "AccessKeySecret": SECRET}}));
        case.populators::<Secret>().patch(&name, &PatchParams::default(), &keys).await.unwrap();
        case.filled("data").await;
    });
}

#[test]
fn a_changed_spec_fills_a_fresh_volume() {
    shared(|world| async move {
        let case = Case::new(&world, "changed").await;
        case.server.put(BUCKET, "other/held", "never");
        let wait = [("x-oss-qos-delay-time", "300")];
        let held = Fault::get("other/held").status_with(503, "ServiceUnavailable", &wait);
        case.server.fault(held);
        let mut spec = case.spec(json!({}));
        spec["path"] = "/other/".into();
        case.source("models", spec).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        let uid = claim.uid().unwrap();
        case.running_pod(&uid).await;
        let primes = case.populators::<PersistentVolumeClaim>();
        let first = primes.get(&format!("prime-{uid}")).await.unwrap().spec.unwrap().volume_name;

        case.change_source("models", json!({"path": "/data/"})).await;

        case.event("data", Some("models"), &["PopulatorReplaced", "the resource was changed"])
            .await;
        case.filled("data").await;
        let second = case.bound("data").await.spec.unwrap().volume_name;
        assert!(first.is_some() && second != first);
    });
}

#[test]
fn a_worker_that_is_killed_or_evicted_is_replaced_and_goes_on() {
    shared(|world| async move {
        let case = Case::new(&world, "killed").await;
        case.hold_last_object();
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        let uid = claim.uid().unwrap();
        let pod = case.running_pod(&uid).await;
        case.entry("data", "60 % done", |entry| entry.progress.as_deref() == Some("60%")).await;
        let fetched = case.server.gets(BUCKET, "data/dir-0/file-2");
        assert_eq!(fetched, 1);

        // an eviction does not count
        world
            .stand_in
            .evict_by_kubelet(POPULATORS, &pod, "the node was low on memory")
            .await
            .unwrap();
        case.event("data", Some("models"), &["PopulatorRetrying", "was evicted"]).await;
        let pod = another(&case, &uid, &pod).await;

        // the kernel's killer does
        world.stand_in.oom_kill(POPULATORS, &pod).await.unwrap();
        case.event(
            "data",
            Some("models"),
            &["PopulatorRetrying", "generic.resources.limits.memory"],
        )
        .await;
        let entry = case.entry("data", "one failed", |entry| entry.failed_pods.is_some()).await;
        another(&case, &uid, &pod).await;
        println!("{entry:?}");

        case.server.clear_faults();
        case.filled("data").await;
        // what was there was not fetched again
        assert_eq!(case.server.gets(BUCKET, "data/dir-0/file-2"), 1);
    });
}

/// A running worker Pod that is not `pod`.
async fn another(case: &Case, uid: &str, pod: &str) -> String {
    until(&case.world, "another worker", || async {
        let running = case.running_pod(uid).await;
        (running != pod).then_some(running)
    })
    .await
}

#[test]
fn a_worker_that_no_node_takes_says_why() {
    shared(|world| async move {
        let case = Case::new(&world, "nowhere").await;
        case.source("models", case.spec(json!({"nodeSelector": {"zone": "z"}}))).await;
        case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", Some("models"), &["PopulatorStalled", "Unschedulable", "node"]).await;
        case.change_source("models", json!({"generic": {"nodeSelector": {"zone": "a"}}})).await;
        case.filled("data").await;
    });
}

#[test]
fn an_image_that_cannot_be_pulled_is_told() {
    let flags = ["--allow-endpoint=127.0.0.1", "--worker-image=example.com/no-such-image:1"];
    alone(&flags, |world| async move {
        world.start_controller();
        let case = Case::new(&world, "imageless").await;
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", Some("models"), &["PopulatorStalled", "no-such-image"]).await;
        let claims = case.api::<PersistentVolumeClaim>();
        case.delete(&claims, "data").await;
        case.gone(&claims, "data").await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
    });
}

#[test]
fn a_quota_that_denies_the_prime_pvc_is_told() {
    shared(|world| async move {
        let case = Case::new(&world, "quota").await;
        let class = format!("{}-class", case.namespace);
        world.class(&Api::all(world.client.clone()), &class, "Immediate", json!({})).await;
        let hard = format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims");
        let quota = quota(&case, json!({"hard": {hard: "0"}})).await;
        case.source("models", case.spec(json!({}))).await;
        case.claim("data", "models", &class, json!({})).await;
        case.event("data", Some("models"), &["PopulatorPVCPrimeCreationError", "exceeded quota"])
            .await;
        case.delete(&case.populators::<ResourceQuota>(), &quota).await;
        case.filled("data").await;
    });
}

#[test]
fn a_quota_that_denies_the_workers_pod_is_told() {
    shared(|world| async move {
        let case = Case::new(&world, "podless").await;
        let classes = Api::<PriorityClass>::all(world.client.clone());
        let low = serde_json::from_value(json!({"metadata": {"name": "low"}, "value": 10}));
        classes.create(&PostParams::default(), &low.unwrap()).await.unwrap();
        let scope = json!({"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["low"]},
        ]});
        let quota = quota(&case, json!({"hard": {"pods": "0"}, "scopeSelector": scope})).await;
        case.source("models", case.spec(json!({"priorityClassName": "low"}))).await;
        case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", Some("models"), &["PopulatorStalled", "exceeded quota"]).await;
        case.delete(&case.populators::<ResourceQuota>(), &quota).await;
        case.filled("data").await;
    });
}

/// A quota in the populator namespace, once its controller has seen it.
async fn quota(case: &Case, spec: serde_json::Value) -> String {
    let quotas = case.populators::<ResourceQuota>();
    let quota = json!({"metadata": {"name": case.namespace}, "spec": spec});
    let quota = serde_json::from_value(quota).unwrap();
    quotas.create(&PostParams::default(), &quota).await.unwrap();
    let seen = |quota: &ResourceQuota| quota.status.as_ref()?.hard.as_ref().map(|_| ());
    case.object(&quotas, &case.namespace, "seen", seen).await;
    case.namespace.clone()
}

#[test]
fn a_volume_that_cannot_be_made_says_why_and_is_made_when_it_can() {
    shared(|world| async move {
        let case = Case::new(&world, "dear").await;
        let fails = fail(&world, &case, ProvisionFailure::new("the zone is out of disks"));
        case.source("models", case.spec(json!({}))).await;
        case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", Some("models"), &["PopulatorProvisioning", "the zone is out of disks"])
            .await;
        drop(fails);
        case.filled("data").await;
    });
}

#[test]
fn a_node_that_can_have_no_volume_is_given_up_and_the_scheduler_chooses_again() {
    shared(|world| async move {
        let case = Case::new(&world, "full-zone").await;
        let fails = fail(&world, &case, ProvisionFailure::new("no space in the zone").reschedule());
        case.source("models", case.spec(json!({}))).await;
        case.claim("data", "models", "consumer", json!({})).await;
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "reader"},
            "spec": {
                "containers": [{"name": "reader", "image": "busybox", "command": ["/bin/true"]}],
                "restartPolicy": "Never",
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            },
        }));
        let pods = case.api::<k8s_openapi::api::core::v1::Pod>();
        pods.create(&PostParams::default(), &pod.unwrap()).await.unwrap();
        case.event("data", Some("models"), &["PopulatorNodeGivenUp", "must choose again"]).await;
        drop(fails);
        case.filled("data").await;
    });
}

/// Lets the provisioner fail for the claims of one case.
fn fail(world: &World, case: &Case, failure: ProvisionFailure) -> stand_in::Rule {
    let namespace = format!("{}/", case.namespace);
    let ours = move |claim: &PersistentVolumeClaim| {
        let of = claim.annotations().get("storage.alibabacloud.com/pvc");
        of.is_some_and(|of| of.starts_with(&namespace))
    };
    world.stand_in.fail_provisioning(ours, failure)
}

#[test]
fn retries_come_to_an_end() {
    shared(|world| async move {
        let case = Case::new(&world, "endless").await;
        case.hold_last_object();
        case.source("models", case.spec(json!({"backoffLimit": 0}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        let uid = claim.uid().unwrap();
        let pod = case.running_pod(&uid).await;
        world.stand_in.oom_kill(POPULATORS, &pod).await.unwrap();
        case.event("data", Some("models"), &["PopulatorFailed", "ran out of memory"]).await;
        stays_failed(&case, &claim).await;
    });
}
