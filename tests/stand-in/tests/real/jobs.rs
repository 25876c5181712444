//! What a controller goes by that runs its work in Jobs.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{ListParams, LogParams};
use serde_json::{Value, json};

use crate::support::{Corner, corner};

fn job(script: &str) -> Value {
    json!({
        "metadata": { "name": "work" },
        "spec": {
            "backoffLimit": 6,
            "podFailurePolicy": { "rules": [{
                "action": "FailJob",
                "onExitCodes": { "containerName": "main", "operator": "In", "values": [3, 7] },
            }] },
            "template": { "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "main",
                    "image": "busybox:1.36",
                    "command": ["/bin/sh", "-c", script],
                    "volumeMounts": [{ "name": "v", "mountPath": "/volume" }],
                }],
                "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }],
            } },
        },
    })
}

async fn pod(corner: &Corner) -> Pod {
    let its = ListParams::default().labels("job-name=work");
    corner.api::<Pod>().list(&its).await.unwrap().items.remove(0)
}

fn has(job: &Job, kind: &str, reason: &str) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == kind
            && condition.status == "True"
            && condition.reason.as_deref().unwrap_or_default().contains(reason)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_pod_writes_to_its_claim_and_is_heard() {
    let corner = corner().await;
    let class = corner.class("Immediate", json!({})).await;
    corner.claim("data", &class, "1Gi").await;
    let script = "echo first; echo last >&2; echo kept > /volume/file
                  printf outcome > /dev/termination-log";
    corner.make::<Job>(job(script)).await;
    corner.until::<Job>("work", "is complete", |job| has(job, "Complete", "")).await;

    let data = corner.stand_in.volume_of(&corner.namespace, "data").await.unwrap();
    assert_eq!(std::fs::read_to_string(data.join("file")).unwrap(), "kept\n");
    let pod = pod(&corner).await;
    assert_eq!(corner.log(&pod.name_any()).await, "first\nlast\n");
    let tail = LogParams { tail_lines: Some(1), since_seconds: Some(600), ..LogParams::default() };
    let tail = corner.api::<Pod>().logs(&pod.name_any(), &tail).await.unwrap();
    assert_eq!(tail, "last\n");
    let end = corner.end(&pod.name_any()).await;
    assert_eq!((end.exit_code, end.reason.as_deref()), (0, Some("Completed")));
    assert_eq!(end.message.as_deref(), Some("outcome"));
    assert!(corner.told(&pod.name_any(), "Scheduled", "node-a").await);
    assert!(corner.told(&pod.name_any(), "Started", "main").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_policy_sees_the_exit_code() {
    let corner = corner().await;
    let class = corner.class("Immediate", json!({})).await;
    corner.claim("data", &class, "1Gi").await;
    corner.make::<Job>(job("exit 7")).await;
    let failed = |job: &Job| has(job, "Failed", "PodFailurePolicy");
    let job = corner.until::<Job>("work", "has failed by its policy", failed).await;
    assert_eq!(job.status.unwrap().failed, Some(1), "it was not tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_tries_again_where_its_policy_says_nothing() {
    let corner = corner().await;
    let class = corner.class("Immediate", json!({})).await;
    corner.claim("data", &class, "1Gi").await;
    // the first run leaves a note for the second
    corner.make::<Job>(job("[ -e /volume/note ] || { touch /volume/note; exit 4; }")).await;
    let job = corner.until::<Job>("work", "is complete", |job| has(job, "Complete", "")).await;
    let status = job.status.unwrap();
    assert_eq!((status.failed, status.succeeded), (Some(1), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_jobs_pods_know_their_share() {
    let corner = corner().await;
    let class = corner.class("Immediate", json!({})).await;
    corner.claim("data", &class, "1Gi").await;
    let mut job = job("");
    job["spec"]["completionMode"] = json!("Indexed");
    job["spec"]["completions"] = json!(3);
    job["spec"]["parallelism"] = json!(3);
    let index = "metadata.annotations['batch.kubernetes.io/job-completion-index']";
    let container = &mut job["spec"]["template"]["spec"]["containers"][0];
    container["env"] =
        json!([{ "name": "INDEX", "valueFrom": { "fieldRef": { "fieldPath": index } } }]);
    container["command"] = json!(["/bin/sh", "-c", "touch /volume/$(INDEX)-$HOSTNAME"]);
    corner.make::<Job>(job).await;
    corner.until::<Job>("work", "is complete", |job| has(job, "Complete", "")).await;
    let data = corner.stand_in.volume_of(&corner.namespace, "data").await.unwrap();
    let mut names: Vec<String> = std::fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy()[..8].to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["0-work-0", "1-work-1", "2-work-2"]);
}
