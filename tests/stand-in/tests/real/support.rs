//! One control plane and one stand-in for all tests; a namespace and a client for each.

use std::fmt::Debug;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cluster::ControlPlane;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, Event, Namespace, PersistentVolumeClaim, Pod,
    ServiceAccount,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, ListParams, LogParams, PostParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};
use stand_in::{Image, NodeSpec, Options, PROVISIONER, StandIn};

pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";

/// Statics are never dropped: each has somebody who cleans up when this process has ended.
static CLUSTER: LazyLock<ControlPlane> =
    LazyLock::new(|| ControlPlane::start().unwrap_or_else(|error| panic!("{error}")));

static STAND_IN: LazyLock<StandIn> = LazyLock::new(|| {
    let options = Options::new()
        .node(NodeSpec::named("node-a").label(ZONE, "a"))
        .node(NodeSpec::named("node-b").label(ZONE, "b").taint("only", "b", "NoSchedule"))
        .node(NodeSpec::named("node-c").label(ZONE, "c").taint("only", "c", "NoSchedule"))
        .image("busybox", Image::shell())
        .image("echo", Image::program("/bin/echo").at("/bin/say").user(65532).env("FROM", "image"));
    StandIn::start_alone(&CLUSTER.kubeconfig(), options).unwrap_or_else(|error| panic!("{error}"))
});

/// A test's own corner of the cluster.
pub(crate) struct Corner {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) stand_in: &'static StandIn,
}

