//! Nodes that come and go.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::LogParams;
use serde_json::json;
use stand_in::{Image, NodeSpec, Options, StandIn};

use crate::support::{corner, on_claim, phase};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_takes_its_pods_along_and_tells_later() {
    let corner = corner().await;
    // no other test runs there
    let pod = json!({
        "nodeSelector": { "kubernetes.io/hostname": "node-c" },
        "tolerations": [{ "key": "only", "operator": "Exists" }],
    });
    corner.pod("p", "while :; do sleep 1; done", pod.clone(), json!({})).await;
    corner.is_running("p").await;
    corner.stand_in.lose_node("node-c").await.unwrap();
    let pods = corner.api::<Pod>();
    assert!(pods.logs("p", &LogParams::default()).await.is_err());
    // the node lifecycle controller's part
    let node = kube::Api::<Node>::all(corner.client.clone());
    let unreachable = |node: Option<&Node>| {
        let taints = node.and_then(|node| node.spec.as_ref()?.taints.as_ref());
        taints.into_iter().flatten().any(|taint| taint.key == "node.kubernetes.io/unreachable")
    };
    let tainted = kube::runtime::wait::await_condition(node.clone(), "node-c", unreachable);
    tokio::time::timeout(std::time::Duration::from_secs(60), tainted).await.unwrap().unwrap();
    assert_eq!(phase(&pods.get("p").await.unwrap()), "Running", "nobody says otherwise yet");
    corner.pod("q", "true", pod, json!({})).await;
    corner.until_told("q", "FailedScheduling", "node.kubernetes.io/unreachable").await;

    corner.stand_in.restore_node("node-c").await.unwrap();
    let end = corner.end("p").await;
    assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    assert_eq!(corner.end("q").await.exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stand_in_leaves_nothing() {
    let corner = corner().await;
    // the other one has the same cluster, but not this namespace
    let namespace = corner.namespace.clone();
    let _hold = corner
        .stand_in
        .hold_scheduling(move |pod| pod.metadata.namespace.as_ref() == Some(&namespace));
    let options = Options::new()
        .provisioner("another.example.com")
        .node(NodeSpec::named("another"))
        .image("busybox", Image::shell())
        .only_namespaces([&corner.namespace]);
    let another = StandIn::start(corner.client.clone(), options).await.unwrap();
    let class = corner.class_of("another.example.com", "Immediate", json!({ "sized": "ext4" }));
    corner.claim("data", &class.await, "16Mi").await;
    let (pod, container) = on_claim("data");
    let pod = corner.pod("p", "echo $$ > /volume/f; sleep 1000; true", pod, container).await;
    corner.is_running("p").await;
    let place = another.volume_of(&corner.namespace, "data").await.unwrap();
    let mounted = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&*place.to_string_lossy())
    };
    assert!(mounted());
    another.stop().await.unwrap();
    assert!(!mounted() && !place.exists());
    let root = place.parent().unwrap().parent().unwrap();
    assert!(!root.exists(), "{}", root.display());
    let uid = pod.metadata.uid.unwrap();
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("cmdline")).ok());
    assert_eq!(processes.filter(|line| line.contains(&uid)).count(), 0);
    let nodes = kube::Api::<Node>::all(corner.client.clone());
    assert!(nodes.get_opt("another").await.unwrap().is_none());
    corner.until_gone(corner.api::<Pod>(), "p").await;
}
