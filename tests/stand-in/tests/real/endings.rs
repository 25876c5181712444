//! How Pods end that do not end by themselves.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, LogParams};
use serde_json::json;
use stand_in::{Deed, Error};

use crate::support::{Corner, condition, corner, phase};

/// Ends when it is told to, in its own time, and says so.
const PATIENT: &str = "trap 'echo told; exit 143' TERM; echo ready; while :; do sleep 0.1; done";

/// Waits until the script has set its trap.
async fn ready(corner: &Corner, pod: &str) {
    corner.is_running(pod).await;
    let follow = LogParams { follow: true, ..LogParams::default() };
    let log = corner.api::<Pod>().log_stream(pod, &follow).await.unwrap();
    let mut lines = futures::AsyncBufReadExt::lines(log);
    let line = futures::StreamExt::next(&mut lines).await.unwrap().unwrap();
    assert_eq!(line, "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_asked_first_and_has_a_last_status() {
    let corner = corner().await;
    let pod = json!({ "terminationGracePeriodSeconds": 20 });
    corner.pod("p", PATIENT, pod, json!({})).await;
    ready(&corner, "p").await;
    // so that the last status can be seen
    let kept = json!({ "metadata": { "finalizers": ["example.com/kept"] } });
    let patch = kube::api::Patch::Merge(kept);
    let pods = corner.api::<Pod>();
    pods.patch("p", &Default::default(), &patch).await.unwrap();
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    let end = corner.end("p").await;
    assert_eq!((end.exit_code, end.reason.as_deref()), (143, Some("Error")));
    assert_eq!(corner.stand_in.log(&corner.namespace, "p", "main").unwrap(), "ready\ntold\n");
    let removed = Deed::Removed { namespace: corner.namespace.clone(), pod: "p".to_owned() };
    corner.stand_in.until("its removal", |deeds| deeds.contains(&removed)).await;
    assert_eq!(phase(&pods.get("p").await.unwrap()), "Failed");
    let free = kube::api::Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    pods.patch("p", &Default::default(), &free).await.unwrap();
    corner.until_gone(pods, "p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_does_not_listen_is_killed_after_its_grace() {
    let corner = corner().await;
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    corner.pod("p", script, json!({ "terminationGracePeriodSeconds": 1 }), json!({})).await;
    ready(&corner, "p").await;
    let pods = corner.api::<Pod>();
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    corner.until_gone(pods, "p").await;
    let killed = Deed::Exited {
        namespace: corner.namespace.clone(),
        pod: "p".to_owned(),
        container: "main".to_owned(),
        code: 137,
    };
    assert!(corner.stand_in.deeds().contains(&killed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_evicted_through_the_api() {
    let corner = corner().await;
    corner.pod("p", PATIENT, json!({}), json!({})).await;
    ready(&corner, "p").await;
    let pods = corner.api::<Pod>();
    let kept = kube::api::Patch::Merge(json!({ "metadata": { "finalizers": ["example.com/k"] } }));
    pods.patch("p", &Default::default(), &kept).await.unwrap();
    corner.stand_in.evict(&corner.namespace, "p").await.unwrap();
    assert_eq!(corner.end("p").await.exit_code, 143);
    let pod = pods.get("p").await.unwrap();
    assert_eq!(condition(&pod, "DisruptionTarget"), Some(("True", "EvictionByEvictionAPI")));
    assert_eq!(phase(&pod), "Failed");
    let free = kube::api::Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    pods.patch("p", &Default::default(), &free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_short_of_something_says_so() {
    let corner = corner().await;
    corner.pod("p", PATIENT, json!({}), json!({})).await;
    ready(&corner, "p").await;
    let message = "The node was low on resource: ephemeral-storage.";
    corner.stand_in.evict_by_kubelet(&corner.namespace, "p", message).await.unwrap();
    assert_eq!(corner.end("p").await.exit_code, 143);
    let pod = corner.api::<Pod>().get("p").await.unwrap();
    assert_eq!(condition(&pod, "DisruptionTarget"), Some(("True", "TerminationByKubelet")));
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(status.message.as_deref(), Some(message));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_out_of_memory_is_killed_and_says_why() {
    let corner = corner().await;
    corner.pod("p", PATIENT, json!({}), json!({})).await;
    ready(&corner, "p").await;
    corner.stand_in.oom_kill(&corner.namespace, "p").await.unwrap();
    let end = corner.end("p").await;
    assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("OOMKilled")));
    let again = corner.stand_in.oom_kill(&corner.namespace, "p").await;
    assert!(matches!(again, Err(Error::NotRunning(_))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_process() {
    let corner = corner().await;
    corner.pod("p", PATIENT, json!({}), json!({})).await;
    ready(&corner, "p").await;
    corner.stand_in.signal(&corner.namespace, "p", 15).await.unwrap();
    assert_eq!(corner.end("p").await.exit_code, 143);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_pod_is_not_begun_and_goes_without_a_trace() {
    let corner = corner().await;
    let namespace = corner.namespace.clone();
    let hold =
        corner.stand_in.hold_pods(move |pod| pod.metadata.namespace.as_ref() == Some(&namespace));
    corner.pod("held", "true", json!({}), json!({})).await;
    corner.waits("held", "ContainerCreating").await;
    corner.pod("gone", "true", json!({}), json!({})).await;
    corner.waits("gone", "ContainerCreating").await;
    let pods = corner.api::<Pod>();
    pods.delete("gone", &DeleteParams::default()).await.unwrap();
    corner.until_gone(pods, "gone").await;
    hold.lift();
    assert_eq!(corner.end("held").await.exit_code, 0);
    let namespace = &corner.namespace;
    let started = |deed: &Deed| matches!(deed, Deed::Started { namespace: of, pod, .. } if of == namespace && pod == "gone");
    assert!(!corner.stand_in.deeds().iter().any(started));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_without_a_message_shows_the_end_of_the_log_if_asked() {
    let corner = corner().await;
    let container = json!({ "terminationMessagePolicy": "FallbackToLogsOnError" });
    corner.pod("p", "echo one; echo two >&2; exit 5", json!({}), container).await;
    let end = corner.end("p").await;
    assert_eq!((end.exit_code, end.message.as_deref()), (5, Some("one\ntwo\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_message_is_cut_to_its_last_4096_bytes() {
    let corner = corner().await;
    let script = "head -c 5000 /dev/zero | tr '\\0' x > /dev/termination-log
                  printf end >> /dev/termination-log";
    corner.pod("p", script, json!({}), json!({})).await;
    let message = corner.end("p").await.message.unwrap();
    assert_eq!(message.len(), 4096);
    assert!(message.ends_with("xend"));
}
