//! What the controller watches, and which claims and resources a change concerns.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::{pending, ready};

use futures::channel::mpsc::{self, UnboundedSender};
use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::crd::OSSVolumePopulator;
use super::names;
use super::observe::{Caches, ClaimKey, source_of};
use super::settings::Settings;

type Claim = ObjectRef<PersistentVolumeClaim>;
type Queue<K> = BoxStream<'static, Result<ObjectRef<K>, watcher::Error>>;
type Changes<K> = BoxStream<'static, Result<Change<K>, watcher::Error>>;

/// What a watch tells.
enum Change<K> {
    /// An object came, changed or went.
    Object(K),
    /// Everything was listed anew: what went in the meantime is not told.
    Anew,
}

/// Starts the watches: their caches, and the claims and resources that changes concern. They go on by
/// themselves, so that passes may wait for the caches, until the first queue is dropped.
pub(super) fn start(
    client: &Client,
    settings: &Settings,
) -> (Caches, Queue<PersistentVolumeClaim>, Queue<OSSVolumePopulator>) {
    let here = settings.namespace.as_str();
    let (key, value) = names::MANAGED_BY;
    let made_by_us = watcher::Config::default().labels(&format!("{key}={value}"));
    let all = watcher::Config::default;

    let populators = here.to_owned();
    let wanted = move |claim: &PersistentVolumeClaim| match claim.namespace() {
        Some(namespace) if namespace == populators => claim.labels().contains_key(names::CLAIM_UID),
        // never changes, so that what is in the cache stays wanted
        _ => source_of(claim).is_some(),
    };
    let (claims, claim_changes) = watched(Api::all(client.clone()), all(), wanted, |_| {});
    let (sources, source_changes) = watched(Api::all(client.clone()), all(), |_| true, |_| {});
    let (classes, class_changes) = watched(Api::all(client.clone()), all(), |_| true, |_| {});
    let inside = Api::namespaced(client.clone(), here);
    let (jobs, job_changes) = watched(inside, made_by_us.clone(), |_| true, |_| {});
    let inside = Api::namespaced(client.clone(), here);
    let (pods, pod_changes) = watched(inside, made_by_us, |_| true, |_| {});
    let inside = Api::namespaced(client.clone(), here);
    // the values go as soon as they come: only the names of a Secret's entries are of use
    let without_values = |secret: &mut Secret| {
        secret.data.iter_mut().flatten().for_each(|(_, value)| value.0 = vec![]);
    };
    let (secrets, secret_changes) = watched(inside, all(), |_| true, without_values);
    let (accounts, account_changes) = match settings.require_grant {
        true => watched(Api::namespaced(client.clone(), here), all(), |_| true, |_| {}),
        false => not_watched(),
    };

    let (tell, told) = mpsc::unbounded();
    let index = Index {
        claims: claims.clone(),
        sources: sources.clone(),
        populators: here.to_owned(),
        tell,
    };
    let mut generations = HashMap::new();
    let mut changes = stream::select_all([
        concerned(&index, claim_changes, Index::of_claim),
        concerned(&index, source_changes, move |index, source| {
            index.of_source(source, &mut generations)
        }),
        concerned(&index, class_changes, Index::of_class),
        concerned(&index, job_changes, |index, job| index.of_made(job)),
        concerned(&index, pod_changes, |index, pod| index.of_made(pod)),
        concerned(&index, secret_changes, Index::of_secret),
        concerned(&index, account_changes, |index, _| index.everything()),
    ]);
    let (queue, claims_told) = mpsc::unbounded();
    tokio::spawn(async move {
        while let Some(change) = changes.next().await {
            match change {
                Ok(claim) => {
                    if queue.unbounded_send(Ok(claim)).is_err() {
                        break;
                    }
                }
                // such as no right, or no definition of the resource: it is tried again
                Err(error) => tracing::warn!(%error, "a watch broke"),
            }
        }
    });
    let caches = Caches { claims, sources, classes, jobs, pods, secrets, accounts };
    (caches, claims_told.boxed(), told.map(Ok).boxed())
}

fn watched<K>(
    api: Api<K>,
    config: watcher::Config,
    wanted: impl Fn(&K) -> bool + Send + 'static,
    mut slim: impl FnMut(&mut K) + Send + 'static,
) -> (Store<K>, Changes<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changes = watcher(api, config)
        .default_backoff()
        .modify(move |object| {
            object.managed_fields_mut().clear();
            slim(object);
        })
        .filter(move |event| {
            ready(match event {
                Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                    wanted(object)
                }
                Ok(Event::Init | Event::InitDone) | Err(_) => true,
            })
        })
        .reflect(writer)
        .filter_map(|event| {
            ready(match event {
                Ok(Event::Apply(object) | Event::Delete(object)) => {
                    Some(Ok(Change::Object(object)))
                }
                // in the cache from the end of the list on
                Ok(Event::Init | Event::InitApply(_)) => None,
                Ok(Event::InitDone) => Some(Ok(Change::Anew)),
                Err(error) => Some(Err(error)),
            })
        });
    (store, changes.boxed())
}

