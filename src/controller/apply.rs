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
use serde::Serialize;
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
    let plan = || {
        let plan = seen.facts.prime.as_ref().and_then(|prime| prime.plan.as_ref());
        plan.ok_or_else(|| gone("plan"))
    };
    let post = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let claims = |claim: &PersistentVolumeClaim| {
        let namespace = claim.namespace().unwrap_or_default();
        Api::<PersistentVolumeClaim>::namespaced(client.clone(), &namespace)
    };
    match action {
        Action::AddFinalizer => {
            let claim = target()?;
            let patch = finalizer(claim, names::FINALIZER, true);
            patched(&claims(claim), claim, patch).await.map_err(failed)
        }
        Action::RemoveFinalizer => {
            let claim = target()?;
            let patch = finalizer(claim, names::FINALIZER, false);
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
            let patch = annotation(prime, names::FAILURE, failure);
            patched(&primes(), prime, patch).await.map_err(failed)
        }
        Action::NoteRound(rounds) => {
            let prime = prime()?;
            let patch = annotation(prime, names::ROUNDS, rounds);
            patched(&primes(), prime, patch).await.map_err(failed)
        }
        Action::PlanDataflow => {
            let source = seen.source.as_ref().ok_or_else(|| gone("resource"))?;
            let place = seen.facts.volume.as_ref().and_then(|volume| volume.cpfs.as_ref());
            let place = place.ok_or_else(|| gone("volume"))?;
            let plan = dataflow::plan(nas, &source.spec, place).await?;
            note(&primes(), prime()?, &plan).await.map(drop).map_err(failed)
        }
        Action::CreateFlow => {
            // before CPFS is asked: whatever becomes of its answer, it is known that there may be one
            let (prime, plan) = (prime()?, plan()?);
            let plan = Plan { asked: Some(Timestamp::now()), ..plan.clone() };
            let asked = note(&primes(), prime, &plan).await.map_err(failed)?;
            let plan = dataflow::create_flow(nas, plan, &prime.uid().unwrap_or_default()).await?;
            note(&primes(), &asked, &plan).await.map(drop).map_err(failed)
        }
        Action::NoteFlow(id) => {
            let plan = plan()?.clone().with_flow(id.clone(), Timestamp::now());
            note(&primes(), prime()?, &plan).await.map(drop).map_err(failed)
        }
        Action::CreateTask => {
            let flow = plan()?.flow.as_ref().ok_or_else(|| gone("data flow"))?.id.clone();
            let (prime, plan) = (prime()?, plan()?.clone());
            let uid = prime.uid().unwrap_or_default();
            let plan = dataflow::create_task(nas, plan, flow, &uid).await?;
            note(&primes(), prime, &plan).await.map(drop).map_err(failed)
        }
        Action::NoteTask(id) => {
            let plan = plan()?.clone().with_task(id.clone(), Timestamp::now());
            note(&primes(), prime()?, &plan).await.map(drop).map_err(failed)
        }
        Action::CancelTask(id) => {
            let flow = seen.facts.dataflow.flow().ok_or_else(|| gone("data flow"))?;
            dataflow::cancel_task(nas, plan()?, flow, id).await
        }
        Action::DeleteFlow(id) => {
            let plan = plan()?;
            if !plan.shown {
                // before it goes: whatever happens then, what is not listed any more is gone
                let plan = Plan { shown: true, ..plan.clone() };
                note(&primes(), prime()?, &plan).await.map_err(failed)?;
            }
            dataflow::delete_flow(nas, plan, id).await
        }
        Action::ProtectPrime => {
            let prime = prime()?;
            let patch = finalizer(prime, names::DATA_FLOW_FINALIZER, true);
            patched(&primes(), prime, patch).await.map_err(failed)
        }
        Action::ReleasePrime => {
            let prime = prime()?;
            let patch = finalizer(prime, names::DATA_FLOW_FINALIZER, false);
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
    patch(primes, &prime.name_any(), annotation(prime, names::DATA_FLOW, plan)).await
}

/// `value` as JSON, in an annotation of a prime PVC.
fn annotation(prime: &impl ResourceExt, name: &str, value: &impl Serialize) -> Value {
    let text = serde_json::to_string(value).expect("plain strings and numbers serialise");
    json!([unchanged(prime), {"op": "add", "path": build::pointer(name), "value": text}])
}

/// The test that fails a patch of an object that is not as it was seen.
fn unchanged(object: &impl ResourceExt) -> Value {
    json!({"op": "test", "path": "/metadata/resourceVersion", "value": object.resource_version()})
}

/// Whether `claim` has a finalizer from then on.
fn finalizer(claim: &PersistentVolumeClaim, name: &str, has: bool) -> Value {
    let mut finalizers = claim.finalizers().to_vec();
    match has {
        true => finalizers.push(name.to_owned()),
        false => finalizers.retain(|it| it != name),
    }
    json!([
        unchanged(claim),
        // also where there were none
        {"op": "add", "path": "/metadata/finalizers", "value": finalizers},
    ])
}

async fn patched<K>(api: &Api<K>, object: &K, changes: Value) -> Result<(), kube::Error>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    unless_gone(patch(api, &object.name_any(), changes).await.map(drop))
}

async fn patch<K>(
    api: &Api<K>,
    name: &str,
    changes: Value,
) -> Result<PartialObjectMeta<K>, kube::Error>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let patch: json_patch::Patch = serde_json::from_value(changes).expect("a list of operations");
    let by = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    api.patch_metadata(name, &by, &Patch::Json::<()>(patch)).await
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
