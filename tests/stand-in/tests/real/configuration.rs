//! What a container is given: image, variables, files, user.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};

use crate::support::corner;

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_is_not_pulled() {
    let corner = corner().await;
    corner.pod("p", "true", json!({}), json!({ "image": "nowhere.example.com/x:1" })).await;
    let message = corner.waits("p", "ImagePullBackOff").await;
    assert_eq!(message, "Back-off pulling image \"nowhere.example.com/x:1\"");
    corner.until_told("p", "Failed", "Failed to pull image \"nowhere.example.com/x:1\"").await;
    corner.until_told("p", "Failed", "Error: ErrImagePull").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_its_entry_point_its_user_and_its_variables() {
    let corner = corner().await;
    let container = json!({ "image": "echo:2", "command": [], "args": ["it", "says $(X)"],
        "env": [{ "name": "X", "value": "x" }] });
    corner.pod("p", "", json!({ "securityContext": { "runAsNonRoot": true } }), container).await;
    assert_eq!(corner.end("p").await.exit_code, 0);
    assert_eq!(corner.log("p").await, "it says x\n");
    let container = json!({ "image": "echo", "command": ["/bin/sh", "-c", "id -u; echo $FROM"] });
    corner.pod("q", "", json!({}), container).await;
    assert_eq!(corner.end("q").await.exit_code, 0);
    assert_eq!(corner.log("q").await, "65532\nimage\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_waits_for_the_secret_that_it_needs() {
    let corner = corner().await;
    let container = json!({ "env": [
        { "name": "ID", "valueFrom": { "secretKeyRef": { "name": "creds", "key": "id" } } },
        { "name": "TOKEN", "valueFrom": {
            "secretKeyRef": { "name": "creds", "key": "token", "optional": true },
        } },
    ] });
    corner.pod("p", "echo $ID-$TOKEN", json!({}), container).await;
    let message = corner.waits("p", "CreateContainerConfigError").await;
    assert_eq!(message, "secret \"creds\" not found");
    let secret = json!({ "metadata": { "name": "creds" }, "stringData": { "id": "me" } });
    corner.make::<Secret>(secret).await;
    assert_eq!(corner.end("p").await.exit_code, 0);
    assert_eq!(corner.log("p").await, "me-\n");
    assert!(corner.told("p", "Failed", "Error: secret \"creds\" not found").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_from_secrets_maps_and_the_pod_itself() {
    let corner = corner().await;
    let volumes = json!({ "volumes": [
        { "name": "secret", "secret": { "secretName": "creds", "defaultMode": 0o400 } },
        { "name": "map", "configMap": { "name": "conf", "items": [{ "key": "k", "path": "a/b" }] } },
        { "name": "pod", "downwardAPI": { "items": [
            { "path": "name", "fieldRef": { "fieldPath": "metadata.name" } },
        ] } },
        { "name": "empty", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
    ] });
    let container = json!({ "volumeMounts": [
        { "name": "secret", "mountPath": "/etc/creds" },
        { "name": "map", "mountPath": "/conf" },
        { "name": "pod", "mountPath": "/pod" },
        { "name": "empty", "mountPath": "/scratch", "subPath": "below" },
    ], "securityContext": { "readOnlyRootFilesystem": true } });
    let script = "cat /etc/creds/id /conf/a/b /pod/name; stat -c ' %a' /etc/creds/..data/id
                  touch /scratch/x && ! touch /x 2>/dev/null && ! touch /etc/creds/x 2>/dev/null";
    corner.pod("p", script, volumes, container).await;
    corner.until_told("p", "FailedMount", "secret \"creds\" not found").await;
    let secret = json!({ "metadata": { "name": "creds" }, "stringData": { "id": "me" } });
    corner.make::<Secret>(secret).await;
    let map = json!({ "metadata": { "name": "conf" }, "data": { "k": "v" } });
    corner.make::<ConfigMap>(map).await;
    assert_eq!(corner.end("p").await.exit_code, 0, "{}", corner.log("p").await);
    assert_eq!(corner.log("p").await, "mevp 400\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projected_token_is_for_its_audience_and_its_pod() {
    let corner = corner().await;
    let pod = json!({
        "automountServiceAccountToken": false,
        "securityContext": { "runAsUser": 1234, "fsGroup": 5678 },
        "volumes": [{ "name": "t", "projected": { "sources": [{ "serviceAccountToken": {
            "audience": "sts.example.com", "expirationSeconds": 3600, "path": "token",
        } }] } }],
    });
    let container = json!({ "volumeMounts": [{ "name": "t", "mountPath": "/var/run/secrets/t" }] });
    let script = "cat /var/run/secrets/t/token; stat -L -c ' %a %u %g' /var/run/secrets/t/token";
    corner.pod("p", script, pod, container).await;
    assert_eq!(corner.end("p").await.exit_code, 0);
    let log = corner.log("p").await;
    let (token, rights) = log.trim().split_once(' ').unwrap();
    assert_eq!(rights, "640 1234 5678");
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["aud"], json!(["sts.example.com"]));
    assert_eq!(claims["kubernetes.io"]["pod"]["name"], "p");
    let subject = format!("system:serviceaccount:{}:default", corner.namespace);
    assert_eq!(claims["sub"], json!(subject));
    let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(life, 3600);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_is_refused_where_the_pod_forbids_it() {
    let corner = corner().await;
    let pod = json!({ "securityContext": { "runAsNonRoot": true } });
    corner.pod("p", "true", pod, json!({})).await;
    let message = corner.waits("p", "CreateContainerConfigError").await;
    assert!(message.contains("image will run as root"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn initial_containers_come_first_and_failures_are_run_again() {
    let corner = corner().await;
    let mount = json!([{ "name": "v", "mountPath": "/v" }]);
    let pod = json!({
        "restartPolicy": "OnFailure",
        "volumes": [{ "name": "v", "emptyDir": {} }],
        "initContainers": [{
            "name": "first", "image": "busybox", "volumeMounts": mount,
            "command": ["/bin/sh", "-c", "echo first >> /v/f"],
        }],
    });
    let script = "echo run >> /v/f; cat /v/f; [ $(wc -l < /v/f) = 3 ]";
    corner.pod("p", script, pod, json!({ "volumeMounts": mount })).await;
    assert_eq!(corner.end("p").await.exit_code, 0);
    assert_eq!(corner.log("p").await, "first\nrun\nrun\n");
}
