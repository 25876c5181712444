//! A namespace of a test's own, with an OSS server behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Namespace, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use oss_server::{Fault, OssServer};
use ossvp::controller::crd::{OSSVolumePopulator, Population};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{self, BUCKET, ID, SECRET};
use crate::world::{POPULATORS, World, until};

pub struct Case {
    pub world: Arc<World>,
    pub namespace: String,
    pub server: OssServer,
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Case {
    /// A namespace that begins with `name`, a server with some objects below `data/`, and a Secret
    /// of the namespace's name.
    pub async fn new(world: &Arc<World>, name: &str) -> Self {
        let server = support::server();
        let files: BTreeMap<String, Vec<u8>> = (0..5)
            .map(|n| (format!("dir-{}/file-{n}", n % 2), support::bytes(n, 1000 * n as usize)))
            .collect();
        for (path, body) in &files {
            server.put(BUCKET, &format!("data/{path}"), body.clone());
        }
        let namespaces = Api::<Namespace>::all(world.client.clone());
        let namespace = json!({"metadata": {"generateName": format!("{name}-")}});
        let namespace = serde_json::from_value(namespace).unwrap();
        let made = namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        let case = Self { world: world.clone(), namespace: made.name_any(), server, files };
        case.secret(&case.namespace, json!({"accessKeyId": ID, "accessKeySecret": SECRET})).await;
        case
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.world.client.clone(), &self.namespace)
    }