/// A namespace of the test's own, with what the control plane puts into each.
pub(crate) async fn corner() -> Corner {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let stand_in = tokio::task::spawn_blocking(|| &*STAND_IN).await.unwrap();
    let kubeconfig = Kubeconfig::read_from(CLUSTER.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let client = Client::try_from(config.unwrap()).unwrap();
    let namespace = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let corner = Corner { client, namespace, stand_in };
    corner.make_in_cluster::<Namespace>(json!({ "metadata": { "name": corner.namespace } })).await;
    corner.until::<ServiceAccount>("default", "exists", |_| true).await;
    corner
}

impl Corner {
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn all<K: Resource<Scope = ClusterResourceScope, DynamicType = ()>>(
        &self,
    ) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub(crate) async fn make<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let object = from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn make_in_cluster<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let object = from_value(object).unwrap();
        self.all::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    /// Waits until an object is as it should be; or says how it is after a minute.
    pub(crate) async fn until<K>(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&K) -> bool + Send,
    ) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let holds = |object: Option<&K>| object.is_some_and(&holds);
        let waiting = await_condition(self.api::<K>(), name, holds);
        match tokio::time::timeout(Duration::from_secs(60), waiting).await {
            Ok(object) => object.unwrap().unwrap(),
            Err(_) => panic!(
                "{name}: not ({what}), but {:#?}\nand {:#?}\nafter {:#?}",
                self.api::<K>().get_opt(name).await,
                self.events(name).await,
                self.stand_in.deeds(),
            ),
        }
    }

    /// Waits until an object is gone.
    pub(crate) async fn until_gone<K>(&self, api: Api<K>, name: &str)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let gone = |object: Option<&K>| object.is_none();
        let waiting = await_condition(api.clone(), name, gone);
        if tokio::time::timeout(Duration::from_secs(60), waiting).await.is_err() {
            panic!("{name} is still there: {:#?}", api.get_opt(name).await);
        }
    }

    /// A StorageClass of this test's own; its name.
    pub(crate) async fn class(&self, mode: &str, parameters: Value) -> String {
        self.class_of(PROVISIONER, mode, parameters).await
    }

    pub(crate) async fn class_of(
        &self,
        provisioner: &str,
        mode: &str,
        parameters: Value,
    ) -> String {
        let class: StorageClass = self
            .make_in_cluster(json!({
                "metadata": { "name": format!("{}-{}", self.namespace, mode.to_lowercase()) },
                "provisioner": provisioner,
                "parameters": parameters,
                "volumeBindingMode": mode,
            }))
            .await;
        class.name_any()
    }

    pub(crate) async fn claim(&self, name: &str, class: &str, size: &str) -> PersistentVolumeClaim {
        self.make(json!({
            "metadata": { "name": name },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": class,
                "resources": { "requests": { "storage": size } },
            },
        }))
        .await
    }

    /// A Pod that runs a shell command; `more` of its spec and of its container's.
    pub(crate) async fn pod(&self, name: &str, script: &str, more: Value, container: Value) -> Pod {
        let mut spec = json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 20 });
        let mut one = json!({
            "name": "main", "image": "busybox", "command": ["/bin/sh", "-c", script],
        });
        merge(&mut one, container);
        spec["containers"] = json!([one]);
        merge(&mut spec, more);
        self.make(json!({ "metadata": { "name": name }, "spec": spec })).await
    }

    /// Waits for a Pod's end; how its container ended.
    pub(crate) async fn end(&self, name: &str) -> ContainerStateTerminated {
        let pod: Pod = self
            .until(name, "has ended", |pod: &Pod| matches!(phase(pod), "Succeeded" | "Failed"))
            .await;
        state(&pod).terminated.clone().unwrap()
    }

    /// Waits until a Pod's container waits for this reason; the message.
    pub(crate) async fn waits(&self, name: &str, reason: &str) -> String {
        let waits = |pod: &Pod| {
            let statuses =
                pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
            let waiting = statuses.and_then(|all| all[0].state.as_ref()?.waiting.as_ref());
            waiting.and_then(|waiting| waiting.reason.as_deref()) == Some(reason)
        };
        let pod: Pod = self.until(name, &format!("waits: {reason}"), waits).await;
        state(&pod).waiting.clone().unwrap().message.unwrap_or_default()
    }

    pub(crate) async fn is_running(&self, name: &str) -> Pod {
        self.until(name, "runs", |pod: &Pod| phase(pod) == "Running").await
    }

    pub(crate) async fn log(&self, pod: &str) -> String {
        self.api::<Pod>().logs(pod, &LogParams::default()).await.unwrap()
    }

    /// Reasons and messages of the events about an object.
    pub(crate) async fn events(&self, name: &str) -> Vec<(String, String)> {
        let about = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = self.api::<Event>().list(&about).await.unwrap();
        let events = events.items.into_iter();
        events
            .map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default()))
            .collect()
    }

    /// Whether there was an event with this reason and a message with these words.
    pub(crate) async fn told(&self, name: &str, reason: &str, words: &str) -> bool {
        let events = self.events(name).await;
        events.iter().any(|event| event.0 == reason && event.1.contains(words))
    }

    /// Waits for it.
    pub(crate) async fn until_told(&self, name: &str, reason: &str, words: &str) {
        let about = format!("involvedObject.name={name},reason={reason}");
        let config = kube::runtime::watcher::Config::default().fields(&about);
        let stream = kube::runtime::watcher(self.api::<Event>(), config);
        let stream = kube::runtime::WatchStreamExt::applied_objects(stream);
        futures::pin_mut!(stream);
        let waiting = async {
            while let Some(event) = futures::StreamExt::next(&mut stream).await {
                if event.unwrap().message.is_some_and(|message| message.contains(words)) {
                    return;
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), waiting).await.is_err() {
            panic!("no event {reason} {words:?} about {name}: {:#?}", self.events(name).await);
        }
    }
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn state(pod: &Pod) -> &ContainerState {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.unwrap()[0].state.as_ref().unwrap()
}

/// A condition's status and reason.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((&found.status, found.reason.as_deref().unwrap_or_default()))
}

fn merge(into: &mut Value, from: Value) {
    let Value::Object(from) = from else { panic!("{from} is no object") };
    for (key, value) in from {
        into[key] = value;
    }
}

/// A Pod's volume on a claim, and where a container has it.
pub(crate) fn on_claim(claim: &str) -> (Value, Value) {
    (
        json!({ "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }] }),
        json!({ "volumeMounts": [{ "name": "v", "mountPath": "/volume" }] }),
    )
}
