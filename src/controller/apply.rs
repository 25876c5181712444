//! Does what was decided. Every action holds only for the objects that were seen: a precondition
//! fails it when someone else was faster, and the next pass sees what they did.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{
    Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::cpfs::Nas;
use super::decide::Action;
use super::observe::Seen;
use super::observed::Source;
use super::observed::dataflow::Plan;
use super::settings::Settings;
use super::{Answer, Error, build, names};

mod dataflow;

/// Who writes, in managed fields.
pub(super) const MANAGER: &str = "ossvp";

/// Does `action` to what was `seen`.
pub(super) async fn apply(
    client: &Client,
    nas: &Nas,
    settings: &Settings,
    seen: &Seen,
    action: &Action,
) -> Result<(), Error> {
    let here = settings.namespace.as_str();
    let primes = || Api::<PersistentVolumeClaim>::namespaced(client.clone(), here);
    let failed = |error| Error::Apply { action: format!("{action:?}"), error: Answer(error) };
    let gone = |what| Error::Vanished { action: format!("{action:?}"), what };
    let target = || seen.target.as_deref().ok_or_else(|| gone("claim"));
    let prime = || seen.prime.as_deref().ok_or_else(|| gone("prime PVC"));
    let post = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let claims = |claim: &PersistentVolumeClaim| {
        let namespace = claim.namespace().unwrap_or_default();
        Api::<PersistentVolumeClaim>::namespaced(client.clone(), &namespace)
    };
    match action {
        Action::AddFinalizer => {
            let claim = target()?;
            let patch =
                finalizers(claim, |finalizers| finalizers.push(names::FINALIZER.to_owned()));
            patched(&claims(claim), claim, patch).await.map_err(failed)
        }
        Action::RemoveFinalizer => {
            let claim = target()?;
            let patch =
                finalizers(claim, |finalizers| finalizers.retain(|it| it != names::FINALIZER));
            patched(&claims(claim), claim, patch).await.map_err(failed)
        }
        Action::UnselectNode => {
            let claim = target()?;
            let path = build::pointer(names::SELECTED_NODE);
            let patch = json!([unchanged(claim), {"op": "remove", "path": path}]);
            patched(&claims(claim), claim, patch).await.map_err(failed)
        }
        Action::CreatePrime => {
            let Source::Usable { digest, .. } = &seen.facts.source else {
                return Err(gone("resource"));
            };
            created(primes().create(&post, &build::prime(target()?, digest, here)).await)
                .map_err(failed)
        }
        Action::CreateJob => {
            let (Source::Usable { access, .. }, Some(source)) = (&seen.facts.source, &seen.source)
            else {
                return Err(gone("resource"));
            };
            let job = build::job(target()?, prime()?, &source.spec, access, &settings.worker)
                .map_err(|refusal| Error::Refused(refusal.message))?;
            let jobs = Api::<Job>::namespaced(client.clone(), here);
            created(jobs.create(&post, &job).await).map_err(failed)
        }
        Action::RecordFailure(failure) => {
            let prime = prime()?;
            let text = serde_json::to_string(failure).expect("plain strings and numbers serialise");
            let note = json!({"op": "add", "path": build::pointer(names::FAILURE), "value": text});
            patched(&primes(), prime, json!([unchanged(prime), note])).await.map_err(failed)
        }
        Action::CreateFlow => {
            // before CPFS is asked: whatever becomes of its answer, it is known that there may be one
            let prime = prime()?;
            let plan = seen.facts.prime.as_ref().and_then(|prime| prime.plan.clone());
            let plan = plan.ok_or_else(|| gone("plan"))?;
            let asked = Plan { asked: Some(Timestamp::now()), ..plan };
            let noted = note(&primes(), prime, &asked).await.map_err(failed)?;
            let plan = dataflow::ask(nas, seen, action).await?;
            let plan = Plan { asked: asked.asked, ..plan };
            note(&primes(), &noted, &plan).await.map(drop).map_err(failed)
        }
        Action::PlanDataflow | Action::NoteFlow(_) | Action::NoteTask(_) | Action::CreateTask => {
            let plan = dataflow::ask(nas, seen, action).await?;
            note(&primes(), prime()?, &plan).await.map(drop).map_err(failed)
        }
        Action::CancelTask(_) => dataflow::undo(nas, seen, action).await,
        Action::DeleteFlow(_) => {
            // before it goes: whatever happens then, what is not listed any more is gone
            if let Some(plan) = seen.facts.prime.as_ref().and_then(|prime| prime.plan.as_ref())
                && !plan.shown
            {
                let plan = Plan { shown: true, ..plan.clone() };
                note(&primes(), prime()?, &plan).await.map_err(failed)?;
            }
            dataflow::undo(nas, seen, action).await
        }
        Action::ProtectPrime => {
            let prime = prime()?;
            let patch = finalizers(prime, |finalizers| {
                finalizers.push(names::DATA_FLOW_FINALIZER.to_owned());
            });
            patched(&primes(), prime, patch).await.map_err(failed)
        }
        Action::ReleasePrime => {
            let prime = prime()?;
            let patch = finalizers(prime, |finalizers| {
                finalizers.retain(|it| it != names::DATA_FLOW_FINALIZER);
            });
            patched(&primes(), prime, patch).await.map_err(failed)
        }
        Action::Rebind => {
            let volume = seen.volume.as_ref().ok_or_else(|| gone("volume"))?;
            let patch = build::rebind(volume, target()?, &seen.source_name);
            let volumes = Api::<PersistentVolume>::all(client.clone());
            patched(&volumes, volume, patch).await.map_err(failed)
        }
        Action::DeletePods(strays) => {
            let pods = Api::<Pod>::namespaced(client.clone(), here);
            for stray in strays {
                let how = only(Some(stray.uid.clone()), None);
                unless_gone(pods.delete(&stray.name, &how).await.map(drop)).map_err(failed)?;
            }
            Ok(())
        }
        Action::DeleteJob => {
            let Some(job) = seen.job.as_deref() else { return Ok(()) };
            // in the foreground: the Job is there until its Pods are gone and the volume is free
            let how = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Foreground),
                ..only(job.uid(), None)
            };
            let jobs = Api::<Job>::namespaced(client.clone(), here);
            unless_gone(jobs.delete(&job.name_any(), &how).await.map(drop)).map_err(failed)
        }
        Action::DeletePrime => {
            let prime = prime()?;
            let how = only(prime.uid(), prime.resource_version());
            unless_gone(primes().delete(&prime.name_any(), &how).await.map(drop)).map_err(failed)
        }
    }
}