    /// As [`Case::api`], in the populator namespace.
    pub fn populators<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.world.client.clone(), POPULATORS)
    }

    pub async fn secret(&self, name: &str, entries: Value) {
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": name}, "stringData": entries}))
                .unwrap();
        self.populators().create(&PostParams::default(), &secret).await.unwrap();
    }

    /// The spec of a resource that names the case's server and Secret, with `generic` added.
    pub fn spec(&self, generic: Value) -> Value {
        let mut all = json!({"secretRef": self.namespace});
        merge(&mut all, generic);
        json!({
            "bucket": BUCKET,
            "region": self.server.region(),
            "endpoint": self.server.endpoint(),
            "path": "/data/",
            "generic": all,
        })
    }

    pub async fn source(&self, name: &str, spec: Value) -> OSSVolumePopulator {
        let source = json!({
            "apiVersion": "storage.alibabacloud.com/v1beta1",
            "kind": "OSSVolumePopulator",
            "metadata": {"name": name},
            "spec": spec,
        });
        let source = serde_json::from_value(source).unwrap();
        self.api().create(&PostParams::default(), &source).await.unwrap()
    }

    pub async fn change_source(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        let api = self.api::<OSSVolumePopulator>();
        api.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// A claim of 1 GiB of `class`, to be filled from `source`; `more` is added to its spec.
    pub async fn claim(
        &self,
        name: &str,
        source: &str,
        class: &str,
        more: Value,
    ) -> PersistentVolumeClaim {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": class,
            "dataSourceRef": {
                "apiGroup": "storage.alibabacloud.com", "kind": "OSSVolumePopulator", "name": source,
            },
        });
        merge(&mut spec, more);
        let claim =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        self.api().create(&PostParams::default(), &claim).await.unwrap()
    }

    /// What `look` finds of the object `name`, once it does.
    pub async fn object<K, T>(
        &self,
        api: &Api<K>,
        name: &str,
        what: &str,
        look: impl Fn(&K) -> Option<T>,
    ) -> T
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let what = format!("{name}: {what}");
        until(&self.world, &what, || async {
            api.get_opt(name).await.unwrap().as_ref().and_then(&look)
        })
        .await
    }

    /// The claim, once it is bound.
    pub async fn bound(&self, name: &str) -> PersistentVolumeClaim {
        let phase = |claim: &PersistentVolumeClaim| claim.status.as_ref()?.phase.clone();
        let bound = |claim: &PersistentVolumeClaim| {
            (phase(claim).as_deref() == Some("Bound")).then(|| claim.clone())
        };
        self.object(&self.api(), name, "bound", bound).await
    }

    /// Waits until the claim is bound, holds exactly the case's objects, and nothing else is left.
    pub async fn filled(&self, name: &str) {
        let claim = self.bound(name).await;
        let volume = self.world.stand_in.volume_of(&self.namespace, name).await.unwrap();
        let found = support::files(&volume);
        let found: BTreeMap<_, _> =
            found.into_iter().filter(|(path, _)| !path.starts_with("lost+found")).collect();
        assert!(found == self.files, "{:?}", found.keys());
        self.cleaned(&claim.uid().unwrap()).await;
        self.entry(name, "finished", |entry| entry.message == "Populated successfully").await;
        self.world.promise_holds();
    }

    /// Waits until nothing that was made for the claim is left, its finalizer included.
    pub async fn cleaned(&self, uid: &str) {
        self.no_scaffolding(uid).await;
        until(&self.world, "no finalizer of ours", || async {
            let claims = self.api::<PersistentVolumeClaim>().list(&ListParams::default()).await;
            let claims = claims.unwrap().items.into_iter();
            let mut held = claims.filter(|it| it.uid().as_deref() == Some(uid)).filter(|it| {
                it.finalizers().iter().any(|it| it.starts_with("storage.alibabacloud.com"))
            });
            held.next().is_none().then_some(())
        })
        .await;
    }

    /// Waits until prime PVC, Job and Pods are gone.
    pub async fn no_scaffolding(&self, uid: &str) {
        let (prime, job) = (format!("prime-{uid}"), format!("populate-{uid}"));
        until(&self.world, "no prime PVC, Job or Pod", || async {
            let prime = self.populators::<PersistentVolumeClaim>().get_opt(&prime).await.unwrap();
            let job = self.populators::<Job>().get_opt(&job).await.unwrap();
            let pods = self.pods(uid).await;
            (prime.is_none() && job.is_none() && pods.is_empty()).then_some(())
        })
        .await;
    }

    /// Worker Pods of a claim.
    pub async fn pods(&self, uid: &str) -> Vec<Pod> {
        let of = ListParams::default().labels(&format!("storage.alibabacloud.com/pvc-uid={uid}"));
        self.populators::<Pod>().list(&of).await.unwrap().items
    }

    /// A worker Pod that runs.
    pub async fn running_pod(&self, uid: &str) -> String {
        until(&self.world, "a running worker", || async {
            let pods = self.pods(uid).await;
            pods.iter()
                .find(|pod| {
                    let status = pod.status.as_ref();
                    status.and_then(|it| it.phase.as_deref()) == Some("Running")
                        && pod.metadata.deletion_timestamp.is_none()
                })
                .map(|pod| pod.name_any())
        })
        .await
    }

    /// The claim's entry in its resource's status, once it is as wanted.
    pub async fn entry(
        &self,
        claim: &str,
        what: &str,
        wanted: impl Fn(&Population) -> bool,
    ) -> Population {
        let what = format!("the entry of {claim} is {what}");
        until(&self.world, &what, || async {
            let sources =
                self.api::<OSSVolumePopulator>().list(&ListParams::default()).await.unwrap();
            let statuses = sources.items.into_iter().filter_map(|source| source.status);
            let mut entries = statuses.flat_map(|status| status.populations);
            entries.find(|entry| entry.pvc_name == claim && wanted(entry))
        })
        .await
    }

    /// Events about an object, as `reason: message`, oldest first.
    pub async fn events(&self, kind: &str, name: &str) -> Vec<String> {
        let about = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let events = self.api::<Event>().list(&ListParams::default().fields(&about)).await.unwrap();
        let mut events = events.items;
        events.retain(|it| it.reporting_component.as_deref() == Some("ossvp"));
        events.sort_by_key(|it| it.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let text = |it: Event| {
            format!("{}: {}", it.reason.unwrap_or_default(), it.message.unwrap_or_default())
        };
        events.into_iter().map(text).collect()
    }

    /// The reasons of events about the claim; progress may or may not have been seen.
    pub async fn reasons(&self, claim: &str) -> BTreeSet<String> {
        let events = self.events("PersistentVolumeClaim", claim).await;
        let reason = |event: &String| event.split(':').next().unwrap().to_owned();
        let reasons: Vec<String> =
            events.iter().map(reason).filter(|reason| reason != "PopulatorProgress").collect();
        let set: BTreeSet<String> = reasons.iter().cloned().collect();
        assert_eq!(set.len(), reasons.len(), "told twice: {events:?}");
        set
    }

    /// Waits for an event of the controller on the claim that has all of `parts`, and on the
    /// resource too; its text.
    pub async fn event(&self, claim: &str, source: Option<&str>, parts: &[&str]) -> String {
        let objects = [("PersistentVolumeClaim", Some(claim)), ("OSSVolumePopulator", source)];
        let mut text = String::new();
        for (kind, name) in objects {
            let Some(name) = name else { continue };
            text = until(
                &self.world,
                &format!("an event on {kind} {name} with {parts:?}"),
                || async {
                    let mut events = self.events(kind, name).await.into_iter();
                    events.find(|event| parts.iter().all(|part| event.contains(part)))
                },
            )
            .await;
        }
        text
    }

    /// Makes the server answer 503 to requests for one object: the worker does the others, and goes
    /// on trying until [`OssServer::clear_faults`].
    pub fn hold_last_object(&self) {
        let wait = [("x-oss-qos-delay-time", "300")];
        self.server.fault(Fault::get("data/dir-0/file-4").status_with(
            503,
            "ServiceUnavailable",
            &wait,
        ));
    }

    pub async fn delete<K>(&self, api: &Api<K>, name: &str)
    where
        K: Clone + DeserializeOwned + Debug,
    {
        // as kubectl does: a Job's Pods go too
        api.delete(name, &DeleteParams::background()).await.unwrap();
    }

    pub async fn gone<K>(&self, api: &Api<K>, name: &str)
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let what = format!("{name} is gone");
        until(&self.world, &what, || async {
            api.get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }
}

/// Merges `more` into `value`, as a JSON merge patch does.
pub fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(value), Value::Object(more)) => {
            for (key, more) in more {
                match more {
                    Value::Null => drop(value.remove(&key)),
                    more => merge(value.entry(key).or_insert(Value::Null), more),
                }
            }
        }
        (value, more) => *value = more,
    }
}
