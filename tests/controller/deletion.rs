//! Deletions at any moment: nothing hangs, nothing is left, nothing unfilled is handed over.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use ossvp::controller::crd::OSSVolumePopulator;
use serde_json::json;
use stand_in::ProvisionFailure;

use crate::case::Case;
use crate::support::{ID, SECRET};
use crate::world::{POPULATORS, alone, shared, until};

/// A claim whose worker runs, and goes on running until the server's faults are cleared.
async fn under_way(case: &Case) -> PersistentVolumeClaim {
    case.hold_last_object();
    case.source("models", case.spec(json!({}))).await;
    let claim = case.claim("data", "models", "immediate", json!({})).await;
    case.running_pod(&claim.uid().unwrap()).await;
    claim
}

async fn volume_of_prime(case: &Case, uid: &str) -> String {
    let primes = case.populators::<PersistentVolumeClaim>();
    let name = |prime: &PersistentVolumeClaim| prime.spec.as_ref()?.volume_name.clone();
    case.object(&primes, &format!("prime-{uid}"), "has a volume", name).await
}

#[test]
fn a_claim_deleted_before_it_is_begun_goes_at_once() {
    shared(|world| async move {
        let case = Case::new(&world, "unbegun").await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", None, &["PopulatorDataSourceNotFound"]).await;
        let claims = case.api::<PersistentVolumeClaim>();
        case.delete(&claims, "data").await;
        case.gone(&claims, "data").await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
    });
}

#[test]
fn a_claim_deleted_while_its_volume_is_made_goes_with_everything() {
    shared(|world| async move {
        let case = Case::new(&world, "unmade").await;
        let namespace = format!("{}/", case.namespace);
        let ours = move |claim: &PersistentVolumeClaim| {
            let of = claim.annotations().get("storage.alibabacloud.com/pvc");
            of.is_some_and(|of| of.starts_with(&namespace))
        };
        let fails = world.stand_in.fail_provisioning(ours, ProvisionFailure::new("never"));
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        case.event("data", Some("models"), &["PopulatorProvisioning", "never"]).await;
        let claims = case.api::<PersistentVolumeClaim>();
        case.delete(&claims, "data").await;
        case.gone(&claims, "data").await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
        drop(fails);
    });
}

#[test]
fn a_claim_deleted_while_it_is_filled_goes_with_everything() {
    shared(|world| async move {
        let case = Case::new(&world, "unfilled").await;
        let claim = under_way(&case).await;
        let uid = claim.uid().unwrap();
        let volume = volume_of_prime(&case, &uid).await;
        let claims = case.api::<PersistentVolumeClaim>();
        case.delete(&claims, "data").await;
        case.gone(&claims, "data").await;
        // not before everything is gone, as a claim of the same name may follow
        assert!(case.pods(&uid).await.is_empty());
        assert!(
            case.populators::<Job>().get_opt(&format!("populate-{uid}")).await.unwrap().is_none()
        );
        let primes = case.populators::<PersistentVolumeClaim>();
        assert!(primes.get_opt(&format!("prime-{uid}")).await.unwrap().is_none());
        case.gone(&Api::<PersistentVolume>::all(world.client.clone()), &volume).await;
        // and its entry goes from the resource
        until(&world, "no entry", || async {
            let source = case.api::<OSSVolumePopulator>().get("models").await.unwrap();
            source.status.unwrap_or_default().populations.is_empty().then_some(())
        })
        .await;
    });
}

#[test]
fn a_claim_deleted_after_its_resource_goes_too() {
    shared(|world| async move {
        let case = Case::new(&world, "sourceless").await;
        let claim = under_way(&case).await;
        let sources = case.api::<OSSVolumePopulator>();
        case.delete(&sources, "models").await;
        case.gone(&sources, "models").await;
        let claims = case.api::<PersistentVolumeClaim>();
        case.delete(&claims, "data").await;
        case.gone(&claims, "data").await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
    });
}

#[test]
fn a_resource_deleted_while_a_worker_runs_does_not_stop_it() {
    shared(|world| async move {
        let case = Case::new(&world, "orphan").await;
        let claim = under_way(&case).await;
        case.delete(&case.api::<OSSVolumePopulator>(), "models").await;
        case.server.clear_faults();
        case.bound("data").await;
        case.cleaned(&claim.uid().unwrap()).await;
        let volume = world.stand_in.volume_of(&case.namespace, "data").await.unwrap();
        assert_eq!(crate::support::files(&volume), case.files);
        world.promise_holds();
    });
}

#[test]
fn a_job_or_pod_deleted_by_someone_is_made_again_and_the_volume_goes_on() {
    shared(|world| async move {
        let case = Case::new(&world, "jobless").await;
        let claim = under_way(&case).await;
        let uid = claim.uid().unwrap();
        let volume = volume_of_prime(&case, &uid).await;
        let pod = case.running_pod(&uid).await;
        case.delete(&case.populators::<Pod>(), &pod).await;
        until(&world, "another Pod", || async {
            (case.running_pod(&uid).await != pod).then_some(())
        })
        .await;
        let jobs = case.populators::<Job>();
        let name = format!("populate-{uid}");
        let first = jobs.get(&name).await.unwrap().uid();
        case.delete(&jobs, &name).await;
        let other = |job: &Job| (job.uid() != first).then_some(());
        case.object(&jobs, &name, "another one", other).await;
        case.server.clear_faults();
        case.filled("data").await;
        assert_eq!(case.bound("data").await.spec.unwrap().volume_name, Some(volume));
    });
}