/// Deletes the object that was seen, and no other of its name; with a version, only if it is unchanged.
fn only(uid: Option<String>, resource_version: Option<String>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version }),
        ..DeleteParams::default()
    }
}

/// Notes `plan` on the prime PVC; what is seen of that then.
async fn note(
    primes: &Api<PersistentVolumeClaim>,
    prime: &impl ResourceExt,
    plan: &Plan,
) -> Result<PartialObjectMeta<PersistentVolumeClaim>, kube::Error> {
    let text = serde_json::to_string(plan).expect("plain strings and numbers serialise");
    let note = json!({"op": "add", "path": build::pointer(names::DATA_FLOW), "value": text});
    let patch = json!([unchanged(prime), note]);
    let patch: json_patch::Patch = serde_json::from_value(patch).expect("a list of operations");
    let by = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    primes.patch_metadata(&prime.name_any(), &by, &Patch::Json::<()>(patch)).await
}

/// The test that fails a patch of an object that is not as it was seen.
fn unchanged(object: &impl ResourceExt) -> Value {
    json!({"op": "test", "path": "/metadata/resourceVersion", "value": object.resource_version()})
}

fn finalizers(claim: &PersistentVolumeClaim, change: impl FnOnce(&mut Vec<String>)) -> Value {
    let mut finalizers = claim.finalizers().to_vec();
    change(&mut finalizers);
    json!([
        unchanged(claim),
        // also where there were none
        {"op": "add", "path": "/metadata/finalizers", "value": finalizers},
    ])
}

async fn patched<K>(api: &Api<K>, object: &K, patch: Value) -> Result<(), kube::Error>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let patch: json_patch::Patch = serde_json::from_value(patch).expect("a list of operations");
    let by = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    unless_gone(
        api.patch_metadata(&object.name_any(), &by, &Patch::Json::<()>(patch)).await.map(drop),
    )
}

/// What is there already was made by an earlier pass.
fn created<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is gone needs nothing: the next pass sees what follows.
fn unless_gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => result,
    }
}
