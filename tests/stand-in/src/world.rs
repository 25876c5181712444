//! What provisioner, scheduler and kubelets share: the cluster as last seen, and how to act on it.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::Api;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::disk::Disk;
use crate::events::{Events, Kind, Voice};
use crate::kubelet::Pods;
use crate::kubelet::log::Logs;
use crate::kubelet::processes::Processes;
use crate::options::Options;
use crate::record::{Deed, Record};
use crate::rules::Rules;

/// The cluster as last seen. Every loop works on the whole of it each time something changed, and
/// so needs no order of events.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) options: Options,
    pub(crate) pods: Store<Pod>,
    pub(crate) claims: Store<PersistentVolumeClaim>,
    pub(crate) volumes: Store<PersistentVolume>,
    pub(crate) classes: Store<StorageClass>,
    pub(crate) nodes: Store<Node>,
    pub(crate) rules: Rules,
    pub(crate) record: Record,
    pub(crate) disk: Disk,
    pub(crate) processes: Processes,
    pub(crate) logs: Logs,
    pub(crate) orders: Pods,
    events: Events,
    lost: Mutex<BTreeSet<String>>,
    changed: watch::Sender<u64>,
}

/// Keeps one of the mirrors up to date as long as it is polled.
pub(crate) type Mirror = BoxFuture<'static, ()>;

impl World {
    pub(crate) fn new(client: Client, options: Options) -> std::io::Result<(Self, Vec<Mirror>)> {
        let changed = watch::Sender::new(0);
        let (pods, a) = mirror(Api::all(client.clone()), changed.clone());
        let (claims, b) = mirror(Api::all(client.clone()), changed.clone());
        let (volumes, c) = mirror(Api::all(client.clone()), changed.clone());
        let (classes, d) = mirror(Api::all(client.clone()), changed.clone());
        let (nodes, e) = mirror(Api::all(client.clone()), changed.clone());
        let world = Self {
            events: Events::new(client.clone()),
            rules: Rules::new(&changed),
            disk: Disk::new()?,
            record: Record::default(),
            processes: Processes::default(),
            logs: Logs::default(),
            orders: Pods::default(),
            lost: Mutex::default(),
            client,
            options,
            pods,
            claims,
            volumes,
            classes,
            nodes,
            changed,
        };
        Ok((world, vec![a, b, c, d, e]))
    }

    /// Sees every change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Makes every loop look again.
    pub(crate) fn nudge(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(&ObjectRef::new(name).within(namespace))
    }

    pub(crate) fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(&ObjectRef::new(name).within(namespace))
    }

    pub(crate) fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(&ObjectRef::new(name))
    }

    pub(crate) fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(&ObjectRef::new(name))
    }

    pub(crate) fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectRef::new(name))
    }

    pub(crate) fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn cluster<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    pub(crate) fn is_lost(&self, node: &str) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    pub(crate) fn set_lost(&self, node: &str, lost: bool) {
        {
            let mut names = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            if lost {
                names.insert(node.to_owned());
            } else {
                names.remove(node);
            }
        }
        self.nudge();
    }

    /// An event; that one could not be said stops nobody.
    pub(crate) async fn say<K>(
        &self,
        voice: &Voice,
        about: &K,
        kind: Kind,
        reason: &str,
        message: &str,
    ) where
        K: Resource<DynamicType = ()>,
    {
        let said = self.events.say(voice, about, kind, reason, message).await;
        self.heed(&format!("event {reason} about {}", about.name_any()), said);
    }

    /// An event, unless it was said; whether it is new.
    pub(crate) async fn say_once<K>(
        &self,
        voice: &Voice,
        about: &K,
        reason: &str,
        message: &str,
    ) -> bool
    where
        K: Resource<DynamicType = ()>,
    {
        let said = self.events.say_once(voice, about, reason, message).await;
        self.heed(&format!("event {reason} about {}", about.name_any()), said).unwrap_or(false)
    }

    /// What came of a request. What others did first (conflict, not found) is no matter: the next
    /// look tells. Other refusals go on record, so that a test that waits in vain shows them.
    pub(crate) fn heed<T>(&self, what: &str, result: kube::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => None,
            // nothing can be made in a namespace that is going
            Err(kube::Error::Api(status)) if status.message.contains("being terminated") => None,
            Err(error) => {
                let deed = Deed::Refused { what: what.to_owned(), error: error.to_string() };
                self.record.add(deed);
                None
            }
        }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("options", &self.options).finish_non_exhaustive()
    }
}

fn mirror<K>(api: Api<K>, changed: watch::Sender<u64>) -> (Store<K>, Mirror)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let stream = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
    let running = stream.for_each(move |_| {
        changed.send_modify(|version| *version += 1);
        futures::future::ready(())
    });
    (reader, running.boxed())
}