/// An empty cache that stays so.
fn not_watched<K>() -> (Store<K>, Changes<K>)
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitDone);
    // a cache without its writer is one that failed
    let keep = stream::once(async move {
        let _writer = writer;
        pending().await
    });
    (store, keep.boxed())
}

fn concerned<K: Send + 'static>(
    index: &Index,
    changes: Changes<K>,
    mut map: impl FnMut(&Index, &K) -> Vec<Claim> + Send + 'static,
) -> Queue<PersistentVolumeClaim> {
    let index = index.clone();
    let claims = changes.flat_map(move |change| {
        let claims = match change {
            Ok(Change::Object(object)) => map(&index, &object).into_iter().map(Ok).collect(),
            Ok(Change::Anew) => index.everything().into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(claims)
    });
    claims.boxed()
}

/// Finds what a change concerns.
#[derive(Clone)]
struct Index {
    claims: Store<PersistentVolumeClaim>,
    sources: Store<OSSVolumePopulator>,
    populators: String,
    tell: UnboundedSender<ObjectRef<OSSVolumePopulator>>,
}

impl Index {
    /// The claim itself, or the one that a prime PVC was made for; the prime PVC's own name where
    /// that is gone.
    fn of_claim(&self, claim: &PersistentVolumeClaim) -> Vec<Claim> {
        let own = ObjectRef::from_obj(claim);
        if claim.namespace().as_ref() == Some(&self.populators) {
            let target =
                ClaimKey::of(claim, &self.populators).and_then(|key| key.found_in(&self.claims));
            return vec![target.unwrap_or(own)];
        }
        let Some(key) = ClaimKey::of(claim, &self.populators) else { return vec![own] };
        if key.found_in(&self.claims).is_some() {
            return vec![own];
        }
        // it is gone, by force perhaps: what was made for it, and its resource's status, are left
        if let (Some(name), Some(namespace)) = (source_of(claim), claim.namespace()) {
            self.tell_source(ObjectRef::new(name).within(&namespace));
        }
        let prime = self.prime(&key.uid);
        match self.claims.get(&prime) {
            Some(_) => vec![own, prime],
            None => vec![own],
        }
    }

    /// The claim of a Job or a Pod; where that is gone, the prime PVC, whose pass cleans up.
    fn of_made(&self, object: &impl ResourceExt) -> Vec<Claim> {
        let path = object.annotations().get(names::CLAIM).and_then(|claim| claim.split_once('/'));
        let (Some((namespace, name)), Some(uid)) = (path, object.labels().get(names::CLAIM_UID))
        else {
            return vec![];
        };
        let key =
            ClaimKey { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.clone() };
        vec![key.found_in(&self.claims).unwrap_or_else(|| self.prime(uid))]
    }

    fn prime(&self, uid: &str) -> Claim {
        ObjectRef::new(&names::prime(uid)).within(&self.populators)
    }

    /// The claims that name a resource, unless only its status changed: that is our own doing.
    fn of_source(
        &self,
        source: &OSSVolumePopulator,
        generations: &mut HashMap<String, Option<i64>>,
    ) -> Vec<Claim> {
        let uid = source.uid().unwrap_or_default();
        let generation = source.metadata.generation;
        let gone = self.sources.get(&ObjectRef::from_obj(source)).is_none();
        if gone {
            generations.remove(&uid);
        } else if generations.insert(uid, generation) == Some(generation) {
            return vec![];
        }
        self.tell_source(ObjectRef::from_obj(source));
        self.naming(source)
    }

    fn of_class(&self, class: &StorageClass) -> Vec<Claim> {
        let name = class.name_any();
        self.claims(|claim| {
            claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref()) == Some(&name)
        })
    }

    fn of_secret(&self, secret: &Secret) -> Vec<Claim> {
        let name = secret.name_any();
        let using = self.sources.state_filter(|source| {
            let generic = source.spec.generic.as_ref();
            generic.and_then(|generic| generic.secret_ref.as_ref()) == Some(&name)
        });
        let claims = using.iter().flat_map(|source| {
            self.tell_source(ObjectRef::from_obj(source.as_ref()));
            self.naming(source)
        });
        claims.collect()
    }

    fn everything(&self) -> Vec<Claim> {
        let sources = self.sources.state();
        sources.iter().for_each(|source| self.tell_source(ObjectRef::from_obj(source.as_ref())));
        self.claims(|_| true)
    }

    /// The claims that name a resource.
    fn naming(&self, source: &OSSVolumePopulator) -> Vec<Claim> {
        let name = source.name_any();
        self.claims(|claim| {
            claim.namespace() == source.namespace() && source_of(claim) == Some(&name)
        })
    }

    fn claims(&self, wanted: impl Fn(&PersistentVolumeClaim) -> bool) -> Vec<Claim> {
        let claims = self.claims.state_filter(wanted);
        claims.iter().map(|claim| ObjectRef::from_obj(claim.as_ref())).collect()
    }

    fn tell_source(&self, source: ObjectRef<OSSVolumePopulator>) {
        // the other end goes with the process
        let _ = self.tell.unbounded_send(source);
    }
}
