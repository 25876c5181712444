//! Several workers fill one volume, as an Indexed Job of the real Job controller.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use ossvp::controller::crd::Phase;
use serde_json::{Value, json};

use crate::case::Case;
use crate::restart::killed_after_each_change;
use crate::support::BUCKET;
use crate::world::{POPULATORS, alone, shared, until};

/// For many nodes. The kubelet gives a volume to the Pods' group only if it is for one node, too.
fn many() -> Value {
    json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]})
}

/// A resource of that many workers and a claim that it fills but for one object, which is held; the
/// claim's UID, and the Pod that waits for the object.
async fn all_but_one(case: &Case, workers: u32) -> (String, String) {
    case.hold_last_object();
    case.source("models", case.spec(json!({"parallelism": workers}))).await;
    let uid = case.claim("data", "models", "immediate", many()).await.uid().unwrap();
    let pod = left(case, &uid, workers, "").await;
    (uid, pod)
}

/// The one Pod that runs once all others of `workers` have ended well; not `other`.
async fn left(case: &Case, uid: &str, workers: u32, other: &str) -> String {
    until(&case.world, "all workers but one are done", || async {
        let pods = case.pods(uid).await;
        let in_phase = |wanted: &'static str| {
            pods.iter().filter(move |pod| {
                pod.status.as_ref().and_then(|it| it.phase.as_deref()) == Some(wanted)
            })
        };
        let mut running = in_phase("Running").filter(|pod| pod.name_any() != other);
        let done = in_phase("Succeeded").count() + 1 == workers as usize;
        running.next().filter(|_| done).map(ResourceExt::name_any)
    })
    .await
}

/// Which share a Pod fills.
fn index(pod: &Pod) -> &str {
    &pod.annotations()["batch.kubernetes.io/job-completion-index"]
}

async fn job(case: &Case, uid: &str) -> Job {
    case.populators::<Job>().get(&format!("populate-{uid}")).await.unwrap()
}

#[test]
fn a_volume_for_many_nodes_is_filled_by_several_workers_one_of_which_is_killed_and_replaced() {
    shared(|world| async move {
        let case = Case::new(&world, "several").await;
        let (uid, killed) = all_but_one(&case, 3).await;
        let made = serde_json::to_value(job(&case, &uid).await.spec).unwrap();
        for (field, value) in [
            ("completionMode", json!("Indexed")),
            ("completions", json!(3)),
            ("parallelism", json!(3)),
            // this cluster counts by index
            ("backoffLimitPerIndex", json!(6)),
            ("maxFailedIndexes", json!(0)),
        ] {
            assert_eq!(made[field], value, "{field}");
        }
        let pods = case.pods(&uid).await;
        let shares: BTreeSet<&str> = pods.iter().map(index).collect();
        assert_eq!(shares, BTreeSet::from(["0", "1", "2"]));
        // summed: 3 shares have 5 objects of 10 kB, and the one that is missing has 4
        let entry =
            case.entry("data", "60 % done", |entry| entry.progress.as_deref() == Some("60%")).await;
        let figures = (entry.bytes, entry.bytes_total, entry.objects, entry.phase);
        assert_eq!(figures, (Some(6000), Some(10_000), Some(4), Phase::Populating));
        assert_eq!(entry.pod_name.as_ref(), Some(&killed));
        case.event("data", Some("models"), &["PopulatorCreated", "by the 3 workers of Job"]).await;

        world.stand_in.oom_kill(POPULATORS, &killed).await.unwrap();
        let told = ["PopulatorRetrying", "generic.resources.limits.memory"];
        case.event("data", Some("models"), &told).await;
        let next = left(&case, &uid, 3, &killed).await;
        let pods = case.pods(&uid).await;
        let of = |name: &str| pods.iter().find(|pod| pod.name_any() == name).map(index);
        assert_eq!(of(&next), of(&killed), "the next one fills the same share");
        assert_eq!(pods.len(), 4, "another share was begun again: {pods:?}");
        case.entry("data", "one failed", |entry| entry.failed_pods == Some(1)).await;

        case.server.clear_faults();
        case.filled("data").await;
        let told = ["PopulatorFinished", "5 objects, 10.00 kB"];
        case.event("data", Some("models"), &told).await;
        // what was there was not fetched again
        assert_eq!(case.server.gets(BUCKET, "data/dir-0/file-2"), 1);
        let reasons = ["PopulatorCreated", "PopulatorRetrying", "PopulatorFinished"];
        assert_eq!(case.reasons("data").await, reasons.map(str::to_owned).into());
    });
}