#[test]
fn a_job_deleted_without_its_pods_leaves_none_that_writes_unseen() {
    shared(|world| async move {
        let case = Case::new(&world, "strays").await;
        let claim = under_way(&case).await;
        let uid = claim.uid().unwrap();
        let pod = case.running_pod(&uid).await;
        let (jobs, name) = (case.populators::<Job>(), format!("populate-{uid}"));
        jobs.delete(&name, &DeleteParams::orphan()).await.unwrap();
        case.gone(&case.populators::<Pod>(), &pod).await;
        case.server.clear_faults();
        case.filled("data").await;
    });
}

#[test]
fn a_prime_pvc_deleted_by_someone_means_a_fresh_volume() {
    shared(|world| async move {
        let case = Case::new(&world, "primeless").await;
        let claim = under_way(&case).await;
        let uid = claim.uid().unwrap();
        let first = volume_of_prime(&case, &uid).await;
        let primes = case.populators::<PersistentVolumeClaim>();
        case.delete(&primes, &format!("prime-{uid}")).await;
        case.event("data", Some("models"), &["PopulatorReplaced", "the prime PVC was deleted"])
            .await;
        case.server.clear_faults();
        case.filled("data").await;
        assert_ne!(case.bound("data").await.spec.unwrap().volume_name, Some(first.clone()));
        case.gone(&Api::<PersistentVolume>::all(world.client.clone()), &first).await;
    });
}

#[test]
fn the_populator_namespace_deleted_and_installed_again_fills_a_fresh_volume() {
    alone(&["--allow-endpoint=127.0.0.1"], |world| async move {
        world.start_controller();
        let case = Case::new(&world, "ousted").await;
        under_way(&case).await;
        let namespaces = Api::<Namespace>::all(world.client.clone());
        case.delete(&namespaces, POPULATORS).await;
        case.gone(&namespaces, POPULATORS).await;
        case.event("data", Some("models"), &["PopulatorSecretNotFound"]).await;
        case.server.clear_faults();
        world.install();
        case.secret(&case.namespace, json!({"accessKeyId": ID, "accessKeySecret": SECRET})).await;
        case.filled("data").await;
    });
}

#[test]
fn a_namespace_deleted_while_a_claim_is_filled_goes() {
    shared(|world| async move {
        let case = Case::new(&world, "razed").await;
        let claim = under_way(&case).await;
        let namespaces = Api::<Namespace>::all(world.client.clone());
        case.delete(&namespaces, &case.namespace).await;
        case.gone(&namespaces, &case.namespace).await;
        case.no_scaffolding(&claim.uid().unwrap()).await;
    });
}

#[test]
fn a_finalizer_taken_away_by_force_leaves_nothing_behind_also_with_a_namesake() {
    shared(|world| async move {
        let case = Case::new(&world, "forced").await;
        let claim = under_way(&case).await;
        let uid = claim.uid().unwrap();
        let volume = volume_of_prime(&case, &uid).await;
        let away = r#"{"metadata": {"finalizers": null}}"#;
        world.kubectl(&["-n", &case.namespace, "delete", "pvc", "data", "--wait=false"]);
        // ours may have gone first
        world.try_kubectl(&[
            "-n",
            &case.namespace,
            "patch",
            "pvc",
            "data",
            "--type=merge",
            "-p",
            away,
        ]);
        case.gone(&case.api::<PersistentVolumeClaim>(), "data").await;
        // another claim takes the name at once
        case.claim("data", "models", "immediate", json!({})).await;
        case.no_scaffolding(&uid).await;
        case.gone(&Api::<PersistentVolume>::all(world.client.clone()), &volume).await;
        case.server.clear_faults();
        case.filled("data").await;
    });
}

#[test]
fn a_bound_claim_deleted_takes_its_volume_along() {
    shared(|world| async move {
        let case = Case::new(&world, "used-up").await;
        case.source("models", case.spec(json!({}))).await;
        case.claim("data", "models", "immediate", json!({})).await;
        case.filled("data").await;
        let volume = case.bound("data").await.spec.unwrap().volume_name.unwrap();
        case.delete(&case.api::<PersistentVolumeClaim>(), "data").await;
        case.gone(&Api::<PersistentVolume>::all(world.client.clone()), &volume).await;
    });
}

#[test]
fn a_claim_of_the_same_name_is_another_claim() {
    shared(|world| async move {
        let case = Case::new(&world, "namesake").await;
        let first = under_way(&case).await;
        let claims = case.api::<PersistentVolumeClaim>();
        case.delete(&claims, "data").await;
        case.gone(&claims, "data").await;
        case.server.clear_faults();
        let second = case.claim("data", "models", "immediate", json!({})).await;
        assert_ne!(first.uid(), second.uid());
        case.filled("data").await;
    });
}
