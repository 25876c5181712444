//! Node objects: registered as a kubelet does, and kept alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, from_value, json};

use crate::options::NodeSpec;
use crate::world::World;

/// The kubelet's. The node lifecycle controller gives a node up after 40 s or 50 s without one.
const HEARTBEAT: Duration = Duration::from_secs(10);
const LEASES: &str = "kube-node-lease";
const OWNER: &str = "stand-in-kubelet";

fn apply() -> PatchParams {
    PatchParams::apply(OWNER).force()
}

/// Makes the Node, ready at once, and the driver's object.
pub(crate) async fn register(world: &World, spec: &NodeSpec, port: u16) -> kube::Result<()> {
    let NodeSpec { name, labels, taints } = spec;
    let node: Node = object(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": labels },
        "spec": { "taints": taints, "providerID": format!("stand-in://{name}") },
        "status": status(port, true),
    }));
    let nodes = world.cluster::<Node>();
    match nodes.create(&kube::api::PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
            nodes.patch(name, &PatchParams::default(), &patch).await?;
        }
        Err(error) => return Err(error),
    }
    report(world, name, port, true).await
}

/// The CSI driver's own object: nothing is attached, and file systems are given to the Pod's group.
pub(crate) async fn register_driver(world: &World) -> kube::Result<()> {
    let name = &world.options.provisioner;
    let driver = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": { "name": name },
        "spec": {
            "attachRequired": false,
            "podInfoOnMount": false,
            "fsGroupPolicy": "ReadWriteOnceWithFSType",
            "volumeLifecycleModes": ["Persistent"],
        },
    });
    world.cluster::<CSIDriver>().patch(name, &apply(), &Patch::Apply(&driver)).await.map(drop)
}

/// Beats for as long as it is polled, but not while the node is lost.
pub(crate) async fn beat(world: Arc<World>, name: String) {
    let mut changes = world.changes();
    loop {
        let lost = world.is_lost(&name);
        if !lost {
            let beaten = renew(&world, &name).await;
            world.heed(&format!("heartbeat of node {name}"), beaten);
        }
        let next = tokio::time::sleep(HEARTBEAT);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                changed = changes.changed() => {
                    if changed.is_err() { return }
                    if world.is_lost(&name) != lost { break }
                }
            }
        }
    }
}

async fn renew(world: &World, name: &str) -> kube::Result<()> {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": name },
        "spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": 40,
            "renewTime": MicroTime(Timestamp::now()),
        },
    });
    let leases = world.namespaced::<Lease>(LEASES);
    leases.patch(name, &apply(), &Patch::Apply(&lease)).await.map(drop)
}

/// Writes the node's status.
pub(crate) async fn report(world: &World, name: &str, port: u16, ready: bool) -> kube::Result<()> {
    let patch = Patch::Strategic(json!({ "status": status(port, ready) }));
    let nodes = world.cluster::<Node>();
    nodes.patch_status(name, &PatchParams::default(), &patch).await.map(drop)
}

/// What nobody fills: Pods are not scheduled by what they ask for.
fn resources() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("cpu", "64"),
        ("memory", "256Gi"),
        ("pods", "1000"),
        ("ephemeral-storage", "1Ti"),
    ])
}

fn status(port: u16, ready: bool) -> Value {
    let condition = |kind: &str, holds: &str, reason: &str, message: &str| {
        json!({
            "type": kind,
            "status": holds,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": Time(Timestamp::now()),
            "lastTransitionTime": Time(Timestamp::now()),
        })
    };
    let fine = |kind: &str, reason: &str| condition(kind, "False", reason, "");
    let ready = if ready {
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status")
    } else {
        let message = "Kubelet stopped posting node status.";
        condition("Ready", "Unknown", "NodeStatusUnknown", message)
    };
    json!({
        "addresses": [{ "type": "InternalIP", "address": super::ADDRESS }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        "capacity": resources(),
        "allocatable": resources(),
        "conditions": [
            fine("MemoryPressure", "KubeletHasSufficientMemory"),
            fine("DiskPressure", "KubeletHasNoDiskPressure"),
            fine("PIDPressure", "KubeletHasSufficientPID"),
            ready,
        ],
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": "", "machineID": "", "systemUUID": "",
            "containerRuntimeVersion": "stand-in://0",
            "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "v1.36.0",
            "operatingSystem": "linux",
            "osImage": "stand-in",
        },
    })
}

/// Whether Pods may come: the node lifecycle controller has taken its own taints away.
pub(crate) fn is_open(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref());
    let ready = |(kind, holds): (&str, &str)| (kind, holds) == ("Ready", "True");
    conditions.unwrap_or_default().iter().any(|one| ready((&one.type_, &one.status)))
        && !taints.iter().any(|taint| {
            matches!(
                taint.key.as_str(),
                "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable"
            )
        })
}

/// Removes what [`register`] made.
pub(crate) async fn unregister(world: &World, name: &str) -> kube::Result<()> {
    let params = kube::api::DeleteParams::default();
    for pod in world.pods.state() {
        let there = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(name);
        if there {
            let pods = world.namespaced::<k8s_openapi::api::core::v1::Pod>(
                &pod.namespace().unwrap_or_default(),
            );
            let now = params.clone().grace_period(0);
            world.heed("removing a Pod", pods.delete(&pod.name_any(), &now).await);
        }
    }
    let leases = world.namespaced::<Lease>(LEASES);
    world.heed("removing a Lease", leases.delete(name, &params).await);
    world.cluster::<Node>().delete(name, &params).await.map(drop)
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    from_value(value).expect("it has the fields that its kind has")
}