#[test]
fn workers_that_saw_different_objects_look_again_all_of_them() {
    shared(|world| async move {
        let mut case = Case::new(&world, "differ").await;
        let (uid, killed) = all_but_one(&case, 2).await;
        let first = job(&case, &uid).await.uid();
        // the other one is done, and has not listed it
        case.server.put(BUCKET, "data/late", "arrived between the two");
        case.files.insert("late".to_owned(), b"arrived between the two".to_vec());
        world.stand_in.oom_kill(POPULATORS, &killed).await.unwrap();
        left(&case, &uid, 2, &killed).await;
        case.server.clear_faults();

        let told = ["PopulatorRetrying", "all workers look again", "saw different listings"];
        case.event("data", Some("models"), &told).await;
        let primes = case.populators::<PersistentVolumeClaim>();
        let rounds = |prime: &PersistentVolumeClaim| {
            let rounds = prime.annotations().get("storage.alibabacloud.com/rounds")?;
            serde_json::from_str::<Value>(rounds).ok()
        };
        let rounds = case.object(&primes, &format!("prime-{uid}"), "noted", rounds).await;
        assert_eq!((&rounds["count"], rounds["job"].as_str()), (&json!(1), first.as_deref()));
        case.filled("data").await;
        // the same volume: what was right in it was not fetched again
        assert_eq!(case.server.gets(BUCKET, "data/dir-0/file-2"), 1);
        let told = ["PopulatorFinished", "6 objects"];
        case.event("data", Some("models"), &told).await;
    });
}

#[test]
fn a_controller_killed_after_any_change_has_several_workers_fill_a_volume_once() {
    alone(&["--allow-endpoint=127.0.0.1"], |world| async move {
        let world = &world;
        killed_after_each_change(world, |n| async move {
            let case = Case::new(world, &format!("several-{n}")).await;
            case.source("models", case.spec(json!({"parallelism": 2}))).await;
            case.claim("data", "models", "immediate", many()).await;
            case.filled("data").await;
            let told = ["PopulatorCreated", "PopulatorFinished"].map(str::to_owned);
            assert_eq!(case.reasons("data").await, told.into(), "killed after {n}");
            for path in case.files.keys() {
                assert_eq!(case.server.gets(BUCKET, &format!("data/{path}")), 1, "{path}, {n}");
            }
        })
        .await;
        world.promise_holds();
    });
}

#[test]
fn several_workers_for_a_volume_of_one_node_are_refused_with_words_that_help() {
    shared(|world| async move {
        let case = Case::new(&world, "one-node").await;
        case.source("models", case.spec(json!({"parallelism": 4}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        let told = ["PopulatorUnsupportedClaim", "generic.parallelism", "ReadWriteMany"];
        println!("{}", case.event("data", Some("models"), &told).await);
        case.entry("data", "failed", |it| it.phase == Phase::Failed).await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
        // as the words say
        case.change_source("models", json!({"generic": {"parallelism": null}})).await;
        case.filled("data").await;
    });
}

#[test]
fn another_number_of_workers_in_mid_run_fills_a_fresh_volume() {
    shared(|world| async move {
        let case = Case::new(&world, "another-number").await;
        let (uid, _) = all_but_one(&case, 2).await;
        let primes = case.populators::<PersistentVolumeClaim>();
        let first = primes.get(&format!("prime-{uid}")).await.unwrap().spec.unwrap().volume_name;
        case.change_source("models", json!({"generic": {"parallelism": 3}})).await;
        let told = ["PopulatorReplaced", "the resource was changed"];
        case.event("data", Some("models"), &told).await;
        let of_three = |job: &Job| (job.spec.as_ref()?.completions == Some(3)).then_some(());
        let jobs = case.populators::<Job>();
        case.object(&jobs, &format!("populate-{uid}"), "of three workers", of_three).await;
        case.server.clear_faults();
        case.filled("data").await;
        let second = case.bound("data").await.spec.unwrap().volume_name;
        assert!(first.is_some() && second != first);
    });
}

#[test]
fn a_claim_deleted_while_several_workers_fill_it_goes_with_all_of_them() {
    shared(|world| async move {
        let case = Case::new(&world, "several-gone").await;
        let (uid, _) = all_but_one(&case, 2).await;
        let claims = case.api::<PersistentVolumeClaim>();
        case.delete(&claims, "data").await;
        case.gone(&claims, "data").await;
        // not before everything is gone
        assert!(case.pods(&uid).await.is_empty());
        let jobs = case.populators::<Job>();
        assert!(jobs.get_opt(&format!("populate-{uid}")).await.unwrap().is_none());
        let primes = case.populators::<PersistentVolumeClaim>();
        assert!(primes.get_opt(&format!("prime-{uid}")).await.unwrap().is_none());
    });
}
